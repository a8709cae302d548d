"""The worker: opens a model and answers questions that lie in shared memory, the supervisor's for its HTTP clients and programs' own.

    serve("ocr", folder, control, pulse)            # descriptors, in a process of its own

One thread. Each caller has a region and a bell; whoever rang is answered in turn, one question a round, so a busy caller does not delay
the others, and one that does not take its answer is dropped. What a stranger's region says is checked before an array is made on
it, and read once: the bytes may change at any time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import mmap
import os
import select
import signal
import socket
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import batching, golden, protocol, ring
from edge_agent.batching import Batching
from edge_agent.bundle import BundleError, parse_description
from edge_agent.latency import Histogram, histogram_of
from edge_agent.protocol import ProtocolError, Request
from edge_agent.worker import Array, BadFeeds, Session, SessionError, conform, open_deployment, read_profile

_CONTROL_BYTES = 1 << 18
_SMALL_BYTES = 4096  # copying so much costs less than a microsecond
# What kernels take for indices, sizes and counts. They check such a value and then use it, so it must not change in between.
_INDICES = ("int32", "int64", "uint32", "uint64")
_MOST_LOOKED_AT = 1 << 14
_FOLD_AT = 4096 * 5
_MESSAGE_CHARACTERS = 1000
_WARM_UP_S = 1.0
_WARM_UP_RUNS = 5
_STEADY = 0.97
_ONE_BY_ONE = "warning: questions are run one by one: the model's first axis is not free everywhere, or its rows depend on one another\n"
_SILENT = 4  # onnxruntime's severity
# y = Identity(x), float32 [1]: IR version 7, opset 13.
_IDENTITY = (
    b'\x08\x07:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
PHASES = ("queue", "input", "run", "output")


class TooSmall(Exception):
    """The answer does not fit into the caller's region."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__()
        self.needed_bytes = needed_bytes


@dataclass(eq=False)
class Caller:
    """One line's other end. ``trusted``: the supervisor's, whose questions are HTTP bodies and are counted over there."""

    bell: socket.socket
    view: mmap.mmap
    size: int
    trusted: bool
    last_ns: int  # when it had its last answer: its next question cannot be older
    asked: bytes = b""
    plan: Plan | None = None


@dataclass
class Plan:
    """What one sequence of bytes asks for: a caller usually asks the same again, with other tensors."""

    views: dict[str, Array]
    copied: list[tuple[str, Array]]
    parsed: list[tuple[str, str, tuple[int, ...], memoryview]]  # strings
    outputs: tuple[str, ...]
    room: int  # where the answer may begin
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of the last answer, placed at `targets`, told as `said`
    targets: list[Array] = field(default_factory=list)
    said: bytes = b""

    def feeds(self) -> dict[str, Array]:
        """Raises ProtocolError."""
        feeds = dict(self.views)
        for name, view in self.copied:
            feeds[name] = view.copy()
        for name, datatype, shape, raw in self.parsed:
            feeds[name] = protocol.from_binary(name, datatype, shape, memoryview(bytearray(raw)))
        return feeds


@dataclass
class Question:
    caller: Caller
    feeds: dict[str, Array]
    outputs: tuple[str, ...]
    arrived_ns: int
    queue_ns: int
    read_ns: int
    request: Request | None = None  # of an HTTP body


