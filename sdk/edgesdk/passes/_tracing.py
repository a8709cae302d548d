"""What the rules of the operators know while a graph's axes are followed from its inputs to its outputs."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._folds import Fold
from edgesdk.passes._ties import Axis, Ties

Use = tuple[str, int]  # a node's name, and which of its inputs
Kept = Callable[[Axis], Array]  # which of an axis' indices stay, as truths
Rewrite = Callable[[onnx_ir.Node, Kept], None]  # what a node of the smaller model writes down otherwise
Number = int | Axis | None  # what a tensor of lengths holds: this number, the length of that axis, or nobody knows
Entries = list[Number]
Size = tuple[int, Counter[Axis]]  # a product of numbers and unknown lengths
Rule = Callable[["Tracing", onnx_ir.Node], list[list[Axis]]]  # the axes of a node's outputs, from those of its inputs

ALONE = "there is one alone"
_MOST_NUMBERS = 16  # a longer tensor of integers is not one of lengths


class NotUnderstoodError(Exception):
    """A node whose axes cannot be followed. The message says what of it."""


@dataclass
class Tracing:
    """The axes of all tensors seen so far, and what follows if some of their indices go."""

    opset: int
    ties: Ties = field(default_factory=Ties)
    axes: dict[onnx_ir.Value, list[Axis] | None] = field(default_factory=dict)  # None: not even their number is known
    constants: dict[Use, list[Axis]] = field(default_factory=dict)
    derived: set[onnx_ir.Value] = field(default_factory=set)  # tensors that nodes make of constants alone
    numbers: dict[onnx_ir.Value, Entries] = field(default_factory=dict)
    makers: dict[Use, set[int]] = field(default_factory=dict)  # along which axes a constant makes channels
    readers: dict[Use, set[int]] = field(default_factory=dict)  # … and sums over them
    mixes: list[tuple[Axis, str]] = field(default_factory=list)  # an axis along which the node of that name computes without weights
    rewrites: dict[str, list[Rewrite]] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)
    factors: dict[Axis, Size] = field(default_factory=dict)  # of unknown lengths that are products of others
    _named: dict[str, Axis] = field(default_factory=dict)
    _shared: dict[onnx_ir.Value, list[Axis]] = field(default_factory=dict)

    def given(self, node: onnx_ir.Node, place: int) -> list[Axis]:
        """The axes of one of a node's inputs. Raises NotUnderstoodError."""
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None:
            raise NotUnderstoodError("lacks an input")
        array = graph.constant(value)
        axes = self.axes.get(value) if array is None else self._of_constant(node, place, value, array)
        if axes is None:
            raise NotUnderstoodError("is given a tensor of unknown rank")
        return axes

    def pin(self, axes: Iterable[Number], reason: str) -> None:
        """These axes, where they are some, stay whole."""
        for axis in axes:
            if isinstance(axis, Axis):
                self.ties.pin(axis, reason)

    def maker(self, node: onnx_ir.Node, place: int, axis: int) -> None:
        """That input makes the channels that lie along this axis, if it is constant."""
        if (str(node.name), place) in self.constants:
            self.makers.setdefault((str(node.name), place), set()).add(axis)

    def reader(self, node: onnx_ir.Node, place: int, axis: int, channels: Axis) -> None:
        """That input holds the weights, along this axis, with which the node sums over the channels."""
        if (str(node.name), place) in self.constants:
            self.readers.setdefault((str(node.name), place), set()).add(axis)
        else:
            self.mixes.append((channels, str(node.name)))

    def rewrite(self, node: onnx_ir.Node, how: Rewrite) -> None:
        self.rewrites.setdefault(str(node.name), []).append(how)

    def write_lengths(self, node: onnx_ir.Node, place: int, lengths: Mapping[int, Axis]) -> None:
        """Those entries of an input are, literally, the lengths of these axes."""
        count = len(self.entries(node, place) or [])

        def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
            add_to(node, place, [-int((~kept(lengths[entry])).sum()) if entry in lengths else 0 for entry in range(count)])

        if lengths:
            self.rewrite(node, rewritten)

    def of_shape(self, value: onnx_ir.Value, place: int, reason: str) -> Axis:
        """An axis of which only inference knows; it stays as long as it is."""
        length: object = value.shape[place] if value.shape is not None and place < len(value.shape) else None
        if isinstance(length, int) and length >= 0:
            return self.ties.fixed(length, reason)
        name = getattr(length, "value", None)
        return self._named.setdefault(name, Axis(None)) if name else Axis(None)

    def entries(self, node: onnx_ir.Node, place: int) -> Entries | None:
        """The numbers of an input that holds a few integers; None if it does not, or nobody knows."""
        value = node.inputs[place] if place < len(node.inputs) else None
        array = graph.constant(value)
        if value is None or array is None:
            return None if value is None else self.numbers.get(value)
        return [int(number) for number in array.reshape(-1)] if array.dtype.kind == "i" and array.ndim < 2 and array.size <= _MOST_NUMBERS else None

    def integers(self, node: onnx_ir.Node, place: int, name: str) -> list[int] | None:
        """What older opsets have as an attribute and newer ones as an input; None if there is neither. Raises NotUnderstoodError if it is computed."""
        if name in node.attributes:
            return list(node.attributes[name].as_ints())
        if not has(node, place):
            return None
        found = [number for number in self.entries(node, place) or [None] if isinstance(number, int)]
        if len(found) != len(self.entries(node, place) or [None]):
            raise NotUnderstoodError(f"is told its {name} by what the graph computes")
        return found

    def broadcast(self, shapes: Sequence[list[Axis]], node: onnx_ir.Node) -> list[Axis]:
        """The axes of what a node computes number by number from tensors of these."""
        rank = max(map(len, shapes))
        aligned = [[*(None for _ in range(rank - len(axes))), *(None if axis.length == 1 else axis for axis in axes)] for axes in shapes]
        return [self.together([axis for axis in there if axis is not None], node, place) for place, there in enumerate(zip(*aligned, strict=True))]

    def together(self, axes: Sequence[Axis], node: onnx_ir.Node, place: int) -> Axis:
        """The axis that these, tied, become in the first output of a node."""
        if not axes:
            return self.ties.fixed(1, ALONE)
        first = next((axis for axis in axes if axis.length is not None), None)
        if first is None:
            return axes[0] if all(axis is axes[0] for axis in axes) else self.of_shape(node.outputs[0], place, where(node))
        for axis in axes:
            self.ties.tie(first, axis, where(node))
        return first

    def size(self, axis: Axis) -> Size:
        return self.factors.get(axis, (axis.length, Counter()) if axis.length is not None else (1, Counter([axis])))

    def _of_constant(self, node: onnx_ir.Node, place: int, value: onnx_ir.Value, array: Array) -> list[Axis]:
        """Weights that several nodes read are cut for all of them; a vector, shared perhaps for its numbers alone, for each as that needs."""
        use = (str(node.name), place)
        if use not in self.constants:
            narrow = sum(length > 1 for length in array.shape) <= 1
            shared = None if narrow else self._shared.get(value)
            self.constants[use] = shared or [self.ties.axis(length) if length > 1 else self.ties.fixed(length, ALONE) for length in array.shape]
            if not narrow:
                self._shared[value] = self.constants[use]
        return self.constants[use]


