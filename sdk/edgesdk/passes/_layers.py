"""A changed model beside the one that it was made from, walked through layer by layer on the same samples.

    for pair in pairs(original, pruned, counterparts, samples):
        for given, seen in pair.inputs():       # what the node is given in the original, and in the changed one
            ...
        write_constant(pair.node, 1, weight)    # what follows is computed with this

`walk` does so with an 8-bit model and the float32 one. Each model is computed once, in pieces from layer to layer. What the next
pieces need is held, for as many samples as fit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.errors import SampleError
from edgesdk.graph import Array, Model
from edgesdk.passes._grids import Grid
from edgesdk.passes._sites import axis_of
from edgesdk.sampling import Samples

HELD_BYTES = 1 << 29  # of both models' tensors between two pieces; later samples are let go beyond it
_KINDS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Pair:
    """A node of the changed model and its counterpart in the original, before either is computed."""

    node: onnx_ir.Node
    original: onnx_ir.Node
    _cuts: "tuple[_Cut, _Cut]"

    @property
    def samples(self) -> int:
        """How many are held."""
        return len(self._cuts[0].held)

    def inputs(self) -> Iterator[tuple[Array, Array]]:
        """Sample by sample, what the original's node is given and what the changed one is."""
        before, now = self._cuts
        return zip(before.values(self.original.inputs[0]), now.values(self.node.inputs[0]), strict=True)

    def outputs(self) -> Iterator[tuple[Array, Array]]:
        """Sample by sample, what the original's node answers and what the changed one would now; a quantized one before its answer is rounded."""
        before, now = self._cuts
        return zip(before.answers(self.original), now.answers(self.node), strict=True)

    def summands(self) -> Iterator[tuple[Array, Array]] | None:
        """Sample by sample, what an Add that alone reads the answer puts to it, in the original and in the changed model; None if that is not known yet."""
        before, now = self._cuts
        places = [_summand(node) for node in (self.original, self.node)]
        if places[0] is None or places[1] is None or not (before.passes(places[0]) and now.passes(places[1])):
            return None
        return zip(before.values(places[0]), now.values(places[1]), strict=True)


@dataclass(frozen=True)
class Layer(Pair):
    """A Conv, Gemm or MatMul whose weights are constant int8, and its float32 counterpart."""

    weight: Array  # float32, as the original has it
    grid: Grid  # of the 8-bit weights

    @property
    def channels(self) -> int:
        """How many it answers with."""
        return int(self.weight.shape[1 if self.node.op_type == "MatMul" else axis_of(self.node)])

    def integers(self) -> Array:
        """The 8-bit weights as they are now."""
        return _integers(self.node, 1)

    def write_weight(self, integers: Array) -> None:
        """The layer's own weights from now on."""
        write_integers(self.node, 1, integers)


def walk(original: Model, quantized: Model, samples: Samples, *, progress: Callable[[int, int], None] | None = None) -> Iterator[Layer]:
    """The layers of ``quantized`` that ``original`` has by the same name, in order. What the caller changes in one is felt by the next.

    ``progress`` is told how many layers are done, of how many. Raises ModelError, SampleError.
    """
    by_name = {node.name: node for node in original.graph}
    counterparts = [(node, other) for node in quantized.graph if (other := by_name.get(node.name)) is not None and _is_layer(node, other)]
    for pair in pairs(original, quantized, counterparts, samples, progress=progress):
        weight = graph.constant(pair.original.inputs[1])
        assert weight is not None
        yield Layer(pair.node, pair.original, pair._cuts, weight, _grid(pair.node))


def pairs(
    original: Model,
    changed: Model,
    counterparts: Sequence[tuple[onnx_ir.Node, onnx_ir.Node]],
    samples: Samples,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Pair]:
    """Those nodes of ``changed``, each with its counterpart in ``original``, in the order in which they are computed.

    ``progress`` is told how many are done, of how many. Raises ModelError, SampleError.
    """
    if not counterparts:
        return
    feeds = _feeds(samples)
    cuts = _Cut(original, feeds), _Cut(changed, feeds)
    for done, (node, other) in enumerate(counterparts, 1):
        for cut, stop in zip(cuts, (other, node), strict=True):
            cut.advance(stop)
        _let_go(cuts)
        yield Pair(node, other, cuts)
        if progress:
            progress(done, len(counterparts))


