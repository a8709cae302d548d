"""The system calls by which a process, its threads and its children change files below a folder: each stopped, counted, and at one of them a fault.

    with Watched([sys.executable, "-m", "edge_agent", "serve"], under=home) as watched:
        watched.arm(7, Kill())                # the seventh from now on
        ...
        watched.disarm()                      # [Call("openat", "/…/incoming/…"), …], those that were made meanwhile
        watched.hit                           # whether it came to the seventh

The kernel stops whoever makes such a call, in any thread and any process below, until we have said what becomes of it (seccomp's user notification,
Linux ≥ 5.19). So all calls have one order and none is missed: strace counts in each thread by itself. The call of the fault is never made.
Needs no root; x86-64 only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# number: name, and where its files are: "0" a descriptor in the first argument, "p0" a path, "d0p1" a path below a descriptor.
CALLS = {
    1: ("write", ("0",)),
    2: ("open", ("p0",)),
    18: ("pwrite64", ("0",)),
    20: ("writev", ("0",)),
    40: ("sendfile", ("0",)),
    74: ("fsync", ("0",)),
    75: ("fdatasync", ("0",)),
    76: ("truncate", ("p0",)),
    77: ("ftruncate", ("0",)),
    82: ("rename", ("p0", "p1")),
    83: ("mkdir", ("p0",)),
    84: ("rmdir", ("p0",)),
    85: ("creat", ("p0",)),
    86: ("link", ("p0", "p1")),
    87: ("unlink", ("p0",)),
    88: ("symlink", ("p1",)),
    90: ("chmod", ("p0",)),
    91: ("fchmod", ("0",)),
    92: ("chown", ("p0",)),
    93: ("fchown", ("0",)),
    94: ("lchown", ("p0",)),
    132: ("utime", ("p0",)),
    133: ("mknod", ("p0",)),
    162: ("sync", ()),
    235: ("utimes", ("p0",)),
    257: ("openat", ("d0p1",)),
    258: ("mkdirat", ("d0p1",)),
    259: ("mknodat", ("d0p1",)),
    260: ("fchownat", ("d0p1",)),
    263: ("unlinkat", ("d0p1",)),
    264: ("renameat", ("d0p1", "d2p3")),
    265: ("linkat", ("d0p1", "d2p3")),
    266: ("symlinkat", ("d1p2",)),
    268: ("fchmodat", ("d0p1",)),
    275: ("splice", ("2",)),
    277: ("sync_file_range", ("0",)),
    280: ("utimensat", ("d0p1",)),
    285: ("fallocate", ("0",)),
    296: ("pwritev", ("0",)),
    306: ("syncfs", ("0",)),
    316: ("renameat2", ("d0p1", "d2p3")),
    326: ("copy_file_range", ("2",)),
    328: ("pwritev2", ("0",)),
    437: ("openat2", ("d0p1",)),
    452: ("fchmodat2", ("d0p1",)),
}
GROWING = {"write", "pwrite64", "writev", "sendfile", "open", "openat", "creat", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "fallocate"}
_OPENING = {2: 1, 257: 2}  # which argument holds the flags: only those count that may create or cut a file
_CREATING = os.O_CREAT | os.O_TRUNC
_AT_FDCWD = -100 & 0xFFFFFFFF
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_GO_ON = struct.pack("=QqiI", 0, 0, 0, 1)

# Runs before the watched program, in its process: installs the filter, hands its listener over, becomes the program.
_BEFORE = """
import ctypes, os, socket, struct, sys
code = bytes.fromhex(sys.argv[2])
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(317, 1, 8 | 32, ctypes.byref(Filter(len(code) // 8, code)))
if listener < 0:
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
with socket.socket(fileno=int(sys.argv[1])) as sock:
    socket.send_fds(sock, [b"."], [listener])
os.close(listener)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True)
class Call:
    name: str
    path: str


At = int | Callable[[Call], bool]


@dataclass(frozen=True)
class Kill:
    """The process, its threads and its children: at once, by SIGKILL. ``cut`` happens before that, while the call waits: the power of its disk."""

    cut: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Fail:
    """The call fails with that errno. ``lasting``: so do all later ones that would take more of the disk."""

    number: int
    lasting: bool = False


@dataclass
class Watched:
    argv: Sequence[str]
    under: Path
    env: Mapping[str, str] | None = None
    stdin: int = subprocess.DEVNULL
    stdout: int = subprocess.DEVNULL
    armed: tuple[At, Kill | Fail] | None = None  # from its first call on
    hit: bool = False
    _calls: list[Call] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._counting, self._ended = self.armed is not None, False
        self._under = str(self.under.resolve())
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                argv = [sys.executable, "-I", "-c", _BEFORE, str(theirs.fileno()), _filter().hex(), *map(str, self.argv)]
                self.process = subprocess.Popen(
                    argv, env=self.env, stdin=self.stdin, stdout=self.stdout, stderr=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
                )
            _, (self._listener,), _, _ = socket.recv_fds(ours, 1, 1)
        self._thread = threading.Thread(target=self._listen, name="system calls", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._thread.join(30)
        os.close(self._listener)
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def arm(self, at: At, fault: Kill | Fail) -> None:
        """The fault at the ``at``-th call from now on, or at the one that it says is meant; 0: never, they are counted only."""
        with self._lock:
            self._calls, self.hit, self._counting, self.armed = [], False, True, (at, fault)

    def disarm(self) -> list[Call]:
        """The calls since it was armed, that of the fault the last one if it killed."""
        with self._lock:
            self._counting, self.armed = False, None
            return self._calls

    def kill(self) -> None:
        """All of it; returns when it is gone. Zombies may stay: their files and locks do not."""
        until = time.monotonic() + 30
        while (alive := list(_session(self.process.pid))) and time.monotonic() < until:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.005)
        self.process.wait(30)

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            ((_, events),) = poll.poll()
            if not events & select.POLLIN:
                return  # the last one that was watched is gone
            data = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, data)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # killed meanwhile
                    continue
                return
            identity, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(data)
            failure = self._judged(pid, *CALLS[number], arguments)
            if failure is None:
                continue
            answer = struct.pack("=QqiI", identity, 0, -failure, 0) if failure else identity.to_bytes(8, sys.byteorder) + _GO_ON[8:]
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._listener, _SEND, answer)

    def _judged(self, pid: int, name: str, where: tuple[str, ...], arguments: list[int]) -> int | None:
        """An errno, 0 where the call goes on, None where whoever made it is no more."""
        with self._lock:
            if self._ended:
                return None
            if not self._counting:
                return 0
            path = next((path for path in _paths(pid, where, arguments) if path == self._under or path.startswith(self._under + "/")), None)
            if path is None and name != "sync":
                return 0
            self._calls.append(Call(name, path or ""))
            at, fault = self.armed or (0, Kill())
            if not (at(self._calls[-1]) if callable(at) else 0 < at <= len(self._calls)):
                return 0
            if isinstance(fault, Fail):
                first, self.hit = not self.hit, True
                return fault.number if first or (fault.lasting and name in GROWING) else 0
            self.hit = self._ended = True
        fault.cut()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # that process first: its other threads are the nearest
        threading.Thread(target=self.kill, daemon=True).start()
        return None


