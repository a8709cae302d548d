"""Corrected models answer nearer to the original on average; nothing but biases changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk import graph, sampling
from edgesdk.errors import SampleError
from edgesdk.graph import Array, Model
from edgesdk.passes import SIMPLIFY, apply, quantize
from edgesdk.passes._bias_correction import bias_of, correct_bias
from edgesdk.passes._layers import walk
from edgesdk.sampling import Samples
from tests import digits
from tests.sdk.small_models import DATA, answers, build, node, numbers

X86: dict[str, Any] = {"operators": ["Conv", "Add", "Mul", "MatMul", "MaxPool", "Gemm"], "activations": "uint8", "symmetric": False}
COARSE: dict[str, Any] = {"operators": ["Conv", "Gemm", "Add"], "per_channel": False, "power_of_two": True, "bias": "int8"}


def pictures(model: Model, count: int) -> Samples:
    pixels, _ = digits.images()
    return sampling.of([{"image": pixel[None]} for pixel in pixels[:count]], model)


def simplified(path: Path) -> Model:
    return apply([{"pass": name} for name in SIMPLIFY], graph.load(path))


def channel_errors(original: Model, quantized: Model, samples: Samples) -> list[float]:
    """Mean error of each layer's channels, as the quantized network meets it: root of the mean square."""
    found = []
    for layer in walk(original, quantized, samples):
        wanted, seen = zip(*layer.outputs(), strict=True)
        lacks = (np.concatenate(wanted) - np.concatenate(seen)).mean(axis=(0, *range(2, wanted[0].ndim)))
        found.append(float(np.sqrt((lacks**2).mean()) / np.concatenate(wanted).std()))
    return found


def constants(model: Model) -> dict[str, Array]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None}


@pytest.mark.parametrize(("scheme", "left"), [(X86, 0.1), (COARSE, 0.6)], ids=["int32 bias", "int8 bias"])
@pytest.mark.parametrize("file", ["mobilenet_fashion.onnx", "resnet8_mnist.onnx"])
def test_the_mean_error_of_channels_shrinks(file: str, scheme: dict[str, Any], left: float) -> None:
    model = simplified(DATA / file)
    samples = pictures(model, 8)
    small = quantize(model, samples=samples, **scheme)
    bytes_before = graph.to_bytes(small)
    better = correct_bias(model, small, samples)
    graph.check(better)
    assert np.mean(channel_errors(model, better, samples)) < left * np.mean(channel_errors(model, small, samples))
    assert graph.to_bytes(small) == bytes_before


def test_only_biases_change_and_stay_on_their_grids() -> None:
    model = simplified(digits.MODEL)
    samples = pictures(model, 4)
    small = quantize(model, samples=samples, **X86)
    before, after = constants(small), constants(correct_bias(model, small, samples))
    biases = {place[0].inputs[place[1]].producer().inputs[0].name for layer in walk(model, small, samples) if (place := bias_of(layer.node, layer.channels))}  # type: ignore[union-attr]
    assert before.keys() == after.keys()
    changed = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert changed
    assert changed <= biases
    assert all(after[name].dtype == before[name].dtype for name in changed)


@pytest.mark.parametrize("operators", [["MatMul"], ["MatMul", "Add"]])
def test_what_is_added_to_a_matmul_is_its_bias(operators: list[str]) -> None:
    weights = {"w": numbers(16, 8), "b": numbers(8, seed=1), "v": numbers(8, 4, seed=2)}
    made = [node("MatMul", ["x", "w"], ["t"], name="first"), node("Add", ["b", "t"], ["u"], name="sum"), node("MatMul", ["u", "v"], ["y"], name="second")]
    model = build(made, inputs={"x": (32, 16)}, outputs={"y": (32, 4)}, weights=weights)
    samples = sampling.generated(model, 4)
    small = quantize(model, samples=samples, **{**X86, "operators": operators})
    places = {str(layer.node.name): bias_of(layer.node, layer.channels) for layer in walk(model, small, samples)}
    assert {name: place and place[0].name for name, place in places.items()} == {"first": "sum", "second": None}
    better = correct_bias(model, small, samples)
    before, after = channel_errors(model, small, samples)[1], channel_errors(model, better, samples)[1]
    assert after < before or operators != ["MatMul"]  # eight bits of the summand are coarser than the error
    assert after <= before


def test_the_same_samples_give_the_same_bytes() -> None:
    model = graph.load(digits.MODEL)
    small = quantize(model, samples=pictures(model, 4), **X86)
    assert len({graph.to_bytes(correct_bias(model, small, pictures(model, 4))) for _ in range(2)}) == 1


def test_a_model_that_is_not_quantized_is_left_and_empty_samples_are_refused() -> None:
    model = graph.load(digits.MODEL)
    assert graph.to_bytes(correct_bias(model, model, pictures(model, 1))) == graph.to_bytes(model)
    small = quantize(model, samples=pictures(model, 2), **X86)
    with pytest.raises(SampleError, match="holds no samples"):
        correct_bias(model, small, Samples("nothing", lambda: iter(())))


def test_progress_counts_the_layers() -> None:
    model = graph.load(digits.MODEL)
    small = quantize(model, samples=pictures(model, 2), **X86)
    told: list[tuple[int, int]] = []
    correct_bias(model, small, pictures(model, 2), progress=lambda done, total: told.append((done, total)))
    assert told == [(index, len(told)) for index in range(1, len(told) + 1)]
    assert len(told) == sum(1 for each in model.graph if each.op_type in ("Conv", "Gemm"))


def test_answers_stay_finite_where_a_sample_overflows() -> None:
    made = [node("Exp", ["x"], ["t"]), node("Conv", ["t", "w", "b"], ["y"])]
    model = build(made, inputs={"x": (1, 2, 3, 3)}, outputs={"y": (None, None, None, None)}, weights={"w": numbers(2, 2, 1, 1), "b": numbers(2)})
    mild = sampling.of([{"x": numbers(1, 2, 3, 3)}], model)
    wild = sampling.of([{"x": np.full((1, 2, 3, 3), 1e3, np.float32)}], model)
    small = quantize(model, samples=mild, **X86)
    corrected = correct_bias(model, small, wild)
    assert all(np.isfinite(array).all() for array in answers(corrected, next(iter(mild))).values())
