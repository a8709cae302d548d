"""8-bit files obey their profile, load, answer nearly the same, and are the same each time."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import constraints, graph, passes, positions, profiles, sampling
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Model
from edgesdk.passes._grids import Levels, weight_grid
from edgesdk.passes.quantize import SETTINGS, targets
from edgesdk.sampling import Samples
from tests import digits
from tests.sdk.small_models import DATA, GRAPHS, answers, build, chains, node, numbers, operators

INT8_PROFILES = ["x86-cpu", "raspberry-pi-5", "jetson-orin", "kria-kv260"]  # one of each scheme that there is
IMAGE = {"x": ("n", 4, 6, 6)}
ANY = (None, None, None, None)
X86: dict[str, Any] = {"operators": ["Conv", "Add", "Mul", "MaxPool", "Gemm"], "activations": "uint8", "symmetric": False}


def scheme(name: str) -> dict[str, Any]:
    return {key: value for key, value in profiles.find(name).quantization.model_dump(mode="json").items() if key in SETTINGS}


def prepared(model: Model, name: str, samples: Samples) -> Model:
    """Simplified, of fixed shape where the profile wants that, and in the DPU's operators where it is one."""
    profile = profiles.find(name)
    fixed = [{"pass": "fix_shapes", "settings": {"shapes": samples.shapes()}}] if profile.graph.static_shapes else []
    rewritten = [{"pass": "rewrite_for_dpu"}] if profile.quantization.power_of_two else []
    return passes.apply([*fixed, *({"pass": each} for each in passes.SIMPLIFY), *rewritten], model)


def initializers(model: Model) -> Mapping[str, Array]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None}


def images(count: int) -> Samples:
    pixels, _ = digits.images()
    return sampling.of([{"image": pixel[None]} for pixel in pixels[:count]], graph.load(digits.MODEL))


def accuracy(model: Model) -> float:
    pixels, labels = digits.images()
    session = graph.session(model, optimize=False)
    right = [bool(graph.run(session, {"image": pixels[i : i + 1]})["logits"].argmax() == labels[i]) for i in range(128, 328)]
    return sum(right) / len(right)


@pytest.mark.parametrize("name", INT8_PROFILES)
def test_digits_are_still_read_on_every_profile(name: str) -> None:
    samples = images(32)
    slim = prepared(graph.load(digits.MODEL), name, samples)
    small = passes.apply([{"pass": "quantize", "settings": scheme(name)}], slim, samples)
    assert constraints.check(small, profiles.find(name)) == []
    assert graph.describe(small).weight_bytes < 0.35 * graph.describe(slim).weight_bytes
    assert accuracy(small) >= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("name", INT8_PROFILES)
@pytest.mark.parametrize("file", ["mobilenet_fashion.onnx", "bilstm_vowels.onnx"])
def test_other_models_obey_every_profile(file: str, name: str) -> None:
    model = graph.load(DATA / file)
    samples = sampling.generated(model, 4)
    small = passes.apply([{"pass": "quantize", "settings": scheme(name)}], prepared(model, name, samples), samples)
    assert constraints.check(small, profiles.find(name)) == []


@pytest.mark.parametrize("name", INT8_PROFILES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_any_graph_obeys_the_profile_it_was_quantized_for(name: str, model: Model) -> None:
    obeys(name, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", INT8_PROFILES)
@settings(max_examples=GRAPHS // 4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_many_graphs_obey_the_profile_they_were_quantized_for(name: str, model: Model) -> None:
    obeys(name, model)


def obeys(name: str, model: Model) -> None:
    before = graph.to_bytes(model)
    samples = sampling.generated(model, 2)
    slim = prepared(model, name, samples)
    small = passes.apply([{"pass": "quantize", "settings": scheme(name)}], slim, samples)
    assert constraints.check(small, profiles.find(name)) == []
    for feeds in samples:
        expected = answers(model, feeds)
        for output, array in answers(small, feeds).items():
            assert array.shape == expected[output].shape
            assert np.isfinite(array).all() or not np.isfinite(expected[output]).all()
    assert graph.to_bytes(model) == before


def test_the_same_samples_and_settings_give_the_same_bytes() -> None:
    slim = prepared(graph.load(digits.MODEL), "x86-cpu", images(8))
    files = {graph.to_bytes(passes.quantize(slim, samples=images(8), **scheme("x86-cpu"))) for _ in range(2)}
    assert len(files) == 1


def test_a_model_with_nothing_to_quantize_is_returned_as_it_is() -> None:
    model = build([node("Relu", ["x"], ["y"])], inputs=IMAGE, outputs={"y": ANY})
    assert targets(model, operators=["Conv"]) == []
    assert passes.quantize(model, samples=sampling.generated(model, 1), **X86) is model


def test_a_quantized_model_is_not_quantized_again() -> None:
    slim = prepared(graph.load(digits.MODEL), "x86-cpu", images(4))
    small = passes.quantize(slim, samples=images(4), **X86)
    assert passes.quantize(small, samples=images(4), **X86) is small


def test_quantizing_without_samples_says_what_to_give() -> None:
    with pytest.raises(SampleError, match="there are none"):
        passes.apply([{"pass": "quantize", "settings": X86}], graph.load(digits.MODEL))


def test_an_operator_that_cannot_be_quantized_is_named() -> None:
    with pytest.raises(ModelError, match="LSTM cannot be quantized"):
        targets(graph.load(DATA / "bilstm_vowels.onnx"), operators=["LSTM"])


def test_a_relu_is_absorbed_and_one_pair_serves_all_who_read_the_tensor() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="first"), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["d"], name="second"), node("Add", ["d", "r"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1), "v": numbers(4, 4, 1, 1, seed=1)})
    small = passes.quantize(model, samples=sampling.generated(model, 4), **X86)
    found = operators(small)
    assert found["QuantizeLinear"] == 4  # x, r, d, y
    (relu,) = [each for each in small.graph if each.op_type == "Relu"]
    assert [use.node.op_type for use in relu.outputs[0].uses()] == ["QuantizeLinear"]
    zero_point = graph.constant(relu.outputs[0].uses()[0].node.inputs[2])  # type: ignore[index]
    assert zero_point == 0


