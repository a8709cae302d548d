"""How operators that move numbers tie the axes of what they read to those of what they answer.

What they write down of lengths (sizes, starts and ends, targets) is rewritten for what is left.
"""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import ALONE, Kept, NotUnderstoodError, Rule, Tracing, add_to, integer, known, text, where


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


MOVING: dict[str, Rule] = {
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
}
