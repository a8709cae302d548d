"""Flatten, Softmax, Reshape back: how onnx's converter says the Softmax of opsets below 13. Along the last axis today's says it alone."""

import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model
from edgesdk.passes._rewiring import take_place


def recognise_softmax(model: Model) -> Model:
    """Softmax and LogSoftmax of a tensor flattened before and given its shape back after read the tensor itself."""
    if not any(node.op_type == "Flatten" for node in model.graph):
        return model
    known = graph.clone(model)
    graph.infer_shapes(known)
    for node in list(known.graph):
        if node.op_type == "Reshape" and not node.domain:
            _unwrap(node)
    return known


def _unwrap(reshape: onnx_ir.Node) -> None:
    softmax = _producer(reshape, ("Softmax", "LogSoftmax"))
    flatten = None if softmax is None else _producer(softmax, ("Flatten",))
    value = None if flatten is None else flatten.inputs[0]
    if softmax is None or flatten is None or value is None or value.shape is None or not _is_shape_of(reshape.inputs[1], value):
        return
    rank = len(value.shape)
    axis = flatten.attributes["axis"].as_int() if "axis" in flatten.attributes else 1
    along = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    if axis % rank != rank - 1 or along not in (1, -1):
        return
    softmax.replace_input_with(0, value)
    softmax.attributes["axis"] = onnx_ir.AttrInt64("axis", -1)
    take_place(softmax, reshape)
    softmax.outputs[0].shape = value.shape if not softmax.outputs[0].is_graph_output() else softmax.outputs[0].shape


def _producer(node: onnx_ir.Node, operators: tuple[str, ...]) -> onnx_ir.Node | None:
    value = node.inputs[0]
    before = value.producer() if value is not None and len(value.uses()) == 1 and not value.is_graph_output() else None
    return before if before is not None and before.op_type in operators and not before.domain and before.graph is node.graph else None


def _is_shape_of(shape: onnx_ir.Value | None, value: onnx_ir.Value) -> bool:
    given = graph.constant(shape)
    if given is not None:
        return value.shape is not None and value.shape.is_static() and list(value.shape) == given.tolist()
    node = shape.producer() if shape is not None else None
    return node is not None and node.op_type == "Shape" and not node.domain and node.inputs[0] is value and not {"start", "end"} & set(node.attributes)
