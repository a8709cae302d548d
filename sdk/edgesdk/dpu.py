"""Where the Vitis DPU computes something else than ONNX says, and how a model says it.

The DPU has no division and no exponential. It multiplies by whole numbers and shifts: a mean of nine is a sum times 7, shifted by 6.
A file for it keeps ONNX's operator and multiplies its answer by a constant near 1, the *correction*, which the operator on the
board includes. Facts from AMD Quark 0.13 (`onnx_xint8_simulate`, `onnx_split_large_kernel_pool`).
"""

from math import ceil, ldexp, log2

import numpy as np
import onnx_ir

from edgesdk import graph

HARD_SIGMOID = 2731, 14  # a sixth is 2731 / 2^14
SIXTH = 1 / 6
LEAKY_UNIT = 256  # slopes are whole numbers of 1/256
LARGEST_POOL = 512  # places that one pooling kernel may cover
WIDEST_CORRECTED = 255  # a pool with a longer side is left alone

POOLS = ("AveragePool", "GlobalAveragePool")
CORRECTED = ("HardSigmoid", *POOLS)
_KNOWN_RECIPROCALS = {9: (7, 6), 25: (10, 8), 36: (7, 8), 49: (21, 10), 196: (21, 12)}  # of square kernels


def reciprocal(places: int) -> tuple[int, int]:
    """The factor and the shift by which a mean over so many places is computed: 1/places ≈ factor / 2^shift.

    >>> reciprocal(9), reciprocal(64)
    ((7, 6), (1, 6))
    """
    if places in _KNOWN_RECIPROCALS:
        return _KNOWN_RECIPROCALS[places]
    shifts = range(7 + ceil(log2(places)))
    shift = min(shifts, key=lambda bits: abs(round(2**bits / places) / 2**bits - 1 / places))
    return round(2**shift / places), shift


def fixed_reciprocal(node: onnx_ir.Node) -> tuple[int, int] | None:
    """The factor and shift of a pool that the DPU computes with one: a square kernel. None of any other operator or kernel."""
    kernel = pooled(node)
    if kernel is None or kernel[0] != kernel[1] or not 0 < kernel[0] <= WIDEST_CORRECTED:
        return None
    return reciprocal(kernel[0] * kernel[1])


def pooled(node: onnx_ir.Node) -> tuple[int, int] | None:
    """The height and width over which a pool averages, where they are known."""
    if node.domain or node.op_type not in POOLS:
        return None
    if node.op_type == "AveragePool":
        kernel = node.attributes["kernel_shape"].as_ints() if "kernel_shape" in node.attributes else ()
        return (int(kernel[0]), int(kernel[1])) if len(kernel) == 2 else None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
        return None
    return shape[2], shape[3]


def is_hard_sigmoid(node: onnx_ir.Node | None) -> bool:
    """Whether it is the one that the DPU has: clip(x/6 + 1/2, 0, 1)."""
    if node is None or node.domain or node.op_type != "HardSigmoid":
        return False
    alpha, beta = (node.attributes[name].as_float() if name in node.attributes else usual for name, usual in (("alpha", 0.2), ("beta", 0.5)))
    return abs(alpha - SIXTH) < 1e-6 and abs(beta - 0.5) < 1e-6


def slope(node: onnx_ir.Node) -> float:
    """Of a LeakyRelu."""
    return node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01


def correction(node: onnx_ir.Node) -> float | None:
    """By what the node's answer has to be multiplied to be the DPU's; None where it is that already, or the DPU has no such operator."""
    if is_hard_sigmoid(node):
        factor, shift = HARD_SIGMOID
        return ldexp(factor, -shift) / SIXTH
    fixed, kernel = fixed_reciprocal(node), pooled(node)
    if fixed is None or kernel is None:
        return None
    corrected = ldexp(kernel[0] * kernel[1] * fixed[0], -fixed[1])
    return None if corrected == 1 else corrected


def correcting(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The Mul that alone reads the node's answer and makes it the DPU's."""
    if node.domain or node.op_type not in CORRECTED or len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    after = next(iter(node.outputs[0].uses())).node
    if after.op_type != "Mul" or after.domain or after.graph is not node.graph:
        return None
    other = after.inputs[1] if after.inputs[0] is node.outputs[0] else after.inputs[0]
    number, wanted = graph.constant(other), correction(node)
    return after if number is not None and number.size == 1 and wanted is not None and float(number.reshape(())) == float(np.float32(wanted)) else None


def is_swish(node: onnx_ir.Node) -> bool:
    """Whether a Mul reads a tensor of which the DPU computes the hard sigmoid too."""
    return any(is_hard_sigmoid(use.node) for value in node.inputs if value is not None for use in value.uses())
