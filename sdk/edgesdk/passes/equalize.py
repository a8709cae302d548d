"""Channels that a layer makes large and the next one weights low are evened out, so that one scale for all of a tensor's numbers serves each channel."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._channels import Source, read_once, source
from edgesdk.passes._linear import absorb_before, is_linear

_ROUNDS = 40
_GREATEST = 2.0**20  # of a factor: float32 holds what comes of it
_SETTLED = 0.01  # change of a factor's logarithm


def equalize(model: Model, *, powers_of_two: bool = True) -> Model:
    """Each channel between two Convs, ConvTransposes or Gemms gets the same largest weight on both sides; the function stays.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), section 4.1. Between
    the two lie operators for which f(s·x) = s·f(x) at most, such as Relu and pooling (not HardSwish, nor Clip at 6), and nobody else
    reads what they answer. ``powers_of_two``: factors that float32 multiplies with exactly, so that the answers are the same bits.
    """
    even = graph.clone(model)
    graph.infer_shapes(even)
    pairs = [(before, node) for node in even.graph if (before := _before(node)) is not None]
    for (before, node), factors in zip(pairs, _factors([(before.node, node) for before, node in pairs], powers_of_two=powers_of_two), strict=True):
        if (factors != 1).any() and absorb_before([node], factors, np.zeros(1)):
            before.divide(factors)
    return even


def _before(node: onnx_ir.Node) -> Source | None:
    """The linear node whose channels this one reads, through what leaves factors be."""
    if not _is_even(node) or node.inputs[0] is None or not read_once(node.inputs[0]):
        return None
    before = source(node.inputs[0], 1, _sizes(node).shape[0] * _sizes(node).shape[1])
    return before if before is not None and not before.constants and _is_even(before.node) else None


def _is_even(node: onnx_ir.Node) -> bool:
    """Linear, and its numbers far enough from what float32 does not hold."""
    if not is_linear(node) or ("transA" in node.attributes and node.attributes["transA"].as_int()):
        return False
    arrays = [graph.constant(value) for value in node.inputs[1:] if value is not None]
    return all(array is not None and array.size and bool((np.abs(array) < np.finfo(np.float32).max / _GREATEST**2).all()) for array in arrays)


def _sizes(node: onnx_ir.Node) -> Array:
    """The largest weight between an input and an output channel, [groups, inputs of a group, outputs of a group]."""
    weight = graph.constant(node.inputs[1])
    assert weight is not None
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    outputs_first = node.op_type == "Conv" or (node.op_type == "Gemm" and "transB" in node.attributes and bool(node.attributes["transB"].as_int()))
    largest = np.abs(weight.astype(np.float64)).reshape(*weight.shape[:2], -1).max(axis=2)
    apart = largest.reshape(group, largest.shape[0] // group, largest.shape[1])
    return np.asarray(apart.transpose(0, 2, 1) if outputs_first else apart)


def _factors(pairs: list[tuple[onnx_ir.Node, onnx_ir.Node]], *, powers_of_two: bool) -> list[Array]:
    """By which each pair's channels are divided before and multiplied after. A layer may be the second of one pair and the first of another."""
    sizes = {node: _sizes(node) for pair in pairs for node in pair}
    factors = [np.ones(sizes[after].shape[0] * sizes[after].shape[1]) for _, after in pairs]
    for _ in range(_ROUNDS):
        moved = 0.0
        for index, (before, after) in enumerate(pairs):
            made, read = sizes[before].max(axis=1).ravel(), sizes[after].max(axis=2).ravel()
            alive = (made > 0) & (read > 0)
            factor = np.sqrt(np.where(alive, made, 1) / np.where(alive, read, 1))
            factor = np.exp2(np.rint(np.log2(factor))) if powers_of_two else factor
            factor = np.clip(factors[index] * factor, 1 / _GREATEST, _GREATEST) / factors[index]
            factors[index] = factors[index] * factor
            sizes[before] = sizes[before] / factor.reshape(sizes[before].shape[0], 1, -1)
            sizes[after] = sizes[after] * factor.reshape(*sizes[after].shape[:2], 1)
            moved = max(moved, float(np.abs(np.log(factor)).max()))
        if moved < _SETTLED:
            break
    return factors
