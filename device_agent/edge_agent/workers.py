"""The supervisor's side of a worker: kept alive, asked, given programs' shared memory, counted.

    worker = Worker("ocr", folder, zygote, limits, check=..., died=..., damaged=..., counted=...)
    worker.start()
    worker.wait_ready(timeout_s=600)
    answer = worker.ask(header_bytes, body)
    worker.adopt(region, bell)                  # a program that asks by itself from now on
    worker.stop()

Standard library only: what needs numpy happens in the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import ring
from edge_agent.blobs import Damaged, StoreError
from edge_agent.child import ChildFailed, end, ended
from edge_agent.config import Limits
from edge_agent.errors import AgentError
from edge_agent.frames import Bytes
from edge_agent.latency import Histogram
from edge_agent.ring import Line, Region
from edge_agent.zygote import Forked, Zygote

_LOAD_S = 1800  # an engine may have to be built again
_LOOK_S = 5  # so often it is looked whether a worker hangs
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 60
_STABLE_S = 60  # after so long the next death counts as the first
_LINES = 8  # requests of HTTP that lie in shared memory at once; more wait for one of these
_FIRST_LINE_BYTES = 1 << 18
_CONTROL_BYTES = 1 << 18
_SOON = "it is started again; try again soon"


class WorkerUnavailable(AgentError):
    """No answer from the worker: it is starting, it died, or too many wait for it."""


class Replaced(WorkerUnavailable):
    """Another version answers from now on; this question was not read."""


@dataclass(frozen=True)
class Answered:
    """``status`` is HTTP's; of a failure, the body is its sentence."""

    status: int
    header_bytes: int | None
    body: bytes
    phases: dict[str, int]


