"""A file for the Vitis DPU, evaluated in whole numbers as the hardware does: products are summed in 32 bits, shifted, rounded, saturated.

    evaluate(model, feeds)["conv_3_quantized"]      # int8, what the board would hold
    agreement(model, feeds).is_exact                # whether onnxruntime's float32 arithmetic gives the same, tensor by tensor

The integers begin where a tensor is first quantized and end where it is last read: what float32 operators between two such
parts answer (softmax, layer normalization: the board's processor computes them) is taken from onnxruntime, and so is the input.

Halves are rounded to even, as ONNX's QuantizeLinear says and AMD Quark's simulation does. AMD's quantizer for PyTorch rounds
activations half up instead (vai_q_pytorch, `"activation": {"round_mode": "half_up"}`), and which of them a board does is not
published: `Agreement.ties` counts the values that lie halfway, the only ones on which the two differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir

from edgesdk import graph, positions
from edgesdk.fixed_operators import OPERATORS, Fixed
from edgesdk.graph import Array, Feeds, Model

Rounding = Literal["half even", "half up"]

_FAR = 40  # a shift by which everything is 0 or saturated


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor on which onnxruntime and the integers disagree."""

    tensor: str  # what a QuantizeLinear answers
    values: int  # so many of them
    of: int
    most: int  # steps between the two, at most


@dataclass(frozen=True, slots=True)
class Agreement:
    """How onnxruntime's evaluation of a quantized file compares with the integers'."""

    tensors: int  # that the integers give; those that come out of float32 operators are not counted
    values: int
    ties: int  # values halfway between two integers, before rounding
    differences: tuple[Difference, ...]

    @property
    def is_exact(self) -> bool:
        return not self.differences


def evaluate(model: Model, feeds: Feeds, *, rounding: Rounding = "half even") -> dict[str, Array]:
    """The int8 tensors of a quantized file by name. Raises ModelError if it does not run on these feeds."""
    return {name: found.integers for name, found, _ in _evaluated(model, _quantized(model, feeds), rounding)}


def agreement(model: Model, feeds: Feeds) -> Agreement:
    """Compare every int8 tensor of the file, onnxruntime's graph optimizations off. Raises ModelError if it does not run on these feeds."""
    wanted = _quantized(model, feeds)
    found = [(name, one) for name, one, computed in _evaluated(model, wanted, "half even") if computed]
    differences = []
    for name, one in found:
        steps = np.abs(one.integers.astype(np.int16) - wanted[name].astype(np.int16))
        if steps.any():
            differences.append(Difference(name, int(np.count_nonzero(steps)), steps.size, int(steps.max())))
    return Agreement(len(found), sum(one.integers.size for _, one in found), sum(one.ties for _, one in found), tuple(differences))


def _quantized(model: Model, feeds: Feeds) -> dict[str, Array]:
    """What onnxruntime gives for every QuantizeLinear."""
    asking = graph.clone(model)
    made = [node.outputs[0] for node in asking.graph if node.op_type == "QuantizeLinear" and not node.domain]
    asking.graph.outputs.clear()
    for value in made:
        value.type = onnx_ir.TensorType(onnx_ir.DataType.INT8) if value.type is None else value.type
        asking.graph.outputs.append(value)
    return graph.run(graph.session(asking, optimize=False), feeds) if made else {}


@dataclass(frozen=True, slots=True)
class _Rounded:
    integers: Array
    ties: int = 0


def _evaluated(model: Model, given: dict[str, Array], rounding: Rounding) -> Iterator[tuple[str, _Rounded, bool]]:
    """Each int8 tensor in the order of the graph, and whether integers gave it; else it is the one given."""
    known = graph.clone(model)
    graph.infer_shapes(known)
    integers: dict[onnx_ir.Value, Array] = {}
    numbers: dict[onnx_ir.Value, Fixed] = {}
    for node in known.graph:
        if node.op_type == "QuantizeLinear" and not node.domain:
            name, answer = str(node.outputs[0].name), node.outputs[0]
            position, value = _position(node), numbers.get(_first(node))
            computed = position is not None and value is not None
            found = _rounded(value, position, rounding) if position is not None and value is not None else _Rounded(given[name])
            integers[answer] = found.integers
            yield name, found, computed
        elif node.op_type == "DequantizeLinear" and not node.domain:
            position = _position(node)
            held = integers.get(_first(node), graph.constant(node.inputs[0]))
            if position is not None and held is not None:
                numbers[node.outputs[0]] = Fixed(held.astype(np.int64), position)
        elif not node.domain and node.op_type in OPERATORS:
            made = OPERATORS[node.op_type](node, [None if value is None else numbers.get(value) for value in node.inputs])
            if made is not None:
                numbers[node.outputs[0]] = made


def _first(node: onnx_ir.Node) -> onnx_ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _position(node: onnx_ir.Node) -> int | None:
    """Of a QuantizeLinear or DequantizeLinear; None if it is none of the DPU's."""
    scale, zero_point = graph.constant(node.inputs[1]), graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.ndim or zero_point is None or zero_point.dtype != np.int8 or zero_point.any():
        return None
    return positions.of_scale(float(scale))


def _rounded(value: Fixed, position: int, rounding: Rounding) -> _Rounded:
    """The nearest int8 at a position, saturated."""
    shift = max(min(value.position - position, _FAR), -_FAR)
    limit = value.divisor << 8  # saturates, however it is shifted
    numerators = np.clip(value.integers, -limit, limit) << -shift if shift < 0 else value.integers
    denominator = value.divisor << max(shift, 0)
    whole, rest = np.divmod(numerators, denominator)
    halfway = 2 * rest == denominator
    up = (2 * rest > denominator) | (halfway if rounding == "half up" else halfway & (whole % 2 == 1))
    return _Rounded(np.clip(whole + up, positions.LOWEST, positions.HIGHEST).astype(np.int8), int(np.count_nonzero(halfway)))
