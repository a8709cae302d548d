"""Which channels of a graph can go without the others: the analysis below every pruning, and the surgery.

    dimensions = analyse(model)
    dimensions.groups                                   # channels that many nodes share, with the weights that make and read them
    dimensions.whole                                    # what stays as it is, and why
    smaller = shrink(model, dimensions, {"conv_3": [0, 7]})

Every index along every axis of every tensor is an atom; each operator's rule ties those that stay or go together (DepGraph, Fang et al. 2023,
does so for layers; here it is single indices, so that Concat, Split, heads and channel shuffles need no case of their own). What a node
that is not understood reads or answers stays whole, as do the model's inputs and outputs.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.passes._folds import settle
from edgesdk.passes._rules_folding import FOLDING
from edgesdk.passes._rules_lengths import COUNTING, numbers
from edgesdk.passes._rules_shapes import MOVING
from edgesdk.passes._rules_weights import COMPUTING
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import Kept, NotUnderstoodError, Rewrite, Tracing, Use, where

_RULES = {**COMPUTING, **MOVING, **FOLDING, **COUNTING}
_TOLD = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3, "Slice": 2, "Tile": 1}  # the input by which lengths are told, and followed


@dataclass(frozen=True)
class Slice:
    """Where a group's channels lie in a constant that a node reads."""

    node: str
    place: int  # which of the node's inputs
    axis: int
    units: tuple[int, ...]  # for each index along the axis, the unit of the group that it belongs to, or -1


@dataclass(frozen=True)
class Group:
    """Units that may go without those of any other group. At least one has to stay."""

    name: str  # of the tensor that has these channels first
    axis: int  # of that tensor
    count: int  # units: a channel, a head, the same place in each group of a Conv …
    width: int  # channels of that tensor in a unit
    makers: tuple[Slice, ...]  # weights whose output channels these are
    readers: tuple[Slice, ...]  # weights that sum over them
    others: tuple[Slice, ...]  # what follows: biases, normalizations, depthwise weights, scales …
    mixes: tuple[str, ...]  # nodes that compute across the channels without weights of their own: what is left would answer differently


@dataclass(frozen=True)
class Whole:
    """Channels that are made by weights and cannot go."""

    name: str  # of the tensor that they are made as
    count: int
    reason: str


@dataclass(frozen=True)
class Dimensions:
    """What `shrink` needs to know of a model."""

    groups: tuple[Group, ...]
    whole: tuple[Whole, ...]
    roots: Array  # the class of each atom
    units: dict[str, Array]  # of each group, the classes of its units
    axes: dict[str, tuple[Axis, ...]]  # of each tensor that nodes make
    constants: dict[Use, list[Axis]]
    rewrites: dict[str, list[Rewrite]]


def analyse(model: Model) -> Dimensions:
    """The groups in the order of the graph. The model is not changed; nodes and tensors keep their names in all that is said of them."""
    known = graph.clone(model)
    graph.infer_shapes(known)
    tracing = _traced(known)
    roots = tracing.ties.roots()
    groups, units = _groups(tracing, roots)
    return Dimensions(
        groups=groups,
        whole=_whole(known, tracing, roots, units),
        roots=roots,
        units=units,
        axes={str(value.name): tuple(axes) for value, axes in tracing.axes.items() if axes is not None},
        constants=tracing.constants,
        rewrites=tracing.rewrites,
    )


def shrink(model: Model, dimensions: Dimensions, removed: Mapping[str, Collection[int]]) -> Model:
    """The model that was analysed without these units of these groups, by the groups' names. Raises ModelError if a group would lose all.

    Nodes, tensors, inputs and outputs keep their names, inputs and outputs their shapes.
    """
    gone = np.zeros(len(dimensions.roots), bool)
    for name, units in removed.items():
        chosen = sorted(set(units))
        if len(chosen) >= len(dimensions.units[name]):
            raise ModelError(f"all channels of `{name}` would go", "leave at least one")
        gone[dimensions.units[name][chosen]] = True
    kept_atoms = ~gone[dimensions.roots]
    smaller = graph.clone(model)

    def kept(axis: Axis) -> Array:
        return kept_atoms[axis.atoms] if axis.atoms is not None else np.ones(0, bool)

    nodes = {str(node.name): node for node in smaller.graph}
    _cut(smaller, nodes, dimensions.constants, kept)
    for name, rewrites in dimensions.rewrites.items():
        for rewrite in rewrites:
            rewrite(nodes[name], kept)
    for value in (value for node in smaller.graph for value in node.outputs):
        if not value.is_graph_output() and not all(kept(axis).all() for axis in dimensions.axes.get(str(value.name), ())):
            value.shape = None
    return smaller


