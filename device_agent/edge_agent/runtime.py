"""The active version of a model inside the caller: no other process takes part in an answer.

    from edge_agent import Runtime

    with Runtime("ocr") as model:
        answer = model({"image": array})["text"]        # or model(array) where there is one input

It costs the caller the model's memory, and a crash of the runtime is the caller's. Activations and rollbacks are followed: the new
version is loaded in the background, and answers from some call on. What was counted reaches the agent's report in batches, when an
agent runs; a caller never waits for that. Several threads may share a Runtime, and ask at the same time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
import warnings
import weakref
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from edge_agent import facts, golden, protocol, worker
from edge_agent import home as homes
from edge_agent.bundle import BundleError, TensorInfo, check_name, digest_of, parse_description
from edge_agent.connection import BadRequest, ClientError, NoSuchModel
from edge_agent.counting import Counting
from edge_agent.probe import runtime_tag
from edge_agent.protocol import ProtocolError
from edge_agent.worker import Array, BadFeeds, Session, SessionError

_LOOK_EVERY_NS = 10_000_000  # at the link that says what is active


class Runtime:
    """A model in this process. ``release`` is the version that answers now: it changes when somebody deploys.

    ``timing_ms``: what the latest answer took; there is no queue, and nothing is encoded. A process forked by `multiprocessing`
    opens the model for itself.
    """

    _version: Optional[_Version]
    _counting: Counting
    _look_at: int
    _last_ns: int
    release: str

    def __init__(self, name: str, home: Path | None = None) -> None:
        try:
            self.name = check_name(name)
        except BundleError as error:
            raise NoSuchModel(str(error), error.hint) from error
        self._home = homes.resolve() if home is None else home
        self._link = str(self._home / "active" / name)
        self._begin_anew()
        self._open()
        _everyone.add(self)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Runtime({self.name!r}, release={self.release!r})"

    def __call__(self, feeds: Union[Mapping[str, Array], Array]) -> dict[str, Array]:
        """Run. Arrays go in as they are: a wrong dtype is an error, not a silent conversion. Raises ClientError."""
        begin = time.perf_counter_ns()
        if begin > self._look_at:
            self._look(begin)
        version = self._version or self._open()  # one from here to the end, whatever is loaded meanwhile
        try:
            outputs = version.session.run(version.named(feeds))
        except (SessionError, ProtocolError) as error:
            self._counting.failed(version.digest)
            raise _blamed(error, version, feeds) from error
        took = time.perf_counter_ns() - begin
        version.times.append(took)
        self._last_ns = took
        if not self._counting.awake:
            self._counting.wake()
        return outputs

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return (self._version or self._open()).session.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return (self._version or self._open()).session.outputs

    @property
    def timing_ms(self) -> dict[str, float]:
        return {"queue": 0.0, "input": 0.0, "run": self._last_ns / 1e6, "output": 0.0} if self._last_ns else {}

    def close(self) -> None:
        """Give the memory back, and send what was counted. Idempotent; a later question opens the model again."""
        with self._lock:
            self._version = None
        self._counting.flush()

    # following what is active

    def leave_to_parent(self) -> object:
        """In a forked child: begin anew. What must not be freed here is returned."""
        left = self._version, self._finish, self._counting
        self._finish.detach()
        self._begin_anew()
        return left

    def _begin_anew(self) -> None:
        """Nothing is open, nothing counted, no lock held."""
        self._lock = threading.Lock()
        self._version = None
        self._loading: Optional[str] = None
        self._refused: Optional[str] = None  # a version that could not be opened here
        self._problem: Optional[str] = None
        self._look_at = self._last_ns = 0
        self._counting = Counting(self.name, self._home)
        self._finish = weakref.finalize(self, self._counting.flush)  # at the end of the process too

    def _look(self, now_ns: int) -> None:
        """Whether another version became active. It is loaded while this one answers, where there is memory for both."""
        self._look_at = now_ns + _LOOK_EVERY_NS
        if self._problem is not None:
            problem, self._problem = self._problem, None
            warnings.warn(problem, RuntimeWarning, stacklevel=3)
        version = self._version
        if version is None:
            return
        target = self._target()
        if target == version.target:
            self._refused = None
        elif target not in (self._loading, self._refused):
            self._loading = target
            threading.Thread(target=self._load, args=(target,), name=f"load {self.name}", daemon=True).start()

    def _load(self, target: str) -> None:
        try:
            self._follow(target)
        except ClientError as error:
            self._refused = target
            self._problem = f"{self.name} was deployed anew and cannot be opened in this process, which goes on with what it has: {error}"
        finally:
            self._loading = None

    def _follow(self, target: str) -> None:
        """Beside what answers, if there is memory for both; else after it, and questions wait. Raises ClientError, and then what ran before goes on."""
        if self._has_room(target):
            version = self._opened(target)
            with self._lock:
                if self._version is not None:  # closed meanwhile: the next question opens what is active then
                    self._version, self.release = version, version.release
            return
        with self._lock:
            if self._version is None:
                return
            before, self._version = self._version.target, None
            try:
                self._version = self._opened(target)
            except ClientError:
                with contextlib.suppress(ClientError):  # the next question says so
                    self._version = self._opened(before)
                raise
            self.release = self._version.release

    def _has_room(self, target: str) -> bool:
        """By what its trial took here."""
        free_bytes = facts.free_memory_bytes()
        try:
            decided = json.loads((self._home / "deployments" / self.name / target / "deployment.json").read_bytes())
            return free_bytes is None or free_bytes >= int(decided["trial"]["memory_bytes"]) + facts.SPARE_BYTES
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def _open(self) -> _Version:
        """The first question after `close`, or in a forked child."""
        with self._lock:
            if self._version is None:
                self._version = self._opened(self._target())
                self.release = self._version.release
            return self._version

    def _target(self) -> str:
        """The name of the active deployment's folder: of where the link leads, only the last part is believed."""
        try:
            return os.path.basename(os.readlink(self._link))
        except PermissionError as error:
            raise ClientError(f"this user may not read the agent's store at {self._home}", "join the group that owns it") from error
        except OSError as error:
            raise NoSuchModel(f"no model `{self.name}` is active at {self._home}", "`edge-agent status` lists those that are") from error

    def _opened(self, target: str) -> _Version:
        """That version, tried with its first golden question. Raises ClientError."""
        _use_runtime(self._home)
        folder = self._home / "deployments" / self.name / target
        try:
            description = parse_description((folder / "bundle.json").read_bytes())
            sample = golden.load(folder / "golden.npz", description)[0]
            digest = digest_of((folder / "manifest.json").read_bytes())
            session = worker.open_deployment(folder)
            golden.compare(sample.answers, session.run(sample.feeds), description)
        except (SessionError, BundleError) as error:
            raise ClientError(str(error), error.hint) from error
        except golden.Differs as error:
            raise ClientError(
                f"in this process {self.name} does not answer as it should: {error}", "does this program bring an onnxruntime of its own?"
            ) from error
        except ImportError as error:
            raise ClientError(f"onnxruntime cannot be imported here: {error}", "ask through the agent: connect(NAME)") from error
        except OSError as error:
            raise ClientError(f"the deployment {target} of {self.name} cannot be read: {error.strerror}", "was it replaced just now? try again") from error
        return _Version(target, digest, str(description.release), session, self._counting.times_of(digest))


