"""A Conv straight after a Conv, one of them 1×1, is one Conv: nothing between them bends the line."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._linear import is_plain_conv, reads_all_alike
from edgesdk.passes._rewiring import is_private, take_place


def merge_convolutions(model: Model) -> Model:
    """Two ungrouped Convs of which nothing else reads the first become one, where that takes no more multiplications.

    If the first is the 1×1, the second must not pad, unless the first has no bias: what it answers for a padding zero is its bias.
    """
    if not any(node.op_type == "Conv" for node in model.graph):
        return model
    merged = graph.clone(model)
    for node in list(merged.graph):
        if node.graph is merged.graph and is_plain_conv(node):
            _merge(node)
    return merged


def _merge(second: onnx_ir.Node) -> None:
    value = second.inputs[0]
    first = value.producer() if value is not None and is_private(value) else None
    if first is None or first.graph is not second.graph or not is_plain_conv(first):
        return
    (inner, inner_bias), (outer, outer_bias) = _weights(first), _weights(second)
    if inner.shape[0] != outer.shape[1]:
        return
    if not (_is_pointwise(second) or (_is_pointwise(first) and (reads_all_alike(second) or not inner_bias.any()))):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        both = np.einsum("om...,mi...->oi...", outer, inner).astype(np.float32)
        bias = (outer.sum(axis=(2, 3)) @ inner_bias + outer_bias).astype(np.float32)
    if both.size > inner.size + outer.size or not np.isfinite(both).all() or not np.isfinite(bias).all():
        return
    inside, wide = second.graph, first if _is_pointwise(second) else second
    assert isinstance(inside, onnx_ir.Graph)
    stem = second.inputs[1].name if second.inputs[1] is not None else second.name
    merged = onnx_ir.node(
        "Conv",
        [first.inputs[0], graph.add_constant(inside, f"{stem}_merged", both), graph.add_constant(inside, f"{stem}_bias", bias)],
        attributes=dict(wide.attributes),
        name=graph.fresh(inside, f"{second.name}_merged"),
    )
    inside.insert_before(second, merged)
    take_place(merged, second)
    inside.remove(first, safe=True)


def _weights(node: onnx_ir.Node) -> tuple[Array, Array]:
    weight, bias = graph.constant(node.inputs[1]), graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    assert weight is not None
    return weight.astype(np.float64), np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)


def _is_pointwise(node: onnx_ir.Node) -> bool:
    strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else ()
    weight, _ = _weights(node)
    return weight.shape[2:] == (1, 1) and all(stride == 1 for stride in strides) and reads_all_alike(node)
