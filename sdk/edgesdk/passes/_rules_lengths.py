"""The lengths that a graph computes with: Shape, and what picks from it and puts together what it picked."""

from collections.abc import Callable

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import Entries, Number, Rule, Tracing, integer, where


def numbers(tracing: Tracing, node: onnx_ir.Node) -> Entries | None:
    """What a node answers, if that is a few integers that can be followed."""
    kind = node.op_type if not node.domain else ""
    if kind == "Constant":
        whole = [node.attributes[name] for name in ("value_int", "value_ints") if name in node.attributes]
        return [int(number) for each in whole for number in np.atleast_1d(np.array(each.value))] if whole else None
    if kind == "Shape":
        return _lengths(tracing, node)
    if kind == "Concat":
        parts = [_part(tracing, node, place) for place in range(len(node.inputs))]
        return [number for part in parts for number in part or []] if all(part is not None for part in parts) else None
    found = tracing.entries(node, 0)
    if kind == "Cast" and node.attributes["to"].as_int() not in (onnx_ir.DataType.INT32, onnx_ir.DataType.INT64):
        return None
    if found is None or kind in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
        return found
    indices = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if kind == "Gather" and indices is not None and indices.ndim < 2:
        return [found[index] for index in indices.reshape(-1)]
    if kind == "Slice":
        start, end, _, step = ((tracing.entries(node, place) or [1])[0] for place in range(1, 5))
        return found[start:end:step] if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) else None
    if kind == "ConstantOfShape" and len(found) == 1 and isinstance(found[0], int) and 0 <= found[0] < 8:
        value = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1)
        return [int(value.reshape(-1)[0])] * found[0] if value.dtype.kind == "i" else None
    other = tracing.entries(node, 1)
    if kind == "Equal" and other is not None and len(found) == len(other):
        return [_is_equal(*pair) for pair in zip(found, other, strict=True)]
    if kind == "Where" and other is not None and (third := tracing.entries(node, 2)) is not None and len(found) == len(other) == len(third):
        return [one if chosen == 1 else two if chosen == 0 else None for chosen, one, two in zip(found, other, third, strict=True)]
    if kind == "Mul" and other is not None and [1] in (found, other):
        return other if found == [1] else found
    if kind in _ARITHMETIC and other is not None:
        found, other = (_as_it_is(tracing, node, each) for each in (found, other))
    if kind in _ARITHMETIC and other is not None and all(isinstance(number, int) for number in (*found, *other)):
        return [int(number) for number in _ARITHMETIC[kind](np.array(found, np.int64), np.array(other, np.int64)).reshape(-1)]
    return None


def _as_it_is(tracing: Tracing, node: onnx_ir.Node, entries: Entries) -> Entries:
    """What is computed with stays as it is."""
    tracing.pin(entries, f"{where(node)} computes with its length")
    return [number.length if isinstance(number, Axis) else number for number in entries]


def _is_equal(one: Number, other: Number) -> int | None:
    """As a number. No length is negative: exporters ask whether it is -1."""
    if isinstance(one, int) and isinstance(other, int):
        return int(one == other)
    numbers = [number for number in (one, other) if isinstance(number, int)]
    return 0 if numbers and numbers[0] < 0 and None not in (one, other) else None


def _lengths(tracing: Tracing, node: onnx_ir.Node) -> Entries | None:
    axes = tracing.axes.get(node.inputs[0]) if node.inputs[0] is not None else None
    if axes is None and (node.inputs[0] is None or graph.constant(node.inputs[0]) is None):
        return None
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    lengths: Entries = [axis if axis.length is None or tracing.ties.is_free(axis) else axis.length for axis in axes or tracing.given(node, 0)]
    return lengths[integer(node, "start", 0) : end]


def _part(tracing: Tracing, node: onnx_ir.Node, place: int) -> Entries | None:
    """Of what is not followed, how many numbers there are at least."""
    found, value = tracing.entries(node, place), node.inputs[place]
    if found is not None or value is None or value.shape is None or value.dtype != onnx_ir.DataType.INT64:
        return found
    return [None] * int(value.shape[0]) if len(value.shape) == 1 and isinstance(value.shape[0], int) and value.shape[0] < 8 else None


def _quotient(one: Array, other: Array) -> Array:
    return np.asarray(np.trunc(one / np.where(other == 0, 1, other)), np.int64)


_ARITHMETIC: dict[str, Callable[[Array, Array], Array]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _quotient}


def _shape(tracing: Tracing, node: onnx_ir.Node) -> list[list[Axis]]:
    return [[tracing.ties.fixed(len(_lengths(tracing, node) or []), where(node))]]


COUNTING: dict[str, Rule] = {"Shape": _shape}
