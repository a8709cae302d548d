"""What `quantize` and the ways to choose its scales have in common: the nodes to quantize, and what their integers mean."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array

MOVING = {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice"}  # answer some of what they are given, unchanged


@dataclass(frozen=True)
class Site:
    """A node to be quantized, with the tensors around it."""

    node: onnx_ir.Node
    data: tuple[int, ...]  # which inputs are activations
    constants: tuple[int, ...]  # which are constant operands; not weights and bias
    output: onnx_ir.Value | None  # what is quantized of its answer, after what it absorbs; None: it answers float32

    def operands(self) -> Iterator[tuple[int, Array]]:
        """The constant operands, with their places."""
        for place in self.constants:
            array = graph.constant(self.node.inputs[place])
            if array is not None:
                yield place, array


@dataclass(frozen=True)
class Grid:
    """What a tensor's integers mean: (q - zero_point) · scale, along an axis or for all of it."""

    scale: Array
    zero_point: Array
    axis: int | None = None

    def integers(self, values: Array) -> Array:
        """The nearest ones, saturated: symmetrically, where nought is nought, as TensorRT has it for weights."""
        shape = self._shape(values)
        limits = np.iinfo(self.zero_point.dtype)
        numbers = np.rint(values.astype(np.float64) / self.scale.astype(np.float64).reshape(shape)) + self.zero_point.astype(np.float64).reshape(shape)
        least = limits.min if self.zero_point.any() else max(limits.min, -limits.max)
        return np.clip(numbers, least, limits.max).astype(self.zero_point.dtype)

    def values(self, integers: Array) -> Array:
        """What they stand for."""
        shape = self._shape(integers)
        return np.asarray((integers.astype(np.float64) - self.zero_point.reshape(shape)) * self.scale.astype(np.float64).reshape(shape), np.float32)

    def _shape(self, array: Array) -> list[int]:
        """That lets the scales go along their axis."""
        shape = [1] * array.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return shape


@dataclass(frozen=True)
class Grids:
    """How everything around the sites becomes integers."""

    activations: dict[str, Grid]
    operand: Callable[[Site, int, Array], Grid]  # a constant operand, in its place
    weight: Callable[[Site, Array, Grid], Grid]  # given the input's
    bias: Callable[[Site, Array, Grid, Grid], Grid | None]  # given the input's and the weights'; None: it stays float32


def axis_of(node: onnx_ir.Node) -> int:
    """The weights' axis of output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
