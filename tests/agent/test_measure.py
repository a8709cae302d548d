"""A model measured on a real agent: what is told, in each scenario, and what is refused; and how time is counted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_races import SESSION, X, described, packed, put
from toys import CPU_PROFILE, Agent, gather, layers, make, wait_until

from edge_agent import api, measurements
from edge_agent.bundle import BundleError, digest_of
from edge_agent.config import Limits
from edge_agent.connection import BadRequest, NoSuchModel
from edge_agent.deployments import Deployments
from edge_agent.jobs import Job
from edge_agent.journal import Journal
from edge_agent.latency import Histogram
from edge_agent.measure import FEWEST, Deployed, Wanted, arriving, one_after_the_other, warmed
from edge_agent.models import Models
from edge_agent.races import Races
from edge_agent.store import Store
from edge_agent.windows import Run, Window
from edge_agent.zygote import Zygote

WANTED = {"scenario": "single-stream", "limit_s": 0.5, "window_s": 0.1}


def document(model: bytes | None = None, feeds: bytes | None = None, **changed: Any) -> dict[str, Any]:
    feeds = packed(X) if feeds is None else feeds
    model = layers(2) if model is None else model
    wanted = {**WANTED, **changed.pop("wanted", {})}
    return {"model": {"model.onnx": described(model)}, "feeds": described(feeds), "inputs": ["x"], "profile": CPU_PROFILE, "wanted": wanted, **changed}


def measured(agent: Agent, model: bytes | None = None, feeds: bytes | None = None, **changed: Any) -> Any:
    """The job at its end."""
    put(agent, layers(2) if model is None else model, packed(X) if feeds is None else feeds)
    return agent.job(agent.ask("POST", f"/edge/races/{SESSION}/measure", document(model, feeds, **changed)))


def never(_: Window) -> bool:
    return False


@pytest.mark.e2e
def test_files_are_opened_measured_and_taken_away(shared: Agent) -> None:
    status = shared.ask("GET", "/edge/status")
    ended = measured(shared)
    assert (ended["state"], ended["stage"], ended["error"]) == ("done", "measure", None)
    told = ended["result"]
    restart = told["restart"]
    assert 0 < restart["p50_ms"] <= restart["p90_ms"] <= restart["p99_ms"]
    histogram = Histogram.from_dict(restart["histogram"])
    assert histogram.count == restart["runs"] >= FEWEST
    assert histogram.percentiles().p50 == pytest.approx(restart["p50_ms"], rel=0.02)
    assert 0.4 < restart["throughput"] * histogram.sum_ns / histogram.count / 1e9 <= 1  # of the time it is busy with queries
    assert restart["warmup_runs"] >= 9 and restart["load_ms"] > 0 and restart["first_answer_ms"] > 0
    assert 20 << 20 < restart["peak_bytes"] < 4 << 30
    assert set(restart["state"]) == {"before", "during", "after"}
    assert set(told["interval_ms"]) == {"p50", "p90", "p99"}
    assert told["curve"] == [] and told["stopped"] is False and told["phases_ms"] is None
    about = told["about"]
    assert (about["provider"], about["threads"], about["stacked"]) == ("CPUExecutionProvider", 1, False)
    assert about["settings"]["runtime"] == CPU_PROFILE["runtime"]
    assert about["device"]
    shared.ask("DELETE", f"/edge/races/{SESSION}")
    assert not (shared.home / "races" / SESSION).exists()
    after = shared.ask("GET", "/edge/status")
    assert [model["digest"] for model in after["models"]] == [model["digest"] for model in status["models"]]


@pytest.mark.e2e
def test_a_deployed_model_is_asked_as_programs_ask_it(shared: Agent) -> None:
    put(shared)
    before = shared.ask("GET", "/edge/report/linear")["models"][0]["count"]
    ended = shared.job(shared.ask("POST", f"/edge/races/{SESSION}/measure", {"name": "linear", "wanted": WANTED}))
    told = ended["result"]
    assert ended["state"] == "done" and "failed" not in told, ended
    assert told["about"]["inputs"]["source"] == "golden" and told["about"]["inputs"]["count"] == 2
    assert (told["about"]["name"], told["about"]["release"], told["about"]["client"]) == ("linear", 1, "shm")
    assert set(told["phases_ms"]) == {"queue", "input", "run", "output"}
    assert 0 < told["phases_ms"]["run"] < told["restart"]["p50_ms"]
    assert told["restart"]["load_ms"] is None and told["restart"]["peak_bytes"] > 1 << 20
    counted = shared.ask("GET", "/edge/report/linear")["models"][0]["count"] - before
    assert counted == told["restart"]["runs"] + told["restart"]["warmup_runs"] + 1  # and the first answer
    feeds = packed({"x": np.ones((3, 4), np.float32)})
    put(shared, feeds)
    asked = {"name": "linear", "feeds": described(feeds), "inputs": ["x"], "wanted": WANTED}
    assert shared.job(shared.ask("POST", f"/edge/races/{SESSION}/measure", asked))["result"]["about"].get("inputs") is None


@pytest.mark.e2e
def test_the_first_answer_is_that_of_a_program_which_has_its_question(shared: Agent, tmp_path: Path) -> None:
    class Slow(Deployed):
        def _golden(self) -> Any:
            time.sleep(2)
            return super()._golden()

    subject = Slow(shared.home, tmp_path, Wanted("single-stream", 1, 0.1), name="linear")
    subject.close()
    assert 0 < subject.own_facts()["first_answer_ms"] < 2000


def test_the_runtime_is_there_before_a_model_is_loaded(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from edge_agent import measure
def opens(*_):
    print("onnxruntime" in sys.modules, flush=True)
    raise SystemExit
print("onnxruntime" in sys.modules)
measure.worker.open_session = opens
measure.Opened(Path(sys.argv[1]), measure.Wanted("offline", 1, 0.1), model="model", feeds="feeds.npz", inputs=["x"], profile={})
"""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(layers(2))
    (tmp_path / "feeds.npz").write_bytes(packed(X))
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("via", ["session", "agent"])
@pytest.mark.parametrize(
    "wanted", [{"scenario": "multi-stream", "per_query": 4}, {"scenario": "offline", "per_query": 4}, {"scenario": "server", "target_qps": 100}]
)
def test_each_scenario(shared: Agent, via: str, wanted: dict[str, Any]) -> None:
    put(shared, layers(2), packed(X, X))
    asked = {"name": "linear", "wanted": {**WANTED, **wanted}} if via == "agent" else document(None, packed(X, X), wanted=wanted)
    told = shared.job(shared.ask("POST", f"/edge/races/{SESSION}/measure", asked))["result"]
    assert "failed" not in told, told
    restart = told["restart"]
    if wanted["scenario"] == "server":
        assert 20 <= restart["runs"] <= 90  # fifty, and chance
    else:
        assert told["about"]["stacked"] is (via == "session")
        histogram = Histogram.from_dict(restart["histogram"])
        assert 1 < restart["throughput"] * histogram.sum_ns / histogram.count / 1e9 <= 4  # samples at once