def serve(name: str, folder: Path, descriptor: int, pulse: int) -> int:
    """Open the model, say so, answer until the supervisor says that it is enough, or closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the whole group; the supervisor decides
    with socket.socket(fileno=descriptor) as control:
        try:
            session, release, together = _opened(folder)
        except (SessionError, BundleError) as error:
            control.send(json.dumps({"error": {"message": str(error)[:_MESSAGE_CHARACTERS], "hint": error.hint}}).encode())
            return 1
        try:
            control.send(json.dumps({"ready": {**_facts(session), "metadata": protocol.metadata(name, release, session.inputs, session.outputs)}}).encode())
            Serving(control, session, name, release, mmap.mmap(pulse, ring.PULSE.size), together).run()
        except (EOFError, OSError):
            return 0
    return 0


def _opened(folder: Path) -> tuple[Session, str, Batching]:
    """The session, warmed up, its release, and what of its questions is asked as one."""
    description = parse_description((folder / "bundle.json").read_bytes())
    session = open_deployment(folder)
    samples = golden.load(folder / "golden.npz", description)
    _warm_up(session, samples[0].feeds)
    profile = read_profile(folder, as_profile=False)
    together = batching.chosen(profile, session, samples, description)
    if together.most < profile.get("runtime", {}).get("max_batch", 1):
        os.write(2, _ONE_BY_ONE.encode())
    gc.collect()
    gc.freeze()  # what is loaded stays: later collections do not walk it
    return session, str(description.release), together


def _warm_up(session: Session, feeds: dict[str, Array]) -> None:
    """Until it gets no faster: the first runs allocate, and clocks rise. At least once; after a second it is enough."""
    until, best = time.monotonic() + _WARM_UP_S, math.inf
    while True:
        fastest = math.inf
        for _ in range(_WARM_UP_RUNS):
            begin = time.perf_counter()
            session.run(feeds)
            fastest = min(fastest, time.perf_counter() - begin)
            if time.monotonic() > until:
                return
        if fastest > best * _STEADY:
            return
        best = fastest


def _facts(session: Session) -> dict[str, Any]:
    import onnxruntime

    return {
        "provider": session.providers[0],
        "nodes": session.nodes,
        "threads": session.threads,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "pid": os.getpid(),
    }


def rehearse() -> None:
    """Open a model that does nothing, without a thread: what onnxruntime sets up for its first session is there for all who are forked later.

    Raises ImportError where it does not load. A version that does not take the model goes without.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    with contextlib.suppress(Exception):
        onnxruntime.InferenceSession(_IDENTITY, options, providers=["CPUExecutionProvider"]).run(None, {"x": np.zeros(1, np.float32)})


