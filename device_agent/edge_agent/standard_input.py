"""What a host sends to a verb: standard input, as long as somebody is there who sends.

    source = Source()
    source.line(), list(source.pieces(1 << 20))
    document("a list of digests")

Raises Failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
from collections.abc import Iterator
from typing import Any

from edge_agent.process import Failure

_SILENCE_S = 30
CHUNK_BYTES = 1 << 18
_SET_PIPE_SIZE, _PIPE_BYTES = 1031, 1 << 20  # fcntl.F_SETPIPE_SZ, which Python has from 3.10 on
_MAX_INPUT_BYTES = 64 << 20
_MAX_LINE_BYTES = 4 << 20


class Source:
    """Standard input as a line, then pieces of known length. It ends early where the host fell silent, which is gone then."""

    def __init__(self) -> None:
        self._ahead = b""
        self.ended = False  # before all was here
        with contextlib.suppress(OSError):  # sshd's pipe holds 64 kB, and waits for us as often; elsewhere it is no pipe
            fcntl.fcntl(0, _SET_PIPE_SIZE, _PIPE_BYTES)

    def line(self) -> bytes:
        while b"\n" not in self._ahead and len(self._ahead) < _MAX_LINE_BYTES:
            chunk = _read(CHUNK_BYTES)
            if not chunk:
                break
            self._ahead += chunk
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line

    def left(self) -> bytes:
        """What was read already, and not asked for."""
        ahead, self._ahead = self._ahead, b""
        return ahead

    def pieces(self, left: int) -> Iterator[bytes]:
        while left:
            piece, self._ahead = self._ahead[:left] or _read(min(left, CHUNK_BYTES)), self._ahead[left:]
            if not piece:
                self.ended = True
                return
            left -= len(piece)
            yield piece


def whole(size: int | None) -> Iterator[bytes]:
    """So many bytes, or all up to the end. A host that fell silent is gone."""
    left = _MAX_INPUT_BYTES if size is None else size
    while left:
        if not select.select([0], [], [], _SILENCE_S)[0]:
            if size is None:
                raise Failure(f"nothing came on standard input for {_SILENCE_S} s", "send the input, then close it")
            return
        chunk = os.read(0, min(left, CHUNK_BYTES))
        if not chunk:
            return
        left -= len(chunk)
        yield chunk
    if size is None:
        raise Failure(f"standard input has more than {_MAX_INPUT_BYTES} bytes", "send fewer or smaller samples")


def document(expected: str) -> Any:
    """All of it, as JSON."""
    return parsed(b"".join(whole(None)), expected)


def parsed(raw: bytes, expected: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Failure("standard input is no JSON", f"it is {expected}") from error


def _read(most: int) -> bytes:
    """Empty at the end, and where nothing came for so long that nobody is there."""
    return os.read(0, most) if select.select([0], [], [], _SILENCE_S)[0] else b""
