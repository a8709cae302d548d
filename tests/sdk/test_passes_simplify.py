"""Every exact pass keeps the function, leaves the model that it was given alone, and answers the same each time."""

import re
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

from edgesdk import graph, passes, sampling
from edgesdk.errors import ModelError
from edgesdk.graph import Model
from tests.sdk.small_models import DATA, FLOAT, GRAPHS, assert_same_function, build, chains, node, numbers, operators

IMAGE = {"x": ("n", 4, 6, 6)}
ANY = (None, None, None, None)


def simplified(model: Model) -> Model:
    return passes.apply([{"pass": name} for name in passes.SIMPLIFY], model)


def scalar(number: float) -> NDArray[np.float32]:
    return np.asarray(number, np.float32)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_simplifying_keeps_the_function(model: Model) -> None:
    before = graph.to_bytes(model)
    slim = simplified(model)
    assert_same_function(model, slim)
    assert graph.to_bytes(model) == before
    assert graph.to_bytes(simplified(model)) == graph.to_bytes(slim)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
@pytest.mark.parametrize("name", passes.SIMPLIFY)
def test_each_pass_alone_keeps_the_function(name: str, model: Model) -> None:
    before = graph.to_bytes(model)
    made = passes.PASSES[name](model)
    graph.check(made)
    assert_same_function(model, made, count=1)
    assert graph.to_bytes(model) == before


@pytest.mark.slow
@settings(max_examples=GRAPHS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_simplifying_keeps_the_function_of_many_graphs(model: Model) -> None:
    assert_same_function(model, simplified(model), count=1)


@pytest.mark.parametrize("file", ["resnet8_mnist.onnx", "mobilenet_fashion.onnx", "bilstm_vowels.onnx"])
def test_real_models_answer_the_same(file: str) -> None:
    model = graph.load(DATA / file)
    slim = simplified(model)
    assert_same_function(model, slim)
    assert "BatchNormalization" not in operators(slim)


def test_batch_norm_goes_into_the_convolution() -> None:
    weights = {"w": numbers(4, 2, 3, 3), **{name: np.abs(numbers(4, seed=i)) + np.float32(0.1) for i, name in enumerate(("s", "b", "m", "v"))}}
    model = build(
        [node("Conv", ["x", "w"], ["c"], pads=[1] * 4, group=2), node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])],
        inputs=IMAGE, outputs={"y": ANY}, weights=weights,
    )  # fmt: skip
    folded = passes.fold_batch_norm(model)
    assert operators(folded) == {"Conv": 1}
    assert_same_function(model, folded)


def test_batch_norm_stays_where_the_convolution_is_read_elsewhere() -> None:
    weights = {"w": numbers(4, 4, 1, 1), **{name: np.abs(numbers(4, seed=i)) + np.float32(0.1) for i, name in enumerate(("s", "b", "m", "v"))}}
    model = build(
        [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])],
        inputs=IMAGE, outputs={"y": ANY, "c": ANY}, weights=weights,
    )  # fmt: skip
    assert operators(passes.fold_batch_norm(model)) == {"BatchNormalization": 1, "Conv": 1}


def test_batch_norm_that_float32_could_not_hold_stays() -> None:
    one = np.ones(4, np.float32)
    weights = {"w": numbers(4, 4, 1, 1, scale=1e30), "s": one * np.float32(1e30), "b": one, "m": one, "v": one}
    model = build(
        [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])], inputs=IMAGE, outputs={"y": ANY}, weights=weights
    )
    assert "BatchNormalization" in operators(passes.fold_batch_norm(model))


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_takes_batch_norm_whatever_its_factors(transposed: int) -> None:
    weights = {"w": numbers(5, 3) if transposed else numbers(3, 5), "c": numbers(1, 5)}
    weights |= {name: np.abs(numbers(5, seed=i)) + np.float32(0.1) for i, name in enumerate(("s", "b", "m", "v"))}
    nodes = [node("Gemm", ["x", "w", "c"], ["g"], alpha=0.5, beta=2.0, transB=transposed), node("BatchNormalization", ["g", "s", "b", "m", "v"], ["y"])]
    model = build(nodes, inputs={"x": ("n", 3)}, outputs={"y": (None, 5)}, weights=weights)
    folded = passes.fold_batch_norm(model)
    assert operators(folded) == {"Gemm": 1}
    assert_same_function(model, folded)