def test_excluded_nodes_stay_float() -> None:
    slim = prepared(graph.load(digits.MODEL), "x86-cpu", images(4))
    convolutions = targets(slim, operators=["Conv"])
    small = passes.quantize(slim, samples=images(4), exclude=convolutions[1:], **X86 | {"operators": ["Conv"]})
    quantized = [each.name for each in small.graph if each.op_type == "Conv" and each.inputs[1].producer() is not None]  # type: ignore[union-attr]
    assert quantized == convolutions[:1]


def test_weights_keep_their_axis_whatever_the_operator() -> None:
    nodes = [
        node("ConvTranspose", ["x", "t"], ["a"], group=2), node("GlobalAveragePool", ["a"], ["p"]), node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g", "b"], ["h"], transB=1), node("Gemm", ["h", "k"], ["i"]), node("MatMul", ["i", "m"], ["y"]),
    ]  # fmt: skip
    weights = {"t": numbers(4, 3, 1, 1), "g": numbers(5, 6), "b": numbers(5), "k": numbers(5, 7), "m": numbers(7, 3)}
    model = build(nodes, inputs=IMAGE, outputs={"y": (None, 3)}, weights=weights)
    small = passes.quantize(model, samples=sampling.generated(model, 2), operators=["ConvTranspose", "Gemm", "MatMul"])
    scales = {name: array.shape for name, array in initializers(small).items() if name.endswith("_scale")}
    assert (scales["t_scale"], scales["g_scale"], scales["k_scale"], scales["m_scale"], scales["b_scale"]) == ((3,), (5,), (7,), (3,), (5,))
    axes = {each.name: each.attributes["axis"].as_int() for each in small.graph if each.op_type == "DequantizeLinear" and "axis" in each.attributes}
    assert axes["t_DequantizeLinear"] == 1
    assert axes["g_DequantizeLinear"] == 0
    assert axes["k_DequantizeLinear"] == 1
    assert axes["m_DequantizeLinear"] == 1


def test_a_channel_without_weight_keeps_its_bias() -> None:
    weight, bias = numbers(4, 4, 1, 1), np.array([1.5, -2.0, 0.5, 3.0], np.float32)
    weight[1], weight[2] = 0, 1e-30
    model = build([node("Conv", ["x", "w", "b"], ["y"])], inputs=IMAGE, outputs={"y": ANY}, weights={"w": weight, "b": bias})
    samples = sampling.generated(model, 4)
    small = passes.quantize(model, samples=samples, **X86)
    for feeds in samples:
        expected, found = answers(model, feeds)["y"], answers(small, feeds)["y"]
        np.testing.assert_allclose(found[:, 1], expected[:, 1], atol=0.05)
        np.testing.assert_allclose(found[:, 2], expected[:, 2], atol=0.05)


