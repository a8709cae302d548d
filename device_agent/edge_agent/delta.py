"""A blob as what differs from another that the device has. Applied here; `edgesdk.delta` makes it.

    chunks = apply(base, size, delta)          # pieces of the new blob, for Blobs.receive, which checks the digest

A delta is ``MAGIC``, one byte for its mode, and a zlib stream of records: three numbers and some bytes.

    copied     as many bytes of the base, from where we stand in it
    fresh      as many bytes follow; in mode XOR they are combined with the base's at this place, in mode NEW they stand for themselves
    seek       how far to go in the base then, from behind what was copied and replaced; signed

Numbers are LEB128 (7 bits a byte, the lowest first), ``seek`` in zigzag. Whatever it says, no more comes out than ``size``, and nothing outside the
base is read. After bsdiff's triples (Percival 2003). Standard library only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

MAGIC = b"edgedlt1"
XOR, NEW = 0, 1

_PIECE = 1 << 18
_MOST_SHIFT = 63


class BadDelta(Exception):
    """Not a delta, or not one of this base."""


def apply(base: BinaryIO, size: int, delta: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The new blob in pieces, ``size`` bytes in all. Raises BadDelta."""
    source = _Inflated(delta)
    if source.exactly(len(MAGIC), plain=True) != MAGIC:
        raise BadDelta("it does not begin as one")
    mode = source.exactly(1, plain=True)[0]
    if mode not in (XOR, NEW):
        raise BadDelta(f"its mode is {mode}")
    there, out = _Base(base), bytearray()
    place = made = records = 0
    while made < size:
        copied, fresh, seek = source.number(), source.number(), source.number()
        made, records = made + copied + fresh, records + 1
        if made > size:
            raise BadDelta("it makes more than it says")
        if records > 1 and not copied + fresh:  # the first may say only where to begin
            raise BadDelta("a record of it makes nothing")
        for count in _pieces(copied):
            out += there.read(place, count)
            place += count
            if len(out) >= _PIECE:
                yield bytes(out)
                out.clear()
        for count in _pieces(fresh):
            piece = source.exactly(count)
            if mode == XOR:
                replaced = there.read(place, count)
                piece = (int.from_bytes(piece, "little") ^ int.from_bytes(replaced, "little")).to_bytes(count, "little")
            out += piece
            place += count
            if len(out) >= _PIECE:
                yield bytes(out)
                out.clear()
        place += (seek >> 1) ^ -(seek & 1)
    yield bytes(out)


def _pieces(count: int) -> Iterator[int]:
    while count > 0:
        yield min(count, _PIECE)
        count -= _PIECE


class _Base:
    """What is there, read mostly one piece after the other."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._place = -1

    def read(self, place: int, count: int) -> bytes:
        if place != self._place:
            if place < 0:
                raise BadDelta("it reads before the base's first byte")
            self._stream.seek(place)
        piece = self._stream.read(count)
        if len(piece) < count:
            raise BadDelta("it reads beyond the base's end")
        self._place = place + count
        return piece


class _Inflated:
    """The stream's bytes, a few at a time: of what is compressed never more is unpacked than asked for."""

    def __init__(self, chunks: Iterable[bytes | memoryview]) -> None:
        self._chunks = iter(chunks)
        self._zlib = zlib.decompressobj()
        self._packed = b""
        self._ready = bytearray()
        self._at = 0

    def exactly(self, count: int, *, plain: bool = False) -> bytes:
        """So many bytes; ``plain``, before the compressed part begins."""
        if plain:
            while len(self._packed) < count:
                self._packed += self._next()
            found, self._packed = self._packed[:count], self._packed[count:]
            return found
        while len(self._ready) - self._at < count:
            self._unpack()
        found = bytes(self._ready[self._at : self._at + count])
        self._at += count
        if self._at > _PIECE:
            del self._ready[: self._at]
            self._at = 0
        return found

    def number(self) -> int:
        """One in LEB128."""
        value = shift = 0
        while True:
            while self._at == len(self._ready):
                self._unpack()
            byte = self._ready[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > _MOST_SHIFT:
                raise BadDelta("a number of it is too large")

    def _unpack(self) -> None:
        if self._zlib.eof:
            raise BadDelta("it ends early")
        packed, self._packed = self._zlib.unconsumed_tail or self._packed, b""
        try:
            # What it has taken in already may be more than it has given out, so that is asked for first.
            found = self._zlib.decompress(packed, _PIECE) or (b"" if self._zlib.eof else self._zlib.decompress(self._next(), _PIECE))
        except zlib.error as error:
            raise BadDelta(f"its compressed part is damaged: {error}") from error
        self._ready += found

    def _next(self) -> bytes:
        for chunk in self._chunks:
            if len(chunk):
                return bytes(chunk)
        raise BadDelta("it ends early")
