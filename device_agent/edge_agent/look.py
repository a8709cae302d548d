"""The look child: opens one model in a process of its own, runs it under onnxruntime's profiler, and says what ran where and for how long.

    kernels_of(trace)       # [{"kernel": "conv_3", "operator": "Conv", "provider": "CPUExecutionProvider", "us": 412.0}, …]

Driven as the race child is: the one question says what to open and how often to run it.
"""

from __future__ import annotations

import json
import signal
import socket
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_agent import externals, frames, probe, race, worker
from edge_agent.bundle import BundleError
from edge_agent.protocol import ProtocolError
from edge_agent.worker import ProviderMissing, SessionError

_KERNEL = "_kernel_time"
_MOST_BYTES = 256 << 20  # of a profile: half a million kernels


def serve(folder: Path, _home: Path, descriptor: int) -> int:
    """Answer the supervisor's question, and end when it closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as sock:
        try:
            question, _ = frames.receive(sock)
            frames.send(sock, {"result": look(folder, **question["arguments"])})
            frames.receive(sock)
        except ProviderMissing as error:
            frames.send(sock, {"error": {"message": str(error), "hint": error.hint}})
        except (SessionError, BundleError, ProtocolError) as error:
            hint = error.hint if isinstance(error, SessionError) else ""
            frames.send(sock, {"result": {"failed": {"model": None, "message": str(error), "hint": hint}}})
        except (EOFError, OSError):
            return 0
    return 0


def look(folder: Path, *, model: str, feeds: str, inputs: Sequence[str], profile: Mapping[str, Any], runs: int) -> dict[str, Any]:
    """Where its nodes are and what its kernels take. Raises SessionError, BundleError or ProtocolError."""
    import onnxruntime

    questions = race.read_feeds((folder / feeds).read_bytes(), inputs)
    externals.check((folder / model / "model.onnx").read_bytes())
    with tempfile.TemporaryDirectory(prefix="edge-agent-", dir=folder) as scratch:
        session = worker.open_session(folder / model, profile, trace=Path(scratch, "profile"))
        for question in questions:
            worker.conform(question, session.inputs)
        for number in range(runs):
            session.run(questions[number % len(questions)])
        path = session.end_trace()
        if path.stat().st_size > _MOST_BYTES:
            raise SessionError("onnxruntime's profile of the model is too large to read", "ask it fewer times")
        kernels = kernels_of(path.read_bytes())
    return {
        "provider": session.providers[0],
        "nodes": session.nodes,
        "placed": None if session.placed is None else [asdict(node) for node in session.placed],
        "kernels": kernels,
        "runs": runs,
        "threads": session.threads,
        "onnxruntime": onnxruntime.__version__,
        **probe.conditions(),
    }


def kernels_of(trace: bytes) -> list[dict[str, Any]]:
    """Of onnxruntime's profile: each kernel's median time in microseconds, in the order in which they ran first."""
    times: dict[str, list[int]] = {}
    told: dict[str, dict[str, Any]] = {}
    for event in json.loads(trace):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"][: -len(_KERNEL)]
            times.setdefault(name, []).append(event["dur"])
            told.setdefault(name, {"kernel": name, "operator": event["args"].get("op_name", ""), "provider": event["args"].get("provider", "")})
    return [{**told[name], "us": float(statistics.median(each))} for name, each in times.items()]
