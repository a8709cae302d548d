"""What no output depends on goes, and with it what exporters note beside nodes: stack traces, paths of somebody's machine.

So do shapes of tensors inside that are not fixed: runtimes infer them themselves. Where equal letters stand in both shapes, onnxruntime
makes Add and LayerNormalization one SkipLayerNormalization, whose kernel is slower than the two (measured on MiniLM, x86-64: 102 µs, not 23).
"""

from onnx_ir.passes import common

from edgesdk import graph
from edgesdk.graph import Model


def remove_unused(model: Model) -> Model:
    """No unused nodes, initializers, functions or operator sets; no doc strings, metadata or open shapes below the model's own. Inputs stay."""
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
            if value.shape is not None and not value.shape.is_static() and not value.is_graph_output() and not node.domain:
                value.shape = None
    return slim