def constant_at(node: onnx_ir.Node, place: int) -> Array | None:
    """The constant that the node reads there, through a DequantizeLinear or as it is; None if it depends on the input."""
    value = node.inputs[place] if place < len(node.inputs) else None
    grid = grid_at(node, place)
    return graph.constant(value) if grid is None else grid.values(_integers(node, place))


def write_constant(node: onnx_ir.Node, place: int, array: Array) -> None:
    """The node reads this there, on the grid that it had, if any. Nobody else does."""
    grid = grid_at(node, place)
    if grid is not None:
        write_integers(node, place, grid.integers(array))
        return
    inside, old = node.graph, node.inputs[place]
    assert isinstance(inside, onnx_ir.Graph) and old is not None
    value = graph.add_constant(inside, str(old.name), array.astype(np.float32))
    node.replace_input_with(place, value)
    _take_name(inside, old, value)


def write_integers(node: onnx_ir.Node, place: int, integers: Array) -> None:
    """The node reads these through its DequantizeLinear, which becomes its own if others read it too."""
    dequantize = _dequantize(node, place)
    inside, old = node.graph, dequantize.inputs[0]
    assert isinstance(inside, onnx_ir.Graph) and old is not None
    value = graph.add_constant(inside, str(old.name), integers)
    if len(dequantize.outputs[0].uses()) > 1:
        inputs = [value, *dequantize.inputs[1:]]
        own = onnx_ir.node("DequantizeLinear", inputs, attributes=dict(dequantize.attributes), name=f"{dequantize.name}_{node.name}_{place}")
        own.outputs[0].name = graph.fresh(inside, str(dequantize.outputs[0].name))
        own.outputs[0].shape, own.outputs[0].type = dequantize.outputs[0].shape, dequantize.outputs[0].type
        inside.insert_before(dequantize, own)
        node.replace_input_with(place, own.outputs[0])
        return
    dequantize.replace_input_with(0, value)
    _take_name(inside, old, value)


