"""Float32 operators become 8-bit ones: QuantizeLinear and DequantizeLinear around them (QDQ), which runtimes fuse into integer kernels.

    quantize(model, samples=calibration, operators=["Conv"], activations="uint8", symmetric=False, reduce_range=True)

The settings are those of a profile's `quantization` table. Ranges are measured here, so a recipe need not hold them:
the same samples give the same file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import onnx_ir

from edgesdk import calibration, graph
from edgesdk.calibration import Progress, Range
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.passes._fixed_point import fixed_point, fixed_point_weight
from edgesdk.passes._grids import MOVING, Grid, Grids, Site, axis_of
from edgesdk.passes.remove_unused import remove_unused
from edgesdk.sampling import Samples

FIRST_OPSET = 13  # DequantizeLinear by channel
_TINY = float(np.finfo(np.float32).tiny)

# Which inputs carry data, of the operators that can be quantized; None: all of them.
_DATA: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (0,)),
    **dict.fromkeys(("MatMul", "Add", "Sub", "Mul", "Div"), (0, 1)),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "HardSwish", "Relu", "LeakyRelu", "Clip", "Softmax", "Tanh"), (0,)),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Pad"), (0,)),
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice"), (0,)),
    "Concat": None,
}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}  # input 1 weights, input 2 bias
_FLOAT_OUTPUT = {"Gemm", "MatMul"}  # have integer kernels that answer float32
_ABSORBED = {"Relu", "Clip"}  # a kernel's last step: the range of what follows does their work


@dataclass(frozen=True)
class Scheme:
    """What an 8-bit file looks like, and which part of it is 8-bit. The first fields mean what they mean in a profile."""

    operators: Sequence[str]
    activations: Literal["int8", "uint8"] = "int8"
    symmetric: bool = True
    per_channel: bool = True
    reduce_range: bool = False
    power_of_two: bool = False
    bias: Literal["int32", "int8", "float32"] = "int32"
    outputs: bool = True  # what these operators answer is 8-bit too: onnxruntime's kernels want it, TensorRT does not
    exclude: Sequence[str] = ()  # names of nodes that stay float32

    @property
    def levels(self) -> tuple[int, int]:
        """The least and the greatest number of an activation."""
        return (-128, 127) if self.activations == "int8" else (0, 255)

    @property
    def weight_level(self) -> int:
        """The greatest magnitude of a weight. 7 bits: two products with uint8 cannot overflow 16 bits."""
        return 64 if self.reduce_range else 127


SETTINGS = tuple(field.name for field in fields(Scheme))


def targets(model: Model, *, operators: Iterable[str], exclude: Iterable[str] = ()) -> list[str]:
    """The names of the nodes that `quantize` would quantize. None: it returns the model as it is."""
    known = graph.clone(model)
    graph.infer_shapes(known)
    wanted, left = set(operators), set(exclude)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type.startswith("QLinear") for node in graph.nodes(known)):
        return []  # somebody did already
    if strange := sorted(wanted - set(_DATA)):
        raise ModelError(f"{', '.join(strange)} cannot be quantized", f"those that can: {', '.join(_DATA)}")
    absorbed = {id(after) for node in known.graph if node.op_type in wanted and node.name not in left and (after := _absorbed_by(node)) is not None}
    return [
        str(node.name)
        for node in known.graph
        if not node.domain and node.op_type in wanted and node.name not in left and id(node) not in absorbed and _can_be_quantized(node)
    ]


def weight_snr_db(model: Model, **settings: Any) -> dict[str, float]:
    """For each target with weights of its own: signal to noise of its median output channel after rounding, in decibels.

    No samples are needed. Below some 25 dB a layer is better excluded: one scale for channels of unlike size leaves most of them nothing.
    """
    scheme = Scheme(**settings)
    names = set(targets(model, operators=scheme.operators, exclude=scheme.exclude))
    found = {}
    for node in model.graph:
        weight = graph.constant(node.inputs[1]) if node.name in names and node.op_type in _WEIGHTED else None
        if weight is None:
            continue
        axis = axis_of(node)
        grid = fixed_point_weight(weight) if scheme.power_of_two else _weight_grid(weight, axis, np.zeros(1), scheme)
        by_channel = np.moveaxis(np.stack([weight, grid.values(grid.integers(weight)) - weight]), axis + 1, 0).reshape(weight.shape[axis], 2, -1)
        signal, noise = np.moveaxis((by_channel.astype(np.float64) ** 2).sum(axis=-1), 1, 0)
        alive = signal > 0
        found[str(node.name)] = float(np.median(10 * np.log10(signal[alive] / np.maximum(noise[alive], _TINY)))) if alive.any() else float("inf")
    return found


def quantize(model: Model, *, samples: Samples, progress: Progress | None = None, **settings: Any) -> Model:
    """The model with 8-bit operators as ``Scheme(**settings)`` says; the very same model if it has none to quantize.

    Raises ModelError, and SampleError if the samples do not fit.
    """
    scheme = Scheme(**settings)
    work = graph.clone(graph.with_opset(model, FIRST_OPSET))
    names = targets(work, operators=scheme.operators, exclude=scheme.exclude)
    if not names:
        return model
    graph.infer_shapes(work)
    sites = _sites(work, names, scheme)
    found = calibration.ranges(work, _tensors(sites), samples, histograms=scheme.power_of_two, progress=progress)
    endless = {name for name, seen in found.items() if not np.isfinite([seen.low, seen.high]).all()}
    if endless:  # no 8 bits span an infinite range
        sites = _sites(work, [str(site.node.name) for site in sites if not endless & set(_tensors([site]))], scheme)
    if not sites:
        return model
    quantized = _tensors(sites)
    if scheme.power_of_two:
        _write(work, sites, scheme, fixed_point(work, sites, {name: found[name] for name in quantized}))
    else:
        _tie(work, quantized, found)
        _write(work, sites, scheme, _by_magnitude(scheme, {name: found[name] for name in quantized}))
    return remove_unused(work)  # the float32 weights


def _can_be_quantized(node: onnx_ir.Node) -> bool:
    weighted = node.op_type in _WEIGHTED
    if any(value is None or not (value.dtype == onnx_ir.DataType.FLOAT or (weighted and value.dtype is None)) for value in _data(node)):
        return False
    if all(graph.constant(value) is not None for value in _data(node)):
        return False
    if any((array := graph.constant(value)) is not None and (array.size == 0 or not np.isfinite(array).all()) for value in _data(node)):
        return False
    return not weighted or _has_plain_weights(node)


def _has_plain_weights(node: onnx_ir.Node) -> bool:
    """Constant finite float32 weights, and a constant bias of one number a channel or none."""
    weight, given = graph.constant(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    bias = graph.constant(given)
    if weight is None or weight.dtype != np.float32 or weight.size == 0 or not np.isfinite(weight).all() or (given is not None and bias is None):
        return False
    if bias is not None and not np.isfinite(bias).all():
        return False
    if node.op_type != "Gemm":
        return True
    plain = all(name not in node.attributes or node.attributes[name].as_float() == 1 for name in ("alpha", "beta"))
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int() != 0
    return plain and not transposed and (bias is None or bias.shape == (weight.shape[axis_of(node)],))


def _data(node: onnx_ir.Node) -> list[onnx_ir.Value | None]:
    places = _DATA[node.op_type]
    return list(node.inputs) if places is None else [node.inputs[place] for place in places]


def _absorbed_by(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The Relu or Clip that alone reads what the node answers."""
    value = node.outputs[0]
    if node.op_type in _ABSORBED or len(value.uses()) != 1 or value.is_graph_output() or value.dtype not in (None, onnx_ir.DataType.FLOAT):
        return None
    after = next(iter(value.uses())).node
    if after.op_type not in _ABSORBED or after.domain or after.graph is not node.graph:
        return None
    return after if all(graph.constant(bound) is not None for bound in after.inputs[1:] if bound is not None) else None


