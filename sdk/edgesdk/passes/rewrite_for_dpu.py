"""Operators become those that the Vitis DPU has, and answer what it answers: before quantizing, so that what this costs is measured.

    rewritten = rewrite_for_dpu(fixed)      # shapes fixed before: pools need to know how much they average

| operator | becomes |
| --- | --- |
| Sigmoid | HardSigmoid of slope 1/6: an approximation |
| HardSigmoid | one of slope 1/6, its input scaled for it, times the correction of `edgesdk.dpu` |
| HardSwish | x times that HardSigmoid of x |
| LeakyRelu | its slope a whole number of 1/256 |
| ReduceMean over height and width | GlobalAveragePool |
| GlobalAveragePool of more than 512 places | AveragePool, then GlobalAveragePool of the rest |
| AveragePool, GlobalAveragePool | times the correction |
| BatchNormalization, and constants for each channel added or multiplied | 1×1 depthwise Conv |
| Split | a Slice for each part |

What AMD Quark 0.13 rewrites (its `onnx_xint8_simulate` and its conversions), and what is needed to get there. Softmax and
InstanceNormalization, which it approximates too, stay with the board's processor here.
"""

from collections.abc import Callable, Sequence
from math import isqrt

import numpy as np
import onnx_ir

from edgesdk import dpu, graph
from edgesdk.graph import Model
from edgesdk.passes import _affine
from edgesdk.passes._affine import Affine
from edgesdk.passes._linear import absorb, is_linear
from edgesdk.passes._rewiring import is_private, take_place


def rewrite_for_dpu(model: Model) -> Model:
    """The model in the DPU's operators. Subgraphs stay as they are: they run on the board's processor."""
    rewritten = graph.clone(model)
    graph.infer_shapes(rewritten)
    for operators, rewrite in _REWRITES:
        for node in list(rewritten.graph):
            if node.graph is rewritten.graph and node.op_type in operators and not node.domain:
                rewrite(node)
    return rewritten


def _sigmoid(node: onnx_ir.Node) -> None:
    take_place(_before(node, "HardSigmoid", [node.inputs[0]], {"alpha": dpu.SIXTH, "beta": 0.5}, node.name), node)


def _hard_swish(node: onnx_ir.Node) -> None:
    gate = _before(node, "HardSigmoid", [node.inputs[0]], {"alpha": dpu.SIXTH, "beta": 0.5}, f"{node.name}_gate")
    take_place(_before(node, "Mul", [node.inputs[0], gate.outputs[0]], {}, node.name), node)


def _slope(node: onnx_ir.Node) -> None:
    """HardSigmoid of another slope or offset: clip(αx + β, 0, 1) is clip((6αx + 6β - 3)/6 + 1/2, 0, 1)."""
    alpha, beta = (node.attributes[name].as_float() if name in node.attributes else usual for name, usual in (("alpha", 0.2), ("beta", 0.5)))
    if dpu.is_hard_sigmoid(node):
        return
    value, scale, shift = node.inputs[0], np.full(1, alpha / dpu.SIXTH), np.full(1, (beta - 0.5) / dpu.SIXTH)
    before = value.producer() if value is not None else None
    if value is None or value.dtype not in (None, onnx_ir.DataType.FLOAT):
        return
    alone = before is not None and before.graph is node.graph and is_private(value)
    if not (alone and before is not None and is_linear(before) and absorb(before, scale, shift)):
        for operator, numbers, neutral in (("Mul", scale, 1), ("Add", shift, 0)):
            if numbers[0] != neutral:
                constant = graph.add_constant(_inside(node), f"{node.name}_{operator.lower()}", numbers.astype(np.float32).reshape(()))
                value = _before(node, operator, [value, constant], {}, f"{node.name}_{operator}").outputs[0]
        node.replace_input_with(0, value)
    node.attributes["alpha"], node.attributes["beta"] = onnx_ir.AttrFloat32("alpha", dpu.SIXTH), onnx_ir.AttrFloat32("beta", 0.5)


def _affine_to_conv(node: onnx_ir.Node) -> None:
    affine = _affine.of(node) if not _affine.goes_on(node) else None
    rank, channels = (_affine.layout(affine.source) or (0, None)) if affine is not None else (0, None)
    if affine is None or rank != 4 or not channels or _corrects(affine):
        return
    stem, weights = node.name, np.broadcast_to(affine.scale, channels).astype(np.float32).reshape(channels, 1, 1, 1)
    summands = np.broadcast_to(affine.shift, channels).astype(np.float32)
    inputs = [affine.source, graph.add_constant(_inside(node), f"{stem}_scale", weights), graph.add_constant(_inside(node), f"{stem}_shift", summands)]
    conv = _before(node, "Conv", inputs, {"group": channels, "kernel_shape": [1, 1]}, f"{stem}_conv")
    take_place(conv, node)
    for left in reversed(affine.nodes[:-1]):
        _inside(left).remove(left, safe=True)


def _corrects(affine: Affine) -> bool:
    """Whether an earlier run put it there."""
    producer = affine.source.producer()
    return producer is not None and dpu.correcting(producer) is affine.nodes[0]


def _leaky_relu(node: onnx_ir.Node) -> None:
    node.attributes["alpha"] = onnx_ir.AttrFloat32("alpha", round(dpu.slope(node) * dpu.LEAKY_UNIT) / dpu.LEAKY_UNIT)


