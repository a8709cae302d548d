"""What the passes know of operators that are a sum of products with constant weights: Conv, ConvTranspose, Gemm."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array

LINEAR = ("Conv", "ConvTranspose", "Gemm")


def is_linear(node: onnx_ir.Node | None) -> bool:
    """Whether it is one with constant float32 weights and a constant bias, or none."""
    if node is None or node.domain or node.op_type not in LINEAR or len(node.inputs) < 2:
        return False
    weight, bias = graph.constant(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    return weight is not None and weight.dtype == np.float32 and (bias is None or graph.constant(bias) is not None)


def channels(node: onnx_ir.Node) -> int:
    """How many output channels it has."""
    weight = graph.constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * _integer(node, "group", 1)
    return int(weight.shape[0 if _integer(node, "transB", 0) else 1])


def absorb(node: onnx_ir.Node, scale: Array, shift: Array) -> bool:
    """Make the node answer ``scale · y + shift`` for its ``y``, with one number a channel. Its weights become its own.

    False, and nothing is changed, where that would make numbers that float32 does not hold.
    """
    inside = node.graph
    weight = graph.constant(node.inputs[1])
    if not isinstance(inside, onnx_ir.Graph) or weight is None:
        return False
    scale, shift = np.broadcast_to(scale.astype(np.float64), channels(node)), np.broadcast_to(shift.astype(np.float64), channels(node))
    bias = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    before = np.zeros(1) if bias is None else bias.astype(np.float64) * _float(node, "beta", 1.0)
    if before.ndim <= 1 or before.shape[0] == 1:
        before = before.reshape(-1)
    stem = node.inputs[1].name if node.inputs[1] is not None else node.name
    with np.errstate(over="ignore"):
        scaled, bias_after = _scaled(node, weight, scale).astype(np.float32), (before * scale + shift).astype(np.float32)
    if not np.isfinite(scaled).all() or not np.isfinite(bias_after).all():
        return False
    node.replace_input_with(1, graph.add_constant(inside, f"{stem}_scaled", scaled))
    node.resize_inputs(3)
    node.replace_input_with(2, graph.add_constant(inside, f"{stem}_bias", bias_after))
    node.attributes.pop("beta", None)
    return True


def _scaled(node: onnx_ir.Node, weight: Array, scale: Array) -> Array:
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _integer(node, "transB", 0)):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if node.op_type == "Gemm":
        return weight * scale
    group = _integer(node, "group", 1)  # ConvTranspose: [in, out / group, …], the groups one after the other along `in`
    apart = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    return (apart * scale.reshape(group, 1, weight.shape[1], 1)).reshape(weight.shape)


def _integer(node: onnx_ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _float(node: onnx_ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default
