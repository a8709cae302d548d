"""Positions for the Vitis DPU: each tensor's own by least squared error, then lowered until every shift fits its register."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from edgesdk import dpu, graph, positions
from edgesdk.calibration import Range
from edgesdk.graph import Array, Model
from edgesdk.passes._grids import Grid, Grids
from edgesdk.passes._sites import MOVING, WEIGHTED, Site, absorbed_by, axis_of

_ALIKE = MOVING | {"Concat", "Pad", "Resize", *dpu.POOLS}  # the DPU reads and writes these at one position

Key = str | tuple[str, int]  # an activation's name, or a node's name and the place of a constant operand


def fixed_point(work: Model, sites: list[Site], found: dict[str, Range]) -> Grids:
    """Scales that are powers of two, within the bounds of `edgesdk.positions`."""
    at = _Positions(_alike(work))
    for name, seen in found.items():
        at.hold(name, _best(seen))
    for site in sites:
        for place, array in site.operands():
            at.hold((str(site.node.name), place), positions.best_for(array))
        if dpu.is_hard_sigmoid(site.node) and site.output is not None:
            at.bind(_read(site, 0), *positions.SIGMOID_READ)
            at.bind(str(site.output.name), positions.SIGMOID_WRITTEN, positions.SIGMOID_WRITTEN)
    while sum(_fit(site, at) for site in sites):
        pass

    def operand(site: Site, place: int, _array: Array) -> Grid:
        return _grid(at[str(site.node.name), place])

    def weight(site: Site, array: Array, given: Grid) -> Grid:
        position = positions.best_for(array, finer=2)
        if site.output is not None:
            between = at[str(site.output.name)] - _position(given)
            position = min(max(position, positions.CUT[0] + between), positions.CUT[1] + between)
        while _sums_beyond(site, array, position):
            position -= 1
        return _grid(position)

    def bias(_site: Site, array: Array, given: Grid, weight: Grid) -> Grid:
        product = _position(weight) + _position(given)
        return _grid(min(max(positions.best_for(array, finer=0), product - positions.BIAS[1]), product - positions.BIAS[0]))

    return Grids({name: _grid(at[name]) for name in found}, operand, weight, bias)


def _best(seen: Range) -> int:
    if seen.centres is None or seen.bound == 0:
        return positions.widest(seen.bound)
    return positions.best_for(seen.centres, seen.counts)


@dataclass
class _Positions:
    """Of everything that is 8-bit; what lies alike has one. They only ever fall, and not below what binds them."""

    first: dict[Key, Key]  # of those that lie alike
    _at: dict[Key, int] = field(default_factory=dict)
    _bounds: dict[Key, tuple[int, int]] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> int:
        return self._at[self.first.get(key, key)]

    def hold(self, key: Key, position: int) -> None:
        """No finer than this."""
        first = self.first.get(key, key)
        self._at[first] = min(position, self._at.get(first, position))

    def bind(self, key: Key, low: int, high: int) -> None:
        """Neither finer nor coarser."""
        first = self.first.get(key, key)
        before = self._bounds.get(first, (low, high))
        self._bounds[first] = low, high = max(low, before[0]), min(high, before[1])
        self._at[first] = max(min(self._at[first], high), low)

    def lower(self, key: Key, position: int) -> bool:
        """To this, or as far as may be. Whether that changes anything."""
        first = self.first.get(key, key)
        position = max(position, self._bounds[first][0]) if first in self._bounds else position
        if self._at[first] <= position:
            return False
        self._at[first] = position
        return True

    def room(self, key: Key) -> int:
        """By how much it can be lowered."""
        first = self.first.get(key, key)
        return self._at[first] - self._bounds[first][0] if first in self._bounds else 1 << 10


def _alike(work: Model) -> dict[Key, Key]:
    """For all that has to lie at one position with something else, the same one of them."""
    first: dict[Key, Key] = {}
    for node in work.graph:
        if node.domain or node.op_type not in _ALIKE or (node.op_type == "Resize" and not _takes_nearest(node)):
            continue
        data = range(len(node.inputs)) if node.op_type == "Concat" else (0,)
        keys: list[Key] = [(str(node.name), place) if graph.constant(node.inputs[place]) is not None else _name(node.inputs[place]) for place in data]
        after = absorbed_by(node)
        keys += [_name(value) for value in (node.outputs[0], *(after.outputs if after is not None else ()))]
        joined = {first.get(key, key) for key in keys}
        least = min(joined, key=str)
        first.update({key: least for key, one in first.items() if one in joined} | dict.fromkeys((*keys, *joined), least))
    return first


def _takes_nearest(node: onnx_ir.Node) -> bool:
    return "mode" not in node.attributes or node.attributes["mode"].as_string() == "nearest"


def _name(value: onnx_ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _fit(site: Site, at: _Positions) -> bool:
    """Lower what an Add, Sub or Mul reads or writes until its shifts fit. Whether anything changed."""
    if site.output is None or site.node.op_type not in ("Add", "Sub", "Mul"):
        return False
    output = str(site.output.name)
    inputs = [_read(site, place) for place in sorted((*site.data, *site.constants))]
    if site.node.op_type == "Mul":
        low, high = positions.SWISH_WRITE if dpu.is_swish(site.node) else positions.MUL_WRITE
        total = sum(at[key] for key in inputs)
        finest = max(inputs, key=lambda key: (at.room(key) > 0, at[key]))
        return any([at.lower(output, total - low), at.lower(finest, at[finest] - (total - at[output] - high))])
    least = min(at[key] for key in inputs)
    changed = [at.lower(key, min(least + positions.READ[1], at[output] + positions.ADD_WRITE[1])) for key in inputs]
    return any([*changed, at.lower(output, least - positions.ADD_WRITE[0])])


def _sums_beyond(site: Site, array: Array, position: int) -> bool:
    """Whether products with these weights may add up to more than float32 counts one by one: onnxruntime would round where the DPU does not."""
    integers = np.abs(_grid(position).integers(array).astype(np.int64))
    axis = axis_of(site.node) if site.node.op_type in WEIGHTED else -1
    sums = integers.sum(axis=tuple(place for place in range(array.ndim) if place != axis % array.ndim))
    return bool(sums.max(initial=0) * -positions.LOWEST > positions.MOST)


def _read(site: Site, place: int) -> Key:
    value = site.node.inputs[place]
    return (str(site.node.name), place) if place in site.constants or value is None else str(value.name)


def _grid(position: int) -> Grid:
    return Grid(np.array(2.0**-position, np.float32), np.array(0, np.int8))


def _position(grid: Grid) -> int:
    position = positions.of_scale(float(grid.scale))
    assert position is not None
    return position
