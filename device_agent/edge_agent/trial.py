"""The trial child: opens a bundle's model in a process of its own, asks it the golden questions, measures it.

The supervisor drives it over an inherited socket: `trial` first, `ask` after the swap, `prove` during the probation. If the model crashes the runtime, only
this process dies, and the signal that killed it is the answer.
"""

from __future__ import annotations

import gc
import mmap
import signal
import socket
import time
from pathlib import Path
from typing import Any

from edge_agent import externals, frames, golden, latency, placement, worker
from edge_agent.bundle import BundleError, Description, parse_description
from edge_agent.client import connect
from edge_agent.connection import ClientError
from edge_agent.errors import AgentError
from edge_agent.home import NO_RUNTIME, version_of
from edge_agent.placement import CPU, Placement
from edge_agent.worker import SessionError

_MOST_WARMUP = 9
_MOST_RUNS = 100
_FEWEST_RUNS = 3
_WARMUP_S = 1
_MEASURED_S = 3
_PROVED_S = 2


class Refused(AgentError):
    """The bundle must not become active here."""


def serve(folder: Path, home: Path, descriptor: int) -> int:
    """Answer the supervisor's questions until it closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as sock:
        while True:
            try:
                question, _ = frames.receive(sock)
            except (EOFError, OSError):
                return 0
            try:
                description = parse_description((folder / "bundle.json").read_bytes())
                if question["op"] == "trial":
                    reply = trial(sock, folder, description, **question["arguments"])
                elif question["op"] == "prove":
                    reply = prove(folder, home, description, question["questions"])
                else:
                    reply = ask(folder, home, description)
            except (Refused, SessionError, BundleError) as error:
                reply = {"error": {"message": str(error), "hint": error.hint or "does the model run on the host? package it again with --on this device"}}
            frames.send(sock, reply)


def trial(sock: socket.socket, folder: Path, description: Description, *, as_profile: bool, allow_slow: bool) -> dict[str, Any]:
    """The golden answers and the latency on this very machine. Raises Refused, SessionError or BundleError."""
    profile = worker.read_profile(folder, as_profile=as_profile)
    check_needs(profile, description)
    externals.check(_read(folder / "model.onnx"))
    samples = golden.load(folder / "golden.npz", description)
    begin, before_bytes = time.perf_counter_ns(), _resident_bytes()
    session = worker.open_session(folder, profile)
    load_ms = round((time.perf_counter_ns() - begin) / 1e6, 3)
    if (names_of(session.inputs), names_of(session.outputs)) != (names_of(description.inputs), names_of(description.outputs)):
        raise Refused("the model's inputs or outputs are not those that bundle.json names", "package the model again")
    placed = check_placement(profile, session, description, as_profile=as_profile)
    frames.send(sock, {"stage": "trial"})
    try:
        worst = golden.worst_of([golden.compare(sample.answers, session.run(sample.feeds), description) for sample in samples])
    except golden.Differs as error:
        raise Refused(f"this device answers otherwise than the golden answers: {error}", "package again with --on this device, or a wider tolerance") from error
    times, warmup = _measured(session, samples[0])
    found = latency.percentiles(times)
    _check_budget(profile, found.p50, len(times), allow_slow=allow_slow)
    result = {
        "worst": worst.to_dict(),
        "load_ms": load_ms,
        "memory_bytes": max(0, _resident_bytes() - before_bytes),
        "latency_ms": {"p50": found.p50, "p90": found.p90, "p99": found.p99},
        "provider": session.providers[0],
        "nodes": session.nodes,
        "placement": placed.to_dict() if placed else None,
        "runs": len(times),
        "warmup": warmup,
    }
    del session
    gc.collect()  # the worker opens the same model next: not both at once
    return {"result": result}


def ask(folder: Path, home: Path, description: Description) -> dict[str, Any]:
    """The first golden question, as any local program would ask it. Raises Refused."""
    sample = golden.load(folder / "golden.npz", description)[0]
    begin = time.perf_counter_ns()
    try:
        with connect(description.name, home=home) as model:
            answers = model(sample.feeds)
            elapsed_ms = round((time.perf_counter_ns() - begin) / 1e6, 3)
            if model.release != str(description.release):
                raise Refused(f"release {model.release} of {description.name} answers, not {description.release}")
        golden.compare(sample.answers, answers, description)
    except ClientError as error:
        raise Refused(f"the first question after the swap failed: {error}", error.hint) from error
    except golden.Differs as error:
        raise Refused(f"the first answer after the swap is wrong: {error}", "see `edge-agent logs`") from error
    return {"result": {"first_answer_ms": elapsed_ms}}


def prove(folder: Path, home: Path, description: Description, questions: int) -> dict[str, Any]:
    """So many golden questions, or as many as two seconds allow. One without an answer is the supervisor's to judge. Raises Refused for a wrong one."""
    samples, until, good = golden.load(folder / "golden.npz", description), time.monotonic() + _PROVED_S, 0
    try:
        with connect(description.name, home=home) as model:
            while good < questions and time.monotonic() < until and model.release == str(description.release):
                sample = samples[good % len(samples)]
                golden.compare(sample.answers, model(sample.feeds), description)
                good += 1
    except ClientError as error:
        return {"result": {"good": good, "lost": str(error)}}
    except golden.Differs as error:
        raise Refused(f"an answer is wrong: {error}", "see `edge-agent logs`") from error
    return {"result": {"good": good}}


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * mmap.PAGESIZE


