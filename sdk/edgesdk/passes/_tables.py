"""Embedding tables of 8 bits: rows are looked up as integers, and each by its own scale.

Plain ONNX operators, which every runtime has; onnxruntime's `GatherBlockQuantized` takes 8 bits from 1.23 on only. One scale a row
costs four bytes of it, and makes the error of a rare word's small row no larger for that of a frequent one.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._products import made, put

LEAST_ROWS = 64  # a smaller table is not what makes a file large


def quantize_tables(work: Model, exclude: Iterable[str]) -> bool:
    """In place: Gather of rows of constant float32 tables that nothing else reads. Whether there were any."""
    spared = set(exclude)
    found = False
    for value in _tables(work, spared):
        table = graph.constant(value)
        assert table is not None
        integers, scales = rows(table)
        stem = str(value.name)
        table_value = graph.add_constant(work.graph, f"{stem}_quantized", integers)
        scale_value = graph.add_constant(work.graph, f"{stem}_scale", scales)
        for node in [use.node for use in value.uses()]:
            _replace(node, table_value, scale_value)
        found = True
    return found


def rows(table: Array) -> tuple[Array, Array]:
    """A table [rows, columns] as int8, and a scale for each row, [rows, 1]."""
    scales = np.abs(table.astype(np.float64)).max(axis=1, keepdims=True) / 127
    scales = np.where(scales > np.finfo(np.float32).tiny, scales, 1.0).astype(np.float32)
    return np.clip(np.rint(table / scales.astype(np.float64)), -127, 127).astype(np.int8), scales


def _tables(work: Model, spared: set[str]) -> list[onnx_ir.Value]:
    found: dict[onnx_ir.Value, None] = {}
    for node in work.graph:
        value = node.inputs[0] if node.op_type == "Gather" and not node.domain and node.name not in spared else None
        table = graph.constant(value)
        if value is None or table is None or table.ndim != 2 or table.dtype != np.float32 or len(table) < LEAST_ROWS or not np.isfinite(table).all():
            continue
        if table.shape[1] > 4 and not value.is_graph_output() and all(_is_lookup(use.node, use.idx, work, spared) for use in value.uses()):
            found[value] = None
    return list(found)


def _is_lookup(node: onnx_ir.Node, place: int, work: Model, spared: set[str]) -> bool:
    plain = node.graph is work.graph and node.op_type == "Gather" and not node.domain and place == 0
    return plain and node.name not in spared and ("axis" not in node.attributes or node.attributes["axis"].as_int() in (0, -2))


def _replace(node: onnx_ir.Node, table: onnx_ir.Value, scales: onnx_ir.Value) -> None:
    inside = node.graph
    assert isinstance(inside, onnx_ir.Graph)
    name, places = str(node.name), node.inputs[1]
    integers = made(inside, "Gather", [table, places], name, axis=0)
    numbers = made(inside, "Cast", [integers.outputs[0]], f"{name}_cast", to=int(onnx_ir.DataType.FLOAT))
    scale = made(inside, "Gather", [scales, places], f"{name}_scale", axis=0)
    put([integers, numbers, scale, made(inside, "Mul", [numbers.outputs[0], scale.outputs[0]], f"{name}_scaled")], node)
