"""A factor for each channel of a tensor, moved from what makes the tensor into what reads it: x becomes x / s, and weights W become W · s.

The function stays exactly what it was where the factors are powers of two, and up to float32's rounding where they are not.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array
from edgesdk.passes._linear import absorb, channels, is_linear

# f(x · s) = f(x) · s for a positive s; of the second, channel by channel where channels are axis 1.
_HOMOGENEOUS = {"Relu", "LeakyRelu", "Identity"}
_HOMOGENEOUS_IMAGES = _HOMOGENEOUS | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "PRelu"}
_RESHAPING = {"Flatten", "Squeeze", "Reshape"}
_NORMS = {"LayerNormalization": -1, "BatchNormalization": 1}  # the axis of their channels

Constant = tuple[onnx_ir.Node, int, tuple[int, ...]]  # read by this node, in this place, and the shape in which factors lie along its channels


@dataclass(frozen=True)
class Source:
    """What makes a tensor: a node with numbers for each channel, and what is added afterwards."""

    node: onnx_ir.Node
    constants: tuple[Constant, ...]  # beside weights and bias of a linear node

    def divide(self, factors: Array) -> bool:
        """Make the tensor's channels that much smaller. False, and nothing is changed, where float32 does not hold the numbers."""
        inverse = 1 / factors.astype(np.float64)
        written = [(node, place, scaled(node, place, inverse.reshape(shape))) for node, place, shape in self.constants]
        if not all(np.isfinite(array).all() for _, _, array in written):
            return False
        if is_linear(self.node) and not absorb(self.node, inverse, np.zeros(1)):
            return False
        for node, place, array in written:
            write(node, place, array)
        return True


def source(value: onnx_ir.Value, axis: int, count: int) -> Source | None:
    """Of a tensor with ``count`` channels along ``axis`` (1, or -1 for the last), whose readers the caller sees to; shapes are known where they can be.

    None if there are no constants that could take up a factor for each channel.
    """
    constants: list[Constant] = []
    while (node := value.producer()) is not None and not node.domain:
        if is_linear(node):
            return Source(node, tuple(constants)) if (axis == 1 or node.op_type == "Gemm") and channels(node) == count else None
        found = _constants(node, axis, count)
        constants += found
        if found and node.op_type != "Add":
            return Source(node, tuple(constants))
        if found:
            given = node.inputs[1 - found[0][1]]
        elif node.op_type in (_HOMOGENEOUS_IMAGES if axis == 1 else _HOMOGENEOUS) or _keeps_channels(node, axis):
            given = node.inputs[0]
        else:
            return None
        if given is None or not read_once(given):
            return None
        value = given
    return None


def read_once(value: onnx_ir.Value) -> bool:
    """Whether one node alone reads it, once."""
    return len(value.uses()) == 1 and not value.is_graph_output() and not value.is_graph_input()


def write(node: onnx_ir.Node, place: int, array: Array) -> None:
    """The node reads this constant from now on; others that read the one before still do."""
    inside, before = node.graph, node.inputs[place]
    assert isinstance(inside, onnx_ir.Graph) and before is not None
    node.replace_input_with(place, graph.add_constant(inside, f"{before.name}_scaled", array))


def scaled(node: onnx_ir.Node, place: int, factors: Array) -> Array:
    """A constant that the node reads, times that."""
    array = graph.constant(node.inputs[place])
    assert array is not None
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array.astype(np.float64) * factors, np.float32)


def _constants(node: onnx_ir.Node, axis: int, count: int) -> list[Constant]:
    """Those of a normalization, a MatMul, a Mul or an Add that can differ by channel."""
    arrays = {place: array for place, value in enumerate(node.inputs) if (array := graph.constant(value)) is not None and array.dtype == np.float32}
    if _NORMS.get(node.op_type) == axis:
        plain = _is_plain_norm(node) and {array.shape for place, array in arrays.items() if place in (1, 2)} == {(count,)} and 1 in arrays
        return [(node, place, (-1,)) for place in (1, 2) if plain and place in arrays]
    if node.op_type == "MatMul":
        return [(node, 1, (-1,))] if axis == -1 and 1 in arrays and arrays[1].ndim == 2 and arrays[1].shape[1] == count else []
    if node.op_type not in ("Mul", "Add"):
        return []
    for place, array in arrays.items():
        given, made = _shape(node.inputs[1 - place]), _shape(node.outputs[0])
        if 1 - place not in arrays and array.ndim <= len(given) == len(made) > 1 and given[axis] == count:
            return [(node, place, (-1, *[1] * (len(given) - 2)) if axis == 1 else (-1,))]
    return []


def _is_plain_norm(node: onnx_ir.Node) -> bool:
    last = node.op_type == "BatchNormalization" or "axis" not in node.attributes or node.attributes["axis"].as_int() == -1
    training = "training_mode" in node.attributes and node.attributes["training_mode"].as_int() != 0
    asked = len(node.inputs) > 2 and node.inputs[2] is not None and graph.constant(node.inputs[2]) is None
    return last and not training and not asked and not any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:])


def _keeps_channels(node: onnx_ir.Node, axis: int) -> bool:
    """A reshaping between [n, channels, 1, 1] and [n, channels]."""
    if node.op_type not in _RESHAPING or axis != 1:
        return False
    given, made = _shape(node.inputs[0]), _shape(node.outputs[0])
    return len(given) > 1 and given[:2] == made[:2] and all(length == 1 for length in (*given[2:], *made[2:]))


def _shape(value: onnx_ir.Value | None) -> list[object]:
    """Lengths, as far as they are known; of unknown rank, none."""
    return [] if value is None or value.shape is None else list(value.shape)
