"""The weights that sum over a group's channels: what they are multiplied with, and which of the channels they can spare.

    moments = measure(model, {("conv_4", 1)}, feeds)["conv_4", 1]
    left = eliminate([reader], count=64, stops={48, 32})     # one channel after another, the other weights set anew each time

One unit after another goes, each time the one for which the readers' answers change least if all their other weights are solved anew:
the optimal brain surgeon (Hassibi and Stork 1993) for whole columns, as in Kurtic et al. 2023, "ZipLM" (arXiv:2302.04089), section 3.1;
reconstruction as the criterion is He et al. 2017 (arXiv:1707.06168) and Luo et al. 2017, "ThiNet" (arXiv:1707.06342). The second
moments of what the weights are multiplied with are all that this needs, so memory does not grow with the samples.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes._bias_correction import bias_of
from edgesdk.passes._dimensions import Slice
from edgesdk.passes._layers import write_constant
from edgesdk.passes._least_squares import COLUMNS, damping
from edgesdk.passes._linear import is_unscaled
from edgesdk.passes._patches import columns, from_matrix, matrix, picked

ROUNDS = 128  # of elimination in a group, at most: of more units several go at a time
_TINY = 1e-30  # power of an answer, so that none is divided by nothing
GATES = ("LSTM", "GRU", "RNN")  # their second input are weights too, of their own answers

Place = tuple[str, int]  # a node's name, and the input where it reads the weights


@dataclass(frozen=True)
class Moments:
    """Of what weights are multiplied with: means [groups, columns] and second moments about them [groups, columns, columns]. No means, about zero."""

    mean: Array
    second: Array

    def damped(self) -> Array:
        return self.second + damping(self.second) * np.eye(self.second.shape[1])


@dataclass(frozen=True)
class Reader:
    """Weights [groups, outputs, columns], the moments of the columns, and the unit that each column belongs to, or -1."""

    weight: Array
    moments: Moments
    units: Array


@dataclass(frozen=True)
class Elimination:
    """Units in the order in which they went, the error after each in shares of the readers' power, and the readers' weights at the stops, by units left."""

    order: tuple[int, ...]
    errors: tuple[float, ...]
    weights: dict[int, list[Array]]


def is_reader(node: onnx_ir.Node, place: int) -> bool:
    """Whether these are weights that can be set anew: float32, of one Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN alone."""
    value = node.inputs[place] if place < len(node.inputs) else None
    weight = graph.constant(value)
    if node.domain or value is None or len(value.uses()) > 1 or weight is None or weight.dtype != np.float32 or not weight.size:
        return False
    if node.op_type in GATES:
        return place == 1 or (place == 2 and bool(node.outputs[0].name))
    plain = node.op_type in ("Conv", "ConvTranspose") or (node.op_type in ("Gemm", "MatMul") and weight.ndim == 2)
    return place == 1 and plain and not ("transA" in node.attributes and node.attributes["transA"].as_int())


def weight_rows(node: onnx_ir.Node, place: int) -> Array:
    """[groups, outputs, columns], float64."""
    weight = graph.constant(node.inputs[place])
    assert weight is not None
    return (matrix(node, weight) if place == 1 else weight).astype(np.float64)


def write_rows(node: onnx_ir.Node, place: int, rows: Array) -> None:
    """These weights from now on, of this node alone."""
    weight = graph.constant(node.inputs[place])
    assert weight is not None
    write_constant(node, place, (from_matrix(node, rows, weight.shape) if place == 1 else rows).astype(np.float32))


def add_biases(model: Model) -> None:
    """Zeros, in place, for Convs and Gemms that could be set anew and have none."""
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm") and is_reader(node, 1) and (len(node.inputs) < 3 or node.inputs[2] is None):
            groups, outputs, _ = weight_rows(node, 1).shape
            node.resize_inputs(3)
            node.replace_input_with(2, graph.add_constant(model.graph, f"{node.name}_bias", np.zeros(groups * outputs, np.float32)))


def has_shift(node: onnx_ir.Node, place: int) -> bool:
    """Whether a constant for each output can be added to what these weights make."""
    if place != 1 or node.op_type == "ConvTranspose":
        return False
    if node.op_type in GATES:
        return len(node.inputs) > 3 and graph.constant(node.inputs[3]) is not None
    if not is_unscaled(node):
        return False
    groups, outputs, _ = weight_rows(node, 1).shape
    return bias_of(node, groups * outputs) is not None


def add_shift(node: onnx_ir.Node, shift: Array) -> None:
    """That constant, [outputs of all groups]."""
    found = (node, 3) if node.op_type in GATES else bias_of(node, len(shift))
    assert found is not None
    before = graph.constant(found[0].inputs[found[1]])
    assert before is not None
    after = before.astype(np.float64)
    if node.op_type in GATES:  # [directions, of the input's gates and of the recurrent ones']
        after[:, : after.shape[1] // 2] += shift.reshape(len(after), -1)
    else:
        after += shift.reshape(after.shape)
    write_constant(*found, after)


def units_of(node: onnx_ir.Node, part: Slice) -> Array:
    """The unit that each column belongs to."""
    along = np.array(part.units)
    if node.op_type == "ConvTranspose":
        along = along[: weight_rows(node, 1).shape[2]]  # the same in each group
    return np.repeat(along, weight_rows(node, part.place).shape[2] // len(along))


def moments_bytes(node: onnx_ir.Node, place: int) -> int:
    """What the moments of these weights take."""
    groups, _, length = weight_rows(node, place).shape
    return int(groups * length * length * 8)


def measure(model: Model, places: Collection[Place], feeds: Sequence[Feeds]) -> dict[Place, Moments]:
    """What the weights at these places are multiplied with, where all is finite. Raises ModelError."""
    if not places:
        return {}
    nodes = {str(node.name): node for node in model.graph}
    read = [(nodes[name], place) for name, place in sorted(places)]
    exposed = graph.session(graph.answering(model, dict.fromkeys(str(_multiplied(node, place).name) for node, place in read)))
    sums: dict[Place, tuple[Array, Array, int]] = {}
    random = np.random.default_rng(0)
    for given in feeds:
        answers = graph.run(exposed, given)
        for node, place in read:
            found = _columns(node, place, answers[str(_multiplied(node, place).name)], len(feeds), random)
            second, total, count = sums.get((str(node.name), place), (np.zeros(1), np.zeros(1), 0))
            with np.errstate(over="ignore", invalid="ignore"):
                sums[str(node.name), place] = second + found @ found.swapaxes(1, 2), total + found.sum(axis=2, dtype=np.float64), count + found.shape[2]
    made = {(str(node.name), place): _moments(*sums[str(node.name), place], centred=has_shift(node, place)) for node, place in read}
    numbers = {(str(node.name), place) for node, place in read if np.isfinite(weight_rows(node, place)).all()}
    return {place: moments for place, moments in made.items() if place in numbers and np.isfinite(moments.second).all()}


def _moments(second: Array, total: Array, count: int, *, centred: bool) -> Moments:
    mean = total / max(count, 1) * centred
    with np.errstate(over="ignore", invalid="ignore"):
        return Moments(mean, second / max(count, 1) - mean[:, :, None] * mean[:, None])


def _multiplied(node: onnx_ir.Node, place: int) -> onnx_ir.Value:
    value = node.inputs[0] if place == 1 else node.outputs[0]
    assert value is not None
    return value


def _columns(node: onnx_ir.Node, place: int, given: Array, feeds: int, random: np.random.Generator) -> Array:
    """Some of the columns that the weights are multiplied with, [groups, numbers in a column, picked]."""
    weight = graph.constant(node.inputs[place])
    assert weight is not None
    if place == 2:
        return hidden_columns(node, given)
    return columns(node, weight, given, picked(node, weight, given.shape, COLUMNS, feeds, random))


def hidden_columns(node: onnx_ir.Node, answer: Array) -> Array:
    """What a recurrent node answers, as what its own weights are multiplied with, [directions, hidden, steps · batch]."""
    first = "layout" in node.attributes and node.attributes["layout"].as_int() == 1  # batch first
    return np.ascontiguousarray(np.moveaxis(answer, (-2 if first else -3, -1), (0, 1)).reshape(answer.shape[-2 if first else -3], answer.shape[-1], -1))


def eliminate(readers: Sequence[Reader], count: int, stops: Collection[int], order: Sequence[int] | None = None) -> Elimination:
    """Units go until the fewest of ``stops`` are left; in this order if one is given, else the one first that the readers can spare best."""
    works = [_Work(reader, count) for reader in readers]
    left, gone, errors = list(range(count)), list[int](), list[float]()
    weights: dict[int, list[Array]] = {}
    while len(left) > min(stops):
        ahead = len(left) - max(stop for stop in stops if stop < len(left))
        scores = np.sum([work.scores(left) for work in works], axis=0)
        going = _going(left, scores, order[len(gone) :] if order is not None else None, min(ahead, -(-count // ROUNDS)))
        for unit in going:  # together they cost more than the sum, which is no matter for the few of a round
            errors.append((errors[-1] if errors else 0.0) + float(scores[left.index(unit)]))
        left = [unit for unit in left if unit not in going]
        gone += going
        for work in works:
            work.remove(going)
        if len(left) in stops:
            weights[len(left)] = [work.weight.copy() for work in works]
    return Elimination(tuple(gone), tuple(errors), weights)


def _going(left: list[int], scores: Array, order: Sequence[int] | None, most: int) -> list[int]:
    if order is not None:
        return list(order[:most])
    return [left[place] for place in np.argsort(scores, kind="stable")[:most]]


class _Work:
    """A reader while units go: its weights as they are best for those left, and the inverse moments of those."""

    def __init__(self, reader: Reader, count: int) -> None:
        self.weight = reader.weight.copy()
        self._inverse = np.linalg.inv(reader.moments.damped())
        self._columns = [np.flatnonzero(reader.units == unit) for unit in range(count)]
        self._power = max(float(((self.weight @ reader.moments.second) * self.weight).sum()), _TINY)

    def scores(self, units: list[int]) -> Array:
        """How much each would cost, in shares of the answers' power."""
        blocks = np.array([self._columns[unit] for unit in units])  # [units, columns of one]
        inverse = self._inverse[:, blocks[:, :, None], blocks[:, None]]
        weight = self.weight[:, :, blocks].transpose(0, 2, 3, 1)  # [groups, units, columns of one, outputs]
        return np.asarray((weight * np.linalg.solve(inverse, weight)).sum(axis=(0, 2, 3)) / self._power)

    def remove(self, units: list[int]) -> None:
        block = np.concatenate([self._columns[unit] for unit in units])
        spread = self._inverse[:, :, block] @ np.linalg.inv(self._inverse[:, block[:, None], block])
        self.weight -= self.weight[:, :, block] @ spread.swapaxes(1, 2)
        self._inverse -= spread @ self._inverse[:, block]
        self.weight[:, :, block] = 0
        self._inverse[:, block], self._inverse[:, :, block] = 0, 0


def activity(reader: Reader, count: int) -> Array:
    """Of each unit, its part of the answers' power as if the units did not depend on each other."""
    each = (np.diagonal(reader.moments.second, axis1=1, axis2=2) * (reader.weight**2).sum(axis=1)).sum(axis=0)
    return np.asarray(np.bincount(reader.units[reader.units >= 0], each[reader.units >= 0], count) / max(float(each.sum()), _TINY))


def norms(nodes: Mapping[str, onnx_ir.Node], parts: Sequence[Slice], count: int, power: int) -> Array:
    """The size of each unit in the weights that make it: sums of |w| to that power, each layer's in shares of its own."""
    total = np.zeros(count)
    for part in parts:
        weight = graph.constant(nodes[part.node].inputs[part.place])
        units = np.array(part.units)
        if weight is None or weight.dtype.kind != "f":
            continue
        sizes = (np.abs(np.nan_to_num(weight.astype(np.float64))) ** power).sum(axis=tuple(axis for axis in range(weight.ndim) if axis != part.axis))
        each = np.bincount(units[units >= 0], sizes[units >= 0], count)
        total += each / max(float(each.sum()), _TINY)
    return total
