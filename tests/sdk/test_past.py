"""Results against each other: what is unlike is refused by its name, and verdicts are seldom wrong."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.latency import Histogram
from edgesdk import timing
from edgesdk.cli import app
from edgesdk.errors import ProjectError
from edgesdk.past import WORDS, compare
from edgesdk.results import Conditions, Inputs, Latency, Restart, Result, State, read

QUIET = Conditions(governor="performance", mhz=1500, temperature_c=50, throttled=(), load=0.1)
COUNTED = Histogram()
COUNTED.record(10_000_000)


def restart(ms: float, at: Conditions = QUIET) -> Restart:
    return Restart(
        p50_ms=ms,
        p90_ms=ms * 1.1,
        p99_ms=ms * 1.5,
        throughput=1000 / ms,
        runs=100,
        warmup_runs=20,
        warmup_s=0.2,
        steady=True,
        load_ms=5.0,
        first_answer_ms=20.0,
        peak_bytes=1 << 20,
        state=State(before=at, after=at),
        disturbed=(),
        histogram=COUNTED.to_dict(),
    )


def result(times: list[float], at: Conditions = QUIET, **told: Any) -> Result:
    known: dict[str, Any] = {
        "kind": "bench",
        "name": "ocr",
        "digest": "sha256:" + "0" * 64,
        "release": 1,
        "host": "pi",
        "device": "Raspberry Pi 5",
        "cpu": "Cortex-A76",
        "provider": "CPUExecutionProvider",
        "nodes": "",
        "threads": 4,
        "onnxruntime": "1.32.0",
        "settings": {"intra_op_threads": 4},
        "scenario": "single-stream",
        "target_qps": None,
        "inputs": Inputs(source="golden", count=4, digest="sha256:" + "1" * 64),
        "via": "agent",
        "started": "2026-11-30T00:00:00+00:00",
        "seconds": 10.0,
        "stopped": "narrow enough",
        "disturbed": (),
        "latency_ms": Latency(p50=10, p90=11, p99=15, p999=16, max=17, mean=10, std=1),
        "interval_ms": {"p50": (9.0, 11.0)},
        "throughput": 100.0,
        "throughput_interval": None,
        "load_ms": 5.0,
        "first_answer_ms": 20.0,
        "peak_bytes": 1 << 20,
        "energy_j": None,
        "energy_unknown": "no sensor",
        "histogram": COUNTED.to_dict(),
    }
    return Result(**{**known, **told}, restarts=tuple(restart(ms, at) for ms in times))


STEADY = [10.0, 10.1, 9.9, 10.05, 9.95]


def test_a_result_differs_in_nothing_from_itself() -> None:
    found = compare(result(STEADY), result(STEADY))
    assert (found.verdict, found.speedup, found.metric) == ("no difference seen", 1.0, "p50_ms")
    assert found.low < 1 < found.high
    assert found.despite == ()
    assert not found.slower_by(0.05)


def test_what_is_slower_is_told_with_its_interval() -> None:
    found = compare(result(STEADY), result([ms * 1.2 for ms in STEADY]))
    assert found.verdict == "slower"
    assert found.speedup == pytest.approx(1 / 1.2)
    assert found.speedups["throughput"][0] == pytest.approx(1 / 1.2)
    assert [row["metric"] for row in found.rows()] == ["p50_ms", "p90_ms", "p99_ms", "throughput"]
    assert all(row["low"] < row["speedup"] < row["high"] for row in found.rows())
    assert found.slower_by(0.05)
    assert not found.slower_by(0.25)
    assert compare(result([ms * 1.2 for ms in STEADY]), result(STEADY)).verdict == "faster"


def test_offline_is_judged_by_how_many_answers_there_are() -> None:
    slow = result(STEADY, scenario="offline")
    quick = replace(slow, restarts=tuple(replace(one, throughput=one.throughput * 2) for one in slow.restarts))
    found = compare(slow, quick)
    assert (found.metric, found.verdict) == ("throughput", "faster")
    assert found.speedup == pytest.approx(2.0)
    assert found.speedups["p50_ms"][0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("what", "other", "said"),
    [
        ("scenario", {"scenario": "offline"}, "single-stream and offline"),
        ("scenario", {"target_qps": 20.0}, "None and 20.0"),
        ("via", {"via": "session"}, "agent and session"),
        ("device", {"device": "Jetson"}, "Raspberry Pi 5 and Jetson"),
        ("provider", {"provider": "CUDAExecutionProvider"}, "CUDAExecutionProvider"),
        ("threads", {"threads": 2}, "the threads are 4 and 2"),
        ("settings", {"settings": {"intra_op_threads": 4, "memory_arena": False}}, "memory_arena None and False"),
        ("onnxruntime", {"onnxruntime": "1.33.0"}, "1.32.0 and 1.33.0"),
        ("inputs", {"inputs": Inputs(source="generated", count=4, digest="sha256:" + "2" * 64)}, "golden"),
        ("disturbed", {"disturbed": ("others kept 1.9 cores busy",)}, "1.9 cores"),
        ("state", {"at": replace(QUIET, governor="powersave")}, "performance and powersave"),
        ("state", {"at": replace(QUIET, mhz=1200)}, "1500 MHz and 1200"),
        ("state", {"at": replace(QUIET, temperature_c=80)}, "50 °C and 80"),
        ("state", {"at": replace(QUIET, load=1.5)}, "0.1 cores busy and 1.5"),
        ("state", {"at": replace(QUIET, throttled=("soft temperature limit",))}, "nothing and soft temperature limit"),
    ],
)
def test_what_is_unlike_is_refused_by_its_name_and_compared_in_spite_of_it(what: str, other: dict[str, Any], said: str) -> None:
    with pytest.raises(ProjectError) as refused:
        compare(result(STEADY), result(STEADY, **other))
    assert said in str(refused.value)
    assert f"--despite {what}" in refused.value.hint
    found = compare(result(STEADY), result(STEADY, **other), despite=[what])
    assert said in found.despite[0]


def test_another_board_may_have_another_clock() -> None:
    other = result(STEADY, replace(QUIET, mhz=900, temperature_c=80), device="Jetson", host="jetson")
    found = compare(result(STEADY), other, despite=["device"])
    assert (found.before, found.after) == ("ocr release 1 on pi", "ocr release 1 on jetson")


def test_what_a_device_does_not_tell_is_no_difference() -> None:
    assert compare(result(STEADY), result(STEADY, replace(QUIET, mhz=None, temperature_c=None, load=None, throttled=None))).despite == ()


def test_too_little_is_not_judged() -> None:
    with pytest.raises(ProjectError, match="4 restarts"):
        compare(result(STEADY[:4]), result(STEADY))
    with pytest.raises(ProjectError, match=r"p50_ms is 0\.0"):
        compare(replace(result(STEADY), restarts=tuple(replace(one, p50_ms=0.0) for one in result(STEADY).restarts)), result(STEADY))
    with pytest.raises(ProjectError, match="`colour`"):
        compare(result(STEADY), result(STEADY), despite=["colour"])
    assert "state" in WORDS


def test_a_result_is_seldom_told_from_another_of_the_same_model() -> None:
    drawn, wrong = random.Random(0), 0
    for _ in range(2000):
        counts = drawn.choice([(5, 5), (5, 14), (28, 7)])
        spreads = drawn.choice([(0.01, 0.01), (0.05, 0.005)])
        sides = [[10 * (1 + drawn.gauss(0, spread)) for _ in range(count)] for count, spread in zip(counts, spreads, strict=True)]
        wrong += compare(result(sides[0]), result(sides[1])).verdict != "no difference seen"
    assert wrong <= 35  # 1 % of 2000, and three standard deviations


def test_the_command_line_fails_a_build_by_a_sure_regression_alone(tmp_path: Path) -> None:
    for name, factor in (("base", 1.0), ("same", 1.01), ("worse", 1.2)):
        result([ms * factor for ms in STEADY]).save(tmp_path / f"{name}.json")

    def asked(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "edgesdk.cli", "compare", *more], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert asked("base.json", "same.json", "--fail-if-slower").returncode == 0
    failed = asked("base.json", "worse.json", "--fail-if-slower", "--json", "-o", "judged.json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["verdict"] == "slower"
    assert json.loads(failed.stdout) == read(tmp_path / "judged.json")
    assert asked("base.json", "worse.json", "--fail-if-slower", "--room", "0.3").returncode == 0
    assert "is slower" in asked("base.json", "worse.json").stdout
    mixed = asked("base.json", "model.onnx")
    assert mixed.returncode == 1
    assert "two results, or two models" in mixed.stderr
    other = result(STEADY, threads=1)
    other.save(tmp_path / "other.json")
    refused = asked("base.json", "other.json")
    assert refused.returncode == 1
    assert "the threads are 4 and 1" in refused.stderr
    assert asked("base.json", "other.json", "--despite", "threads").returncode == 0
    assert asked("base.json", "other.json", "--on", "local").returncode == 1


@pytest.mark.parametrize(
    ("times", "arguments", "told"),
    [
        (STEADY, ["--despite", "phase of the moon"], "nothing is called `phase of the moon`"),
        (STEADY[:2], [], "has 2 restarts, a comparison wants 5"),
        (STEADY, ["-o", "main.json"], "`main.json` is what is read"),
        (STEADY, ["--sustained", "30m"], "--sustained is one run"),
    ],
)
def test_what_is_known_of_a_baseline_is_said_before_the_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: list[float], arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "bench", pytest.fail)
    result(times).save(Path("main.json"))
    done = CliRunner().invoke(app, ["bench", "local", "model.onnx", "--baseline", "main.json", *arguments])
    assert done.exit_code == 1
    assert told in done.stderr


def test_a_result_that_is_compared_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old.json", "new.json"):
        result(STEADY).save(Path(name))
    done = CliRunner().invoke(app, ["compare", "old.json", "new.json", "-o", "new.json"])
    assert done.exit_code == 1
    assert "`new.json` is what is read" in done.stderr
