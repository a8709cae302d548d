"""What of a new blob a device does not have: it is sent instead of the whole, and `edge_agent.delta` puts both together there.

    packed = between(old, new)        # bytes, or None where the whole is as good

Blobs of equal length, as weights are after another training, are compared byte by byte; a fine-tuned weight differs in its lower bits, so that the
exclusive or of both is mostly zeros. Others are searched for what they share, wherever it lies, in blocks: rsync's idea (Tridgell 1996), with a
hash of every place that numpy computes at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_agent.delta import MAGIC, NEW, XOR

WORTH = 0.9  # of the whole: a delta that is larger is not sent
_GAP = 4  # equal bytes between two that differ: fewer are sent along
_BLOCK = 64  # bytes of the base that have to be found in one piece
_STEP = 1 << 22
_PLACES = 256
_LEVEL = 6
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Bytes = NDArray[np.uint8]
Record = tuple[int, int, int]  # copied, fresh, and where in the base it goes on


def between(old: bytes, new: bytes) -> bytes | None:
    """The delta from ``old`` to ``new``; None where sending ``new`` is as good."""
    before, after = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    if len(before) < (1 - WORTH) * len(after) or not len(after):  # there is not so much to copy
        return None
    if len(before) == len(after):
        records = list(_in_place(before, after))
        if sum(fresh for _, fresh, _ in records) > len(after) * 0.75:
            return None
        packed = min((_packed(records, before, after, mode) for mode in (XOR, NEW)), key=len)
    else:
        moved = list(_moved(before, after))
        if len(moved) == 1:
            return None
        packed = _packed(moved, before, after, NEW)
    return packed if len(packed) < WORTH * len(new) else None


def _in_place(before: Bytes, after: Bytes) -> Iterator[Record]:
    """Runs of bytes that differ, and what is equal before each."""
    places = np.flatnonzero(before != after)
    if not len(places):
        yield len(after), 0, len(after)
        return
    breaks = np.flatnonzero(np.diff(places) > _GAP)
    starts = places[np.concatenate([[0], breaks + 1])]
    ends = places[np.concatenate([breaks, [len(places) - 1]])] + 1
    at = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield start - at, end - start, end
        at = end
    if at < len(after):
        yield len(after) - at, 0, len(after)


def _moved(before: Bytes, after: Bytes) -> Iterator[Record]:
    """What both share in blocks, wherever it lies in the base. The first record copies nothing."""
    copied = told = stood = 0  # what the record before says; in ``after``; in the base
    for place, source, count in _matches(before, after):
        yield copied, place - told, source
        copied, told, stood = count, place + count, source + count
    yield copied, len(after) - told, stood


def _matches(before: Bytes, after: Bytes) -> Iterator[tuple[int, int, int]]:
    """Place in ``after``, place in the base, length: in the order of the first, none overlapping."""
    if len(before) < _BLOCK or len(after) < _BLOCK:
        return
    blocks = _hashed([before[: len(before) // _BLOCK * _BLOCK].view("<u8")[word :: _BLOCK // 8] for word in range(_BLOCK // 8)])
    order = np.argsort(blocks, kind="stable")
    known = blocks[order]
    if not _likely_shared(known, after):
        return
    at = 0
    for begin in range(0, len(after) - _BLOCK + 1, _STEP):
        if at >= begin + _STEP:
            continue
        piece = after[begin : begin + _STEP + _BLOCK - 1]
        words = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(piece, 8)).view("<u8")[:, 0]  # of every place
        hashes = _hashed([words[8 * word : len(piece) - _BLOCK + 8 * word + 1] for word in range(_BLOCK // 8)])
        found = np.searchsorted(known, hashes)
        found[found == len(known)] = 0
        likely = np.flatnonzero(known[found] == hashes)
        next_one = int(np.searchsorted(likely, at - begin))
        while next_one < len(likely):
            place, source = begin + int(likely[next_one]), int(order[found[likely[next_one]]]) * _BLOCK
            next_one += 1
            if np.array_equal(before[source : source + _BLOCK], after[place : place + _BLOCK]):
                back = _common(before[max(source - (place - at), 0) : source][::-1], after[at:place][::-1])
                ahead = _common(before[source:], after[place:])
                yield place - back, source - back, back + ahead
                at = place + ahead
                next_one = int(np.searchsorted(likely, at - begin))


def _likely_shared(known: NDArray[np.uint64], after: Bytes) -> bool:
    """Whether any of some places has a block of the base: where a tenth of a large file has one, 256 places miss it once in 10^11 times."""
    if len(after) < _PLACES * 4 * _BLOCK:
        return True
    for place in np.linspace(0, len(after) - 2 * _BLOCK, _PLACES, dtype=np.int64).tolist():
        words = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(after[place : place + 2 * _BLOCK - 1], 8)).view("<u8")[:, 0]
        hashes = _hashed([words[8 * word : 8 * word + _BLOCK] for word in range(_BLOCK // 8)])
        found = np.searchsorted(known, hashes)
        found[found == len(known)] = 0
        if (known[found] == hashes).any():
            return True
    return False


def _hashed(words: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """One number for each window, given as its words of 8 bytes, over all windows."""
    total = np.zeros(len(words[0]), np.uint64)
    for word in words:
        total = (total ^ word) * _PRIME
        total ^= total >> np.uint64(29)
    return total


def _common(one: Bytes, other: Bytes) -> int:
    """Bytes at the beginning that are equal, looked for in growing pieces."""
    most, at, step = min(len(one), len(other)), 0, 256
    while at < most:
        end = min(at + step, most)
        differ = np.flatnonzero(one[at:end] != other[at:end])
        if len(differ):
            return at + int(differ[0])
        at, step = end, min(step * 4, _STEP)
    return most


def _packed(records: list[Record], before: Bytes, after: Bytes, mode: int) -> bytes:
    squeeze = zlib.compressobj(_LEVEL)
    pieces = [MAGIC, bytes([mode])]
    at = stood = 0
    plain = bytearray()
    for copied, fresh, goes_on in records:
        at, stood = at + copied, stood + copied
        seek = goes_on - (stood + fresh)
        plain += _number(copied) + _number(fresh) + _number(seek << 1 if seek >= 0 else (-seek << 1) - 1)
        piece = after[at : at + fresh]
        plain += (piece ^ before[stood : stood + fresh]).tobytes() if mode == XOR else piece.tobytes()
        at, stood = at + fresh, goes_on
        if len(plain) > _STEP:
            pieces.append(squeeze.compress(bytes(plain)))
            plain.clear()
    pieces += [squeeze.compress(bytes(plain)), squeeze.flush()]
    return b"".join(pieces)


def _number(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
