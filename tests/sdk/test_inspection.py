"""What `inspect` counts, against what onnxruntime allocates and against an account by hand."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent import probe
from edgesdk import costs, graph, inspection, profiles
from edgesdk.errors import ModelError
from edgesdk.inspection import Memory, alone, inspect, memory
from edgesdk.replies import Facts, Looked
from tests.sdk.small_models import DATA, build, node, numbers

# Runs a model with neither optimizations nor packing, in an arena that grows by what is asked for and no more; its log tells how far.
ARENA = """
import sys
import numpy as np, onnxruntime as ort
from edgesdk import graph, sampling
from pathlib import Path
ort.set_default_logger_severity(0)
info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": 1, "initial_chunk_size_bytes": 256}))
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
options.intra_op_num_threads, options.enable_mem_pattern = 1, False
options.add_session_config_entry("session.use_env_allocators", "1")
options.add_session_config_entry("session.disable_prepacking", "1")
options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
model = graph.load(Path(sys.argv[1]))
feeds = next(iter(sampling.generated(model, 1).first(1)))
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print("begin", file=sys.stderr, flush=True)
session.run(None, feeds)
"""


def in_arena(path: Path) -> int:
    told = subprocess.run([sys.executable, "-c", ARENA, str(path)], capture_output=True, text=True, check=True).stderr
    running = told[told.rindex("\nbegin\n") :]
    return sum(map(int, re.findall(r"Extended allocation by (\d+) bytes", running)))


@pytest.mark.parametrize("name", ["resnet8_mnist", "resnet20_fashion", "mobilenet_fashion"])
def test_the_peak_is_no_more_than_the_arena_holds(name: str) -> None:
    path = DATA / f"{name}.onnx"
    found, arena = inspect(path).memory, in_arena(path)
    assert found is not None
    assert found.peak_bytes <= arena
    assert found.peak_bytes >= 0.3 * arena  # which holds the kernels' own scratch, too, and pieces that nothing larger fits into


def counted(*nodes: object, outputs: dict[str, tuple[int, ...]], **weights: np.ndarray) -> Memory:
    model = build(nodes, inputs={"x": (1, 8, 10, 10)}, outputs=outputs, weights=weights)  # type: ignore[arg-type]
    found = memory(graph.clone(model), dict.fromkeys(("x", "a", "b", "c", "y", "z"), (1, 8, 10, 10)))
    assert len(found.by_node) == len(nodes)
    return found


ONE = 8 * 10 * 10 * 4  # bytes of each tensor


def test_a_tensor_lives_until_its_last_reader() -> None:
    made = counted(
        node("Softmax", ["x"], ["a"], name="first"),
        node("Softmax", ["a"], ["b"], name="second"),
        node("Softmax", ["b"], ["c"], name="third"),
        node("Concat", ["a", "c"], ["y"], name="last", axis=0),
        outputs={"y": (2, 8, 10, 10)},
    )
    assert made.by_node == (ONE, 2 * ONE, 3 * ONE, 3 * ONE)  # the shape of `y` was told as one
    assert (made.peak_bytes, made.node) == (3 * ONE, "third")
    assert {each.tensor for each in made.tensors} == {"a", "b", "c"}


def test_what_writes_over_its_input_takes_nothing_unless_somebody_else_reads_that() -> None:
    alone_ = counted(node("Softmax", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Reshape", ["b", "s"], ["y"]), outputs={"y": (1, 8, 10, 10)}, s=SHAPE)
    assert alone_.by_node == (ONE, ONE, ONE)
    shared = counted(node("Softmax", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["a", "b"], ["y"]), outputs={"y": (1, 8, 10, 10)})
    assert shared.by_node == (ONE, 2 * ONE, 2 * ONE)
    of_the_caller = counted(node("Relu", ["x"], ["y"]), outputs={"y": (1, 8, 10, 10)})
    assert of_the_caller.by_node == (ONE,)


SHAPE = np.array([1, 8, 10, 10], np.int64)


def test_macs_come_by_operator_and_the_costliest_first() -> None:
    found = inspect(DATA / "resnet8_mnist.onnx")
    assert found.macs == 9_345_920  # so does onnx-tool 1.0.1, biases aside
    assert [each.name for each in found.operators[:2]] == ["Conv", "Gemm"]
    assert found.operators[0].macs == 9_345_280
    assert sum(each.count for each in found.operators) == sum(found.summary.operators.values())
    assert found.assumed == {"image": [1, 1, 28, 28]}
    assert found.rows()[0] == {"operator": "Conv", "count": found.operators[0].count, "macs": 9_345_280}
    assert found.cut is None


def test_a_profile_says_what_stays_and_what_falls() -> None:
    found = inspect(DATA / "bilstm_vowels.onnx", profiles.find("kria-kv260"))
    assert found.cut is not None
    assert found.cut.of == found.cut.nodes + len(found.cut.fell)
    assert found.cut.macs_share == pytest.approx(0.0)
    assert {violation.node for violation in found.violations} - {""} <= set(found.cut.fell)
    free = inspect(DATA / "bilstm_vowels.onnx", profiles.find("x86-cpu")).cut
    assert free is not None
    assert (free.nodes, free.parts, free.macs_share) == (free.of, 1, 1.0)


def test_a_model_that_does_not_run_here_is_told_of_as_far_as_can_be(tmp_path: Path) -> None:
    import onnx

    from tests.sdk.small_models import proto

    made = proto([node("Mystery", ["x"], ["y"], domain="acme"), node("Relu", ["y"], ["z"])], inputs={"x": (1, 4)}, outputs={"z": (1, 4)})
    made.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    onnx.save(made, tmp_path / "strange.onnx")
    found = inspect(tmp_path / "strange.onnx", profiles.find("x86-cpu"))
    assert (found.macs, found.memory) == (None, None)
    assert "acme" in found.unknown or "Mystery" in found.unknown
    assert [violation.rule for violation in found.violations] == ["operator"]
    assert found.cut is not None
    assert len(found.cut.fell) == 1


def test_kernels_are_timed_when_that_is_asked_for() -> None:
    found = inspect(DATA / "mobilenet_fashion.onnx", time_kernels=True)
    assert 1 <= len(found.kernels) <= 10
    assert [kernel.ms for kernel in found.kernels] == sorted((kernel.ms for kernel in found.kernels), reverse=True)
    assert sum(kernel.share for kernel in found.kernels) <= 1 + 1e-9
    named = {str(each.name): each.op_type for each in graph.clone(graph.load(DATA / "mobilenet_fashion.onnx")).graph}
    assert all(named[node] for kernel in found.kernels if kernel.node for node in (kernel.node, *kernel.fused))
    assert len({(kernel.node, kernel.fused, kernel.operator) for kernel in found.kernels}) == len(found.kernels)
    assert found.placement is None


def test_a_kernel_names_all_nodes_that_it_computes() -> None:
    model = build(
        [
            node("Conv", ["x", "w"], ["a"], name="conv", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"], name="relu"),
            node("Conv", ["b", "w"], ["c"], name="last"),
            node("Flatten", ["c"], ["d"], name="flat"),
            node("MatMul", ["d", "m"], ["e"], name="product"),
            node("Add", ["e", "bias"], ["y"], name="sum"),
        ],
        inputs={"x": (1, 32, 10, 10)},
        outputs={"y": (1, 8)},
        weights={"w": numbers(32, 32, 3, 3), "m": numbers(2048, 8), "bias": numbers(8)},
    )
    of = costs.computed(graph.clone(model))
    assert of("b_nchwc") == ("conv", "relu")  # as onnxruntime's blocked layout calls it
    assert (of("conv"), of("fused conv"), of("product/MatMulAddFusion/"), of("product/MatMulAddFusion_token_3")) == (("conv",), ("conv",), *[("product",)] * 2)
    assert of("ReorderOutput") == ()
    ran = {nodes for kernel in costs.kernels(graph.clone(model), [{"x": numbers(1, 32, 10, 10)}], threads=1) if (nodes := of(kernel["kernel"]))}
    assert {nodes[0] for nodes in ran} >= {"conv", "last", "product"}


def test_what_another_provider_left_to_the_cpu_is_named_with_the_parts_between() -> None:
    nodes = [("a", "Conv", "TensorrtExecutionProvider"), ("b", "Conv", "TensorrtExecutionProvider"), ("c", "Gemm", "CPUExecutionProvider")]
    looked = Looked.model_validate(
        {
            "provider": "TensorrtExecutionProvider",
            "nodes": "2 of 3 nodes on TensorRT, 1 of 3 nodes on CPU",
            "placed": [dict(zip(("name", "operator", "provider"), each, strict=True)) for each in nodes],
            "kernels": [],
            "runs": 12,
            "threads": 6,
            "onnxruntime": "1.32.0",
        }
    )
    facts = Facts.model_validate({**probe.facts(), "board": "Jetson Orin Nano"})
    found = inspection._placed(looked, facts, "jetson", {"a": 60, "b": 30, "c": 10})
    assert (found.share, found.fell, found.device) == (pytest.approx(0.9), ("c",), "Jetson Orin Nano")
    assert [(part.provider[:8], part.nodes, part.first, part.last) for part in found.parts] == [("Tensorrt", 2, "a", "b"), ("CPUExecu", 1, "c", "c")]


@pytest.mark.parametrize("name", ["resnet20_fashion", "bilstm_vowels", "mobilenet_fashion"])
def test_every_node_stands_alone_and_answers_as_it_does_within(name: str) -> None:
    path = DATA / f"{name}.onnx"
    model = graph.clone(graph.load(path))
    for each in [each for each in model.graph if each.op_type != "Constant"][:12]:
        single, feeds = alone(path, str(each.name))
        (answer, *_) = graph.run(graph.session(single), feeds).values()
        assert np.isfinite(answer).all()
        assert [str(inner.op_type) for inner in single.graph] == [each.op_type]


def test_a_node_answers_alone_what_it_answered_in_the_model(tmp_path: Path) -> None:
    model = build(
        [node("Conv", ["x", "w"], ["a"], name="conv"), node("Relu", ["a"], ["b"], name="relu"), node("Mul", ["b", "x"], ["y"], name="mul")],
        inputs={"x": (1, 3, 4, 4)},
        outputs={"y": (1, 3, 4, 4), "b": (1, 3, 4, 4)},
        weights={"w": numbers(3, 3, 1, 1)},
    )
    graph.save_as(model, tmp_path / "three.onnx")
    single, feeds = alone(tmp_path / "three.onnx", "mul")
    assert set(feeds) == {"b", "x"}
    whole = graph.run(graph.session(model), {"x": feeds["x"]})
    np.testing.assert_allclose(graph.run(graph.session(single), feeds)["y"], whole["y"], rtol=1e-6)
    conv, asked = alone(tmp_path / "three.onnx", "conv")
    assert set(asked) == {"x"}
    assert graph.describe(conv).parameters == 9


def test_a_node_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"no node of `resnet8_mnist\.onnx` is called `nowhere`"):
        alone(DATA / "resnet8_mnist.onnx", "nowhere")
