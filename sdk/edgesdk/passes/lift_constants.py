"""Constants that lie in nodes become initializers, where every other pass and onnxruntime's memory mapping look for them."""

from onnx_ir.passes import common

from edgesdk import graph
from edgesdk.graph import Model


def lift_constants(model: Model) -> Model:
    """Constant nodes, subgraphs' too, become initializers under the same name. One that is an output stays a node."""
    lifted = graph.clone(model)
    if any("sparse_value" in node.attributes for node in graph.nodes(lifted) if node.op_type == "Constant"):
        return lifted  # onnx_ir's pass gives up at these
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
    return lifted
