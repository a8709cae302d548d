"""The race child: opens two models in a process of its own and times them against each other.

What is asked is a question, or ``together`` of them that came at once: then each side runs as many as one as its profile's `max_batch` lets it.
The supervisor drives it over an inherited socket: first the question what to open, then for how long to run. If a model crashes
the runtime, only this process dies; the stage that it had told is the model to blame.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Dict

from edge_agent import batching, externals, frames, golden, latency, probe, worker
from edge_agent.bundle import BundleError
from edge_agent.errors import AgentError
from edge_agent.protocol import ProtocolError
from edge_agent.worker import Array, ProviderMissing, Session, SessionError

_MOST_PAIRS = 200
_MEMBER = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")

Feeds = Dict[str, Array]


class ModelFailed(AgentError):
    """One of the two does not run here: ``model`` is `before` or `after`."""

    def __init__(self, model: str, cause: SessionError | BundleError | ProtocolError) -> None:
        # What a damaged bundle is told to do helps no candidate.
        super().__init__(str(cause), cause.hint if isinstance(cause, SessionError) else "")
        self.model = model


def serve(folder: Path, _home: Path, descriptor: int) -> int:
    """Answer the supervisor's two questions, and end when it closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as sock:
        try:
            question, _ = frames.receive(sock)
            arguments = question["arguments"]
            before, after, feeds = opened(sock, folder, **arguments)
            frames.send(sock, {"result": {}})
            question, _ = frames.receive(sock)
            batches = [int(profile.get("runtime", {}).get("max_batch", 1)) for profile in arguments["profiles"]]
            frames.send(sock, {"result": race(before, after, feeds, batches=batches, **question["arguments"])})
            frames.receive(sock)
        except ModelFailed as failed:
            frames.send(sock, {"result": {"failed": {"model": failed.model, "message": str(failed), "hint": failed.hint}}})
        except (ProviderMissing, BundleError) as error:
            frames.send(sock, {"error": {"message": str(error), "hint": error.hint}})
        except (EOFError, OSError):
            return 0
    return 0


def opened(
    sock: socket.socket, folder: Path, *, before: str, after: str, feeds: str, inputs: Sequence[str], profiles: Sequence[Mapping[str, Any]]
) -> tuple[Session, Session, list[Feeds]]:
    """Both models, each as its profile wants it, and what to ask them, each asked once.

    Raises ModelFailed; ProviderMissing or BundleError where no model is to blame.
    """
    questions = read_feeds((folder / feeds).read_bytes(), inputs)
    sessions = []
    for model, where, profile in (("before", before, profiles[0]), ("after", after, profiles[1])):
        frames.send(sock, {"stage": model})
        try:
            externals.check((folder / where / "model.onnx").read_bytes())
            session = worker.open_session(folder / where, profile)
            for question in questions:
                worker.conform(question, session.inputs)
            session.run(questions[0])
        except ProviderMissing:
            raise
        except (SessionError, BundleError, ProtocolError) as error:
            raise ModelFailed(model, error) from error
        sessions.append(session)
    return sessions[0], sessions[1], questions


def race(
    before: Session,
    after: Session,
    feeds: Sequence[Feeds],
    *,
    limit_s: float,
    most: int = _MOST_PAIRS,
    together: int = 1,
    batches: Sequence[int] = (1, 1),
) -> dict[str, Any]:
    """Raw pairs in nanoseconds, and on what they were run. ``together``: questions of one time; ``batches``: rows that either side runs as one.

    Raises ModelFailed.
    """
    import onnxruntime

    spinning = before.spins or after.spins
    each = max(batching.rows_of(feeds[0]), 1)
    first, second = (_runner(*side, parts(together, rows // each)) for side, rows in zip((("before", before), ("after", after)), batches))
    times, warmup = latency.side_by_side(first, second, feeds, spinning=spinning, most=most, limit_s=limit_s)
    return {
        "pairs_ns": times,
        "warmup": warmup,
        "before": {"provider": before.providers[0], "nodes": before.nodes, "threads": before.threads},
        "after": {"provider": after.providers[0], "nodes": after.nodes, "threads": after.threads},
        "threads": before.threads,
        "together": together,
        "onnxruntime": onnxruntime.__version__,
        **probe.conditions(),
    }


def read_feeds(data: bytes, inputs: Sequence[str]) -> list[Feeds]:
    """Of an .npz with members `0.0`, `0.1`: feed and input, by their places. Raises BundleError."""
    found: dict[int, Feeds] = {}
    for member, array in golden.read_arrays(data, "what the models are asked").items():
        parts = _MEMBER.fullmatch(member)
        if not parts or int(parts[2]) >= len(inputs):
            raise BundleError(f"what the models are asked has a member {member[:40]!r} that belongs to no input")
        found.setdefault(int(parts[1]), {})[inputs[int(parts[2])]] = array.astype(object) if array.dtype.kind == "U" else array
    if not found:
        raise BundleError("there is nothing to ask the models")
    return [found[index] for index in sorted(found)]


def parts(together: int, most: int) -> list[int]:
    """How many of them are run as one, run after run.

    >>> parts(8, 3)
    [3, 3, 2]
    """
    each = max(1, min(together, most))
    return [min(each, together - begin) for begin in range(0, together, each)]


def _runner(model: str, session: Session, questions: Sequence[int]) -> Any:
    """``questions``: of each run. A question is the same as often as it comes."""

    def run(feeds: Feeds) -> None:
        try:
            for count in questions:
                if count == 1:
                    session.run(feeds)
                elif batching.parted(session.run(batching.joined([feeds] * count)), [batching.rows_of(feeds)] * count) is None:
                    raise SessionError("its answer to several questions at once has not a row for each")
        except SessionError as error:
            raise ModelFailed(model, error) from error

    return run
