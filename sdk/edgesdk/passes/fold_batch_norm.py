"""Batch normalization after a convolution is a scaling of its weights and a shift of its bias."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model
from edgesdk.passes._linear import absorb, is_linear
from edgesdk.passes._rewiring import take_place


def fold_batch_norm(model: Model) -> Model:
    """BatchNormalization at inference, after a Conv, ConvTranspose or Gemm that nothing else reads, is folded into it."""
    if not any(node.op_type == "BatchNormalization" for node in model.graph):
        return model
    folded = graph.clone(model)
    for node in list(folded.graph):
        if node.op_type == "BatchNormalization" and not node.domain:
            _fold(node)
    return folded


def _fold(node: onnx_ir.Node) -> None:
    value = node.inputs[0]
    before = value.producer() if value is not None else None
    if value is None or before is None or not is_linear(before) or len(value.uses()) != 1 or value.is_graph_output() or before.graph is not node.graph:
        return
    if any(extra.uses() for extra in node.outputs[1:]) or ("training_mode" in node.attributes and node.attributes["training_mode"].as_int()):
        return
    numbers = [graph.constant(each) for each in node.inputs[1:5]]
    if any(each is None for each in numbers):
        return
    scale, bias, mean, variance = (np.asarray(each, np.float64) for each in numbers)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        shift = bias - mean * factor
    if absorb(before, factor, shift):
        take_place(before, node)
