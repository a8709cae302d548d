"""Do our latencies agree with MLPerf LoadGen's? Twice: of the same calls, and of `edgesdk bench` beside LoadGen, process after process.

python -m tests.benchmarks.loadgen          # writes docs/loadgen.md; exit code 1 where they differ by more than 3 %

First SingleStream in one run: LoadGen times each question, so do we around the same call, and so does the agent. Then SingleStream and Offline in
turn: a restart of `bench`, a process in which LoadGen asks the same session the same, in random order; the ratio is that of a round's two.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlperf_loadgen as loadgen
import numpy as np
import onnxruntime

from edge_agent import connect
from edge_agent.latency import Histogram
from edge_agent.measure import Opened, warmed
from edge_agent.measure import Wanted as Asked
from edgesdk import comparison, graph, measuring, profiles, race, sampling
from edgesdk.measuring import Wanted
from edgesdk.source import model_files
from tests.agent.toys import Agent, layers, make
from tests.e2e.quota import before_all_others

PAGE = Path(__file__).parents[2] / "docs" / "loadgen.md"
WITHIN = 0.03
LAYERS = (32, 128, 512)  # of 256 × 256 on 16 rows: from half a millisecond to some; LoadGen's Python binding alone takes 9 µs a question
QUERIES = 1000
WIDTH, ROWS = 256, 16
MODEL = PAGE.parents[1] / "tests" / "data" / "resnet20_fashion.onnx"
ROUNDS, SECONDS, BATCH = 14, 2.0, 8
METRICS = {"single-stream": "p90 ms", "offline": "answers a second"}


@dataclass(frozen=True)
class Row:
    """Milliseconds at p90: LoadGen's, ours around the call, the agent's own."""

    layers: int
    queries: int
    loadgen_ms: float
    client_ms: float
    agent_ms: float

    @property
    def apart(self) -> float:
        return self.client_ms / self.loadgen_ms - 1

    @property
    def agent_apart(self) -> float:
        return self.agent_ms / self.loadgen_ms - 1


@dataclass(frozen=True)
class Beside:
    """`bench` and LoadGen in turn: the medians of both, and of the rounds' ratios, ours to theirs, with its interval."""

    scenario: str
    loadgen: float
    ours: float
    ratio: float
    low: float
    high: float


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--asked", nargs=2, metavar=("SCENARIO", "FOLDER"), help="a process of a round: LoadGen asks")
    given = arguments.parse_args()
    if given.asked:
        print(json.dumps(asked_by_loadgen(given.asked[0], Path(given.asked[1]))))
        return 0
    with before_all_others(), tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        agent = Agent(Path(folder, "home"))
        agent.start()
        try:
            rows = [measured(agent, Path(folder), count) for count in LAYERS]
        finally:
            agent.stop()
        beside = benched()
    PAGE.write_text(page(rows, beside), encoding="utf-8")
    print(page(rows, beside))
    return int(any(abs(row.apart) > WITHIN for row in rows) or any(abs(one.ratio - 1) > WITHIN for one in beside))


def benched() -> list[Beside]:
    """Restarts of `bench`, and LoadGen in processes of its own, of the same model in the same session, one thread."""
    profile = profiles.find("x86-cpu")
    profile = profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"intra_op_threads": 1})})
    model = graph.load(MODEL)
    drawn = list(sampling.generated(model, 4 * BATCH).first(4 * BATCH))
    feeds = [{name: np.concatenate([one[name] for one in drawn[place::4]]) for name in drawn[0]} for place in range(4)]
    files, found = model_files(model), []
    with tempfile.TemporaryDirectory(prefix="loadgen-") as name, measuring.here(files, profile, feeds) as place:
        folder = Path(name)
        (folder / "model").mkdir()
        for file, data in files.items():
            (folder / "model" / file).write_bytes(data)
        (folder / "feeds.npz").write_bytes(race.packed(feeds, list(feeds[0])))
        (folder / "question.json").write_text(json.dumps({"inputs": list(feeds[0]), "profile": profile.to_dict()}))
        argv = [sys.executable, "-m", "tests.benchmarks.loadgen", "--asked"]
        for scenario in ("single-stream", "offline"):
            pairs = []
            for _ in range(ROUNDS):
                first = random.random() < 0.5
                ours = _figure(place.measure(Wanted(scenario, SECONDS)).restart, scenario) if first else 0.0
                theirs = float(json.loads(subprocess.run([*argv, scenario, name], check=True, stdout=subprocess.PIPE).stdout))
                pairs.append((ours if first else _figure(place.measure(Wanted(scenario, SECONDS)).restart, scenario), theirs))
            seen = comparison.estimate([np.log(ours / theirs) for ours, theirs in pairs])
            middle = statistics.median(ours / theirs for ours, theirs in pairs)
            found.append(Beside(scenario, statistics.median(t for _, t in pairs), statistics.median(o for o, _ in pairs), middle, seen.low, seen.high))
    return found


def _figure(restart: measuring.Figures, scenario: str) -> float:
    return restart.p90_ms if scenario == "single-stream" else restart.throughput


def asked_by_loadgen(scenario: str, folder: Path) -> float:
    """LoadGen's figure of a session that is opened and warmed up as `bench` does it: p90 in milliseconds, or samples a second."""
    question = json.loads((folder / "question.json").read_text())
    subject = Opened(folder, Asked(scenario, SECONDS, 0.1), model="model", feeds="feeds.npz", **question)
    warm, _ = warmed(subject.query)
    with tempfile.TemporaryDirectory(prefix="loadgen-") as logs:
        if scenario == "single-stream":
            _, ns = single_stream(lambda number: subject.query(number), Path(logs, "logs"), seconds=SECONDS)
            return ns / 1e6
        return offline(subject.query, Path(logs, "logs"), qps=warm.runs / warm.seconds)