@pytest.mark.parametrize(
    ("operator", "inputs"), [("Mul", ["c", "k"]), ("Div", ["c", "k"]), ("Add", ["k", "c"]), ("Sub", ["c", "k"]), ("Sub", ["k", "c"]), ("Mul", ["k", "c"])]
)
def test_a_constant_after_a_convolution_goes_into_it(operator: str, inputs: list[str]) -> None:
    model = build(
        [node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), node(operator, inputs, ["y"])],
        inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(3, 4, 3, 3), "b": numbers(3), "k": numbers(3, 1, 1, seed=1)},
    )  # fmt: skip
    folded = passes.fold_affine(model)
    assert operators(folded) == {"Conv": 1}
    assert_same_function(model, folded)


def test_a_constant_that_differs_by_place_stays() -> None:
    model = build(
        [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["y"])],
        inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(6, 4, 1, 1), "k": numbers(6)},
    )  # fmt: skip
    assert operators(passes.fold_affine(model)) == {"Conv": 1, "Mul": 1}


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("group", [1, 2])
def test_a_constant_before_a_convolution_goes_into_it_the_summand_only_without_padding(pads: int, group: int) -> None:
    model = build(
        [node("Mul", ["x", "k"], ["m"]), node("Add", ["m", "d"], ["a"]), node("Conv", ["a", "w", "b"], ["y"], pads=[pads] * 4, group=group)],
        inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(6, 4 // group, 3, 3), "b": numbers(6), "k": scalar(0.3), "d": scalar(-0.7)},
    )  # fmt: skip
    folded = passes.fold_affine(model)
    assert operators(folded) == ({"Add": 1, "Conv": 1} if pads else {"Conv": 1})
    assert_same_function(model, folded)


def test_one_factor_a_channel_before_a_padded_convolution_stays_with_its_summand() -> None:
    model = build(
        [node("Mul", ["x", "k"], ["m"]), node("Add", ["m", "d"], ["a"]), node("Conv", ["a", "w"], ["y"], pads=[1] * 4)],
        inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(6, 4, 3, 3), "k": numbers(4, 1, 1), "d": numbers(4, 1, 1, seed=1)},
    )  # fmt: skip
    assert operators(passes.fold_affine(model)) == {"Add": 1, "Conv": 1, "Mul": 1}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_takes_what_comes_before_it(transposed: int) -> None:
    weights = {"w": numbers(5, 3) if transposed else numbers(3, 5), "c": numbers(1, 5), "k": numbers(3), "d": numbers(1, 3, seed=1)}
    nodes = [node("Mul", ["k", "x"], ["m"]), node("Sub", ["d", "m"], ["a"]), node("Gemm", ["a", "w", "c"], ["y"], alpha=0.5, beta=2.0, transB=transposed)]
    model = build(nodes, inputs={"x": ("n", 3)}, outputs={"y": (None, 5)}, weights=weights)
    folded = passes.fold_affine(model)
    assert operators(folded) == {"Gemm": 1}
    assert_same_function(model, folded)


@pytest.mark.parametrize(("kernel", "taken"), [(1, True), (2, False)])
def test_a_transposed_convolution_takes_a_summand_only_where_each_answer_sees_all_weights(kernel: int, taken: bool) -> None:
    model = build(
        [node("Add", ["x", "d"], ["a"]), node("ConvTranspose", ["a", "w"], ["y"], strides=[kernel] * 2, group=2)],
        inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 3, kernel, kernel), "d": numbers(4, 1, 1)},
    )  # fmt: skip
    folded = passes.fold_affine(model)
    assert ("Add" not in operators(folded)) == taken
    assert_same_function(model, folded)