def _sites(work: Model, names: Iterable[str], scheme: Scheme) -> list[Site]:
    nodes = {node.name: node for node in work.graph}
    chosen = [nodes[name] for name in names]
    read = {value for node in chosen for value in _data(node)}
    return [_site(node, scheme, read) for node in chosen]


def _site(node: onnx_ir.Node, scheme: Scheme, read: set[onnx_ir.Value | None]) -> Site:
    places = _DATA[node.op_type] or range(len(node.inputs))
    constants = tuple(place for place in places if graph.constant(node.inputs[place]) is not None)
    after = _absorbed_by(node)
    output = node.outputs[0] if after is None else after.outputs[0]
    may_answer_float = node.op_type in _FLOAT_OUTPUT and not scheme.power_of_two and output not in read
    return Site(node, tuple(place for place in places if place not in constants), constants, output if scheme.outputs and not may_answer_float else None)


def _tensors(sites: Iterable[Site]) -> list[str]:
    """The activations that become 8-bit, each once."""
    names: dict[str, None] = {}
    for site in sites:
        for value in (*(site.node.inputs[place] for place in site.data), site.output):
            if value is not None:
                names[str(value.name)] = None
    return list(names)


def _tie(work: Model, quantized: list[str], found: dict[str, Range]) -> None:
    """What only moves numbers keeps their scale, so that it can move the integers: both its ends get the range of both."""
    moving = [
        (str(node.inputs[0].name), str(node.outputs[0].name))
        for node in work.graph
        if node.op_type in MOVING and not node.domain and node.inputs[0] is not None and {node.inputs[0].name, node.outputs[0].name} <= set(quantized)
    ]
    for given, made in (*moving, *reversed(moving)):  # down the graph, and back up what was widened below
        found[given] = found[made] = found[given].joined(found[made])


