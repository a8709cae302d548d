"""Channels that make no difference are taken out: those that are always zero, or the same number, and those to which nobody gives any weight.

Training leaves such channels behind (a Relu that never fires again, an L1 penalty, a mask), and they are computed like any other.
"""

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._constant_channels import ConstantChannels
from edgesdk.passes._dimensions import Dimensions, Slice, analyse, shrink
from edgesdk.passes._linear import absorb_before, is_linear, reads_all_alike

_GATED = ("LSTM", "GRU", "RNN")


def remove_dead_channels(model: Model) -> Model:
    """The same function with fewer channels, as long as what is computed stays finite; the model itself where there are none to take out.

    What channels that are constant, and not zero, add to those after them goes into their bias, unless a Conv pads.
    """
    while _may_have_any(model):
        folded = graph.clone(model)
        dimensions = analyse(folded)
        dead = _dead(folded, dimensions)
        if not dead:
            break
        model = shrink(folded, dimensions, dead)
    return model


def _may_have_any(model: Model) -> bool:
    """Whether some weights are zero all along an index of their first axes: quick to tell, and mostly they are not."""
    for node in model.graph:
        for array in map(graph.constant, node.inputs):
            if array is not None and array.ndim > 1:
                axes = range(3 if node.op_type in _GATED else 2)
                if any(not array.any(axis=tuple(each for each in range(array.ndim) if each != axis)).all() for axis in axes):
                    return True
    return False


def _dead(model: Model, dimensions: Dimensions) -> dict[str, list[int]]:
    """The units by group. What they add to those who read them is in these' biases afterwards."""
    constants = ConstantChannels(model, dimensions)
    nodes = {str(node.name): node for node in model.graph}
    dead: dict[str, list[int]] = {}
    shifts: dict[str, Array] = {}
    for group in dimensions.groups:
        if group.mixes or not group.readers:
            continue
        added = [_added(nodes[reader.node], reader, constants, dimensions.units[group.name]) for reader in group.readers]
        units = np.flatnonzero(np.isfinite(added).all(axis=0))[: group.count - 1]
        if len(units):
            dead[group.name] = units.tolist()
        for reader, numbers in zip(group.readers, added, strict=True):
            shift = np.array([numbers[unit] if unit in units else 0 for unit in reader.units])
            if shift.any():
                shifts[reader.node] = shifts.get(reader.node, 0) + shift
    return dead if all(_shift(nodes[name], shift) for name, shift in shifts.items()) else {}


def _added(node: onnx_ir.Node, reader: Slice, constants: ConstantChannels, classes: Array) -> Array:
    """What each unit always is for a node that reads it, so that its bias can take that up; 0 where it gives the unit no weight, NaN where nobody knows."""
    weight = graph.constant(node.inputs[reader.place])
    assert weight is not None
    read = node.outputs[0] if node.op_type in _GATED and reader.place == 2 else node.inputs[0 if reader.place else 1]
    known = constants.known(read) if node.op_type != "Einsum" else {}
    of_class = np.array([known.get(int(each), np.nan) for each in classes])
    if not (is_linear(node) and reader.place == 1 and reads_all_alike(node)):
        of_class[of_class != 0] = np.nan
    used = {unit for unit, weights in zip(reader.units, np.moveaxis(weight, reader.axis, 0), strict=True) if weights.any()}
    unread = [unit not in used and all(value is None or constants.is_finite(value) for value in node.inputs) for unit in range(len(classes))]
    return np.where(unread, 0.0, of_class)


def _shift(node: onnx_ir.Node, shift: Array) -> bool:
    """The node's bias becomes what it answers for that. False where float32 does not hold the numbers."""
    weight, inside = node.inputs[1], node.graph
    assert weight is not None and isinstance(inside, onnx_ir.Graph)
    group = node.attributes["group"].as_int() if node.op_type == "Conv" and "group" in node.attributes else 1
    if not absorb_before([node], np.ones(1), np.tile(shift, group)):
        return False
    alike = node.inputs[1]
    node.replace_input_with(1, weight)
    if alike is not None and alike.name is not None:
        del inside.initializers[alike.name]
    return True
