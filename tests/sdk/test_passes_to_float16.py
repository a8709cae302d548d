"""float16 inside, float32 outside and on islands."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from edgesdk import constraints, graph, passes, profiles, sampling
from edgesdk.graph import Array, Model
from edgesdk.passes.to_float16 import beyond_float16
from tests.sdk.small_models import DATA, answers, assert_same_function, build, chains, node, numbers, operators

VECTOR = {"x": ("n", 4)}
KEPT = profiles.find("jetson").quantization.keep_float32


@pytest.mark.parametrize("file", ["resnet8_mnist.onnx", "mobilenet_fashion.onnx", "bilstm_vowels.onnx"])
def test_real_models_are_half_as_large_and_answer_nearly_the_same(file: str) -> None:
    model = graph.load(DATA / file)
    half = passes.apply([*({"pass": name} for name in passes.SIMPLIFY), {"pass": "to_float16", "settings": {"keep_float32": list(KEPT)}}], model)
    assert graph.describe(half).weight_bytes < 0.55 * graph.describe(model).weight_bytes
    assert constraints.check(half, profiles.find("jetson")) == []
    assert_same_function(model, half, rtol=0.02)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_any_graph_stays_valid_and_outside_float32(model: Model) -> None:
    before = graph.to_bytes(model)
    half = passes.to_float16(model, keep_float32=["Sigmoid", "Add"])
    graph.check(half)
    assert graph.inputs(half) == graph.inputs(model)
    assert [(info.name, info.dtype) for info in graph.outputs(half)] == [(info.name, info.dtype) for info in graph.outputs(model)]
    answers(half, next(iter(sampling.generated(model, 1))))
    assert graph.to_bytes(model) == before


def test_an_island_has_casts_at_its_shore_only() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Softmax", ["a"], ["b"]), node("ReduceMean", ["b"], ["c"], axes=[1]), node("Relu", ["c"], ["y"])]
    half = passes.to_float16(build(nodes, inputs=VECTOR, outputs={"y": (None, 1)}), keep_float32=KEPT)
    assert operators(half)["Cast"] == 4  # in, onto the island, off it, out


def test_constants_that_float16_has_not_are_moved_and_told() -> None:
    constants: dict[str, Array] = {
        "big": np.array([[1e9, -np.inf, 1, 2]], np.float32),
        "tiny": np.array([[1e-12, 0, 1, 1]], np.float32),
        "plain": np.array([[1, 2, 3, 4]], np.float32),
    }
    nodes = [node("Add", ["x", "big"], ["a"]), node("Mul", ["a", "tiny"], ["b"]), node("Add", ["b", "plain"], ["y"])]
    model = build(nodes, inputs=VECTOR, outputs={"y": (None, 4)}, weights=constants)
    assert beyond_float16(model) == ["big", "tiny"]
    values = {name: value.const_value.numpy() for name, value in passes.to_float16(model).graph.initializers.items() if value.const_value is not None}
    assert values["big_float16"].tolist() == [[65504, -np.inf, 1, 2]]
    assert values["tiny_float16"][0, 0] > 0
    assert values["tiny_float16"][0, 1] == 0


def test_what_must_be_float32_by_the_operators_definition_stays() -> None:
    model = build(
        [node("Resize", ["x", "", "s"], ["r"], mode="nearest"), node("Relu", ["r"], ["y"])],
        inputs={"x": ("n", 4, 6, 6)}, outputs={"y": (None, None, None, None)}, weights={"s": np.array([1, 1, 2, 2], np.float32)},
    )  # fmt: skip
    half = passes.to_float16(model)
    graph.check(half)
    assert_same_function(model, half, rtol=0.01)


def test_subgraphs_read_float32_of_the_graph_around_them() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        value = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph([node(operator, ["r", "w"], ["out"])], operator, [], [value])

    nodes = [
        node("Relu", ["x"], ["r"]), node("ReduceSum", ["r"], ["s"], keepdims=0), node("Greater", ["s", "k"], ["c"]),
        node("If", ["c"], ["z"], then_branch=branch("Add"), else_branch=branch("Mul")), node("Neg", ["z"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, inputs=VECTOR, outputs={"y": (None, None)}, weights={"k": np.asarray(2, np.float32), "w": numbers(4)})
    half = passes.to_float16(model)
    graph.check(half)
    assert_same_function(model, half, rtol=0.01)