def test_a_chain_goes_back_past_relu_and_pooling_if_its_factor_is_positive() -> None:
    def chain(factor: float) -> Model:
        nodes = [
            node("Conv", ["x", "w"], ["c"]),
            node("Relu", ["c"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
            node("Mul", ["p", "k"], ["y"]),
        ]
        return build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(4, 4, 1, 1), "k": scalar(factor)})

    for factor in (0.5, -0.5):
        folded = passes.fold_affine(chain(factor))
        assert ("Mul" not in operators(folded)) == (factor > 0)
        assert_same_function(chain(factor), folded)


def test_a_chain_between_pooling_and_what_it_cannot_go_into_becomes_short_and_moves_past_the_pooling() -> None:
    nodes = [
        node("Sigmoid", ["x"], ["s"]), node("Div", ["s", "k"], ["d"]), node("Add", ["d", "k"], ["a"]), node("Sub", ["c", "a"], ["u"]),
        node("Mul", ["u", "c"], ["m"]), node("AveragePool", ["m"], ["p"], kernel_shape=[2, 2], strides=[2, 2]), node("Sigmoid", ["p"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"k": scalar(0.7), "c": scalar(3)})
    folded = passes.fold_affine(model)
    assert [each.op_type for each in folded.graph] == ["Sigmoid", "AveragePool", "Mul", "Add", "Sigmoid"]
    assert_same_function(model, folded)


def test_what_stays_between_convolutions_becomes_a_depthwise_one() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("HardSwish", ["c"], ["h"]), node("Mul", ["h", "k"], ["m"]), node("Add", ["m", "d"], ["a"]),
             node("Conv", ["a", "v"], ["y"], pads=[1] * 4)]  # fmt: skip
    weights = {"w": numbers(8, 4, 1, 1), "v": numbers(4, 8, 3, 3), "k": numbers(8, 1, 1), "d": scalar(0.5)}
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights=weights)
    made = passes.affine_to_conv(model)
    assert operators(made) == {"Conv": 3, "HardSwish": 1}
    assert_same_function(model, made)


def test_a_softmax_that_was_raised_from_an_old_opset_is_written_plainly() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Flatten", ["x"], ["f"], axis=3), node("Softmax", ["f"], ["p"], axis=-1), node("Reshape", ["p", "s"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY})
    known = passes.recognise_softmax(model)
    assert operators(passes.remove_unused(known)) == {"Softmax": 1}
    assert_same_function(model, known)


def test_a_gated_tensor_added_to_itself_is_gated_once() -> None:
    nodes = [node("GlobalAveragePool", ["x"], ["g"]), node("Mul", ["g", "x"], ["m"]), node("Add", ["m", "x"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY})
    factored = passes.factor_sums(model)
    assert [each.op_type for each in factored.graph] == ["GlobalAveragePool", "Add", "Mul"]
    assert_same_function(model, factored)


@pytest.mark.parametrize(("first", "second", "merged"), [(3, 1, True), (1, 3, False), (1, 1, True), (3, 3, False)])
def test_two_convolutions_become_one_where_nothing_is_padded_between(first: int, second: int, merged: bool) -> None:
    weights = {"w": numbers(9, 4, first, first), "b": numbers(9), "v": numbers(4, 9, second, second), "d": numbers(4)}
    nodes = [node("Conv", ["x", "w", "b"], ["c"], pads=[first // 2] * 4, strides=[1, 1]), node("Conv", ["c", "v", "d"], ["y"], pads=[second // 2] * 4)]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights=weights)
    made = passes.merge_convolutions(model)
    assert operators(made) == {"Conv": 1 if merged else 2}
    assert_same_function(model, made)


def test_two_convolutions_that_are_cheaper_apart_stay() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Conv", ["c", "v"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(1, 4, 1, 1), "v": numbers(4, 1, 1, 1)})
    assert operators(passes.merge_convolutions(model)) == {"Conv": 2}


def test_odd_channels_between_convolutions_are_filled_up() -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["c"]), node("HardSigmoid", ["c"], ["h"]), node("Conv", ["h", "v"], ["y"], pads=[1] * 4)]
    for count, filled in ((12, 16), (18, 20), (20, 20), (3, 3)):
        model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"w": numbers(count, 4, 1, 1), "b": numbers(count), "v": numbers(4, count, 3, 3)})
        padded = passes.pad_channels(model)
        assert graph.constant(padded.graph[0].inputs[1]).shape == (filled, 4, 1, 1)
        assert_same_function(model, padded)


