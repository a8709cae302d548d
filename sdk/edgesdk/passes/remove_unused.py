"""What no output depends on goes, and with it what exporters note beside nodes: stack traces, paths of somebody's machine."""

from onnx_ir.passes import common

from edgesdk import graph
from edgesdk.graph import Model


def remove_unused(model: Model) -> Model:
    """No unused nodes, initializers, functions or operator sets; no doc strings or metadata below the model's own. Inputs stay."""
    slim = graph.clone(model)
    common.RemoveUnusedNodesPass()(slim)
    common.RemoveUnusedFunctionsPass()(slim)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(slim)
    for node in graph.nodes(slim):
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.doc_string = None
            value.metadata_props.clear()
    return slim
