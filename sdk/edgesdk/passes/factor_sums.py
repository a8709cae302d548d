"""`x + x · g` is `x · (1 + g)`: where g is one number a channel, a pass over the whole tensor less."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model
from edgesdk.passes._rewiring import is_private, take_place


def factor_sums(model: Model) -> Model:
    """A tensor of images, added to its own product with a gate of height and width 1, is multiplied by the gate plus one."""
    if not {"Add", "Mul"} <= {node.op_type for node in model.graph}:
        return model
    factored = graph.clone(model)
    graph.infer_shapes(factored)
    for node in list(factored.graph):
        if node.op_type == "Add" and not node.domain:
            _factor(node)
    return factored


def _factor(node: onnx_ir.Node) -> None:
    inside = node.graph
    for value, product in (node.inputs, reversed(node.inputs)):
        gated = product.producer() if product is not None and is_private(product) else None
        if value is None or gated is None or gated.op_type != "Mul" or gated.domain or gated.graph is not inside or value not in gated.inputs:
            continue
        gate = gated.inputs[1 - list(gated.inputs).index(value)]
        if gate is None or not _is_gate(gate, value) or not isinstance(inside, onnx_ir.Graph):
            continue
        one = graph.add_constant(inside, f"{node.name}_one", np.ones((), np.float32))
        plus = onnx_ir.node("Add", [gate, one], name=graph.fresh(inside, f"{node.name}_gate"))
        plus.outputs[0].name, plus.outputs[0].shape, plus.outputs[0].type = graph.fresh(inside, f"{gate.name}_plus_one"), gate.shape, gate.type
        inside.insert_before(gated, plus)
        gated.replace_input_with(list(gated.inputs).index(gate), plus.outputs[0])
        take_place(gated, node)
        return


def _is_gate(gate: onnx_ir.Value, value: onnx_ir.Value) -> bool:
    if gate is value or gate.dtype != onnx_ir.DataType.FLOAT or gate.shape is None or value.shape is None:
        return False
    return len(gate.shape) == len(value.shape) == 4 and list(gate.shape)[2:] == [1, 1] and list(value.shape)[2:] != [1, 1]
