"""A model that runs on a device, as a function here: questions go there one after the other, over one command that stays.

    with opened("pi", profile, model_files(model)) as there:
        there.run({"x": array})["y"]                     # bit for bit what onnxruntime answers there

What was sent for it is removed at the end, as after a race; a connection that breaks is opened again, and the question asked once more.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edge_agent import answering, frames, probe, protocol, worker
from edge_agent.bundle import BundleError, digest_of, to_json
from edge_agent.worker import SessionError
from edgesdk import device, race
from edgesdk.device import Device
from edgesdk.errors import ConnectionFailed, DeviceError, EdgeSDKError, ModelError
from edgesdk.graph import Array, Feeds
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.race import Files
from edgesdk.replies import FRAME, Answering, Facts, Problem, framed, parse
from edgesdk.transport import Pipe

_SILENCE_S = 1800  # of a device: it may compile the model first, and one answer may take long
_ALIVE_S = 20
_CHUNK_BYTES = 1 << 18
_MOST_NOISE_BYTES = 1 << 20  # of a banner or a .bashrc, before the reply


@contextmanager
def opened(host: str, profile: Profile, files: Files, progress: Progress = silent) -> Iterator[Remote]:
    """A model's files opened on ``host`` as the profile says, in a process of its agent. Raises Refused, DeviceError, ConnectionFailed, ModelError."""
    with race.prepared(host, profile, progress) as (there, facts, _):
        session = _Session(there, files, profile, progress)
        with Remote(there, facts, ["--race", session.name], session.document, session.send) as remote:
            try:
                yield remote
            finally:
                remote.close()
                with suppress(EdgeSDKError):  # the device removes it by itself within the hour
                    there.end_race(session.name)


@contextmanager
def deployed(host: str, name: str) -> Iterator[Remote]:
    """A model that is active there. Raises DeviceError where none has that name, ConnectionFailed."""
    with device.connect(host) as there, Remote(there, there.facts(), [name], {}, lambda: None) as remote:
        yield remote


@contextmanager
def here(profile: Profile, files: Files) -> Iterator[Here]:
    """The same on this machine, without an agent. Raises ModelError."""
    with TemporaryDirectory(prefix="edgesdk-") as folder:
        for file, data in files.items():
            Path(folder, file).write_bytes(data)
        try:
            session = worker.open_session(Path(folder), profile.to_dict())
        except (SessionError, BundleError) as error:
            raise ModelError(f"the model does not run here: {error}", error.hint) from error
        yield Here(session)


