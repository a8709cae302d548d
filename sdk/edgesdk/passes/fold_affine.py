"""A constant factor or summand for each channel, beside a convolution, belongs into its weights and bias."""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Model
from edgesdk.passes import _affine
from edgesdk.passes._affine import Affine
from edgesdk.passes._linear import absorb, absorb_before, channels, is_linear
from edgesdk.passes._rewiring import is_private, take_place

_KEEP_ORDER = ("Relu", "LeakyRelu")  # f(c · x) = c · f(x) for c > 0
_POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool")
_LARGEST = 1e18  # so that no product with weights leaves float32


def fold_affine(model: Model) -> Model:
    """Chains of Mul, Div, Add, Sub and BatchNormalization with constants go into the Conv, ConvTranspose or Gemm before or after.

    After one, always, and past a Relu or pooling between. Before one, the factor always; the summand where nothing is padded,
    since padding puts zeros beside it that the summand never touched. There ``c · x + d`` becomes ``c · (x + d / c)``, and c goes on.
    What stays is written as one Mul and one Add at most, and after pooling rather than before.
    """
    if not any(node.op_type in _affine.OPERATORS for node in model.graph):
        return model
    folded = graph.clone(model)
    graph.infer_shapes(folded)
    while sum(_improve(node) for node in list(folded.graph) if node.graph is folded.graph):
        pass
    return folded


def _improve(node: onnx_ir.Node) -> bool:
    affine = _affine.of(node)
    if affine is None or _affine.goes_on(node):
        return False
    return _fold_back(affine) or _fold_forward(affine) or _move_past_pooling(affine) or _shorten(affine)


def _fold_back(affine: Affine) -> bool:
    before = _linear_above(affine)
    if before is None or {affine.scale.size, affine.shift.size} - {1, channels(before)} or not absorb(before, affine.scale, affine.shift):
        return False
    source = affine.source.producer()
    assert source is not None
    take_place(source, affine.nodes[-1])
    _remove(affine.nodes[:-1])
    return True


def _linear_above(affine: Affine) -> onnx_ir.Node | None:
    value, inside = affine.source, affine.nodes[-1].graph
    while is_private(value):
        node = value.producer()
        if node is None or node.graph is not inside:
            return None
        if is_linear(node):
            return node
        if node.domain or not _commutes(node, affine) or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


def _commutes(node: onnx_ir.Node, affine: Affine) -> bool:
    """Whether it makes no difference if the affine comes before or after this node."""
    if node.op_type in _KEEP_ORDER:
        return bool((affine.scale > 0).all()) and not affine.shift.any()
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "MaxPool":
        return bool((affine.scale > 0).all()) and not any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:])
    plain = "auto_pad" not in node.attributes or node.attributes["auto_pad"].as_string() in ("NOTSET", "VALID")
    plain = plain and not ("pads" in node.attributes and any(node.attributes["pads"].as_ints()))
    plain = plain and not ("ceil_mode" in node.attributes and node.attributes["ceil_mode"].as_int())
    return node.op_type == "AveragePool" and (plain or not affine.shift.any())


def _fold_forward(affine: Affine) -> bool:
    last = affine.nodes[-1]
    output = last.outputs[0]
    users = [use.node for use in output.uses() if use.idx == 0 and is_linear(use.node) and use.node.graph is last.graph]
    if not users or output.is_graph_output() or len(users) != len(output.uses()):
        return False
    if absorb_before(users, affine.scale, affine.shift):
        output.replace_all_uses_with(affine.source)
        _remove(affine.nodes)
        return True
    # Only for one factor for all channels: one a channel may be what keeps them alike, which 8 bits need.
    if affine.scale.size != 1 or affine.scale[0] == 1 or not 1 / _LARGEST < abs(affine.scale[0]) < _LARGEST:
        return False
    rest = Affine(affine.source, np.ones(1), affine.shift / affine.scale, affine.nodes)
    if np.abs(rest.shift).max() > _LARGEST or not absorb_before(users, affine.scale, np.zeros(1)):
        return False
    output.replace_all_uses_with(_affine.write(rest, last))
    _remove(affine.nodes)
    return True


def _move_past_pooling(affine: Affine) -> bool:
    """Fewer numbers are left to do it to."""
    last = affine.nodes[-1]
    pool = next(iter(last.outputs[0].uses())).node if is_private(last.outputs[0]) else None
    if pool is None or pool.graph is not last.graph or pool.domain or pool.op_type not in _POOLING or not _commutes(pool, affine):
        return False
    if not _affine.can_be_of(affine, pool.outputs[0]):
        return False
    pooled, inside = pool.outputs[0], pool.graph
    assert isinstance(inside, onnx_ir.Graph)
    pool.replace_input_with(0, affine.source)
    _remove(affine.nodes)
    users = list(pooled.uses())
    moved = _affine.write(Affine(pooled, affine.scale, affine.shift, affine.nodes), pool)
    for use in users:
        use.node.replace_input_with(use.idx, moved)
    for place, output in enumerate(inside.outputs):
        if output is pooled:
            inside.outputs[place] = moved
    pooled.name, moved.name = moved.name, pooled.name
    return True


def _shorten(affine: Affine) -> bool:
    last = affine.nodes[-1]
    needed = len(_affine.needed(affine))
    output = last.outputs[0]
    if needed >= len(affine.nodes) or (output.is_graph_output() and not needed):
        return False
    written = _affine.write(affine, last)
    output.replace_all_uses_with(written, replace_graph_outputs=True)
    _remove(affine.nodes)
    if needed:
        name, output.name = output.name, None
        written.name, written.shape, written.type = name, output.shape, output.type
    return True


def _remove(nodes: tuple[onnx_ir.Node, ...]) -> None:
    for node in reversed(nodes):
        if node.graph is not None:
            node.graph.remove(node, safe=True)
