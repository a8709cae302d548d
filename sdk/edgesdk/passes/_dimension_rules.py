"""How each operator ties the axes of what it reads to the axes of what it answers.

A rule gives the axes of a node's outputs, having tied what has to stay or go together and noted which constants make channels, which
contract over them, and which numbers the node writes down (lengths, sizes, groups) follow from what is left.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import Entries, Fold, Kept, NotUnderstoodError, Size, Tracing, product, size

Rule = Callable[[Tracing, onnx_ir.Node], list[list[Axis]]]

_WINDOW = "an image's height and width are not pruned"
_EVERYWHERE: tuple[str, ...] = (
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
)
_EVERYWHERE += ("Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish")
_EVERYWHERE += ("Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt")
_EVERYWHERE += ("Swish", "Tan", "Tanh", "ThresholdedRelu")
_TOGETHER: tuple[str, ...] = (
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
)
_TOGETHER += ("Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor")
_SUMS = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")  # to which what is zero adds nothing
_SHAPE_READERS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3, "Slice": 2, "Tile": 1}  # the place where they are told lengths


def follow(tracing: Tracing, node: onnx_ir.Node) -> None:
    """Note the axes of the node's outputs. Where nobody understands the node, all that it reads and answers stays whole."""
    name = f"{node.op_type} `{node.name}`"
    _follow_numbers(tracing, node)
    if all(value is None or value in tracing.constant or graph.constant(value) is not None for value in node.inputs):
        tracing.constant.update(node.outputs)
    try:
        rule = RULES.get(node.op_type) if not node.domain else None
        if rule is None:
            raise NotUnderstoodError("is not understood")
        made = rule(tracing, node)
    except NotUnderstoodError as error:
        reason = f"{name} {error}"
        for place, value in enumerate(node.inputs):
            if value is not None and (graph.constant(value) is not None or tracing.axes.get(value) is not None):
                for axis in tracing.given(node, place):
                    tracing.ties.pin(axis, reason)
        for value in node.outputs:
            known = value.shape is not None
            tracing.axes[value] = [tracing.of_shape(value, place, reason) for place in range(len(value.shape))] if known and value.shape is not None else None
        return
    for value, axes in zip(node.outputs, made, strict=False):
        tracing.axes[value] = axes


def broadcast(tracing: Tracing, shapes: Sequence[list[Axis]], node: onnx_ir.Node) -> list[Axis]:
    """The axes of what is computed number by number from tensors of these."""
    rank = max(map(len, shapes))
    aligned = [[*(None for _ in range(rank - len(axes))), *(None if _one(axis) else axis for axis in axes)] for axes in shapes]
    made: list[Axis] = []
    for place in range(rank):
        there = [axes[place] for axes in aligned if axes[place] is not None]
        if not there:
            made.append(tracing.ties.fixed(1, "there is one alone"))
            continue
        known = [axis for axis in there if axis is not None and axis.length is not None]
        unknown = [axis for axis in there if axis is not None and axis.length is None]
        if not known:
            alike = all(axis is unknown[0] for axis in unknown)
            made.append(unknown[0] if alike else tracing.of_shape(node.outputs[0], place, _where(node)))
            continue
        for axis in (*known[1:], *unknown):
            tracing.ties.tie(known[0], axis, _where(node))
        made.append(known[0])
    return made


def _where(node: onnx_ir.Node) -> str:
    return f"{node.op_type} `{node.name}`"


