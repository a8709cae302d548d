"""What a local program imports: a model as a function.

    from edge_agent import connect

    with connect("ocr") as model:
        answer = model({"image": array})["text"]        # or model(array) where there is one input

Arrays lie in memory that this program and the model's worker share; where that is not to be had, they travel as binary tensors over the
agent's Unix socket. Several threads may share a Model: their questions take turns.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge_agent import home as homes
from edge_agent import protocol
from edge_agent.bundle import BundleError, TensorInfo, check_name
from edge_agent.connection import AgentNotRunning, BadRequest, ClientError, Connection, NoSuchModel, Reply
from edge_agent.ring import ALIGNMENT
from edge_agent.shared import Asker, NotOffered

if TYPE_CHECKING:
    from edge_agent.runtime import Runtime

__all__ = ["AgentNotRunning", "BadRequest", "ClientError", "Model", "NoSuchModel", "connect"]

Array = NDArray[Any]

_UNKNOWN_LENGTH = 64  # of an output's axis, until the first answer tells


def connect(
    name: str, *, via: str | None = None, home: Path | None = None, url: str | None = None, token: str | None = None, timeout_s: float = 60
) -> Union[Model, Runtime]:
    """The model of that name on the agent of ``home`` (default: EDGE_AGENT_HOME), or at ``url`` with its token. Raises ClientError.

    ``via``: "shm", shared memory; "http"; "inprocess", the model runs in this program (see `Runtime`). Without it shared memory, else HTTP.
    """
    if via not in (None, "shm", "http", "inprocess"):
        raise ClientError(f"there is no way {via!r} to a model", 'it is "shm", "http" or "inprocess"')
    if via in ("shm", "inprocess") and url is not None:
        raise ClientError(f'via="{via}" does not go with a url', 'ask with via="http", or the agent of a folder on this device')
    if via == "inprocess":
        from edge_agent.runtime import Runtime

        return Runtime(name, home=home)
    try:
        check_name(name)
    except BundleError as error:
        raise NoSuchModel(str(error), error.hint) from error
    connection = Connection(home=home or homes.resolve(), url=url, token=token, timeout_s=timeout_s)
    return Model(name, connection, via=via or ("http" if url else None), timeout_s=timeout_s)


class Model:
    """A model of the agent. ``release`` is that of the latest answer: it changes when somebody deploys.

    ``timing_ms``: what the agent needed for it: queue, input, run, output.
    """

    def __init__(self, name: str, connection: Connection, *, via: str | None, timeout_s: float) -> None:
        self.name = name
        self._connection = connection
        self._fallback = via is None
        self._asker: Optional[Asker] = None if via == "http" else Asker(name, connection, timeout_s=timeout_s)
        self._lock = threading.Lock()
        self._target = f"/v2/models/{name}"
        self.timing_ms: dict[str, float] = {}
        try:
            document = connection.request("GET", self._target).json()
            self.release = str(document["versions"][0])
            self.inputs: tuple[TensorInfo, ...] = protocol.tensors_of(document["inputs"])
            self.outputs: tuple[TensorInfo, ...] = protocol.tensors_of(document["outputs"])
            self._answer_bytes = sum(map(_most_bytes, self.outputs))
        except (KeyError, IndexError, TypeError, protocol.ProtocolError) as error:
            connection.close()
            raise ClientError(f"the agent's description of {name} is malformed", "is it another program that listens there?") from error
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.name!r}, release={self.release!r})"

    def __call__(self, feeds: Union[Mapping[str, Array], Array]) -> dict[str, Array]:
        """Ask. Arrays are taken as they are: a wrong dtype is an error, not a silent conversion. What comes back is the caller's own. Raises ClientError."""
        named = self._named(feeds)
        try:
            if self._asker is not None:
                try:
                    return self._shared(self._asker, named)
                except NotOffered:
                    if not self._fallback:
                        raise
                    self._asker = None
            head, buffers = protocol.encode_request(named)
        except protocol.ProtocolError as error:
            raise BadRequest(str(error), self._expected()) from error
        return self._decoded(self._connection.request("POST", f"{self._target}/infer", [head, *buffers], header_bytes=len(head)))

    @property
    def via(self) -> str:
        """The way that the next question takes: "shm" or "http"."""
        return "http" if self._asker is None else "shm"

    def close(self) -> None:
        """Idempotent; a later question opens the connection again."""
        if self._asker is not None:
            self._asker.close()
        self._connection.close()

    def _shared(self, asker: Asker, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            outputs, self.release, self.timing_ms = asker.ask(feeds, answer_bytes=self._answer_bytes)
        return outputs

    def _named(self, feeds: Union[Mapping[str, Array], Array]) -> dict[str, Array]:
        if isinstance(feeds, Mapping):
            return {name: np.asarray(array) for name, array in feeds.items()}
        if len(self.inputs) != 1:
            raise BadRequest(f"{self.name} has {len(self.inputs)} inputs, so one array is not enough", self._expected())
        return {self.inputs[0].name: np.asarray(feeds)}

    def _decoded(self, reply: Reply) -> dict[str, Array]:
        try:
            response = protocol.decode_response(reply.body, reply.header_bytes)
        except protocol.ProtocolError as error:
            raise ClientError(f"the agent's answer is malformed: {error}", "update the agent, or this program's copy of edge_agent") from error
        self.release, self.timing_ms = response.version, reply.timing_ms
        return response.outputs

    def _expected(self) -> str:
        return "it takes " + ", ".join(f"`{info.name}` {info.dtype} {['any' if d is None else d for d in info.shape]}" for info in self.inputs)


def _most_bytes(info: TensorInfo) -> int:
    """What an output is likely to take."""
    itemsize = 64 if info.dtype == "string" else np.dtype(info.dtype).itemsize
    return math.prod(_UNKNOWN_LENGTH if length is None else length for length in info.shape) * itemsize + ALIGNMENT