def check_needs(profile: dict[str, Any], description: Description) -> None:
    """What the bundle wants of this device, before its model is opened. Raises Refused or ProviderMissing."""
    if not profile.get("deployable", True):
        raise Refused(f"the profile {description.profile} cannot be deployed: {profile.get('reason', '')}", "use a profile for this device")
    try:
        import onnxruntime
    except ImportError as error:
        raise Refused(f"this device has no onnxruntime that works: {error}", NO_RUNTIME) from error
    if version_of(onnxruntime.__version__) < version_of(description.onnxruntime):
        wanted = f"onnxruntime {description.onnxruntime} (opset {description.opset}, IR version {description.ir_version})"
        raise Refused(
            f"the model needs {wanted}, here is {onnxruntime.__version__}",
            "run `edgesdk setup HOST`, or package for an older opset",
        )
    worker.choose_providers(profile, onnxruntime.get_available_providers())


def check_placement(profile: dict[str, Any], session: worker.Session, description: Description, *, as_profile: bool) -> Placement | None:
    """The profile's contract: so much of the model runs on the accelerator. None where it wants nothing. Raises Refused."""
    least = float(profile.get("runtime", {}).get("least_placed", 0))
    if not least:
        return None
    if as_profile:
        return placement.unchecked(least, "placement not checked: another device's profile is tried here")
    if session.providers == [CPU]:  # its rule for missing providers was asked, and let that be
        return placement.unchecked(least, "placement not checked: no accelerator is here, and the profile lets the CPU take its place")
    placed = placement.judge(session.placed, description.macs, least=least)
    if placed.kept is False:
        raise Refused(
            f"{placed.said}: {placement.listed(placed.fell)} fell to the CPU",
            "`edgesdk check` says what the accelerator does not take; package with another scheme, or set runtime.least_placed in a profile of your own",
        )
    return placed


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"the bundle has no {path.name} that can be read: {error.strerror}", "package the model again") from error


def names_of(infos: Any) -> list[tuple[str, str]]:
    return [(info.name, info.dtype) for info in infos]


def _measured(session: worker.Session, sample: golden.Sample) -> tuple[list[int], int]:
    """Nanoseconds of each run, and how many warmed it up. A slow model on a slow board must not take minutes."""
    (first,) = latency.measure(lambda: session.run(sample.feeds), runs=1, warmup=0)
    warmup = min(_MOST_WARMUP, _WARMUP_S * 10**9 // max(first, 1))
    runs = max(_FEWEST_RUNS, min(_MOST_RUNS, _MEASURED_S * 10**9 // max(first, 1)))
    return latency.measure(lambda: session.run(sample.feeds), runs=runs, warmup=warmup), warmup + 1


def _check_budget(profile: dict[str, Any], p50_ms: float, runs: int, *, allow_slow: bool) -> None:
    most = (profile.get("budget") or {}).get("max_latency_ms")
    if most is not None and p50_ms > most and not allow_slow:
        raise Refused(
            f"the model takes {p50_ms:.3f} ms here (median of {runs} runs), its budget is {most} ms", "activate with --allow-slow to take it as it is"
        )
