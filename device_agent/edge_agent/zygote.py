"""One process that has imported numpy and onnxruntime; workers are forked from it, ready at once and sharing its memory.

    zygote = Zygote(home, begun(home))                 # forked from a process that has no thread yet: it imports while we do
    worker = zygote.fork("ocr", folder, their_end, pulse)     # a Forked; without a pulse it is the trial of that model
    worker.wait(timeout_s=2)                           # its exit code, as subprocess has it
    zygote.close()

It has one thread and no onnxruntime session: neither survives a fork. It is the workers' parent, so it tells how they end, and they end
with it. The first is forked from the supervisor before that does anything else: the start waits for one Python only, and what both have
imported lies in memory once. One that dies is replaced at the next fork by a process of its own. The supervisor's side needs the
standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_agent.home import ENVIRONMENT, installed_onnxruntime, module, resolve, use_runtime

COMM, TRIAL_COMM = "edge-zygote", "edge-trial"  # what `ps` shows

_MESSAGE_BYTES = 1 << 16
_PR_SET_PDEATHSIG, _MADV_DONTNEED = 1, 4
_QUIET_S = 1.0  # after a fork: then no other is on its way
_WORSE_THAN_US = 500  # of 1000: where memory runs out the kernel ends a worker, not the supervisor


class Forked:
    """A worker's process, as its supervisor knows it."""

    def __init__(self, zygote: Zygote, number: int) -> None:
        self._zygote, self._number = zygote, number
        self._ended = threading.Event()
        self._code: int | None = None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit code, negative for a signal. None where it died with the zygote. Raises subprocess.TimeoutExpired."""
        if not self._ended.wait(timeout_s):
            raise subprocess.TimeoutExpired("worker", timeout_s or 0)
        return self._code

    def kill(self) -> None:
        """At once. The zygote does it: it alone knows that the number still means this process."""
        self._zygote.kill(self._number)

    def ended(self, code: int | None) -> None:
        self._code = code
        self._ended.set()


class Process(Protocol):
    """The zygote itself, as subprocess has it."""

    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Begun:
    """A zygote that this process forked, and our end of its socket."""

    socket: socket.socket
    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            with contextlib.suppress(ChildProcessError):
                found, status = os.waitpid(self.pid, 0 if until is None else os.WNOHANG)
                if not found and until is not None and time.monotonic() < until:
                    time.sleep(0.01)
                    continue
                if not found:
                    raise subprocess.TimeoutExpired("zygote", timeout or 0)
                return os.waitstatus_to_exitcode(status)
            return 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # nobody but `wait` reaps it, so the number still means it


def begun(home: Path) -> Begun | None:
    """Fork it from here, where a worker will be wanted. This process must have one thread, and have imported nothing that minds a fork."""
    if not any((home / "active").glob("*")):
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.freeze()  # else the first collection of either writes to what both share
    try:
        pid = os.fork()
    except OSError:  # it is tried again when a worker is wanted
        ours.close()
        theirs.close()
        return None
    if not pid:
        code = 70
        try:
            os.environ.update({**ENVIRONMENT, **os.environ, "EDGE_AGENT_HOME": str(home)})
            code = serve(home, _alone(theirs.detach()))
        except BaseException:  # noqa: BLE001 - nothing may go back into the supervisor's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    theirs.close()
    return Begun(ours, pid)


def _alone(kept: int) -> int:
    """Without what else the supervisor has open: a systemd socket, its input, its output."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return kept


