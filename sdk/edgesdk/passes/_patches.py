"""What a layer multiplies its weights with, as columns: patches of an image for a Conv, rows of a matrix for Gemm and MatMul.

A ConvTranspose multiplies the channels of one pixel, for each place of the kernel; LSTM, GRU and RNN the rows of what they are given.
"""

import numpy as np
import onnx_ir

from edgesdk.graph import Array

_GATES = ("LSTM", "GRU", "RNN")  # of which the weights of the input are meant, [directions, gates · hidden, input]


def matrix(node: onnx_ir.Node, weight: Array) -> Array:
    """Weights as [groups, outputs of a group, numbers in a column]."""
    if node.op_type == "Conv":
        return weight.reshape(_groups(node), weight.shape[0] // _groups(node), -1)
    if node.op_type == "ConvTranspose":
        return weight.reshape(_groups(node), weight.shape[0] // _groups(node), -1).swapaxes(1, 2)
    if node.op_type in _GATES:
        return weight.reshape(1, -1, weight.shape[2])
    return (weight if _transposed(node) else weight.T)[None]


def from_matrix(node: onnx_ir.Node, rows: Array, shape: tuple[int, ...]) -> Array:
    """`matrix`, the other way."""
    if node.op_type == "Conv" or node.op_type in _GATES:
        return rows.reshape(shape)
    if node.op_type == "ConvTranspose":
        return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(shape)
    return np.ascontiguousarray(rows[0] if _transposed(node) else rows[0].T)


def positions(node: onnx_ir.Node, weight: Array, given: tuple[int, ...]) -> int:
    """How many columns an input of that shape makes."""
    if node.op_type == "ConvTranspose":
        return given[0] * int(np.prod(given[2:]))
    if node.op_type != "Conv":
        return int(np.prod(given[:-1]))
    return given[0] * int(np.prod(_spatial(node, weight, given)[0]))


def picked(node: onnx_ir.Node, weight: Array, given: tuple[int, ...], most: int, samples: int, random: np.random.Generator) -> Array:
    """Which columns of an input of that shape are looked at, where all samples together are to give ``most``; at least four for each weight of an output."""
    there, each = positions(node, weight, given), -(-max(most, 4 * matrix(node, weight).shape[2]) // samples)
    return np.arange(there) if there <= each else np.sort(random.choice(there, each, replace=False))


def columns(node: onnx_ir.Node, weight: Array, given: Array, picked: Array) -> Array:
    """Those of an input's columns, float32 [groups, numbers in a column, picked]."""
    if node.op_type == "ConvTranspose":
        pixels = np.moveaxis(given, 1, -1).reshape(-1, given.shape[1])[picked]
        return np.ascontiguousarray(pixels.T).reshape(_groups(node), -1, len(picked))
    if node.op_type != "Conv":
        return np.ascontiguousarray(given.reshape(-1, given.shape[-1])[picked].T)[None]
    answered, strides, dilations, pads = _spatial(node, weight, given.shape)
    kernel = weight.shape[2:]
    padded = np.pad(given, [(0, 0), (0, 0), *pads])
    image, *places = np.unravel_index(picked, (given.shape[0], *answered))
    # [picked, kernel…] along each axis: where a patch's numbers lie.
    rank = len(kernel)
    where = [
        (place * stride).reshape(-1, *[1] * rank) + (np.arange(size) * dilation).reshape([1] + [-1 if axis == other else 1 for other in range(rank)])
        for axis, (place, stride, size, dilation) in enumerate(zip(places, strides, kernel, dilations, strict=True))
    ]
    patches = np.moveaxis(padded, 1, -1)[(image.reshape(-1, *[1] * rank), *where)]  # [picked, kernel…, channels]
    apart = patches.reshape(len(picked), -1, _groups(node), given.shape[1] // _groups(node))
    return np.ascontiguousarray(apart.transpose(2, 3, 1, 0).reshape(_groups(node), -1, len(picked)))


def _spatial(node: onnx_ir.Node, weight: Array, given: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
    """Lengths of the answer, strides, dilations, padding, by axis. From ONNX's Conv."""
    kernel, lengths = weight.shape[2:], given[2:]
    ones = [1] * len(kernel)
    strides, dilations = _integers(node, "strides", ones), _integers(node, "dilations", ones)
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    flat = _integers(node, "pads", [0] * 2 * len(kernel))
    pads = list(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if automatic.startswith("SAME"):
        missing = [max((-(-length // stride) - 1) * stride + span - length, 0) for length, stride, span in zip(lengths, strides, spans, strict=True)]
        pads = [(total // 2, total - total // 2) if automatic == "SAME_UPPER" else (total - total // 2, total // 2) for total in missing]
    elif automatic == "VALID":
        pads = [(0, 0)] * len(kernel)
    answered = [(length + sum(pad) - span) // stride + 1 for length, pad, span, stride in zip(lengths, pads, spans, strides, strict=True)]
    return answered, strides, dilations, pads


def _groups(node: onnx_ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _transposed(node: onnx_ir.Node) -> bool:
    return node.op_type == "Gemm" and "transB" in node.attributes and bool(node.attributes["transB"].as_int())


def _integers(node: onnx_ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default
