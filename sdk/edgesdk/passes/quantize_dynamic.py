"""Weights become 8-bit; what they are multiplied with does so while the model runs, by the range that it has just then.

    quantize_dynamic(model, operators=["MatMul", "Gemm"], per_channel=True)

No calibration, and outliers of one input do not spoil another: what transformers and recurrent models want (onnxruntime, "Quantize ONNX
Models"). Matrix products become DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which onnxruntime fuses into one kernel; LSTM becomes
its `DynamicQuantizeLSTM`. Convolutions stay: their integer kernel without fusion is 4 to 6 times slower than float32.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.passes._grids import Grid, Levels, weight_grid
from edgesdk.passes._products import CONTRIB, Product, made, products, put, with_bias
from edgesdk.passes._tables import quantize_tables
from edgesdk.passes.remove_unused import remove_unused

FIRST_OPSET = 11  # DynamicQuantizeLinear
OPERATORS = ("MatMul", "Gemm", "LSTM", "Gather")


def quantize_dynamic(
    model: Model,
    *,
    operators: Sequence[str] = ("MatMul", "Gemm", "LSTM"),
    per_channel: bool = True,
    reduce_range: bool = True,
    weights: Literal["int8", "uint8"] = "int8",
    exclude: Sequence[str] = (),
) -> Model:
    """The model with these operators in dynamic 8 bits; the very same model if it has none with constant float32 weights.

    ``reduce_range``: no int8 weights whose products saturate in 16 bits, for x86 without VNNI; uint8 ones (zero point 128) never do.
    ``operators`` may hold ``Gather``: tables of embeddings are kept in int8, a scale a row. Products of two activations, LSTM with
    `layout = 1`, and the nodes named in ``exclude`` stay float32. Raises ModelError for an operator that has no such form.
    """
    if unknown := [name for name in operators if name not in OPERATORS]:
        raise ModelError(f"`{unknown[0]}` has no dynamic 8-bit form", f"name some of {', '.join(OPERATORS)}")
    work = graph.clone(graph.with_opset(model, FIRST_OPSET))
    writer = _Writer(work, per_channel=per_channel, reduce_range=reduce_range, weights=weights)
    multiplied = products(work, operators, exclude)
    for product in multiplied:
        writer.product(product)
    recurrent = [writer.lstm(node) for node in _lstms(work, operators, exclude)]
    looked_up = "Gather" in operators and quantize_tables(work, exclude)
    if not (multiplied or recurrent or looked_up):
        return model
    if recurrent:
        work.opset_imports[CONTRIB] = 1
    return remove_unused(work)  # the float32 weights


def _lstms(work: Model, operators: Sequence[str], exclude: Sequence[str]) -> list[onnx_ir.Node]:
    """Those with constant weights whose batch is not the first axis."""
    named = [node for node in work.graph if node.op_type == "LSTM" and not node.domain and "LSTM" in operators and node.name not in exclude]
    return [node for node in named if all(_is_stack(node.inputs[place]) for place in (1, 2)) and not _integer(node, "layout", 0)]


def _is_stack(value: onnx_ir.Value | None) -> bool:
    matrix = graph.constant(value)
    return matrix is not None and matrix.dtype == np.float32 and matrix.ndim == 3 and matrix.size > 0 and bool(np.isfinite(matrix).all())


def _integer(node: onnx_ir.Node, name: str, usual: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else usual


class _Writer:
    """A tensor that several nodes read is made 8-bit once, and so is a constant."""

    def __init__(self, work: Model, *, per_channel: bool, reduce_range: bool, weights: Literal["int8", "uint8"]) -> None:
        self._graph = work.graph
        self._levels = Levels("uint8", symmetric=False, per_channel=per_channel, reduce_range=reduce_range and weights == "int8", bias="float32")
        self._zero = 0 if weights == "int8" else 128
        self._type = np.dtype(weights)
        self._given: dict[onnx_ir.Value, onnx_ir.Node] = {}
        self._constants: dict[tuple[object, ...], tuple[onnx_ir.Value, onnx_ir.Value]] = {}
        self._zero_point: onnx_ir.Value | None = None

    def product(self, product: Product) -> None:
        """``(q - z) · w`` in integers, then times both scales."""
        name = str(product.node.name)
        quantize = self._quantized(product)
        integers, scale, zero_point = quantize.outputs
        if product.key not in self._constants:
            grid = weight_grid(product.matrix, 1, np.zeros(1), self._levels)
            self._constants[product.key] = self._constant(product.weight, self._shifted(grid, product.matrix), grid.scale)
        weight, weight_scale = self._constants[product.key]
        extra = [zero_point] if not self._zero else [zero_point, self._weights_zero_point()]
        multiply = made(self._graph, "MatMulInteger", [integers, weight, *extra], name)
        numbers = made(self._graph, "Cast", [multiply.outputs[0]], f"{name}_cast", to=int(onnx_ir.DataType.FLOAT))
        scales = made(self._graph, "Mul", [scale, weight_scale], f"{name}_scales")
        scaled = made(self._graph, "Mul", [numbers.outputs[0], scales.outputs[0]], f"{name}_scaled")
        put([multiply, numbers, scales, scaled, *with_bias(product, scaled)], product.node)

    def lstm(self, node: onnx_ir.Node) -> onnx_ir.Node:
        """As onnxruntime's `DynamicQuantizeLSTM` wants it: weights transposed, then a scale for each direction, or each gate's unit of it."""
        inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
        for place in (1, 2):
            matrix, stem = np.asarray(graph.constant(inputs[place])), getattr(inputs[place], "name", "")
            grids = [weight_grid(direction, 0, np.zeros(1), self._levels) for direction in matrix]
            integers = np.stack([self._shifted(grid, direction).T for grid, direction in zip(grids, matrix, strict=True)])
            scale = np.stack([grid.scale for grid in grids])
            inputs[place], scale_value = self._constant(stem, integers, scale)
            inputs += [scale_value, graph.add_constant(self._graph, f"{stem}_zero_point", np.full(scale.shape, self._zero, self._type))]
        attributes = [attribute for attribute in node.attributes.values() if attribute.name != "layout"]
        new = onnx_ir.Node(CONTRIB, "DynamicQuantizeLSTM", inputs, attributes, num_outputs=len(node.outputs), name=node.name)
        _take_all_places(new, node)
        return new

    def _quantized(self, product: Product) -> onnx_ir.Node:
        if product.given not in self._given:
            node = made(self._graph, "DynamicQuantizeLinear", [product.given], f"{product.given.name}_DynamicQuantizeLinear", outputs=3)
            self._graph.insert_before(product.node, node)  # the first that reads it
            self._given[product.given] = node
        return self._given[product.given]

    def _shifted(self, grid: Grid, matrix: Array) -> Array:
        return (grid.integers(matrix).astype(np.int16) + self._zero).astype(self._type)

    def _constant(self, stem: str, integers: Array, scale: Array) -> tuple[onnx_ir.Value, onnx_ir.Value]:
        return graph.add_constant(self._graph, f"{stem}_quantized", integers), graph.add_constant(self._graph, f"{stem}_scale", scale)

    def _weights_zero_point(self) -> onnx_ir.Value:
        if self._zero_point is None:
            self._zero_point = graph.add_constant(self._graph, "weights_zero_point", np.array(self._zero, self._type))
        return self._zero_point


def _take_all_places(new: onnx_ir.Node, old: onnx_ir.Node) -> None:
    inside = old.graph
    assert inside is not None
    inside.insert_before(old, new)
    for before, after in zip(old.outputs, new.outputs, strict=True):
        name, after.shape, after.type = before.name, before.shape, before.type
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        before.name, after.name = None, name
    inside.remove(old, safe=True)
