"""Puts QuantizeLinear and DequantizeLinear into a graph, around the sites that become 8-bit."""

import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._grids import Grid, Grids
from edgesdk.passes._sites import WEIGHTED, Site


def write(work: Model, sites: list[Site], grids: Grids, *, answers: bool) -> None:
    """In place. ``answers``: an output of the graph is 8-bit too."""
    outer = work.graph
    writer = _Writer(outer)
    for site in sites:
        if site.output is None or site.output.name not in grids.relabelled:
            _write_constants(writer, site, grids)
    values = onnx_ir.convenience.create_value_mapping(outer)
    integers: dict[str, onnx_ir.Value] = {}
    for name, grid in grids.activations.items():
        if name not in grids.relabelled:
            integers[name] = writer.activation(values[name], grids.written.get(name, grid), grid, answers=answers)
    for name, given in grids.relabelled.items():
        writer.relabel(values[name], integers[given], grids.activations[name])
    for value in [value for value in outer.initializers.values() if not value.uses() and not value.is_graph_output()]:
        outer.initializers.pop(str(value.name))  # float32 weights that nobody reads any more


def _write_constants(writer: "_Writer", site: Site, grids: Grids) -> None:
    for place, array in site.operands():
        writer.constant(site.node, place, array, grids.operand(site, place, array))
    weight, bias = (graph.constant(site.node.inputs[place]) if place < len(site.node.inputs) else None for place in (1, 2))
    if site.node.op_type not in WEIGHTED or site.node.inputs[0] is None or weight is None:
        return
    given = grids.activations[str(site.node.inputs[0].name)]
    grid = grids.weight(site, weight, given)
    if bias is not None and (bias_grid := grids.bias(site, bias, given, grid)) is not None:
        writer.constant(site.node, 2, bias, bias_grid)
    writer.constant(site.node, 1, weight, grid)


class _Writer:
    """A constant that is needed twice in the same way is written once."""

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

    def activation(self, value: onnx_ir.Value, written: Grid, read: Grid, *, answers: bool) -> onnx_ir.Value:
        """Everybody who reads the tensor reads it through 8 bits. An output of the graph too, if ``answers``. Returns the integers."""
        users = [(use.node, use.idx) for use in value.uses()]
        stem = str(value.name)
        producer = value.producer()
        quantize = self._node("QuantizeLinear", stem, value, written)
        dequantize = self._node("DequantizeLinear", stem, quantize.outputs[0], read, like=quantize if read is written else None)
        quantize.outputs[0].shape, quantize.outputs[0].type = value.shape, onnx_ir.TensorType(onnx_ir.DataType.from_numpy(written.zero_point.dtype))
        if producer is None:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, dequantize])
        self._read(users, value, dequantize, answers=answers)
        return quantize.outputs[0]

    def relabel(self, value: onnx_ir.Value, integers: onnx_ir.Value, grid: Grid) -> None:
        """Everybody reads the tensor as the integers of another under its own scale; the operator that made it goes."""
        producer = value.producer()
        dequantize = self._node("DequantizeLinear", str(value.name), integers, grid)
        if producer is None:
            return
        self._graph.insert_after(producer, dequantize)
        self._read([(use.node, use.idx) for use in value.uses()], value, dequantize, answers=True)
        self._graph.remove(producer, safe=True)

    def _read(self, users: list[tuple[onnx_ir.Node, int]], value: onnx_ir.Value, dequantize: onnx_ir.Node, *, answers: bool) -> None:
        made = dequantize.outputs[0]
        made.shape, made.type = value.shape, onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        for node, place in users:
            node.replace_input_with(place, made)
        if value.is_graph_output() and answers and not value.is_graph_input():
            value.name, name = graph.fresh(self._graph, f"{value.name}_float"), value.name
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
