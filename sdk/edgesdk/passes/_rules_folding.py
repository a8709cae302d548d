"""How Reshape and Flatten tie the axes of what they read to those of what they answer: part by part, as the lengths tell."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._folds import Fold
from edgesdk.passes._rewiring import is_private, take_place
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import ALONE, Kept, NotUnderstoodError, Rule, Size, Tracing, integer, product, where


def _reshape(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, target, made = tracing.given(node, 0), tracing.entries(node, 1), node.outputs[0]
    if target is None:
        raise NotUnderstoodError("is told a shape that is not followed")
    if 0 in [axis.length for axis in x] or (0 in target and integer(node, "allowzero", 0)):
        raise NotUnderstoodError("is given nothing")
    computed = {place: tracing.of_shape(made, place, f"{where(node)} computes its length") for place, number in enumerate(target) if number is None}
    sizes: list[Size | None] = []
    for place, number in enumerate(target):
        axis = x[place] if number == 0 else computed.get(place) if number is None else number
        sizes.append(None if axis == -1 else tracing.size(axis) if isinstance(axis, Axis) else (int(axis or 0), Counter()))
    if None in sizes:
        rest = sizes.index(None)
        sizes[rest] = _divided(product([tracing.size(axis) for axis in x]), product([each for each in sizes if each is not None]))
        sizes[rest] = sizes[rest] or tracing.size(tracing.of_shape(made, rest, f"{where(node)} computes its length"))
    known_sizes = [each for each in sizes if each is not None]
    shuffled = _shuffled(tracing, node, known_sizes)
    if shuffled is not None:
        return [shuffled]
    axes = _folded(tracing, node, x, known_sizes)
    tracing.pin([axes[place] for place in computed], f"{where(node)} computes its length")
    for place, number in enumerate(target):
        told = x[place] if number == 0 else number
        if isinstance(told, Axis) and axes[place].length is not None:
            tracing.ties.tie(axes[place], told, where(node))
    tracing.write_lengths(node, 1, {place: axes[place] for place, number in enumerate(target) if isinstance(number, int) and number > 1})
    return [axes]


def _shuffled(tracing: Tracing, node: onnx_ir.Node, sizes: list[Size]) -> list[Axis] | None:
    """Of channels taken apart, transposed, and put together again, as ShuffleNet does it (Zhang et al. 2018): any may go, if a Gather does the rest."""
    transpose = _before(node, "Transpose")
    first = _before(transpose, "Reshape") if transpose is not None else None
    folds = [fold for fold in tracing.folds if first is not None and fold.where == where(first) and len(fold.before) == 1]
    if transpose is None or first is None or len(folds) != 1:
        return None
    x, apart, fold = tracing.given(first, 0), tracing.given(transpose, 0), folds[0]
    axis = next((place for place, each in enumerate(x) if each is fold.before[0]), None)
    start = next((place for place, each in enumerate(apart) if each is fold.after[0]), None)
    order = list(transpose.attributes["perm"].as_ints()) if "perm" in transpose.attributes else []
    if axis is None or start is None or sizes != [tracing.size(each) for each in x] or not order:
        return None
    inside = range(start, start + len(fold.after))
    if any(place != each and (place not in inside or each not in inside) for place, each in enumerate(order)):
        return None
    tracing.folds.remove(fold)
    indices = np.arange(x[axis].length or 0).reshape([each.length or 0 for each in fold.after])
    indices = indices.transpose([each - start for each in order[start : start + len(fold.after)]]).reshape(-1)
    shuffled = x[axis].at(indices)

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        stays = kept(x[axis])
        if not stays.all():
            _gather_instead(node, axis, (np.cumsum(stays) - 1)[indices[kept(shuffled)]])

    tracing.rewrite(node, rewritten)
    return [*x[:axis], shuffled, *x[axis + 1 :]]


def _before(node: onnx_ir.Node, kind: str) -> onnx_ir.Node | None:
    """The node of that kind that makes the first input, for this node alone."""
    value = node.inputs[0]
    before = value.producer() if value is not None else None
    return before if before is not None and before.op_type == kind and not before.domain and value is not None and is_private(value) else None


def _gather_instead(node: onnx_ir.Node, axis: int, indices: Array) -> None:
    """Reshape, Transpose and Reshape, of which this is the last, become a Gather."""
    inside, transpose = node.graph, _before(node, "Transpose")
    first = _before(transpose, "Reshape") if transpose is not None else None
    assert isinstance(inside, onnx_ir.Graph) and transpose is not None and first is not None
    gather = onnx_ir.node("Gather", [first.inputs[0], graph.add_constant(inside, f"{node.name}_order", indices)], {"axis": axis}, name=node.name)
    inside.insert_before(node, gather)
    take_place(gather, node)
    inside.remove([transpose, first], safe=True)


def _flatten(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, axis = tracing.given(node, 0), integer(node, "axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    return [[each for part in (x[:axis], x[axis:]) for each in _fold(tracing, node, part, [product([tracing.size(axis) for axis in part])])]]


def _divided(whole: Size, part: Size) -> Size | None:
    """How often the one fits into the other, if that is known."""
    if part[0] == 0 or whole[0] % part[0] or part[1] - whole[1]:
        return None
    return whole[0] // part[0], whole[1] - part[1]


def _folded(tracing: Tracing, node: onnx_ir.Node, before: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """The axes of those sizes, folded out of others in the smallest parts that can be told: from the end, and then, where that fails, from the start."""
    given, made = list(before), list(sizes)
    axes: list[Axis] = []
    for count, length in _parts([tracing.size(axis) for axis in given[::-1]], made[::-1]):
        axes[:0] = _fold(tracing, node, given[len(given) - count :], made[len(made) - length :])
        del given[len(given) - count :], made[len(made) - length :]
    first: list[Axis] = []
    for count, length in _parts([tracing.size(axis) for axis in given], made):
        first += _fold(tracing, node, given[:count], made[:length])
        del given[:count], made[:length]
    return [*first, *_fold(tracing, node, given, made), *axes]


def _parts(before: Sequence[Size], after: Sequence[Size]) -> Iterator[tuple[int, int]]:
    """How many of the one, from the start, are as long as how many of the other, until that cannot be told."""
    left = right = 0
    while left < len(before) and right < len(after):
        counts = [1, 1]
        while (sizes := (product(before[left : left + counts[0]]), product(after[right : right + counts[1]])))[0] != sizes[1]:
            grow = [_lacks(sizes[0], sizes[1]), _lacks(sizes[1], sizes[0])]
            ends = left + counts[0] == len(before), right + counts[1] == len(after)
            grow = [wanted and not end for wanted, end in zip(grow, ends, strict=True)]
            if not any(grow):
                return
            counts = [count + more for count, more in zip(counts, grow, strict=True)]
        left, right = left + counts[0], right + counts[1]
        yield counts[0], counts[1]


def _lacks(one: Size, other: Size) -> bool:
    return bool(other[1] - one[1]) or (one[1] == other[1] and one[0] < other[0])


def _fold(tracing: Tracing, node: onnx_ir.Node, before: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """The axes of those sizes, of the same numbers in the same order."""
    one: Size = (1, Counter())
    left, right = [axis for axis in before if axis.length != 1], [each for each in sizes if each != one]
    if len(left) == len(right) == 1 and tracing.size(left[0]) == right[0]:
        made = [left[0]]
    elif any(axis.length is None for axis in left) or any(unknown for _, unknown in right) or not left or not right:
        made = [tracing.ties.fixed(each[0], f"{where(node)} folds an axis of unknown length") if not each[1] else Axis(None) for each in right]
        tracing.factors.update({axis: each for axis, each in zip(made, right, strict=True) if each[1]})
        leading = _leading(tracing, node, left, right)
        made[:1] = leading or made[:1]
        tracing.pin(left[len(leading) :], f"{where(node)} folds it with an axis of unknown length")
    else:
        made = [tracing.ties.axis(length) for length, _ in right]
        tracing.folds.append(Fold(left, made, where(node)))
    remaining = iter(made)
    return [tracing.ties.fixed(1, ALONE) if each == one else next(remaining) for each in sizes]


def _leading(tracing: Tracing, node: onnx_ir.Node, left: Sequence[Axis], right: Sequence[Size]) -> list[Axis]:
    """The first axis of the second side, in whole parts of which the first of the other goes: groups of channels, whatever an image's size."""
    if not left or not right or left[0].length is None or right[0][1]:
        return []
    count = int(np.gcd(left[0].length, right[0][0]))
    units, made = tracing.ties.axis(count), tracing.ties.axis(right[0][0])
    for axis in (left[0], made):
        tracing.ties.tie(axis, units.at(np.arange(axis.length or 0) // ((axis.length or 0) // count)), where(node))
    return [made]


FOLDING: dict[str, Rule] = {"Reshape": _reshape, "Flatten": _flatten}