def add_to(node: onnx_ir.Node, place: int, changes: Sequence[int]) -> None:
    """The entries of a tensor of integers, constant or computed, become that much larger for this node."""
    if not any(changes):
        return
    inside, value = node.graph, node.inputs[place]
    assert isinstance(inside, onnx_ir.Graph) and value is not None
    array = graph.constant(value)
    if array is not None:
        node.replace_input_with(place, graph.add_constant(inside, f"{value.name}_pruned", array + np.array(changes, array.dtype).reshape(array.shape)))
        return
    less = graph.add_constant(inside, f"{value.name}_less", np.array(changes, np.int64))
    added = onnx_ir.node("Add", [value, less], name=graph.fresh(inside, f"{node.name}_lengths"))
    added.outputs[0].name = graph.fresh(inside, f"{value.name}_pruned")
    inside.insert_before(node, added)
    node.replace_input_with(place, added.outputs[0])


def product(sizes: Sequence[Size]) -> Size:
    unknown: Counter[Axis] = Counter()
    for _, each in sizes:
        unknown.update(each)
    return prod(number for number, _ in sizes), unknown


def has(node: onnx_ir.Node, place: int) -> bool:
    return place < len(node.inputs) and node.inputs[place] is not None


def where(node: onnx_ir.Node) -> str:
    return f"{graph.qualified(node)} `{node.name}`"


def integer(node: onnx_ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def text(node: onnx_ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def known(axis: Axis) -> Array:
    """The atoms of an axis. Raises NotUnderstoodError where nobody knows how many there are."""
    if axis.atoms is None:
        raise NotUnderstoodError("is given channels whose number is not known")
    return axis.atoms