def measured(agent: Agent, folder: Path, count: int) -> Row:
    """Deploy it, let LoadGen ask, and compare."""
    name = f"layers{count}"
    feeds = [{"x": np.ones((1, WIDTH), np.float32)}]
    activated = agent.activate(make(folder / name, layers(count, WIDTH), name=name, feeds=feeds))
    assert activated["state"] == "done", activated
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    with connect(name, home=agent.home) as asked:
        for _ in range(50):
            asked(x)
        before = counted(agent, name)
        ours, theirs_ns = single_stream(lambda _: asked(x), folder / f"{name}-logs")
    after = counted(agent, name)
    return Row(count, ours.count, theirs_ns / 1e6, ours.percentiles().p90, without(after, before).percentiles().p90)


def single_stream(ask: Any, logs: Path, *, seconds: float = 0) -> tuple[Histogram, int]:
    """Our histogram of the calls that LoadGen made, and its own p90 in nanoseconds."""
    ours, kept, number = Histogram(), list[int](), iter(range(1 << 60))

    def issue(samples: Any) -> None:
        for sample in samples:
            begin = time.perf_counter_ns()
            ask(next(number))
            kept.append(time.perf_counter_ns() - begin)  # no more than that: what stands here is in LoadGen's latency
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.SingleStream, loadgen.TestMode.PerformanceOnly
    settings.min_query_count, settings.min_duration_ms = 100 if seconds else QUERIES, round(seconds * 1000)
    settings.single_stream_expected_latency_ns = 1_000_000
    summary = tested(issue, settings, logs)
    found = re.search(r"^90(?:\.00)?(?:th)? percentile latency \(ns\)\s*:\s*(\d+)", summary, re.MULTILINE)
    assert found, summary
    for ns in kept:
        ours.record(ns)
    return ours, int(found[1])


def offline(ask: Any, logs: Path, *, qps: float) -> float:
    """LoadGen's samples a second: all are given at once."""

    def issue(samples: Any) -> None:
        for number, sample in enumerate(samples):
            ask(number)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.Offline, loadgen.TestMode.PerformanceOnly
    settings.min_query_count, settings.min_duration_ms = 1, round(SECONDS * 1000)
    settings.offline_expected_qps = qps
    found = re.search(r"^Samples per second\s*:\s*([0-9.e+]+)", summary := tested(issue, settings, logs), re.MULTILINE)
    assert found, summary
    return float(found[1])


def tested(issue: Any, settings: Any, logs: Path) -> str:
    """LoadGen's summary."""
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(logs), False
    log_settings = loadgen.LogSettings()
    log_settings.log_output = output
    logs.mkdir()
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(1, 1, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, log_settings)
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    return (logs / "mlperf_log_summary.txt").read_text()


def counted(agent: Agent, name: str) -> dict[str, Any]:
    """What the agent has counted of the model so far."""
    (report,) = agent.ask("GET", f"/edge/report/{name}?histograms=1")["models"]
    return dict(report["versions"][-1]["total"])


def without(after: dict[str, Any], before: dict[str, Any]) -> Histogram:
    """What came between the two."""
    earlier = dict(map(tuple, before["buckets"]))
    buckets = [(bucket, count - earlier.get(bucket, 0)) for bucket, count in after["buckets"] if count > earlier.get(bucket, 0)]
    document = {**after, "count": after["count"] - before["count"], "sum_ns": after["sum_ns"] - before["sum_ns"], "buckets": buckets}
    return Histogram.from_dict(document)


def page(rows: list[Row], beside: list[Beside]) -> str:
    lines = [
        "# Our latencies and MLPerf LoadGen's",
        "",
        "LoadGen (SingleStream, PerformanceOnly) asks a model of the agent through `edge_agent.connect`; the same calls are timed around the client, with the",
        "histogram that `report` uses, and by the agent from the question's arrival to the answer's departure. All three in one run, written by",
        "`python -m tests.benchmarks.loadgen`, which fails where the second differs from the first by more than 3 %. The agent's own figure leaves out the way",
        "to it and back, and with it the waits of the program for a processor. Where it may (root, a control group), all this comes before other work.",
        "",
        "| matrix products | questions | LoadGen p90 ms | ours p90 ms | apart | agent's p90 ms | apart |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.layers} | {row.queries} | {row.loadgen_ms:.3f} | {row.client_ms:.3f} | {row.apart:+.2%} | {row.agent_ms:.3f} | {row.agent_apart:+.2%} |"
        for row in rows
    ]
    lines += [
        "",
        f"`edgesdk bench` itself, beside LoadGen: a restart of the one and a process of the other in turn, {ROUNDS} rounds of {SECONDS:g} s each, of the same",
        f"session with one thread (a network of 19 million multiply-accumulates, {BATCH} images at once, no agent). The ratio is the median of the rounds',",
        "held to 3 %, with the 99 % interval of their mean. LoadGen calls through its Python binding, which costs about 9 µs a question here: with a single",
        "image, 0.45 ms, it sees 2 to 3 % more than the model takes.",
        "",
        "| scenario | figure | LoadGen | bench | apart | 99 % |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {one.scenario} | {METRICS[one.scenario]} | {one.loadgen:.3f} | {one.ours:.3f} | {one.ratio - 1:+.2%} | {one.low - 1:+.2%} … {one.high - 1:+.2%} |"
        for one in beside
    ]
    about = f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    return "\n".join([*lines, "", f"{about}. The machine was shared; the agreement is what counts, not the times.", ""])


if __name__ == "__main__":
    sys.exit(main())
