"""Operators become the DPU's, and the function changes by what the DPU approximates, no more."""

from collections.abc import Callable

import numpy as np
import pytest

from edgesdk import constraints, dpu, graph, passes, profiles, sampling
from edgesdk.graph import Array, Model
from edgesdk.passes.quantize import SETTINGS
from tests.sdk.small_models import answers, assert_same_function, build, node, numbers, operators

IMAGE = {"x": (1, 4, 6, 6)}
ANY = (None, None, None, None)
SIXTH = 2731 / 2**14


def of(*nodes: object, shape: tuple[int, ...] = IMAGE["x"], out: tuple[None, ...] = ANY, **weights: Array) -> Model:
    return build(list(nodes), inputs={"x": shape}, outputs={"y": out}, weights=weights)  # type: ignore[arg-type]


def gate(x: Array) -> Array:
    return np.asarray(np.clip(x + 3, 0, 6) * SIXTH)


@pytest.mark.parametrize(
    ("model", "found", "function"),
    [
        (of(node("Sigmoid", ["x"], ["y"])), {"HardSigmoid": 1, "Mul": 1}, gate),
        (of(node("HardSigmoid", ["x"], ["y"], alpha=1 / 6, beta=0.5)), {"HardSigmoid": 1, "Mul": 1}, gate),
        (of(node("HardSigmoid", ["x"], ["y"])), {"Conv": 1, "Mul": 1, "HardSigmoid": 1}, lambda x: gate(1.2 * x)),
        (of(node("HardSigmoid", ["x"], ["y"], alpha=0.2, beta=0.6)), {"Conv": 1, "Mul": 1, "HardSigmoid": 1}, lambda x: gate(1.2 * x + 0.6)),
        (of(node("HardSwish", ["x"], ["y"])), {"Mul": 2, "HardSigmoid": 1}, lambda x: x * gate(x)),
        (of(node("LeakyRelu", ["x"], ["y"], alpha=0.1)), {"LeakyRelu": 1}, lambda x: np.where(x < 0, x * 26 / 256, x)),
        (of(node("LeakyRelu", ["x"], ["y"])), {"LeakyRelu": 1}, lambda x: np.where(x < 0, x * 3 / 256, x)),
        (of(node("GlobalAveragePool", ["x"], ["y"])), {"GlobalAveragePool": 1, "Mul": 1}, lambda x: x.sum((2, 3), keepdims=True) * 7 / 256),
        (of(node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])), {"AveragePool": 1}, None),
        (of(node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2])), {"AveragePool": 1}, None),
        (of(node("ReduceMean", ["x"], ["y"], axes=[-1, 2])), {"GlobalAveragePool": 1, "Mul": 1}, lambda x: x.sum((2, 3), keepdims=True) * 7 / 256),
        (of(node("ReduceMean", ["x"], ["y"], axes=[1, 2])), {"ReduceMean": 1}, None),
        (of(node("Clip", ["x", "low", "high"], ["y"]), low=np.float32(0), high=np.float32(6)), {"Clip": 1}, None),  # type: ignore[arg-type]
        (of(node("Mul", ["x", "s"], ["t"]), node("Add", ["t", "d"], ["y"]), s=numbers(1, 4, 1, 1), d=numbers(4, 1, 1, seed=1)), {"Conv": 1}, None),
        (of(node("Split", ["x"], ["a", "b"], axis=1), node("Mul", ["a", "b"], ["y"])), {"Slice": 2, "Mul": 1}, None),
    ],
)
def test_an_operator_becomes_the_dpus(model: Model, found: dict[str, int], function: Callable[[Array], Array] | None) -> None:
    made = passes.rewrite_for_dpu(model)
    graph.check(made)
    assert operators(made) == found
    for feeds in sampling.generated(model, 3):
        expected = answers(model, feeds)["y"] if function is None else function(feeds["x"])
        np.testing.assert_allclose(answers(made, feeds)["y"], expected, rtol=1e-5, atol=1e-6)
    assert operators(passes.rewrite_for_dpu(made)) == found  # once is enough


def test_a_mean_that_drops_its_axes_still_does() -> None:
    made = passes.rewrite_for_dpu(of(node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0), shape=(2, 4, 4, 4), out=(None, None)))
    assert operators(made) == {"GlobalAveragePool": 1, "Flatten": 1}
    assert answers(made, {"x": numbers(2, 4, 4, 4)})["y"].shape == (2, 4)


def test_batch_normalization_that_nothing_takes_in_becomes_a_depthwise_convolution() -> None:
    weights = {name: numbers(4, seed=place) for place, name in enumerate("sbm")} | {"v": np.abs(numbers(4, seed=3)) + np.float32(0.1)}
    model = of(node("Relu", ["x"], ["r"]), node("BatchNormalization", ["r", "s", "b", "m", "v"], ["y"]), **weights)
    made = passes.rewrite_for_dpu(model)
    assert operators(made) == {"Relu": 1, "Conv": 1}
    assert_same_function(model, made)


@pytest.mark.parametrize(("height", "width", "pools"), [(16, 32, 1), (24, 24, 2), (20, 48, 2), (23, 29, 1)])
def test_a_large_pool_is_parted(height: int, width: int, pools: int) -> None:
    model = of(node("GlobalAveragePool", ["x"], ["y"]), shape=(1, 4, height, width))
    made = passes.rewrite_for_dpu(model)
    kernels = [dpu.pooled(each) for each in made.graph if each.op_type in dpu.POOLS]
    assert len(kernels) == pools
    for feeds in sampling.generated(model, 2):
        np.testing.assert_allclose(answers(made, feeds)["y"], answers(model, feeds)["y"], rtol=0.02, atol=1e-5)


def test_a_slope_is_taken_in_by_the_convolution_before() -> None:
    model = of(node("Conv", ["x", "w", "b"], ["c"]), node("HardSigmoid", ["c"], ["y"], beta=0.4), w=numbers(4, 4, 1, 1), b=numbers(4, seed=1))
    made = passes.rewrite_for_dpu(model)
    assert operators(made) == {"Conv": 1, "HardSigmoid": 1, "Mul": 1}
    assert_same_function(model, made, rtol=2e-4)


def test_what_was_not_rewritten_is_found_out() -> None:
    profile = profiles.find("kria-kv260")
    scheme = {key: value for key, value in profile.quantization.model_dump(mode="json").items() if key in SETTINGS}
    for each, rule in (
        (node("HardSwish", ["x"], ["y"]), "operator"),
        (node("HardSigmoid", ["x"], ["y"]), "slope"),
        (node("LeakyRelu", ["x"], ["y"], alpha=0.1), "slope"),
        (node("GlobalAveragePool", ["x"], ["y"]), "fixed-point reciprocal"),
    ):
        model = of(each)
        samples = sampling.generated(model, 2)
        made = passes.quantize(model, samples=samples, **scheme)
        assert rule in {violation.rule for violation in constraints.check(made, profile)}
        rewritten = passes.rewrite_for_dpu(model)
        assert constraints.check(passes.quantize(rewritten, samples=samples, **scheme), profile) == []


def test_reciprocals_are_amds() -> None:
    """Those that Quark lists, and for other kernels the best within seven more bits than the count has."""
    assert [dpu.reciprocal(side * side) for side in (3, 5, 6, 7, 14)] == [(7, 6), (10, 8), (7, 8), (21, 10), (21, 12)]
    for places in range(1, 513):
        factor, shift = dpu.reciprocal(places)
        assert abs(places * factor / 2**shift - 1) < 0.025
