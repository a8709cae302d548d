"""The bytes of one connection: of heads, and of bodies with a length or in chunks. Standard library only.

    source = Source(sock, leftover=b"", pace=Pace())
    source.begin(length=120)                  # what the head said; None: in chunks
    body = source.body(limit=1 << 20)
    leftover = source.rest()

Chunks are read strictly: what is not exactly RFC 9112's framing is refused, since two programs that read it differently
would disagree where the next request begins.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

READ_BYTES = 1 << 16
_PIECE_BYTES = 1 << 18
_MAX_LINE_BYTES = 1024
_MAX_TRAILER_LINES = 64
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class HttpError(Exception):
    """A failure with its status. ``close``: what follows on this connection cannot be understood. ``headers`` go with the answer."""

    def __init__(self, status: int, message: str, hint: str = "", *, close: bool = False, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.hint, self.close, self.headers = status, hint, close, headers or {}


@dataclass(frozen=True)
class Pace:
    """How slow the other side may be. ``idle_s``: without a byte; a transfer as a whole may take that and its size at ``bytes_a_second``."""

    idle_s: float = 30
    bytes_a_second: int = 64 << 10

    def deadline(self, size: int) -> float:
        """On the monotonic clock: when so many bytes have to be through."""
        return time.monotonic() + self.idle_s + size / self.bytes_a_second


class Source:
    """What comes over a connection, from one request's first byte on. Raises HttpError for what is too slow, too large or malformed."""

    def __init__(self, sock: socket.socket, leftover: bytes, pace: Pace) -> None:
        self._socket, self._pace = sock, pace
        self.buffered = memoryview(leftover)
        self.expects_continue = False
        self._left: int | None = 0  # of the current body; None: chunks that nobody has read yet

    @property
    def length(self) -> int | None:
        """What is left of the current body; None where only its end will tell."""
        return self._left

    def begin(self, length: int | None) -> None:
        """A head was read: its body has that length, or None for chunks."""
        self._left = length

    def receive(self, deadline: float) -> bytes:
        """Some bytes of a head; empty at the end."""
        if len(self.buffered):
            data, self.buffered = bytes(self.buffered), memoryview(b"")
            return data
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            return self._socket.recv(READ_BYTES)
        except socket.timeout as error:
            raise HttpError(408, f"no whole request came within {self._pace.idle_s:g} s", close=True) from error

    def body(self, limit: int, take: Callable[[int], None] = lambda _size: None) -> bytearray:
        """All of it, if it has at most ``limit`` bytes. ``take`` is asked before memory is used, and may raise."""
        if self._left is None:
            return self._joined(limit, take)
        if self._left > limit:
            raise HttpError(413, f"the body has {self._left} bytes, at most {limit} are taken", close=True)
        take(self._left)
        body = bytearray(self._left)
        self._read_into(memoryview(body), self._pace.deadline(len(body)))
        return body

    def pieces(self) -> Iterator[memoryview]:
        """A body of known length as it comes, however slowly; a sender that falls silent ends it early."""
        buffer = memoryview(bytearray(_PIECE_BYTES))
        self._invite()
        self._socket.settimeout(self._pace.idle_s + 10)  # the verb in front of us gives up after 30 s
        while self._left:
            try:
                count = self._take(buffer[: self._left])
            except (socket.timeout, ConnectionError):
                return
            if not count:
                return
            self._left -= count
            yield buffer[:count]

    def drain(self, limit: int) -> bool:
        """Read what is left of a body that nobody wanted; whether the next request can be found behind it."""
        if self._left == 0:
            return True
        if self._left is None or self._left > limit or self.expects_continue:
            return False
        scratch, deadline = memoryview(bytearray(min(self._left, _PIECE_BYTES))), self._pace.deadline(self._left)
        try:
            while self._left:
                self._read_into(scratch[: self._left], deadline)
        except HttpError:
            return False
        return True

    def rest(self) -> bytes:
        """What came behind the body: the next request's first bytes."""
        return bytes(self.buffered)

    def _joined(self, limit: int, take: Callable[[int], None]) -> bytearray:
        """The chunks. Memory is taken for what came, never for what a chunk claims."""
        body, begun = bytearray(), time.monotonic()
        scratch = memoryview(bytearray(READ_BYTES))
        self._invite()
        while True:
            size = self._chunk_size(self._overall(begun, len(body)))
            if size == 0:
                self._trailers(self._overall(begun, len(body)))
                self._left = 0
                return body
            if len(body) + size > limit:
                raise HttpError(413, f"the body has more than {limit} bytes, which is all that is taken", close=True)
            end = len(body) + size
            while len(body) < end:
                count = self._some(scratch[: end - len(body)], self._overall(begun, len(body)), "a chunk")
                take(count)
                body += scratch[:count]
            if self._line(self._overall(begun, len(body))):
                raise _malformed("a chunk is longer than it said")

    def _overall(self, begun: float, size: int) -> float:
        return begun + self._pace.idle_s + size / self._pace.bytes_a_second

    def _chunk_size(self, deadline: float) -> int:
        found = _CHUNK.fullmatch(self._line(deadline))
        if not found:
            raise _malformed("a chunk does not begin with its size")
        return int(found[1], 16)

    def _trailers(self, deadline: float) -> None:
        """Headers behind the body: nobody here wants any."""
        for _ in range(_MAX_TRAILER_LINES):
            line = self._line(deadline)
            if not line:
                return
            if not _FIELD.fullmatch(line):
                raise _malformed("what follows the last chunk is no header")
        raise _malformed("too many headers follow the last chunk")

    def _line(self, deadline: float) -> bytes:
        """Up to CR LF, which is taken off."""
        line = bytearray()
        byte = memoryview(bytearray(1))
        while not line.endswith(b"\n"):
            if len(line) > _MAX_LINE_BYTES:
                raise _malformed("a line between the chunks is too long")
            self._some(byte, deadline, "the last chunk")
            line += byte
        if not line.endswith(b"\r\n"):
            raise _malformed("a line between the chunks does not end with CR LF")
        return bytes(line[:-2])

    def _read_into(self, view: memoryview, deadline: float) -> None:
        self._invite()
        while len(view):
            count = self._some(view, deadline, f"the body, {self._left} bytes before its end")
            self._left = (self._left or 0) - count
            view = view[count:]

    def _some(self, view: memoryview, deadline: float, where: str) -> int:
        """At least one byte."""
        if len(self.buffered) == 0:
            self._socket.settimeout(max(0.001, min(self._pace.idle_s, deadline - time.monotonic())))
        try:
            count = self._take(view)
        except socket.timeout as error:
            raise HttpError(408, "the body came too slowly", close=True) from error
        if not count:
            raise HttpError(400, f"the connection ended within {where}", close=True)
        return count

    def _take(self, view: memoryview) -> int:
        if len(self.buffered):
            count = min(len(self.buffered), len(view))
            view[:count] = self.buffered[:count]
            self.buffered = self.buffered[count:]
            return count
        if len(view) < READ_BYTES and self._left is None:  # lines and small chunks: not a system call a byte
            self.buffered = memoryview(self._socket.recv(READ_BYTES))
            return self._take(view) if len(self.buffered) else 0
        return self._socket.recv_into(view)

    def _invite(self) -> None:
        """The client waits to hear that the body is wanted."""
        if self.expects_continue:
            self.expects_continue = False
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def _malformed(what: str) -> HttpError:
    return HttpError(400, f"the chunked body is malformed: {what}", close=True)