class Serving:
    """Answers until the supervisor says so, or is gone."""

    def __init__(self, control: socket.socket, session: Session, name: str, release: str, pulse: mmap.mmap, together: Batching) -> None:
        self._control, self._session, self._name, self._release, self._pulse = control, session, name, release, pulse
        self._together = together
        self._offered = {output.name for output in session.outputs}
        self._callers: dict[int, Caller] = {}
        self._epoll = select.epoll()
        self._times = array("q")  # five a request: the phases, then all
        self._counted = {phase: Histogram() for phase in (*PHASES, "total")}
        self._failed = Histogram()
        self._joined = self._not_finite = 0
        self._leaving = False
        self._since = self._programs = 0

    def run(self) -> None:
        """Returns when every caller was told to go elsewhere. Raises EOFError or OSError when the supervisor is gone."""
        control = self._control.fileno()
        self._epoll.register(control, select.EPOLLIN)
        while not self._leaving:
            callers = []
            for ready, _ in self._epoll.poll():
                if ready == control:
                    self._obey()
                elif ready in self._callers:
                    callers.append(self._callers[ready])
            if self._together.most > 1:
                self._hear_together(callers)
            else:
                for caller in callers:
                    self._hear(caller)
        for caller in list(self._callers.values()):
            self._reply(caller, ring.MOVED, b"")
        self._tell_counts()

    # the supervisor

    def _obey(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._control, _CONTROL_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        if not message:
            raise EOFError("the supervisor is gone")
        order = json.loads(message)
        if "caller" in order:
            self._adopt(descriptors, order)
        elif "counts" in order:
            self._tell_counts()
        elif "leave" in order:
            self._leaving = True

    def _adopt(self, descriptors: Sequence[int], order: dict[str, Any]) -> None:
        region, bell = descriptors
        try:
            view = mmap.mmap(region, order["bytes"])
        except (OSError, ValueError):
            os.close(bell)
            return
        finally:
            os.close(region)
        caller = Caller(socket.socket(fileno=bell), view, order["bytes"], order["caller"] == "supervisor", time.perf_counter_ns())
        if not caller.trusted:
            strangers = [known.size for known in self._callers.values() if not known.trusted]
            if len(strangers) >= order["most_callers"] or sum(strangers) + caller.size > order["most_bytes"]:
                told = f"{len(strangers)} programs share {sum(strangers)} bytes with {self._name}, more are not served"
                self._refuse(caller, 503, told, "close some, or ask by HTTP")
                caller.bell.close()
                return
        self._callers[bell] = caller
        self._epoll.register(bell, select.EPOLLIN)

    def _drop(self, caller: Caller) -> None:
        number = caller.bell.fileno()
        if self._callers.pop(number, None) is not None:
            self._epoll.unregister(number)  # closing is not enough: the caller may hold a copy of this end
            caller.bell.close()

    def _tell_counts(self) -> None:
        self._fold()
        counts: dict[str, Any] = {key: histogram.to_dict() for key, histogram in (*self._counted.items(), ("failed", self._failed)) if histogram.count}
        if self._joined:
            counts["joined"], self._joined = self._joined, 0
        if self._not_finite:
            counts["not_finite"], self._not_finite = self._not_finite, 0
        for key, count in counts.items():  # one at a time: a message has its limit
            self._control.send(json.dumps({"counts": {key: count}}).encode())
        self._control.send(json.dumps({"counted": True}).encode())
        self._counted = {phase: Histogram() for phase in (*PHASES, "total")}
        self._failed = Histogram()

    def _fold(self) -> None:
        samples = np.frombuffer(self._times.tobytes(), np.int64).reshape(-1, 5)
        self._times = array("q")
        for column, key in enumerate((*PHASES, "total")):
            self._counted[key].merge(histogram_of(samples[:, column]))

    # one question

    def _hear(self, caller: Caller) -> None:
        question = self._taken(caller)
        if question is not None:
            self._answer_one(question, question.read_ns)
        self._idle()

    def _hear_together(self, callers: list[Caller]) -> None:
        """What they ask and what others ask within the time that the profile gives, as few questions to the model."""
        until = time.perf_counter() + self._together.wait_s
        asked: dict[Caller, Question] = {}
        while True:
            for caller in callers:
                question = self._taken(caller) if caller not in asked else None
                if question is not None:
                    asked[caller] = question
            missing = len(self._callers) - len(asked)
            left = until - time.perf_counter()
            if not asked or len(asked) >= self._together.most or missing <= 0 or left <= 0 or not self._rings(left):
                break
            callers = [self._callers[ready] for ready, _ in self._epoll.poll(0) if ready in self._callers]
            if not any(caller not in asked for caller in callers):  # the supervisor's order waits until these have their answers
                break
        for group in batching.groups(list(asked.values()), self._together.most):
            self._answer(group)
        self._idle()

    def _rings(self, timeout_s: float) -> bool:
        """select() counts microseconds where epoll_wait() counts milliseconds."""
        return bool(select.select([self._epoll], [], [], timeout_s)[0])

    def _taken(self, caller: Caller) -> Question | None:
        """What it asks; None where that was nothing to answer, or has been refused."""
        try:
            message = caller.bell.recv(ring.MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        if len(message) < ring.QUESTION.size:
            self._drop(caller)
            return None
        arrived = time.perf_counter_ns()
        self._busy(arrived, caller)
        try:
            return self._read(caller, message, arrived)
        except (ProtocolError, MemoryError) as error:
            self._fail(caller, error, arrived)
            self._programs -= not caller.trusted
            return None

    def _answer(self, questions: list[Question]) -> None:
        """Ask the model once for all of them; where it refuses, once for each, so that the one at fault is the only one to hear of it."""
        started = time.perf_counter_ns()
        answers = self._asked_as_one(questions) if len(questions) > 1 else None
        if answers is None:
            for question in questions:
                self._answer_one(question, time.perf_counter_ns())
            return
        ran = time.perf_counter_ns()
        self._joined += len(questions) - 1
        for question, outputs in zip(questions, answers):
            self._give(question, outputs, started, ran)

    def _asked_as_one(self, questions: list[Question]) -> list[dict[str, Array]] | None:
        """None where the model refuses, or its answers cannot be told apart."""
        try:
            outputs = self._session.run(batching.joined([question.feeds for question in questions]), questions[0].outputs)
        except (BadFeeds, SessionError, MemoryError):
            return None
        return batching.parted(outputs, [batching.rows_of(question.feeds) for question in questions])

    def _answer_one(self, question: Question, started: int) -> None:
        try:
            outputs = self._session.run(question.feeds, question.outputs)
        except (BadFeeds, SessionError, MemoryError) as error:
            self._fail(question.caller, error, question.arrived_ns)
        else:
            self._give(question, outputs, started, time.perf_counter_ns())

    def _give(self, question: Question, outputs: dict[str, Array], started: int, ran: int) -> None:
        caller = question.caller
        try:
            said = self._placed(question, outputs)
        except TooSmall as error:
            self._reply(caller, ring.TOO_SMALL, json.dumps({"bytes": error.needed_bytes}).encode())
            caller.last_ns = time.perf_counter_ns()
        except (ProtocolError, MemoryError) as error:
            self._fail(caller, error, question.arrived_ns)
        else:
            done = time.perf_counter_ns()
            queue = question.queue_ns + started - question.read_ns  # the wait for others, too
            phases = (queue, question.read_ns - question.arrived_ns, ran - started, done - ran)
            self._reply(caller, ring.ANSWERED, said, phases)
            if not caller.trusted:
                self._times.extend((*phases, done - question.arrived_ns + question.queue_ns))
                if len(self._times) >= _FOLD_AT:
                    self._fold()
            caller.last_ns = time.perf_counter_ns()
            self._not_finite += _holds_no_number(outputs)  # who asked has his answer by now

    def _fail(self, caller: Caller, error: Exception, arrived: int) -> None:
        status, told = failure(error)
        self._refuse(caller, status, told, "")
        if not caller.trusted:
            self._failed.record(time.perf_counter_ns() - arrived)
        caller.last_ns = time.perf_counter_ns()

    def _busy(self, arrived: int, caller: Caller) -> None:
        """Say it where the supervisor sees it even if this process dies: since when, and with how many programs' questions."""
        self._since = self._since or arrived
        self._programs += not caller.trusted
        ring.PULSE.pack_into(self._pulse, 0, self._since, self._programs)

    def _idle(self) -> None:
        self._since = self._programs = 0
        ring.PULSE.pack_into(self._pulse, 0, 0, 0)

    def _read(self, caller: Caller, message: bytes, arrived: int) -> Question:
        """Raises ProtocolError."""
        (sent,) = ring.QUESTION.unpack_from(message)
        queue = arrived - max(sent, caller.last_ns) if sent <= arrived else 0
        asked = message[ring.QUESTION.size :]
        if caller.trusted:
            size, header_bytes = ring.BODY.unpack(asked)
            request = protocol.decode_request(memoryview(caller.view)[:size], None if header_bytes < 0 else header_bytes)
            conform(request.feeds, self._session.inputs)
            self._check_outputs(request.outputs)
            return Question(caller, request.feeds, tuple(request.outputs), arrived, queue, time.perf_counter_ns(), request)
        if caller.plan is None or asked != caller.asked:
            caller.plan = None
            plan = self._planned(caller, asked)
            feeds = plan.feeds()
            conform(feeds, self._session.inputs)
            caller.plan, caller.asked = plan, asked
        else:
            plan = caller.plan
            feeds = plan.feeds()
        return Question(caller, feeds, plan.outputs, arrived, queue, time.perf_counter_ns())

    def _planned(self, caller: Caller, asked: bytes) -> Plan:
        """Raises ProtocolError."""
        try:
            document = json.loads(asked)
            entries, outputs, room = document["inputs"], tuple(document.get("outputs", ())), document["room"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ProtocolError("a question is a JSON object with `inputs`, `room` and perhaps `outputs`") from error
        if not isinstance(entries, list) or not all(isinstance(name, str) for name in outputs):
            raise ProtocolError("`inputs` is a list of tensors, `outputs` a list of names")
        self._check_outputs(outputs)
        if not _is_offset(room, caller.size):
            raise ProtocolError(f"`room` is {str(room)[:40]}, not a multiple of {ring.ALIGNMENT} within the region's {caller.size} bytes")
        plan = Plan({}, [], [], outputs, room)
        seen: dict[str, Any] = {}
        for entry in entries:
            name, datatype, shape = protocol.header_of(entry, "inputs", seen)
            seen[name] = None
            self._lay(plan, caller, entry, name, datatype, shape)
        return plan

    def _lay(self, plan: Plan, caller: Caller, entry: dict[str, Any], name: str, datatype: str, shape: tuple[int, ...]) -> None:
        """One input: its bytes lie within the region, or ProtocolError."""
        offset: Any = entry.get("offset")
        dtype = None if datatype == "BYTES" else np.dtype(protocol.DATATYPES[datatype])
        size = entry.get("size") if dtype is None else math.prod(shape) * dtype.itemsize
        if type(size) is not int or size < 0 or not _is_offset(offset, caller.size) or offset + size > caller.size:
            where = f"lies at {str(offset)[:40]} with {str(size)[:40]} bytes"
            raise ProtocolError(f"`{name[:80]}` {where}: not a multiple of {ring.ALIGNMENT}, or beyond the region's {caller.size} bytes")
        if dtype is None or datatype == "BOOL":  # a byte that is neither 0 nor 1 is not for the kernels
            plan.parsed.append((name, datatype, shape, memoryview(caller.view)[offset : offset + size]))
            return
        try:
            view: Array = np.ndarray(shape, dtype, caller.view, offset)
        except ValueError as error:
            raise ProtocolError(f"`{name[:80]}`: no array can have the shape {list(shape)}") from error
        if size <= _SMALL_BYTES or dtype.name in _INDICES:
            plan.copied.append((name, view))
        else:
            plan.views[name] = view

    def _check_outputs(self, wanted: Any) -> None:
        for name in wanted:
            if name not in self._offered:
                offered = ", ".join(f"`{output.name}`" for output in self._session.outputs)
                raise ProtocolError(f"the model's outputs are {offered}; `{name[:80]}` is none of them")

    # its answer

    def _placed(self, question: Question, outputs: dict[str, Array]) -> bytes:
        """Write it into the region; what to say of it. Raises TooSmall or ProtocolError."""
        caller, plan = question.caller, question.caller.plan
        if question.request is not None:
            return self._placed_body(caller, outputs, question.request)
        assert plan is not None
        shapes = [output.shape for output in outputs.values()]
        if shapes != plan.shapes:
            plan.shapes, plan.targets, plan.said = [], [], b""
            if any(output.dtype.kind in "OUS" for output in outputs.values()):
                return self._placed_strings(caller, plan, outputs)
            offsets = [plan.room]
            for output in outputs.values():
                offsets.append(ring.aligned(offsets[-1] + output.nbytes))
            if offsets[-1] > caller.size:
                raise TooSmall(offsets[-1])
            plan.targets = [np.ndarray(output.shape, output.dtype, caller.view, offset) for output, offset in zip(outputs.values(), offsets)]
            entries = [
                {"name": name, "datatype": protocol.datatype_of(output), "shape": list(output.shape), "offset": offset}
                for (name, output), offset in zip(outputs.items(), offsets)
            ]
            plan.said = json.dumps({"version": self._release, "outputs": entries}).encode()
            plan.shapes = shapes
        for target, output in zip(plan.targets, outputs.values()):
            np.copyto(target, output)
        return plan.said

    def _placed_strings(self, caller: Caller, plan: Plan, outputs: dict[str, Array]) -> bytes:
        """Their bytes differ from answer to answer: laid out anew each time."""
        end, entries = plan.room, []
        encoded = [protocol.binary_tensor(name, output) for name, output in outputs.items()]
        for entry, buffer in encoded:
            entries.append({"name": entry["name"], "datatype": entry["datatype"], "shape": entry["shape"], "offset": end, "size": len(buffer)})
            end = ring.aligned(end + len(buffer))
        if end > caller.size:
            raise TooSmall(end)
        for place, (_, buffer) in zip(entries, encoded):
            caller.view[place["offset"] : place["offset"] + place["size"]] = bytes(buffer)
        return json.dumps({"version": self._release, "outputs": entries}).encode()

    def _placed_body(self, caller: Caller, outputs: dict[str, Array], request: Request) -> bytes:
        """As HTTP has it, from the region's begin on."""
        whole = np.ndarray(caller.size, np.uint8, caller.view)
        apart = {name: output.copy() if np.may_share_memory(output, whole) else output for name, output in outputs.items()}  # one that is an input
        head, buffers = protocol.encode_response(self._name, self._release, apart, request)
        size = len(head) + sum(len(buffer) for buffer in buffers)
        if size > caller.size:
            raise TooSmall(size)
        end = 0
        for part in (head, *buffers):
            caller.view[end : end + len(part)] = part
            end += len(part)
        return ring.BODY.pack(size, len(head) if buffers else -1)

    def _refuse(self, caller: Caller, status: int, message: str, hint: str) -> None:
        self._reply(caller, status, json.dumps({"error": message[:_MESSAGE_CHARACTERS], "hint": hint}).encode())

    def _reply(self, caller: Caller, status: int, said: bytes, phases: tuple[int, ...] = (0, 0, 0, 0)) -> None:
        """A caller that has not even taken its earlier answers is dropped."""
        try:
            caller.bell.send(ring.REPLY.pack(status, *phases) + said, socket.MSG_DONTWAIT)
        except OSError:
            self._drop(caller)


def _holds_no_number(outputs: dict[str, Array]) -> bool:
    """NaN or infinity. Of a large output so many values are looked at, evenly spread: what goes wrong in a network spreads, too."""
    seen = (output.reshape(-1)[:: -(-output.size // _MOST_LOOKED_AT) or 1] for output in outputs.values() if output.dtype.kind == "f")
    return not all(np.isfinite(values).all() for values in seen)


def failure(error: Exception) -> tuple[int, str]:
    """HTTP's status, and the sentence."""
    if isinstance(error, ProtocolError):
        return error.status, str(error)
    if isinstance(error, MemoryError):
        return 500, "the device has too little memory for this request"
    return (400 if isinstance(error, BadFeeds) else 500), str(error)


def _is_offset(value: Any, size: int) -> bool:
    return type(value) is int and 0 <= value <= size and value % ring.ALIGNMENT == 0