def _paths(pid: int, where: tuple[str, ...], arguments: list[int]) -> list[str]:
    found = []
    for place in where:
        try:
            if place[0] == "p":
                found.append(os.path.normpath(os.path.join(os.readlink(f"/proc/{pid}/cwd"), _string(pid, arguments[int(place[1])]))))
            elif place[0] == "d":
                folder = arguments[int(place[1])] & 0xFFFFFFFF
                base = os.readlink(f"/proc/{pid}/cwd" if folder == _AT_FDCWD else f"/proc/{pid}/fd/{folder}")
                found.append(os.path.normpath(os.path.join(base, _string(pid, arguments[int(place[3])]))))
            else:
                found.append(os.readlink(f"/proc/{pid}/fd/{arguments[int(place)] & 0xFFFFFFFF}"))
        except OSError:
            continue
    return found


def _string(pid: int, address: int) -> str:
    if not address:  # utimensat() on a descriptor
        return ""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return os.fsdecode(memory.read(4096).partition(b"\0")[0])


def _session(leader: int) -> list[int]:
    """Its processes that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _filter() -> bytes:
    """BPF: tell us of CALLS, let all else pass."""

    def one(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    load, equal, bits, answer = 0x20, 0x15, 0x45, 0x06
    tell, allow = 0x7FC00000, 0x7FFF0000
    program = [one(load, 4), one(equal, 0xC000003E, 1), one(answer, allow), one(load, 0)]
    for number in CALLS:
        if number in _OPENING:
            program += [one(equal, number, 0, 4), one(load, 16 + 8 * _OPENING[number]), one(bits, _CREATING, 0, 1), one(answer, tell), one(answer, allow)]
        else:
            program += [one(equal, number, 0, 1), one(answer, tell)]
    return b"".join([*program, one(answer, allow)])
