"""The measuring child: opens a model, or asks the agent as a local program does, and times it in one of MLPerf's scenarios.

The supervisor drives it over an inherited socket: one question, what to measure; one answer, what was seen. `{"stop": true}` meanwhile ends
the run early, with what there is by then. A process is one restart: whoever wants an interval has it started again.

single-stream: one question after the other. multi-stream: so many samples at once, the latency is that of the last. offline: all are there,
what counts is how many get done. server: questions arrive at random (Poisson), whether or not the last one is answered; the latency begins
when a question should have come, so that a stall costs all that wait behind it (coordinated omission).
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from edge_agent import conditions, externals, facts, frames, golden, worker
from edge_agent.bundle import digest_of, parse_description
from edge_agent.client import Model
from edge_agent.conditions import Watch
from edge_agent.connection import Connection
from edge_agent.errors import AgentError
from edge_agent.protocol import ProtocolError
from edge_agent.race import read_feeds
from edge_agent.windows import Run, Window, steady
from edge_agent.worker import Array, Session

FEWEST = 5  # queries, however long they take

_WARMUP_S = 10.0  # at most, if it gets not steady
_WARMUP_WINDOW_S, _WARMUP_LEAST = 0.1, 3
_CLIENTS = 4  # of the agent, that a server's questions wait for
_PR_SET_TIMERSLACK = 29

Feeds = Dict[str, Array]
PHASES = ("queue", "input", "run", "output")


class Failed(AgentError):
    """The model does not run here, or its agent does not answer."""


@dataclass(frozen=True)
class Wanted:
    """What to measure. ``per_query``: samples that are asked at once."""

    scenario: str
    limit_s: float
    window_s: float
    per_query: int = 1
    target_qps: Optional[float] = None
    curve: bool = False
    least: int = 1  # queries in a window


def serve(folder: Path, home: Path, descriptor: int) -> int:
    """Answer the one question, and end when the other side does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as sock:
        try:
            question, _ = frames.receive(sock)
            frames.send(sock, {"result": measured(sock, folder, home, **question["arguments"])})
            frames.receive(sock)
        except (AgentError, ProtocolError) as failed:
            frames.send(sock, {"result": {"failed": {"message": str(failed), "hint": getattr(failed, "hint", "")}}})
        except (EOFError, OSError):
            return 0
    return 0


def measured(sock: socket.socket, folder: Path, home: Path, *, via: str, **question: Any) -> Dict[str, Any]:
    """Open, warm up, measure. Raises what `serve` tells as a failure."""
    wanted = Wanted(**question.pop("wanted"))
    frames.send(sock, {"stage": "load"})
    subject: Subject = Deployed(home, folder, wanted, **question) if via == "agent" else Opened(folder, wanted, **question)
    try:
        watch = Watch(subject.own)
        frames.send(sock, {"stage": "warm up"})
        stopped = _Stop(sock)
        warm, is_steady = warmed(subject.query, stopped)
        subject.forget()
        before = watch.moment()
        frames.send(sock, {"stage": "measure"})
        watch.begin()
        run, curve, began = Run(), [], time.time()

        def closed(window: Window) -> bool:
            if wanted.curve:
                seen = watch.sample()
                curve.append({**window.to_dict(wanted.per_query), **{key: seen[key] for key in ("mhz", "temperature_c", "load")}})
            elif window.begin_s + window.seconds > conditions.SAMPLE_S:
                watch.sample()
            return stopped()

        if wanted.scenario == "server":
            arriving(subject.query, wanted, run, closed, subject.clients)
        else:
            one_after_the_other(subject.query, wanted, run, closed)
        seen, own_facts = watch.end(), subject.own_facts()  # its memory before the latencies are sorted: that is ours
        return {
            "restart": {**_told(run, wanted, warm, seen), "steady": is_steady, "state": _state(before, watch, seen), **own_facts},
            "interval_ms": {name: [end / 1e6 for end in ends] for name, ends in run.intervals_ns().items()},
            "energy_unknown": seen.energy_unknown,
            "curve": curve,
            "stopped": stopped.asked,
            "phases_ms": subject.phases_ms(),
            "about": {**subject.about(), **_device(), "began": began},
        }
    finally:
        subject.close()