def _by_magnitude(scheme: Scheme, found: dict[str, Range]) -> Grids:
    """Every scale the finest that holds what was seen."""

    def operand(site: Site, place: int, array: Array) -> Grid:
        if site.node.op_type == "MatMul" and place == 1 and array.ndim == 2:
            return _weight_grid(array, array.ndim - 1, np.zeros(1), scheme)
        return _grid_of(Range(float(array.min()), float(array.max())), scheme)

    def weight(site: Site, array: Array, given: Grid) -> Grid:
        bias = graph.constant(site.node.inputs[2]) if len(site.node.inputs) > 2 else None
        # A channel of almost no weight would need a bias beyond int32.
        least = np.zeros(1) if bias is None or scheme.bias != "int32" else np.abs(bias.astype(np.float64)) / (2**30 * float(given.scale))
        return _weight_grid(array, axis_of(site.node), least, scheme)

    def bias(_site: Site, array: Array, given: Grid, weight: Grid) -> Grid | None:
        if scheme.bias == "float32":
            return None
        scale = np.asarray(given.scale.astype(np.float64) * weight.scale.astype(np.float64), np.float32)
        if scale.ndim and scale.size != array.size:  # ConvTranspose: an axis of out / group
            scale = np.tile(scale, array.size // scale.size)
        return Grid(scale, np.zeros(scale.shape, np.int32), 0 if scale.ndim else None)

    return Grids({name: _grid_of(seen, scheme) for name, seen in found.items()}, operand, weight, bias)


def _grid_of(seen: Range, scheme: Scheme) -> Grid:
    """The finest one that holds the range and zero."""
    least, greatest = scheme.levels
    if scheme.symmetric:
        scale, zero = seen.bound / 127, (least + greatest + 1) // 2
    else:
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        scale = (high - low) / (greatest - least)
        zero = int(np.clip(np.rint(least - low / scale), least, greatest)) if scale > _TINY else 0
    return Grid(np.array(scale if scale > _TINY else 1.0, np.float32), np.array(zero, scheme.activations))


def _weight_grid(array: Array, axis: int, least: Array, scheme: Scheme) -> Grid:
    """Symmetric, by channel or for all, and no scale below the least for its channel."""
    if not scheme.per_channel:
        scale = np.maximum(np.abs(array).max() / scheme.weight_level, least.max())
    else:
        scale = np.abs(array).max(axis=tuple(other for other in range(array.ndim) if other != axis)) / scheme.weight_level
        scale = np.maximum(scale, least.reshape(-1, scale.size).max(axis=0) if least.size > 1 else least)
    scale = np.asarray(np.where(scale > _TINY, scale, 1.0), np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int8), axis if scheme.per_channel else None)


