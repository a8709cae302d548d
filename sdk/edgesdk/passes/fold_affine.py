"""A constant factor or summand for each channel, after a convolution, belongs into its weights and bias."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._linear import absorb, channels, is_linear
from edgesdk.passes.fold_batch_norm import take_place

_OPERATORS = ("Mul", "Div", "Add", "Sub")


def fold_affine(model: Model) -> Model:
    """Mul, Div, Add and Sub with a constant for each output channel, after a Conv, ConvTranspose or Gemm that nothing else reads.

    What comes *before* a convolution is left: padding puts zeros beside it that the constant never touched.
    """
    folded = graph.clone(model)
    for node in list(folded.graph):
        if node.op_type in _OPERATORS and not node.domain:
            _fold(node)
    return folded


def _fold(node: onnx_ir.Node) -> None:
    for place in (0, 1):
        value, other = node.inputs[place], graph.constant(node.inputs[1 - place])
        before = value.producer() if value is not None else None
        if value is None or before is None or other is None or not is_linear(before) or before.graph is not node.graph:
            continue
        if len(value.uses()) != 1 or value.is_graph_output() or (node.op_type == "Div" and place == 1):
            continue
        rank = 2 if before.op_type == "Gemm" else np.asarray(graph.constant(before.inputs[1])).ndim
        number = _by_channel(other, rank, channels(before))
        if number is None or (node.op_type == "Div" and not number.all()):
            continue
        sign = -1.0 if node.op_type == "Sub" else 1.0
        one, zero = np.ones(1), np.zeros(1)
        scale, shift = {
            "Mul": (number, zero),
            "Div": (1 / number.astype(np.float64), zero),
            "Add": (one, number),
            "Sub": (one, -number) if place == 0 else (sign * one, number),
        }[node.op_type]
        if absorb(before, scale, shift):
            take_place(before, node)
        return


def _by_channel(array: Array, rank: int, count: int) -> Array | None:
    """One number, or one for each channel; None if the constant is anything else, or would add dimensions or length."""
    if array.dtype != np.float32 or array.ndim > rank:
        return None
    if array.size == 1:
        return array.reshape(1)
    whole = (1,) * (rank - array.ndim) + array.shape
    return array.reshape(-1) if whole == (1, count, *(1,) * (rank - 2)) else None
