"""Equalized models are the same function, their channels even."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import graph, sampling
from edgesdk.graph import Array, Model
from edgesdk.passes import equalize
from tests.sdk.small_models import DATA, GRAPHS, answers, assert_same_function, build, chains, node, numbers

ANY = (None, None, None, None)
BETWEEN = {"": [], "Relu": ["Relu"], "LeakyRelu": ["LeakyRelu"], "MaxPool": ["Relu", "MaxPool"], "HardSwish": ["HardSwish"], "Sigmoid": ["Sigmoid"]}


def pair(between: list[str], *, group: int = 1, spread: float = 4.0) -> Model:
    """Two Convs with that between them; the first one's channels unlike each other by some powers of ten."""
    sizes = (10 ** np.linspace(-spread / 2, spread / 2, 8)).astype(np.float32)
    weights = {"w0": numbers(8, 4, 3, 3) * sizes.reshape(-1, 1, 1, 1), "b0": numbers(8, seed=1) * sizes, "w1": numbers(8, 8 // group, 1, 1, seed=2)}
    made = [node("Conv", ["x", "w0", "b0"], ["t0"], name="first", pads=[1] * 4)]
    for index, operator in enumerate(between):
        more = {"kernel_shape": [2, 2]} if operator == "MaxPool" else {}
        made.append(node(operator, [f"t{index}"], [f"t{index + 1}"], **more))
    made.append(node("Conv", [f"t{len(between)}", "w1"], ["y"], name="second", group=group))
    return build(made, inputs={"x": ("n", 4, 6, 6)}, outputs={"y": ANY}, weights=weights)


def weight(model: Model, name: str) -> Array:
    found = graph.constant(next(node.inputs[1] for node in model.graph if node.name == name))
    assert found is not None
    return found


def same_bits(before: Model, after: Model, count: int = 2) -> bool:
    return all(
        np.array_equal(array, answers(after, feeds)[name], equal_nan=True)
        for feeds in sampling.generated(before, count)
        for name, array in answers(before, feeds).items()
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_any_graph_keeps_its_function(model: Model) -> None:
    before = graph.to_bytes(model)
    even = equalize(model, powers_of_two=False)
    graph.check(even)
    assert_same_function(model, even)
    assert graph.to_bytes(model) == before


@pytest.mark.slow
@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains(), powers_of_two=st.booleans())
def test_many_graphs_keep_their_function(model: Model, powers_of_two: bool) -> None:
    assert_same_function(model, equalize(model, powers_of_two=powers_of_two))


@pytest.mark.parametrize("between", ["", "Relu", "LeakyRelu", "MaxPool"])
@pytest.mark.parametrize("group", [1, 2, 8])
def test_both_sides_of_a_channel_come_to_the_same_size(between: str, group: int) -> None:
    even = equalize(pair(BETWEEN[between], group=group), powers_of_two=False)
    made = np.abs(weight(even, "first")).reshape(8, -1).max(axis=1)
    read = np.abs(weight(even, "second")).reshape(group, 8 // group, 8 // group).max(axis=1).ravel()
    np.testing.assert_allclose(made, read, rtol=0.02)


@pytest.mark.parametrize("between", ["", "Relu", "LeakyRelu", "MaxPool"])
def test_powers_of_two_give_the_same_bits(between: str) -> None:
    model = pair(BETWEEN[between])
    even = equalize(model)
    assert same_bits(model, even)
    made, read = np.abs(weight(even, "first")).reshape(8, -1).max(axis=1), np.abs(weight(even, "second"))[:, :, 0, 0].max(axis=0)
    assert np.abs(np.log2(made / read)).max() <= 1.001  # of a factor of ten thousand


@pytest.mark.parametrize("between", ["HardSwish", "Sigmoid"])
def test_what_is_not_homogeneous_is_left(between: str) -> None:
    model = pair(BETWEEN[between])
    assert np.array_equal(weight(equalize(model), "first"), weight(model, "first"))


def test_a_tensor_that_others_read_is_left() -> None:
    made = [node("Conv", ["x", "w"], ["t"], name="first"), node("Conv", ["t", "v"], ["y"], name="second"), node("Relu", ["t"], ["z"])]
    model = build(made, inputs={"x": (1, 4, 6, 6)}, outputs={"y": ANY, "z": ANY}, weights={"w": numbers(4, 4, 1, 1, scale=9), "v": numbers(4, 4, 1, 1, seed=1)})
    assert np.array_equal(weight(equalize(model), "first"), weight(model, "first"))


def test_dead_channels_and_infinite_weights_are_left() -> None:
    model = pair(["Relu"])
    first, second = weight(model, "first").copy(), weight(model, "second").copy()
    first[0], second[:, 1], first[2, 0, 0, 0] = 0, 0, np.inf
    made = [node("Conv", ["x", "w"], ["t"], name="first", pads=[1] * 4), node("Relu", ["t"], ["u"]), node("Conv", ["u", "v"], ["y"], name="second")]
    for weights in (first, np.where(np.isfinite(first), first, 1)):
        given = build(made, inputs={"x": (1, 4, 6, 6)}, outputs={"y": ANY}, weights={"w": weights.astype(np.float32), "v": second})
        assert same_bits(given, equalize(given))


def test_weights_that_two_layers_share_become_two() -> None:
    made = [node("Conv", ["x", "w", "b"], ["t"]), node("Relu", ["t"], ["u"]), node("Conv", ["u", "w", "b"], ["y"])]
    model = build(made, inputs={"x": (1, 4, 6, 6)}, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1) ** 3, "b": numbers(4, seed=1)})
    assert same_bits(model, equalize(model))


def test_a_pooled_and_flattened_tensor_reaches_the_gemm() -> None:
    sizes = np.float32([1e-2, 1, 1e2, 1])
    made = [node("Conv", ["x", "w"], ["t"], name="first"), node("Relu", ["t"], ["u"]), node("GlobalAveragePool", ["u"], ["p"]), node("Flatten", ["p"], ["f"])]
    made.append(node("Gemm", ["f", "v"], ["y"], name="second", transB=1))
    weights = {"w": numbers(4, 4, 1, 1) * sizes.reshape(-1, 1, 1, 1), "v": numbers(3, 4, seed=1)}
    model = build(made, inputs={"x": (1, 4, 6, 6)}, outputs={"y": (1, 3)}, weights=weights)
    even = equalize(model)
    assert same_bits(model, even)
    assert not np.array_equal(weight(even, "second"), weight(model, "second"))


def test_a_real_model_answers_the_same_bits() -> None:
    model = graph.load(DATA / "mobilenet_fashion.onnx")
    even = equalize(model)
    assert same_bits(model, even)
    assert graph.to_bytes(even) == graph.to_bytes(equalize(model))