def _write(work: Model, sites: list[Site], scheme: Scheme, grids: Grids) -> None:
    """Put the operators into the graph."""
    outer = work.graph
    writer = _Writer(outer)
    for site in sites:
        for place, array in site.operands():
            writer.constant(site.node, place, array, grids.operand(site, place, array))
        if site.node.op_type in _WEIGHTED and site.node.inputs[0] is not None:
            given = grids.activations[str(site.node.inputs[0].name)]
            weight, bias = (graph.constant(site.node.inputs[place]) if place < len(site.node.inputs) else None for place in (1, 2))
            if weight is None:
                continue
            grid = grids.weight(site, weight, given)
            if bias is not None and (bias_grid := grids.bias(site, bias, given, grid)) is not None:
                writer.constant(site.node, 2, bias, bias_grid)
            writer.constant(site.node, 1, weight, grid)
    values = onnx_ir.convenience.create_value_mapping(outer)
    for name, grid in grids.activations.items():
        writer.activation(values[name], grid, answers=scheme.outputs)
    for value in [value for value in outer.initializers.values() if not value.uses() and not value.is_graph_output()]:
        outer.initializers.pop(str(value.name))  # float32 weights that nobody reads any more


class _Writer:
    """Puts QuantizeLinear and DequantizeLinear into a graph; a constant that is needed twice in the same way is written once."""

    def __init__(self, outer: onnx_ir.Graph) -> None:
        self._graph = outer
        self._written: dict[tuple[object, ...], onnx_ir.Value] = {}

    def constant(self, node: onnx_ir.Node, place: int, array: Array, grid: Grid) -> None:
        """The node reads the constant as integers with a DequantizeLinear."""
        value = node.inputs[place]
        key = (value, grid.scale.tobytes(), grid.zero_point.tobytes(), grid.zero_point.dtype, grid.axis)
        made = self._written.get(key)
        if made is None:
            stem = str(value.name) if value is not None else str(node.name)
            integers = graph.add_constant(self._graph, f"{stem}_quantized", grid.integers(array))
            dequantize = self._node("DequantizeLinear", stem, integers, grid)
            self._graph.insert_before(self._graph[0], dequantize)
            made = self._written[key] = dequantize.outputs[0]
            made.shape, made.type = onnx_ir.Shape(array.shape), onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        node.replace_input_with(place, made)

    def activation(self, value: onnx_ir.Value, grid: Grid, *, answers: bool) -> None:
        """Everybody who reads the tensor reads it through 8 bits. An output of the graph too, if operators answer in 8 bits."""
        users = list(value.uses())
        stem = str(value.name)
        producer = value.producer()
        quantize = self._node("QuantizeLinear", stem, value, grid)
        dequantize = self._node("DequantizeLinear", stem, quantize.outputs[0], grid, like=quantize)
        quantize.outputs[0].shape, quantize.outputs[0].type = value.shape, onnx_ir.TensorType(onnx_ir.DataType.from_numpy(grid.zero_point.dtype))
        made = dequantize.outputs[0]
        made.shape, made.type = value.shape, onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        if producer is None:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, dequantize])
        for use in users:
            use.node.replace_input_with(use.idx, made)
        if value.is_graph_output() and answers and not value.is_graph_input():
            value.name, name = graph.fresh(self._graph, f"{stem}_float"), value.name
            for place, output in enumerate(self._graph.outputs):
                if output is value:
                    self._graph.outputs[place] = made
            made.name = name

    def _node(self, operator: str, stem: str, value: onnx_ir.Value, grid: Grid, like: onnx_ir.Node | None = None) -> onnx_ir.Node:
        if like is None:
            scale: onnx_ir.Value | None = graph.add_constant(self._graph, f"{stem}_scale", grid.scale)
            zero_point: onnx_ir.Value | None = graph.add_constant(self._graph, f"{stem}_zero_point", grid.zero_point)
        else:
            scale, zero_point = like.inputs[1], like.inputs[2]
        node = onnx_ir.node(
            operator,
            [value, scale, zero_point],
            attributes={} if grid.axis is None else {"axis": grid.axis},
            name=graph.fresh(self._graph, f"{stem}_{operator}"),
        )
        node.outputs[0].name = graph.fresh(self._graph, f"{stem}_{'quantized' if operator == 'QuantizeLinear' else 'dequantized'}")
        return node
