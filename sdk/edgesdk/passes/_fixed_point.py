"""Positions for the Vitis DPU: each tensor's own by least squared error, then lowered until every shift fits its register."""

import numpy as np
import onnx_ir

from edgesdk import positions
from edgesdk.calibration import HISTOGRAM_BINS, Range
from edgesdk.graph import Array, Model
from edgesdk.passes._grids import Grid, Grids
from edgesdk.passes._sites import MOVING, Site

_ALIKE = MOVING | {"Concat", "Pad", "Resize"}  # the DPU reads and writes these at one position
_SIGMOIDS = {"Sigmoid", "HardSigmoid"}

Key = str | tuple[str, int]  # an activation's name, or a node's name and the place of a constant operand
Positions = dict[Key, int]


def fixed_point(work: Model, sites: list[Site], found: dict[str, Range]) -> Grids:
    """Scales that are powers of two, within the bounds of `edgesdk.positions`."""
    at: Positions = {name: _best(seen) for name, seen in found.items()}
    at.update({(str(site.node.name), place): positions.best_for(array) for site in sites for place, array in site.operands()})
    alike = [keys for node in work.graph if node.op_type in _ALIKE and len(keys := _around(node, at)) > 1]
    while any([_level(keys, at) for keys in alike] + [_fit(site, at) for site in sites]):
        pass

    def operand(site: Site, place: int, _array: Array) -> Grid:
        return _grid(at[str(site.node.name), place])

    def weight(site: Site, array: Array, given: Grid) -> Grid:
        position = _position(fixed_point_weight(array))
        if site.output is not None:
            between = at[str(site.output.name)] - _position(given)
            position = min(max(position, positions.CUT[0] + between), positions.CUT[1] + between)
        return _grid(position)

    def bias(site: Site, array: Array, given: Grid, weight: Grid) -> Grid:
        product = _position(weight) + _position(given)
        cut = product - at[str(site.output.name)] if site.output is not None else 0
        low, high = positions.bias_bounds(cut)
        return _grid(min(max(positions.best_for(array, finer=0), product - high), product - low))

    return Grids({name: _grid(at[name]) for name in found}, operand, weight, bias)


def fixed_point_weight(array: Array) -> Grid:
    """Where weights lie best, before shifts are looked at."""
    return _grid(positions.best_for(array, finer=2))


def _best(seen: Range) -> int:
    if seen.counts is None or seen.bound == 0:
        return positions.widest(seen.bound)
    step = 2 * seen.bound / HISTOGRAM_BINS
    return positions.best_for((np.arange(HISTOGRAM_BINS) + 0.5) * step - seen.bound, seen.counts)


def _around(node: onnx_ir.Node, at: Positions) -> list[Key]:
    """The positions of what a node reads and writes."""
    keys: list[Key] = [str(value.name) for value in (*node.inputs, *node.outputs) if value is not None]
    keys += [(str(node.name), place) for place in range(len(node.inputs))]
    return [key for key in keys if key in at]


def _level(keys: list[Key], at: Positions) -> bool:
    """All of them at the lowest. Whether anything changed."""
    lowest = min(at[key] for key in keys)
    changed = [_lower(key, lowest, at) for key in keys]
    return any(changed)


def _fit(site: Site, at: Positions) -> bool:
    """Lower what an Add, Sub or Mul reads or writes until its shifts fit. Whether anything changed."""
    if site.output is None or site.node.op_type not in ("Add", "Sub", "Mul"):
        return False
    output = str(site.output.name)
    inputs = [key for place in sorted((*site.data, *site.constants)) for key in _read(site, place)]
    if site.node.op_type == "Mul":
        low, high = positions.SWISH_WRITE if is_swish(site.node) else positions.MUL_WRITE
        total = sum(at[key] for key in inputs)
        finest = max(inputs, key=lambda key: at[key])
        return any([_lower(output, total - low, at), _lower(finest, at[finest] - (total - at[output] - high), at)])
    least = min(at[key] for key in inputs)
    changed = [_lower(key, min(least + positions.READ[1], at[output] + positions.ADD_WRITE[1]), at) for key in inputs]
    return any([*changed, _lower(output, least - positions.ADD_WRITE[0], at)])


def is_swish(node: onnx_ir.Node) -> bool:
    """Whether the Mul is of x and a sigmoid of x."""
    for value, gate in (node.inputs, reversed(node.inputs)):
        producer = gate.producer() if gate is not None else None
        if producer is not None and producer.op_type in _SIGMOIDS and producer.inputs[0] is value:
            return True
    return False


def _read(site: Site, place: int) -> list[Key]:
    value = site.node.inputs[place]
    key: Key = (str(site.node.name), place) if place in site.constants or value is None else str(value.name)
    return [key]


def _lower(key: Key, position: int, at: Positions) -> bool:
    if at[key] <= position:
        return False
    at[key] = position
    return True


def _grid(position: int) -> Grid:
    return Grid(np.array(2.0**-position, np.float32), np.array(0, np.int8))


def _position(grid: Grid) -> int:
    position = positions.of_scale(float(grid.scale))
    assert position is not None
    return position
