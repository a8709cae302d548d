"""What integers mean, and the scales that hold what was seen."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgesdk import graph, saturation
from edgesdk.calibration import Range
from edgesdk.graph import Array, Model
from edgesdk.passes._sites import MOVING, Affine, Site, axis_of

_WIDER = 1.25  # times the range that a tensor has by itself
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Grid:
    """What a tensor's integers mean: (q - zero_point) · scale, along an axis or for all of it."""

    scale: Array
    zero_point: Array
    axis: int | None = None

    def integers(self, values: Array) -> Array:
        """The nearest ones, saturated: symmetrically, where nought is nought, as TensorRT has it for weights."""
        shape = self._shape(values)
        limits = np.iinfo(self.zero_point.dtype)
        numbers = np.rint(values.astype(np.float64) / self.scale.astype(np.float64).reshape(shape)) + self.zero_point.astype(np.float64).reshape(shape)
        least = limits.min if self.zero_point.any() else max(limits.min, -limits.max)
        return np.clip(numbers, least, limits.max).astype(self.zero_point.dtype)

    def values(self, integers: Array) -> Array:
        """What they stand for."""
        shape = self._shape(integers)
        return np.asarray((integers.astype(np.float64) - self.zero_point.reshape(shape)) * self.scale.astype(np.float64).reshape(shape), np.float32)

    def relabelled(self, factor: float, offset: float) -> "Grid | None":
        """The grid of ``factor · x + offset`` on the integers of x; None where nought would not be one of them, or lie between two."""
        scale = factor * float(self.scale)
        steps = offset / scale
        zero_point = int(self.zero_point) - round(steps)
        limits = np.iinfo(self.zero_point.dtype)
        if abs(steps - round(steps)) > 0.02 or not limits.min <= zero_point <= limits.max or not _TINY < scale < np.inf:
            return None
        return Grid(np.array(scale, np.float32), np.array(zero_point, self.zero_point.dtype))

    def _shape(self, array: Array) -> list[int]:
        """That lets the scales go along their axis."""
        shape = [1] * array.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return shape


@dataclass(frozen=True)
class Grids:
    """How everything around the sites becomes integers."""

    activations: dict[str, Grid]
    operand: Callable[[Site, int, Array], Grid]  # a constant operand, in its place
    weight: Callable[[Site, Array, Grid], Grid]  # given the input's
    bias: Callable[[Site, Array, Grid, Grid], Grid | None]  # given the input's and the weights'; None: it stays float32
    relabelled: dict[str, str] = field(default_factory=dict)  # a tensor on another's integers, under a grid of its own
    written: dict[str, Grid] = field(default_factory=dict)  # where what is written means something else than what is read


@dataclass(frozen=True)
class Levels:
    """The integers of a scheme: of activations, and of weights."""

    activations: Literal["int8", "uint8", "int16", "uint16"]
    symmetric: bool
    per_channel: bool
    reduce_range: bool
    bias: Literal["int32", "int8", "float32"]


@dataclass(frozen=True)
class _Chain:
    """What scales and shifts make of a tensor: ``factor · given + offset``."""

    given: str
    factor: float
    offset: float