@pytest.mark.e2e
def test_a_run_that_is_told_to_stop_gives_what_there_is(agent: Agent) -> None:
    put(agent, layers(2), packed(X))
    started = agent.ask("POST", f"/edge/races/{SESSION}/measure", document(wanted={"limit_s": 600, "curve": True}))
    wait_until(lambda: agent.ask("GET", f"/edge/jobs/{started['job']}")["stage"] == "measure")
    time.sleep(0.5)
    assert agent.ask("POST", f"/edge/races/{SESSION}/stop") == {"stopped": True}
    told = agent.job(started, timeout_s=20)["result"]
    assert told["stopped"] is True
    curve = told["curve"]
    assert len(curve) >= 3 and sum(window["runs"] for window in curve) == told["restart"]["runs"]
    assert curve[0]["t_s"] == 0
    assert all(curve[place]["t_s"] + curve[place]["seconds"] <= curve[place + 1]["t_s"] + 1e-3 for place in range(len(curve) - 1))
    assert agent.ask("POST", f"/edge/races/{SESSION}/stop") == {"stopped": False}
    with pytest.raises(NoSuchModel, match="there is no race"):
        agent.ask("POST", "/edge/races/fedcba9876543210/stop")


@pytest.mark.e2e
def test_what_does_not_run_here_is_a_result_and_says_why(shared: Agent, tmp_path: Path) -> None:
    told = measured(shared, b"no model")["result"]["failed"]
    assert "cannot open the model" in told["message"] or "no ONNX" in told["message"], told
    wrong = packed({"x": np.ones((2, 3), np.float32)})
    assert "`x` is float32" in measured(shared, None, wrong)["result"]["failed"]["message"]
    bad = packed({"x": np.full(1, 99, np.int64)})
    put(shared, gather(), bad)
    asked = {**document(gather(), bad), "inputs": ["i"]}
    assert "could not run the model" in shared.job(shared.ask("POST", f"/edge/races/{SESSION}/measure", asked))["result"]["failed"]["message"]
    nobody = shared.job(shared.ask("POST", f"/edge/races/{SESSION}/measure", {"name": "nobody", "wanted": WANTED}))["result"]["failed"]
    assert "nobody" in nobody["message"] and nobody["hint"]
    with pytest.raises(BadRequest, match="lacks the file"):
        shared.ask("POST", f"/edge/races/{SESSION}/measure", document(layers(7)))


