"""What the rules of the operators know while a graph's axes are followed from its inputs to its outputs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._ties import Axis, Ties

Use = tuple[str, int]  # a node's name, and which of its inputs
Kept = Callable[[Axis], Array]  # which of an axis' indices stay, as truths
Rewrite = Callable[[onnx_ir.Node, Kept], None]  # what a node of the smaller model writes down otherwise
Number = int | Axis | None  # what a tensor of lengths holds: this number, the length of that axis, or nobody knows
Entries = list[Number]

_MOST_NUMBERS = 16  # a longer tensor of integers is not one of lengths


class NotUnderstoodError(Exception):
    """A node whose axes cannot be followed. The message says what of it."""


@dataclass
class Tracing:
    """The axes of all tensors seen so far, and what follows if some of their indices go."""

    opset: int
    ties: Ties = field(default_factory=Ties)
    axes: dict[onnx_ir.Value, list[Axis] | None] = field(default_factory=dict)  # None: not even their number is known
    constant: set[onnx_ir.Value] = field(default_factory=set)  # tensors that nodes make of constants alone
    constants: dict[Use, list[Axis]] = field(default_factory=dict)
    numbers: dict[onnx_ir.Value, Entries] = field(default_factory=dict)
    makers: dict[Use, set[int]] = field(default_factory=dict)  # along which axes a constant makes channels
    readers: dict[Use, set[int]] = field(default_factory=dict)  # … and contracts over them
    mixes: list[tuple[Axis, str]] = field(default_factory=list)
    rewrites: dict[str, list[Rewrite]] = field(default_factory=dict)
    folds: list["Fold"] = field(default_factory=list)
    _unknown: dict[str, Axis] = field(default_factory=dict)
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

    def has(self, node: onnx_ir.Node, place: int) -> bool:
        return place < len(node.inputs) and node.inputs[place] is not None

    def maker(self, node: onnx_ir.Node, place: int, axis: int) -> None:
        """That input's constant makes the channels that lie along this axis."""
        if (str(node.name), place) in self.constants:
            self.makers.setdefault((str(node.name), place), set()).add(axis)

    def reader(self, node: onnx_ir.Node, place: int, axis: int, contracted: Axis) -> None:
        """That input contracts over the channels along this axis: by weights, if it is constant."""
        if (str(node.name), place) in self.constants:
            self.readers.setdefault((str(node.name), place), set()).add(axis)
        else:
            self.mixes.append((contracted, str(node.name)))

    def rewrite(self, node: onnx_ir.Node, how: Rewrite) -> None:
        self.rewrites.setdefault(str(node.name), []).append(how)

    def of_shape(self, value: onnx_ir.Value, place: int, reason: str) -> Axis:
        """An axis of which only inference knows; it stays as long as it is."""
        length: object = value.shape[place] if value.shape is not None and place < len(value.shape) else None
        if isinstance(length, int):
            return self.ties.fixed(length, reason)
        name = getattr(length, "value", None)
        return self._unknown.setdefault(name, Axis(None)) if name else Axis(None)

    def entries(self, node: onnx_ir.Node, place: int) -> Entries | None:
        """The numbers of an input that holds a few integers; None if it does not."""
        value = node.inputs[place] if place < len(node.inputs) else None
        array = graph.constant(value)
        if array is None:
            return None if value is None else self.numbers.get(value)
        return [int(number) for number in array.reshape(-1)] if array.dtype.kind == "i" and array.size <= _MOST_NUMBERS else None

    def integers(self, node: onnx_ir.Node, place: int, name: str) -> list[int] | None:
        """What older opsets have as an attribute and newer ones as an input; None where there is neither. Raises NotUnderstoodError if it is computed."""
        if name in node.attributes:
            return list(node.attributes[name].as_ints())
        if not self.has(node, place):
            return None
        found = self.entries(node, place)
        if found is None or not all(isinstance(number, int) for number in found):
            raise NotUnderstoodError(f"is given its {name} by what the graph computes")
        return [number for number in found if isinstance(number, int)]

    def write_lengths(self, node: onnx_ir.Node, place: int, lengths: Mapping[int, Axis]) -> None:
        """Those entries of an input are literally the lengths of these axes."""

        count = len(self.entries(node, place) or [])

        def rewritten(node: onnx_ir.Node, kept: Kept) -> None:
            add_to(node, place, [-int((~kept(lengths[entry])).sum()) if entry in lengths else 0 for entry in range(count)])

        if lengths:
            self.rewrite(node, rewritten)

    def _of_constant(self, node: onnx_ir.Node, place: int, value: onnx_ir.Value, array: Array) -> list[Axis]:
        """Weights that several nodes read are cut for all of them; a vector, shared for its numbers alone, for each as that needs."""
        use = (str(node.name), place)
        if use not in self.constants:
            narrow = sum(length > 1 for length in array.shape) <= 1
            shared = None if narrow else self._shared.get(value)
            self.constants[use] = shared or [self.ties.axis(length) if length > 1 else self.ties.fixed(length, "there is one alone") for length in array.shape]
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
    more = graph.add_constant(inside, f"{value.name}_less", np.array(changes, np.int64))
    added = onnx_ir.node("Add", [value, more], name=graph.fresh(inside, f"{node.name}_lengths"))
    added.outputs[0].name = graph.fresh(inside, f"{value.name}_pruned")
    inside.insert_before(node, added)
    node.replace_input_with(place, added.outputs[0])


