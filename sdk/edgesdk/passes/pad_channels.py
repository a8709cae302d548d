"""Odd channels between two convolutions are filled up with dead ones, so that onnxruntime's blocked kernels take them.

Its NCHWc Conv reads channels by fours, and fewer than a block (16 on AVX-512, 8 on AVX2) from the plain layout only; else the tensor is
reordered, or the convolution done without blocks (measured on PP-OCRv4 detection, x86-64 with AVX-512: 2.6 ms become 0.8 in one of them).
The kernel before computes whole blocks anyway.
"""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model
from edgesdk.passes._linear import is_plain_conv
from edgesdk.passes._rewiring import is_private

BLOCK = 16
_FINITE_AT_ZERO = ("Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Clip")


def pad_channels(model: Model) -> Model:
    """Conv, an activation perhaps, Conv: fewer than ``BLOCK`` channels between them become ``BLOCK``, more a multiple of four.

    Left alone where the second Conv would grow by half or more.
    """
    if not any(node.op_type == "Conv" for node in model.graph):
        return model
    padded = graph.clone(model)
    for node in list(padded.graph):
        first = _feeder(node) if is_plain_conv(node) else None
        if first is not None:
            _pad(first, node)
    return padded


def _feeder(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The Conv before, if nothing but an activation lies between and nobody else reads either."""
    value = node.inputs[0]
    while value is not None and is_private(value) and (before := value.producer()) is not None and before.graph is node.graph:
        if is_plain_conv(before):
            return before
        if before.domain or before.op_type not in _FINITE_AT_ZERO:
            return None
        value.shape = None
        value = before.inputs[0]
    return None


def _pad(first: onnx_ir.Node, second: onnx_ir.Node) -> None:
    inside = second.graph
    inner, outer = graph.constant(first.inputs[1]), graph.constant(second.inputs[1])
    assert isinstance(inside, onnx_ir.Graph) and inner is not None and outer is not None
    count = inner.shape[0]
    more = max(BLOCK, -(-count // 4) * 4) - count
    if not more or 2 * more >= count or outer.shape[1] != count:
        return
    bias = graph.constant(first.inputs[2]) if len(first.inputs) > 2 else None
    for node, place, array, axis in ((first, 1, inner, 0), (second, 1, outer, 1), (first, 2, bias, 0)):
        if array is not None:
            widths = [(0, more if each == axis else 0) for each in range(array.ndim)]
            name = node.inputs[place].name  # type: ignore[union-attr]
            node.replace_input_with(place, graph.add_constant(inside, f"{name}_padded", np.pad(array, widths)))
    first.outputs[0].shape = None
