"""A model inside the caller: the same answers, the same errors, the same report."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from toys import Agent, everything_feeds, gather, linear, make, wait_until

from edge_agent import Runtime, connect, facts, worker
from edge_agent.client import BadRequest, ClientError, NoSuchModel
from edge_agent.latency import Histogram, histogram_of

pytestmark = pytest.mark.e2e
X = np.ones((1, 4), np.float32)


def counted(agent: Agent, name: str) -> int:
    (model,) = agent.ask("GET", f"/edge/report/{name}")["models"]
    return int(model["count"])


def test_it_answers_as_the_agent_does(shared: Agent) -> None:
    feeds = everything_feeds()
    with Runtime("everything", shared.home) as runtime, connect("everything", home=shared.home) as model:
        assert (runtime.inputs, runtime.outputs, runtime.release) == (model.inputs, model.outputs, model.release)
        here, there = runtime(feeds), model(feeds)
    assert list(here) == list(there)
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": np.ones((1, 4))},
        {"x": np.ones((1, 5), np.float32)},
        {"z": X},
        {"x": X, "z": X},
        {},
        np.array([1j]),
    ],
    ids=["dtype", "shape", "name", "too many", "none", "complex"],
)
def test_a_wrong_question_is_the_same_error_everywhere(shared: Agent, feeds: object) -> None:
    with Runtime("linear", shared.home) as runtime, connect("linear", home=shared.home) as model:
        with pytest.raises(BadRequest) as here:
            runtime(feeds)  # type: ignore[arg-type]
        with pytest.raises(BadRequest) as there:
            model(feeds)  # type: ignore[arg-type]
    assert str(here.value) == str(there.value)
    assert here.value.hint.startswith("it takes `x` float32")


def test_one_array_is_not_enough_for_many_inputs(shared: Agent) -> None:
    with Runtime("everything", shared.home) as runtime, pytest.raises(BadRequest, match="13 inputs"):
        runtime(X)


def test_what_it_counts_reaches_the_report(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", linear(), name="toy"))
    before = counted(agent, "toy")
    with Runtime("toy", agent.home) as runtime:
        for _ in range(100):
            runtime(X)
        with pytest.raises(BadRequest):
            runtime({"x": np.ones(3, np.float32)})
        assert runtime.timing_ms["run"] > 0
        wait_until(lambda: counted(agent, "toy") == before + 100)  # without being closed
        runtime(X)
    assert counted(agent, "toy") == before + 101
    (model,) = agent.ask("GET", "/edge/report/toy")["models"]
    assert model["errors"] == 1
    assert 0 < model["latency_ms"]["p50"] <= model["latency_ms"]["max"]


def test_counts_wait_for_an_agent_that_does_not_run(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", linear(), name="toy"))
    before = counted(agent, "toy")
    agent.stop()
    with Runtime("toy", agent.home) as runtime:
        runtime(X)
        runtime.close()
        agent.start()
        runtime(X)
    assert counted(agent, "toy") == before + 2


def test_a_program_that_ends_sends_what_it_counted(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", linear(), name="toy"))
    before = counted(agent, "toy")
    program = "import numpy, edge_agent; edge_agent.Runtime('toy')(numpy.ones((1, 4), numpy.float32))"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=agent.environment(), timeout=60)
    assert counted(agent, "toy") == before + 1


@pytest.mark.parametrize("short_of_memory", [False, True])
def test_activations_and_rollbacks_are_followed_between_two_calls(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, short_of_memory: bool
) -> None:
    if short_of_memory:
        monkeypatch.setattr(facts, "free_memory_bytes", lambda: 1 << 20)
    agent.activate(make(tmp_path / "one", linear(1), name="toy", release=1))
    with Runtime("toy", agent.home) as runtime:
        wrong: list[object] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answer = runtime(X)["y"]
                if answer.tolist() not in ([[4.0] * 3], [[8.0] * 3]):
                    wrong.append(answer)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            agent.activate(make(tmp_path / "two", linear(2), name="toy", release=2))
            wait_until(lambda: runtime.release == "2")
            assert runtime(X)["y"].tolist() == [[8.0] * 3]
            agent.rollback("toy")
            wait_until(lambda: runtime.release == "1")
            assert runtime(X)["y"].tolist() == [[4.0] * 3]
        finally:
            done.set()
            asking.join()
        assert wrong == []


def test_where_memory_is_short_the_old_version_goes_before_the_new_one_comes(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.activate(make(tmp_path / "one", linear(1), name="toy", release=1))
    with Runtime("toy", agent.home) as runtime:
        held: list[bool] = []
        really = worker.open_deployment

        def open_deployment(folder: Path) -> worker.Session:
            held.append(runtime._version is not None)
            return really(folder)

        monkeypatch.setattr(worker, "open_deployment", open_deployment)
        for free, release in ((1 << 20, "2"), (1 << 50, "1")):
            monkeypatch.setattr(facts, "free_memory_bytes", lambda free=free: free)
            if release == "2":
                agent.activate(make(tmp_path / "two", linear(2), name="toy", release=2))
            else:
                agent.rollback("toy")
            wait_until(lambda release=release: runtime(X) and runtime.release == release)
        assert held == [False, True]


def test_a_removed_model_is_no_model(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", linear(), name="toy"))
    with Runtime("toy", agent.home) as runtime:
        runtime(X)
        agent.ask("DELETE", "/edge/models/toy")

        def gone() -> bool:
            try:
                return not runtime(X)
            except NoSuchModel as error:
                return "no model `toy` is active" in str(error)

        wait_until(gone)


@pytest.mark.parametrize("short_of_memory", [False, True])
def test_a_version_that_does_not_open_here_is_told_and_the_old_one_goes_on(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, short_of_memory: bool
) -> None:
    if short_of_memory:
        monkeypatch.setattr(facts, "free_memory_bytes", lambda: 1 << 20)
    agent.activate(make(tmp_path / "one", linear(1), name="toy", release=1))
    with Runtime("toy", agent.home) as runtime:
        agent.activate(make(tmp_path / "two", linear(2), name="toy", release=2))
        (agent.home / "active" / "toy").resolve().joinpath("golden.npz").unlink()
        with pytest.warns(RuntimeWarning, match="goes on with what it has: .*golden answers"):
            wait_until(lambda: runtime(X) and runtime._problem is None and runtime._refused)
            runtime._look_at = 0
            runtime(X)
        assert runtime(X)["y"].tolist() == [[4.0] * 3]
        assert runtime.release == "1"


def test_no_store_and_no_name_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel, match="no model `toy` is active at"):
        Runtime("toy", tmp_path)
    with pytest.raises(NoSuchModel, match="is no name"):
        Runtime("../toy", tmp_path)


def test_an_answer_that_fails_is_an_error_of_the_client(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", gather(), name="toy", feeds=[{"i": np.array([1], np.int64)}]))
    with Runtime("toy", agent.home) as runtime, pytest.raises(ClientError, match="could not run the model"):
        runtime(np.array([99], np.int64))


def test_a_closed_one_opens_again(shared: Agent) -> None:
    runtime = Runtime("linear", shared.home)
    runtime.close()
    runtime.close()
    assert runtime(X)["y"].shape == (1, 3)
    assert repr(runtime) == "Runtime('linear', release='1')"
    runtime.close()


def test_a_forked_child_opens_its_own(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", linear(), name="toy"))
    before = counted(agent, "toy")
    program = """if True:
        import multiprocessing, numpy, edge_agent
        x = numpy.ones((1, 4), numpy.float32)
        model = edge_agent.Runtime("toy")
        model(x)

        def ask():
            assert model(x)["y"].tolist() == [[4.0] * 3]
            model.close()

        child = multiprocessing.get_context("fork").Process(target=ask)
        child.start()
        child.join(30)
        assert child.exitcode == 0, child.exitcode
        model(x)
    """
    subprocess.run([sys.executable, "-c", program], check=True, env=agent.environment(), timeout=60)
    assert counted(agent, "toy") == before + 3


def test_counts_that_are_none_are_refused(shared: Agent) -> None:
    for document in ({}, {"digest": "x", "errors": "many", "run": {}}, {"digest": "x", "errors": 0, "run": {"count": 3}}):
        with pytest.raises(BadRequest, match="counts are"):
            shared.ask("POST", "/edge/models/linear/counts", document)
    assert shared.ask("POST", "/edge/models/linear/counts", {"digest": "sha256:0", "errors": 0, "run": Histogram().to_dict()}) == {"counted": False}


def test_many_at_once_are_counted_as_one_by_one() -> None:
    samples = np.concatenate([np.arange(-3, 1000), 2 ** np.arange(62, dtype=np.int64), np.random.default_rng(0).integers(0, 1 << 40, 2000)])
    one_by_one = Histogram()
    for sample in samples:
        one_by_one.record(sample)
    assert json.dumps(histogram_of(samples).to_dict()) == json.dumps(one_by_one.to_dict())
    assert histogram_of(np.zeros(0, np.int64)).count == 0
