"""Whole numbers give what onnxruntime gives, on every file that is quantized for the Vitis DPU."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import constraints, fixed_point, graph, passes, profiles, sampling
from edgesdk.fixed_operators import Fixed
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes.quantize import SETTINGS
from edgesdk.sampling import Samples
from tests import digits
from tests.sdk.small_models import DATA, GRAPHS, build, chains, node, numbers

PROFILE = profiles.find("kria-kv260")
SCHEME = {key: value for key, value in PROFILE.quantization.model_dump(mode="json").items() if key in SETTINGS}
IMAGE = {"x": (1, 4, 8, 8)}


def for_the_dpu(model: Model, samples: Samples) -> Model:
    recipe: list[dict[str, Any]] = [{"pass": "fix_shapes", "settings": {"shapes": samples.shapes()}}, *({"pass": each} for each in passes.SIMPLIFY)]
    return passes.apply([*recipe, {"pass": "rewrite_for_dpu"}, {"pass": "quantize", "settings": SCHEME}], model, samples)


def assert_exact(made: Model, feeds: Feeds, *, at_least: int = 1) -> None:
    found = fixed_point.agreement(made, feeds)
    assert found.differences == ()
    assert found.tensors >= at_least


def layer(*nodes: object, weights: dict[str, Array] | None = None, out: tuple[int | None, ...] = (None, None, None, None)) -> Model:
    """A Conv, then these, from c to y."""
    made = [node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), *nodes]
    known = {"w": numbers(4, 4, 3, 3, scale=0.3), "b": numbers(4, seed=1), **(weights or {})}
    return build(made, inputs=IMAGE, outputs={"y": out}, weights=known)  # type: ignore[arg-type]


LAYERS = {
    "relu": layer(node("Relu", ["c"], ["y"])),
    "relu6": layer(node("Clip", ["c", "low", "high"], ["y"]), weights={"low": np.float32(0), "high": np.float32(6)}),  # type: ignore[dict-item]
    "leaky": layer(node("LeakyRelu", ["c"], ["y"], alpha=0.1)),
    "sigmoid": layer(node("Sigmoid", ["c"], ["y"])),
    "hard sigmoid of another slope": layer(node("HardSigmoid", ["c"], ["y"], alpha=0.2, beta=0.5)),
    "hard swish": layer(node("HardSwish", ["c"], ["y"])),
    "pool of 3": layer(node("AveragePool", ["c"], ["y"], kernel_shape=[3, 3], strides=[2, 2])),
    "pool of 3, padded, counted": layer(node("AveragePool", ["c"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)),
    "pool of 3 × 2": layer(node("AveragePool", ["c"], ["y"], kernel_shape=[3, 2])),
    "pool of 7": layer(node("AveragePool", ["c"], ["y"], kernel_shape=[7, 7])),
    "global pool": layer(node("GlobalAveragePool", ["c"], ["y"])),
    "mean": layer(node("ReduceMean", ["c"], ["y"], axes=[2, 3], keepdims=0), out=(None, None)),
    "greatest": layer(node("MaxPool", ["c"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1)),
    "transposed": layer(
        node("ConvTranspose", ["c", "v", "d"], ["y"], group=2, strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 1]),
        weights={"v": numbers(4, 3, 3, 3, seed=2), "d": numbers(6, seed=3)},
    ),
    "dilated": layer(node("Conv", ["c", "v"], ["y"], dilations=[2, 2], strides=[2, 1], group=2), weights={"v": numbers(6, 2, 3, 3, seed=2)}),
    "matrix": layer(node("Flatten", ["c"], ["f"]), node("Gemm", ["f", "v"], ["y"], transB=1), weights={"v": numbers(5, 256, seed=2)}, out=(None, None)),
    "residual": layer(node("Add", ["c", "x"], ["y"])),
    "difference": layer(node("Sub", ["c", "x"], ["s"]), node("Relu", ["s"], ["y"])),
    "product": layer(node("Mul", ["c", "x"], ["y"])),
    "joined": layer(node("MaxPool", ["x"], ["m"], kernel_shape=[3, 3], pads=[1] * 4), node("Concat", ["c", "m", "x"], ["y"], axis=1)),
    "enlarged": layer(
        node("Resize", ["c", "", "s"], ["e"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Relu", ["e"], ["y"]),
        weights={"s": np.array([1, 1, 2, 3], np.float32)},
    ),
    "padded": layer(node("Pad", ["c", "p"], ["e"]), node("Relu", ["e"], ["y"]), weights={"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}),
    "parts": layer(node("Split", ["c"], ["e", "f"], axis=1), node("Mul", ["e", "f"], ["y"])),
    "turned": layer(node("Transpose", ["c"], ["e"], perm=[0, 3, 1, 2]), node("Relu", ["e"], ["y"])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_computed_bit_by_bit(name: str) -> None:
    samples = sampling.generated(LAYERS[name], 4)
    made = for_the_dpu(LAYERS[name], samples)
    assert constraints.check(made, PROFILE) == []
    quantized = sum(each.op_type == "QuantizeLinear" for each in made.graph)
    for feeds in samples:
        assert_exact(made, feeds, at_least=quantized - 1)  # the input alone is quantized from float32


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_any_graph_is_computed_bit_by_bit(model: Model) -> None:
    exact(model)


@pytest.mark.slow
@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_many_graphs_are_computed_bit_by_bit(model: Model) -> None:
    exact(model)


def exact(model: Model) -> None:
    samples = sampling.generated(model, 2)
    made = for_the_dpu(model, samples)
    assert constraints.check(made, PROFILE) == []
    for feeds in samples:
        assert_exact(made, feeds, at_least=0)


@pytest.mark.parametrize("name", ["resnet8_mnist", "resnet20_fashion", "mobilenet_fashion"])
def test_a_trained_model_is_computed_bit_by_bit(name: str) -> None:
    pixels, _ = digits.images()
    model = graph.load(DATA / f"{name}.onnx")
    samples = sampling.of([{"image": pixel[None]} for pixel in pixels[:4]], model)
    made = for_the_dpu(model, samples)
    quantized = sum(each.op_type == "QuantizeLinear" for each in made.graph)
    for feeds in samples:
        assert_exact(made, feeds, at_least=quantized - 1)


def test_a_file_that_float32_rounds_where_the_hardware_does_not_is_found_out() -> None:
    """125 + 2^-30 is more than 125 in whole numbers, so half of it is rounded up."""
    model = build(
        [
            node("QuantizeLinear", ["x", "one", "nought"], ["xq"]),
            node("DequantizeLinear", ["xq", "one", "nought"], ["xd"]),
            node("DequantizeLinear", ["tiny", "fine", "nought"], ["d"]),
            node("Add", ["xd", "d"], ["s"]),
            node("QuantizeLinear", ["s", "two", "nought"], ["sq"]),
            node("DequantizeLinear", ["sq", "two", "nought"], ["y"]),
        ],
        inputs={"x": (1,)},
        outputs={"y": (1,)},
        weights={
            **{name: np.array(scale, np.float32) for name, scale in (("one", 1), ("two", 2), ("fine", 2.0**-30))},
            "nought": np.array(0, np.int8),
            "tiny": np.array([1], np.int8),
        },
    )
    feeds = {"x": np.array([125], np.float32)}
    assert fixed_point.agreement(model, feeds) == fixed_point.Agreement(1, 1, 0, (fixed_point.Difference("sq", 1, 1, 1),))
    assert fixed_point.evaluate(model, feeds)["sq"].tolist() == [63]
    assert "shift_read" in {each.rule for each in constraints.check(model, PROFILE)}


def test_halves_are_rounded_to_even_or_up_and_counted() -> None:
    model = build([node("Add", ["x", "x"], ["s"]), node("Relu", ["s"], ["y"])], inputs={"x": (1, 4)}, outputs={"y": (1, 4)})
    value = Fixed(np.array([1, 3, 5, -1]), 1)
    even, up = (fixed_point._rounded(value, 0, rounding) for rounding in ("half even", "half up"))  # type: ignore[arg-type]
    assert (even.integers.tolist(), up.integers.tolist()) == ([0, 2, 2, 0], [1, 2, 3, 0])
    assert even.ties == up.ties == 4
    samples = sampling.generated(model, 1)
    made = passes.quantize(model, samples=samples, **SCHEME)
    (feeds,) = samples
    assert fixed_point.evaluate(made, feeds).keys() == {"x_quantized", "y_quantized"}


@given(
    integers=st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=8),
    position=st.integers(-70, 70),
    target=st.integers(-70, 70),
    divisor=st.integers(1, 500),
)
def test_rounding_is_that_of_exact_fractions(integers: list[int], position: int, target: int, divisor: int) -> None:
    found = fixed_point._rounded(Fixed(np.array(integers, np.int64), position, divisor), target, "half even").integers
    exact_values = [Fraction(each, divisor) * Fraction(2) ** (target - position) for each in integers]
    assert found.tolist() == [max(-128, min(127, round(each))) for each in exact_values]
