"""A model asked through shared memory: tensors are placed in a region that its worker has mapped, and a bell is rung.

    asker = Asker("ocr", connection, timeout_s=60)
    outputs, version, timing_ms = asker.ask({"x": array}, answer_bytes=4000)

The arrays that come back are copies: they are the caller's, and the next question does not touch them. A worker that is replaced
or restarted between two questions is not noticed. Not for two threads at once; a forked child opens a line of its own.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from edge_agent import protocol, ring
from edge_agent.connection import BadRequest, ClientError, Connection, NoSuchModel
from edge_agent.ring import Line

Array = NDArray[Any]

_FIRST_BYTES = 1 << 16
_PAUSE_S = 0.005


class NotOffered(ClientError):
    """This agent, or this system, has no shared memory to offer."""


@dataclass
class _Plan:
    """Where tensors of these names, dtypes and shapes lie, and what is asked with them."""

    signature: tuple[Any, ...]
    targets: list[Array]
    asked: bytes
    said: bytes = b""  # of the last answer, whose arrays lie at `answers`
    version: str = ""
    answers: list[tuple[str, Array]] = field(default_factory=list)


class Asker:
    """One line to one model, opened when first needed."""

    def __init__(self, name: str, connection: Connection, *, timeout_s: float) -> None:
        self._name, self._connection, self._timeout_s = name, connection, timeout_s
        self._line: Optional[Line] = None
        self._plan: Optional[_Plan] = None
        self._owner = os.getpid()

    def close(self) -> None:
        """Idempotent. The next question opens it again."""
        line, self._line, self._plan = self._line, None, None
        if line is not None:
            line.close()

    def ask(self, feeds: Mapping[str, Array], *, answer_bytes: int) -> tuple[dict[str, Array], str, dict[str, float]]:
        """Outputs, version and milliseconds of each phase. ``answer_bytes``: what the answer may take, as far as known. Raises ClientError."""
        until = time.monotonic() + self._timeout_s
        if self._owner != os.getpid():  # forked: the parent rings the same bell
            self.close()
            self._owner = os.getpid()
        while True:
            try:
                plan, line = self._placed(feeds, answer_bytes)
                status, phases, said = line.ask(plan.asked)
            except ring.Unread:
                self.close()
                if time.monotonic() > until:
                    raise ClientError(f"{self._name} was replaced again and again for {self._timeout_s:g} s", "see `edge-agent status`") from None
                continue
            except ring.Died:
                self.close()
                raise ClientError(f"the process of {self._name} died while it answered", "it is started again; try again soon") from None
            except socket.timeout as error:
                self.close()
                raise ClientError(
                    f"the agent did not answer within {self._timeout_s:g} s", "is the device busy? give a larger timeout_s, or see `edge-agent status`"
                ) from error
            except BaseException:
                self.close()  # an interrupt between question and answer: the next question must not get this answer
                raise
            if status == ring.TOO_SMALL:
                answer_bytes = _needed(said)
                self.close()
                continue
            if status != ring.ANSWERED:
                raise self._failure(status, said)
            outputs = self._read(plan, line, said)
            return outputs, plan.version, dict(zip(("queue", "input", "run", "output"), (ns / 1e6 for ns in phases)))

    def _placed(self, feeds: Mapping[str, Array], answer_bytes: int) -> tuple[_Plan, Line]:
        """The tensors lie in the region. Raises ClientError or protocol.ProtocolError."""
        signature = tuple((name, array.dtype, array.shape) for name, array in feeds.items())
        plan, line = self._plan, self._line
        if plan is None or line is None or plan.signature != signature:
            strings = {name: protocol.binary_tensor(name, array)[1] for name, array in feeds.items() if array.dtype.kind in "OUS"}
            entries, room = _laid_out(feeds, strings)
            needed = room + answer_bytes
            if line is None or line.region.size < needed:
                self.close()
                line = self._line = self._opened(needed)
            targets = []
            for entry, (name, array) in zip(entries, feeds.items()):
                begin = entry["offset"]
                if name in strings:
                    line.region.view[begin : begin + entry["size"]] = strings[name]
                else:
                    targets.append(np.ndarray(array.shape, array.dtype.newbyteorder("<"), line.region.view, begin))
            asked = json.dumps({"inputs": entries, "room": room}, separators=(",", ":")).encode()
            if len(asked) > ring.MAX_MESSAGE_BYTES - ring.QUESTION.size:
                raise NotOffered(f"{self._name} has too many inputs to be asked through shared memory")
            plan = _Plan(signature, targets, asked)
            self._plan = None if strings else plan  # their bytes differ from question to question
            if strings:
                feeds = {name: array for name, array in feeds.items() if name not in strings}
        for target, array in zip(plan.targets, feeds.values()):
            np.copyto(target, array)
        return plan, line

    def _opened(self, size: int) -> Line:
        """A line with a new region. Raises ClientError; NotOffered where there is no such thing here."""
        rounded = _FIRST_BYTES
        while rounded < size:
            rounded *= 2
        try:
            sock = self._connection.handed_over(f"/edge/models/{self._name}/ring", ring.PROTOCOL)
        except NoSuchModel as error:  # of the model, or of an agent that does not know this way
            raise NotOffered(str(error), error.hint) from error
        with sock:
            try:
                line, bell = Line.make(rounded, self._timeout_s)
            except OSError as error:
                raise NotOffered(f"this system gives no shared memory: {error.strerror}", 'connect with via="http"') from error
            try:
                with bell:
                    socket.send_fds(sock, [b"{}"], [line.region.descriptor, bell.fileno()])
                told = json.loads(sock.recv(ring.MAX_MESSAGE_BYTES) or b"{}")
            except (OSError, ValueError) as error:
                line.close()
                raise ClientError("the agent closed the connection without an answer", "see `edge-agent logs`") from error
        if told.get("status") != 200:
            line.close()
            kind = NoSuchModel if told.get("status") == 404 else NotOffered if told.get("status") == 400 else ClientError
            raise kind(str(told.get("error", "the agent did not take the shared memory")), str(told.get("hint", "")))
        return line

    def _read(self, plan: _Plan, line: Line, said: bytes) -> dict[str, Array]:
        """Copies of the outputs. Raises ClientError."""
        if said != plan.said:
            plan.said = b""
            try:
                document = json.loads(said)
                plan.version = str(document["version"])
                answers = [(str(entry["name"]), _array(line, entry)) for entry in document["outputs"]]
            except (ValueError, KeyError, TypeError, protocol.ProtocolError) as error:
                raise ClientError(f"the agent's answer is malformed: {error}", "update the agent, or this program's copy of edge_agent") from error
            if any(array.dtype.kind == "O" for _, array in answers):
                return {name: array.copy() for name, array in answers}
            plan.said, plan.answers = said, answers
        return {name: array.copy() for name, array in plan.answers}

    def _failure(self, status: int, said: bytes) -> ClientError:
        try:
            document = json.loads(said)
            message, hint = str(document["error"]), str(document["hint"])
        except (ValueError, KeyError, TypeError):
            message, hint = f"the agent answered with status {status}", "see `edge-agent logs`"
        if status == 503:
            self.close()  # it was not taken in
        return BadRequest(message, hint) if status < 500 else ClientError(message, hint)


def _laid_out(feeds: Mapping[str, Array], strings: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Each tensor's place, and where the answer may begin. Raises ProtocolError."""
    entries, offset = [], 0
    for name, array in feeds.items():
        entry: dict[str, Any] = {"name": name, "datatype": protocol.datatype_of(array), "shape": list(array.shape), "offset": offset}
        size = array.nbytes
        if name in strings:
            size = entry["size"] = len(strings[name])
        entries.append(entry)
        offset = ring.aligned(offset + size)
    return entries, offset


def _array(line: Line, entry: Any) -> Array:
    datatype, shape, offset = entry["datatype"], tuple(entry["shape"]), entry["offset"]
    if datatype == "BYTES":
        raw = bytes(memoryview(line.region.view)[offset : offset + entry["size"]])
        return protocol.from_binary(entry["name"], datatype, shape, memoryview(raw))
    array: Array = np.ndarray(shape, protocol.DATATYPES[datatype], line.region.view, offset)
    return array


def _needed(said: bytes) -> int:
    try:
        return int(json.loads(said)["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError("the agent's answer is malformed", "update the agent, or this program's copy of edge_agent") from error
