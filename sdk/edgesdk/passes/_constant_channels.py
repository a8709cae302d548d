"""Channels of which every number is the same whatever the model is fed: what a Conv with zero weights answers, and what follows from that."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._dimensions import Dimensions
from edgesdk.passes._linear import reads_all_alike
from edgesdk.passes._ties import Axis
from edgesdk.passes._tracing import integer

Known = Mapping[int, float]  # by the class of channels, what all their numbers are

_MAY_OVERFLOW = {"Acos", "Acosh", "Asin", "Atanh", "Cosh", "Div", "Exp", "If", "Log", "Loop", "LpNormalization", "Mod", "Pow", "Reciprocal"}
_MAY_OVERFLOW |= {"ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "Scan", "Sinh", "Sqrt", "Tan"}
_MOVING = {"Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"}
_MOVING |= {"GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Transpose", "Unsqueeze"}
_ZERO_OF_ZEROS = {"AveragePool", "Celu", "Ceil", "Erf", "Floor", "Gelu", "GlobalLpPool", "LpPool", "Mish", "Pad", "ReduceL1", "ReduceL2", "ReduceSum"}
_ZERO_OF_ZEROS |= {"ReduceSumSquare", "Resize", "Round", "Selu", "Sign", "Sin", "Softsign", "Swish"}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_GATED = ("LSTM", "GRU", "RNN")
_OF_ONE: dict[str, Callable[[float, onnx_ir.Node], float]] = {
    "Relu": lambda x, _node: max(x, 0),
    "LeakyRelu": lambda x, node: x if x > 0 else x * _number(node, "alpha", 0.01),
    "Elu": lambda x, node: x if x > 0 else np.expm1(x) * _number(node, "alpha", 1.0),
    "Sigmoid": lambda x, _node: 1 / (1 + np.exp(-x)),
    "HardSigmoid": lambda x, node: min(max(_number(node, "alpha", 0.2) * x + _number(node, "beta", 0.5), 0), 1),
    "HardSwish": lambda x, _node: x * min(max(x / 6 + 0.5, 0), 1),
    "Tanh": lambda x, _node: np.tanh(x),
    "Neg": lambda x, _node: -x,
    "Abs": lambda x, _node: abs(x),
}
_OF_SEVERAL: dict[str, Callable[[list[float]], float]] = {
    "Add": sum,
    "Sum": sum,
    "Sub": lambda numbers: numbers[0] - numbers[1],
    "Mul": lambda numbers: numbers[0] * numbers[1],
    "Div": lambda numbers: numbers[0] / numbers[1] if numbers[1] else np.nan,
    "PRelu": lambda numbers: numbers[0] if numbers[0] > 0 else numbers[0] * numbers[1],
    "Max": max,
    "Min": min,
    "Clip": lambda numbers: min(max(numbers[0], numbers[1]), numbers[2]),
}


class ConstantChannels:
    """What is known of the tensors of a model that was analysed, as long as it is fed, and computes, nothing that is not finite."""

    def __init__(self, model: Model, dimensions: Dimensions) -> None:
        self._dimensions = dimensions
        self._units = {int(root) for roots in dimensions.units.values() for root in roots}
        self._known: dict[onnx_ir.Value, Known] = {}
        self._classes_of: dict[onnx_ir.Value, set[int]] = {}
        self._finite: set[onnx_ir.Value] = set(model.graph.inputs)
        for node in model.graph:
            safe = not node.domain and (node.op_type not in _MAY_OVERFLOW or (node.op_type == "Div" and _is_nowhere_zero(node.inputs[1])))
            if safe and all(value is None or self.is_finite(value) for value in node.inputs):
                self._finite.update(node.outputs)
                for value in node.outputs if node.op_type in ("Split", *_GATED) else node.outputs[:1]:
                    found = {root: self._computed(node, root) for root in sorted(self._classes(value) & self._candidates(node))}
                    self._known[value] = {root: number for root, number in found.items() if number is not None and np.isfinite(number)}

    def known(self, value: onnx_ir.Value | None) -> Known:
        return self._known.get(value, {}) if value is not None else {}

    def is_finite(self, value: onnx_ir.Value) -> bool:
        array = graph.constant(value)
        return value in self._finite if array is None else array.dtype.kind != "f" or bool(np.isfinite(array).all())

    def _classes(self, value: onnx_ir.Value) -> set[int]:
        axes = self._dimensions.axes.get(str(value.name), ())
        if value not in self._classes_of:
            self._classes_of[value] = {root for axis in axes for root in self._roots(axis) if root in self._units}
        return self._classes_of[value]

    def _roots(self, axis: Axis) -> list[int]:
        return [] if axis.atoms is None else list(self._dimensions.roots[axis.atoms].tolist())

    def _candidates(self, node: onnx_ir.Node) -> set[int]:
        """The classes of which something may be known: something was, or some weights are zero."""
        found = {root for value in node.inputs for root in self.known(value)}
        for place, value in enumerate(node.inputs) if node.op_type in (*_WEIGHTED, *_GATED, "BatchNormalization") else ():
            array = graph.constant(value)
            for axis, each in enumerate(self._dimensions.constants.get((str(node.name), place), ())):
                if array is not None:
                    found.update(
                        root for root, part in zip(self._roots(each), np.moveaxis(array, axis, 0), strict=True) if node.op_type in _GATED or not part.any()
                    )
        return found

    def _computed(self, node: onnx_ir.Node, root: int) -> float | None:
        """What all numbers of the class are that a node of finite inputs answers."""
        kind = node.op_type
        if kind in _WEIGHTED and graph.constant(node.inputs[1]) is not None:
            return self._weighted(node, root)
        if kind in _GATED:
            return self._gated(node, root)
        if kind == "BatchNormalization":
            return self._normalized(node, root)
        if kind == "Mul" and any(self.known(value).get(root) == 0 for value in node.inputs):
            return 0.0
        if kind == "MatMul":
            zeros = [place for place, value in enumerate(node.inputs) if self.known(value).get(root) == 0 and root not in self._summed(value, place)]
            return 0.0 if zeros else None
        if kind in _MOVING or kind in _ZERO_OF_ZEROS:
            found = {self._number(node, place, root) for place in range(len(node.inputs)) if self._has(node, place, root)}
            number = found.pop() if len(found) == 1 else None
            return number if kind in _MOVING or number == 0 else None
        numbers = [self._number(node, place, root) for place in range(len(node.inputs))]
        given = [number for number in numbers if number is not None]
        if len(given) < len(numbers):
            return None
        if kind in _OF_ONE:
            return float(_OF_ONE[kind](given[0], node))
        return float(_OF_SEVERAL[kind](given)) if kind in _OF_SEVERAL else None

    def _number(self, node: onnx_ir.Node, place: int, root: int) -> float | None:
        """What all numbers of an input are that meet the class: its own, or, where it does not have the class, all."""
        if graph.constant(node.inputs[place]) is None:
            return self.known(node.inputs[place]).get(root)
        return _alike(self._part(node, place, root))

    def _has(self, node: onnx_ir.Node, place: int, root: int) -> bool:
        value = node.inputs[place]
        if value is None or graph.constant(value) is None:
            return value is not None and root in self._classes(value)
        return any((self._dimensions.roots[axis.atoms] == root).any() for axis in self._dimensions.constants.get((str(node.name), place), ()))

    def _part(self, node: onnx_ir.Node, place: int, root: int, axis: int | None = None) -> Array:
        """Of a constant, what belongs to the class: along that axis, or along all that have the class."""
        array = graph.constant(node.inputs[place])
        assert array is not None
        for along, each in enumerate(self._dimensions.constants.get((str(node.name), place), ())):
            chosen = self._dimensions.roots[each.atoms] == root
            if axis == along or (axis is None and chosen.any()):
                array = np.compress(chosen, array, axis=along)
        return array

    def _summed(self, value: onnx_ir.Value | None, place: int) -> set[int]:
        """The classes over which a MatMul sums."""
        axes = self._dimensions.axes.get(str(value.name), ()) if value is not None else ()
        atoms = axes[-1 if place == 0 else max(-2, -len(axes))].atoms if axes else None
        return set() if atoms is None else set(self._dimensions.roots[atoms].tolist())

    def _weighted(self, node: onnx_ir.Node, root: int) -> float | None:
        """The bias, where all weights are zero, or all that the weights of a depthwise Conv meet."""
        weight = graph.constant(node.inputs[1])
        assert weight is not None
        group, turned = integer(node, "group", 1), node.op_type == "ConvTranspose"
        depthwise = group > 1 and (weight.shape[0] == group if turned else weight.shape[1] == 1)
        if (node.op_type == "MatMul" and weight.ndim < 2) or (turned and group > 1 and not depthwise):
            return None
        along = {"MatMul": weight.ndim - 1, "Gemm": 1 - integer(node, "transB", 0), "ConvTranspose": int(not depthwise)}.get(node.op_type, 0)
        rows = self._part(node, 1, root, along)
        bias = self._number(node, 2, root) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
        if bias is None or not rows.size:
            return None
        bias *= _number(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
        given = self.known(node.inputs[0]).get(root)
        if not rows.any() or (depthwise and given == 0):
            return bias
        if not depthwise or turned or given is None or not reads_all_alike(node):
            return None
        total = _alike(rows.reshape(len(rows), -1).sum(axis=1))
        return None if total is None else bias + given * total

    def _gated(self, node: onnx_ir.Node, root: int) -> float | None:
        """A unit whose last gate, the tanh of what it is to hold, gives zero, never holds anything else, if it starts so."""
        if "activations" in node.attributes or any(value is not None for value in node.inputs[5:7]):
            return None
        weights = [(self._part(node, place, root, 1), 1 if place < 3 else 2) for place in (1, 2, 3) if place < len(node.inputs) and node.inputs[place]]
        count = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
        last = [np.split(array, count * times, axis=1)[count - 1 :: count] for array, times in weights]
        return None if any(part.any() for parts in last for part in parts) else 0.0

    def _normalized(self, node: onnx_ir.Node, root: int) -> float | None:
        arrays = [graph.constant(value) for value in node.inputs[1:]]
        if any(array is None for array in arrays):
            return None
        scale, offset, mean, variance = (self._part(node, place, root).astype(np.float64) for place in range(1, 5))
        given = self.known(node.inputs[0]).get(root)
        if given is None and scale.any():
            return None
        return _alike(scale * ((given or 0.0) - mean) / np.sqrt(variance + _number(node, "epsilon", 1e-5)) + offset)


def _alike(array: Array) -> float | None:
    """The number that all are."""
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None


def _is_nowhere_zero(value: onnx_ir.Value | None) -> bool:
    array = graph.constant(value)
    return array is not None and bool(array.all())


def _number(node: onnx_ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default
