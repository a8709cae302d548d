"""The mean over height and width is GlobalAveragePool, which has kernels in blocked layouts, in 8 bits and on accelerators."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model
from edgesdk.passes._rewiring import take_place

FIRST_OPSET = 13  # of Squeeze whose axes are an input


def recognise_global_pool(model: Model) -> Model:
    """ReduceMean over the last two of four axes becomes GlobalAveragePool, and a Squeeze where the axes were not kept."""
    if graph.opset(model) < FIRST_OPSET or not any(node.op_type == "ReduceMean" for node in model.graph):
        return model
    known = graph.clone(model)
    graph.infer_shapes(known)
    for node in list(known.graph):
        if node.op_type == "ReduceMean" and not node.domain and _axes(node) == [2, 3]:
            _replace(node)
    return known


def _axes(node: onnx_ir.Node) -> list[int] | None:
    value = node.inputs[0]
    if value is None or value.shape is None or len(value.shape) != 4 or value.dtype != onnx_ir.DataType.FLOAT or 0 in value.shape:
        return None
    given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = given.tolist() if given is not None else node.attributes["axes"].as_ints() if "axes" in node.attributes else ()
    return sorted(axis % 4 for axis in axes)


def _replace(node: onnx_ir.Node) -> None:
    value, inside = node.inputs[0], node.graph
    if value is None or value.shape is None or not isinstance(inside, onnx_ir.Graph):
        return
    made = onnx_ir.node("GlobalAveragePool", [value], name=graph.fresh(inside, f"{node.name}_pool"))
    made.outputs[0].type, made.outputs[0].shape = value.type, onnx_ir.Shape([*list(value.shape)[:2], 1, 1])
    inside.insert_before(node, made)
    if "keepdims" not in node.attributes or node.attributes["keepdims"].as_int():
        take_place(made, node)
        return
    made.outputs[0].name = graph.fresh(inside, f"{node.outputs[0].name}_pooled")
    axes = graph.add_constant(inside, f"{node.name}_axes", np.array([2, 3]))
    squeeze = onnx_ir.node("Squeeze", [made.outputs[0], axes], name=graph.fresh(inside, f"{node.name}_squeeze"))
    inside.insert_before(node, squeeze)
    take_place(squeeze, node)
