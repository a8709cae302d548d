"""How many units each group keeps, so that the whole costs no more than it may and answers as nearly as it can.

    kept = allocate(costs, tables, limit)

Costs are sums of products: a layer's multiply-accumulates shrink with its input channels and with its output channels. Effects are taken
to add up over the groups. From all units, again and again the step that costs least effect for what it saves, which overshoots; then
iterated: one group is set otherwise, the others are brought back within the limit and filled up to it, and what is better stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import costs, graph
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes._dimensions import Dimensions
from edgesdk.passes._readers import GATES
from edgesdk.passes._ties import Axis

_EXACT = 1e-9


@dataclass(frozen=True)
class Costs:
    """Items of a base cost, each times the kept shares of its axes; a unit of a group takes a share of an axis."""

    bases: Array  # [items]
    shares: Array  # [groups, items, axes]

    def of(self, removed: Array) -> float:
        """With so many units of each group removed."""
        return float((self.bases * (1 - np.tensordot(removed, self.shares, 1)).prod(axis=1)).sum())


def of_macs(model: Model, dimensions: Dimensions, feeds: Feeds) -> Costs:
    """Multiply-accumulates."""
    items: list[tuple[float, Sequence[Axis]]] = []
    by_node = costs.macs(model, costs.shapes(model, feeds))
    for node in model.graph:
        name = str(node.name)
        if name not in by_node:
            continue
        weights = [place for place in ((1, 2) if node.op_type in GATES else (1,)) if (name, place) in dimensions.constants]
        sizes = [_size(node, place) for place in weights]
        items += [(by_node[name] * size / sum(sizes), dimensions.constants[name, place]) for place, size in zip(weights, sizes, strict=True)]
        if not weights:
            contracted, made = (dimensions.axes.get(str(value.name), ()) if value is not None else () for value in (node.inputs[0], node.outputs[0]))
            items.append((by_node[name], (*made, *contracted[-1:])))
    return _costs(dimensions, items)


def of_parameters(model: Model, dimensions: Dimensions) -> Costs:
    """Numbers in constants."""
    nodes = {str(node.name): node for node in model.graph}
    constants = {nodes[name].inputs[place]: axes for (name, place), axes in dimensions.constants.items()}
    items: list[tuple[float, Sequence[Axis]]] = [(array.size, axes) for value, axes in constants.items() if (array := graph.constant(value)) is not None]
    items.append((graph.describe(model).parameters - sum(size for size, _ in items), ()))
    return _costs(dimensions, items)


def _size(node: onnx_ir.Node, place: int) -> int:
    array = graph.constant(node.inputs[place])
    return 0 if array is None else int(array.size)


def _costs(dimensions: Dimensions, items: list[tuple[float, Sequence[Axis]]]) -> Costs:
    groups = dimensions.groups
    of_class = np.full(len(dimensions.roots), len(groups))
    for number, group in enumerate(groups):
        of_class[dimensions.units[group.name]] = number
    counts = np.array([group.count for group in groups])
    shares = np.zeros((len(groups), len(items), max((len(axes) for _, axes in items), default=0)))
    for item, (_, axes) in enumerate(items):
        for place, axis in enumerate(axes):
            if axis.atoms is not None and len(axis.atoms):
                of_group = np.bincount(of_class[dimensions.roots[axis.atoms]], minlength=len(groups) + 1)[:-1]
                shares[:, item, place] = of_group / len(axis.atoms) / counts
    return Costs(np.array([base for base, _ in items]), shares)


@dataclass(frozen=True)
class Table:
    """For one group: how many of its units may be removed, none first, and what each does to the model's answers, never falling."""

    removed: Array
    effects: Array


def allocate(costs: Costs, tables: Sequence[Table], limit: float) -> list[int]:
    """For each group the place in its table. Where the limit is out of reach, the last places."""
    search = _Search(costs, tables, limit)
    best = search.filled(search.lowered([0] * len(tables)))
    improved = True
    while improved:
        improved = False
        for group, table in enumerate(tables):
            for place in range(len(table.removed)):
                if place == best[group]:
                    continue
                tried = search.filled(search.lowered([*best[:group], place, *best[group + 1 :]], fixed=group))
                if search.rank(tried) < search.rank(best):
                    best, improved = tried, True
    return best


class _Search:
    """Steps between allocations."""

    def __init__(self, costs: Costs, tables: Sequence[Table], limit: float) -> None:
        longest = max((len(table.removed) for table in tables), default=1)
        self._lengths = np.array([len(table.removed) for table in tables])
        self._removed = np.array([np.pad(table.removed, (0, longest - len(table.removed)), "edge") for table in tables])  # [groups, places]
        self._effects = np.array([np.pad(table.effects, (0, longest - len(table.effects)), "edge") for table in tables])
        self._limit = limit
        touched = [np.flatnonzero(costs.shares[group].any(axis=1)) for group in range(len(tables))]
        most = max((len(items) for items in touched), default=0)
        self._costs = costs
        self._items = np.array([np.pad(items, (0, most - len(items))) for items in touched])  # [groups, most]
        self._bases = np.array([np.pad(costs.bases[items], (0, most - len(items))) for items in touched])
        self._shares = np.array([np.pad(costs.shares[group, items], ((0, most - len(items)), (0, 0))) for group, items in enumerate(touched)])

    def rank(self, places: list[int]) -> tuple[float, float]:
        """The lower the better."""
        cost = self._cost(places)
        return max(cost - self._limit * (1 + _EXACT), 0.0), float(self._effects[range(len(places)), places].sum())

    def lowered(self, places: list[int], fixed: int = -1) -> list[int]:
        """Within the limit, by the cheapest steps; the group ``fixed`` stays as long as there is another."""
        places = list(places)
        while (over := self._cost(places) - self._limit) > self._limit * _EXACT:
            saved = np.minimum(-self._changes(places), over)
            lost = self._effects - self._effects[range(len(places)), places][:, None]
            possible = (saved > 0) & (np.arange(self._effects.shape[1]) > np.array(places)[:, None])
            if fixed >= 0 and possible[np.arange(len(places)) != fixed].any():
                possible[fixed] = False
            if not possible.any():
                return places
            rates = np.where(possible, lost / np.where(possible, saved, 1), np.inf)
            group, place = np.unravel_index(rates.argmin(), rates.shape)
            places[group] = int(place)
        return places

    def filled(self, places: list[int]) -> list[int]:
        """What the limit leaves is given back where that helps most."""
        places = list(places)
        while True:
            room = self._limit * (1 + _EXACT) - self._cost(places)
            won = self._effects[range(len(places)), places][:, None] - self._effects
            possible = (self._changes(places) <= room) & (won > 0)
            if not possible.any():
                return places
            group, place = np.unravel_index(np.where(possible, won, -np.inf).argmax(), won.shape)
            places[group] = int(place)

    def _cost(self, places: list[int]) -> float:
        return self._costs.of(self._removed[range(len(places)), places])

    def _changes(self, places: list[int]) -> Array:
        """By how much the cost would change if one group alone had another place, [groups, places]."""
        now = self._removed[range(len(places)), places]
        kept = 1 - np.tensordot(now, self._costs.shares, 1)  # [items, axes]
        of_group = kept[self._items]  # [groups, most, axes]
        more = self._removed - now[:, None]  # [groups, places]
        after = (of_group[:, None] - more[:, :, None, None] * self._shares[:, None]).prod(axis=3)
        return np.asarray(((after - of_group.prod(axis=2)[:, None]) * self._bases[:, None]).sum(axis=2))
