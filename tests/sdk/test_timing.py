"""What `bench` says of a model: when it stops, what its intervals are worth, and what it does on a real process, a device and at Ctrl-C."""

import contextlib
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.latency import Histogram
from edgesdk import measuring, past, results, timing
from edgesdk.cli import app
from edgesdk.comparison import LOOKS
from edgesdk.errors import DeviceError, ModelError, ProjectError
from edgesdk.measuring import Interrupted, Measured, Wanted
from edgesdk.profiles import find
from edgesdk.timing import bench, interval, is_name, restarts
from edgesdk.transport import Completed
from tests.bundles import write_bundle
from tests.sdk.small_models import DATA
from tests.sdk.test_device import scripted
from tests.sdk.test_interrupts import START

MODEL = DATA / "resnet8_mnist.onnx"


def measured(p50_ms: float = 1.0, **changed: Any) -> Measured:
    histogram = Histogram()
    histogram.record(round(p50_ms * 1e6))
    moment = {"load": 0.0}
    restart = {
        **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms"), p50_ms),
        "throughput": 1000 / p50_ms,
        "runs": 1,
        "warmup_runs": 9,
        "warmup_s": 0.3,
        "steady": True,
        "disturbed": [],
        "histogram": histogram.to_dict(),
        "state": {"before": moment, "after": moment},
        **changed.pop("restart", {}),
    }
    about = {"provider": "CPUExecutionProvider", "threads": 1, "onnxruntime": "1.23.2", "device": "Raspberry Pi 5", **changed.pop("about", {})}
    return Measured.model_validate({"restart": restart, "about": about, **changed})


def median(one: Measured) -> float:
    return one.restart.p50_ms


def test_a_baseline_fails_a_build_that_is_slower_for_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RESTART_S", 0.15)
    monkeypatch.chdir(tmp_path)
    asked = ["bench", "local", str(MODEL), "--limit-s", "1"]
    despite = ["--despite", "disturbed,state"]  # of this machine others may ask what they like
    done = CliRunner().invoke(app, [*asked, "-o", "main.json"])
    assert done.exit_code == 0, done.output
    same = CliRunner().invoke(app, [*asked, "--baseline", "main.json", *despite, "--room", "2", "--json"])
    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["baseline"]["metric"] == "p50_ms"
    unlike = CliRunner().invoke(app, [*asked, "--baseline", "main.json", "--despite", "disturbed,state", "--per-query", "2", "--scenario", "offline", "--json"])
    assert unlike.exit_code == 1
    shown = json.loads(unlike.stdout)
    assert shown["latency_ms"]["p50"] > 0, "what was measured is not lost"
    assert "not of the same conditions" in shown["baseline"]["error"]["message"]
    assert "not of the same conditions" in unlike.stderr
    document = json.loads(Path("main.json").read_text())
    for restart in document["restarts"]:
        restart["p50_ms"] /= 20
    Path("main.json").write_text(json.dumps(document))
    worse = CliRunner().invoke(app, [*asked, "--baseline", "main.json", *despite])
    assert worse.exit_code == 1
    assert "is slower than" in worse.stdout


def test_two_devices_are_compared_with_all_that_they_cannot_have_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RESTART_S", 0.15)
    found = past.on_two(str(MODEL), str(DATA / "resnet20_fashion.onnx"), ("local", "local"), limit_s=1, despite=["inputs", "disturbed"])
    assert (found.verdict, found.restarts[0] >= 5) == ("slower", True)


def drawing(spread: float, seed: int) -> Callable[[], Measured]:
    drawn = random.Random(seed)
    return lambda: measured(math.exp(drawn.gauss(0, spread)))


def test_it_stops_when_the_interval_is_narrow_or_there_is_no_more_time() -> None:
    assert [(len(done), why) for done, why in [restarts(drawing(1e-4, 0), median, within=0.02, limit_s=1e9)]] == [(5, "narrow enough")]
    done, why = restarts(drawing(0.5, 1), median, within=0.02, limit_s=1e9)
    assert (len(done), why) == (max(LOOKS), "most restarts")
    done, why = restarts(drawing(0.5, 1), median, within=0.02, limit_s=0)
    assert (len(done), why) == (5, "time is up")
    done, _ = restarts(drawing(0.02, 4), median, within=0.02, limit_s=1e9)
    assert len(done) in LOOKS and len(done) > 5


