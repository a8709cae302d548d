"""Memory that two processes share, and the bell between them. Standard library only; docs/device.md says what a question looks like.

    line, bell = Line.make(1 << 20)             # the caller's end, and what the worker is given beside line.region
    line.region.view[0:5] = b"hello"
    status, phases, said = line.ask(question)

The region is a memfd that cannot shrink: whoever maps it never touches a page that is gone. The bell is a Unix socket of whole
messages, one question at a time. Its end tells whether a question was read before the worker went: one that was not is asked again
without risk.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import time
from dataclasses import dataclass

QUESTION = struct.Struct("<Q")  # when it was asked: nanoseconds of the monotonic clock. What is asked follows
BODY = struct.Struct("<Qq")  # of a question that lies in the region as HTTP has it: its bytes, and those of its JSON or -1 for all
REPLY = struct.Struct("<HQQQQ")  # status, and nanoseconds in queue, input, run, output. What is said follows
PULSE = struct.Struct("<QQ")  # of a worker: since when it has been busy with something, 0 if it is not, and with how many programs' questions
MAX_MESSAGE_BYTES = 1 << 16
PROTOCOL = "edge-ring"  # what a connection is upgraded to, to pass region and bell
ALIGNMENT = 64  # of tensors in the region

ANSWERED = 200
MOVED = 307  # another worker answers from now on
TOO_SMALL = 413  # the region; what is said names the bytes needed

_PAGE = mmap.PAGESIZE
_FORBIDDEN = fcntl.F_SEAL_WRITE | getattr(fcntl, "F_SEAL_FUTURE_WRITE", 0x0010)


class NotARegion(Exception):
    """A descriptor that must not be mapped."""


class Unread(Exception):
    """The worker has gone, and never read the question: another may be asked."""


class Died(Exception):
    """The worker has gone with the question."""


@dataclass(frozen=True)
class Region:
    """Shared memory of a fixed size."""

    descriptor: int
    view: mmap.mmap
    size: int

    @classmethod
    def make(cls, size: int) -> Region:
        """At least so many bytes, in whole pages. Raises OSError."""
        size = max(_PAGE, -(-size // _PAGE) * _PAGE)
        descriptor = os.memfd_create("edge-agent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            return cls(descriptor, mmap.mmap(descriptor, size), size)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """The memory itself goes when the last array on it does."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def check(descriptor: int, limit: int) -> int:
    """The size of a region that came from a stranger. Raises NotARegion for one that could harm whoever maps it."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        size, page = os.fstat(descriptor).st_size, os.fstatvfs(descriptor).f_bsize
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    except OSError:
        raise NotARegion("what came is no memfd") from None
    if not seals & fcntl.F_SEAL_SHRINK:
        raise NotARegion("the memfd is not sealed against shrinking")
    if seals & _FORBIDDEN or not writable:
        raise NotARegion("the memfd cannot be written: answers are placed there")
    if page != _PAGE:  # of huge pages there may be none left when one is touched
        raise NotARegion("the memfd has huge pages")
    if not 0 < size <= limit:
        raise NotARegion(f"the memfd has {size} bytes, between 1 and {limit} are taken")
    return size


class Line:
    """A caller's end. Not for two threads at once."""

    def __init__(self, region: Region, bell: socket.socket) -> None:
        self.region = region
        self._bell = bell

    @classmethod
    def make(cls, size: int, timeout_s: float) -> tuple[Line, socket.socket]:
        """And the other end of its bell. Raises OSError."""
        region = Region.make(size)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except BaseException:
            region.close()
            raise
        ours.settimeout(timeout_s)
        return cls(region, ours), theirs

    def ask(self, asked: bytes) -> tuple[int, tuple[int, int, int, int], bytes]:
        """Status, phases, and what is said. Raises Unread, Died, or socket.timeout; the line is of no use then."""
        try:
            self._bell.send(QUESTION.pack(time.perf_counter_ns()) + asked)
        except (BrokenPipeError, ConnectionError):
            return self._last_words()
        try:
            reply = self._bell.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            return self._last_words()
        if len(reply) < REPLY.size:
            raise Died
        return self._parsed(reply)

    def close(self) -> None:
        self._bell.close()
        self.region.close()

    def _last_words(self) -> tuple[int, tuple[int, int, int, int], bytes]:
        """It did not read the question. It may have said why."""
        try:
            reply = self._bell.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except OSError:
            reply = b""
        if len(reply) < REPLY.size:
            raise Unread
        return self._parsed(reply)

    def _parsed(self, reply: bytes) -> tuple[int, tuple[int, int, int, int], bytes]:
        status, queue, given, run, output = REPLY.unpack_from(reply)
        if status == MOVED:
            raise Unread
        return status, (queue, given, run, output), reply[REPLY.size :]


def aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
