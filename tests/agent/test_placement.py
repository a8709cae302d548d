from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from toys import CPU_PROFILE, Agent, linear, make

from edge_agent import placement
from edge_agent.placement import Node, judge

CPU, GPU = "CPUExecutionProvider", "TensorrtExecutionProvider"
TELLS = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
# A provider of every onnxruntime of PyPI that takes no node of an ordinary model.
IDLE = [{"name": "AzureExecutionProvider", "options": {}}, {"name": CPU, "options": {}}]


def conv(name: str, provider: str, operator: str = "Conv") -> Node:
    return Node(name, operator, provider)


def test_the_share_is_of_the_multiply_accumulates_not_of_the_nodes() -> None:
    nodes = [conv("big", GPU), conv("small", CPU), *(Node(f"shape_{i}", "Shape", CPU) for i in range(50))]
    placed = judge(nodes, {"big": 970, "small": 30}, least=0.95)
    assert (placed.kept, placed.fell) == (True, ("small",))
    assert placed.share == pytest.approx(0.97)
    assert placed.said == "97 % of the multiply-accumulates on the accelerator, 95 % wanted"
    assert judge(nodes, {"big": 900, "small": 100}, least=0.95).kept is False


def test_a_share_just_below_is_not_rounded_up() -> None:
    placed = judge([conv("a", GPU), conv("b", CPU)], {"a": 94_999, "b": 5_001}, least=0.95)
    assert placed.kept is False
    assert placed.said.startswith("94.9 % ")


def test_names_that_onnxruntime_changed_are_found_again() -> None:
    nodes = [conv("mm/MatMulAddFusion", CPU, "Gemm"), conv("c_token_7", GPU)]
    assert judge(nodes, {"mm": 10, "c": 90}, least=0.5).share == pytest.approx(0.9)


def test_a_multiplying_node_of_an_unknown_name_stands_for_what_the_known_ones_leave() -> None:
    nodes = [conv("a", GPU), conv("made_up", CPU, "FusedMatMul"), Node("relu", "Relu", CPU)]
    placed = judge(nodes, {"a": 60, "lost": 40}, least=0.95)
    assert (placed.share, placed.fell) == (pytest.approx(0.6), ("made_up",))


def test_what_was_computed_beforehand_counts_for_nothing() -> None:
    assert judge([conv("a", GPU)], {"a": 60, "folded": 40}, least=0.95).share == 1.0


def test_what_nobody_can_tell_is_unknown_and_not_kept() -> None:
    assert judge(None, {"a": 1}, least=0.95).kept is None
    assert judge([conv("a", GPU)], None, least=0.95).kept is None
    assert judge([Node("relu", "Relu", CPU)], {}, least=0.95).kept is True


def test_the_line_counts_nodes_by_provider() -> None:
    assert placement.in_words([conv(str(i), GPU) for i in range(412)], [GPU, CPU]) == "412 of 412 nodes on TensorRT"
    assert placement.in_words([conv("a", CPU), conv("b", GPU), conv("c", GPU)], [GPU, CPU]) == "2 of 3 nodes on TensorRT, 1 of 3 nodes on CPU"
    assert placement.in_words(None, [CPU]) == "all nodes on CPU"
    assert placement.in_words(None, [GPU, CPU]) == ""
    assert placement.listed([str(i) for i in range(7)]) == "`0`, `1`, `2`, `3`, `4` and 2 more"


idle = pytest.mark.skipif("AzureExecutionProvider" not in onnxruntime.get_available_providers(), reason="every onnxruntime of PyPI's own has it")


def wanting(**runtime: Any) -> dict[str, Any]:
    return {**CPU_PROFILE, "name": "idle", "providers": IDLE, "runtime": {**CPU_PROFILE["runtime"], "least_placed": 0.95, **runtime}}


@idle
@pytest.mark.e2e
def test_a_model_that_silently_stays_on_the_cpu_is_refused_at_the_trial(shared: Agent, tmp_path: Path) -> None:
    job = shared.activate(make(tmp_path / "b", linear(), name="idle", profile=wanting(), macs={"mm": 24}))
    if not TELLS:
        placed = job["result"]["trial"]["placement"]
        assert (placed["share"], placed["kept"]) == (None, None)
        assert "unknown" in placed["said"]
        shared.ask("DELETE", "/edge/models/idle")
        return
    assert job["state"] == "failed"
    assert job["error"]["message"].startswith("0 % of the multiply-accumulates on the accelerator, 95 % wanted: `")
    assert job["error"]["message"].endswith("` fell to the CPU")
    assert "least_placed" in job["error"]["hint"]


@pytest.mark.e2e
def test_trying_another_devices_profile_checks_no_placement_and_says_so(shared: Agent, tmp_path: Path) -> None:
    job = shared.activate(make(tmp_path / "b", linear(), name="other", profile=wanting(), macs={"mm": 24}), as_profile=True)
    assert job["result"]["trial"]["placement"]["said"] == "placement not checked: another device's profile is tried here"
    missing = {**wanting(), "providers": [{"name": GPU, "options": {}}, IDLE[1]]}
    job = shared.activate(make(tmp_path / "c", linear(2), name="other", release=2, profile=missing, macs={"mm": 24}))
    assert job["result"]["trial"]["placement"]["kept"] is None
    assert "lets the CPU take its place" in job["result"]["trial"]["placement"]["said"]
    shared.ask("DELETE", "/edge/models/other")