def test_an_interval_holds_what_it_promises_although_it_is_looked_at_again_and_again() -> None:
    missed = 0
    for seed in range(1500):
        done, _ = restarts(drawing(0.03, seed), median, within=0.02, limit_s=1e9)
        low, high = interval([median(one) for one in done])
        missed += not low <= 1 <= high
    assert missed <= 28  # 1 % of 1500, and more than three standard deviations


def test_what_is_interrupted_keeps_what_there_is() -> None:
    def after(count: int, raised: BaseException) -> Callable[[], Measured]:
        left = iter(range(count))

        def run() -> Measured:
            if next(left, None) is None:
                raise raised
            return measured()

        return run

    assert [len(restarts(after(3, Interrupted(measured(2.0))), median, within=0.02, limit_s=9)[0])] == [4]
    done, why = restarts(after(3, KeyboardInterrupt()), median, within=0.02, limit_s=9)
    assert (len(done), why) == (3, "interrupted")
    with pytest.raises(KeyboardInterrupt):
        restarts(after(0, KeyboardInterrupt()), median, within=0.02, limit_s=9)


def test_a_name_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "bundled")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    assert [is_name(what) for what in ("ocr", "folder", "bundled", "file", "a.onnx", "b.tar", "bundles/ocr", Path("ocr"))] == [True, True, *[False] * 6]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scenario": "server"}, "has a target rate"),
        ({"target_qps": 5.0}, "and no other has"),
        ({"per_query": 4}, "asks one sample at a time"),
        ({"scenario": "server", "target_qps": 5.0, "per_query": 4}, "asks one sample at a time"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ProjectError, match=said):
        bench("local", MODEL, **settings)


def test_a_file_is_measured_here_and_the_result_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RESTART_S", 0.2)
    found = bench(None, MODEL, limit_s=0.1, within=1e-6)  # which nothing is
    assert (found.kind, found.via, found.host, found.stopped) == ("bench", "session", None, "time is up")
    assert len(found.restarts) == 5 and len({json.dumps(one.histogram) for one in found.restarts}) == 5
    assert found.histogram["count"] == sum(one.runs for one in found.restarts)
    low, high = found.interval_ms["p50"]
    assert low <= np.exp(np.mean(np.log([one.p50_ms for one in found.restarts]))) <= high
    assert found.latency_ms.p50 <= found.latency_ms.p99 <= found.latency_ms.p999 <= found.latency_ms.max
    assert found.throughput_interval is not None and found.throughput > 0
    assert found.load_ms and found.first_answer_ms and found.peak_bytes
    assert found.energy_j is not None or found.energy_unknown
    assert (found.inputs.source, found.inputs.count) == ("generated samples", 16)
    assert found.settings["providers"] and found.provider == "CPUExecutionProvider" and found.nodes
    found.save(tmp_path / "x.json")
    assert results.load(tmp_path / "x.json") == found


def test_what_is_deployed_runs_as_its_bundle_says() -> None:
    with pytest.raises(ProjectError, match="`ocr` is deployed, and runs as its bundle says"):
        bench("local", "ocr", profile=find("x86-cpu"))