def warmed(query: Callable[[int], object], stopped: Callable[[], bool] = lambda: False) -> tuple[Run, bool]:
    """Ask until the median of windows changes no more, and whether it came to that within ten seconds."""
    run = Run()
    wanted = Wanted("single-stream", _WARMUP_S, _WARMUP_WINDOW_S, least=_WARMUP_LEAST)
    one_after_the_other(query, wanted, run, lambda _: steady(run.windows) or stopped())
    return run, steady(run.windows)


def one_after_the_other(query: Callable[[int], object], wanted: Wanted, run: Run, closed: Callable[[Window], bool]) -> None:
    """Until the time is up, five queries at least, or until ``closed``, which is told of each window, says so."""
    clock, number = time.perf_counter_ns, 0
    origin = clock()
    until, width = origin + round(wanted.limit_s * 1e9), round(wanted.window_s * 1e9)
    begin = now = origin
    ns: List[int] = []
    while True:
        asked = clock()
        query(number)
        now = clock()
        ns.append(now - asked)
        number += 1
        if (now - begin < width or len(ns) < wanted.least) and (now < until or number < FEWEST):
            continue
        window = run.close(ns, (begin - origin) / 1e9, (now - begin) / 1e9)
        if (closed(window) or now >= until) and number >= FEWEST:
            return
        ns, begin = [], clock()


def arriving(query: Callable[[int], object], wanted: Wanted, run: Run, closed: Callable[[Window], bool], clients: int) -> None:
    """Queries come when they come, at random, ``target_qps`` a second; of so many who ask, whoever is free takes the oldest that waits."""
    assert wanted.target_qps
    rate = wanted.target_qps
    _sleep_exactly()
    lock, drawn, clock = threading.Lock(), random.Random(), time.perf_counter_ns
    origin = begin = clock()
    until, width = origin + round(wanted.limit_s * 1e9), round(wanted.window_s * 1e9)
    due, number, over, ns = origin, 0, False, list[int]()
    failed: List[Exception] = []

    def ask() -> None:
        nonlocal due, number, over, ns, begin
        while True:
            with lock:
                due += round(drawn.expovariate(rate) * 1e9)
                mine, place, number = due, number, number + 1
                if over or failed or mine >= until:
                    return
            time.sleep(max(0, mine - clock()) / 1e9)
            query(place)
            now = clock()
            with lock:
                ns.append(now - mine)
                if now - begin >= width and not over:
                    over = closed(run.close(ns, (begin - origin) / 1e9, (now - begin) / 1e9))
                    ns, begin = [], now

    def guarded() -> None:
        try:
            ask()
        except Exception as error:  # noqa: BLE001 - raised again below, in the thread that is asked
            failed.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    if ns:
        run.close(ns, (begin - origin) / 1e9, (clock() - begin) / 1e9)
    if not run.runs:
        raise Failed("no question came in that time", "measure for longer, or at a higher rate")