def opened(folder: Path, home: Path) -> Session:
    """What is laid out there, whether or not it is active. Raises ClientError."""
    _use_runtime(home)
    try:
        return worker.open_deployment(folder)
    except (SessionError, BundleError) as error:
        raise ClientError(str(error), error.hint) from error


class _Version:
    """One deployment, opened, and the nanoseconds of its answers that have not been counted yet."""

    def __init__(self, target: str, digest: str, release: str, session: Session, times: array[int]) -> None:
        self.target, self.digest, self.release, self.session, self.times = target, digest, release, session, times
        self._only = session.inputs[0].name if len(session.inputs) == 1 else None

    def named(self, feeds: Union[Mapping[str, Array], Array]) -> dict[str, Array]:
        """Raises ProtocolError."""
        if type(feeds) is dict or isinstance(feeds, Mapping):  # the first is the usual one, and four times as fast
            return {name: np.asarray(value) for name, value in feeds.items()}
        if self._only is None:
            raise ProtocolError(f"there are {len(self.session.inputs)} inputs, so one array is not enough")
        return {self._only: np.asarray(feeds)}


def _blamed(error: Exception, version: _Version, feeds: Any) -> ClientError:
    """What was wrong with the question, in the words that the agent has for it; else what went wrong with the answer."""
    try:
        if isinstance(error, ProtocolError):
            raise error
        named = version.named(feeds)
        protocol.encode_request(named)
        worker.conform(named, version.session.inputs)
    except ProtocolError as wrong:
        expected = ", ".join(f"`{info.name}` {info.dtype} {['any' if d is None else d for d in info.shape]}" for info in version.session.inputs)
        return BadRequest(str(wrong), f"it takes {expected}")
    return BadRequest(str(error)) if isinstance(error, BadFeeds) else ClientError(str(error), getattr(error, "hint", ""))


def _use_runtime(home: Path) -> None:
    """The wheels that the host sent, behind what the caller has of its own."""
    folder = str(home / "runtime" / runtime_tag())
    if importlib.util.find_spec("onnxruntime") is None and folder not in sys.path and os.path.isdir(folder):
        sys.path.append(folder)


def _in_forked_child() -> None:
    """Sessions and threads stayed with the parent. The sessions are not freed here: they would wait for threads that are not there."""
    for model in list(_everyone):
        _inherited.append(model.leave_to_parent())


_everyone: weakref.WeakSet[Runtime] = weakref.WeakSet()
_inherited: list[Any] = []
os.register_at_fork(after_in_child=_in_forked_child)