def test_a_bundle_brings_name_release_and_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RESTART_S", 0.2)
    x = np.ones((3, 8), np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    found = bench("local", write_bundle(tmp_path / "b", release=7), samples=str(tmp_path / "x.npz"), scenario="offline", limit_s=0.1)
    assert (found.name, found.release, found.scenario, found.per_query) == ("toy", 7, "offline", 8)
    assert (found.inputs.source, found.inputs.count) == (str(tmp_path / "x.npz"), 3)
    assert any("one batch" in note for note in found.notes)
    assert found.throughput * found.latency_ms.mean / 1000 > 2


def test_a_model_that_does_not_run_here(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with measuring.here({"model.onnx": b"noise"}, None, [{"x": np.ones(1)}]) as place, pytest.raises(ModelError, match="does not run here"):
        place.measure(Wanted("single-stream", 0.1))


def test_what_is_to_be_noted() -> None:
    disturbed = [measured(restart={"steady": False, "runs": 9000, "disturbed": ["others kept 2.0 cores busy"]}) for _ in range(2)]
    subject = timing._Subject(measuring.served("pi", "ocr", None), "ocr", None, None, None)
    wanted = Wanted("server", 2, target_qps=5000)
    told = list(timing._notes(subject, [*disturbed, *[measured(about={"client": "http"}) for _ in range(2)]], wanted))
    assert [
        any(words in note for note in told) for words in ("served model was not", "HTTP", "2 of 4 processes never got steady", "does not keep up", "too few")
    ] == [True] * 5
    quiet = [measured() for _ in range(8)]
    assert timing._disturbed([timing._restart(one) for one in [*disturbed, *quiet]]) == ()
    (said,) = timing._disturbed([timing._restart(one) for one in [*disturbed, *disturbed, *quiet]])
    assert said == "4 of 12 restarts were disturbed, such as: others kept 2.0 cores busy"


def test_whether_a_device_keeps_up_is_no_matter_of_how_many_questions_came() -> None:
    drawn, wanted = random.Random(0), Wanted("server", 2, target_qps=50)
    idle = [[drawn.gauss(100, 10) for _ in range(5)] for _ in range(200)]  # questions of a restart; each is answered at once

    def keeps_up(seconds: float, questions: list[float], *, stopped: bool = False) -> bool:
        restarts = [measured(restart={"runs": round(count), "throughput": count / seconds}, stopped=stopped) for count in questions]
        return timing._keeps_up(restarts, wanted)

    assert sum(sum(questions) / 10 < 0.95 * 50 for questions in idle) > 10  # by the rate alone these would not
    assert all(keeps_up(2.005, questions) for questions in idle)
    assert not any(keeps_up(2.2, questions) for questions in idle)
    assert keeps_up(1.1, [50], stopped=True)
    assert not keeps_up(1.1, [20], stopped=True)


def test_a_percentile_that_lies_outside_of_its_interval_is_explained() -> None:
    def told(*medians_ms: float) -> list[str]:
        restarts = [measured(each) for each in medians_ms]
        whole = timing.merged(Histogram.from_dict(one.restart.histogram) for one in restarts)
        return list(timing._outside(timing._latency([timing._restart(one) for one in restarts], whole), timing._intervals(restarts)))

    assert told(*[1.0, 1.02] * 10) == []
    (said,) = told(*[1.0, 2.0] * 10)
    assert said.startswith("p50 and p90 and p99 of all answers lies outside")


def test_a_percentile_that_is_the_slowest_answer_is_called_that() -> None:
    assert list(timing._few([2000])) == []
    assert list(timing._few([9])) == ["p90 and p99 and p99.9: the slowest of 9 answers, it takes 10 and 100 and 1,000 to tell"]
    assert list(timing._few([50, 60])) == [
        "p99.9: the slowest of 110 answers, it takes 1,000 to tell",
        "the interval of p99 is that of the slowest answer of each restart: one has only 50",
    ]


def test_an_agent_that_cannot_measure_yet_is_named() -> None:
    pi, transport = scripted({"missing": []}, Completed(2, b"", "edge-agent: error: argument VERB: invalid choice: 'measure'"))
    place = measuring._There(pi, "0" * 16, {"name": "ocr"}, [], timing.silent)
    with pytest.raises(DeviceError, match="the agent of `pi` does not know `measure` as we say it") as caught:
        place.measure(Wanted("single-stream", 1))
    assert "edgesdk setup pi" in caught.value.hint
    assert [argv[4] for argv in transport.asked] == ["missing", "measure"]


def test_no_question_disturbs_a_measurement_and_what_fails_there_is_said() -> None:
    failed = {"failed": {"message": "there is no model ocr", "hint": "deploy it"}}
    pi, transport = scripted({"missing": []}, {"job": "1"}, {"state": "running", "stage": "measure"}, {"state": "done", "stage": "measure", "result": failed})
    place = measuring._There(pi, "0" * 16, {"name": "ocr"}, [], timing.silent)
    with pytest.raises(DeviceError, match="`pi` cannot measure it: there is no model ocr"):
        place.measure(Wanted("single-stream", 1))
    assert [argv[-2:] for argv in transport.asked[2:]] == [["--wait", "20"]] * 2
    assert "--stage" not in transport.asked[3]


@pytest.mark.parametrize(
    "changed",
    [
        {"p50_ms": math.inf},
        {"p50_ms": -1},
        {"throughput": 0},
        {"throughput": 1e308},
        {"energy_j": 1e308},
        {"runs": 0},
        {"histogram": {}},
        {"histogram": {"count": 2, "sum_ns": 1, "min_ns": 1, "max_ns": 1, "buckets": [[1, 1]]}},
        {"histogram": {"count": 10**400, "sum_ns": 0, "min_ns": 0, "max_ns": 0, "buckets": [[1, 10**400]]}},
        {"histogram": {"count": 0, "sum_ns": 0, "min_ns": 0, "max_ns": 0, "buckets": []}},
        {"state": {}},
        {"disturbed": "x"},
    ],
)
def test_figures_that_make_no_sense(changed: dict[str, Any]) -> None:
    told = measured().to_dict()
    told["restart"].update(changed)
    pi, _ = scripted({"missing": []}, {"job": "1"}, {"state": "done", "stage": "measure", "result": told})
    with pytest.raises(DeviceError, match="makes no sense"):
        measuring._There(pi, "0" * 16, {"name": "ocr"}, [], timing.silent).measure(Wanted("single-stream", 1))


def test_what_a_malicious_device_says_of_its_settings_steers_no_terminal() -> None:
    told = measured(about={"nodes": "\x1b[2J", "settings": {"\x1b]0;": ["\x9b2J", {"deep": [[[["x"]]]]}, 3, math.nan]}})
    assert told.about.nodes == "\\x1b[2J"
    assert told.about.settings == {"\\x1b]0;": ["\\x9b2J", {"deep": ["[[['x']]]"]}, 3, None]}


@pytest.mark.parametrize("argv", [["bench", "local", str(MODEL)], ["compare", str(MODEL), str(MODEL)], ["evaluate", str(MODEL), "--against", str(MODEL)]])
def test_a_result_gets_a_name_by_which_compare_knows_it_before_the_long_work(tmp_path: Path, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*argv, "-o", "result.txt"])
    assert done.exit_code == 1
    assert "`result.txt` is no name of a result" in done.output
    assert not list(tmp_path.iterdir())


def test_the_table_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RESTART_S", 0.2)
    done = CliRunner().invoke(app, ["bench", "local", str(MODEL), "--limit-s", "1", "-o", str(tmp_path / "x.json")])
    assert done.exit_code == 0, done.output
    for words in ("p999", "99 % over restarts", "5 restarts", "latencies  ", "single-stream: ", "asked: generated", "energy", "others kept"):
        assert words in done.stdout
    assert results.load(tmp_path / "x.json").kind == "bench"
    assert CliRunner().invoke(app, ["bench", "local", str(MODEL), "--sustained", "1s"]).exit_code == 2
    assert CliRunner().invoke(app, ["bench", "local", str(MODEL), "--scenario", "poem"]).exit_code == 2


def measures(parent: int) -> bool:
    """Whether it has started the process that does."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(parent) and b"measurer" in stat.with_name("cmdline").read_bytes():
                return True
    return False


@pytest.mark.slow
def test_ctrl_c_ends_a_sustained_run_with_what_there_is() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", START, "bench", "local", str(MODEL), "--sustained", "10m", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.read(1) == "!"
        until = time.monotonic() + 60
        while not measures(child.pid) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(3)
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, said
    told = json.loads(out)
    assert (told["kind"], told["stopped"]) == ("sustained", "interrupted")
    assert told["curve"] and told["levels"] and told["throttled_at_s"] is None
    assert "Traceback" not in said and "this is what there was by then" in said