@pytest.mark.e2e
def test_a_session_that_ends_ends_its_measurement_and_an_active_model_may_go_meanwhile(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "b", name="gone"))["state"] == "done"
    put(agent)
    started = agent.ask("POST", f"/edge/races/{SESSION}/measure", {"name": "gone", "wanted": {**WANTED, "limit_s": 600}})
    wait_until(lambda: agent.ask("GET", f"/edge/jobs/{started['job']}")["stage"] == "measure")
    agent.ask("DELETE", f"/edge/races/{SESSION}")
    assert "the program that asked gone was killed" in agent.job(started, timeout_s=20)["result"]["failed"]["message"]


def put_into(tmp_path: Path) -> tuple[Races, Deployments]:
    """Without an agent around them."""
    store, journal = Store(tmp_path), Journal(tmp_path)
    deployments = Deployments(tmp_path, store, Models(tmp_path, store, journal, Limits(), Zygote(tmp_path)), journal)
    races = Races(tmp_path, deployments)
    races.missing(SESSION, [])
    for data in (layers(2), packed(X)):
        races.blobs(SESSION).receive(digest_of(data), len(data), 0, [data])
    return races, deployments


@pytest.mark.e2e
def test_one_that_waits_for_its_turn_when_it_is_told_to_stop_is_short(tmp_path: Path) -> None:
    races, deployments = put_into(tmp_path)
    try:
        with deployments._holding(Job("activate x")):
            job = races.measure(SESSION, document(wanted={"limit_s": 3600}))
            assert races.stop(SESSION) is False
        assert job.ended.wait(60) and job.result is not None
        assert job.result["stopped"] is True and job.result["restart"]["runs"] >= FEWEST
        again = races.measure(SESSION, document())
        assert again.ended.wait(60) and again.result is not None and again.result["stopped"] is False
    finally:
        deployments.close()


def test_one_whose_session_ended_while_it_waited_for_its_turn_is_not_begun(tmp_path: Path) -> None:
    races, deployments = put_into(tmp_path)
    with deployments._holding(Job("activate x")):
        job = races.measure(SESSION, document(wanted={"limit_s": 3600}))
        races.end(SESSION)
    assert job.ended.wait(20) and job.error is not None
    assert "the session ended" in job.error["message"]
    assert not (tmp_path / "races" / SESSION).exists()
    deployments.close()


@pytest.mark.e2e
def test_a_measurement_whose_host_is_gone_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "_FORSAKEN_S", 2.0)
    monkeypatch.setattr(measurements, "_LOOK_S", 0.1)
    races, deployments = put_into(tmp_path)
    try:
        job = races.measure(SESSION, document(wanted={"limit_s": 3600}))
        assert job.ended.wait(60) and job.result is not None
        assert job.result["stopped"] is True and job.result["restart"]["runs"] >= FEWEST
    finally:
        deployments.close()


