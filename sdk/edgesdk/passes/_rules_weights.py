"""How operators that compute tie the axes of what they read to those of what they answer."""

from collections.abc import Sequence

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import ALONE, Kept, NotUnderstoodError, Rule, Tracing, has, integer, known, text, where

_WINDOW = "height and width of an image are not pruned"
_DIRECTION = "there is one for each direction"

_EVERYWHERE: tuple[str, ...] = ("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos")
_EVERYWHERE += ("Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish")
_EVERYWHERE += ("Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish")
_EVERYWHERE += ("Tan", "Tanh", "ThresholdedRelu")
_TOGETHER: tuple[str, ...] = ("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less")
_TOGETHER += ("LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_SUMS = ("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2")  # go on without some of their channels; the others stay whole
_EXTREMES = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")


def _everywhere(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [tracing.given(node, 0)] * len(node.outputs)


def _together(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [tracing.broadcast([tracing.given(node, place) for place in range(len(node.inputs))], node)]


def _conv(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """Of one group; of as many groups as channels, where a channel goes with what is made of it; of others, where the same place in each group goes."""
    x, weight, group = tracing.given(node, 0), tracing.given(node, 1), integer(node, "group", 1)
    if len(x) != len(weight):
        raise NotUnderstoodError("has weights of another rank than its input")
    if group > 1 and weight[1].length == 1:
        _tie_groups(tracing, node, x[1], weight[0], group)
    else:
        _tie_positions(tracing, node, x[1], weight[1], group)
        if group > 1:
            _tie_positions(tracing, node, weight[0], tracing.ties.axis(len(known(weight[0])) // group), group)
        tracing.maker(node, 1, 0)
        tracing.reader(node, 1, 1, x[1])
    if has(node, 2):
        tracing.ties.tie(weight[0], tracing.given(node, 2)[0], where(node))
    return [[x[0], weight[0], *_windows(tracing, node)]]


def _conv_transpose(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """The same, with the weights the other way round."""
    x, weight, group = tracing.given(node, 0), tracing.given(node, 1), integer(node, "group", 1)
    if len(x) != len(weight):
        raise NotUnderstoodError("has weights of another rank than its input")
    tracing.ties.tie(x[1], weight[0], where(node))
    if group > 1 and weight[0].length == group:
        made = tracing.ties.axis(group * len(known(weight[1])))
        tracing.ties.pin(weight[1], f"{where(node)} has them for each of its groups")
        _tie_groups(tracing, node, x[1], made, group)
    else:
        made = weight[1] if group == 1 else Axis(np.tile(known(weight[1]), group))
        if group > 1:
            _tie_positions(tracing, node, x[1], tracing.ties.axis(len(known(x[1])) // group), group)
        tracing.maker(node, 1, 1)
        tracing.reader(node, 1, 0, x[1])
    if has(node, 2):
        tracing.ties.tie(made, tracing.given(node, 2)[0], where(node))
    return [[x[0], made, *_windows(tracing, node)]]


def _tie_groups(tracing: Tracing, node: onnx_ir.Node, channels: Axis, made: Axis, group: int) -> None:
    """One channel and all that is made of it."""
    tracing.ties.tie(channels.at(np.repeat(np.arange(len(known(channels))), len(known(made)) // group)), made, where(node))

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        node.attributes["group"] = onnx_ir.AttrInt64("group", int(kept(channels).sum()))

    tracing.rewrite(node, rewritten)


def _tie_positions(tracing: Tracing, node: onnx_ir.Node, channels: Axis, positions: Axis, group: int) -> None:
    """The same place in each group."""
    tracing.ties.tie(channels, Axis(np.tile(known(positions), group)), where(node))


def _windows(tracing: Tracing, node: onnx_ir.Node) -> list[Axis]:
    """Height and width of what is made."""
    return [tracing.of_shape(node.outputs[0], place, _WINDOW) for place in range(2, len(tracing.given(node, 0)))]


def _gemm(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    a, b = tracing.given(node, 0), tracing.given(node, 1)
    rows, columns = integer(node, "transA", 0), 1 - integer(node, "transB", 0)
    _contract(tracing, node, a[1 - rows], b[1 - columns], (1 - rows, 1 - columns))
    tracing.maker(node, 0, rows)
    tracing.maker(node, 1, columns)
    made = [a[rows], b[columns]]
    if has(node, 2):
        tracing.broadcast([made, tracing.given(node, 2)], node)
    return [made]


def _mat_mul(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    a, b = tracing.given(node, 0), tracing.given(node, 1)
    if not a or not b:
        raise NotUnderstoodError("multiplies single numbers")
    along = len(a) - 1, max(len(b) - 2, 0)
    _contract(tracing, node, a[along[0]], b[along[1]], along)
    made = tracing.broadcast([a[:-2], b[:-2]], node)
    for place, axes, axis in ((0, a, len(a) - 2), (1, b, len(b) - 1)):
        if len(axes) > 1:
            made.append(axes[axis])
            tracing.maker(node, place, axis)
    return [made]


def _contract(tracing: Tracing, node: onnx_ir.Node, first: Axis, second: Axis, along: tuple[int, int]) -> None:
    tracing.ties.tie(first, second, where(node))
    constant = [graph.constant(value) is not None for value in node.inputs[:2]]
    for place in (0, 1):
        if constant[place] or not any(constant):
            tracing.reader(node, place, along[place], first)


def _einsum(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """The same letter, the same axis; what is summed over is read."""
    terms, _, answer = text(node, "equation", "").replace(" ", "").partition("->")
    given = [tracing.given(node, place) for place in range(len(node.inputs))]
    letters = terms.split(",")
    if "." in terms or not answer or any(len(each) != len(axes) for each, axes in zip(letters, given, strict=True)):
        raise NotUnderstoodError("has an equation that is not followed")
    axes: dict[str, Axis] = {}
    for term, each in zip(letters, given, strict=True):
        for letter, axis in zip(term, each, strict=True):
            tracing.ties.tie(axes.setdefault(letter, axis), axis, where(node))
    constant = [graph.constant(value) is not None for value in node.inputs]
    for place, term in enumerate(letters):
        for along, letter in enumerate(term):
            if letter in answer:
                tracing.maker(node, place, along)
            elif constant[place] or not any(constant):
                tracing.reader(node, place, along, axes[letter])
    return [[axes[letter] for letter in answer]]


def _gates(count: int) -> Rule:
    """LSTM, GRU and RNN, whose weights lie gate by gate. The directions have to have the same units."""

    def rule(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
        x, weight, recurrent = (tracing.given(node, place) for place in range(3))
        hidden = recurrent[2]
        batch_first = integer(node, "layout", 0)
        gates = {1: count, 2: count, 3: 2 * count, 5: 1, 6: 1, 7: count - 1}
        for place, times in gates.items():
            if has(node, place):
                axes = tracing.given(node, place)
                tracing.ties.tie(axes[1 if place < 3 else -1], Axis(np.tile(known(hidden), times)), where(node))
                tracing.ties.pin(axes[1 if batch_first and place in (5, 6) else 0], _DIRECTION)
        tracing.ties.tie(x[2], weight[2], where(node))
        tracing.reader(node, 1, 2, x[2])
        tracing.reader(node, 2, 2, hidden)
        tracing.maker(node, 1, 1)
        tracing.maker(node, 2, 1)

        def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
            node.attributes["hidden_size"] = onnx_ir.AttrInt64("hidden_size", int(kept(hidden).sum()))

        tracing.rewrite(node, rewritten)
        directions = weight[0]
        last = [x[0], directions, hidden] if batch_first else [directions, x[1], hidden]
        return [[*x[:2], directions, hidden] if batch_first else [x[0], directions, x[1], hidden], last, last][: len(node.outputs)]

    return rule


def _batch_norm(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    if integer(node, "training_mode", 0) or len(node.outputs) > 1:
        raise NotUnderstoodError("is in training mode")
    for place in range(1, len(node.inputs)):
        tracing.ties.tie(x[1], tracing.given(node, place)[0], where(node))
    return [x]


def _layer_norm(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    axis = integer(node, "axis", -1) % len(x)
    for place in range(1, len(node.inputs)):
        tracing.broadcast([x[axis:], tracing.given(node, place)], node)
    tracing.mixes += [(each, str(node.name)) for each in x[axis:]]
    few = [*x[:axis], *(tracing.ties.fixed(1, ALONE) for _ in x[axis:])]
    return [x, few, few][: len(node.outputs)]


def _group_norm(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """Whole groups, since each channel is divided by what its group has."""
    x, count = tracing.given(node, 0), integer(node, "num_groups", 1)
    groups = tracing.ties.axis(count)
    tracing.ties.tie(x[1], groups.at(np.repeat(np.arange(count), len(known(x[1])) // count)), where(node))
    for place in (1, 2):
        each = tracing.given(node, place)[0]
        tracing.ties.tie(each, groups if each.length == count != x[1].length else x[1], where(node))

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        node.attributes["num_groups"] = onnx_ir.AttrInt64("num_groups", int(kept(groups).sum()))

    tracing.rewrite(node, rewritten)
    return [x]


def _pool(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise NotUnderstoodError("answers with places in its input")
    return [[*tracing.given(node, 0)[:2], *_windows(tracing, node)]] * len(node.outputs)


def _reduce(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    axes = [integer(node, "axis", 0)] if node.op_type.startswith("Arg") else tracing.integers(node, 1, "axes")
    if not axes and integer(node, "noop_with_empty_axes", 0):
        return [x]
    reduced = {axis % len(x) for axis in axes} if axes else set(range(len(x)))
    for axis in reduced:
        if node.op_type in _SUMS:
            tracing.mixes.append((x[axis], str(node.name)))
        else:
            tracing.ties.pin(x[axis], f"{where(node)} takes one of them")
    if integer(node, "keepdims", 1):
        return [[tracing.ties.fixed(1, ALONE) if place in reduced else axis for place, axis in enumerate(x)]]
    return [[axis for place, axis in enumerate(x) if place not in reduced]]


def _across(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """Softmax and what else divides by all along an axis; of older opsets, along that and all after it."""
    x = tracing.given(node, 0)
    old = tracing.opset < 13 and node.op_type != "LpNormalization"
    axis = integer(node, "axis", 1 if old else -1) % max(len(x), 1)
    _pin(tracing, node, x[axis:] if old else x[axis : axis + 1])
    return [x]


def _neighbours(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    _pin(tracing, node, x[1:2])
    return [x]


def _pin(tracing: Tracing, node: onnx_ir.Node, axes: Sequence[Axis]) -> None:
    tracing.pin(axes, f"{where(node)} weighs them against one another")


def _top(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    axis = integer(node, "axis", -1) % len(x)
    _pin(tracing, node, [x[axis]])
    made = [*x[:axis], tracing.of_shape(node.outputs[0], axis, f"{where(node)} takes so many"), *x[axis + 1 :]]
    return [made, made]


def _running_sum(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, axes = tracing.given(node, 0), tracing.integers(node, 1, "axis")
    _pin(tracing, node, [x[axis] for axis in axes or []])
    return [x]


COMPUTING: dict[str, Rule] = {
    **dict.fromkeys(_EVERYWHERE, _everywhere),
    **dict.fromkeys(_TOGETHER, _together),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "Einsum": _einsum,
    "LSTM": _gates(4),
    "GRU": _gates(3),
    "RNN": _gates(1),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys((*_SUMS, *_EXTREMES), _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _across),
    "LRN": _neighbours,
    "TopK": _top,
    "CumSum": _running_sum,
}