@pytest.mark.parametrize("way", ["clip div", "mul clip", "relu6", "shifted"])
def test_hard_sigmoid_is_recognised_whatever_its_numbers(way: str) -> None:
    weights = {"three": scalar(3), "o": scalar(0), "six": scalar(6), "one": scalar(1), "a": scalar(0.2), "sixth": scalar(1 / 6)}
    nodes = {
        "clip div": [node("Add", ["x", "three"], ["s"]), node("Clip", ["s", "o", "six"], ["c"]), node("Div", ["c", "six"], ["y"])],
        "mul clip": [node("Mul", ["a", "x"], ["m"]), node("Add", ["m", "a"], ["s"]), node("Clip", ["s", "o", "one"], ["y"])],
        "relu6": [node("Add", ["three", "x"], ["s"]), node("Relu", ["s"], ["r"]), node("Min", ["six", "r"], ["c"]), node("Mul", ["sixth", "c"], ["y"])],
        "shifted": [node("Clip", ["x", "o", "six"], ["c"]), node("Div", ["c", "six"], ["y"])],
    }[way]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights=weights)
    known = passes.recognise_hard_sigmoid(model)
    assert operators(known) == {"HardSigmoid": 1}
    assert_same_function(model, known)


def test_a_clip_alone_or_of_a_convolution_is_no_hard_sigmoid() -> None:
    weights = {"w": numbers(4, 4, 1, 1), "o": scalar(0), "one": scalar(1), "a": scalar(0.2), "six": scalar(6)}
    clip = [node("Clip", ["x", "o", "one"], ["y"])]
    conv = [node("Conv", ["x", "w"], ["v"]), node("Mul", ["a", "v"], ["m"]), node("Add", ["m", "a"], ["s"]), node("Clip", ["s", "o", "one"], ["y"])]
    other = [node("Add", ["x", "a"], ["s"]), node("Clip", ["s", "o", "six"], ["c"]), node("Div", ["c", "a"], ["y"])]
    for nodes in (clip, conv, other):
        assert "HardSigmoid" not in operators(passes.recognise_hard_sigmoid(build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights=weights)))


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("parts", [0, 1, 2])
@pytest.mark.parametrize("axes", [[-1], [1, 2]])
def test_layer_normalization_is_recognised(square: str, parts: int, axes: list[int]) -> None:
    shape = (5, 6)[2 - len(axes) :]
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=axes), node("Sub", ["x", "m"], ["d"]), node(square, ["d", "two" if square == "Pow" else "d"], ["q"]),
        node("ReduceMean", ["q"], ["v"], axes=axes), node("Add", ["v", "e"], ["a"]), node("Sqrt", ["a"], ["r"]), node("Div", ["d", "r"], ["n0"]),
        node("Mul", ["n0", "g"], ["n1"]), node("Add", ["b", "n1"], ["n2"]),
    ]  # fmt: skip
    weights = {"two": scalar(2), "e": scalar(1e-5), "g": numbers(*shape), "b": numbers(1, *shape, seed=1)}
    model = build(nodes[: 7 + parts], inputs={"x": ("n", 5, 6)}, outputs={f"n{parts}": (None, None, None)}, weights=weights)
    known = passes.recognise_layer_norm(model)
    assert operators(known) == {"LayerNormalization": 1}
    assert len(known.graph[0].inputs) == max(parts, 1) + 1
    assert_same_function(model, known)