def _traced(model: Model) -> Tracing:
    tracing = Tracing(graph.opset(model))
    for value in model.graph.inputs:
        tracing.axes[value] = _of_shape(tracing, value, f"`{value.name}` is an input of the model")
    for node in model.graph:
        _follow(tracing, node)
        for value in _captured(node):
            tracing.pin([*(tracing.axes.get(value) or ()), *tracing.numbers.get(value, ())], f"{where(node)} reads it inside")
    for value in model.graph.outputs:
        tracing.pin([*(tracing.axes.get(value) or ()), *tracing.numbers.get(value, ())], f"`{value.name}` is an output of the model")
    settle(tracing.folds, tracing.ties)
    return tracing


def _follow(tracing: Tracing, node: onnx_ir.Node) -> None:
    """Note the axes of a node's outputs. Where nobody understands the node, all that it reads and answers stays whole."""
    if all(value is None or value in tracing.derived or graph.constant(value) is not None for value in node.inputs):
        tracing.derived.update(node.outputs)
    found = numbers(tracing, node)
    if found is not None:
        tracing.numbers[node.outputs[0]] = found
    made: Sequence[list[Axis] | None]
    try:
        if node.domain or node.op_type not in _RULES:
            raise NotUnderstoodError("is not understood")
        made, reason = _RULES[node.op_type](tracing, node), f"{where(node)} computes with its length"
        read = [] if found is not None else [value for place, value in enumerate(node.inputs) if place != _TOLD.get(node.op_type)]
    except NotUnderstoodError as error:
        reason, read = f"{where(node)} {error}", list(node.inputs)
        made = [_of_shape(tracing, value, reason) for value in node.outputs]
        for place, value in enumerate(node.inputs):
            if value is not None and (graph.constant(value) is not None or tracing.axes.get(value) is not None):
                tracing.pin(tracing.given(node, place), reason)
    for value in read:
        tracing.pin(tracing.numbers.get(value, ()) if value is not None else (), reason)
    for value, axes in zip(node.outputs, made, strict=False):
        tracing.axes[value] = axes


def _of_shape(tracing: Tracing, value: onnx_ir.Value, reason: str) -> list[Axis] | None:
    return None if value.shape is None else [tracing.of_shape(value, place, reason) for place in range(len(value.shape))]


