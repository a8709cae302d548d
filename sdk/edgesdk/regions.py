"""Where to cut a graph into float and 8-bit regions.

    parts = groups(model, targets)          # layers, each with the element-wise operators behind it
    cheapest(parts, links, costs)           # which of them should be 8-bit

A change of precision costs: integers are made and unmade, and layouts change with them. So layers are not chosen one by one.
Each layer has a cost in float and one in 8 bits, each tensor a cost if its two ends differ, and the cheapest choice is a minimum
cut between the two (Greig, Porteous, Seheult 1989: exact for two labels), found by augmenting paths (Edmonds, Karp 1972).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgesdk.graph import Model

LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}  # each begins a group


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that are 8-bit or float together, by name."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A tensor between two groups; between a group and what is always float if one of them is None."""

    tensor: str
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class Costs:
    """Of each group in float and in 8 bits, and of each link whose ends differ. All in the same unit."""

    float_: Sequence[float]
    int8: Sequence[float]
    links: Sequence[float]


def groups(model: Model, targets: Iterable[str], *, most: int) -> list[Group]:
    """The targets in groups of neighbours, in the graph's order: each layer with what follows it, the shortest joined while there are more than ``most``."""
    wanted = set(targets)
    made: list[list[str]] = []
    of: dict[str, int] = {}
    for node in model.graph:
        name = str(node.name)
        if name not in wanted:
            continue
        before = [of[str(producer.name)] for value in node.inputs if value is not None and (producer := value.producer()) is not None and producer.name in of]
        if node.op_type in LAYERS or not before:
            made.append([])
        place = len(made) - 1 if node.op_type in LAYERS or not before else max(before)
        of[name] = place
        made[place].append(name)
    while len(made) > most:
        shortest = min(range(len(made) - 1), key=lambda place: len(made[place]) + len(made[place + 1]))
        made[shortest : shortest + 2] = [made[shortest] + made[shortest + 1]]
    return [Group(tuple(names)) for names in made]


def links(model: Model, parts: Sequence[Group]) -> list[Link]:
    """The tensors that lie between the groups, or between one and the rest."""
    of = {name: place for place, group in enumerate(parts) for name in group.nodes}
    found: dict[Link, None] = {}
    for node in model.graph:
        for value in node.outputs:
            before = of.get(str(node.name))
            after = {of.get(str(use.node.name)) for use in value.uses()} | ({None} if value.is_graph_output() else set())
            found.update({Link(str(value.name), before, end): None for end in after if end != before})
    for value in model.graph.inputs:
        found.update({Link(str(value.name), None, end): None for use in value.uses() if (end := of.get(str(use.node.name))) is not None})
    return list(found)


def cheapest(parts: Sequence[Group], between: Sequence[Link], costs: Costs) -> frozenset[int]:
    """Which groups are 8-bit where the whole costs least."""
    source, sink = len(parts), len(parts) + 1  # those on the source's side are 8-bit
    capacity: list[dict[int, float]] = [{} for _ in range(len(parts) + 2)]

    def join(start: int, end: int, cost: float) -> None:
        capacity[start][end] = capacity[start].get(end, 0.0) + cost
        capacity[end].setdefault(start, 0.0)

    for place in range(len(parts)):
        least = min(costs.float_[place], costs.int8[place])
        join(source, place, costs.float_[place] - least)
        join(place, sink, costs.int8[place] - least)
    for link, cost in zip(between, costs.links, strict=True):
        ends = [sink if end is None else end for end in (link.before, link.after)]
        for start, end in (ends, reversed(ends)):
            join(start, end, cost)
    while path := _augmenting(capacity, source, sink):
        least = min(capacity[start][end] for start, end in path)
        for start, end in path:
            capacity[start][end] -= least
            capacity[end][start] += least
    return frozenset(_reachable(capacity, source)) - {source}


def _augmenting(capacity: list[dict[int, float]], source: int, sink: int) -> list[tuple[int, int]]:
    """The shortest path that still carries something; none: empty."""
    came = _reachable(capacity, source)
    if sink not in came:
        return []
    path, place = [], sink
    while place != source:
        path.append((came[place], place))
        place = came[place]
    return path


def _reachable(capacity: list[dict[int, float]], source: int) -> dict[int, int]:
    """Each place that can be reached, and from where."""
    came, waiting = {source: source}, deque([source])
    while waiting:
        place = waiting.popleft()
        for end, left in capacity[place].items():
            if left > 1e-12 and end not in came:
                came[end] = place
                waiting.append(end)
    return came
