"""How operators that move numbers, or put them into other shapes, tie the axes of what they read to those of what they answer.

What they write down of lengths (targets, sizes, starts and ends) is rewritten for what is left.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._rewiring import is_private, take_place
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import ALONE, Entries, Fold, Kept, NotUnderstoodError, Number, Rule, Size, Tracing, add_to, integer, known, product, text, where


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


def _transpose(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x = tracing.given(node, 0)
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(x))[::-1]
    return [[x[axis] for axis in order]]


def _squeeze(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, axes = tracing.given(node, 0), tracing.integers(node, 1, "axes")
    if axes is None and any(axis.length is None for axis in x):
        raise NotUnderstoodError("takes out axes that happen to be 1 long")
    out = {axis % len(x) for axis in axes} if axes else {place for place, axis in enumerate(x) if axis.length == 1}
    return [[axis for place, axis in enumerate(x) if place not in out]]


def _unsqueeze(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, axes = tracing.given(node, 0), tracing.integers(node, 1, "axes") or []
    rank = len(x) + len(axes)
    new = {axis % rank for axis in axes}
    remaining = iter(x)
    return [[tracing.ties.fixed(1, ALONE) if place in new else next(remaining) for place in range(rank)]]


def _concat(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    given = [tracing.given(node, place) for place in range(len(node.inputs))]
    axis = integer(node, "axis", 0) % len(given[0])
    made = [tracing.together([axes[place] for axes in given], node, place) if place != axis else axes for place, axes in enumerate(given[0])]
    parts = [axes[axis].atoms for axes in given]
    if any(part is None for part in parts):
        tracing.pin([axes[axis] for axes in given], f"{where(node)} puts an axis of unknown length beside it")
        made[axis] = tracing.of_shape(node.outputs[0], axis, where(node))
    else:
        made[axis] = Axis(np.concatenate([part for part in parts if part is not None]))
    return [made]


def _split(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, sizes, count = tracing.given(node, 0), tracing.integers(node, 1, "split"), len(node.outputs)
    axis = integer(node, "axis", 0) % len(x)
    if x[axis].length is None:
        return [[*x[:axis], tracing.of_shape(value, axis, where(node)), *x[axis + 1 :]] for value in node.outputs]
    length = len(known(x[axis]))
    each = -(-length // count)
    ends = np.minimum(np.cumsum(sizes or [each] * count), length)
    parts = [x[axis].at(slice(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        left = [int(kept(part).sum()) for part in parts]
        inside = node.graph
        assert isinstance(inside, onnx_ir.Graph)
        if left == [part.length for part in parts]:
            return
        if tracing.opset < 13:
            node.attributes["split"] = onnx_ir.AttrInt64s("split", left)
            return
        node.attributes.pop("num_outputs", None)
        node.resize_inputs(2)
        node.replace_input_with(1, graph.add_constant(inside, f"{node.name}_sizes", np.array(left, np.int64)))

    tracing.pin([part for part in parts if part.length == 1], f"{where(node)} takes this one")
    tracing.rewrite(node, rewritten)
    return [[*x[:axis], part, *x[axis + 1 :]] for part in parts]


def _slice(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, starts, ends = tracing.given(node, 0), tracing.entries(node, 1), tracing.entries(node, 2)
    axes, steps = (tracing.integers(node, place, name) for place, name in ((3, "axes"), (4, "steps")))
    if starts is None or ends is None:
        raise NotUnderstoodError("is told starts and ends that are not followed")
    made, taken = list(x), dict[int, tuple[int, int, int]]()
    for entry, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[entry] % len(x) if axes else entry, steps[entry] if steps else 1
        if start == 0 and step == 1 and end is x[axis]:
            continue
        if not isinstance(start, int) or not isinstance(end, int) or x[axis].atoms is None:
            tracing.pin([start, end, x[axis]], f"{where(node)} takes a part that the graph computes")
            made[axis] = tracing.of_shape(node.outputs[0], axis, where(node))
            continue
        first, last, _ = slice(start, end, step).indices(len(known(x[axis])))
        made[axis] = x[axis].at(slice(start, end, step))
        if step == 1:
            taken[entry] = axis, first, last
            tracing.pin([made[axis]] if last - first == 1 else [], f"{where(node)} takes this one")
        else:
            tracing.ties.pin(x[axis], f"{where(node)} takes every so manieth of them")

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        changes = np.zeros((2, len(starts)), np.int64)
        for entry, (axis, first, last) in taken.items():
            stays = kept(x[axis])
            if not stays.all():
                changes[:, entry] = stays[:first].sum() - starts[entry], stays[: max(last, first)].sum() - ends[entry]
        for place in (0, 1):
            add_to(node, place + 1, changes[place].tolist())

    if taken:
        tracing.rewrite(node, rewritten)
    return [made]


def _gather(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """With constant indices, these; with computed ones, as from a table of embeddings, the whole axis."""
    x, indices = tracing.given(node, 0), graph.constant(node.inputs[1])
    axis = integer(node, "axis", 0) % len(x)
    for place in range(len(x)):
        if place != axis:
            tracing.maker(node, 0, place)
    if indices is None or indices.ndim > 1 or x[axis].atoms is None:
        tracing.ties.pin(x[axis], f"{where(node)} looks up any of them")
        return [[*x[:axis], *tracing.given(node, 1), *x[axis + 1 :]]]
    chosen = x[axis]
    taken = chosen.at(indices.reshape(-1))
    if indices.ndim == 0:
        tracing.ties.pin(taken, f"{where(node)} takes this one")

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        stays, inside, value = kept(chosen), node.graph, node.inputs[1]
        if not stays.all():
            assert isinstance(inside, onnx_ir.Graph) and value is not None
            left = (np.cumsum(stays) - 1)[indices.reshape(-1)][kept(taken)].astype(indices.dtype)
            node.replace_input_with(1, graph.add_constant(inside, f"{value.name}_pruned", left.reshape([-1] * indices.ndim)))

    tracing.rewrite(node, rewritten)
    return [[*x[:axis], *([taken] if indices.ndim else []), *x[axis + 1 :]]]


def _pad(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """Channels of zeros beside the others may go, as others do."""
    x, pads = tracing.given(node, 0), tracing.integers(node, 1, "pads")
    axes = tracing.integers(node, 3, "axes")
    if pads is None:
        raise NotUnderstoodError("is not told how much")
    made, added = list(x), dict[int, tuple[Axis, Axis]]()
    places = [axis % len(x) for axis in axes] if axes else list(range(len(x)))
    for entry, axis in enumerate(places):
        before, after = pads[entry], pads[entry + len(places)]
        if before == after == 0:
            continue
        if x[axis].atoms is None or min(before, after) < 0 or text(node, "mode", "constant") != "constant":
            tracing.ties.pin(x[axis], f"{where(node)} puts more beside them")
            made[axis] = tracing.of_shape(node.outputs[0], axis, where(node))
            continue
        added[entry] = tracing.ties.axis(before), tracing.ties.axis(after)
        made[axis] = Axis(np.concatenate([known(added[entry][0]), known(x[axis]), known(added[entry][1])]))

    def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
        changes = [0] * len(pads)
        for entry, sides in added.items():
            for side, axis in enumerate(sides):
                changes[entry + side * len(places)] -= int((~kept(axis)).sum())
        if "pads" in node.attributes:
            node.attributes["pads"] = onnx_ir.AttrInt64s("pads", [pad + change for pad, change in zip(pads, changes, strict=True)])
        else:
            add_to(node, 1, changes)

    tracing.rewrite(node, rewritten)
    return [made]


def _expand(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [tracing.broadcast([tracing.given(node, 0), _told(tracing, node, 1)], node)]


def _constant_of_shape(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [_told(tracing, node, 0)]


def _told(tracing: Tracing, node: onnx_ir.Node, place: int) -> list[Axis]:
    """The axes of a shape that a node is told, which may become shorter."""
    target = tracing.entries(node, place)
    if target is None:
        raise NotUnderstoodError("is told a shape that is not followed")
    axes = [_of_number(tracing, number) for number in target]
    tracing.write_lengths(node, place, {entry: axes[entry] for entry, number in enumerate(target) if isinstance(number, int) and number > 1})
    return axes


def _of_number(tracing: Tracing, number: int | Axis | None) -> Axis:
    if number is None or number == -1:
        return Axis(None)
    if isinstance(number, Axis):
        return number
    return tracing.ties.axis(number) if number > 1 else tracing.ties.fixed(number, ALONE)


def _tile(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, repeats = tracing.given(node, 0), tracing.entries(node, 1)
    if repeats is None:
        raise NotUnderstoodError("is told repeats that are not followed")
    made: list[Axis] = []
    for place, (axis, times) in enumerate(zip(x, repeats, strict=True)):
        if isinstance(times, int) and axis.atoms is not None and axis.length != 1:
            made.append(Axis(np.tile(axis.atoms, times)))
        elif times == 1:
            made.append(axis)
        elif axis.length == 1:
            made.append(_of_number(tracing, times))
        else:
            tracing.pin([axis, times], f"{where(node)} repeats them as often as the graph computes")
            made.append(tracing.of_shape(node.outputs[0], place, where(node)))
    alone = {entry: made[entry] for entry, times in enumerate(repeats) if isinstance(times, int) and times > 1 and x[entry].length == 1}
    tracing.write_lengths(node, 1, alone)
    return [made]


def _resize(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    """An axis that is given its own length, or a scale of 1, stays the same."""
    x, made = tracing.given(node, 0), node.outputs[0]
    scales = graph.constant(node.inputs[1 if node.op_type == "Upsample" or tracing.opset < 11 else 2]) if len(node.inputs) > 1 else None
    sizes = tracing.entries(node, 3)
    axes = [axis % len(x) for axis in node.attributes["axes"].as_ints()] if "axes" in node.attributes else list(range(len(x)))
    if text(node, "keep_aspect_ratio_policy", "stretch") != "stretch" or (sizes is None and (scales is None or not scales.size)):
        raise NotUnderstoodError("is told sizes that are not followed")
    same = {axis for axis in range(len(x)) if axis not in axes}
    written: dict[int, Axis] = {}
    for entry, axis in enumerate(axes):
        told = sizes[entry] if sizes is not None else None
        if sizes is None and scales is not None and scales[entry] == 1:
            same.add(axis)
        elif isinstance(told, Axis) and (told is x[axis] or (told.length is not None and told.length == x[axis].length)):
            tracing.ties.tie(told, x[axis], where(node))
            same.add(axis)
        elif isinstance(told, int) and told == x[axis].length:
            written[entry] = x[axis]
            same.add(axis)
        else:
            tracing.pin([x[axis], told], f"{where(node)} makes more or fewer of them")
    tracing.write_lengths(node, 3, written)
    return [[axis if place in same else tracing.of_shape(made, place, where(node)) for place, axis in enumerate(x)]]


def _depth_to_space(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, block = tracing.given(node, 0), integer(node, "blocksize", 1)
    each = np.arange(len(known(x[1])) // block**2)
    order = np.tile(each, block**2) if text(node, "mode", "DCR") == "DCR" else np.repeat(each, block**2)
    channels = tracing.ties.axis(len(each))
    tracing.ties.tie(x[1], channels.at(order), where(node))
    return [[x[0], channels, *(tracing.of_shape(node.outputs[0], place, where(node)) for place in (2, 3))]]


def _space_to_depth(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    x, block = tracing.given(node, 0), integer(node, "blocksize", 1)
    channels = Axis(np.tile(known(x[1]), block**2))
    return [[x[0], channels, *(tracing.of_shape(node.outputs[0], place, where(node)) for place in (2, 3))]]


def _shape(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [[tracing.ties.fixed(len(_lengths(tracing, node) or []), where(node))]]


MOVING: dict[str, Rule] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Tile": _tile,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Shape": _shape,
}


def numbers(tracing: Tracing, node: onnx_ir.Node) -> Entries | None:
    """What a node answers, if that is a few integers that can be followed."""
    kind = node.op_type if not node.domain else ""
    if kind == "Constant":
        whole = [node.attributes[name] for name in ("value_int", "value_ints") if name in node.attributes]
        return [int(number) for each in whole for number in np.atleast_1d(np.array(each.value))] if whole else None
    if kind == "Shape":
        return _lengths(tracing, node)
    if kind == "Concat":
        parts = [_part(tracing, node, place) for place in range(len(node.inputs))]
        return [number for part in parts for number in part or []] if all(part is not None for part in parts) else None
    found = tracing.entries(node, 0)
    if kind == "Cast" and node.attributes["to"].as_int() not in (onnx_ir.DataType.INT32, onnx_ir.DataType.INT64):
        return None
    if found is None or kind in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
        return found
    indices = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if kind == "Gather" and indices is not None and indices.ndim < 2:
        return [found[index] for index in indices.reshape(-1)]
    if kind == "Slice":
        start, end, _, step = ((tracing.entries(node, place) or [1])[0] for place in range(1, 5))
        return found[start:end:step] if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) else None
    if kind == "ConstantOfShape" and len(found) == 1 and isinstance(found[0], int) and 0 <= found[0] < 8:
        value = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1)
        return [int(value.reshape(-1)[0])] * found[0] if value.dtype.kind == "i" else None
    other = tracing.entries(node, 1)
    if kind == "Equal" and other is not None and len(found) == len(other):
        return [_is_equal(*pair) for pair in zip(found, other, strict=True)]
    if kind == "Where" and other is not None and (third := tracing.entries(node, 2)) is not None and len(found) == len(other) == len(third):
        return [one if chosen == 1 else two if chosen == 0 else None for chosen, one, two in zip(found, other, third, strict=True)]
    if kind == "Mul" and other is not None and [1] in (found, other):
        return other if found == [1] else found
    if kind in _ARITHMETIC and other is not None:
        found, other = (_as_it_is(tracing, node, each) for each in (found, other))
    if kind in _ARITHMETIC and other is not None and all(isinstance(number, int) for number in (*found, *other)):
        return [int(number) for number in _ARITHMETIC[kind](np.array(found, np.int64), np.array(other, np.int64)).reshape(-1)]
    return None


def _as_it_is(tracing: Tracing, node: onnx_ir.Node, entries: Entries) -> Entries:
    """What is computed with stays as it is."""
    tracing.pin(entries, f"{where(node)} computes with its length")
    return [number.length if isinstance(number, Axis) else number for number in entries]


def _is_equal(one: Number, other: Number) -> int | None:
    """As a number. No length is negative: exporters ask whether it is -1."""
    if isinstance(one, int) and isinstance(other, int):
        return int(one == other)
    numbers = [number for number in (one, other) if isinstance(number, int)]
    return 0 if numbers and numbers[0] < 0 and None not in (one, other) else None


def _lengths(tracing: Tracing, node: onnx_ir.Node) -> Entries | None:
    axes = tracing.axes.get(node.inputs[0]) if node.inputs[0] is not None else None
    if axes is None and (node.inputs[0] is None or graph.constant(node.inputs[0]) is None):
        return None
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    lengths: Entries = [axis if axis.length is None or tracing.ties.is_free(axis) else axis.length for axis in axes or tracing.given(node, 0)]
    return lengths[integer(node, "start", 0) : end]


def _part(tracing: Tracing, node: onnx_ir.Node, place: int) -> Entries | None:
    """Of what is not followed, how many numbers there are at least."""
    found, value = tracing.entries(node, place), node.inputs[place]
    if found is not None or value is None or value.shape is None or value.dtype != onnx_ir.DataType.INT64:
        return found
    return [None] * int(value.shape[0]) if len(value.shape) == 1 and isinstance(value.shape[0], int) and value.shape[0] < 8 else None


def _quotient(one: Array, other: Array) -> Array:
    return np.asarray(np.trunc(one / np.where(other == 0, 1, other)), np.int64)


_ARITHMETIC: dict[str, Callable[[Array, Array], Array]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _quotient}