@dataclass(frozen=True)
class Fold:
    """A Reshape of some axes into others, in the same order: all of static length, none of 1, more than one on one side."""

    before: list[Axis]
    after: list[Axis]
    where: str

    def settle(self, ties: Ties) -> None:
        """Choose the axis, or part of one, that lies whole on both sides and whose indices may go: the outermost there is. The others stay."""
        sides = _strided(self.before), _strided(self.after)
        for length, stride in self._candidates(sides):
            carriers = [_carrier(side, length, stride) for side in sides]
            if all(carrier is not None and ties.is_free(carrier[0]) for carrier in carriers):
                break
        else:
            carriers, length = [None, None], 1
        units = ties.axis(length)
        for carrier in carriers:
            if carrier is not None:
                axis, within = carrier
                assert axis.atoms is not None and units.atoms is not None
                ties.tie(axis, Axis(units.atoms[np.arange(len(axis.atoms)) // within % length]), self.where)
        chosen = [carrier[0] for carrier in carriers if carrier is not None]
        for axis in (*self.before, *self.after):
            if not any(axis is each for each in chosen):
                ties.pin(axis, f"{self.where} folds it with others")

    def _candidates(self, sides: tuple[list[tuple[Axis, int, int]], list[tuple[Axis, int, int]]]) -> list[tuple[int, int]]:
        """Lengths and strides in the folded index, the outermost first."""
        total = prod(length for _, length, _ in sides[0])
        outer = int(np.gcd(sides[0][0][1], sides[1][0][1]))
        found = {(outer, total // outer)} | {(length, stride) for side in sides for _, length, stride in side}
        return sorted((each for each in found if each[0] > 1), key=lambda each: (-each[0] * each[1], -each[1]))


def _strided(axes: Sequence[Axis]) -> list[tuple[Axis, int, int]]:
    """Each with its length, and its stride in the index over all."""
    lengths = [axis.length or 0 for axis in axes]
    return [(axis, length, prod(lengths[place + 1 :])) for place, (axis, length) in enumerate(zip(axes, lengths, strict=True))]


def _carrier(side: list[tuple[Axis, int, int]], length: int, stride: int) -> tuple[Axis, int] | None:
    """The axis that alone decides (index // stride) % length, and how many of its indices after one another do so alike."""
    for axis, along, each in side:
        if stride % each == 0 and (each * along) % (stride * length) == 0:
            return axis, stride // each
    return None


Size = tuple[int, Counter[int]]  # a product of numbers and, by identity, of unknown lengths


def size(axis: Axis) -> Size:
    return (axis.length, Counter()) if axis.length is not None else (1, Counter([id(axis)]))


def product(sizes: Sequence[Size]) -> Size:
    unknown: Counter[int] = Counter()
    for _, each in sizes:
        unknown.update(each)
    return prod(number for number, _ in sizes), unknown
