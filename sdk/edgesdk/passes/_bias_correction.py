"""What rounding adds to a layer's answers on average is taken off its bias.

    better = correct_bias(original, quantized, samples)

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), section 4.2, by samples
(its appendix D): layer after layer, each corrected for what the corrected ones before it still leave. All at once, each corrected for
the same error that its predecessor is corrected for too, made every model worse that was tried.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._layers import Layer, constant_at, walk, write_constant
from edgesdk.sampling import Samples


def correct_bias(original: Model, quantized: Model, samples: Samples, *, progress: Callable[[int, int], None] | None = None) -> Model:
    """``quantized`` with other biases, on the grids that they had; layers without one stay as they are.

    ``original`` is the float32 model that `quantize` was given. A MatMul's bias is the constant that an Add puts to what it answers.
    ``progress`` is told how many layers are done, of how many. Raises ModelError, SampleError.
    """
    work = graph.clone(quantized)
    for layer in walk(original, work, samples, progress=progress):
        correct(layer)
    return work


def correct(layer: Layer) -> None:
    """Its bias from now on."""
    place = bias_of(layer.node, layer.channels)
    if place is None:
        return
    before = constant_at(*place)
    assert before is not None
    lacks = _lacks(layer)
    if np.isfinite(lacks).all():
        write_constant(*place, before + lacks.reshape(before.shape))


def bias_of(node: onnx_ir.Node, channels: int) -> tuple[onnx_ir.Node, int] | None:
    """The node and the place where a Conv's, Gemm's or MatMul's is read; None if there is no constant with one number a channel."""
    after, places = (node, [2]) if node.op_type != "MatMul" else (_added_to(node.outputs[0]), [0, 1])
    for place in places:
        array = constant_at(after, place) if after is not None else None
        if after is not None and array is not None and array.dtype == np.float32 and array.size == channels == array.shape[-1]:
            return after, place
    return None


def _added_to(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """The Add that alone reads it, through 8 bits or not."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        after = next(iter(value.uses())).node
        if after.op_type == "Add" and not after.domain:
            return after
        if after.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        value = after.outputs[0]
    return None


def _lacks(layer: Layer) -> Array:
    """By how much each output channel falls short on average, over all samples and places."""
    total, count = np.zeros(layer.channels), 0
    for wanted, found in layer.outputs():
        short = np.moveaxis(wanted.astype(np.float64) - found, 1 if layer.node.op_type == "Conv" else -1, 0).reshape(layer.channels, -1)
        total += short.sum(axis=1)
        count += short.shape[1]
    return total / max(count, 1)