def test_reduced_range_takes_the_bits_that_cannot_saturate() -> None:
    lonely = np.array([[1.0, 0.25], [1.0, 1.0], [1.0, -1.0], [-0.75, -0.5]], np.float32).reshape(4, 2, 1, 1)
    model = build([node("Conv", ["x", "w"], ["y"])], inputs={"x": ("n", 2, 6, 6)}, outputs={"y": ANY}, weights={"w": lonely})
    small = passes.quantize(model, samples=sampling.generated(model, 2), reduce_range=True, **X86)
    integers = initializers(small)["w_quantized"].astype(int).reshape(4, 2)
    assert integers.tolist() == [[102, 25], [64, 64], [127, -127], [-76, -51]]
    whole = passes.quantize(model, samples=sampling.generated(model, 2), **X86)
    assert np.abs(initializers(whole)["w_quantized"].astype(int)).reshape(4, -1).max(axis=1).tolist() == [127] * 4


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.tuples(st.integers(1, 5), st.integers(1, 6)), heavy=st.floats(0.1, 4))
def test_no_pair_of_reduced_weights_saturates(seed: int, shape: tuple[int, int], heavy: float) -> None:
    weights = (np.random.default_rng(seed).standard_normal(shape) ** 3 * heavy).astype(np.float32)
    levels = Levels("uint8", symmetric=False, per_channel=True, reduce_range=True, bias="int32")
    integers = weight_grid(weights, 0, np.zeros(1), levels).integers(weights).astype(int)
    for row in integers:
        for first, second in itertools.combinations(row, 2):
            for worst in itertools.product((0, 255), repeat=2):
                assert -(2**15) <= worst[0] * first + worst[1] * second < 2**15


def test_jetson_has_no_pair_behind_and_a_float_bias() -> None:
    model = build([node("Conv", ["x", "w", "b"], ["y"])], inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1), "b": numbers(4)})
    small = passes.quantize(model, samples=sampling.generated(model, 2), **scheme("jetson-orin"))
    (convolution,) = [each for each in small.graph if each.op_type == "Conv"]
    assert convolution.outputs[0].is_graph_output()
    assert graph.constant(convolution.inputs[2]) is not None
    assert operators(small)["QuantizeLinear"] == 1


def test_scales_are_scalars_so_that_element_wise_kernels_take_them() -> None:
    nodes = [node("Add", ["x", "k"], ["s"]), node("Mul", ["s", "x"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"k": numbers(1, 4, 1, 1)})
    small = passes.quantize(model, samples=sampling.generated(model, 2), **X86)
    assert {array.shape for name, array in initializers(small).items() if name.endswith(("_scale", "_zero_point"))} == {()}


def test_a_pool_keeps_the_scale_of_what_it_pools() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]), node("Conv", ["p", "w"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1)})
    small = initializers(passes.quantize(model, samples=sampling.generated(model, 3), **X86))
    assert small["c_scale"] == small["p_scale"]
    assert small["c_zero_point"] == small["p_zero_point"]
    assert [name for name in small if name.endswith("_quantized")] == ["w_quantized"]  # one weight tensor, written once


def test_a_tensor_without_end_is_left_float() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Exp", ["big"], ["e"]), node("Add", ["c", "e"], ["y"])]
    nodes.insert(1, node("Mul", ["c", "k"], ["big"]))
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1), "k": np.asarray(1e6, np.float32)})
    small = passes.quantize(model, samples=sampling.generated(model, 2), **X86)
    assert operators(small)["Conv"] == 1
    assert "e_scale" not in initializers(small)


def test_hard_swish_and_hard_sigmoid_are_integer_sums_that_saturate() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("HardSwish", ["c"], ["s"]),
        node("Conv", ["s", "w"], ["d"]), node("HardSigmoid", ["d"], ["h"], alpha=0.25, beta=0.4), node("Mul", ["s", "h"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1)}, opset=17)
    samples = sampling.generated(model, 8)
    small = passes.quantize(model, samples=samples, **X86 | {"operators": [*X86["operators"], "HardSwish", "HardSigmoid"]})
    assert operators(small) == {"DequantizeLinear": 10, "QuantizeLinear": 7, "Add": 2, "Conv": 2, "Mul": 2}
    for feeds in samples:
        expected, found = answers(model, feeds)["y"], answers(small, feeds)["y"]
        assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()


def test_what_a_root_is_taken_of_stays_float() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "c"], ["square"]), node("Add", ["square", "epsilon"], ["sum"]),
        node("Sqrt", ["sum"], ["root"]), node("Div", ["c", "root"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1), "epsilon": np.float32(1e-6)})
    samples = sampling.generated(model, 4)
    small = passes.quantize(model, samples=samples, **X86)
    assert all(np.isfinite(answers(small, feeds)["y"]).all() for feeds in samples)
    (add,) = [each for each in small.graph if each.op_type == "Add"]
    assert [use.node.op_type for use in add.outputs[0].uses()] == ["Sqrt"]


def test_a_gate_may_be_scaled() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("HardSigmoid", ["c"], ["h"]), node("Mul", ["h", "half"], ["m"]), node("Mul", ["c", "m"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1), "half": np.float32(0.5)})
    small = passes.quantize(model, samples=sampling.generated(model, 2), **X86 | {"operators": [*X86["operators"], "HardSigmoid"]})
    assert operators(small)["Add"] == 1


