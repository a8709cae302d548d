"""Reconstructed layers are nearer to what they were; only integers of weights change."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk import graph, sampling, saturation
from edgesdk.graph import Array, Model
from edgesdk.passes import SIMPLIFY, apply, quantize
from edgesdk.passes._layers import Layer, walk
from edgesdk.passes._patches import columns, from_matrix, matrix, positions
from edgesdk.passes._reconstruction import reconstruct
from edgesdk.sampling import Samples
from tests import digits
from tests.sdk.small_models import DATA, answers, build, node, numbers

X86: dict[str, Any] = {"operators": ["Conv", "Add", "Mul", "MatMul", "MaxPool", "Gemm"], "activations": "uint8", "symmetric": False}
SEVEN_BITS: dict[str, Any] = {**X86, "reduce_range": True}
COARSE: dict[str, Any] = {"operators": ["Conv", "Gemm", "Add"], "per_channel": False, "power_of_two": True, "bias": "int8"}
SCHEMES = pytest.mark.parametrize("scheme", [X86, SEVEN_BITS, COARSE], ids=["per channel", "7 bits", "power of two"])


def pictures(model: Model, count: int) -> Samples:
    pixels, _ = digits.images()
    return sampling.of([{"image": pixel[None]} for pixel in pixels[:count]], model)


def error(layer: Layer) -> float:
    return float(sum(((wanted - found).astype(np.float64) ** 2).sum() for wanted, found in layer.outputs()))


@SCHEMES
@pytest.mark.parametrize("file", [pytest.param("mobilenet_fashion.onnx", marks=pytest.mark.slow), "resnet8_mnist.onnx"])
def test_every_layer_that_changes_is_nearer_to_what_it_was(file: str, scheme: dict[str, Any]) -> None:
    model = graph.load(DATA / file)
    samples = pictures(model, 2)
    small = quantize(model, samples=samples, **scheme)
    better = reconstruct(model, small, samples)
    changed = 0
    for layer, nearest in zip(walk(model, better, samples), [layer.integers() for layer in walk(model, small, samples)], strict=True):
        found = layer.integers()
        if not np.array_equal(found, nearest):
            now = error(layer)
            layer.write_weight(nearest)
            before = error(layer)
            layer.write_weight(found)
            assert now < before, layer.node.name
            changed += 1
    assert changed > 5


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [X86, SEVEN_BITS], ids=["per channel", "7 bits"])
def test_the_model_answers_nearer_to_the_original_on_pictures_it_has_not_seen(scheme: dict[str, Any]) -> None:
    model = apply([{"pass": name} for name in SIMPLIFY], graph.load(digits.MODEL))
    small = quantize(model, samples=pictures(model, 16), **scheme)
    better = reconstruct(model, small, pictures(model, 16))
    pixels, _ = digits.images()

    def distance(made: Model) -> float:
        pairs = [(answers(model, {"image": each[None]}), answers(made, {"image": each[None]})) for each in pixels[200:260]]
        return float(np.sqrt(np.mean([((wanted["logits"] - found["logits"]) ** 2).mean() for wanted, found in pairs])))

    assert distance(better) < 0.8 * distance(small)


def constants(model: Model) -> dict[str, Array]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None}


@SCHEMES
def test_only_the_integers_of_weights_change_and_stay_in_range(scheme: dict[str, Any]) -> None:
    model = graph.load(digits.MODEL)
    samples = pictures(model, 2)
    small = quantize(model, samples=samples, **scheme)
    bytes_before = graph.to_bytes(small)
    better = reconstruct(model, small, samples)
    assert graph.to_bytes(small) == bytes_before
    before, after = constants(small), constants(better)
    assert before.keys() == after.keys()
    weights = {str(layer.node.inputs[1].producer().inputs[0].name) for layer in walk(model, small, samples)}  # type: ignore[union-attr]
    changed = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert changed
    assert changed <= weights
    for name in changed:
        assert after[name].dtype == np.int8
        assert after[name].min() >= -127
        assert not saturation.possible(after[name], 0) or saturation.possible(before[name], 0)
    if scheme is SEVEN_BITS:
        assert not any(saturation.possible(after[name], 0) for name in weights)


def test_the_same_samples_give_the_same_bytes() -> None:
    model = graph.load(digits.MODEL)
    small = quantize(model, samples=pictures(model, 2), **X86)
    assert len({graph.to_bytes(reconstruct(model, small, pictures(model, 2))) for _ in range(2)}) == 1


def test_weights_that_two_layers_share_become_two() -> None:
    made = [node("Conv", ["x", "w", "b"], ["t"], name="first"), node("Relu", ["t"], ["u"]), node("Conv", ["u", "w", "b"], ["y"], name="second")]
    weights = {"w": numbers(8, 8, 3, 3, scale=0.2), "b": numbers(8, seed=1)}
    model = build(made, inputs={"x": (1, 8, 9, 9)}, outputs={"y": (None, None, None, None)}, weights=weights)
    samples = sampling.generated(model, 4)
    better = reconstruct(model, quantize(model, samples=samples, **X86), samples)
    first, second = (layer.integers() for layer in walk(model, better, samples))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("way", ["MatMul", "Gemm", "Gemm transB"])
def test_products_are_reconstructed(way: str) -> None:
    weight = numbers(24, 12)
    more = {"transB": 1} if way == "Gemm transB" else {}
    inputs = ["x", "w"] if way == "MatMul" else ["x", "w", "b"]
    weights = {"w": weight.T.copy() if more else weight} | ({} if way == "MatMul" else {"b": numbers(12, seed=1)})
    made = [node("Sigmoid", ["z"], ["x"]), node(way.split()[0], inputs, ["y"], name="product", **more)]
    model = build(made, inputs={"z": (64, 24)}, outputs={"y": (64, 12)}, weights=weights)
    samples = sampling.generated(model, 4)
    small = quantize(model, samples=samples, **{**X86, "per_channel": False})
    better = reconstruct(model, small, samples)
    assert [error(layer) for layer in walk(model, better, samples)] < [0.8 * error(layer) for layer in walk(model, small, samples)]


def test_a_subgraph_that_reads_what_passes_a_cut_is_walked_through() -> None:
    value = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    then = onnx.helper.make_graph([node("Relu", ["t"], ["z"])], "then", [], [value])
    other = onnx.helper.make_graph([node("Neg", ["t"], ["z"])], "else", [], [value])
    flag = onnx.numpy_helper.from_array(np.array(True))
    made = [
        node("Conv", ["x", "w"], ["t"], name="first"),
        node("Conv", ["t", "v"], ["u"], name="second"),
        node("Constant", [], ["flag"], value=flag),
        node("If", ["flag"], ["c"], then_branch=then, else_branch=other),
        node("Conv", ["u", "w"], ["d"], name="third"),
        node("Add", ["c", "d"], ["y"]),
    ]
    weights = {"w": numbers(4, 4, 1, 1), "v": numbers(4, 4, 1, 1, seed=1)}
    model = build(made, inputs={"x": (1, 4, 5, 5)}, outputs={"y": (None,) * 4}, weights=weights)
    samples = sampling.generated(model, 2)
    small = quantize(model, samples=samples, operators=["Conv"])
    assert [layer.node.name for layer in walk(model, small, samples)] == ["first", "second", "third"]
    graph.check(reconstruct(model, small, samples))


def test_what_does_not_fit_into_memory_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph.load(digits.MODEL)
    samples = pictures(model, 8)
    small = quantize(model, samples=samples, **X86)
    monkeypatch.setattr("edgesdk.passes._layers.HELD_BYTES", 1 << 18)
    counts = [layer.samples for layer in walk(model, small, samples)]
    assert 1 <= counts[-1] < counts[0] <= 8
    assert counts == sorted(counts, reverse=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_weights_times_columns_is_what_a_conv_answers(data: st.DataObject) -> None:
    def number(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    rank, group = number(1, 3), data.draw(st.sampled_from([1, 2, 4]))
    kernel, shape = [number(1, 3) for _ in range(rank)], [number(5, 7) for _ in range(rank)]
    attributes: dict[str, object] = {"group": group, "strides": [number(1, 2) for _ in range(rank)]}
    automatic = data.draw(st.sampled_from(["", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if automatic:
        attributes["auto_pad"] = automatic
    else:
        attributes |= {"pads": [number(0, 2) for _ in range(2 * rank)], "dilations": [number(1, 2) for _ in range(rank)]}
    weight = numbers(8, 4 // group, *kernel, seed=number(0, 99))
    conv = node("Conv", ["x", "w"], ["y"], **attributes)
    model = build([conv], inputs={"x": (2, 4, *shape)}, outputs={"y": (None,) * (rank + 2)}, weights={"w": weight})
    given = numbers(2, 4, *shape, seed=number(0, 99))
    (expected,) = answers(model, {"x": given}).values()
    layer = model.graph[0]
    count = positions(layer, weight, given.shape)
    assert count == expected.size // 8
    found = matrix(layer, weight) @ columns(layer, weight, given, np.arange(count))  # [groups, outputs of a group, places]
    np.testing.assert_allclose(found.reshape(8, 2, -1).transpose(1, 0, 2).reshape(expected.shape), expected, atol=1e-4)
    assert np.array_equal(from_matrix(layer, matrix(layer, weight), weight.shape), weight)
