"""The supervisor's side of its children: a worker kept alive, a trial or a race driven step by step.

    worker = Worker("ocr", folder, zygote, check=..., died=...)
    worker.start()
    worker.wait_ready(timeout_s=600)
    head, body = worker.ask({"header_bytes": 120}, request_body)
    worker.stop()

Standard library only: what needs numpy happens in the children.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent import frames
from edge_agent.blobs import Damaged, StoreError
from edge_agent.home import child
from edge_agent.zygote import Forked, Zygote

_QUEUE_S = 30  # a request that has waited so long for its turn is refused
_ANSWER_S = 120  # a worker that takes longer hangs, and is killed
_LOAD_S = 1800  # an engine may have to be built again
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 60
_STABLE_S = 60  # after so long the next death counts as the first
_BUFFER_BYTES = 1 << 20


class WorkerUnavailable(Exception):
    """No answer from the worker: it is starting, it died, or too many wait for it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ChildFailed(Exception):
    """A child could not do what it was started for. The message is for a person."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ChildDied(ChildFailed):
    """It was killed by a signal, ended by itself, or took too long."""


class Worker:
    """One model's process. When it dies it is started again, after a pause that doubles.

    ``check`` runs before each start and raises StoreError if the model's files are damaged: then there is no start at all.
    ``died`` hears each unwanted end, as a sentence; ``damaged`` what check raised.
    """

    def __init__(
        self, name: str, folder: Path, zygote: Zygote, *, check: Callable[[], None], died: Callable[[str], None], damaged: Callable[[StoreError], None]
    ) -> None:
        self._name, self._folder, self._zygote = name, folder, zygote
        self._check, self._died, self._damaged = check, died, damaged
        self._turn = threading.Lock()  # one request at a time
        self._change = threading.Condition()  # guards what follows
        self._socket: socket.socket | None = None
        self._process: Forked | None = None
        self._error: ChildFailed | None = None
        self._ready: dict[str, Any] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name=f"worker {name}", daemon=True)

    @property
    def ready(self) -> dict[str, Any] | None:
        """What the running process said of itself; None while there is none."""
        return self._ready

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    @property
    def error(self) -> str | None:
        """Why it does not run, if it does not."""
        return None if self._ready or self._error is None else str(self._error)

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def wait_ready(self, timeout_s: float = _LOAD_S) -> dict[str, Any]:
        """What the process says of itself once it answers. Raises ChildFailed at the first failure."""
        with self._change:
            if not self._change.wait_for(lambda: self._ready or self._error or self.stopped, timeout_s):
                raise ChildFailed(f"{self._name} was not loaded within {timeout_s:g} s", "see `edge-agent logs`")
            if self._ready is None:
                raise self._error or ChildFailed(f"{self._name} was stopped")
            return self._ready

    def ask(self, head: dict[str, Any], body: frames.Bytes) -> tuple[dict[str, Any], bytearray, int]:
        """One request and its answer, and the nanoseconds that it waited for its turn. Raises WorkerUnavailable."""
        begin = time.perf_counter_ns()
        if not self._turn.acquire(timeout=_QUEUE_S):
            raise WorkerUnavailable(f"{self._name} is busy: this request waited {_QUEUE_S} s for its turn", "ask less often, or with fewer clients at once")
        try:
            waited = time.perf_counter_ns() - begin
            sock = self._socket
            if sock is None:
                why = f": {self._error}" if self._error else ""
                raise WorkerUnavailable(f"{self._name} is not running at the moment{why}", "it is started again; try again soon")
            try:
                frames.send(sock, head, body)
                return (*frames.receive(sock), waited)
            except socket.timeout as error:
                self._kill()
                raise WorkerUnavailable(
                    f"{self._name} did not answer within {_ANSWER_S} s; its process was ended", "it is started again; try again soon"
                ) from error
            except (OSError, EOFError, ValueError) as error:
                self._kill()
                raise WorkerUnavailable(f"the process of {self._name} died while it answered", "it is started again; try again soon") from error
        finally:
            self._turn.release()

    def stop(self, *, patience_s: float = 30) -> None:
        """Let the request in flight end, then end the process. Idempotent."""
        taken = self._turn.acquire(timeout=patience_s)
        try:
            with self._change:
                self._stopping.set()
                self._drop_socket()
                self._change.notify_all()
                process = self._process
            if process is not None:
                end(process)
        finally:
            if taken:
                self._turn.release()
        if self._thread.is_alive():
            self._thread.join(10)

    def _keep_alive(self) -> None:
        deaths = 0
        while not self.stopped:
            begin = time.monotonic()
            try:
                self._check()
            except StoreError as error:
                self._say(ChildFailed(str(error), error.hint))
                if isinstance(error, Damaged):
                    self._damaged(error)
                    return
                deaths += 1
                self._pause(deaths)
                continue
            cause = self._live()
            if self.stopped:
                return
            deaths = 0 if time.monotonic() - begin > _STABLE_S else deaths + 1
            self._died(cause)
            self._pause(deaths)

    def _pause(self, deaths: int) -> None:
        """Longer after each death; ended early by `stop`."""
        self._stopping.wait(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(deaths, 20)))

    def _live(self) -> str:
        """Start the process and wait for its end; why it ended."""
        try:
            process, sock = self._forked()
        except OSError as error:
            self._say(ChildFailed(f"the process of {self._name} cannot be started: {error.strerror}", "is there memory left?"))
            return str(self._error)
        with self._change:
            self._process = process
            if self.stopped:
                process.kill()
        try:
            sock.settimeout(_LOAD_S)
            head, _ = frames.receive(sock)
        except (OSError, EOFError, ValueError):
            head = {}
        if "ready" in head:
            sock.settimeout(_ANSWER_S)
            with self._change:
                if self.stopped:
                    sock.close()
                else:
                    self._socket, self._ready, self._error = sock, head["ready"], None
                self._change.notify_all()
            cause = f"the process of {self._name} {ended(process.wait())}"
        else:
            sock.close()
            end(process)
            said = head.get("error")
            cause = said["message"] if said else f"the process of {self._name} {ended(process.wait())} while it loaded the model"
        with self._change:
            self._drop_socket()
        if not self.stopped:
            self._say(ChildFailed(cause, (head.get("error") or {}).get("hint", "see `edge-agent logs`")))
        return cause

    def _forked(self) -> tuple[Forked, socket.socket]:
        ours, theirs = _pair()
        with theirs:
            try:
                return self._zygote.fork(self._name, self._folder, theirs), ours
            except BaseException:
                ours.close()
                raise

    def _say(self, error: ChildFailed) -> None:
        with self._change:
            self._ready, self._error = None, error
            self._change.notify_all()

    def _drop_socket(self) -> None:
        sock, self._socket, self._ready = self._socket, None, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes a request that waits for the answer of a dead process
            sock.close()

    def _kill(self) -> None:
        """Question and answer no longer pair up: only a new process helps."""
        with self._change:
            self._drop_socket()
            if self._process is not None:
                self._process.kill()


class Child:
    """A child that is driven step by step: a trial, a race. Use as a context manager: it ends with it.

    ``what`` it is in a sentence: "the trial of ocr".
    """

    def __init__(self, verb: str, folder: Path, home: Path, *, what: str) -> None:
        self._what = what
        self._process, self._socket = spawn(verb, str(folder), home=home)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        self._socket.close()
        end(self._process)

    def cancel(self) -> None:
        """From another thread: the question under way fails."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.kill()

    def ask(self, question: dict[str, Any], *, timeout_s: float, stage: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Put one question; ``stage`` hears what the child says on the way. Raises ChildFailed where it refuses, ChildDied where it gives no answer."""
        self._socket.settimeout(timeout_s)
        try:
            frames.send(self._socket, question)
            head, _ = frames.receive(self._socket)
            while "stage" in head:
                stage(head["stage"])
                head, _ = frames.receive(self._socket)
        except socket.timeout as error:
            raise ChildDied(f"{self._what} did not end within {timeout_s:g} s", "see `edge-agent logs`") from error
        except (OSError, EOFError, ValueError) as error:
            end(self._process)
            raise ChildDied(f"{self._what} {ended(self._process.returncode)}", "see `edge-agent logs`; does the model run on the host?") from error
        if "error" in head:
            raise ChildFailed(head["error"]["message"], head["error"]["hint"])
        result: dict[str, Any] = head["result"]
        return result


def spawn(verb: str, *arguments: str, home: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child of ours, and our end of its socket. Raises OSError."""
    ours, theirs = _pair()
    with theirs:
        try:
            process = subprocess.Popen(
                **child(verb, *arguments, str(theirs.fileno()), home=home), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=2
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return pair


def end(process: subprocess.Popen[bytes] | Forked, patience_s: float = 2) -> None:
    """It has lost its socket, so it ends by itself; if not, it is killed."""
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ended(code: int | None) -> str:
    """How a process ended, as the end of a sentence.

    >>> ended(-11)
    'was killed by SIGSEGV'
    """
    if code is None:
        return "died with the process that it was forked from"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