def test_a_normalization_over_other_axes_or_by_one_factor_is_no_layer_normalization_of_it() -> None:
    def normalized(axis: int, factor: NDArray[np.float32]) -> Model:
        nodes = [
            node("ReduceMean", ["x"], ["m"], axes=[axis]), node("Sub", ["x", "m"], ["d"]), node("Mul", ["d", "d"], ["q"]),
            node("ReduceMean", ["q"], ["v"], axes=[axis]), node("Add", ["v", "e"], ["a"]), node("Sqrt", ["a"], ["r"]), node("Div", ["d", "r"], ["n"]),
            node("Mul", ["n", "g"], ["y"]),
        ]  # fmt: skip
        return build(nodes, inputs={"x": ("n", 5, 6)}, outputs={"y": (None, None, None)}, weights={"e": scalar(1e-5), "g": factor})

    assert "LayerNormalization" not in operators(passes.recognise_layer_norm(normalized(1, numbers(6))))
    for factor in (scalar(3), numbers(5, 1), numbers(5, 6)):
        model = normalized(-1, factor)
        known = passes.recognise_layer_norm(model)
        assert operators(known) == {"LayerNormalization": 1, "Mul": 1}
        assert_same_function(model, known)


@pytest.mark.parametrize("kept", [0, 1])
def test_the_mean_over_height_and_width_is_pooling(kept: int) -> None:
    model = build([node("ReduceMean", ["x"], ["y"], axes=[-1, 2], keepdims=kept)], inputs=IMAGE, outputs={"y": (None,) * (4 if kept else 2)})
    known = passes.recognise_global_pool(model)
    assert operators(known) == ({"GlobalAveragePool": 1} if kept else {"GlobalAveragePool": 1, "Squeeze": 1})
    assert_same_function(model, known)
    other = build([node("ReduceMean", ["x"], ["y"], axes=[1, 2])], inputs=IMAGE, outputs={"y": ANY})
    assert "GlobalAveragePool" not in operators(passes.recognise_global_pool(other))


@pytest.mark.parametrize("kept", [0, 1])
def test_pooling_is_not_recognised_before_squeeze_takes_axes(kept: int) -> None:
    outputs = {"y": (None,) * (4 if kept else 2)}
    model = build([node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=kept)], inputs=IMAGE, outputs=outputs, opset=12)
    assert passes.apply([{"pass": "recognise_global_pool"}], model) is model


