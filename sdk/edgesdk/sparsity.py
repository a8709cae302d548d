"""2:4 sparsity: of four consecutive weights along what a product sums over at least two are zero, and the hardware skips them.

    [str(weight.node.name) for weight in weights(model) if not weight.obeys]

Which four is TensorRT's rule ("Developer Guide", "Structured Sparsity"; Polygraphy's `surgeon prune` reads files so): a Conv's along the
input channels, for each output channel and each place of the kernel; a Gemm's and a MatMul's along K. In an 8-bit file a weight is zero
where its integer is the zero point.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model

OF = 4
KEPT = 2


@dataclass(frozen=True)
class Weight:
    """Constant weights of a node outside subgraphs, whose length along ``axis`` is a multiple of four."""

    node: onnx_ir.Node
    values: Array  # floats, or integers less their zero point
    axis: int

    @property
    def obeys(self) -> bool:
        last = np.moveaxis(self.values, self.axis, -1)
        return bool((np.count_nonzero(last.reshape(-1, OF), axis=1) <= KEPT).all())


def weights(model: Model) -> Iterator[Weight]:
    """Those that can be 2:4 sparse, in the graph's order."""
    for node in model.graph:
        if (axis := _axis(node)) is None or (values := _values(node.inputs[1])) is None:
            continue
        if (values.ndim == 2 or node.op_type == "Conv") and values.size and values.shape[axis] % OF == 0:
            yield Weight(node, values, axis)


def _axis(node: onnx_ir.Node) -> int | None:
    """Of the weights, along which the node sums; None if it is no such node."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul") or ("transA" in node.attributes and node.attributes["transA"].as_int()):
        return None
    if node.op_type == "Conv":
        return 1
    return 1 if "transB" in node.attributes and node.attributes["transB"].as_int() else 0


def _values(value: onnx_ir.Value | None) -> Array | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or producer.domain:
        return graph.constant(value)
    integers = graph.constant(producer.inputs[0])
    zero_point = graph.constant(producer.inputs[2]) if len(producer.inputs) > 2 else None
    if integers is None or zero_point is None or not zero_point.ndim:
        return integers if integers is None or zero_point is None else integers.astype(np.int64) - zero_point
    axis = producer.attributes["axis"].as_int() if "axis" in producer.attributes else 1
    return integers.astype(np.int64) - zero_point.reshape([-1 if place == axis % integers.ndim else 1 for place in range(integers.ndim)])
