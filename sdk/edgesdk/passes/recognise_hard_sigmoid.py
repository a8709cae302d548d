"""`clip(a · x + b, 0, c) / c`, in whatever order an exporter wrote it, is HardSigmoid. onnxruntime fuses it into the convolution before."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model
from edgesdk.passes import _affine
from edgesdk.passes._affine import number
from edgesdk.passes._linear import is_linear
from edgesdk.passes._rewiring import drop_unused, is_private, take_place


def recognise_hard_sigmoid(model: Model) -> Model:
    """Clips of a multiple of x between zero and one, or of what a constant factor makes one of, become HardSigmoid.

    Clip(a · x + b, 0, 1) of a convolution stays: a and b go into its weights, and the Clip costs nothing.
    """
    if not any(node.op_type in ("Clip", "Min") for node in model.graph):
        return model
    known = graph.clone(model)
    graph.infer_shapes(known)
    for node in list(known.graph):
        if node.graph is known.graph and not node.domain and node.op_type in ("Mul", "Div", "Clip", "Min"):
            _recognise(node)
    return known


def _recognise(node: onnx_ir.Node) -> None:
    """Replace the node if it is the last step of one."""
    factor = 1.0
    clip: onnx_ir.Node | None = node
    if node.op_type in ("Mul", "Div"):
        after = _affine.of(node)
        if after is None or after.scale.size > 1 or after.shift.any():
            return
        factor, clip = float(after.scale[0]), after.source.producer()
    clipped = _clipped(clip) if clip is not None and clip.graph is node.graph else None
    if clipped is None or not np.isclose(factor * clipped[1], 1, rtol=1e-6, atol=0):
        return
    value, inside = clipped[0], node.graph
    before = value.producer()
    affine = _affine.of(before) if before is not None and before.graph is inside else None
    if affine is None or affine.scale.size > 1 or affine.shift.size > 1:
        if clip is node:
            return  # a Clip of its own
        alpha, beta, source = factor, 0.0, value
    else:
        alpha, beta, source = factor * float(affine.scale[0]), factor * float(affine.shift[0]), affine.source
        linear = source.producer()
        if clip is node and linear is not None and is_linear(linear) and is_private(source):
            return
    if inside is None or source.dtype != onnx_ir.DataType.FLOAT:
        return
    made = onnx_ir.node("HardSigmoid", [source], {"alpha": alpha, "beta": beta}, name=f"{node.name}_hard_sigmoid")
    inside.insert_before(node, made)
    given = list(node.inputs)
    take_place(made, node)
    drop_unused(given)


def _clipped(node: onnx_ir.Node) -> tuple[onnx_ir.Value, float] | None:
    """x and c, where the node answers clip(x, 0, c), as Clip or as Min of Relu."""
    value = node.inputs[0] if node.inputs else None
    if node.domain or value is None:
        return None
    if node.op_type == "Clip" and len(node.inputs) == 3:
        top = number(node.inputs[2])
        return (value, top) if number(node.inputs[1]) == 0 and top is not None and top > 0 else None
    if node.op_type != "Min" or len(node.inputs) != 2:
        return None
    for relu, top in ((value, number(node.inputs[1])), (node.inputs[1], number(value))):
        inner = relu.producer() if relu is not None else None
        if inner is not None and inner.op_type == "Relu" and not inner.domain and inner.graph is node.graph and inner.inputs[0] is not None and top and top > 0:
            return inner.inputs[0], top
    return None