def _captured(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """What the subgraphs of a node read, from outside or inside."""
    for attribute in node.attributes.values():
        inner = [attribute.as_graph()] if attribute.type == onnx_ir.AttributeType.GRAPH else []
        inner += list(attribute.as_graphs()) if attribute.type == onnx_ir.AttributeType.GRAPHS else []
        for each in inner:
            for inside in onnx_ir.traversal.RecursiveGraphIterator(each):
                yield from (value for value in inside.inputs if value is not None)
            yield from each.outputs


def _groups(tracing: Tracing, roots: Array) -> tuple[tuple[Group, ...], dict[str, Array]]:
    """Classes that lie along the same axes, as often along each, are units of one group, if weights make them and nothing pins them."""
    free = np.array([tracing.ties.reason(int(root)) is None for root in roots], bool)
    axes = [(str(value.name), place, axis) for value, found in _computed_last(tracing) for place, axis in enumerate(found or [])]
    uses = [(use, place, axis) for use, found in tracing.constants.items() for place, axis in enumerate(found)]
    patterns: dict[int, list[tuple[int, int]]] = defaultdict(list)
    seen: set[int] = set()
    for number, (_, _, axis) in enumerate((*axes, *uses)):
        if axis.atoms is None or id(axis) in seen:
            continue
        seen.add(id(axis))
        for root, times in Counter(roots[axis.atoms[free[axis.atoms]]].tolist()).items():
            patterns[root].append((number, times))
    made = {int(root) for use, along in tracing.makers.items() for place in along for root in roots[_atoms(tracing.constants[use][place])]}
    members: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for root in sorted(patterns, key=lambda root: (patterns[root], root)):
        if root in made and patterns[root][0][0] < len(axes):
            members[tuple(patterns[root])].append(root)
    groups: list[Group] = []
    units: dict[str, Array] = {}
    for pattern, found in members.items():
        if len(found) < 2:
            continue
        name, along, _ = axes[pattern[0][0]]
        stem, count = name, 1
        while name in units:
            count += 1
            name = f"{stem} ({count})"
        units[name] = np.array(found, np.int64)
        groups.append(_group(name, along, pattern[0][1], tracing, roots, units[name]))
    return tuple(groups), units


def _computed_last(tracing: Tracing) -> list[tuple[onnx_ir.Value, list[Axis] | None]]:
    """Tensors in the order of the graph, but last those that depend on no input: nobody calls a bias the first that has the channels."""
    return sorted(tracing.axes.items(), key=lambda item: item[0] in tracing.derived)


def _group(name: str, axis: int, width: int, tracing: Tracing, roots: Array, units: Array) -> Group:
    of_class = np.full(len(roots), -1)
    of_class[units] = np.arange(len(units))
    makers: list[Slice] = []
    readers: list[Slice] = []
    others: list[Slice] = []
    for use, axes in tracing.constants.items():
        for place, each in enumerate(axes):
            along = of_class[roots[_atoms(each)]]
            if (along >= 0).any():
                role = makers if place in tracing.makers.get(use, ()) else readers if place in tracing.readers.get(use, ()) else others
                role.append(Slice(use[0], use[1], place, tuple(along.tolist())))
    mixes = {node: None for each, node in tracing.mixes if each.atoms is not None and (of_class[roots[each.atoms]] >= 0).any()}
    return Group(name, axis, len(units), width, tuple(makers), tuple(readers), tuple(others), tuple(mixes))


def _whole(model: Model, tracing: Tracing, roots: Array, units: Mapping[str, Array]) -> tuple[Whole, ...]:
    """What is made by weights and is no unit of a group."""
    grouped = np.zeros(len(roots), bool)
    for each in units.values():
        grouped[each] = True
    tensors = {str(node.name): str(node.outputs[0].name) for node in model.graph}
    found: list[Whole] = []
    for use, along in tracing.makers.items():
        for place in sorted(along):
            left = [int(root) for root in roots[_atoms(tracing.constants[use][place])] if not grouped[root]]
            if left:
                reasons = Counter(tracing.ties.reason(root) or "they stay or go together" for root in left)
                found.append(Whole(tensors[use[0]], len(left), reasons.most_common(1)[0][0]))
    return tuple(dict.fromkeys(found))


def _atoms(axis: Axis) -> Array:
    """A constant's axis has some."""
    assert axis.atoms is not None
    return axis.atoms


def _cut(model: Model, nodes: Mapping[str, onnx_ir.Node], constants: Mapping[Use, list[Axis]], kept: Kept) -> None:
    """Every constant along every axis. One that all who read it want cut alike keeps its name."""
    wanted: dict[onnx_ir.Value, dict[tuple[bytes, ...], tuple[Array, list[Use]]]] = {}
    for (name, place), axes in constants.items():
        masks, value = [kept(axis) for axis in axes], nodes[name].inputs[place]
        array = graph.constant(value)
        if value is not None and array is not None and not all(mask.all() for mask in masks):
            ways = wanted.setdefault(value, {})
            _, uses = ways.setdefault(tuple(mask.tobytes() for mask in masks), (array[np.ix_(*masks)], []))
            uses.append((name, place))
    for value, ways in wanted.items():
        for array, uses in ways.values():
            if len(uses) == len(value.uses()) and not value.is_graph_output():
                _overwrite(value, array)
            else:
                made = graph.add_constant(model.graph, f"{value.name}_pruned", array)
                for name, place in uses:
                    nodes[name].replace_input_with(place, made)


def _overwrite(value: onnx_ir.Value, array: Array) -> None:
    tensor = onnx_ir.tensor(np.ascontiguousarray(array), name=value.name)
    producer = value.producer()
    if producer is None:
        value.const_value = tensor
    else:
        producer.attributes["value"] = onnx_ir.AttrTensor("value", tensor)
    value.shape = onnx_ir.Shape(array.shape)
