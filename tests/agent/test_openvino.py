"""A real provider that compiles: `make test-openvino`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from toys import CPU_PROFILE, Agent, linear, make

from edge_agent import connect
from edge_agent.look import look
from edge_agent.worker import SessionError, open_session

OPENVINO, CPU = "OpenVINOExecutionProvider", "CPUExecutionProvider"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(OPENVINO not in onnxruntime.get_available_providers(), reason="needs onnxruntime-openvino: make test-openvino"),
]
ONES = np.ones((1, 4), np.float32)


def profile(*, before: tuple[str, ...] = (), options: dict[str, str] | None = None, **runtime: Any) -> dict[str, Any]:
    asked = {"device_type": "CPU", "cache_dir": "{home}"} if options is None else options
    names = [*before, OPENVINO, CPU]
    providers = [{"name": name, "options": asked if name == OPENVINO else {}} for name in names]
    return {**CPU_PROFILE, "name": "openvino", "providers": providers, "runtime": {**CPU_PROFILE["runtime"], "least_placed": 0.95, **runtime}}


def half_in_doubles() -> bytes:
    """Two products, the second in float64, which OpenVINO leaves to the CPU."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Cast", ["a"], ["c"], name="cast", to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["c", "v"], ["y"], name="second"),
    ]
    weights = [numpy_helper.from_array(np.eye(4, dtype=dtype), name) for name, dtype in (("w", np.float32), ("v", np.float64))]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]), helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 4])]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], weights), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


def test_a_model_runs_there_and_the_status_says_so(agent: Agent, tmp_path: Path) -> None:
    job = agent.activate(make(tmp_path / "b", linear(2), profile=profile(on_missing_provider="refuse"), macs={"mm": 12}, tolerance=0.05))
    assert job["state"] == "done", job
    trial = job["result"]["trial"]
    assert (trial["provider"], trial["nodes"]) == (OPENVINO, "2 of 2 nodes on OpenVINO")
    assert (trial["placement"]["share"], trial["placement"]["kept"]) == (1.0, True)
    assert (agent.model("toy")["provider"], agent.model("toy")["nodes"]) == (OPENVINO, "2 of 2 nodes on OpenVINO")
    with connect("toy", home=agent.home) as model:
        np.testing.assert_allclose(model(ONES)["y"], [[8, 8, 8]], rtol=0.01)


def test_what_it_compiles_lies_in_the_deployment_and_goes_with_it(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "b", linear(2), profile=profile(), macs={"mm": 12}, tolerance=0.05))["state"] == "done"
    assert len(list(agent.home.rglob("deployments/toy/*/cache/*.blob"))) == 1
    agent.ask("DELETE", "/edge/models/toy")
    assert not list(agent.home.rglob("*.blob"))


def test_what_another_driver_compiled_is_compiled_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(linear(2))
    open_session(tmp_path, profile())
    (tmp_path / "cache" / "another.engine").write_bytes(b"of another GPU")
    open_session(tmp_path, profile())
    assert (tmp_path / "cache" / "another.engine").exists()
    (tmp_path / "cache" / "machine.json").write_text("{}")
    session = open_session(tmp_path, profile())
    assert session.nodes == "2 of 2 nodes on OpenVINO"
    assert not (tmp_path / "cache" / "another.engine").exists()
    assert len(list((tmp_path / "cache").glob("*.blob"))) == 1
    assert "compiled for another driver" in capfd.readouterr().err


def test_what_does_not_open_is_dropped_once_and_the_failure_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear(2))
    open_session(tmp_path, profile())
    (tmp_path / "model.onnx").write_bytes(b"noise")
    with pytest.raises(SessionError, match="cannot open the model"):
        open_session(tmp_path, profile(on_missing_provider="refuse"))
    assert not list((tmp_path / "cache").glob("*.blob"))


def test_a_model_of_which_too_much_falls_to_the_cpu_is_refused_by_name(agent: Agent, tmp_path: Path) -> None:
    feeds, macs = [{"x": ONES}], {"first": 16, "second": 16}
    made = make(tmp_path / "b", half_in_doubles(), feeds=feeds, profile=profile(), macs=macs, tolerance=0.05)
    job = agent.activate(made)
    assert job["error"]["message"] == "50 % of the multiply-accumulates on the accelerator, 95 % wanted: `second` fell to the CPU"
    lenient = make(tmp_path / "c", half_in_doubles(), feeds=feeds, profile=profile(least_placed=0.5), macs=macs, tolerance=0.05)
    assert agent.activate(lenient)["state"] == "done"
    assert agent.model("toy")["nodes"] == "2 of 3 nodes on CPU, 1 of 3 nodes on OpenVINO"


def test_a_look_tells_which_nodes_it_took_and_what_the_others_take(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(half_in_doubles())
    with (tmp_path / "feeds.npz").open("wb") as file:
        np.savez(file, **{"0.0": ONES})
    told = look(tmp_path, model="model", feeds="feeds.npz", inputs=["x"], profile=profile(), runs=3)
    assert {node["name"]: node["provider"] for node in told["placed"]} == {"first": OPENVINO, "cast": CPU, "second": CPU}
    assert {kernel["provider"] for kernel in told["kernels"]} == {OPENVINO, CPU}
    assert {kernel["operator"] for kernel in told["kernels"] if kernel["provider"] == CPU} >= {"Cast", "MatMul"}


def test_a_provider_that_is_not_there_follows_the_profile(agent: Agent, tmp_path: Path) -> None:
    def activated(rule: str) -> dict[str, Any]:
        first = profile(before=("TensorrtExecutionProvider",), on_missing_provider=rule)
        return agent.activate(make(tmp_path / rule, linear(2), name=rule, profile=first, macs={"mm": 12}, tolerance=0.05))

    assert "wants TensorrtExecutionProvider" in activated("refuse")["error"]["message"]
    for rule in ("warn", "fallback"):  # to the next that is there
        assert activated(rule)["result"]["trial"]["nodes"] == "2 of 2 nodes on OpenVINO"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"device_type": "NO_SUCH_DEVICE"}, "wants OpenVINOExecutionProvider"), ({"nonsense": "1"}, "Invalid OpenVINO EP option: nonsense")],
)
def test_a_provider_that_does_not_work_here_follows_it_too_and_is_never_silently_the_cpu(
    agent: Agent, tmp_path: Path, options: dict[str, str], told: str
) -> None:
    def activated(rule: str) -> dict[str, Any]:
        broken = profile(options=options, on_missing_provider=rule)
        return agent.activate(make(tmp_path / rule, linear(2), name=rule, profile=broken, macs={"mm": 12}))

    assert told in activated("refuse")["error"]["message"]
    for rule in ("warn", "fallback"):
        trial = activated(rule)["result"]["trial"]
        assert (trial["provider"], trial["placement"]["kept"]) == (CPU, None)
