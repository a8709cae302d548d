"""Whole channels go, and what is left is set anew so that the network answers what it answered: on the graph alone, without labels or training.

    smaller = prune(simplified, samples=calibration, macs=0.5, multiple=8)      # half of the multiply-accumulates stay

    found = survey(simplified, samples=calibration, multiple=8)                 # the same in steps
    found.prunable[3].effects                                                   # what fewer channels there do to the answers
    smaller = carry_out(found, choose(found, macs=0.5))

Which channels of a group go first is decided by what its readers can spare (`_readers`); how many, by what that does to the model's own
answers, measured group by group (`_allocation`); and then the layers are set anew from the first to the last (`_repair`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir

from edgesdk import costs, graph
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes._allocation import Costs, Table, allocate, of_macs, of_parameters
from edgesdk.passes._dimensions import Dimensions, Group, Whole, analyse, shrink
from edgesdk.passes._readers import (
    Elimination,
    Moments,
    Place,
    Reader,
    activity,
    add_biases,
    add_shift,
    eliminate,
    has_shift,
    is_reader,
    measure,
    moments_bytes,
    norms,
    units_of,
    weight_rows,
    write_rows,
)
from edgesdk.passes._repair import repair as repaired
from edgesdk.sampling import Samples, joined, shapes_of

SAMPLES = 512  # that are looked at
MERGED = 16  # samples at most run as one, where the model takes them so
MERGED_BYTES = 1 << 18  # of their inputs
MANY = 12  # multiples: of so many, two are taken at a time, for registers may be twice as wide (onnxruntime's blocks: 16 channels with AVX-512)
COUNTS = 32  # numbers of units at most that a group may keep
STEPS = 8  # of these for which the effect on the model's answers is measured; between them it follows the readers' error
JUDGED = 16, 256  # samples on which it is: the fewest, and the most
HELD_BYTES = 1 << 29  # of second moments
JUDGED_MACS = 1e12  # multiply-accumulates to be spent on it, in all

_TINY, _MOST = 1e-30, 1e6  # variance of answers, and share of it

Criterion = Literal["reconstruction", "activation", "l1", "l2"]
Cost = Literal["macs", "parameters"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prunable:
    """A group, in which order its units go, and what that does."""

    group: Group
    order: tuple[int, ...]
    counts: tuple[int, ...]  # of units that may stay, all of them first
    effects: tuple[float, ...]  # on the model's answers, as a share of their variance, for each of the counts


@dataclass(frozen=True)
class Survey:
    """What `choose` decides on and `carry_out` acts on."""

    model: Model
    prunable: tuple[Prunable, ...]
    whole: tuple[Whole, ...]
    macs: int  # of one sample
    parameters: int
    repair: bool
    _work: Model  # the model, its nodes named and with biases where repair wants them
    _dimensions: Dimensions
    _feeds: tuple[Feeds, ...]
    _costs: Mapping[Cost, Costs]

    def share(self, of: Cost, kept: Mapping[str, int]) -> float:
        """Of the multiply-accumulates or of the parameters, what stays when so many units of these groups do; of the others all."""
        removed = np.array([group.count - kept.get(group.name, group.count) for group in self._dimensions.groups], float)
        return self._costs[of].of(removed) / self._whole(of)

    def _whole(self, of: Cost) -> float:
        """Of the model given, in the units of the costs."""
        return self._costs["macs"].of(np.zeros(len(self._dimensions.groups))) if of == "macs" else float(self.parameters)


def prune(
    model: Model,
    *,
    samples: Samples,
    macs: float | None = None,
    parameters: float | None = None,
    multiple: int = 1,
    criterion: Criterion = "reconstruction",
    repair: bool = True,
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Model:
    """The model with that share of its multiply-accumulates or parameters, or less; the very same model where nothing can go.

    Channels come in multiples of ``multiple`` along the tensors that they make. ``criterion`` says which go first: those whose going costs
    the least when all other weights are set anew, or those of the least weight times activation, or of the least weights; ``repair=False``
    leaves the others' weights as they are. ``exclude`` names nodes whose weights keep their channels. Layers that can be set anew get a bias
    where they have none. Raises ModelError, SampleError.
    """
    found = survey(model, samples=samples, multiple=multiple, criterion=criterion, repair=repair, exclude=exclude, progress=progress)
    return carry_out(found, choose(found, macs=macs, parameters=parameters))


def survey(
    model: Model,
    *,
    samples: Samples,
    multiple: int = 1,
    criterion: Criterion = "reconstruction",
    repair: bool = True,
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Survey:
    """What can go, what that does to the answers, and what stays whole and why. ``progress`` is told how many groups are done, of how many."""
    if multiple < 1:
        raise ModelError(f"multiple is {multiple}: channels come in whole numbers", "1 leaves all numbers open")
    single, merged = _feeds(model, samples)
    work = graph.clone(model)
    if repair:
        add_biases(work)
    dimensions = analyse(work)
    counts = {group.name: _counts(group, multiple) for group in dimensions.groups}
    reasons = {group.name: _reason(group, counts[group.name], multiple, set(exclude)) for group in dimensions.groups}
    wanted = [group for group in dimensions.groups if reasons[group.name] is None]
    prunable: list[Prunable] = []
    for ranked in _ranked(work, wanted, counts, criterion, merged, repair=repair, dimensions=dimensions):
        prunable.append(ranked)
        if progress:
            progress(len(prunable), len(wanted))
    kept_whole = [Whole(group.name, group.count * group.width, reason) for group in dimensions.groups if (reason := reasons[group.name]) is not None]
    return Survey(
        model=model,
        prunable=tuple(prunable),
        whole=(*dimensions.whole, *kept_whole),
        macs=sum(costs.macs(work, costs.shapes(work, single)).values()),
        parameters=graph.describe(model).parameters,
        repair=repair,
        _work=work,
        _dimensions=dimensions,
        _feeds=tuple(merged),
        _costs={"macs": of_macs(work, dimensions, single), "parameters": of_parameters(work, dimensions)},
    )


def choose(found: Survey, *, macs: float | None = None, parameters: float | None = None) -> dict[str, int]:
    """How many units of each prunable group stay, so that this share stays of the multiply-accumulates or of the parameters.

    Where so much cannot go, what can. Raises ModelError unless one of them is told.
    """
    if (macs is None) == (parameters is None):
        raise ModelError("`prune` is told one thing to go by: the share of the multiply-accumulates that stays, or of the parameters", "macs=0.5 keeps half")
    of: Cost = "macs" if macs is not None else "parameters"
    share = macs if macs is not None else parameters
    assert share is not None
    if not 0 < share < 1:
        raise ModelError(f"{of} is {share:g}: it is the share that stays, between 0 and 1", "0.5 keeps half")
    if not found.prunable:
        return {}
    by_name = {each.group.name: each for each in found.prunable}
    tables = [_table(by_name.get(group.name)) for group in found._dimensions.groups]
    places = allocate(found._costs[of], tables, share * found._whole(of))
    return {group.name: by_name[group.name].counts[place] for group, place in zip(found._dimensions.groups, places, strict=True) if group.name in by_name}


def _table(prunable: Prunable | None) -> Table:
    """Of a group that stays whole, one row."""
    if prunable is None:
        return Table(np.zeros(1), np.zeros(1))
    return Table(prunable.group.count - np.array(prunable.counts, float), np.array(prunable.effects))


def carry_out(found: Survey, kept: Mapping[str, int], *, progress: Progress | None = None) -> Model:
    """The model with so many units of these groups; the very same if those are all. ``progress`` is told how many layers are set anew, of how many."""
    removed = {each.group.name: each.order[: each.group.count - kept[each.group.name]] for each in found.prunable if each.group.name in kept}
    if not any(removed.values()):
        return found.model
    smaller = shrink(found._work, found._dimensions, removed)
    if found.repair:
        gone = np.zeros(len(found._dimensions.roots), bool)
        for name, units in removed.items():
            gone[found._dimensions.units[name][list(units)]] = True

        def stays(node: str, place: int) -> tuple[Array, ...]:
            return tuple(~gone[found._dimensions.roots[axis.atoms]] for axis in found._dimensions.constants[node, place])

        repaired(found._work, smaller, stays, _samples(found._feeds), progress=progress)
    return smaller


def _feeds(model: Model, samples: Samples) -> tuple[Feeds, list[Feeds]]:
    """The first one, and all that are looked at, several as one where the model answers them so as it answers each."""
    feeds = list(samples.first(SAMPLES))
    if not feeds:
        raise SampleError(f"{samples.source} holds no samples", "give at least one")
    first = graph.inputs(model)
    free = all(info.shape and info.shape[0] is None for info in first)
    alike = all(shapes_of(each) == shapes_of(feeds[0]) for each in feeds)
    size = min(MERGED, MERGED_BYTES // max(sum(array.nbytes for array in feeds[0].values()), 1))
    if len(feeds) == 1 or size < 2 or not free or not alike or not _answers_apart(model, feeds[:3]):
        return feeds[0], feeds
    return feeds[0], [joined(feeds[begin : begin + size]) for begin in range(0, len(feeds), size)]


def _answers_apart(model: Model, feeds: Sequence[Feeds]) -> bool:
    """Whether several feeds as one are answered as each alone."""
    session = graph.session(model)
    try:
        together, apart = graph.run(session, joined(feeds)), joined([graph.run(session, each) for each in feeds])
    except (ModelError, ValueError):
        return False
    return all(_alike(together[name], array) for name, array in apart.items())


def _alike(left: Array, right: Array) -> bool:
    if left.shape != right.shape or left.dtype.kind not in "fiu":
        return np.array_equal(left, right)
    with np.errstate(over="ignore"):
        return np.allclose(left, right, 1e-3, 1e-4, equal_nan=True)


def _samples(feeds: Sequence[Feeds]) -> Samples:
    return Samples("the calibration samples", lambda: iter(feeds), len(feeds))


def _counts(group: Group, multiple: int) -> tuple[int, ...]:
    """Of units, so that their channels are a multiple, or two where there are many; all of them, whatever they are."""
    step = 2 * multiple if 1 < multiple * MANY <= group.count * group.width else multiple
    fewer = [count for count in range(group.count - 1, 0, -1) if count * group.width % step == 0]
    return (group.count, *(fewer[place] for place in _spread(len(fewer), COUNTS)))


def _spread(length: int, most: int) -> list[int]:
    """So many places in a list, or all, evenly, the last among them."""
    return sorted({length - 1 - step * length // min(length, most) for step in range(min(length, most))})


def _reason(group: Group, counts: tuple[int, ...], multiple: int, exclude: set[str]) -> str | None:
    """Why it stays whole, or None."""
    left_out = sorted({part.node for part in (*group.makers, *group.readers)} & exclude)
    if left_out:
        return f"`{left_out[0]}` is to keep its channels"
    return f"there is no more than one multiple of {multiple}" if len(counts) == 1 else None


def _ranked(
    model: Model,
    groups: Sequence[Group],
    counts: Mapping[str, tuple[int, ...]],
    criterion: Criterion,
    feeds: list[Feeds],
    *,
    repair: bool,
    dimensions: Dimensions,
) -> Iterator[Prunable]:
    nodes = {str(node.name): node for node in model.graph}
    judge = _Judge(model, _judged(feeds, sum(costs.macs(model, costs.shapes(model, feeds[0])).values()) * STEPS * len(groups)))
    for part in _parts(nodes, groups):
        moments = measure(model, {place for group in part for place in _places(nodes, group)}, feeds)
        for group in part:
            stops = counts[group.name]
            tried = [stops[1 + place] for place in _spread(len(stops) - 1, STEPS)]
            gone = _eliminated(nodes, group, moments, criterion, set(tried))
            effects = [judge.effect(_without(model, dimensions, group, gone, count, moments, repair=repair)) for count in tried]
            errors = np.array([0.0, *gone.errors])
            at, along = errors[[group.count - count for count in (group.count, *tried)]], errors[[group.count - count for count in stops]]
            yield Prunable(group, gone.order, stops, tuple(np.interp(along, at, np.maximum.accumulate([0.0, *effects])).tolist()))


def _places(nodes: Mapping[str, onnx_ir.Node], group: Group) -> list[Place]:
    return [(part.node, part.place) for part in group.readers if is_reader(nodes[part.node], part.place)]


def _parts(nodes: Mapping[str, onnx_ir.Node], groups: Sequence[Group]) -> Iterator[list[Group]]:
    """As many at a time as may be measured together; for the next the samples are run again."""
    part: list[Group] = []
    held = 0
    for group in groups:
        size = sum(moments_bytes(nodes[name], place) for name, place in _places(nodes, group))
        if part and held + size > HELD_BYTES:
            yield part
            part, held = [], 0
        part.append(group)
        held += size
    if part:
        yield part


def _judged(feeds: list[Feeds], macs: int) -> list[Feeds]:
    """As many as may be, if each costs so much."""
    together = max(len(next(iter(feeds[0].values()), np.zeros(1))), 1)  # samples in one
    fewest, most = (-(-count // together) for count in JUDGED)
    return feeds[: min(max(int(JUDGED_MACS / max(macs, 1)), fewest), most)]


def _eliminated(nodes: Mapping[str, onnx_ir.Node], group: Group, moments: Mapping[Place, Moments], criterion: Criterion, stops: set[int]) -> Elimination:
    parts = [part for part in group.readers if (part.node, part.place) in moments]
    readers = [Reader(weight_rows(nodes[part.node], part.place), moments[part.node, part.place], units_of(nodes[part.node], part)) for part in parts]
    if criterion == "reconstruction" and readers:
        return eliminate(readers, group.count, stops)
    if criterion == "activation" and readers:
        sizes = np.sum([activity(reader, group.count) for reader in readers], axis=0)
    else:
        sizes = norms(nodes, group.makers, group.count, 1 if criterion == "l1" else 2)
    order = np.argsort(sizes, kind="stable").tolist()
    if readers:
        return eliminate(readers, group.count, stops, order)
    return Elimination(tuple(order), tuple(np.cumsum(sizes[order]).tolist()), {})


def _without(model: Model, dimensions: Dimensions, group: Group, gone: Elimination, count: int, moments: Mapping[Place, Moments], *, repair: bool) -> Model:
    """The model where so many units of one group are left, and its readers alone are set anew."""
    work = graph.clone(model)
    nodes = {str(node.name): node for node in work.graph}
    parts = [part for part in group.readers if (part.node, part.place) in moments]
    for part, rows in zip(parts, gone.weights.get(count, []), strict=False):
        node = nodes[part.node]
        if not repair:
            break
        before = weight_rows(node, part.place)
        write_rows(node, part.place, rows)
        if has_shift(node, part.place):
            add_shift(node, ((before - rows) @ moments[part.node, part.place].mean[:, :, None]).ravel())
    return shrink(work, dimensions, {group.name: gone.order[: group.count - count]})


class _Judge:
    """What becomes of the answers of a model."""

    def __init__(self, model: Model, feeds: Sequence[Feeds]) -> None:
        self._feeds = feeds
        self._answers = list(self._run(model))

    def effect(self, changed: Model) -> float:
        """The mean over the outputs of the squared difference, as a share of the variance; whole numbers and truths, the share that differ."""
        sums = {name: np.zeros(4) for name in self._answers[0]}
        for before, now in zip(self._answers, self._run(changed), strict=True):
            for name, array in before.items():
                sums[name] += _differences(array, now[name])
        effects = [different / max(squares - total**2 / max(count, 1), _TINY) for different, squares, total, count in sums.values()]
        return float(np.mean([min(each, _MOST) for each in effects]))

    def _run(self, model: Model) -> Iterator[dict[str, Array]]:
        session = graph.session(model)
        return (graph.run(session, feeds) for feeds in self._feeds)


def _differences(before: Array, now: Array) -> tuple[float, float, float, float]:
    """Squared difference, squares, sum and count. Of what is no float each that differs counts 1, as does each where even the shapes differ."""
    if before.dtype.kind != "f" or before.shape != now.shape:
        return float(np.sum(before != now)) if before.shape == now.shape else before.size, before.size, 0.0, before.size
    finite = np.isfinite(before)
    ours, theirs = before[finite].astype(np.float64), np.nan_to_num(now[finite].astype(np.float64))
    return float(((ours - theirs) ** 2).sum()), float((ours**2).sum()), float(ours.sum()), ours.size
