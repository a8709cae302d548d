"""What a version that crashes, hangs or needs too much memory costs: itself, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from toys import Agent, linear, make, wait_until

from edge_agent import connect, serving
from edge_agent.bundle import Layout
from edge_agent.config import Limits
from edge_agent.deployments import Deployments
from edge_agent.journal import Journal
from edge_agent.models import Models
from edge_agent.protocol import decode_response, encode_request
from edge_agent.store import Deployment, Store
from edge_agent.zygote import Zygote

ONES = np.ones((1, 4), np.float32)


@pytest.mark.e2e
def test_the_third_crash_within_its_probation_brings_the_previous_version_back(agent: Agent, tmp_path: Path) -> None:
    first = agent.activate(make(tmp_path / "1", linear(1)))["result"]["digest"]
    assert agent.activate(make(tmp_path / "2", linear(2), release=2))["state"] == "done"
    for crash in range(3):
        wait_until(lambda: agent.model("toy")["state"] == "active")
        assert agent.model("toy")["release"] == "2", crash
        pid = agent.worker("toy")
        os.kill(pid, signal.SIGSEGV)
        wait_until(lambda pid=pid: agent.model("toy")["pid"] != pid)
    wait_until(lambda: agent.model("toy")["release"] == "1" and agent.model("toy")["state"] == "active")
    with connect("toy", home=agent.home) as model:
        assert model(ONES)["y"].tolist() == [[4.0] * 3]
    assert (agent.model("toy")["digest"], agent.model("toy")["previous"]) == (first, None)
    events = [line for line in agent.journal() if line["event"] in ("crashes", "fell back")]
    assert [line["event"] for line in events] == ["crashes", "fell back"]
    assert events[0]["cause"] == "it crashed 3 times within its probation, at last: the process of toy was killed by SIGSEGV"


@pytest.mark.e2e
def test_the_end_of_the_zygote_is_charged_to_no_model(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    assert agent.activate(make(tmp_path / "2", linear(2), release=2))["state"] == "done"
    for _ in range(3):
        wait_until(lambda: agent.model("toy")["state"] == "active")
        pid = agent.worker("toy")
        os.kill(agent.zygote(), signal.SIGKILL)
        wait_until(lambda pid=pid: agent.model("toy")["pid"] != pid)
    wait_until(lambda: agent.model("toy")["state"] == "active")
    assert agent.model("toy")["release"] == "2"


class Inside:
    """The supervisor's parts in this process, with real workers."""

    def __init__(self, home: Path) -> None:
        self.store, self.journal = Store(home), Journal(home)
        self.models = Models(home, self.store, self.journal, Limits(), Zygote(home))
        self.deployments = Deployments(home, self.store, self.models, self.journal)

    def laid_out(self, bundle: Path) -> Deployment:
        with Layout.open(bundle) as layout:
            (manifest,) = layout.manifests().values()
            for blob in manifest.blobs:
                self.store.receive(blob.digest, blob.size, 0, iter([memoryview(layout.blob(blob.digest))]))
        return self.store.lay_out(manifest, self.store.description(manifest))

    def answer(self) -> tuple[str, float]:
        head, buffers = encode_request({"x": ONES})
        answered = self.models.infer("toy", len(head), bytearray(head + b"".join(bytes(buffer) for buffer in buffers)))
        assert answered.status == 200
        response = decode_response(answered.body, answered.header_bytes)
        return response.version, float(response.outputs["y"][0, 0])


@pytest.fixture
def inside() -> Iterator[Inside]:
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        made = Inside(Path(folder))
        yield made
        made.models.stop()


@pytest.mark.e2e
def test_where_memory_is_short_versions_are_loaded_one_after_the_other_and_requests_wait(inside: Inside, tmp_path: Path) -> None:
    first, second = inside.laid_out(make(tmp_path / "1", linear(1))), inside.laid_out(make(tmp_path / "2", linear(2), release=2))
    with inside.deployments._swapped(first, 0):
        assert inside.answer() == ("1", 4.0)
    seen, problems, stop = set(), [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.add(inside.answer())
            except Exception as error:  # noqa: BLE001 - any is one too many
                problems.append(repr(error))
                return

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        with inside.deployments._swapped(second, 1 << 60):
            assert inside.answer() == ("2", 8.0)
        with pytest.raises(RuntimeError), inside.deployments._swapped(first, 1 << 60):
            raise RuntimeError("the first answer is wrong")
        wait_until(lambda: inside.answer() == ("2", 8.0))
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert problems == []
    assert {("1", 4.0), ("2", 8.0)} == seen
    assert '"short of memory"' in inside.journal.path.read_text()


CGROUP = Path("/sys/fs/cgroup/memory")  # version 1, as the testbed's devices have it


@pytest.fixture
def narrow(agent: Agent) -> Iterator[Agent]:
    """An agent that may take 400 MB."""
    group = CGROUP / f"edge-agent-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(400 << 20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    agent.stop()
    into = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -m edge_agent serve"
    agent.process = subprocess.Popen(["sh", "-c", into], env=agent.environment(), start_new_session=True)
    wait_until(agent._answers)
    yield agent
    agent.stop()
    wait_until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


@pytest.mark.e2e
def test_a_model_that_needs_more_memory_than_there_is_costs_its_trial_alone(narrow: Agent, tmp_path: Path) -> None:
    assert narrow.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    worker, size = narrow.worker("toy"), numpy_helper.from_array(np.array([1 << 28], np.int64), "s")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["many"], value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "hungry", info[:1], info[1:], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    answers = [{"y": np.ones((2, 4), np.float32)}]
    hungry = make(tmp_path / "2", model.SerializeToString(), release=2, feeds=[{"x": np.ones((2, 4), np.float32)}], answers=answers)
    failed = narrow.activate(hungry, allow_signature_change=True)
    assert failed["error"]["message"] == "the trial of toy was killed by SIGKILL (out of memory?)"
    assert failed["error"]["hint"]
    with connect("toy", home=narrow.home) as there:
        assert there(ONES)["y"].tolist() == [[4.0] * 3]
    assert narrow.worker("toy") == worker, "the others were not hurt"


def test_what_the_zygote_rehearses_with_is_a_model() -> None:
    session = onnxruntime.InferenceSession(serving._IDENTITY, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones(1, np.float32)})[0].tolist() == [1.0]
