"""What the Vitis DPU's operators do to whole numbers. No float ever holds a value that is not a whole number.

``OPERATORS[node.op_type](node, inputs)`` gives the node's answer; None if an input is none of the DPU's numbers, or the operator
in this form none of its operators.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, prod

import numpy as np
import onnx_ir

from edgesdk import dpu, graph
from edgesdk.graph import Array


@dataclass(frozen=True, slots=True)
class Fixed:
    """Numbers ``integers / divisor · 2^-position``. The divisor is 1 but where a mean was taken that no shift can."""

    integers: Array  # int64
    position: int
    divisor: int = 1

    def at(self, position: int) -> "Fixed":
        """The same at a finer position."""
        return Fixed(self.integers << (position - self.position), position, self.divisor)


Inputs = Sequence[Fixed | None]

_FAR = 36  # positions that lie further apart fit no 64 bits together


def _conv(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value, weight = inputs[0], inputs[1]
    if value is None or weight is None or value.divisor != 1:
        return None
    kernel = weight.integers.shape[2:]
    windows = _windows(node, value.integers, kernel, filled=0)
    group = _integer(node, "group", 1)
    if windows is None:
        return None
    batch, channels, *rest = windows.shape
    places, outputs = rest[: len(kernel)], weight.integers.shape[0]
    grouped = windows.reshape(batch, group, channels // group, prod(places), prod(kernel)).swapaxes(2, 3).reshape(batch, group, prod(places), -1)
    sums = _products(grouped, weight.integers.reshape(group, outputs // group, -1).swapaxes(1, 2))
    return _biased(Fixed(sums.swapaxes(2, 3).reshape(batch, outputs, *places), value.position + weight.position), node, inputs, axis=1)


def _conv_transpose(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value, weight = inputs[0], inputs[1]
    plain = not any(name in node.attributes for name in ("output_shape", "auto_pad"))
    if value is None or weight is None or value.divisor != 1 or not plain:
        return None
    kernel, group = weight.integers.shape[2:], _integer(node, "group", 1)
    dimensions = len(kernel)
    strides, dilations = _integers(node, "strides", [1] * dimensions), _integers(node, "dilations", [1] * dimensions)
    pads, longer = _integers(node, "pads", [0] * 2 * dimensions), _integers(node, "output_padding", [0] * dimensions)
    batch, channels, *places = value.integers.shape
    columns = value.integers.reshape(batch, group, channels // group, -1).swapaxes(2, 3)
    sums = _products(columns, weight.integers.reshape(group, channels // group, -1))
    spread = sums.swapaxes(2, 3).reshape(batch, -1, *kernel, *places)
    reach = [
        (place - 1) * stride + (length - 1) * dilation + 1 + more
        for place, stride, length, dilation, more in zip(places, strides, kernel, dilations, longer, strict=True)
    ]
    answer = np.zeros((*spread.shape[:2], *reach), np.int64)
    for offset in np.ndindex(*kernel):
        where = [
            slice(at * dilation, at * dilation + (place - 1) * stride + 1, stride)
            for at, dilation, place, stride in zip(offset, dilations, places, strides, strict=True)
        ]
        answer[(slice(None), slice(None), *where)] += spread[(slice(None), slice(None), *offset)]
    kept = [slice(pads[axis], length - pads[axis + dimensions]) for axis, length in enumerate(reach)]
    return _biased(Fixed(answer[(slice(None), slice(None), *kept)], value.position + weight.position), node, inputs, axis=1)


def _gemm(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value, weight = inputs[0], inputs[1]
    scaled = any(name in node.attributes and node.attributes[name].as_float() != 1 for name in ("alpha", "beta"))
    if value is None or weight is None or value.divisor != 1 or scaled or _integer(node, "transA", 0):
        return None
    matrix = weight.integers.T if _integer(node, "transB", 0) else weight.integers
    return _biased(Fixed(_products(value.integers, matrix), value.position + weight.position), node, inputs, axis=-1)


def _biased(sums: Fixed, node: onnx_ir.Node, inputs: Inputs, *, axis: int) -> Fixed | None:
    """With the bias, which is shifted to the products' position; they to its, if that is finer."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return sums
    bias = inputs[2]
    if bias is None or bias.integers.ndim != 1:
        return None
    shape = [1] * sums.integers.ndim
    shape[axis] = -1
    return _sum(sums, Fixed(bias.integers.reshape(shape), bias.position))