def test_pairs_that_cancel_go() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]), node("Unsqueeze", ["r", "axes"], ["u"]), node("Squeeze", ["u", "axes"], ["q"]), node("Cast", ["q"], ["d"], to=11),
        node("Cast", ["d"], ["f"], to=1), node("Reshape", ["f", "zero"], ["z"]), node("Reshape", ["z", "flat"], ["s"]), node("Relu", ["s"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, inputs=IMAGE, outputs={"y": (None, None)}, weights={"axes": np.array([1]), "zero": np.array([0, -1]), "flat": np.array([-1, 2])})
    slim = simplified(model)
    assert operators(slim) == {"Relu": 2, "Reshape": 1}
    assert_same_function(model, slim)


def test_pairs_between_outputs_stay() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Unsqueeze", ["a", "axes"], ["u"]), node("Squeeze", ["u", "axes"], ["b"])]
    model = build(nodes, inputs=IMAGE, outputs={"a": ANY, "b": ANY}, weights={"axes": np.array([0])})
    assert_same_function(model, passes.remove_identities(model))


def test_a_narrow_cast_between_two_stays() -> None:
    nodes = [node("Cast", ["x"], ["i"], to=onnx.TensorProto.INT32), node("Cast", ["i"], ["f"], to=FLOAT), node("Neg", ["f"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY})
    assert_same_function(model, passes.remove_identities(model))
    assert operators(passes.remove_identities(model))["Cast"] == 2


def test_equal_nodes_are_computed_once() -> None:
    nodes = [node("Mul", ["x", "a"], ["m"]), node("Mul", ["x", "b"], ["n"]), node("Sigmoid", ["m"], ["p"]), node("Sigmoid", ["n"], ["q"])]
    nodes += [node("Add", ["p", "q"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"a": scalar(3), "b": scalar(3)})
    slim = passes.merge_duplicates(model)
    assert operators(slim) == {"Add": 1, "Mul": 1, "Sigmoid": 1}
    assert_same_function(model, slim)


def test_batch_norm_of_a_tensor_whose_dimensions_are_not_known_stays() -> None:
    """After a Loop nobody knows the rank; numbers by channel cannot be shaped for it."""
    values = [onnx.helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", onnx.TensorProto.INT64), ("c", onnx.TensorProto.BOOL))]
    tensors = [onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in ("v", "w")]
    going = onnx.helper.make_tensor_value_info("g", onnx.TensorProto.BOOL, [])
    steps = [node("Identity", ["c"], ["g"]), node("Neg", ["v"], ["w"])]
    body = onnx.helper.make_graph(steps, "body", [*values, tensors[0]], [going, tensors[1]])
    parts = {name: np.abs(numbers(4, seed=i)) + np.float32(0.1) for i, name in enumerate(("s", "b", "m", "v2"))}
    nodes = [node("Loop", ["count", "true", "x"], ["l"], body=body)]
    nodes += [node("BatchNormalization", ["l", "s", "b", "m", "v2"], ["n"]), node("BatchNormalization", ["n", "s", "b", "m", "v2"], ["q"])]
    nodes += [node("GlobalAveragePool", ["q"], ["y"])]
    model = build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights={"count": np.array(2), "true": np.array(True), **parts})
    assert_same_function(model, simplified(model))


def test_an_output_that_is_merged_keeps_what_is_claimed_of_it() -> None:
    model = build([node("Exp", ["x"], ["a"]), node("Exp", ["x"], ["y"]), node("Neg", ["a"], ["z"])], inputs=IMAGE, outputs={"y": ANY, "z": ANY})
    slim = passes.merge_duplicates(model)
    graph.check(slim)
    assert operators(slim) == {"Exp": 1, "Neg": 1}
    assert_same_function(model, slim)


def test_hard_swish_needs_its_own_numbers() -> None:
    def swish(shift: float, top: float, divisor: float) -> Model:
        nodes = [node("Add", ["x", "s"], ["a"]), node("Clip", ["a", "o", "t"], ["c"]), node("Mul", ["x", "c"], ["m"]), node("Div", ["m", "d"], ["y"])]
        weights = {"s": scalar(shift), "o": scalar(0), "t": scalar(top), "d": scalar(divisor)}
        return build(nodes, inputs=IMAGE, outputs={"y": ANY}, weights=weights)

    assert operators(passes.recognise_hard_swish(swish(3, 6, 6))) == {"HardSwish": 1}
    for other in ((2, 6, 6), (3, 5, 6), (3, 6, 5)):
        assert "HardSwish" not in operators(passes.recognise_hard_swish(swish(*other)))


def test_hard_swish_of_two_tensors_is_none() -> None:
    nodes = [node("HardSigmoid", ["x"], ["h"], alpha=1 / 6, beta=0.5), node("Mul", ["h", "z"], ["y"])]
    model = build(nodes, inputs={"x": ("n", 4), "z": ("n", 4)}, outputs={"y": (None, 4)})
    assert "HardSwish" not in operators(passes.recognise_hard_swish(model))


def test_outputs_that_are_identities_of_one_another_keep_their_names() -> None:
    model = build(
        [node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"]), node("Identity", ["x"], ["c"])],
        inputs={"x": ("n", 4)}, outputs={"a": (None, 4), "b": (None, 4), "c": (None, 4)},
    )  # fmt: skip
    assert_same_function(model, simplified(model))


def test_a_shape_that_the_file_claims_wrongly_is_not_believed() -> None:
    made = build([node("Relu", ["x"], ["r"]), node("Reshape", ["r", "s"], ["t"]), node("Relu", ["t"], ["y"])],
                 inputs={"x": ("n", 4)}, outputs={"y": (None, None)}, weights={"s": np.array([-1, 2])})  # fmt: skip
    values = onnx_ir.convenience.create_value_mapping(made.graph)
    values["r"].shape = values["t"].shape = onnx_ir.Shape([2, 2])
    assert_same_function(made, simplified(made))


def test_a_length_that_is_known_is_folded_though_others_are_not() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "last"], ["width"]), node("Div", ["width", "heads"], ["each"]), node("Gather", ["s", "first"], ["n"]),
        node("Concat", ["n", "heads", "each"], ["target"], axis=0), node("Reshape", ["x", "target"], ["y"]),
    ]  # fmt: skip
    weights = {"first": np.array([0]), "last": np.array([-1]), "heads": np.array([2])}
    model = build(nodes, inputs={"x": ("n", 6)}, outputs={"y": (None, 2, 3)}, weights=weights)
    slim = simplified(model)
    assert operators(slim) == {"Concat": 1, "Gather": 1, "Reshape": 1, "Shape": 1}
    assert_same_function(model, slim)


def test_random_numbers_are_not_folded_nor_merged() -> None:
    nodes = [node("RandomNormal", [], [name], shape=[4], dtype=1) for name in ("a", "b")]
    model = build([*nodes, node("Sub", ["a", "b"], ["d"]), node("Add", ["x", "d"], ["y"])], inputs={"x": ("n", 4)}, outputs={"y": (None, 4)})
    assert operators(simplified(model))["RandomNormal"] == 2


def test_a_result_that_would_blow_up_the_file_is_not_folded() -> None:
    model = build(
        [node("Expand", ["k", "s"], ["e"]), node("Add", ["x", "e"], ["y"])],
        inputs={"x": ("n", 1)}, outputs={"y": (None, None)}, weights={"k": numbers(1), "s": np.array([1, 1_000_000])},
    )  # fmt: skip
    slim = passes.fold_constants(model)
    assert operators(slim) == {"Add": 1, "Expand": 1}


def test_quantized_weights_are_not_unpacked() -> None:
    model = build(
        [node("DequantizeLinear", ["q", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": ("n", 4)}, outputs={"y": (None, 4)}, weights={"q": np.ones((4, 4), np.int8), "s": scalar(0.1)},
    )  # fmt: skip
    assert "DequantizeLinear" in operators(simplified(model))


def test_subgraphs_are_kept_whole() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        value = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph([node("Identity", ["r"], ["same"]), node(operator, ["same"], ["out"])], operator, [], [value])

    nodes = [
        node("Relu", ["x"], ["r"]), node("ReduceSum", ["r"], ["s"], keepdims=0), node("Greater", ["s", "k"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("Neg"), else_branch=branch("Exp")),
    ]  # fmt: skip
    model = build(nodes, inputs={"x": ("n", 4)}, outputs={"y": (None, None)}, weights={"k": scalar(2)})
    assert_same_function(model, simplified(model), count=6)


def test_fixed_shapes_reach_every_tensor_and_are_refused_where_they_do_not_fit() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Shape", ["r"], ["s"]), node("Reshape", ["r", "s"], ["y"])]
    model = build(nodes, inputs={"x": ("n", 4, "h", "w")}, outputs={"y": (None, None, None, None)})
    fixed = passes.fix_shapes(model, shapes={"x": [1, 4, 6, 6]})
    assert graph.inputs(fixed)[0].shape == graph.outputs(fixed)[0].shape == (1, 4, 6, 6)
    assert "Shape" not in operators(simplified(fixed))
    with pytest.raises(ModelError, match="cannot be fixed"):
        passes.fix_shapes(model, shapes={"x": [1, 3, 6, 6]})
    with pytest.raises(ModelError, match="no input `z`"):
        passes.fix_shapes(model, shapes={"z": [1]})


def test_an_opset_is_raised_and_the_answers_stay() -> None:
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=1), node("Squeeze", ["m"], ["q"], axes=[2, 3]),
        node("Softmax", ["q"], ["p"], axis=1), node("Unsqueeze", ["p"], ["y"], axes=[2]),
    ]  # fmt: skip
    model = build(nodes, inputs={"x": ("n", 4, 6, 6)}, outputs={"y": (None, None, None)}, opset=11)
    raised = passes.raise_opset(model)
    assert graph.opset(raised) == 17
    assert "Flatten" not in operators(raised)
    assert_same_function(model, raised)


def test_what_exporters_note_beside_nodes_is_left_behind_and_the_models_own_metadata_is_not() -> None:
    model = build([node("Relu", ["x"], ["y"], doc_string="File /home/somebody/train.py")], inputs={"x": ("n", 4)}, outputs={"y": (None, 4)})
    model.metadata_props["character"] = "abc"
    slim = simplified(model)
    written, _ = graph.to_bytes(slim)
    assert b"somebody" not in written
    assert slim.metadata_props == {"character": "abc"}


def test_a_recipe_names_what_it_cannot_do() -> None:
    model = graph.load(DATA / "resnet8_mnist.onnx")
    with pytest.raises(ModelError, match="`fold_evrything`"):
        passes.apply([{"pass": "fold_evrything"}], model)


@pytest.mark.parametrize(
    ("name", "asked", "told", "hint"),
    [
        ("quantize", {"operatorz": ["Conv"]}, "the pass `quantize` has no setting `operatorz`", "`operators`"),
        ("quantize", {"operators": ["Conv"], "activations": "int7"}, "`activations` of the pass `quantize` is 'int7'", "should be 'int8', 'uint8'"),
        ("quantize", {"operators": "Conv"}, "`operators` of the pass `quantize` is 'Conv'", "'str'"),
        ("quantize", {"operators": ["Conv"], "samples": 3}, "has no setting `samples`", "operators"),
        ("quantize", {}, "is not told its `operators`", "settings"),
        ("quantize_weights", {"method": "mse"}, "the pass `quantize_weights` has no setting `method`", "it has bits"),
        ("quantize_weights", {"block_size": "128"}, "`block_size` of the pass `quantize_weights` is '128'", "integer"),
        ("fix_shapes", {"shapes": {"image": [1, "a"]}}, "`shapes` of the pass `fix_shapes`", "integer"),
        ("fold_constants", {"far": True}, "the pass `fold_constants` has no setting `far`", "it has none"),
        ("quantize_dynamic", {"exclude": ["/0/Con"]}, "leave out the node `/0/Con`, which is not there", "`/0/Conv`? a pass before it"),
    ],
)
def test_a_step_is_told_only_what_its_pass_takes(name: str, asked: dict[str, Any], told: str, hint: str) -> None:
    model = graph.load(DATA / "resnet8_mnist.onnx")
    with pytest.raises(ModelError, match=re.escape(told)) as refused:
        passes.apply([{"pass": name, "settings": asked}], model, sampling.generated(model, 2))
    assert hint in refused.value.hint


def test_a_second_round_changes_nothing() -> None:
    slim = simplified(graph.load(DATA / "mobilenet_fashion.onnx"))
    assert operators(simplified(slim)) == operators(slim)
    assert len(list(sampling.generated(slim, 1))) == 1


def test_a_neutral_first_operand_of_the_only_node_changes_nothing() -> None:
    """Mul(1, x) from an input straight to an output has to stay; it must not become Mul(x, x)."""
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Mul", ["one", "x"], ["y"])],
            "small",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])],
            [onnx.numpy_helper.from_array(np.array(1, np.float32), "one")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model = onnx_ir.from_proto(proto)
    assert_same_function(model, simplified(model))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 2.6, 0.4])
def test_upsampling_of_an_old_opset_keeps_its_meaning(mode: str, scale: float) -> None:
    """Upsample-9 is asymmetric and rounds down (up where it shrinks); today's Resize means something else by default."""
    if scale < 1:
        operator, opset = "Resize", 10
    else:
        operator, opset = "Upsample", 9
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node(operator, ["x", "scales"], ["y"], mode=mode)],
            "small",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 10, 10])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, None, None])],
            [onnx.numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=6,
    )
    model = onnx_ir.from_proto(proto)
    assert_same_function(model, simplified(model))