class Here:
    """As `Remote` is: ``run``, and what there is to say."""

    def __init__(self, session: worker.Session) -> None:
        self._session = session
        self.facts = parse(Facts, probe.facts(), "this machine")
        self.told = parse(Answering, answering.told(session), "this machine")

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Ask. Raises ModelError."""
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        asked = {name: array.astype(object) if array.dtype.kind in "US" else array for name, array in arrays.items()}
        try:
            worker.conform(asked, self._session.inputs)
            return self._session.run(asked)
        except (SessionError, protocol.ProtocolError) as error:
            raise ModelError(f"the model refuses the question: {error}", getattr(error, "hint", "")) from error


class _Session:
    """The files, as a race has them."""

    def __init__(self, there: Device, files: Files, profile: Profile, progress: Progress) -> None:
        self.name = secrets.token_hex(8)
        self._device, self._progress = there, progress
        self._contents = {digest_of(data): data for data in files.values()}
        described = {name: {"digest": digest_of(data), "size": len(data)} for name, data in files.items()}
        self.document = {"model": described, "profile": profile.to_dict()}

    def send(self) -> None:
        """What the device lacks of them."""
        race.send_once(self._device, self.name, self._contents, self._progress, "send the model")


class Remote:
    """``run`` is the function, ``told`` what the device says of the model; a context manager."""

    def __init__(self, there: Device, facts: Facts, verb: list[str], document: Mapping[str, Any], send: Any) -> None:
        self.facts = facts
        self._device, self._verb, self._document, self._send = there, verb, document, send
        self._pipe: Pipe | None = None
        self._ahead = b""
        self._lock = threading.Lock()  # of what goes there: signs of life must not fall into a question
        self._closed = threading.Event()
        self.told: Answering = self._device.persistently(self._open)
        threading.Thread(target=self._stay_alive, name="signs of life", daemon=True).start()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The process there ends. Twice does no harm."""
        self._closed.set()
        with self._lock:
            pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Ask. Raises ModelError where the model refuses the question, DeviceError where the device fails, ConnectionFailed."""
        try:
            document, buffers = protocol.encode_request({name: np.ascontiguousarray(array) for name, array in feeds.items()})
        except protocol.ProtocolError as error:
            raise ModelError(f"the question cannot be sent: {error}") from error
        message = frames.message({"header_bytes": len(document)}, document, *buffers)
        size = sum(memoryview(piece).nbytes for piece in message)
        if size > answering.MOST_BYTES:
            raise ModelError(f"a question of {size} bytes is more than a device takes ({answering.MOST_BYTES})", "ask fewer samples at once")
        return self._device.persistently(lambda: self._asked(message))

    def _asked(self, message: list[Any]) -> dict[str, Array]:
        try:
            if self._pipe is None:
                self.told = self._open()
            self._say(message)
            head, body = frames.read(self._fill, answering.MOST_BYTES)
        except ConnectionFailed:
            self._drop()
            raise
        except (EOFError, ValueError) as error:
            raise DeviceError(f"`{self._device.host}` answers with what is no message", "is its agent of another version?") from error
        if "error" in head:
            problem = parse(Problem, head["error"], self._device.host)
            raise ModelError(f"`{self._device.host}` answers: {problem.message}", problem.hint)
        try:
            return protocol.decode_response(body, head.get("header_bytes")).outputs
        except protocol.ProtocolError as error:
            raise DeviceError(f"`{self._device.host}` gives an answer that makes no sense: {error}", "is its agent of another version?") from error

    def _open(self) -> Answering:
        self._send()
        self._ahead = b""
        self._pipe = self._device.talk("stream", *self._verb, silence_s=_SILENCE_S)
        self._say([to_json(self._document)])
        said = b""
        while FRAME not in said or not said.endswith(b"\n"):
            more = self._more()
            said += more
            if not more or len(said) > _MOST_NOISE_BYTES:
                break
        document = framed(said)
        if document is None or "error" in document:
            done = self._drop()
            if document is None:
                raise self._device.explained(done, "stream")
            problem = parse(Problem, document["error"], self._device.host)
            raise DeviceError(f"`{self._device.host}`: {problem.message}", problem.hint)
        return parse(Answering, document, self._device.host)

    def _drop(self) -> Any:
        with self._lock:
            pipe, self._pipe = self._pipe, None
        return pipe.close() if pipe is not None else None

    def _say(self, message: list[Any]) -> None:
        with self._lock:
            if self._pipe is None:
                raise ConnectionFailed(f"the connection to `{self._device.host}` is closed")
            small = b"".join(bytes(piece) for piece in message) if sum(memoryview(piece).nbytes for piece in message) < _CHUNK_BYTES else None
            for piece in [small] if small is not None else message:
                self._pipe.send(piece)

    def _fill(self, view: memoryview) -> None:
        """Raises DeviceError where the command ended, though the connection is there."""
        while view:
            chunk = self._ahead or self._more()
            if not chunk:
                done = self._drop()
                raise self._device.explained(done, "stream")
            count = min(len(chunk), len(view))
            view[:count] = chunk[:count]
            view, self._ahead = view[count:], chunk[count:]

    def _more(self) -> bytes:
        assert self._pipe is not None  # whoever reads has opened it
        return self._pipe.receive(_CHUNK_BYTES)

    def _stay_alive(self) -> None:
        """The device ends what nobody asks any more; the user's function may think for long."""
        sign = [b"".join(bytes(piece) for piece in frames.message({"op": "alive"}))]
        while not self._closed.wait(_ALIVE_S):
            with suppress(ConnectionFailed):  # the next question will find out
                self._say(sign)