class Worker:
    """One model's process. When it dies it is started again, after a pause that doubles.

    ``check`` runs before each start and raises StoreError if the model's files are damaged: then there is no start at all.
    ``died`` hears each unwanted end, as a sentence, and whether it is the model's fault; ``damaged`` what check raised; ``counted`` what it answered
    without us.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        zygote: Zygote,
        limits: Limits,
        *,
        check: Callable[[], None],
        died: Callable[[str, bool], None],
        damaged: Callable[[StoreError], None],
        counted: Callable[[dict[str, Any]], None],
    ) -> None:
        self._name, self._folder, self._zygote, self._limits = name, folder, zygote, limits
        self._check, self._died, self._damaged, self._counted = check, died, damaged, counted
        self._change = threading.Condition()  # guards what follows
        self._control: socket.socket | None = None
        self._process: Forked | None = None
        self._error: ChildFailed | None = None
        self._ready: dict[str, Any] | None = None
        self._idle: list[Line] = []
        self._busy = 0
        self._waiting = 0
        self._counts_wanted = self._counts_told = 0
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

    def described(self) -> dict[str, Any]:
        """What the process says of its model; one that is being loaded is waited for. Raises WorkerUnavailable."""
        with self._change:
            self._wait()
            assert self._ready is not None  # or it does not run
            return self._ready

    def ask(self, header_bytes: int | None, body: Bytes) -> Answered:
        """One body of HTTP. Raises WorkerUnavailable."""
        begin = time.perf_counter_ns()
        with self._turn() as lines:
            waited = time.perf_counter_ns() - begin
            needed, answered = len(body), None
            while answered is None:
                line = self._line(lines, needed)
                line.region.view[: len(body)] = body
                asked = ring.BODY.pack(len(body), -1 if header_bytes is None else header_bytes)
                status, phases, said = self._exchange(lines, line, asked)
                if status == ring.TOO_SMALL:
                    needed = json.loads(said)["bytes"]
                    continue
                told = {"queue": waited + phases[0], "input": phases[1], "run": phases[2], "output": phases[3]}
                if status == ring.ANSWERED:
                    size, head = ring.BODY.unpack(said)
                    answered = Answered(status, None if head < 0 else head, line.region.view[:size], told)
                else:
                    answered = Answered(status, None, json.loads(said)["error"].encode("utf-8", "backslashreplace"), told)
            return answered

    def adopt(self, region: int, bell: int) -> None:
        """A program's region and its end of the bell; both stay the caller's to close. Raises NotARegion or WorkerUnavailable."""
        size = ring.check(region, self._limits.shared_bytes)
        order = {"caller": "program", "bytes": size, "most_callers": self._limits.callers, "most_bytes": self._limits.all_shared_bytes}
        with self._change:
            self._wait()
            self._order(order, region, bell)

    def refresh(self, timeout_s: float = 0.5) -> None:
        """Let what it answered without us be counted now. One that is busy for longer is not waited for."""
        with self._change:
            if self._control is not None and self._ready is not None:
                with contextlib.suppress(WorkerUnavailable):
                    self._order({"counts": True})
                    self._counts_wanted += 1
                    wanted = self._counts_wanted
                    self._change.wait_for(lambda: self._counts_told >= wanted or self._control is None, timeout_s)

    def stop(self, *, patience_s: float = 30) -> None:
        """Let what it has read be answered and send its programs elsewhere, then end the process. Idempotent."""
        with self._change:
            self._stopping.set()
            self._change.notify_all()
            self._change.wait_for(lambda: not self._busy or self._control is None, patience_s)
            with contextlib.suppress(WorkerUnavailable):
                self._order({"leave": True})
            process = self._process
        if process is not None:
            end(process, patience_s)
        self._drop()
        if self._thread.is_alive():
            self._thread.join(10)

    # asking

    @contextlib.contextmanager
    def _turn(self) -> Iterator[list[Line]]:
        """Where an idle line lies, if there is one; what lies there at the end is kept for the next."""
        with self._change:
            self._wait(lambda: self._busy < _LINES)
            self._busy += 1
            control = self._control
            lines = [self._idle.pop()] if self._idle else []
        try:
            yield lines
        finally:
            with self._change:
                self._busy -= 1
                if self._control is control and control is not None:
                    self._idle += lines
                else:
                    _close(lines)
                self._change.notify_all()

    def _wait(self, its_turn: Callable[[], bool] = lambda: True) -> None:
        """Until it is loaded and that holds. The lock is held. Raises WorkerUnavailable where it does not run, at once, or in vain."""
        if self._waiting >= self._limits.waiting:
            raise WorkerUnavailable(f"{self._limits.waiting} requests wait for {self._name} already", "ask less often, or with fewer clients at once")
        self._waiting += 1
        try:
            if not self._change.wait_for(lambda: self.stopped or self._error or (self._ready is not None and its_turn()), self._limits.queue_s):
                if self._ready is None:
                    raise WorkerUnavailable(f"{self._name} is not running at the moment: it is being loaded", _SOON)
                raise WorkerUnavailable(
                    f"{self._name} is busy: this request waited {self._limits.queue_s:g} s for its turn", "ask less often, or with fewer clients at once"
                )
        finally:
            self._waiting -= 1
        self._check_runs()

    def _check_runs(self) -> None:
        if self.stopped:
            raise Replaced(f"{self._name} is being replaced", "try again")
        if self._ready is None:
            why = f": {self._error}" if self._error else ""
            raise WorkerUnavailable(f"{self._name} is not running at the moment{why}", _SOON)

    def _line(self, lines: list[Line], needed: int) -> Line:
        """The one there, or a new one that is large enough."""
        if lines and lines[0].region.size >= needed:
            return lines[0]
        _close(lines)
        size = _FIRST_LINE_BYTES
        while size < needed:
            size *= 2
        try:
            line, bell = Line.make(size, self._limits.answer_s * (_LINES + 1))  # behind all others; one alone that takes too long is seen by its pulse
        except OSError as error:
            raise WorkerUnavailable(f"{self._name} cannot be given {size} bytes: {error.strerror}", "try again soon") from error
        with bell:
            lines.append(line)
            with self._change:
                self._check_runs()
                self._order({"caller": "supervisor", "bytes": line.region.size}, line.region.descriptor, bell.fileno())
        return line

    def _exchange(self, lines: list[Line], line: Line, asked: bytes) -> tuple[int, tuple[int, ...], bytes]:
        try:
            return line.ask(asked)
        except ring.Unread as error:
            _close(lines)
            raise (Replaced if self.stopped else WorkerUnavailable)(f"the process of {self._name} has ended", _SOON) from error
        except socket.timeout as error:
            _close(lines)
            self._kill()
            raise WorkerUnavailable(f"{self._name} does not answer any more; its process was ended", _SOON) from error
        except (ring.Died, OSError) as error:
            _close(lines)
            raise WorkerUnavailable(f"the process of {self._name} died while it answered", _SOON) from error
        except BaseException:
            _close(lines)
            raise

    def _order(self, order: dict[str, Any], *descriptors: int) -> None:
        """The lock is held."""
        if self._control is None:
            raise WorkerUnavailable(f"{self._name} is not running at the moment", _SOON)
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], descriptors, socket.MSG_DONTWAIT)
        except OSError as error:
            raise WorkerUnavailable(f"{self._name} is busy, or has just ended", "try again soon") from error

    # keeping it alive

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
            cause, charged = self._live()
            if self.stopped:
                return
            deaths = 0 if time.monotonic() - begin > _STABLE_S else deaths + 1
            self._died(cause, charged)
            self._pause(deaths)

    def _pause(self, deaths: int) -> None:
        """Longer after each death; ended early by `stop`."""
        self._stopping.wait(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(deaths, 20)))

    def _live(self) -> tuple[str, bool]:
        """Start the process and wait for its end; why it ended, and whether the model is to blame."""
        try:
            with contextlib.closing(Region.make(ring.PULSE.size)) as pulse:
                return self._lived(*self._forked(pulse), pulse)
        except OSError as error:
            self._say(ChildFailed(f"the process of {self._name} cannot be started: {error.strerror}", "is there memory left?"))
            return str(self._error), False

    def _lived(self, process: Forked, control: socket.socket, pulse: Region) -> tuple[str, bool]:
        with self._change:
            self._process = process
            if self.stopped:
                process.kill()
        said = self._listened(control, process, pulse)
        self._count_lost(pulse)
        with self._change:
            was_ready = self._ready is not None
            self._drop()
        end(process)
        if "error" in said:
            cause, hint = str(said["error"]["message"]), str(said["error"]["hint"])
        else:
            cause = f"the process of {self._name} {ended(process.wait())}" + ("" if was_ready else " while it loaded the model")
            hint = "see `edge-agent logs`"
        if not self.stopped:
            self._say(ChildFailed(cause, hint))
        return cause, "error" in said or process.wait() is not None  # else the zygote died, and took it along

    def _listened(self, control: socket.socket, process: Forked, pulse: Region) -> dict[str, Any]:
        """Hear what it says until it ends; the last thing, where that is an error."""
        control.settimeout(_LOAD_S)
        while True:
            try:
                message = control.recv(_CONTROL_BYTES)
            except socket.timeout:
                since, _ = ring.PULSE.unpack_from(pulse.view)
                if self._ready is None or (since and time.perf_counter_ns() - since > self._limits.answer_s * 1e9):
                    process.kill()
                    return {}
                continue
            except OSError:
                return {}
            said: dict[str, Any] = json.loads(message) if message else {}
            if "ready" in said:
                control.settimeout(min(_LOOK_S, self._limits.answer_s))
                with self._change:
                    self._control, self._ready, self._error = control, said["ready"], None
                    self._change.notify_all()
            elif "counts" in said:
                self._counted(said["counts"])
            elif "counted" in said:
                with self._change:
                    self._counts_told += 1
                    self._change.notify_all()
            else:
                control.close()
                return said

    def _count_lost(self, pulse: Region) -> None:
        """The questions of programs that died with it: nobody else can tell."""
        since, programs = ring.PULSE.unpack_from(pulse.view)
        if since and programs:
            lost = Histogram()
            for _ in range(min(programs, self._limits.callers)):
                lost.record(time.perf_counter_ns() - since)
            self._counted({"failed": lost.to_dict()})

    def _forked(self, pulse: Region) -> tuple[Forked, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                return self._zygote.fork(self._name, self._folder, theirs, pulse.descriptor), ours
            except BaseException:
                ours.close()
                raise

    def _say(self, error: ChildFailed) -> None:
        with self._change:
            self._ready, self._error = None, error
            self._change.notify_all()

    def _drop(self) -> None:
        with self._change:
            control, self._control, self._ready = self._control, None, None
            _close(self._idle)
            self._counts_told = self._counts_wanted
            self._change.notify_all()
        if control is not None:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
            control.close()

    def _kill(self) -> None:
        """Only a new process helps."""
        with self._change:
            process = self._process
        if process is not None:
            process.kill()


def _close(lines: list[Line]) -> None:
    for line in lines:
        line.close()
    lines.clear()


def descriptors_of(sock: socket.socket) -> tuple[int, int]:
    """A program's region and bell, as it sent them. Raises NotARegion; what came otherwise is closed."""
    try:
        _, came, flags, _ = socket.recv_fds(sock, ring.MAX_MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise ring.NotARegion("no descriptors came") from error
    try:
        if len(came) != 2 or flags & socket.MSG_CTRUNC:
            raise ring.NotARegion("a memfd and a socket are wanted, in this order")
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(came[1])) as bell:
            if (bell.family, bell.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET):
                return came[0], came[1]
        raise ring.NotARegion("the second descriptor is no Unix socket of whole messages (SOCK_SEQPACKET)")
    except ring.NotARegion:
        for descriptor in came:
            os.close(descriptor)
        raise