def _reduce_mean(node: onnx_ir.Node) -> None:
    value = node.inputs[0]
    axes = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(node.attributes["axes"].as_ints() if "axes" in node.attributes else ())
    if value is None or value.shape is None or len(value.shape) != 4 or axes is None or sorted(int(axis) % 4 for axis in axes.ravel()) != [2, 3]:
        return
    pool = _before(node, "GlobalAveragePool", [value], {}, node.name)
    pool.outputs[0].shape = onnx_ir.Shape([value.shape[0], value.shape[1], 1, 1])
    kept = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int()
    take_place(pool if kept else _before(node, "Flatten", [pool.outputs[0]], {"axis": 1}, f"{node.name}_flatten"), node)


def _split_large(node: onnx_ir.Node) -> None:
    """A mean of means: each of the kernel's sides is parted into two factors, as alike as they can be."""
    kernel, value = dpu.pooled(node), node.inputs[0]
    if kernel is None or value is None or value.shape is None or kernel[0] * kernel[1] <= dpu.LARGEST_POOL:
        return
    height, width = _smaller_factor(kernel[0]), _smaller_factor(kernel[1])
    left = kernel[0] // height, kernel[1] // width
    if height * width == 1 or max(height * width, left[0] * left[1]) > dpu.LARGEST_POOL:
        return
    pool = _before(node, "AveragePool", [value], {"kernel_shape": [height, width], "strides": [height, width]}, f"{node.name}_part")
    pool.outputs[0].shape = onnx_ir.Shape([value.shape[0], value.shape[1], *left])
    node.replace_input_with(0, pool.outputs[0])


def _smaller_factor(length: int) -> int:
    return max(factor for factor in range(1, isqrt(length) + 1) if length % factor == 0)


def _correct(node: onnx_ir.Node) -> None:
    number = dpu.correction(node)
    if number is None or dpu.correcting(node) is not None:
        return
    old, inside = node.outputs[0], _inside(node)
    constant = graph.add_constant(inside, f"{node.name}_correction", np.array(number, np.float32))
    product = onnx_ir.node("Mul", [old, constant], name=graph.fresh(inside, f"{node.name}_corrected"))
    made = product.outputs[0]
    made.shape, made.type = old.shape, old.type
    users = [(use.node, use.idx) for use in old.uses() if use.node is not product]
    inside.insert_after(node, product)
    for user, place in users:
        user.replace_input_with(place, made)
    for place, output in enumerate(inside.outputs):
        if output is old:
            inside.outputs[place] = made
    name = old.name
    old.name = graph.fresh(inside, f"{name}_uncorrected")
    made.name = name


def _split(node: onnx_ir.Node) -> None:
    value = node.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    lengths = [_length(output, axis) for output in node.outputs]
    if value is None or any(length is None for length in lengths) or any(output.is_graph_output() for output in node.outputs):
        return
    inside, begin = _inside(node), 0
    for place, (output, length) in enumerate(zip(node.outputs, lengths, strict=True)):
        assert length is not None
        limits = [graph.add_constant(inside, f"{node.name}_{what}_{place}", np.array([at], np.int64)) for what, at in _limits(begin, length, axis)]
        part = _before(node, "Slice", [value, *limits], {}, f"{node.name}_{place}")
        part.outputs[0].shape, part.outputs[0].type = output.shape, output.type
        output.replace_all_uses_with(part.outputs[0])
        name, output.name = output.name, None
        part.outputs[0].name = name
        begin += length
    inside.remove(node, safe=True)


def _limits(begin: int, length: int, axis: int) -> list[tuple[str, int]]:
    return [("begin", begin), ("end", begin + length), ("axis", axis)]


def _length(value: onnx_ir.Value, axis: int) -> int | None:
    length = value.shape[axis] if value.shape is not None else None
    return length if isinstance(length, int) else None


# In this order: what one makes is another's to rewrite.
_REWRITES: tuple[tuple[tuple[str, ...], Callable[[onnx_ir.Node], None]], ...] = (
    (("Sigmoid",), _sigmoid),
    (("HardSwish",), _hard_swish),
    (("HardSigmoid",), _slope),
    (_affine.OPERATORS, _affine_to_conv),
    (("LeakyRelu",), _leaky_relu),
    (("ReduceMean",), _reduce_mean),
    (("GlobalAveragePool",), _split_large),
    (dpu.CORRECTED, _correct),
    (("Split",), _split),
)


def _before(
    node: onnx_ir.Node,
    operator: str,
    inputs: Sequence[onnx_ir.Value | None],
    attributes: dict[str, int | float | list[int]],
    stem: str | None,
) -> onnx_ir.Node:
    """A new node in front of this one, its answer shaped like this one's."""
    inside, old = _inside(node), node.outputs[0]
    made = onnx_ir.node(operator, inputs, attributes=attributes, name=stem)
    made.outputs[0].name, made.outputs[0].shape, made.outputs[0].type = graph.fresh(inside, f"{stem}_answer"), old.shape, old.type
    inside.insert_before(node, made)
    return made


def _inside(node: onnx_ir.Node) -> onnx_ir.Graph:
    inside = node.graph
    assert isinstance(inside, onnx_ir.Graph)
    return inside