def _integer(node: onnx_ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _text(node: onnx_ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def _one(axis: Axis) -> bool:
    return axis.length == 1


# Number by number


def _everywhere(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [tracing.given(node, 0)] * len(node.outputs)


def _together(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [broadcast(tracing, [tracing.given(node, place) for place in range(len(node.inputs))], node)]


# With weights


def _conv(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, weight, group = tracing.given(node, 0), tracing.given(node, 1), _integer(node, "group", 1)
    count, each = weight[0].length, weight[1].length
    if count is None or each is None or len(x) != len(weight):
        raise NotUnderstoodError("has weights of unknown size")
    if group == 1:
        tracing.ties.tie(x[1], weight[1], _where(node))
        tracing.maker(node, 1, 0)
        tracing.reader(node, 1, 1, x[1])
    elif each == 1:
        _tie_groups(tracing, node, x[1], weight[0], group)
    else:
        _tie_positions(tracing, node, x[1], group, weight[1])
        _tie_positions(tracing, node, weight[0], group, tracing.ties.axis(count // group))
        tracing.maker(node, 1, 0)
        tracing.reader(node, 1, 1, x[1])
    if tracing.has(node, 2):
        tracing.ties.tie(tracing.given(node, 2)[0], weight[0], _where(node))
    return [[x[0], weight[0], *_windows(tracing, node)]]


def _conv_transpose(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, weight, group = tracing.given(node, 0), tracing.given(node, 1), _integer(node, "group", 1)
    count, each = weight[0].length, weight[1].length
    if count is None or each is None or len(x) != len(weight):
        raise NotUnderstoodError("has weights of unknown size")
    tracing.ties.tie(x[1], weight[0], _where(node))
    if group == 1 or count > group:
        made = weight[1] if group == 1 else Axis(np.tile(_atoms(weight[1]), group))
        if group > 1:
            _tie_positions(tracing, node, x[1], group, tracing.ties.axis(count // group))
        tracing.maker(node, 1, 1)
        tracing.reader(node, 1, 0, x[1])
    else:
        made = tracing.ties.axis(group * each)
        tracing.ties.pin(weight[1], f"{_where(node)} has them for each of its groups")
        _tie_groups(tracing, node, x[1], made, group)
    if tracing.has(node, 2):
        tracing.ties.tie(tracing.given(node, 2)[0], made, _where(node))
    return [[x[0], made, *_windows(tracing, node)]]


def _tie_groups(tracing: Tracing, node: onnx_ir.Node, given: Axis, made: Axis, group: int) -> None:
    """One channel in and all that is made of it."""
    tracing.ties.tie(Axis(np.repeat(_atoms(given), len(_atoms(made)) // group)), made, _where(node))

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        node.attributes["group"] = onnx_ir.AttrInt64("group", int(kept(given).sum()))

    tracing.rewrite(node, rewritten)


def _tie_positions(tracing: Tracing, node: onnx_ir.Node, channels: Axis, group: int, positions: Axis) -> None:
    """The same place in each group."""
    tracing.ties.tie(channels, Axis(np.tile(_atoms(positions), group)), _where(node))


def _atoms(axis: Axis) -> Array:
    if axis.atoms is None:
        raise NotUnderstoodError("is given channels whose number is not known")
    return axis.atoms


def _windows(tracing: Tracing, node: onnx_ir.Node) -> list[Axis]:
    """Height and width of what is made."""
    made = node.outputs[0]
    rank = len(tracing.given(node, 0))
    return [tracing.of_shape(made, place, _WINDOW) for place in range(2, rank)]


def _gemm(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    across = [_integer(node, name, 0) for name in ("transA", "transB")]
    a, b = tracing.given(node, 0), tracing.given(node, 1)
    made = [a[across[0]], b[1 - across[1]]]
    _contract(tracing, node, a[1 - across[0]], b[across[1]], (1 - across[0], across[1]))
    for place, axis in ((0, across[0]), (1, 1 - across[1])):
        tracing.maker(node, place, axis)
    if tracing.has(node, 2):
        broadcast(tracing, [made, tracing.given(node, 2)], node)
    return [made]


def _mat_mul(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    a, b = tracing.given(node, 0), tracing.given(node, 1)
    if not a or not b:
        raise NotUnderstoodError("multiplies numbers alone")
    along = len(a) - 1, max(len(b) - 2, 0)
    _contract(tracing, node, a[along[0]], b[along[1]], along)
    made = broadcast(tracing, [a[:-2], b[:-2]], node)
    for place, axes, axis in ((0, a, len(a) - 2), (1, b, len(b) - 1)):
        if len(axes) > 1:
            made.append(axes[axis])
            tracing.maker(node, place, axis)
    return [made]


def _contract(tracing: Tracing, node: onnx_ir.Node, first: Axis, second: Axis, along: tuple[int, int]) -> None:
    tracing.ties.tie(first, second, _where(node))
    constant = [graph.constant(value) is not None for value in node.inputs[:2]]
    if not any(constant):
        tracing.mixes.append((first, str(node.name)))
    for place in (0, 1):
        if constant[place]:
            tracing.reader(node, place, along[place], first)


def _batch_norm(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    if _integer(node, "training_mode", 0):
        raise NotUnderstoodError("is in training mode")
    for place in range(1, len(node.inputs)):
        tracing.ties.tie(x[1], tracing.given(node, place)[0], _where(node))
    return [x]


def _layer_norm(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    axis = _integer(node, "axis", -1) % len(x)
    normalized = x[axis:]
    for place in range(1, len(node.inputs)):
        broadcast(tracing, [normalized, tracing.given(node, place)], node)
    tracing.mixes += [(each, str(node.name)) for each in normalized]
    few = [*x[:axis], *(tracing.ties.fixed(1, "there is one alone") for _ in normalized)]
    return [x, few, few]


# Pools


def _pool(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise NotUnderstoodError("answers with places in its input, too")
    return [[*tracing.given(node, 0)[:2], *_windows(tracing, node)]] * len(node.outputs)


# Other shapes of the same numbers


def _flatten(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    axis = _integer(node, "axis", 1) % (len(x) + 1) if _integer(node, "axis", 1) != len(x) else len(x)
    return [
        [
            *_fold(tracing, node, x[:axis], [product([size(each) for each in x[:axis]])]),
            *_fold(tracing, node, x[axis:], [product([size(each) for each in x[axis:]])]),
        ]
    ]


def _fold(tracing: Tracing, node: onnx_ir.Node, before: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """The axes of those lengths, of the same numbers in the same order."""
    left, right = [axis for axis in before if not _one(axis)], [each for each in sizes if each != (1, Counter())]
    if len(left) == len(right) == 1 and size(left[0]) == right[0]:
        made = [left[0]]
    elif not left and not right:
        made = []
    elif any(axis.length is None for axis in left) or any(unknown for _, unknown in right):
        for axis in left:
            tracing.ties.pin(axis, f"{_where(node)} folds it with an axis of unknown length")
        made = [Axis(None) if unknown else tracing.ties.fixed(length, f"{_where(node)} folds unknown lengths into it") for length, unknown in right]
    else:
        made = [tracing.ties.axis(length) for length, _ in right]
        tracing.folds.append(Fold(left, made, _where(node)))
    remaining = iter(made)
    return [tracing.ties.fixed(1, "there is one alone") if each == (1, Counter()) else next(remaining) for each in sizes]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_EVERYWHERE, _everywhere),
    **dict.fromkeys(_TOGETHER, _together),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pool),
    "Flatten": _flatten,
}


def _follow_numbers(tracing: Tracing, node: onnx_ir.Node) -> None:
    """The lengths among a node's outputs. Whoever computes with a length in a way that is not followed, its axis stays."""
    follower = _NUMBERS.get(node.op_type) if not node.domain else None
    found = follower(tracing, node) if follower is not None else None
    if found is not None:
        tracing.numbers[node.outputs[0]] = found
        return
    told = _SHAPE_READERS.get(node.op_type) if not node.domain else None
    for place, value in enumerate(node.inputs):
        if value is not None and place != told:
            for number in tracing.numbers.get(value, []):
                if isinstance(number, Axis):
                    tracing.ties.pin(number, f"{_where(node)} computes with its length")


_NUMBERS: dict[str, Callable[[Tracing, onnx_ir.Node], Entries | None]] = {}
