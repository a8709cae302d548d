"""What programs ask beside inference itself: metadata, index, statistics, Prometheus' page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, counter, linear, make, wait_until

from edge_agent import connect
from edge_agent.client import BadRequest, NoSuchModel
from edge_agent.connection import ClientError, Connection

pytestmark = pytest.mark.e2e

X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}


def ask(agent: Agent, times: int, *, bad: int = 0, name: str = "toy") -> None:
    with connect(name, home=agent.home) as model:
        for _ in range(times):
            model(np.ones((1, 4), np.float32))
        for _ in range(bad):
            with pytest.raises(BadRequest):
                model(np.ones((1, 5), np.float32))


def text(agent: Agent, target: str) -> str:
    with Connection(home=agent.home) as connection:
        return connection.request("GET", target).body.decode()


def test_the_index_lists_every_model_and_its_state(shared: Agent) -> None:
    entries = {entry["name"]: entry for entry in shared.ask("POST", "/v2/repository/index")}
    assert entries["linear"] == {"name": "linear", "version": "1", "state": "READY", "reason": ""}
    assert {entry["name"] for entry in shared.ask("POST", "/v2/repository/index", {"ready": True})} >= {"linear", "everything"}
    with pytest.raises(BadRequest, match="`ready` is true or false"):
        shared.ask("POST", "/v2/repository/index", {"ready": 1})
    with pytest.raises(BadRequest, match="not loaded or unloaded by request"):
        shared.ask("POST", "/v2/repository/models/linear/unload", {})
    with pytest.raises(NoSuchModel, match="is an extension that is not offered here"):
        shared.ask("GET", "/v2/models/linear/config")


def test_every_version_is_counted_by_itself_over_swaps_and_restarts(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(1), release=1))["state"] == "done"
    ask(agent, 5, bad=2)
    assert agent.activate(make(tmp_path / "2", linear(2), release=2))["state"] == "done"
    ask(agent, 3)

    def counts() -> dict[str, tuple[int, int]]:
        found = agent.ask("GET", "/v2/models/toy/stats")["model_stats"]
        return {entry["version"]: (entry["inference_count"], entry["inference_stats"]["fail"]["count"]) for entry in found}

    before = counts()
    assert set(before) == {"1", "2"}
    assert before["1"][0] >= 5
    assert before["1"][1] == 2
    assert before["2"][0] >= 3
    assert agent.stop() == 0
    agent.start()
    wait_until(lambda: agent.model("toy")["state"] == "active")
    assert counts() == before
    assert agent.rollback("toy")["state"] == "done"
    ask(agent, 4)
    assert counts()["1"][0] >= before["1"][0] + 4
    (entry,) = agent.ask("GET", "/v2/models/toy/versions/1/stats")["model_stats"]
    assert entry["inference_stats"]["success"]["count"] == entry["inference_count"]
    stats = entry["inference_stats"]
    assert sum(stats[key]["ns"] for key in ("queue", "compute_input", "compute_infer", "compute_output")) <= stats["success"]["ns"]
    assert entry["last_inference"] > 1_600_000_000_000
    with pytest.raises(NoSuchModel, match="nothing is known of version 7 of toy"):
        agent.ask("GET", "/v2/models/toy/versions/7/stats")
    with pytest.raises(NoSuchModel):
        agent.ask("GET", "/v2/models/nothing/stats")
    (report,) = agent.ask("GET", "/edge/report?histograms=1")["models"]
    assert [version["release"] for version in report["versions"]] == ["2", "1"]
    assert report["versions"][1]["total"]["count"] == report["count"]


def test_prometheus_reads_the_page_and_finds_what_was_counted(shared: Agent) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    ask(shared, 20, bad=3, name="linear")
    families = {family.name: family for family in parser.text_string_to_metric_families(text(shared, "/metrics"))}
    (entry,) = shared.ask("GET", "/v2/models/linear/stats")["model_stats"]
    linear_requests = [sample for sample in families["edge_agent_requests"].samples if sample.labels["model"] == "linear"]
    assert {sample.labels["outcome"]: sample.value for sample in linear_requests} == {
        "success": entry["inference_count"],
        "failure": entry["inference_stats"]["fail"]["count"],
    }
    assert families["edge_agent_phase_seconds"].type == "histogram"
    for phase, stat in (("queue", "queue"), ("input", "compute_input"), ("run", "compute_infer"), ("output", "compute_output")):
        labels = {"model": "linear", "version": "1", "phase": phase}
        buckets = [sample.value for sample in samples(families["edge_agent_phase_seconds"], "_bucket", labels)]
        (count,) = samples(families["edge_agent_phase_seconds"], "_count", labels)
        (total,) = samples(families["edge_agent_phase_seconds"], "_sum", labels)
        assert buckets == sorted(buckets)
        assert buckets[-1] == count.value == entry["inference_stats"][stat]["count"]
        assert total.value == pytest.approx(entry["inference_stats"][stat]["ns"] / 1e9, rel=1e-6)
    (ready,) = [sample.value for sample in families["edge_agent_model_ready"].samples if sample.labels == {"model": "linear"}]
    assert ready == 1


def samples(family: Any, suffix: str, labels: dict[str, str]) -> list[Any]:
    return [sample for sample in family.samples if sample.name == family.name + suffix and labels.items() <= sample.labels.items()]


def test_the_page_says_what_format_it_has(shared: Agent) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(shared.home / "agent.sock"))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in sock.recv(1 << 16)


def test_a_model_whose_file_is_damaged_is_not_ready(agent: Agent, tmp_path: Path) -> None:
    assert agent.ask("GET", "/healthz") == {"status": "ok"}
    assert agent.activate(make(tmp_path / "1", counter(), name="counter", feeds=[{"n": np.array(10)}]))["state"] == "done"
    assert agent.ask("GET", "/healthz") == {"status": "ok"}
    (file,) = (agent.home / "deployments" / "counter").rglob("model.onnx")
    file.chmod(0o600)
    file.write_bytes(b"damaged")
    assert agent.stop() == 0
    agent.start()
    wait_until(lambda: agent.ask("GET", "/edge/status")["models"][0]["error"])
    assert "these models do not answer: counter" in not_ok(agent, "/healthz")
    assert "not ready: counter" in not_ok(agent, "/v2/health/ready")
    (entry,) = agent.ask("POST", "/v2/repository/index")
    assert entry["state"] == "UNAVAILABLE"
    assert agent.ask("POST", "/v2/repository/index", {"ready": True}) == []


def not_ok(agent: Agent, target: str) -> str:
    try:
        agent.ask("GET", target)
    except ClientError as error:
        return str(error)
    return ""