def by_magnitude(work: Model, found: dict[str, Range], affines: list[Affine], levels: Levels) -> Grids:
    """Every scale the finest that holds what was seen; what only moves, scales or shifts numbers keeps their integers."""
    source = _moved(work, set(found))
    chained = [affine for affine in affines if affine.given in found and not levels.symmetric]
    grids, relabelled = _activations(found, source, chained, levels)

    def operand(site: Site, place: int, array: Array) -> Grid:
        if site.node.op_type == "MatMul" and place == 1 and array.ndim == 2:
            return weight_grid(array, array.ndim - 1, np.zeros(1), levels)
        return grid_of(Range(float(array.min()), float(array.max())), levels)

    def weight(site: Site, array: Array, given: Grid) -> Grid:
        bias = graph.constant(site.node.inputs[2]) if len(site.node.inputs) > 2 else None
        # A channel of almost no weight would need a bias beyond int32.
        least = np.zeros(1) if bias is None or levels.bias != "int32" else np.abs(bias.astype(np.float64)) / (2**30 * float(given.scale))
        return weight_grid(array, axis_of(site.node), least, levels)

    def bias(_site: Site, array: Array, given: Grid, weight: Grid) -> Grid | None:
        if levels.bias == "float32":
            return None
        scale = np.asarray(given.scale.astype(np.float64) * weight.scale.astype(np.float64), np.float32)
        if scale.ndim and scale.size != array.size:  # ConvTranspose: an axis of out / group
            scale = np.tile(scale, array.size // scale.size)
        return Grid(scale, np.zeros(scale.shape, np.int32), 0 if scale.ndim else None)

    return Grids(grids, operand, weight, bias, relabelled)


def _activations(found: dict[str, Range], source: dict[str, str], affines: list[Affine], levels: Levels) -> tuple[dict[str, Grid], dict[str, str]]:
    """The grid of each tensor, and which of them lie on another's integers."""
    seen = dict(found)
    for name, origin in source.items():
        seen[origin] = seen[origin].joined(found[name])
    planned = _planned(affines, source, seen)
    grids = {name: grid_of(seen[source[name]], levels) for name in found}
    settled = set(planned)
    for chain in planned.values():  # the first offset to be asked for is a whole number of steps
        origin = source[chain.given]
        if chain.offset and origin not in settled:
            grids.update(dict.fromkeys((name for name in source if source[name] == origin), _on_a_step(grids[origin], chain)))
            settled.add(origin)
    relabelled: dict[str, _Chain] = {}
    for affine in affines:
        chain = _chained(affine, relabelled)
        grid = grids[chain.given].relabelled(chain.factor, chain.offset)
        if grid is not None and affine.made in planned and source[affine.made] == affine.made:
            relabelled[affine.made] = chain
            grids.update(dict.fromkeys((name for name in source if source[name] == affine.made), grid))
    return grids, {made: chain.given for made, chain in relabelled.items()}


def _planned(affines: list[Affine], source: dict[str, str], seen: dict[str, Range]) -> dict[str, _Chain]:
    """Those for which what becomes nought can be held without much loss to whoever else reads the tensor; ``seen`` is widened for them."""
    planned: dict[str, _Chain] = {}
    for affine in affines:
        chain = _chained(affine, planned)
        origin, nought = source[chain.given], -chain.offset / chain.factor
        before = seen[origin].joined(Range(0.0, 0.0))
        widened = before.joined(Range(nought, nought))
        if widened.high - widened.low <= _WIDER * (before.high - before.low):
            planned[affine.made] = chain
            seen[origin] = widened
    return planned


def grid_of(seen: Range, levels: Levels) -> Grid:
    """The finest one that holds the range and zero."""
    limits = np.iinfo(levels.activations)
    if levels.symmetric:
        scale, zero = seen.bound / (limits.max - (limits.max + limits.min + 1) // 2), (limits.min + limits.max + 1) // 2
    else:
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        scale = (high - low) / (limits.max - limits.min)
        zero = int(np.clip(np.rint(limits.min - low / scale), limits.min, limits.max)) if scale > _TINY else 0
    return Grid(np.array(scale if scale > _TINY else 1.0, np.float32), np.array(zero, levels.activations))


def weight_grid(array: Array, axis: int, least: Array, levels: Levels) -> Grid:
    """Symmetric, by channel or for all, and no scale below the least for its channel; with `reduce_range` none that can saturate."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    scale = np.abs(rows).max(axis=1) / 127
    if levels.reduce_range:
        scale = np.maximum(scale, saturation.greatest_pairs(rows) / (saturation.PAIR - 1))  # both may be rounded up, by half each
    if not levels.per_channel:
        scale = np.maximum(scale.max(), least.max())
    else:
        scale = np.maximum(scale, least.reshape(-1, scale.size).max(axis=0) if least.size > 1 else least)
    scale = np.asarray(np.where(scale > _TINY, scale, 1.0), np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int8), axis if levels.per_channel else None)


def _moved(work: Model, names: set[str]) -> dict[str, str]:
    """For each tensor the one whose numbers it holds: itself, but for what a pool or a reshape answers."""
    source = {name: name for name in names}
    for node in work.graph:
        if node.op_type in MOVING and not node.domain and node.inputs[0] is not None and {node.inputs[0].name, node.outputs[0].name} <= names:
            source[str(node.outputs[0].name)] = source[str(node.inputs[0].name)]
    return source


def _chained(affine: Affine, before: dict[str, _Chain]) -> _Chain:
    """The affine after those before it."""
    chain = before.get(affine.given, _Chain(affine.given, 1.0, 0.0))
    return _Chain(chain.given, chain.factor * affine.factor, chain.offset * affine.factor + affine.offset)


def _on_a_step(grid: Grid, chain: _Chain) -> Grid:
    """The grid made a little coarser, so that the offset is a whole number of steps."""
    steps = chain.offset / (chain.factor * float(grid.scale))
    whole = np.trunc(steps)
    if not whole:
        return grid
    limits = np.iinfo(grid.zero_point.dtype)
    zero = np.clip(np.rint(limits.min + (int(grid.zero_point) - limits.min) * whole / steps), limits.min, limits.max)
    return Grid(np.array(float(grid.scale) * steps / whole, np.float32), np.array(zero, grid.zero_point.dtype))
