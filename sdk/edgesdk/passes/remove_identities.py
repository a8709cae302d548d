"""Nodes that answer what they are given are taken out of the way."""

from collections.abc import Callable

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model


def remove_identities(model: Model) -> Model:
    """Identity, and what amounts to it: Dropout at inference, a Cast to the same type, × 1, + 0 …

    Of two Transposes, Reshapes or Casts after one another that are as good as one, the second reads what the first does. Squeeze and
    Unsqueeze of the same axes cancel.
    """
    slim = graph.clone(model)
    graph.infer_shapes(slim)
    for node in list(graph.nodes(slim)):
        _join(node)
        if not node.domain and node.inputs and node.inputs[0] is not None and _IDENTITIES.get(node.op_type, _never)(node):
            _take_out(node, node.inputs[0])
        elif (undone := _undone(node)) is not None:
            _take_out(node, undone)
    return slim


def _take_out(node: onnx_ir.Node, value: onnx_ir.Value) -> None:
    """Users read the value instead. Where the output is the graph's, the value takes its name, if it is free to."""
    output, inside = node.outputs[0], node.graph
    if inside is None or any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
        return
    if output.is_graph_output():
        producer = value.producer()
        if producer is None or producer.graph is not inside or value.is_graph_output() or _seen_in_subgraph(value, inside):
            return
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        name, shape, kind = output.name, output.shape, output.type
        output.name = None
        value.name, value.shape, value.type = name, shape or value.shape, kind or value.type
    else:
        output.replace_all_uses_with(value)
    inside.remove(node, safe=True)


def _seen_in_subgraph(value: onnx_ir.Value, inside: onnx_ir.Graph | onnx_ir.Function) -> bool:
    return any(use.node.graph is not inside for use in value.uses())


def _join(node: onnx_ir.Node) -> None:
    """Skip the node before, if this one can do the work of both."""
    before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if before is None or before.domain or node.domain or before.graph is not node.graph or not before.inputs or before.inputs[0] is None:
        return
    if node.op_type == before.op_type == "Transpose" and "perm" in before.attributes and "perm" in node.attributes:
        first, second = before.attributes["perm"].as_ints(), node.attributes["perm"].as_ints()
        node.attributes["perm"] = onnx_ir.AttrInt64s("perm", [first[axis] for axis in second])
        node.replace_input_with(0, before.inputs[0])
    elif (node.op_type == "Reshape" and before.op_type in _RESHAPING and _says_all(node)) or (
        node.op_type == before.op_type == "Cast" and _holds(before.outputs[0].dtype, before.inputs[0].dtype)
    ):
        node.replace_input_with(0, before.inputs[0])


def _says_all(reshape: onnx_ir.Node) -> bool:
    """Whether its shape stands for itself: a zero means the length that there was."""
    shape = graph.constant(reshape.inputs[1])
    return shape is not None and bool(shape.all())


def _holds(wide: onnx_ir.DataType | None, narrow: onnx_ir.DataType | None) -> bool:
    """Whether one type has all the numbers of the other."""
    if wide is None or narrow is None or not {wide, narrow} <= _NUMBERS:
        return False
    return bool(np.can_cast(narrow.numpy(), wide.numpy(), "safe")) and (narrow, wide) not in _ROUNDED


def _undone(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """What a Squeeze gives back if it removes just the axes that the Unsqueeze before it put in; and the other way round."""
    before = node.inputs[0].producer() if node.op_type in _OPPOSITE and node.inputs and node.inputs[0] is not None else None
    if before is None or before.op_type != _OPPOSITE[node.op_type] or before.domain or node.domain or before.graph is not node.graph:
        return None
    first, second = (graph.constant(each.inputs[1]) if len(each.inputs) > 1 else None for each in (before, node))
    if first is None or second is None or first.tolist() != second.tolist() or not (first >= 0).all():
        return None
    return before.inputs[0]


def _never(_node: onnx_ir.Node) -> bool:
    return False


def _is_inference_dropout(node: onnx_ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return training is None or ((flag := graph.constant(training)) is not None and not flag.any())


def _is_same_type(node: onnx_ir.Node) -> bool:
    value = node.inputs[0]
    return value is not None and value.dtype is not None and "to" in node.attributes and value.dtype == node.attributes["to"].as_int()


def _is_same_order(node: onnx_ir.Node) -> bool:
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else ()
    return bool(perm) and list(perm) == sorted(perm)


def _is_same_shape(node: onnx_ir.Node) -> bool:
    given, made = node.inputs[0], node.outputs[0]
    if given is None or given.shape is None or made.shape is None or made.is_graph_output():  # what a file claims of its outputs may be wrong
        return False
    return given.shape.is_static() and made.shape.is_static() and given.shape == made.shape


def _is_neutral(number: float, *, either_side: bool) -> Callable[[onnx_ir.Node], bool]:
    """Whether the operand is that number."""

    def neutral(node: onnx_ir.Node) -> bool:
        if either_side and _is_number(node.inputs[0], number, beside=node.inputs[1]):
            for place, value in enumerate((node.inputs[1], node.inputs[0])):  # both operators commute; the node may have to stay
                node.replace_input_with(place, value)
            return node.inputs[0] is not None
        return _is_number(node.inputs[1], number, beside=node.inputs[0])

    return neutral


def _is_number(value: onnx_ir.Value | None, number: float, *, beside: onnx_ir.Value | None) -> bool:
    """Whether it is that number alone, without more dimensions than the tensor beside it: it would add them."""
    array = graph.constant(value)
    if array is None or array.size != 1 or array.reshape(()) != number:
        return False
    return array.ndim == 0 or (beside is not None and beside.shape is not None and len(beside.shape) >= array.ndim)


def _has_one_input(node: onnx_ir.Node) -> bool:
    return len(node.inputs) == 1


_OPPOSITE = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}
_RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_INTEGERS = {onnx_ir.DataType[name] for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")}
_NUMBERS = _INTEGERS | {onnx_ir.DataType.BOOL, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE}
_ROUNDED = {(onnx_ir.DataType[name], onnx_ir.DataType.DOUBLE) for name in ("INT64", "UINT64")}  # numpy calls these safe

_IDENTITIES: dict[str, Callable[[onnx_ir.Node], bool]] = {
    "Identity": _has_one_input,
    "Dropout": _is_inference_dropout,
    "Cast": _is_same_type,
    "Transpose": _is_same_order,
    "Reshape": _is_same_shape,
    "Expand": _is_same_shape,
    "Flatten": _is_same_shape,
    "Squeeze": _is_same_shape,
    "Unsqueeze": _is_same_shape,
    "Concat": _has_one_input,
    "Sum": _has_one_input,
    "Max": _has_one_input,
    "Min": _has_one_input,
    "Mean": _has_one_input,
    "Mul": _is_neutral(1, either_side=True),
    "Div": _is_neutral(1, either_side=False),
    "Add": _is_neutral(0, either_side=True),
    "Sub": _is_neutral(0, either_side=False),
}