class Zygote:
    """The supervisor's end. Any thread may fork. What was ``begun`` says from now on what it has to say where we do."""

    def __init__(self, home: Path, begun: Begun | None = None) -> None:
        self._home = home
        self._lock = threading.Lock()  # guards what follows
        self._socket: socket.socket | None = None
        self._forked: dict[int, Forked] = {}
        self._number = 0
        self._closed = False
        if begun is not None:
            with contextlib.suppress(OSError):  # it has died already: the listener hears of it
                socket.send_fds(begun.socket, [b'{"say": true}'], [2])
            self._listened_to(begun.socket, begun)

    def start(self) -> None:
        """Where a worker will be wanted soon: the imports take a while. Raises OSError."""
        with self._lock:
            self._running()

    def fork(self, name: str, folder: Path, sock: socket.socket, pulse: int | None = None) -> Forked:
        """A worker that serves ``sock`` and shows in the memory ``pulse`` what it is at, or a trial; our copies stay ours to close. Raises OSError."""
        passed = [sock.fileno(), *([] if pulse is None else [pulse])]
        with self._lock:
            for attempt in range(2):
                zygote = self._running()
                self._number += 1
                made = self._forked[self._number] = Forked(self, self._number)
                try:
                    socket.send_fds(zygote, [json.dumps({"fork": self._number, "name": name, "folder": str(folder)}).encode()], passed)
                    return made
                except OSError:  # it died a moment ago
                    self._lost(zygote)
                    if attempt:
                        raise
        raise AssertionError

    def kill(self, number: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            if number in self._forked and self._socket is not None:
                self._socket.send(json.dumps({"kill": number}).encode())

    def close(self) -> None:
        """The workers end with it."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _running(self) -> socket.socket:
        """The lock is held."""
        if self._closed:
            raise OSError(0, "the agent is stopping")
        if self._socket is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    process = subprocess.Popen(
                        **module("edge_agent.zygote", str(theirs.fileno()), home=self._home), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=2
                    )
                except BaseException:
                    ours.close()
                    raise
            self._listened_to(ours, process)
        assert self._socket is not None
        return self._socket

    def _listened_to(self, sock: socket.socket, process: Process) -> None:
        self._socket = sock
        threading.Thread(target=self._listen, args=(sock, process), name="zygote", daemon=True).start()

    def _listen(self, sock: socket.socket, process: Process) -> None:
        """Hear of ended workers until the zygote itself ends."""
        with contextlib.suppress(OSError):
            while True:
                message = sock.recv(_MESSAGE_BYTES)
                if not message:
                    break
                told = json.loads(message)
                with self._lock:
                    ended = self._forked.pop(told["ended"], None)
                if ended is not None:
                    ended.ended(told["code"])
        with self._lock:
            self._lost(sock)
        sock.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _lost(self, sock: socket.socket) -> None:
        """Its workers have died with it. The lock is held."""
        if self._socket is sock:
            self._socket = None
            for ended in self._forked.values():
                ended.ended(None)
            self._forked.clear()


def serve(home: Path, descriptor: int) -> int:
    """The zygote itself: fork on request until the supervisor is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the whole group; the supervisor decides
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _write("/proc/self/comm", COMM)
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    _preload(home)
    workers: dict[int, int] = {}  # process -> number
    quiet_s: float | None = _QUIET_S
    with socket.socket(fileno=descriptor) as sock:
        while True:
            readable, _, _ = select.select([descriptor, woken], [], [], quiet_s)
            if not readable:
                _let_go()
                quiet_s = None
                continue
            if woken in readable:
                os.read(woken, _MESSAGE_BYTES)
                _reap(sock, workers)
            if descriptor not in readable:
                continue
            try:
                message, descriptors, _, _ = socket.recv_fds(sock, _MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                message = b""
            if not message:
                break
            asked = json.loads(message)
            if "say" in asked:
                for output in (1, 2):
                    os.dup2(descriptors[0], output)
                os.close(descriptors[0])
                continue
            if "kill" in asked:
                for process, number in workers.items():
                    if number == asked["kill"]:
                        os.kill(process, signal.SIGKILL)
                continue
            process = _fork(home, asked["name"], Path(asked["folder"]), descriptors, ours=(descriptor, woken, wakes))
            for passed in descriptors:
                os.close(passed)
            workers[process], quiet_s = asked["fork"], _QUIET_S
    for process in workers:
        os.kill(process, signal.SIGKILL)
    return 0


def _preload(home: Path) -> None:
    """What every worker needs. An onnxruntime that does not load here is each worker's error, not ours; one that is sent later brings its own numpy."""
    use_runtime(home)
    if installed_onnxruntime() is None:
        return
    with contextlib.suppress(ImportError):
        from edge_agent import serving, trial  # noqa: F401 - trials are forked from here, too

        serving.rehearse()
    gc.collect()
    gc.freeze()  # no collection writes to what is shared


def _let_go() -> None:
    """Of the libraries' pages, those that importing needed and forking does not: 8 MB of onnxruntime's. They come back when they are touched.

    Only what is mapped from a file, cannot be written to, and never was (relocations are): nothing is lost. A fork does not inherit such
    pages, so a worker misses none. What the allocator holds and does not need goes back, too.
    """
    import ctypes  # numpy has imported it already

    libc = ctypes.CDLL(None)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a kernel without smaps, a libc without malloc_trim
        for begin, end in untouched(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)
        libc.malloc_trim(0)


def untouched(smaps: str) -> list[tuple[int, int]]:
    r"""Begin and end of what is mapped from a file, privately, not to be written to, and is as it is in the file.

    >>> untouched("7f00-7f80 r-xp 00000000 08:01 12 /lib/x.so\nAnonymous: 0 kB\n7f80-8000 r--p 00000080 08:01 12 /lib/x.so\nAnonymous: 4 kB\n")
    [(32512, 32640)]
    """
    found, mapped = [], None
    for line in smaps.splitlines():
        fields = line.split()
        if len(fields) > 5 and len(fields[1]) == 4 and fields[1][1::2] == "-p" and fields[5].startswith("/"):
            mapped = fields[0]
        elif line.startswith("Anonymous:"):
            if mapped and fields[1] == "0":
                begin, _, end = mapped.partition("-")
                found.append((int(begin, 16), int(end, 16)))
            mapped = None
    return found


def _reap(sock: socket.socket, workers: dict[int, int]) -> None:
    """Tell of those that ended. One that this process did not start is none of ours."""
    for process in list(workers):
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                sock.send(json.dumps({"ended": workers.pop(process), "code": code}).encode())


def _fork(home: Path, name: str, folder: Path, descriptors: list[int], *, ours: tuple[int, ...]) -> int:
    if "onnxruntime" not in sys.modules:  # it may have been sent meanwhile
        _preload(home)
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        for open_here in ours:
            os.close(open_here)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _end_with(parent)
        on_trial = len(descriptors) == 1
        _write("/proc/self/comm", TRIAL_COMM if on_trial else name)
        _write("/proc/self/oom_score_adj", str(_WORSE_THAN_US))
        if on_trial:
            from edge_agent import trial

            code = trial.serve(folder, home, *descriptors)
        else:
            from edge_agent import serving

            code = serving.serve(name, folder, *descriptors)
    except BaseException:  # noqa: BLE001 - nothing may go back into the zygote's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end_with(parent: int) -> None:
    """Nobody outlives the zygote, not even a model that runs for ever."""
    import ctypes  # numpy has imported it already

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _write(path: str, text: str) -> None:
    """Of a kernel that has no such file, or forbids it."""
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as stream:
        stream.write(text)


if __name__ == "__main__":
    sys.exit(serve(resolve(), int(sys.argv[1])))
