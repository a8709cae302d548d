"""One process that has imported numpy and onnxruntime; workers are forked from it, ready at once and sharing its memory.

    zygote = Zygote(home)
    worker = zygote.fork("ocr", folder, their_end, pulse)     # a Forked
    worker.wait(timeout_s=2)                           # its exit code, as subprocess has it
    zygote.close()

It has one thread and no onnxruntime session: neither survives a fork. It is the workers' parent, so it tells how they end, and they end
with it. One that dies is replaced at the next fork. The supervisor's side needs the standard library only.
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
import traceback
from pathlib import Path

from edge_agent.home import module, resolve, use_runtime

_MESSAGE_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
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


class Zygote:
    """The supervisor's end. Any thread may fork."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()  # guards what follows
        self._socket: socket.socket | None = None
        self._forked: dict[int, Forked] = {}
        self._number = 0
        self._closed = False

    def start(self) -> None:
        """Where a worker will be wanted soon: the imports take a while. Raises OSError."""
        with self._lock:
            self._running()

    def fork(self, name: str, folder: Path, sock: socket.socket, pulse: int) -> Forked:
        """A worker that serves ``sock`` and shows in the memory ``pulse`` what it is at; our copies stay ours to close. Raises OSError."""
        with self._lock:
            for attempt in range(2):
                zygote = self._running()
                self._number += 1
                made = self._forked[self._number] = Forked(self, self._number)
                try:
                    socket.send_fds(zygote, [json.dumps({"fork": self._number, "name": name, "folder": str(folder)}).encode()], [sock.fileno(), pulse])
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
            self._socket = ours
            threading.Thread(target=self._listen, args=(ours, process), name="zygote", daemon=True).start()
        return self._socket

    def _listen(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
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
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    _preload(home)
    workers: dict[int, int] = {}  # process -> number
    with socket.socket(fileno=descriptor) as sock:
        while True:
            readable, _, _ = select.select([descriptor, woken], [], [])
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
            if "kill" in asked:
                for process, number in workers.items():
                    if number == asked["kill"]:
                        os.kill(process, signal.SIGKILL)
                continue
            process = _fork(home, asked["name"], Path(asked["folder"]), descriptors, ours=(descriptor, woken, wakes))
            for passed in descriptors:
                os.close(passed)
            workers[process] = asked["fork"]
    for process in workers:
        os.kill(process, signal.SIGKILL)
    return 0


def _preload(home: Path) -> None:
    """What every worker needs. An onnxruntime that does not load here is each worker's error, not ours."""
    use_runtime(home)
    with contextlib.suppress(ImportError):
        from edge_agent import serving

        serving.rehearse()
    gc.collect()
    gc.freeze()  # no collection writes to what is shared


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
        _write("/proc/self/comm", name)
        _write("/proc/self/oom_score_adj", str(_WORSE_THAN_US))
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
