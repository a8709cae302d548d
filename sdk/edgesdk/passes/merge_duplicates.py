"""The same thing is kept, and computed, once."""

from onnx_ir.passes import common

from edgesdk import graph
from edgesdk.graph import Model

MERGED_ELEMENTS = 1 << 16  # larger initializers are seldom equal, and are not compared
_VARYING = {"Bernoulli", "Dropout"}  # answer otherwise each time, which onnx_ir's pass does not know of these


def merge_duplicates(model: Model) -> Model:
    """Equal initializers become one, then nodes that compute the same of the same."""
    if any(node.op_type in _VARYING or node.domain for node in graph.nodes(model)):
        return model
    slim = graph.clone(model)
    outer = slim.graph
    if not any(value.is_graph_input() or value.is_graph_output() for value in outer.initializers.values()):
        common.DeduplicateInitializersPass(size_limit=MERGED_ELEMENTS)(slim)
    claimed = [(value.shape, value.type) for value in outer.outputs]
    common.CommonSubexpressionEliminationPass()(slim)
    for value, (shape, kind) in zip(outer.outputs, claimed, strict=True):  # a node that takes over an output's name may know less of it
        value.shape, value.type = value.shape or shape, value.type or kind
    return slim