def _sleep_exactly() -> None:
    """Of this thread and those that it starts: the kernel would wake them 50 µs late."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)


class Subject:
    """What is asked: `query(number)` asks ``per_query`` samples at once."""

    own: Sequence[int] = ()
    clients = 1

    def query(self, number: int) -> object:
        raise NotImplementedError

    def own_facts(self) -> Dict[str, Any]:
        raise NotImplementedError

    def about(self) -> Dict[str, Any]:
        raise NotImplementedError

    def phases_ms(self) -> Optional[Dict[str, float]]:
        return None

    def forget(self) -> None:
        """What was noted while it warmed up."""

    def close(self) -> None:
        """Nothing by itself."""


class Opened(Subject):
    """A model's files, opened for this alone."""

    def __init__(self, folder: Path, wanted: Wanted, *, model: str, feeds: str, inputs: Sequence[str], profile: Mapping[str, Any]) -> None:
        import onnxruntime  # noqa: F401 - a worker has it before it opens a model, so it is no part of what it takes to load one

        self._questions = read_feeds((folder / feeds).read_bytes(), inputs)
        self.own = [os.getpid()]
        externals.check((folder / model / "model.onnx").read_bytes())
        begin = time.perf_counter()
        self._session: Session = worker.open_session(folder / model, profile)
        self._load_ms = (time.perf_counter() - begin) * 1e3
        for question in self._questions:
            worker.conform(question, self._session.inputs)
        begin = time.perf_counter()
        self._session.run(self._questions[0])
        self._first_ms = (time.perf_counter() - begin) * 1e3
        self._settings = {"providers": list(profile.get("providers", [])), "runtime": dict(profile.get("runtime", {}))}
        self._stacked = wanted.per_query > 1 and self._stackable()
        count = len(self._questions)
        queries = [[self._questions[(place + i) % count] for i in range(wanted.per_query)] for place in range(count)]
        self._queries: List[List[Feeds]] = [[_stack(one)] for one in queries] if self._stacked else queries

    def query(self, number: int) -> object:
        run = self._session.run
        for feeds in self._queries[number % len(self._queries)]:
            run(feeds)
        return None

    def own_facts(self) -> Dict[str, Any]:
        return {"load_ms": self._load_ms, "first_answer_ms": self._first_ms, "peak_bytes": conditions.peak_bytes()}

    def about(self) -> Dict[str, Any]:
        import onnxruntime

        return {
            "provider": self._session.providers[0],
            "nodes": self._session.nodes,
            "threads": self._session.threads,
            "onnxruntime": onnxruntime.__version__,
            "settings": self._settings,
            "stacked": self._stacked,
        }

    def _stackable(self) -> bool:
        """Every input's first axis is any length, and all samples are of one shape behind it."""
        shapes = [{name: array.shape[1:] for name, array in question.items()} for question in self._questions]
        return all(info.shape and info.shape[0] is None for info in self._session.inputs) and all(shape == shapes[0] for shape in shapes)