def _take_name(inside: onnx_ir.Graph, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
    """Of a constant that nobody reads any more."""
    if not old.uses() and not old.is_graph_output() and old.is_initializer():
        inside.initializers.pop(str(old.name))
        new.name = old.name


def grid_at(node: onnx_ir.Node, place: int) -> Grid | None:
    """What the integers mean that the node reads there; None if it reads no constant ones."""
    value = node.inputs[place] if place < len(node.inputs) else None
    dequantize = value.producer() if value is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.domain or graph.constant(dequantize.inputs[0]) is None:
        return None
    scale = graph.constant(dequantize.inputs[1])
    zero_point = graph.constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    if scale is None:
        return None
    if zero_point is None:
        zero_point = np.zeros(scale.shape, _integers(node, place).dtype)
    axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
    return Grid(scale, zero_point, axis if scale.ndim else None)


def _summand(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """What the Add that alone reads the node's answer puts to it."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add" or uses[0].node.domain:
        return None
    return uses[0].node.inputs[1 - uses[0].idx]


def _is_layer(node: onnx_ir.Node, original: onnx_ir.Node) -> bool:
    if node.op_type not in _KINDS or node.domain or original.op_type != node.op_type:
        return False
    grid, weight = grid_at(node, 1), graph.constant(original.inputs[1])
    if grid is None or grid.zero_point.dtype != np.int8 or weight is None or weight.dtype != np.float32:
        return False
    return weight.ndim == 2 if node.op_type == "MatMul" else "transA" not in node.attributes or not node.attributes["transA"].as_int()


def _grid(node: onnx_ir.Node) -> Grid:
    grid = grid_at(node, 1)
    assert grid is not None
    return grid


def _integers(node: onnx_ir.Node, place: int) -> Array:
    integers = graph.constant(_dequantize(node, place).inputs[0])
    assert integers is not None
    return integers


def _dequantize(node: onnx_ir.Node, place: int) -> onnx_ir.Node:
    value = node.inputs[place]
    producer = value.producer() if value is not None else None
    assert producer is not None
    return producer


def _feeds(samples: Samples) -> list[dict[str, Array]]:
    """As many as may be held, twice."""
    feeds: list[dict[str, Array]] = []
    held = 0
    for sample in samples:
        held += 2 * sum(array.nbytes for array in sample.values())
        if feeds and held > HELD_BYTES:
            break
        feeds.append(dict(sample))
    if not feeds:
        raise SampleError(f"{samples.source} holds no samples", "give at least one")
    return feeds


class _Cut:
    """A place between two nodes of a model, and, for every sample, the tensors that pass it."""

    def __init__(self, model: Model, feeds: list[dict[str, Array]]) -> None:
        self._model = model
        self._constant = _constant_values(model)
        self._nodes = [node for node in model.graph if not node.outputs or node.outputs[0] not in self._constant]
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._last = {value: place for place, node in enumerate(self._nodes) for value in _read(node)}
        self._at = 0
        self._alive = {value for value in model.graph.inputs if not value.is_initializer()}
        self.held = [dict(sample) for sample in feeds]

    def advance(self, stop: onnx_ir.Node) -> None:
        """Compute what comes before that node."""
        stop_at = max(self._place[stop], self._at)
        piece = self._nodes[self._at : stop_at]
        self._at = stop_at
        passing = [value for node in piece for value in node.outputs if self._last.get(value, -1) >= stop_at]
        if passing:
            for sample, answers in zip(self.held, self._run(passing), strict=True):
                sample.update(answers)
        self._alive = {value for value in (*self._alive, *passing) if self._last.get(value, -1) >= stop_at}
        names = {value.name for value in self._alive}
        for sample in self.held:
            for name in [name for name in sample if name not in names]:
                del sample[name]

    def passes(self, value: onnx_ir.Value) -> bool:
        """Whether the tensor is computed and still wanted."""
        return value in self._alive

    def values(self, value: onnx_ir.Value | None) -> Iterator[Array]:
        """A tensor that passes here, for every sample."""
        assert value is not None
        return (sample[str(value.name)] for sample in self.held)

    def answers(self, node: onnx_ir.Node) -> Iterator[Array]:
        """What the node after the cut answers, for every sample."""
        return (answers[str(node.outputs[0].name)] for answers in self._run([node.outputs[0]]))

    def nbytes(self, sample: int) -> int:
        return sum(array.nbytes for array in self.held[sample].values())

    def _run(self, outputs: list[onnx_ir.Value]) -> Iterator[dict[str, Array]]:
        """From the tensors that pass here to those, sample by sample. Without onnxruntime's optimizations: what the file says, on any machine."""
        inputs = sorted(self._needed(outputs), key=lambda value: str(value.name))
        extracted = onnx_ir.convenience.extract(self._model.graph, inputs, outputs)
        for value in extracted.inputs:
            array = self.held[0][str(value.name)]
            value.type, value.shape = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(array.dtype)), onnx_ir.Shape([None] * array.ndim)
        piece = onnx_ir.Model(extracted, ir_version=self._model.ir_version, functions=list(self._model.functions.values()))
        session = graph.session(piece, optimize=False)
        for sample in self.held:
            yield graph.run(session, {str(value.name): sample[str(value.name)] for value in inputs})

    def _needed(self, outputs: list[onnx_ir.Value]) -> set[onnx_ir.Value]:
        """Which of the tensors that pass here those depend on."""
        found, seen, left = set(), set(outputs), list(outputs)
        while left:
            value = left.pop()
            if value in self._alive:
                found.add(value)
                continue
            producer = value.producer()
            for before in _read(producer) if producer is not None else ():
                if before not in seen:
                    seen.add(before)
                    left.append(before)
        return found


def _constant_values(model: Model) -> set[onnx_ir.Value]:
    """What follows from constants alone, such as dequantized weights: computed again in each piece."""
    known = {value for value in model.graph.initializers.values() if not value.is_graph_input()}
    for node in model.graph:
        if all(value in known for value in _read(node)):
            known.update(node.outputs)
    return known


def _read(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """The tensors of the outer graph that a node reads, in its subgraphs too."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        inner = [attribute.as_graph()] if attribute.type == onnx_ir.AttributeType.GRAPH else []
        inner += list(attribute.as_graphs()) if attribute.type == onnx_ir.AttributeType.GRAPHS else []
        found += [value for each in inner for below in onnx_ir.traversal.RecursiveGraphIterator(each) for value in below.inputs if value is not None]
    return found


def _let_go(cuts: tuple[_Cut, _Cut]) -> None:
    """The last samples, where all do not fit."""
    held = 0
    for index in range(len(cuts[0].held)):
        held += sum(cut.nbytes(index) for cut in cuts)
        if index and held > HELD_BYTES:
            for cut in cuts:
                del cut.held[index:]
            return
