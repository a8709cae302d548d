"""Two models against each other on a real agent: what a race tells, what it refuses, and what it leaves."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from toys import CPU_PROFILE, Agent, gather, layers, processes, wait_until

from edge_agent import races as races_of
from edge_agent.blobs import StoreError
from edge_agent.bundle import BundleError, Descriptor, digest_of
from edge_agent.config import Limits
from edge_agent.connection import BadRequest, Connection, NoSuchModel
from edge_agent.deployments import Deployments
from edge_agent.jobs import Busy, Job
from edge_agent.journal import Journal
from edge_agent.models import Models
from edge_agent.race import read_feeds
from edge_agent.races import Races, UnknownRace
from edge_agent.store import Store
from edge_agent.zygote import Zygote

SESSION = "0123456789abcdef"
X = {"x": np.ones((64, 256), np.float32)}


def packed(*feeds: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{f"{i}.{k}": array for i, feed in enumerate(feeds) for k, array in enumerate(feed.values())})
    return buffer.getvalue()


def described(data: bytes) -> dict[str, Any]:
    return {"digest": digest_of(data), "size": len(data)}


def document(before: bytes, after: bytes, feeds: bytes, **changed: Any) -> dict[str, Any]:
    return {
        "before": {"model.onnx": described(before)},
        "after": {"model.onnx": described(after)},
        "feeds": described(feeds),
        "inputs": ["x"],
        "profile": CPU_PROFILE,
        "limit_s": 0.3,
        **changed,
    }


def put(agent: Agent, *contents: bytes, session: str = SESSION) -> int:
    """How many were sent: those that the session lacked."""
    wanted = {digest_of(data): data for data in contents}
    asked = {"digests": [described(data) for data in wanted.values()]}
    missing = agent.ask("POST", f"/edge/races/{session}/missing", asked)["missing"]
    for entry in missing:
        data = wanted[entry["digest"]]
        with Connection(home=agent.home) as connection:
            connection.upload("PUT", f"/edge/races/{session}/blobs/{entry['digest'][7:]}?size={len(data)}&offset=0", len(data), iter([data]))
    return len(missing)


def race(agent: Agent, before: bytes, after: bytes, feeds: bytes | None = None, **changed: Any) -> Any:
    """The job at its end."""
    feeds = packed(X) if feeds is None else feeds
    put(agent, before, after, feeds)
    return agent.job(agent.ask("POST", f"/edge/races/{SESSION}", document(before, after, feeds, **changed)))


@pytest.mark.e2e
def test_a_race_tells_raw_pairs_and_changes_nothing(shared: Agent) -> None:
    status = shared.ask("GET", "/edge/status")
    small, big = layers(2), layers(12)
    ended = race(shared, small, big)
    assert (ended["state"], ended["stage"], ended["error"]) == ("done", "race", None)
    told = ended["result"]
    assert set(told) == {"pairs_ns", "warmup", "before", "after", "threads", "together", "onnxruntime", "governor", "temperature_c"}
    pairs = np.array(told["pairs_ns"])
    assert 20 <= len(pairs) <= 200
    assert np.median(pairs[:, 1] / pairs[:, 0]) > 1.5
    assert told["before"]["provider"] == told["after"]["provider"] == "CPUExecutionProvider"
    assert told["threads"] == 1
    same = np.array(race(shared, big, big)["result"]["pairs_ns"])
    assert 0.7 < np.median(same[:, 1] / same[:, 0]) < 1.4
    after = shared.ask("GET", "/edge/status")
    assert [(model["name"], model["digest"], model["state"]) for model in after["models"]] == [
        (model["name"], model["digest"], model["state"]) for model in status["models"]
    ]
    assert after["store"]["blobs"] == status["store"]["blobs"]


@pytest.mark.e2e
def test_a_look_tells_kernels_and_nodes_and_leaves_no_profile(shared: Agent) -> None:
    def look(model: bytes, **changed: Any) -> Any:
        feeds = packed(X)
        put(shared, model, feeds)
        asked = {"model": {"model.onnx": described(model)}, "feeds": described(feeds), "inputs": ["x"], "profile": CPU_PROFILE, "runs": 3, **changed}
        return shared.job(shared.ask("POST", f"/edge/races/{SESSION}", asked))

    told = look(layers(4))["result"]
    assert (told["provider"], told["threads"], told["runs"]) == ("CPUExecutionProvider", 1, 3)
    assert {kernel["provider"] for kernel in told["kernels"]} == {"CPUExecutionProvider"}
    assert all(kernel["us"] > 0 for kernel in told["kernels"] if kernel["operator"] in ("MatMul", "Gemm"))
    assert told["placed"] is None or {node["provider"] for node in told["placed"]} == {"CPUExecutionProvider"}
    assert not list((shared.home / "races").rglob("*profile*"))
    failed = look(b"noise")["result"]["failed"]
    assert failed["model"] is None and failed["message"]
    with pytest.raises(BadRequest, match="what came is no look"):
        look(layers(4), runs=0)
    with pytest.raises(BadRequest, match="what came is no look"):
        look(layers(4), runs="3")


@pytest.mark.e2e
def test_one_model_may_run_against_itself_with_other_settings(shared: Agent) -> None:
    model = layers(200)
    lean = {**CPU_PROFILE, "runtime": {"intra_op_threads": 2, "execution": "parallel", "inter_op_threads": 2, "graph_optimization": "basic"}}
    told = race(shared, model, model, profiles=[CPU_PROFILE, lean], limit_s=0.1)["result"]
    assert (told["before"]["threads"], told["after"]["threads"]) == (1, 2)
    assert 5 <= len(told["pairs_ns"]) <= 6  # of blocks
    assert all(before > 0 and after > 0 for before, after in told["pairs_ns"])
    unknown = race(shared, model, model, profiles=[CPU_PROFILE, {**CPU_PROFILE, "runtime": {"execution": "someday"}}])["result"]["failed"]
    assert (unknown["model"], unknown["hint"]) == ("after", "update the agent: `edgesdk setup HOST`")
    assert "wants `execution` to be 'someday', and this agent knows sequential, parallel" in unknown["message"]


@pytest.mark.e2e
def test_questions_that_come_together_are_run_as_each_profile_has_it(shared: Agent) -> None:
    model, row = layers(60), packed({"x": np.ones((1, 256), np.float32)})

    def seen(first: int, second: int, together: int) -> float:
        runs_as = [{**CPU_PROFILE, "runtime": {**CPU_PROFILE["runtime"], "max_batch": rows}} for rows in (first, second)]
        told = race(shared, model, model, row, profiles=runs_as, together=together)["result"]
        assert told["together"] == together
        pairs = np.array(told["pairs_ns"])
        return float(np.median(pairs[:, 0] / pairs[:, 1]))

    assert seen(1, 16, 16) > 1.5  # the weights of each product are read once for sixteen rows
    assert 0.7 < seen(16, 16, 16) < 1.4
    assert 0.7 < seen(1, 16, 1) < 1.4  # one that comes alone runs alone
    unlike = race(shared, total(), total(), row, profiles=[CPU_PROFILE, {**CPU_PROFILE, "runtime": {"max_batch": 4}}], together=4)["result"]
    assert (unlike["failed"]["model"], unlike["failed"]["message"]) == ("after", "its answer to several questions at once has not a row for each")


def total() -> bytes:
    """The sum over all rows: one answer, however many were asked."""
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 256]), helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 256])]
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"])], "g", infos[:1], infos[1:], [numpy_helper.from_array(np.array([0]), "axes")]
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


@pytest.mark.e2e
def test_what_is_there_is_not_asked_for_again_and_goes_at_the_end(agent: Agent) -> None:
    small, big, feeds = layers(1), layers(3), packed(X)
    assert put(agent, small, big, feeds) == 3
    assert put(agent, small, layers(2), feeds) == 1
    assert put(agent, small, session="f" * 16) == 1  # another host's files are not ours
    folder = agent.home / "races" / SESSION
    assert agent.ask("DELETE", f"/edge/races/{SESSION}")["freed_bytes"] == sum(len(data) for data in (small, big, layers(2), feeds))
    assert not folder.exists()
    assert agent.ask("DELETE", f"/edge/races/{SESSION}") == {"freed_bytes": 0}
    with pytest.raises(NoSuchModel, match="there is no race"):
        agent.ask("POST", f"/edge/races/{SESSION}", document(small, big, feeds))


@pytest.mark.e2e
def test_an_agent_that_starts_removes_what_an_earlier_one_left(agent: Agent) -> None:
    put(agent, layers(1))
    agent.stop()
    assert (agent.home / "races" / SESSION).exists()
    agent.start()
    assert not (agent.home / "races").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("model", ["before", "after"])
def test_a_model_that_the_runtime_refuses_is_named_with_what_it_says(shared: Agent, model: str) -> None:
    pair = {"before": layers(1), "after": layers(2), model: b"\x08\x08\x3a\x00"}
    failed = race(shared, pair["before"], pair["after"])["result"]["failed"]
    assert failed["model"] == model
    assert "cannot open the model" in failed["message"]


@pytest.mark.e2e
def test_other_things_that_a_model_can_do_wrong(shared: Agent) -> None:
    assert "inputs are `i`" in race(shared, layers(1), gather())["result"]["failed"]["message"]
    out_of_bounds = packed({"i": np.array([9])})
    failed = race(shared, gather(), gather(), out_of_bounds, inputs=["i"])["result"]["failed"]
    assert failed["model"] == "before"
    assert "out of data bounds" in failed["message"]
    later = race(shared, gather(), gather(), packed({"i": np.array([0])}, {"i": np.array([9])}), inputs=["i"])["result"]["failed"]
    assert "out of data bounds" in later["message"]


@pytest.mark.e2e
def test_a_crash_is_told_and_costs_the_active_models_nothing(shared: Agent) -> None:
    slow, feeds = layers(300), packed(X)
    put(shared, slow, feeds)
    worker = shared.worker("linear")
    started = shared.ask("POST", f"/edge/races/{SESSION}", document(slow, slow, feeds, limit_s=60))
    wait_until(lambda: shared.ask("GET", f"/edge/jobs/{started['job']}")["stage"] == "race")
    (pid,) = processes(f"racer\0{shared.home}/races/{SESSION}")
    os.kill(pid, signal.SIGSEGV)
    failed = shared.job(started)["result"]["failed"]
    assert failed["model"] is None
    assert failed["message"] == "the process that ran both models was killed by SIGSEGV"
    assert shared.worker("linear") == worker


@pytest.mark.e2e
def test_a_provider_that_the_profile_insists_on_is_the_devices_fault(shared: Agent) -> None:
    cuda = {**CPU_PROFILE, "providers": [{"name": "CUDAExecutionProvider"}], "runtime": {"on_missing_provider": "refuse"}}
    ended = race(shared, layers(1), layers(1), profile=cuda)
    assert ended["state"] == "failed"
    assert "wants CUDAExecutionProvider" in ended["error"]["message"]


@pytest.mark.e2e
def test_the_agent_may_stop_while_it_races(agent: Agent) -> None:
    slow, feeds = layers(300), packed(X)
    put(agent, slow, feeds)
    started = agent.ask("POST", f"/edge/races/{SESSION}", document(slow, slow, feeds, limit_s=600))
    wait_until(lambda: agent.ask("GET", f"/edge/jobs/{started['job']}")["stage"] == "race")
    assert agent.stop() == 0
    assert processes(f"racer\0{agent.home}/races") == []


@pytest.mark.e2e
def test_a_session_that_ends_ends_its_race(agent: Agent) -> None:
    slow, feeds = layers(300), packed(X)
    put(agent, slow, feeds)
    started = agent.ask("POST", f"/edge/races/{SESSION}", document(slow, slow, feeds, limit_s=600))
    wait_until(lambda: processes(f"racer\0{agent.home}/races"))
    assert agent.ask("DELETE", f"/edge/races/{SESSION}")["freed_bytes"] == len(slow) + len(feeds)
    assert agent.job(started)["state"] == "done"
    assert processes(f"racer\0{agent.home}/races") == []


@pytest.mark.e2e
def test_the_verbs(agent: Agent, tmp_path: Path) -> None:
    import json

    small, big, feeds = layers(1), layers(2), packed(X)
    wanted = {"digests": [described(data) for data in (small, big, feeds)]}
    assert len(agent.verb("missing", "--race", SESSION, stdin=json.dumps(wanted).encode())["missing"]) == 3
    for data in (small, big, feeds):
        cut = agent.verb("put", digest_of(data), str(len(data)), "--race", SESSION, stdin=data[:100], code=1)
        assert f"ended after 100 of {len(data)} bytes" in cut["error"]["message"]
        agent.verb("put", digest_of(data), str(len(data)), "--offset", "100", "--race", SESSION, stdin=data[100:])
    job = agent.verb("race", SESSION, stdin=json.dumps(document(small, big, feeds)).encode())["job"]
    assert agent.verb("job", job, "--wait", "30")["state"] == "done"
    assert agent.verb("race", SESSION, "--end")["freed_bytes"] == sum(len(data) for data in (small, big, feeds))
    for argv in (["race", "../x", "--end"], ["missing", "--race", "x/y"], ["put", digest_of(small), "1", "--race", "A" * 16]):
        assert "names no race" in agent.verb(*argv, code=1)["error"]["message"]
    assert "no JSON" in agent.verb("race", SESSION, stdin=b"noise", code=1)["error"]["message"]


@pytest.mark.e2e
def test_nothing_that_arrives_is_believed(shared: Agent) -> None:
    small, feeds = layers(1), packed(X)
    put(shared, small, feeds)
    entry = described(small)
    for changed in (
        {"before": {"model.onnx": entry, "../model.onnx": entry}},
        {"before": {"weights.bin": entry}},
        {"before": {"model.onnx": {"digest": "sha256:../../etc/passwd", "size": 5}}},
        {"before": {"model.onnx": {**entry, "size": -1}}},
        {"before": {"model.onnx": {**entry, "size": True}}},
        {"before": [entry]},
        {"feeds": None},
        {"inputs": [3]},
        {"inputs": 3},
        {"profile": {"providers": [{"name": 3}]}},
        {"profile": {"providers": [{"name": "x", "options": {"a": 1}}]}},
        {"profile": {"providers": [], "runtime": {"intra_op_threads": "all"}}},
        {"profile": {"providers": [], "runtime": {"max_batch": 0}}},
        {"together": 0},
        {"together": 1 << 20},
        {"together": True},
        {"together": "2"},
        {"profile": {"providers": [], "runtime": {"inter_op_threads": 0}}},
        {"profiles": [CPU_PROFILE]},
        {"profiles": [CPU_PROFILE, {}]},
        {"profile": {}},
        {"limit_s": 0},
        {"limit_s": 1e9},
        {"limit_s": float("nan")},
        {"limit_s": "soon"},
    ):
        with pytest.raises(BadRequest, match=r"what came is no race|is no SHA-256 digest"):
            shared.ask("POST", f"/edge/races/{SESSION}", {**document(small, small, feeds), **changed})
    for lacking in ({"after": {"model.onnx": {**entry, "size": 7}}}, {"feeds": described(b"not here")}):
        with pytest.raises(BadRequest, match="lacks the file"):
            shared.ask("POST", f"/edge/races/{SESSION}", {**document(small, small, feeds), **lacking})
    pickled = io.BytesIO()
    np.savez(pickled, **{"0.0": np.array([print], object)})
    for noise in (b"noise", pickled.getvalue(), packed(), packed({"x": X["x"], "z": X["x"]})):
        ended = race(shared, small, small, noise)
        assert ended["state"] == "failed", ended
        assert "asked" in ended["error"]["message"] or "nothing to ask" in ended["error"]["message"]
    outside = external_weights("../../../secrets/token")
    assert "wants its weights from" in race(shared, small, outside)["result"]["failed"]["message"]


def external_weights(location: str) -> bytes:
    import onnx

    model = onnx.load_from_string(layers(1))
    (weights,) = model.graph.initializer
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", location
    return model.SerializeToString()


# in this process


@pytest.fixture
def deployments(tmp_path: Path) -> Deployments:
    store, journal = Store(tmp_path), Journal(tmp_path)
    return Deployments(tmp_path, store, Models(tmp_path, store, journal, Limits(), Zygote(tmp_path)), journal)


def test_a_race_waits_until_no_deployment_is_under_way_and_the_next_one_for_it(deployments: Deployments) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(_: Job) -> dict[str, Any]:
        begun.set()
        go_on.wait(20)
        return {"ran": True}

    with deployments._holding(Job("activate x")):
        job = deployments.in_turn("race", work)
        assert not begun.wait(0.5)
        assert (job.stage, job.state) == ("wait", "running")
    assert begun.wait(10)
    with pytest.raises(Busy, match="race"), deployments._holding(Job("activate y")):
        pass
    go_on.set()
    assert job.ended.wait(10)
    assert job.result == {"ran": True}
    with deployments._holding(Job("activate z")):
        pass


def test_a_race_does_not_wait_forever_nor_for_an_agent_that_ends(deployments: Deployments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.deployments._TURN_S", 0)
    with deployments._holding(Job("activate x")):
        job = deployments.in_turn("race", lambda _: {})
        assert job.ended.wait(10)
        assert job.error is not None
        assert "activate x" in job.error["message"]
    deployments.close()
    stopping = deployments.in_turn("race", lambda _: {})
    assert stopping.ended.wait(10)
    assert stopping.state == "failed"


def test_a_session_whose_host_is_gone_is_removed_by_age(tmp_path: Path, deployments: Deployments, monkeypatch: pytest.MonkeyPatch) -> None:
    races = Races(tmp_path, deployments)
    races.missing(SESSION, [])
    races.blobs(SESSION).receive(digest_of(b"abc"), 3, 0, [b"abc"])
    races.sweep()
    assert (tmp_path / "races" / SESSION).exists()
    now = time.monotonic()
    monkeypatch.setattr(races_of.time, "monotonic", lambda: now + 3601)
    races.sweep()
    assert not (tmp_path / "races" / SESSION).exists()
    with pytest.raises(UnknownRace):
        races.blobs(SESSION)


def test_where_room_is_short_candidates_of_earlier_races_make_some(tmp_path: Path, deployments: Deployments, monkeypatch: pytest.MonkeyPatch) -> None:
    races = Races(tmp_path, deployments)
    base, old, new = (Descriptor(digest_of(data), 3) for data in (b"abc", b"old", b"new"))
    races.missing(SESSION, [base, old])
    for data in (b"abc", b"old"):
        races.blobs(SESSION).receive(digest_of(data), 3, 0, [data])
    assert [blob.digest for blob in races.missing(SESSION, [base, new])] == [new.digest]
    assert races.blobs(SESSION).has(old)
    monkeypatch.setattr(races_of, "free_bytes", lambda _: 2)
    assert [blob.digest for blob in races.missing(SESSION, [base, new])] == [new.digest]
    assert (races.blobs(SESSION).has(base), races.blobs(SESSION).has(old)) == (True, False)


def test_each_way_to_compile_a_model_has_a_folder_of_its_own(tmp_path: Path, deployments: Deployments) -> None:
    blobs, model = Races(tmp_path, deployments), Descriptor(digest_of(b"abc"), 3)
    blobs.missing(SESSION, [model])
    blobs.blobs(SESSION).receive(model.digest, 3, 0, [b"abc"])
    options = [{"name": "T", "options": {"cache": "{home}", "level": level}} for level in ("3", "5", "3")]
    first, second, again = (races_of.laid_out(blobs.blobs(SESSION), {"model.onnx": model}, {"providers": [one]}) for one in options)
    assert first == again != second


@pytest.mark.parametrize("name", ["", "..", "0123456789ABCDEF", "0123456789abcdef/..", "0123456789abcdef\n"])
def test_a_session_is_no_path(tmp_path: Path, deployments: Deployments, name: str) -> None:
    with pytest.raises(BundleError, match="names no race"):
        Races(tmp_path, deployments).missing(name, [])


def test_feeds_are_read_in_order_and_text_as_onnxruntime_takes_it() -> None:
    feeds = read_feeds(packed(*({"a": np.array([i]), "b": np.array(["ü"])} for i in range(12))), ["a", "größe"])
    assert [int(feed["a"][0]) for feed in feeds] == list(range(12))
    assert feeds[0]["größe"].dtype == object


def test_a_file_that_is_gone_meanwhile_is_a_sentence(tmp_path: Path, deployments: Deployments) -> None:
    races = Races(tmp_path, deployments)
    model, feeds = layers(1), packed(X)
    races.missing(SESSION, [])
    for data in (model, feeds):
        races.blobs(SESSION).receive(digest_of(data), len(data), 0, [data])
    asked = document(model, model, feeds)
    races.blobs(SESSION).path(digest_of(feeds)).unlink()
    with pytest.raises(StoreError, match="lacks the file"):
        races.start(SESSION, asked)
    races.blobs(SESSION).receive(digest_of(feeds), len(feeds), 0, [feeds])
    with deployments._holding(Job("activate x")):
        job = races.start(SESSION, asked)
        races.blobs(SESSION).path(digest_of(model)).unlink()
    assert job.ended.wait(20)
    assert job.error is not None
    assert "did the session end meanwhile?" in job.error["hint"]
    with deployments._holding(Job("activate x")):
        races.blobs(SESSION).receive(digest_of(model), len(model), 0, [model])
        job = races.start(SESSION, asked)
        races.end(SESSION)
    assert job.ended.wait(20)
    assert job.error is not None
    assert job.error["message"] == "the session ended before it was its turn"