class Deployed(Subject):
    """A model of the agent, asked as a local program asks it; each sample of a query by a program's thread of its own."""

    def __init__(self, home: Path, folder: Path, wanted: Wanted, *, name: str, feeds: Optional[str] = None, inputs: Sequence[str] = ()) -> None:
        self._name, self._home = name, home
        with Connection(home=home) as connection:
            self.own = [int(connection.request("GET", "/edge/alive").json()["pid"])]
        self.clients = _CLIENTS if wanted.scenario == "server" else 1
        self._given = read_feeds((folder / feeds).read_bytes(), inputs) if feeds else None
        self._questions = self._given or self._golden()
        begin = time.perf_counter()
        self._models = [Model(name, Connection(home=home), via=None, timeout_s=60)]
        self._models[0](self._questions[0])
        self._first_ms = (time.perf_counter() - begin) * 1e3
        self._models += [Model(name, Connection(home=home), via=None, timeout_s=60) for _ in range(max(wanted.per_query, self.clients) - 1)]
        self._per_query = wanted.per_query
        self._phases: Dict[str, List[float]] = {phase: [] for phase in PHASES}
        self._pool = ThreadPoolExecutor(wanted.per_query) if wanted.per_query > 1 else None
        self._free, self._lock = list(self._models), threading.Lock()
        self._served = wanted.scenario == "server"

    def query(self, number: int) -> object:
        if self._pool is not None:
            asked = [self._pool.submit(self._models[i], self._questions[(number + i) % len(self._questions)]) for i in range(self._per_query)]
            return [one.result() for one in asked]
        if self._served:
            self._in_turn(number)
            return None
        model = self._models[0]
        model(self._questions[number % len(self._questions)])
        timing = model.timing_ms
        for phase, kept in self._phases.items():
            kept.append(timing.get(phase, 0.0))
        return None

    def own_facts(self) -> Dict[str, Any]:
        status = self._ask("/edge/status")["models"]
        worker_pid = next((model["pid"] for model in status if model["name"] == self._name), None)
        return {"load_ms": None, "first_answer_ms": self._first_ms, "peak_bytes": conditions.peak_bytes(worker_pid) if worker_pid else None}

    def about(self) -> Dict[str, Any]:
        (counted,) = self._ask(f"/edge/report/{self._name}")["models"]
        (entry,) = [model for model in self._ask("/edge/status")["models"] if model["name"] == self._name]
        profile = worker.read_profile(self._home / "active" / self._name, as_profile=False)
        agent = self._ask("/edge/status")["agent"]
        told: Dict[str, Any] = {
            "name": self._name,
            "release": int(counted["release"]),
            "digest": counted["digest"],
            "provider": counted["provider"] or "",
            "nodes": entry["nodes"] or "",
            "threads": counted["threads"] or 0,
            "onnxruntime": agent["onnxruntime"] or "",
            "settings": {"providers": profile.get("providers", []), "runtime": profile.get("runtime", {})},
            "stacked": False,
            "client": self._models[0].via,
        }
        if self._given is None:
            told["inputs"] = {"source": "golden", "count": len(self._questions), "digest": self._golden_digest}
        return told

    def phases_ms(self) -> Optional[Dict[str, float]]:
        return {phase: float(np.median(kept)) for phase, kept in self._phases.items() if kept} or None

    def forget(self) -> None:
        for kept in self._phases.values():
            kept.clear()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for model in self._models:
            model.close()

    def _in_turn(self, number: int) -> None:
        with self._lock:
            model = self._free.pop()
        try:
            model(self._questions[number % len(self._questions)])
        finally:
            with self._lock:
                self._free.append(model)

    def _golden(self) -> List[Feeds]:
        with Connection(home=self._home) as connection:
            data = bytes(connection.request("GET", f"/edge/models/{self._name}/golden").body)
            description = parse_description(bytes(connection.request("GET", f"/edge/models/{self._name}/bundle").body))
        self._golden_digest = digest_of(data)
        return [sample.feeds for sample in golden.parse(data, description)]

    def _ask(self, target: str) -> Any:
        with Connection(home=self._home) as connection:
            return json.loads(connection.request("GET", target).body)


class _Stop:
    """Whether the other side wants it to end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self.asked = sock, False

    def __call__(self) -> bool:
        if not self.asked and select.select([self._sock], [], [], 0)[0]:
            frames.receive(self._sock)
            self.asked = True
        return self.asked


def _told(run: Run, wanted: Wanted, warm: Run, seen: conditions.Seen) -> Dict[str, Any]:
    """A restart's figures, as `edgesdk.results.Restart` has them."""
    found, answers = run.percentiles(), run.runs * wanted.per_query
    return {
        "p50_ms": found["p50"] / 1e6,
        "p90_ms": found["p90"] / 1e6,
        "p99_ms": found["p99"] / 1e6,
        "throughput": answers / run.seconds,
        "runs": run.runs,
        "warmup_runs": warm.runs,
        "warmup_s": round(warm.seconds, 3),
        "disturbed": seen.disturbed,
        "histogram": run.histogram.to_dict(),
        "energy_j": seen.energy_j / answers if seen.energy_j is not None else None,
        "std_ms": run.deviation_ns() / 1e6,
    }


def _state(before: Dict[str, Any], watch: Watch, seen: conditions.Seen) -> Dict[str, Any]:
    return {"before": before, "during": seen.during, "after": watch.moment(load=seen.during["load"])}


def _device() -> Dict[str, Any]:
    known = facts.read()
    board, cpu = known.get("board") or "", known.get("cpu")
    return {"device": board or cpu or known.get("architecture", ""), "cpu": cpu}


def _stack(feeds: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}
