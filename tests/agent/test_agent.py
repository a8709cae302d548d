"""The transaction and the supervisor, through the agent's socket."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_externals import holding, outside
from toys import CPU_PROFILE, LINEAR_FEEDS, Agent, asked_while_versions_change, counter, linear, make, slow_to_load, used_s, wait_until

from edge_agent import connect
from edge_agent.bundle import Layout
from edge_agent.client import ClientError, NoSuchModel

ONES = np.ones((1, 4), np.float32)
CUDA_FIRST = [{"name": "CUDAExecutionProvider", "options": {}}, {"name": "CPUExecutionProvider", "options": {}}]


def jetson(rule: str, **more: Any) -> dict[str, Any]:
    return {**CPU_PROFILE, "name": "jetson", "providers": CUDA_FIRST, "runtime": {**CPU_PROFILE["runtime"], "on_missing_provider": rule}, **more}


def answered(agent: Agent, name: str = "toy") -> float:
    with connect(name, home=agent.home) as model:
        return float(model(ONES)["y"][0, 0])


@pytest.mark.e2e
def test_a_bundle_becomes_active_then_unchanged_then_replaced_rolled_back_and_removed(agent: Agent, tmp_path: Path) -> None:
    first, second = make(tmp_path / "1", linear(1)), make(tmp_path / "2", linear(2), release=2)

    done = agent.activate(first)
    assert done["state"] == "done", done
    result = done["result"]
    assert {key: result[key] for key in ("name", "release", "previous", "outcome")} == {"name": "toy", "release": "1", "previous": None, "outcome": "active"}
    assert result["first_answer_ms"] > 0
    trial = result["trial"]
    assert trial["worst"] == {"output": "y", "difference": 0.0, "tolerance": 1e-4}
    assert trial["provider"] == "CPUExecutionProvider"
    assert trial["latency_ms"]["p50"] <= trial["latency_ms"]["p99"]
    assert answered(agent) == 4

    again = agent.activate(first)["result"]
    assert (again["outcome"], again["digest"], again["trial"]) == ("unchanged", result["digest"], trial)
    assert again["first_answer_ms"] > 0

    replaced = agent.activate(second)["result"]
    assert (replaced["outcome"], replaced["previous"]) == ("active", result["digest"])
    assert answered(agent) == 8

    back = agent.rollback("toy")["result"]
    assert (back["digest"], back["previous"], back["outcome"]) == (result["digest"], replaced["digest"], "active")
    assert answered(agent) == 4
    forth = agent.rollback("toy")["result"]
    assert (forth["digest"], forth["previous"]) == (replaced["digest"], result["digest"])
    assert answered(agent) == 8

    removed = agent.ask("DELETE", "/edge/models/toy")
    assert removed["removed"] == "toy"
    assert removed["freed_bytes"] > 1000
    with pytest.raises(NoSuchModel, match="no model `toy` is active"):
        answered(agent)
    assert agent.ask("GET", "/edge/status")["store"]["blobs"] == 0
    assert agent.workers() == {}
    change = ["swapping", "activated", "proven"]
    assert [line["event"] for line in agent.journal()] == ["started", *change, "unchanged", *change, *change, *change, "removing", "removed"]


@pytest.mark.e2e
def test_what_must_not_run_is_refused_and_the_old_one_answers_on(agent: Agent, tmp_path: Path) -> None:
    good = agent.activate(make(tmp_path / "good", linear(1)))["result"]["digest"]
    wrong = [{"y": np.full((2, 3), 6, np.float32)}, {"y": np.full((1, 3), 4, np.float32)}]
    bundles = {
        r"answers otherwise than the golden answers: the output `y` at \[1, 0\]: expected 6.0, got 22.0; that is 16 off, tolerated is 0.0001": make(
            tmp_path / "wrong", linear(1), release=2, answers=wrong
        ),
        r"takes .* ms here \(median of .* runs\), its budget is 0.001 ms": make(
            tmp_path / "slow", linear(2), release=2, profile={**CPU_PROFILE, "budget": {"max_latency_ms": 0.001}}
        ),
        "the profile jetson wants CUDAExecutionProvider, this onnxruntime offers": make(tmp_path / "cuda", linear(2), release=2, profile=jetson("refuse")),
        "cannot be deployed: too old": make(tmp_path / "nano", linear(2), release=2, profile={**CPU_PROFILE, "deployable": False, "reason": "too old"}),
        r"needs onnxruntime 99.0 \(opset 17, IR version 8\), here is": make(tmp_path / "new", linear(2), release=2, onnxruntime="99.0"),
        "is no ONNX model": corrupted(tmp_path / "noise"),
        "onnxruntime .* cannot open the model: .*Custom": make(
            tmp_path / "custom",
            linear(2).replace(b"MatMul", b"Custom"),
            release=2,
            answers=[{"y": np.zeros((2, 3), np.float32)}, {"y": np.zeros((1, 3), np.float32)}],
        ),
        r"model.onnx wants its weights from '\.\./\.\./\.\./secrets/token'": make(
            tmp_path / "thief", holding(outside("../../../secrets/token"), "initializer"), release=2, feeds=[{}], answers=[{"w": np.zeros(4, np.float32)}]
        ),
        "inputs or outputs are not those that bundle.json names": renamed(tmp_path / "renamed"),
    }
    for message, folder in bundles.items():
        failed = agent.activate(folder, allow_signature_change=True)
        assert failed["state"] == "failed", failed
        assert failed["result"] is None
        assert failed["stage"] in ("load", "trial")
        assert re.search(message, failed["error"]["message"]), failed["error"]
        assert failed["error"]["hint"]
        assert agent.model("toy")["digest"] == good
        assert answered(agent) == 4
    assert [line["event"] for line in agent.journal()].count("failed") == len(bundles)


def corrupted(folder: Path) -> Path:
    from toys import described, golden_file

    from edge_agent import bundle

    model = linear(2)
    inputs, outputs = described(model)
    made = make(folder, model, release=2)
    with Layout.open(made) as layout:
        (manifest,) = layout.manifests().values()
        description = layout.blob(manifest.layer("bundle.json").digest)
    files = {
        "model.onnx": model[:-20],
        "bundle.json": description,
        "profile.json": bundle.to_json(CPU_PROFILE),
        "golden.npz": golden_file(inputs, outputs, LINEAR_FEEDS[:1], [{"y": np.zeros((2, 3), np.float32)}]),
    }
    bundle.write(made, [bundle.Contents("x86-cpu", {}, files, {})])
    return made


def renamed(folder: Path) -> Path:
    from edge_agent import bundle

    made = make(folder, linear(2), release=2)
    with Layout.open(made) as layout:
        (manifest,) = layout.manifests().values()
        files = {layer.file: layout.blob(layer.digest) for layer in manifest.layers}
    files["bundle.json"] = files["bundle.json"].replace(b'"name":"y"', b'"name":"z"').replace(b'"y":', b'"z":')
    bundle.write(made, [bundle.Contents("x86-cpu", {}, files, {})])
    return made


@pytest.mark.e2e
def test_what_the_person_allows_is_not_refused(shared: Agent, tmp_path: Path) -> None:
    slow = make(tmp_path / "slow", linear(3), name="slow", profile={**CPU_PROFILE, "budget": {"max_latency_ms": 0.001}})
    assert shared.activate(slow, allow_slow=True)["state"] == "done"
    cuda = make(tmp_path / "cuda", linear(2), name="cuda", profile=jetson("refuse", deployable=False, reason="no"))
    assert shared.activate(cuda, as_profile=True)["state"] == "done"
    assert shared.model("cuda")["provider"] == "CPUExecutionProvider"
    os.kill(shared.worker("cuda"), signal.SIGKILL)  # what was allowed still is when the worker starts again
    wait_until(lambda: shared.model("cuda")["state"] != "active")
    wait_until(lambda: shared.model("cuda")["state"] == "active")
    falling = make(tmp_path / "falling", linear(2), name="falling", profile=jetson("fallback"))
    assert shared.activate(falling)["result"]["trial"]["provider"] == "CPUExecutionProvider"
    for name in ("slow", "cuda", "falling"):
        shared.ask("DELETE", f"/edge/models/{name}")


@pytest.mark.e2e
def test_a_killed_worker_comes_back_and_only_its_request_is_lost(shared: Agent, tmp_path: Path) -> None:
    feeds = [{"n": np.array(1000)}]
    assert shared.activate(make(tmp_path / "counter", counter(), name="counter", feeds=feeds))["state"] == "done"
    before = shared.worker("counter")
    idle_s = used_s(before)
    lost: list[str] = []

    def ask() -> None:
        with connect("counter", home=shared.home) as model:
            try:
                model({"n": np.array(100_000_000)})
            except ClientError as error:
                lost.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: used_s(before) > idle_s + 0.05)
    assert answered(shared, "linear") == 4  # the others do not wait
    os.kill(before, signal.SIGKILL)
    asking.join(20)
    assert lost == ["the process of counter died while it answered"]
    wait_until(lambda: shared.model("counter")["state"] == "active")
    assert shared.worker("counter") != before
    with connect("counter", home=shared.home) as model:
        assert model({"n": np.array(10)})["sum"] == 10
    report = shared.ask("GET", "/edge/report/counter")["models"][0]
    assert report["errors"] == 1
    died = [line for line in shared.journal() if line["event"] == "worker died" and line["name"] == "counter"]
    assert died[-1]["cause"] == "the process of counter was killed by SIGKILL (out of memory?)"
    shared.ask("DELETE", "/edge/models/counter")


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE"])
def test_a_trial_that_crashes_names_the_signal_and_the_old_one_answers_on(shared: Agent, tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "counter", counter(), name="linear", release=9, feeds=[{"n": np.array(300_000)}])
    started = shared.ask("POST", "/edge/activate", {"digest": shared.send(folder), "allow_signature_change": True})
    wait_until(lambda: shared.ask("GET", f"/edge/jobs/{started['job']}")["stage"] == "trial")
    (pid,) = shared.trials()
    os.kill(pid, signal.Signals[name])
    failed = shared.job(started)
    assert failed["error"]["message"] == f"the trial of linear was killed by {name}"
    assert answered(shared, "linear") == 4
    assert shared.model("linear")["state"] == "active"


@pytest.mark.e2e
def test_one_deployment_at_a_time_and_asking_again_is_the_same_job(shared: Agent, tmp_path: Path) -> None:
    folder = make(tmp_path / "counter", counter(), name="counter", feeds=[{"n": np.array(100_000)}])
    digest = shared.send(folder)
    started = shared.ask("POST", "/edge/activate", {"digest": digest})
    assert shared.ask("POST", "/edge/activate", {"digest": digest}) == started
    with pytest.raises(ClientError, match=f"another deployment is under way on this device: activate {digest[:19]}, for 0 s"):
        shared.ask("POST", "/edge/models/linear/rollback")
    with pytest.raises(ClientError, match="another deployment is under way"):
        shared.ask("DELETE", "/edge/models/linear")
    assert shared.job(started)["state"] == "done"
    shared.ask("DELETE", "/edge/models/counter")


@pytest.mark.e2e
def test_no_request_is_lost_while_versions_change(agent: Agent, tmp_path: Path) -> None:
    problems, seen = asked_while_versions_change(agent, tmp_path, lambda: connect("toy", home=agent.home))
    assert problems == []
    assert seen == {("1", 4.0), ("2", 8.0)}


@pytest.mark.e2e
def test_a_first_question_that_fails_is_swapped_back(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    second = make(tmp_path / "2", counter(), release=2, feeds=[{"n": np.array(100_000)}])
    started = agent.ask("POST", "/edge/activate", {"digest": agent.send(second), "allow_signature_change": True})
    wait_until(lambda: agent.ask("GET", f"/edge/jobs/{started['job']}")["stage"] == "trial")
    trial = agent.trials()
    wait_until(lambda: agent.ask("GET", f"/edge/jobs/{started['job']}")["stage"] == "ask")
    for pid in trial:  # the asker dies before it has its answer
        os.kill(pid, signal.SIGKILL)
    failed = agent.job(started)
    assert failed["state"] == "failed", failed
    assert failed["stage"] == "ask"
    assert answered(agent) == 4
    assert agent.model("toy")["previous"] is None
    assert [line["event"] for line in agent.journal()][-2:] == ["swapped back", "failed"]


@pytest.mark.e2e
def test_a_restarted_agent_answers_with_what_was_active_and_remembers_its_latencies(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(2)))["state"] == "done"
    for _ in range(20):
        answered(agent)
    before = agent.ask("GET", "/edge/report/toy")["models"][0]
    assert agent.stop() == 0
    assert not (agent.home / "agent.sock").exists()
    (kept,) = json.loads((agent.home / "latency" / "toy.json").read_bytes())["versions"]
    assert kept["digest"] == before["digest"]
    agent.start()
    wait_until(lambda: agent.model("toy")["state"] == "active")
    after = agent.ask("GET", "/edge/report/toy")["models"][0]
    assert after == before
    assert after["count"] == 41  # and 21 that the activation asked
    assert answered(agent) == 8
    assert agent.ask("GET", "/edge/report/toy")["models"][0]["count"] == 42
    assert agent.ask("GET", "/v2/health/ready") == {"ready": True}


@pytest.mark.e2e
def test_after_a_power_cut_it_answers_as_before(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(2)))["state"] == "done"
    assert agent.process is not None
    worker = agent.worker("toy")
    os.killpg(agent.process.pid, signal.SIGKILL)
    agent.process.wait()
    assert (agent.home / "agent.sock").exists()  # stale: nobody took it away
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    agent.start()
    wait_until(lambda: agent.model("toy")["state"] == "active")
    assert answered(agent) == 8


@pytest.mark.e2e
def test_a_worker_does_not_outlive_its_supervisor(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1"))["state"] == "done"
    worker = agent.worker("toy")
    assert agent.process is not None
    agent.process.kill()
    agent.process.wait()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())


@pytest.mark.e2e
def test_bit_rot_is_found_at_load_and_the_previous_one_answers(agent: Agent, tmp_path: Path) -> None:
    first = make(tmp_path / "1", linear(1))
    second = make(tmp_path / "2", linear(2), release=2)
    assert agent.activate(first)["state"] == "done"
    digest = agent.activate(second)["result"]["digest"]
    assert agent.stop() == 0
    model = agent.home / "active" / "toy" / "model.onnx"
    stamp, data = model.stat(), bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(bytes(data))
    os.utime(model, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    agent.start()
    wait_until(lambda: agent.model("toy")["release"] == "1" and agent.model("toy")["state"] == "active")
    assert answered(agent) == 4
    assert {"damaged", "fell back"} <= {line["event"] for line in agent.journal()}
    repaired = agent.activate(second)
    assert repaired["state"] == "done", repaired
    assert repaired["result"]["digest"] == digest
    assert answered(agent) == 8


@pytest.mark.e2e
def test_bit_rot_without_a_previous_one_is_said_and_the_next_deploy_repairs_it(agent: Agent, tmp_path: Path) -> None:
    folder = make(tmp_path / "1", linear(1))
    assert agent.activate(folder)["state"] == "done"
    assert agent.stop() == 0
    model = agent.home / "active" / "toy" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    agent.start()
    wait_until(lambda: agent.model("toy")["state"] == "failed")
    assert "`model.onnx`" in agent.model("toy")["error"]
    with pytest.raises(ClientError, match="is not running at the moment"):
        answered(agent)
    assert agent.activate(folder)["state"] == "done"
    assert answered(agent) == 4


@pytest.mark.e2e
def test_who_asks_while_a_model_is_being_loaded_waits_for_it(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", slow_to_load(), feeds=[{"x": np.ones((1, 4), np.float32)}]))["state"] == "done"
    agent.stop()
    agent.start()
    answers: list[float] = []
    programs = [threading.Thread(target=lambda: answers.append(answered(agent))) for _ in range(3)]
    for program in programs:
        program.start()
    assert agent.model("toy")["state"] == "loading" and not answers
    for program in programs:
        program.join(30)
    assert answers == [1] * 3


SIGNALLED = """
import os, random, signal, sys
from pathlib import Path
from edge_agent.supervisor import Agent
from edge_agent.zygote import Zygote
home = Path(sys.argv[1])
agent = Agent(home, Zygote(home))
agent.stop_at(signal.SIGALRM)
for _ in range(20000):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 5e-5))
    agent.wait()
    os.read(agent._ended, 1)
