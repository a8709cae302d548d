"""Do our latencies agree with MLPerf LoadGen's? One run, SingleStream: LoadGen times each question, so do we around the same call, and so does the agent.

python -m tests.benchmarks.loadgen          # writes docs/loadgen.md; exit code 1 where they differ by more than 3 %
"""

from __future__ import annotations

import datetime
import os
import platform
import re
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
from tests.agent.toys import Agent, layers, make

PAGE = Path(__file__).parents[2] / "docs" / "loadgen.md"
WITHIN = 0.03
LAYERS = (8, 64, 512)  # of 256 × 256 on 16 rows: from some hundred microseconds to some ten milliseconds
QUERIES = 1000
WIDTH, ROWS = 256, 16


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


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        agent = Agent(Path(folder, "home"))
        agent.start()
        try:
            rows = [measured(agent, Path(folder), count) for count in LAYERS]
        finally:
            agent.stop()
    PAGE.write_text(page(rows), encoding="utf-8")
    print(page(rows))
    return int(any(abs(row.apart) > WITHIN for row in rows))


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
        ours, theirs_ns = single_stream(lambda: asked(x), folder / f"{name}-logs")
    after = counted(agent, name)
    return Row(count, ours.count, theirs_ns / 1e6, ours.percentiles().p90, without(after, before).percentiles().p90)


def single_stream(ask: Any, logs: Path) -> tuple[Histogram, int]:
    """Our histogram of the calls that LoadGen made, and its own p90 in nanoseconds."""
    ours = Histogram()

    def issue(samples: Any) -> None:
        for sample in samples:
            begin = time.perf_counter_ns()
            ask()
            ours.record(time.perf_counter_ns() - begin)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.SingleStream, loadgen.TestMode.PerformanceOnly
    settings.min_query_count, settings.min_duration_ms = QUERIES, 0
    settings.single_stream_expected_latency_ns = 1_000_000
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
    summary = (logs / "mlperf_log_summary.txt").read_text()
    found = re.search(r"^90(?:\.00)?(?:th)? percentile latency \(ns\)\s*:\s*(\d+)", summary, re.MULTILINE)
    assert found, summary
    return ours, int(found[1])


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


def page(rows: list[Row]) -> str:
    lines = [
        "# Our latencies and MLPerf LoadGen's",
        "",
        "LoadGen (SingleStream, PerformanceOnly) asks a model of the agent through `edge_agent.connect`; the same calls are timed around the client, with the",
        "histogram that `report` uses, and by the agent from the question's arrival to the answer's departure. All three in one run, written by",
        "`python -m tests.benchmarks.loadgen`, which fails where the second differs from the first by more than 3 %. The agent's own figure leaves out the way",
        "to it and back, and with it the waits of the program for a processor: on this machine others had work, too.",
        "",
        "| matrix products | questions | LoadGen p90 ms | ours p90 ms | apart | agent's p90 ms | apart |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.layers} | {row.queries} | {row.loadgen_ms:.3f} | {row.client_ms:.3f} | {row.apart:+.2%} | {row.agent_ms:.3f} | {row.agent_apart:+.2%} |"
        for row in rows
    ]
    about = f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    return "\n".join([*lines, "", f"{about}. The machine was shared; the agreement is what counts, not the times.", ""])


if __name__ == "__main__":
    sys.exit(main())
