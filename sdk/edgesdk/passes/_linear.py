"""What the passes know of operators that are a sum of products with constant weights: Conv, ConvTranspose, Gemm."""

from collections.abc import Sequence

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


def is_unscaled(node: onnx_ir.Node) -> bool:
    """Whether weights and bias count as they are: Gemm alone has factors for them."""
    return node.op_type != "Gemm" or (_float(node, "alpha", 1.0) == 1 and _float(node, "beta", 1.0) == 1)


def is_plain_conv(node: onnx_ir.Node) -> bool:
    """A two-dimensional Conv of one group with constant weights."""
    weight = graph.constant(node.inputs[1]) if is_linear(node) and node.op_type == "Conv" else None
    return weight is not None and weight.ndim == 4 and _integer(node, "group", 1) == 1


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


def absorb_before(nodes: Sequence[onnx_ir.Node], scale: Array, shift: Array) -> bool:
    """Make each node answer for ``scale · x + shift`` what it answered for x, with one number a channel of x. Their weights become their own.

    False, and nothing is changed, where one of them pads (zeros that were never shifted) or float32 does not hold the numbers.
    """
    made = [_fed(node, scale, shift) for node in nodes]
    if any(weights is None for weights in made):
        return False
    for node, weights in zip(nodes, made, strict=True):
        inside = node.graph
        assert isinstance(inside, onnx_ir.Graph) and weights is not None
        weight, bias = weights
        stem = node.inputs[1].name if node.inputs[1] is not None else node.name
        node.replace_input_with(1, graph.add_constant(inside, f"{stem}_scaled", weight))
        if bias is not None:
            node.resize_inputs(3)
            node.replace_input_with(2, graph.add_constant(inside, f"{stem}_bias", bias))
            node.attributes.pop("beta", None)
    return True


def _fed(node: onnx_ir.Node, scale: Array, shift: Array) -> tuple[Array, Array | None] | None:
    """The weights, and the bias if it changes, of a node that is fed ``scale · x + shift``."""
    weight = graph.constant(node.inputs[1])
    if not isinstance(node.graph, onnx_ir.Graph) or weight is None or (node.op_type == "Gemm" and _integer(node, "transA", 0)):
        return None
    if shift.any() and not reads_all_alike(node):
        return None
    count = _inputs(node, weight)
    if scale.size not in (1, count):
        return None
    apart = _by_input(node, weight).astype(np.float64)  # [groups, channels in, all else]
    scale, shift = (np.broadcast_to(each, count).reshape(apart.shape[0], -1, 1) for each in (scale, shift))
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = _as_stored(node, weight, apart * scale).astype(np.float32)
        if not np.isfinite(scaled).all():
            return None
        if not shift.any():
            return scaled, None
        more = (apart * shift).sum(axis=1)  # [groups, all else]
        more = more.reshape(channels(node), -1).sum(axis=1) * (_float(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0)
        given = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        before = np.zeros(1) if given is None else given.astype(np.float64) * (_float(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0)
        bias = (before + more).astype(np.float32)
    return (scaled, bias) if np.isfinite(bias).all() else None


def reads_all_alike(node: onnx_ir.Node) -> bool:
    """Whether every number that it answers is made of all weights of its channel: no padding, nothing skipped."""
    if node.op_type == "Gemm":
        return True
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    weight = graph.constant(node.inputs[1])
    plain = not any(pads) and automatic in ("NOTSET", "VALID")
    if node.op_type == "Conv" or weight is None:
        return plain
    strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else ()
    longer = [name for name in ("output_padding", "output_shape") if name in node.attributes and any(node.attributes[name].as_ints())]
    return plain and not longer and all(length == 1 for length in (*weight.shape[2:], *strides))


def _inputs(node: onnx_ir.Node, weight: Array) -> int:
    """How many input channels it has."""
    if node.op_type == "Conv":
        return int(weight.shape[1]) * _integer(node, "group", 1)
    return int(weight.shape[1 if node.op_type == "Gemm" and _integer(node, "transB", 0) else 0])


def _by_input(node: onnx_ir.Node, weight: Array) -> Array:
    """The weights as [groups, input channels of a group, output channels of a group × kernel]."""
    group = 1 if node.op_type == "Gemm" else _integer(node, "group", 1)
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _integer(node, "transB", 0)):
        whole = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return np.swapaxes(whole, 1, 2).reshape(group, weight.shape[1], -1)
    return weight.reshape(group, weight.shape[0] // group, -1)


def _as_stored(node: onnx_ir.Node, weight: Array, apart: Array) -> Array:
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _integer(node, "transB", 0)):
        group = apart.shape[0]
        whole = apart.reshape(group, weight.shape[1], weight.shape[0] // group, -1)
        return np.swapaxes(whole, 1, 2).reshape(weight.shape)
    return apart.reshape(weight.shape)


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