@pytest.mark.parametrize("written", ["scalars", "convolution"])
def test_a_scale_and_an_offset_cost_no_integer_operator(written: str) -> None:
    scaled = {
        "scalars": [node("Mul", ["r", "factor"], ["m"]), node("Add", ["m", "offset"], ["a"])],
        "convolution": [node("Conv", ["r", "factors", "offsets"], ["a"], group=4)],
    }[written]
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["r"]), *scaled, node("Conv", ["a", "v"], ["y"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])]
    weights = {
        "w": numbers(4, 4, 1, 1), "v": numbers(4, 4, 3, 3), "factor": np.float32([1.7]), "offset": np.float32(-0.83),
        "factors": np.full((4, 1, 1, 1), 1.7, np.float32), "offsets": np.full(4, -0.83, np.float32),
    }  # fmt: skip
    used = {name: array for name, array in weights.items() if any(name in each.input for each in nodes)}
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights=used)
    samples = sampling.generated(model, 8)
    small = passes.quantize(model, samples=samples, **X86)
    assert operators(small) == {"DequantizeLinear": 5, "QuantizeLinear": 3, "Conv": 2, "Relu": 1}
    for feeds in samples:
        expected, found = answers(model, feeds)["y"], answers(small, feeds)["y"]
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_an_offset_that_takes_nought_out_of_reach_stays_an_operator() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Add", ["r", "offset"], ["a"]), node("Mul", ["a", "half"], ["h"]), node("Conv", ["h", "w"], ["y"])]
    weights = {"offset": np.float32(0.001), "half": np.float32(0.5), "w": numbers(4, 4, 1, 1)}
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights=weights)
    small = passes.quantize(model, samples=sampling.generated(model, 4), **X86)
    assert operators(small)["Add"] == 1
    assert "Mul" not in operators(small)


@pytest.mark.parametrize(("factor", "offset"), [(2.0, 0.05), (0.01, 1.0), (1.0, 50.0), (0.1, 3.0)])
def test_whoever_reads_a_tensor_beside_what_is_scaled_loses_nothing(factor: float, offset: float) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["t"]), node("Mul", ["t", "factor"], ["m"]), node("Add", ["t", "offset"], ["a"]), node("Add", ["m", "offset"], ["b"]),
        node("Conv", ["t", "w"], ["of_t"]), node("Conv", ["m", "w"], ["of_m"]), node("Conv", ["a", "w"], ["of_a"]), node("Conv", ["b", "w"], ["of_b"]),
    ]  # fmt: skip
    names = ["of_t", "of_m", "of_a", "of_b"]
    weights = {"w": numbers(4, 4, 1, 1), "factor": np.float32(factor), "offset": np.float32(offset)}
    model = build(nodes, inputs=IMAGE, outputs=dict.fromkeys(names, ANY), weights=weights)
    samples = sampling.generated(model, 8)
    small, plain = (passes.quantize(model, samples=samples, **X86 | {"operators": operators}) for operators in (X86["operators"], ["Conv"]))
    for name in ("of_t", "of_m"):
        noise = [sum(float(((answers(each, feeds)[name] - answers(model, feeds)[name]) ** 2).sum()) for feeds in samples) for each in (small, plain)]
        assert noise[0] < 4 * noise[1]


def test_sixteen_bits_raise_the_opset_and_lose_less() -> None:
    model = build([node("Conv", ["x", "w"], ["y"])], inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1)})
    samples = sampling.generated(model, 4)
    errors = []
    for kind in ("uint8", "uint16"):
        small = passes.apply([{"pass": "quantize", "settings": X86 | {"activations": kind}}], model, samples)
        errors.append(max(float(np.abs(answers(model, feeds)["y"] - answers(small, feeds)["y"]).max()) for feeds in samples))
    assert graph.opset(small) == 21
    assert errors[1] < errors[0] / 2


def test_opset_12_is_raised_for_scales_by_channel() -> None:
    model = build([node("Conv", ["x", "w"], ["y"])], inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1)}, opset=12)
    small = passes.apply([{"pass": "quantize", "settings": X86}], model, sampling.generated(model, 1))
    assert graph.opset(small) == 13


def test_positions_are_the_finest_that_lose_least() -> None:
    values = numbers(1000)
    best = positions.best_for(values)
    losses = {p: float(((values - positions.rounded(values, p)) ** 2).sum()) for p in range(-2, 12)}
    assert losses[best] == min(losses.values())
    assert positions.of_scale(2.0**-best) == best
    assert positions.of_scale(0.3) is None
