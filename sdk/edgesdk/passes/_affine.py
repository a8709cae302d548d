"""What the passes know of operators that give each channel of a tensor a constant factor and summand: `scale · x + shift`."""

from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._linear import channels, is_linear
from edgesdk.passes._rewiring import is_private

OPERATORS = ("Mul", "Div", "Add", "Sub", "BatchNormalization")


@dataclass(frozen=True)
class Affine:
    """``scale · source + shift``, one number each, or one a channel (axis 1); the nodes that compute it, the last of them last."""

    source: onnx_ir.Value
    scale: Array  # float64, [1] or [channels]
    shift: Array
    nodes: tuple[onnx_ir.Node, ...]

    @property
    def is_finite(self) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(self.scale.astype(np.float32)).all() and np.isfinite(self.shift.astype(np.float32)).all())


def of(node: onnx_ir.Node) -> Affine | None:
    """The affine that ends at this node: itself and those before it that nothing else reads."""
    last = _single(node)
    if last is None:
        return None
    before = last.source.producer()
    first = of(before) if before is not None and before.graph is node.graph and is_private(last.source) else None
    if first is None:
        return last
    with np.errstate(over="ignore", invalid="ignore"):
        joined = Affine(first.source, last.scale * first.scale, last.scale * first.shift + last.shift, (*first.nodes, node))
    return joined if joined.is_finite and can_be_of(joined, joined.source) else last


def goes_on(node: onnx_ir.Node) -> bool:
    """Whether the next node is part of the same affine, and will take this one along."""
    if not is_private(node.outputs[0]):
        return False
    longer = of(next(iter(node.outputs[0].uses())).node)
    return longer is not None and node in longer.nodes


def can_be_of(affine: Affine, value: onnx_ir.Value) -> bool:
    """Whether it is known how to shape its numbers for that tensor."""
    return affine.scale.size == affine.shift.size == 1 or layout(value) is not None


def layout(value: onnx_ir.Value) -> tuple[int, int | None] | None:
    """The rank and the length of axis 1, as far as they are known."""
    if value.shape is not None:
        length = value.shape[1] if len(value.shape) > 1 else None
        return len(value.shape), length if isinstance(length, int) else None
    producer = value.producer()
    if producer is None or not is_linear(producer):
        return None
    weight = graph.constant(producer.inputs[1])
    return None if weight is None else (weight.ndim, channels(producer))


def number(value: onnx_ir.Value | None) -> float | None:
    """The float32 number, if it is a constant one that adds no dimension to what it meets."""
    array = graph.constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 and array.ndim <= 1 and array.dtype == np.float32 else None


def needed(affine: Affine) -> list[tuple[str, Array]]:
    """The operators that compute it, with their constants."""
    steps = (("Mul", affine.scale, 1), ("Add", affine.shift, 0))
    return [(operator, numbers) for operator, numbers, neutral in steps if (numbers.astype(np.float32) != neutral).any()]


def write(affine: Affine, after: onnx_ir.Node) -> onnx_ir.Value:
    """The affine as a Mul, an Add, both or neither, put behind a node. Returns what it answers."""
    inside, value, stem = after.graph, affine.source, affine.nodes[-1].name
    assert isinstance(inside, onnx_ir.Graph)
    rank, _ = layout(affine.source) or (0, None)
    for operator, numbers in needed(affine):
        shaped = numbers.astype(np.float32).reshape(() if numbers.size == 1 else (-1, *[1] * (rank - 2)))
        made = onnx_ir.node(operator, [value, graph.add_constant(inside, f"{stem}_constant", shaped)], name=graph.fresh(inside, f"{stem}_{operator}"))
        made.outputs[0].name = graph.fresh(inside, f"{stem}_{'scaled' if operator == 'Mul' else 'shifted'}")
        made.outputs[0].type, made.outputs[0].shape = affine.source.type, affine.source.shape
        inside.insert_after(after, made)
        after, value = made, made.outputs[0]
    return value


def _single(node: onnx_ir.Node) -> Affine | None:
    if node.domain or node.op_type not in OPERATORS:
        return None
    if node.op_type == "BatchNormalization":
        return _batch_norm(node)
    for place in (0, 1):
        value, other = node.inputs[place], graph.constant(node.inputs[1 - place])
        if value is None or other is None or graph.constant(value) is not None or (node.op_type == "Div" and place == 1):
            continue
        numbers = _by_channel(other, value)
        if numbers is None or (node.op_type == "Div" and not numbers.all()):
            return None
        one, zero = np.ones(1), np.zeros(1)
        scale, shift = {
            "Mul": (numbers, zero),
            "Div": (1 / numbers if node.op_type == "Div" else one, zero),
            "Add": (one, numbers),
            "Sub": (one, -numbers) if place == 0 else (-one, numbers),
        }[node.op_type]
        made = Affine(value, scale, shift, (node,))
        return made if made.is_finite else None
    return None


def _by_channel(array: Array, value: onnx_ir.Value) -> Array | None:
    """One number, or one for each channel; None if the constant is anything else, or would add dimensions or length."""
    if array.dtype != np.float32 or array.size == 0 or value.dtype not in (None, onnx_ir.DataType.FLOAT):
        return None
    known = layout(value)
    if array.ndim == 0 or (known is not None and array.size == 1 and array.ndim <= known[0]):
        return array.reshape(1).astype(np.float64)
    if known is None or known[0] < max(array.ndim, 2):
        return None
    whole = (1,) * (known[0] - array.ndim) + array.shape
    return array.reshape(-1).astype(np.float64) if whole == (1, known[1], *(1,) * (known[0] - 2)) else None


def _batch_norm(node: onnx_ir.Node) -> Affine | None:
    """BatchNormalization at inference."""
    value, numbers = node.inputs[0], [graph.constant(each) for each in node.inputs[1:5]]
    if value is None or any(each is None or each.dtype != np.float32 for each in numbers) or value.dtype not in (None, onnx_ir.DataType.FLOAT):
        return None
    if layout(value) is None:
        return None
    if any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
        return None
    if "training_mode" in node.attributes and node.attributes["training_mode"].as_int():
        return None
    scale, bias, mean, variance = (np.asarray(each, np.float64) for each in numbers)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        made = Affine(value, factor, bias - mean * factor, (node,))
    return made if made.is_finite else None
