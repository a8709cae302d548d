"""Smoothed models are the same function; the activations' channels have become more alike."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import graph, sampling
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Model
from edgesdk.passes import smooth
from edgesdk.sampling import Samples
from tests.sdk.small_models import DATA, GRAPHS, answers, assert_same_function, build, chains, node, numbers

OUTLIERS = np.float32([1, 1, 40, 1, 1, 0.02, 1, 1])


def layer_norm(readers: int = 1, *, also: bool = False) -> Model:
    """A LayerNormalization with channels of unlike size, and MatMuls that read it; ``also``: something else does too."""
    made = [node("LayerNormalization", ["x", "scale", "offset"], ["t"])]
    made += [node("MatMul", ["t", f"w{index}"], [f"y{index}"], name=f"product{index}") for index in range(readers)]
    made += [node("Add", ["t", "x"], ["z"])] if also else []
    weights = {"scale": OUTLIERS, "offset": numbers(8), **{f"w{index}": numbers(8, 5, seed=index) for index in range(readers)}}
    outputs: dict[str, tuple[None, ...]] = {f"y{index}": (None, None, None) for index in range(readers)}
    return build(made, inputs={"x": (1, 6, 8)}, outputs={**outputs, **({"z": (None, None, None)} if also else {})}, weights=weights)


def sizes(model: Model, name: str) -> Array:
    """The channels' greatest magnitudes, of one feed."""
    measured = graph.clone(model)
    value = next(value for node in measured.graph for value in node.outputs if value.name == name)
    measured.graph.outputs.append(value)
    graph.infer_shapes(measured)
    feeds = next(iter(sampling.generated(model, 1)))
    return np.asarray(np.abs(answers(measured, feeds)[name]).reshape(-1, 8).max(axis=0))


def smoothed(model: Model, **more: float) -> Model:
    return smooth(model, samples=sampling.generated(model, 2), **more)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains(), alpha=st.sampled_from([0.0, 0.5, 0.8]))
def test_any_graph_keeps_its_function(model: Model, alpha: float) -> None:
    before = graph.to_bytes(model)
    even = smoothed(model, alpha=alpha)
    graph.check(even)
    assert_same_function(model, even)
    assert graph.to_bytes(model) == before


@pytest.mark.slow
@settings(max_examples=GRAPHS // 2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains(), alpha=st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_many_graphs_keep_their_function(model: Model, alpha: float) -> None:
    assert_same_function(model, smoothed(model, alpha=alpha))


@pytest.mark.parametrize("readers", [1, 3])
def test_outliers_after_a_layer_norm_move_into_the_weights(readers: int) -> None:
    model = layer_norm(readers)
    even = smoothed(model)
    assert_same_function(model, even)
    before, after = sizes(model, "t"), sizes(even, "t")
    assert after.max() / np.median(after) < 0.4 * before.max() / np.median(before)


def test_what_something_else_reads_too_is_left() -> None:
    model = layer_norm(also=True)
    assert smoothed(model) is model


MAKERS: dict[str, list[object]] = {
    "a product, and what is added to it": [node("MatMul", ["x", "v"], ["p"]), node("Add", ["p", "offset"], ["t"])],
    "a factor and a summand": [node("Mul", ["scale", "x"], ["p"]), node("Add", ["p", "offset"], ["t"])],
    "a scalar factor": [node("Mul", ["x", "three"], ["t"])],
    "a Relu between": [node("MatMul", ["x", "v"], ["p"]), node("Relu", ["p"], ["t"])],
}


@pytest.mark.parametrize("maker", list(MAKERS))
def test_every_maker_that_has_constants_takes_the_factors(maker: str) -> None:
    weights = {"scale": OUTLIERS, "offset": numbers(1, 8), "three": np.array(3, np.float32), "v": numbers(8, 8, seed=2) * OUTLIERS, "w": numbers(8, 5, seed=3)}
    made = [*MAKERS[maker], node("MatMul", ["t", "w"], ["y"], name="last")]
    model = build(made, inputs={"x": (2, 6, 8)}, outputs={"y": (None, None, None)}, weights=weights)  # type: ignore[arg-type]
    even = smoothed(model)
    assert even is not model
    assert_same_function(model, even)
    assert not np.array_equal(sizes(even, "t"), sizes(model, "t"))


def test_a_maker_without_constants_is_left() -> None:
    made = [node("Gelu", ["x"], ["t"]), node("MatMul", ["t", "w"], ["y"])]
    model = build(made, inputs={"x": (1, 6, 8)}, outputs={"y": (None, None, None)}, weights={"w": numbers(8, 5)}, opset=20)
    assert smoothed(model) is model


def test_channels_of_a_batch_norm_and_depthwise_convs() -> None:
    made = [node("BatchNormalization", ["x", "scale", "offset", "mean", "variance"], ["t"])]
    made += [node("Conv", ["t", "w"], ["y"], group=8, pads=[1] * 4), node("Conv", ["t", "v"], ["z"], group=2)]
    weights = {"scale": OUTLIERS, "offset": numbers(8), "mean": numbers(8, seed=1), "variance": np.abs(numbers(8, seed=2)) + np.float32(0.1)}
    weights |= {"w": numbers(8, 1, 3, 3, seed=3), "v": numbers(4, 4, 1, 1, seed=4)}
    any_image = (None, None, None, None)
    model = build(made, inputs={"x": (1, 8, 5, 5)}, outputs={"y": any_image, "z": any_image}, weights=weights)
    even = smoothed(model)
    assert even is not model
    assert_same_function(model, even)


def test_a_real_model_keeps_its_function_and_its_bytes() -> None:
    model = graph.load(DATA / "mobilenet_fashion.onnx")
    even = smoothed(model)
    assert_same_function(model, even)
    assert graph.to_bytes(even) == graph.to_bytes(smoothed(model))


def test_a_share_beyond_one_and_empty_samples_are_refused() -> None:
    with pytest.raises(ModelError, match="alpha is 2"):
        smoothed(layer_norm(), alpha=2)
    with pytest.raises(SampleError, match="holds no samples"):
        smooth(layer_norm(), samples=Samples("nothing", lambda: iter(())))
