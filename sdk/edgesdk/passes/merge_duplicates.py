"""The same thing is kept, and computed, once."""

import onnx_ir
from onnx_ir.passes import common

from edgesdk import graph
from edgesdk.graph import Model

MERGED_ELEMENTS = 1 << 16  # larger initializers are seldom equal, and are not compared
_VARYING = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}  # answer otherwise each time


def merge_duplicates(model: Model) -> Model:
    """Equal initializers become one, then nodes that compute the same of the same. What the graph answers keeps a node of its own."""
    if any(node.op_type in _VARYING or node.domain for node in graph.nodes(model)):
        return model
    slim = graph.clone(model)
    outer = slim.graph
    if not any(value.is_graph_input() or value.is_graph_output() for value in outer.initializers.values()):
        common.DeduplicateInitializersPass(size_limit=MERGED_ELEMENTS)(slim)
    first: dict[tuple[object, ...], onnx_ir.Node] = {}
    for node in list(outer):
        key = _what(node)
        if key is None or first.setdefault(key, node) is node or any(value.is_graph_output() for value in node.outputs):
            continue
        for value, same in zip(node.outputs, first[key].outputs, strict=True):
            value.replace_all_uses_with(same)
        outer.remove(node, safe=True)
    return slim


def _what(node: onnx_ir.Node) -> tuple[object, ...] | None:
    """What it computes of what; None for what is not compared: subgraphs and large constants."""
    settings: list[tuple[object, ...]] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS):
            return None
        if attribute.type == onnx_ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.size > MERGED_ELEMENTS:
                return None
            settings.append((name, str(tensor.dtype), tuple(tensor.shape), tensor.tobytes()))
        else:
            settings.append((name, str(attribute.type), repr(attribute.value)))
    return node.op_type, len(node.outputs), tuple(node.inputs), tuple(settings)