"""


def test_a_signal_that_comes_while_it_begins_to_wait_ends_it_too(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SIGNALLED, str(tmp_path)], check=True, timeout=50)  # a wait that misses it lasts a minute


@pytest.mark.e2e
def test_two_agents_never_run_on_one_folder(shared: Agent) -> None:
    refused = shared.verb("serve", code=1)
    assert refused["error"]["message"].startswith(f"an agent already runs on {shared.home} (process ")
    assert answered(shared, "linear") == 4


@pytest.mark.e2e
def test_files_are_for_the_user_and_the_group(shared: Agent) -> None:
    modes = {name: stat.S_IMODE((shared.home / name).stat().st_mode) for name in ("", "agent.sock", "blobs", "journal.jsonl")}
    assert modes == {"": 0o750, "agent.sock": 0o660, "blobs": 0o750, "journal.jsonl": 0o640}


@pytest.mark.e2e
def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(Path(folder, "a" * 100, "b" * 100))
        agent.start()
        try:
            assert agent.activate(make(tmp_path / "1"))["state"] == "done"
            assert answered(agent) == 4
            assert agent.verb("status")["agent"]["home"] == str(agent.home)
            assert agent.verb("probe")["agent"]["running"] is True
        finally:
            assert agent.stop() == 0


@pytest.mark.e2e
def test_a_full_disk_is_a_sentence_and_what_was_active_answers_on(tmp_path: Path) -> None:
    """On a real full disk where we may mount one; else with a limit on the size of files."""
    from test_store import mount_works

    with tempfile.TemporaryDirectory() as folder:
        mounted = os.geteuid() == 0 and mount_works()
        if mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
        agent = Agent(Path(folder, "home"))
        try:
            if mounted:
                agent.start()
            else:
                limited = (
                    f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({2 << 20}, {2 << 20})); from edge_agent.__main__ import main; main(['serve'])"
                )
                agent.process = subprocess.Popen([sys.executable, "-c", limited], env=agent.environment(), start_new_session=True)
                wait_until(agent._answers)
            assert agent.activate(make(tmp_path / "1"))["state"] == "done"
            with pytest.raises(ClientError, match=r"the disk below .* is full: .* bytes wanted, .* free"):
                agent.send(make(tmp_path / "2", padded(linear(2)), release=2))
            assert answered(agent) == 4
            assert agent.model("toy")["release"] == "1"
            assert list((agent.home / "incoming").iterdir()) == []
            assert agent.activate(make(tmp_path / "3", linear(3), release=3))["state"] == "done"
        finally:
            assert agent.stop() == 0
            if mounted:
                subprocess.run(["umount", "-l", folder], check=True)


def padded(model: bytes) -> bytes:
    """The same model with four megabytes that compress badly."""
    import onnx

    padded = onnx.load_from_string(model)
    padded.doc_string = os.urandom(2 << 20).hex()
    return padded.SerializeToString()


@pytest.mark.e2e
def test_rolling_back_without_a_previous_one_is_a_sentence(shared: Agent) -> None:
    failed = shared.rollback("linear")
    assert failed["error"]["message"] == "linear has no previous bundle to go back to"
    assert shared.rollback("nothing")["error"]["message"].startswith("no model `nothing` is active")


@pytest.mark.e2e
def test_a_manifest_that_was_not_sent_is_a_sentence(shared: Agent) -> None:
    failed = shared.job(shared.ask("POST", "/edge/activate", {"digest": "sha256:" + "0" * 64}))
    assert failed["error"] == {"message": "the store lacks the blob sha256:000000000000", "hint": "deploy the bundle again: what is missing is sent"}
    assert failed["stage"] == "verify"