def test_who_asks_how_it_goes_keeps_it_going() -> None:
    job = Job("measurement")
    job.asked = 0.0
    agent: Any = SimpleNamespace(deployments=SimpleNamespace(job=lambda _: job))
    request: Any = SimpleNamespace(query={})
    api._job(agent, request, ("1",))
    assert job.asked > 0


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {}},
        {"model": {"model.onnx": {"digest": "x", "size": 1}}},
        {"feeds": None},
        {"inputs": [1]},
        {"profile": {}},
        {"name": "../x"},
        {"wanted": {"scenario": "poem"}},
        {"wanted": {"limit_s": 0}},
        {"wanted": {"limit_s": 1e9}},
        {"wanted": {"limit_s": float("nan")}},
        {"wanted": {"window_s": 0}},
        {"wanted": {"per_query": 0}},
        {"wanted": {"per_query": True}},
        {"wanted": {"scenario": "server"}},
        {"wanted": {"target_qps": 5}},
        {"wanted": {"scenario": "server", "target_qps": -1}},
        {"wanted": {"scenario": "server", "target_qps": 5, "per_query": 2}},
    ],
)
def test_what_is_no_measurement(changed: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        measurements.parse({**document(), **changed} if "wanted" not in changed else document(**changed))


class Clock:
    """Time goes by only where somebody says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now_ns)

    def pass_by(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_at_least_five_queries_however_long_they_take(clock: Clock) -> None:
    run, windows = Run(), list[Window]()
    one_after_the_other(lambda _: clock.pass_by(2), Wanted("single-stream", 1, 0.1), run, lambda window: bool(windows.append(window)))
    assert run.runs == FEWEST == sum(window.runs for window in windows)
    assert run.seconds == pytest.approx(10)


def test_windows_count_all_time_but_what_closing_them_takes(clock: Clock) -> None:
    def slow(_: Window) -> bool:
        clock.pass_by(0.05)
        return False

    run = Run()
    one_after_the_other(lambda _: clock.pass_by(0.005), Wanted("single-stream", 1.0, 0.1), run, slow)
    assert run.runs / run.seconds == pytest.approx(200)
    assert run.seconds == pytest.approx(0.7, abs=0.01)  # of the second, a third went by between windows
    assert [round(window.begin_s, 3) for window in run.windows[:3]] == [0.0, 0.15, 0.3]


def test_a_warm_up_ends_when_it_is_steady_and_not_before(clock: Clock) -> None:
    run, is_steady = warmed(lambda number: clock.pass_by(0.002 + 0.02 / (1 + number / 8)))
    assert is_steady and run.seconds < 9.5
    assert run.windows[-1].ns["p50"] < run.windows[0].ns["p50"] / 2
    assert max(window.ns["p50"] for window in run.windows[-3:]) <= 1.02 * min(window.ns["p50"] for window in run.windows[-3:])


def test_a_warm_up_that_never_gets_steady_ends_too_and_says_so(clock: Clock) -> None:
    run, is_steady = warmed(lambda number: clock.pass_by(0.01 * 1.01**number))
    assert not is_steady and 10 <= run.seconds < 11
    stopped, is_steady = warmed(lambda number: clock.pass_by(0.01 * 1.01**number), lambda: True)
    assert stopped.runs < run.runs


def test_a_stall_costs_all_that_wait_behind_it() -> None:
    def stalls_once(number: int) -> None:
        time.sleep(0.5 if number == 20 else 0.0005)

    run = Run()
    arriving(stalls_once, Wanted("server", 1.5, 0.1, target_qps=100), run, never, clients=1)
    late = sum(count for ns, count in run.histogram.counts() if ns > 100e6)
    assert late >= 20  # forty or so came while it stood still; who waits for each answer before he asks again sees one


def test_several_clients_take_turns_and_a_failure_is_told() -> None:
    seen = set()

    def asks(_: int) -> None:
        seen.add(threading.get_ident())
        time.sleep(0.02)

    run = Run()
    arriving(asks, Wanted("server", 0.5, 0.1, target_qps=100), run, never, clients=4)
    assert len(seen) == 4

    def fails(number: int) -> None:
        if number > 3:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        arriving(fails, Wanted("server", 5, 0.1, target_qps=1000), Run(), never, clients=2)
