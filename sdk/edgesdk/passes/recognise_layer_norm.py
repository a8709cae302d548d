"""Mean, deviation and division, node by node, are LayerNormalization: one kernel, and one place for a quantizer to leave in float."""

import math

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._rewiring import drop_unused, is_private, take_place

FIRST_OPSET = 17


def recognise_layer_norm(model: Model) -> Model:
    """`(x − mean) / sqrt(variance + ε)` over the last axes, and the factors and summands after it, become LayerNormalization.

    The lengths of those axes have to be known. Below opset 17 there is no such operator, and nothing is done.
    """
    if graph.opset(model) < FIRST_OPSET or not any(node.op_type == "ReduceMean" for node in model.graph):
        return model
    known = graph.clone(model)
    graph.infer_shapes(known)
    for node in list(known.graph):
        if node.op_type == "Div" and not node.domain and node.graph is known.graph:
            _recognise(node)
    return known


def _recognise(division: onnx_ir.Node) -> None:
    inside = division.graph
    value, axes = _centred(division.inputs[0])
    epsilon = _epsilon(division.inputs[1], value, axes)
    if value is None or value.shape is None or value.dtype != onnx_ir.DataType.FLOAT or epsilon is None or not isinstance(inside, onnx_ir.Graph):
        return
    lengths = [length for length in list(value.shape)[-len(axes) :] if isinstance(length, int)]
    if len(lengths) < len(axes):
        return
    last, parts = division, [np.ones(lengths, np.float32)]
    for operator in ("Mul", "Add"):
        after = next(iter(last.outputs[0].uses())).node if is_private(last.outputs[0]) else None
        constant = _operand(after, last.outputs[0], parts[0].shape) if after is not None and after.op_type == operator and after.graph is inside else None
        if after is not None and constant is not None:
            last, parts = after, [constant] if operator == "Mul" else [*parts, constant]
    inputs = [value, *(graph.add_constant(inside, f"{division.name}_{name}", array) for name, array in zip(("scale", "shift"), parts, strict=False))]
    made = onnx_ir.node("LayerNormalization", inputs, {"axis": -len(axes), "epsilon": epsilon}, name=graph.fresh(inside, f"{division.name}_layer_norm"))
    inside.insert_before(last, made)
    given = list(last.inputs)
    take_place(made, last)
    drop_unused(given)


def _centred(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value | None, tuple[int, ...]]:
    """The x and the axes of ``x − mean(x)``."""
    node = _producer(value, "Sub")
    if node is None or node.inputs[0] is None:
        return None, ()
    of, axes = _mean(node.inputs[1])
    return (of, axes) if of is node.inputs[0] else (None, ())


def _mean(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value | None, tuple[int, ...]]:
    """What it is the mean of, over which last axes, counted from the end."""
    node = _producer(value, "ReduceMean")
    of = node.inputs[0] if node is not None else None
    if node is None or of is None or of.shape is None or ("keepdims" in node.attributes and not node.attributes["keepdims"].as_int()):
        return None, ()
    given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = given.tolist() if given is not None else list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else []
    rank = len(of.shape)
    counted = tuple(sorted(axis % rank - rank for axis in axes))
    return (of, counted) if counted and counted == tuple(range(-len(counted), 0)) else (None, ())


def _epsilon(value: onnx_ir.Value | None, of: onnx_ir.Value | None, axes: tuple[int, ...]) -> float | None:
    """The ε of ``sqrt(mean((x − mean(x))²) + ε)``."""
    root = _producer(value, "Sqrt")
    added = _producer(root.inputs[0], "Add") if root is not None else None
    if added is None or of is None:
        return None
    for variance, constant in (added.inputs, reversed(added.inputs)):
        epsilon = graph.constant(constant)
        square, over = _mean(variance)
        if epsilon is not None and epsilon.size == 1 and over == axes and _squared(square) == (of, axes):
            number = float(epsilon.reshape(()))
            return number if number >= 0 and math.isfinite(number) else None
    return None


def _squared(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value | None, tuple[int, ...]]:
    """The x and the axes of ``(x − mean(x))²``, as Pow or as a product."""
    power, product = _producer(value, "Pow"), _producer(value, "Mul")
    if power is not None:
        exponent = graph.constant(power.inputs[1])
        return _centred(power.inputs[0]) if exponent is not None and exponent.size == 1 and exponent.reshape(()) == 2 else (None, ())
    if product is None:
        return None, ()
    first, second = (_centred(each) for each in product.inputs)
    return first if first == second else (None, ())


def _operand(node: onnx_ir.Node, value: onnx_ir.Value, shape: tuple[int, ...]) -> Array | None:
    """The constant that the node adds to or multiplies the value with, if there is one number of it for each that is normalized."""
    if node.domain:
        return None
    for given, other in (node.inputs, reversed(node.inputs)):
        array = graph.constant(other)
        if given is value and array is not None and array.dtype == np.float32 and array.size == math.prod(shape) and array.ndim <= len(value.shape or ()):
            stripped = array.shape[max(array.ndim - len(shape), 0) :]
            return array.reshape(shape) if shape[len(shape) - len(stripped) :] == stripped else None
    return None


def _producer(value: onnx_ir.Value | None, operator: str) -> onnx_ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator and not node.domain else None