def _add(_node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    first, second = inputs
    return None if first is None or second is None or first.divisor != second.divisor else _sum(first, second)


def _subtract(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    first, second = inputs
    return None if second is None else _add(node, (first, Fixed(-second.integers, second.position, second.divisor)))


def _sum(first: Fixed, second: Fixed) -> Fixed | None:
    if abs(first.position - second.position) > _FAR:
        return None
    position = max(first.position, second.position)
    return Fixed(first.at(position).integers + second.at(position).integers, position, first.divisor)


def _multiply(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    first, second = inputs
    for value, found in zip(node.inputs, inputs, strict=True):
        producer = value.producer() if value is not None else None
        if producer is not None and dpu.correcting(producer) is node:
            return found  # the operator corrected itself
    if first is None or second is None or first.divisor * second.divisor != 1:
        return None
    return Fixed(first.integers * second.integers, first.position + second.position)


def _relu(_node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value = inputs[0]
    return None if value is None else Fixed(np.maximum(value.integers, 0), value.position, value.divisor)


def _clip(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    """Between bounds that are whole numbers of steps at some position."""
    value, limits = inputs[0], [graph.constant(bound) if bound is not None else None for bound in node.inputs[1:]]
    if value is None or any(limit is None and bound is not None for limit, bound in zip(limits, node.inputs[1:], strict=True)):
        return None
    for limit, keep in zip(limits, (np.maximum, np.minimum), strict=False):
        if limit is None or not np.isfinite(limit).all():
            continue
        numerator, denominator = float(limit.reshape(())).as_integer_ratio()
        value = value.at(max(value.position, denominator.bit_length() - 1))
        step = numerator * value.divisor * 2**value.position // denominator if value.position >= 0 else None
        if step is None or abs(step) >= 2**62:
            return None
        value = Fixed(keep(value.integers, step), value.position, value.divisor)
    return value


def _leaky_relu(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value = inputs[0]
    slope = dpu.slope(node) * dpu.LEAKY_UNIT
    if value is None or slope != round(slope):
        return None
    bits = dpu.LEAKY_UNIT.bit_length() - 1
    return Fixed(np.where(value.integers < 0, value.integers * round(slope), value.integers << bits), value.position + bits, value.divisor)


def _hard_sigmoid(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    """clip(x + 3, 0, 6) times 2731 / 2^14; its correction multiplies by nothing more."""
    value = inputs[0]
    if value is None or value.divisor != 1 or not dpu.is_hard_sigmoid(node) or dpu.correcting(node) is None:
        return None
    value = value.at(max(value.position, 0))
    factor, shift = dpu.HARD_SIGMOID
    return Fixed(factor * np.clip(value.integers + (3 << value.position), 0, 6 << value.position), value.position + shift)


def _average_pool(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    """A sum times the fixed-point reciprocal of its places; of a kernel that has none, or a correction too coarse to matter, the mean itself."""
    value, kernel = inputs[0], dpu.pooled(node)
    padded = any(_integers(node, "pads", [])) or _integer(node, "ceil_mode", 0) or "auto_pad" in node.attributes
    if value is None or kernel is None or value.divisor != 1 or (padded and not _integer(node, "count_include_pad", 0)):
        return None
    if node.op_type == "GlobalAveragePool":
        sums = value.integers.sum(axis=(2, 3), keepdims=True)
    else:
        windows = _windows(node, value.integers, kernel, filled=0)
        if windows is None:
            return None
        sums = windows.sum(axis=(-2, -1))
    if dpu.correcting(node) is not None or dpu.correction(node) is None:
        fixed = dpu.fixed_reciprocal(node)
        if fixed is not None:
            return Fixed(sums * fixed[0], value.position + fixed[1])
    return Fixed(sums, value.position, kernel[0] * kernel[1])


def _max_pool(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value = inputs[0]
    if value is None or len(node.outputs) > 1:
        return None
    windows = _windows(node, value.integers, node.attributes["kernel_shape"].as_ints(), filled=np.iinfo(np.int64).min)
    if windows is None:
        return None
    return Fixed(windows.max(axis=tuple(range(-len(node.attributes["kernel_shape"].as_ints()), 0))), value.position, value.divisor)


def _concat(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    found = [value for value in inputs if value is not None]
    if len(found) < len(inputs) or len({value.divisor for value in found}) > 1:
        return None
    position = max(value.position for value in found)
    return Fixed(np.concatenate([value.at(position).integers for value in found], axis=_integer(node, "axis", 0)), position, found[0].divisor)


def _reshaped(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    """Reshape and its kin, by the shape that is known of the answer."""
    value, shape = inputs[0], node.outputs[0].shape
    if value is None or shape is None or not shape.is_static():
        return None
    return Fixed(value.integers.reshape(shape.numpy()), value.position, value.divisor)


def _transpose(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value = inputs[0]
    if value is None:
        return None
    return Fixed(np.transpose(value.integers, node.attributes["perm"].as_ints() if "perm" in node.attributes else None), value.position, value.divisor)


def _slice(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    value, limits = inputs[0], [graph.constant(limit) for limit in node.inputs[1:]]
    if value is None or len(limits) < 2 or any(limit is None for limit in limits):
        return None
    starts, ends = limits[:2]
    axes, steps = (limits[place] if len(limits) > place else None for place in (2, 3))
    assert starts is not None and ends is not None
    where = [slice(None)] * value.integers.ndim
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        step = int(steps[place]) if steps is not None else 1
        where[int(axes[place]) if axes is not None else place] = slice(start, None if step < 0 and end < -value.integers.ndim else end, step)
    return Fixed(value.integers[tuple(where)], value.position, value.divisor)


def _pad(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    """With zeros."""
    value, pads = inputs[0], graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    filled = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    constant = "mode" not in node.attributes or node.attributes["mode"].as_string() == "constant"
    if value is None or pads is None or filled is None or filled.any() or not constant or (pads < 0).any() or len(node.inputs) > 3:
        return None
    return Fixed(np.pad(value.integers, pads.reshape(2, -1).T.tolist()), value.position, value.divisor)


def _resize(node: onnx_ir.Node, inputs: Inputs) -> Fixed | None:
    """Each number repeated: the nearest, a whole number of times larger."""
    value, shape = inputs[0], node.outputs[0].shape
    mode, coordinates, nearest = (
        node.attributes[name].as_string() if name in node.attributes else usual
        for name, usual in (("mode", "nearest"), ("coordinate_transformation_mode", "half_pixel"), ("nearest_mode", "round_prefer_floor"))
    )
    repeats = (coordinates, nearest) in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))
    if value is None or shape is None or not shape.is_static() or mode != "nearest" or not repeats:
        return None
    made = value.integers
    for axis, (new, old) in enumerate(zip(shape.numpy(), made.shape, strict=True)):
        if new % old:
            return None
        made = np.repeat(made, new // old, axis=axis)
    return Fixed(made, value.position, value.divisor)


OPERATORS: dict[str, Callable[[onnx_ir.Node, Inputs], Fixed | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Relu": _relu,
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "HardSigmoid": _hard_sigmoid,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Concat": _concat,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
}


def _products(left: Array, right: Array) -> Array:
    """Sums of products of 8-bit numbers. float64 holds every whole number up to 2^53, which they do not reach, and numpy multiplies it much faster."""
    return (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)


def _windows(node: onnx_ir.Node, array: Array, kernel: Sequence[int], *, filled: int) -> Array | None:
    """What each place of the answer sees, as [batch, channels, places…, kernel…]. None where the padding is ONNX's to find."""
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() not in ("NOTSET", "VALID"):
        return None
    count = len(kernel)
    strides, dilations = _integers(node, "strides", [1] * count), _integers(node, "dilations", [1] * count)
    pads = _integers(node, "pads", [0] * 2 * count)
    reach = [(length - 1) * dilation + 1 for length, dilation in zip(kernel, dilations, strict=True)]
    rounded = ceil if _integer(node, "ceil_mode", 0) else floor
    around, places = [(0, 0), (0, 0)], []
    for axis, (before, after) in enumerate(zip(pads[:count], pads[count:], strict=True)):
        length = array.shape[axis + 2]
        place = rounded((length + before + after - reach[axis]) / strides[axis]) + 1
        if rounded is ceil and (place - 1) * strides[axis] >= length + before:
            place -= 1  # a window may not begin beyond the end
        places.append(place)
        around.append((before, max(after, (place - 1) * strides[axis] + reach[axis] - length - before)))
    padded = np.pad(array, around, constant_values=filled)
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + count)))
    taken = [slice(0, (place - 1) * stride + 1, stride) for place, stride in zip(places, strides, strict=True)]
    return seen[(slice(None), slice(None), *taken, *(slice(None, None, dilation) for dilation in dilations))]


def _integer(node: onnx_ir.Node, name: str, usual: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else usual


def _integers(node: onnx_ir.Node, name: str, usual: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else usual
