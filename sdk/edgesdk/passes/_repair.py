"""The weights of a pruned network set anew, so that each layer answers what the original's does on what the pruned network itself feeds it.

Layer by layer in the order of the graph: W' and b' for which |(W·x + b) - (W'·x' + b')|² is small over the samples, where the original's
layer is given x and the pruned one x' (He et al. 2017, arXiv:1707.06168, section 3.2): what was lost before is made good as far as it can
be. A layer whose answer goes into a residual Add makes good what the other branch has lost, too (section 3.3). Depthwise layers are set
anew like any other, one channel at a time. The weights by which LSTM, GRU and RNN read their own answers are solved for on those of the
original, which the pruned one is to give again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk.graph import Array, Model, constant
from edgesdk.passes._layers import Pair, pairs
from edgesdk.passes._patches import columns, matrix, positions
from edgesdk.passes._readers import COLUMNS, Moments, add_shift, has_shift, hidden_columns, is_reader, weight_rows, write_rows
from edgesdk.sampling import Samples

Kept = Callable[[str, int], tuple[Array, ...]]  # of the constant that a node reads there, which indices stay along each axis, as truths


def repair(original: Model, pruned: Model, kept: Kept, samples: Samples, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Set the weights of ``pruned`` anew, in place. Weights that several nodes share stay. Raises ModelError, SampleError."""
    by_name = {node.name: node for node in original.graph}
    counterparts = [(node, by_name[node.name]) for node in pruned.graph if node.name in by_name and any(_is_own(node, place) for place in (1, 2))]
    for pair in pairs(original, pruned, counterparts, samples, progress=progress):
        name = str(pair.node.name)
        if _is_own(pair.node, 1):
            _solve(pair, _Origin.of(pair, 1, kept(name, 1)))
        if _is_own(pair.node, 2):
            _solve_recurrent(pair, _Origin.of(pair, 2, kept(name, 2)))


def _is_own(node: onnx_ir.Node, place: int) -> bool:
    weight = node.inputs[place] if place < len(node.inputs) else None
    return weight is not None and is_reader(node, place) and len(weight.uses()) == 1


@dataclass(frozen=True)
class _Origin:
    """Where the rows and columns of a cut weight come from."""

    groups: Array  # [groups left]
    outputs: Array  # [groups left, outputs left], in their group
    columns: Array  # [groups left, columns left]
    whole: bool

    @classmethod
    def of(cls, pair: Pair, place: int, kept: tuple[Array, ...]) -> "_Origin":
        shape = tuple(len(mask) for mask in kept)
        numbers = np.arange(np.prod(shape)).reshape(shape)
        before, after = (_matrix(node, place, each) for node, each in ((pair.original, numbers), (pair.node, numbers[np.ix_(*kept)])))
        places = np.empty(before.size, np.int64)
        places[before.ravel()] = np.arange(before.size)
        group, output, column = np.unravel_index(places[after], before.shape)
        return cls(group[:, 0, 0], output[:, :, 0], column[:, 0], bool(all(mask.all() for mask in kept)))


def _matrix(node: onnx_ir.Node, place: int, weight: Array) -> Array:
    return matrix(node, weight) if place == 1 else weight


def _solve(pair: Pair, origin: _Origin) -> None:
    weight = constant(pair.original.inputs[1])
    assert weight is not None
    wanted_rows = np.take_along_axis(weight_rows(pair.original, 1)[origin.groups], origin.outputs[:, :, None], axis=1)
    shifted = has_shift(pair.node, 1)
    sums = _Sums.of(pair, weight, origin, wanted_rows)
    if not sums.changed or not sums.finite:
        return
    seen, crossed, mean, wanted_mean = sums.moments(centred=shifted)
    rows = _solved(Moments(mean, seen), crossed, weight_rows(pair.node, 1))
    write_rows(pair.node, 1, rows)
    if shifted:
        add_shift(pair.node, (wanted_mean - (rows @ mean[:, :, None])[:, :, 0]).ravel())


def _solved(seen: Moments, crossed: Array, rows: Array) -> Array:
    """Those with which ``seen`` makes what was wanted, pulled a little to ``rows``."""
    damped = seen.damped()
    return np.asarray(np.linalg.solve(damped, (crossed + rows @ (damped - seen.second)).swapaxes(1, 2)).swapaxes(1, 2))


@dataclass
class _Sums:
    """Over columns x of the original's layer and x' of the pruned one's."""

    seen: Array  # x'·x'ᵀ
    crossed: Array  # W·x·x'ᵀ, with what the other branch of an Add has lost
    given: Array  # x'
    wanted: Array  # W·x, with that too
    count: int
    changed: bool  # whether there is anything to make good

    @classmethod
    def of(cls, pair: Pair, weight: Array, origin: _Origin, rows: Array) -> "_Sums":
        groups, outputs = origin.outputs.shape
        length, length_now = rows.shape[2], origin.columns.shape[1]
        sums = cls(
            np.zeros((groups, length_now, length_now)),
            np.zeros((groups, outputs, length_now)),
            np.zeros((groups, length_now)),
            np.zeros((groups, outputs)),
            0,
            not origin.whole,
        )
        each = -(-max(COLUMNS, 4 * length) // pair.samples)
        random = np.random.default_rng(0)
        axis = 1 if pair.node.op_type == "Conv" else -1
        outputs_kept = (origin.groups[:, None] * matrix(pair.original, weight).shape[1] + origin.outputs).ravel()
        summands = pair.summands() if pair.node.op_type in ("Conv", "Gemm", "MatMul") else None
        for (given, given_now), (before, now) in zip(pair.inputs(), summands or ((None, None) for _ in range(pair.samples)), strict=True):
            there = positions(pair.original, weight, given.shape)
            picked = np.arange(there) if there <= each else np.sort(random.choice(there, each, replace=False))
            x, x_now = columns(pair.original, weight, given, picked)[origin.groups], columns(pair.node, weight, given_now, picked)
            wanted = rows @ x
            if before is not None and now is not None:
                lost = _by_channel(before, axis)
                short = lost[outputs_kept] - _by_channel(now, axis) if lost.shape[1] == there else np.zeros(1)
                wanted += short[:, picked].reshape(wanted.shape) if short.ndim == 2 else 0
                sums.changed |= bool(short.any())
            sums.changed |= x.shape != x_now.shape or not np.array_equal(x, x_now)
            turned = x_now.swapaxes(1, 2)
            sums.seen += x_now @ turned
            sums.crossed += wanted @ turned
            sums.given += x_now.sum(axis=2, dtype=np.float64)
            sums.wanted += wanted.sum(axis=2)
            sums.count += len(picked)
        return sums

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.seen).all() and np.isfinite(self.crossed).all())

    def moments(self, *, centred: bool) -> tuple[Array, Array, Array, Array]:
        """x'·x'ᵀ and W·x·x'ᵀ, about the means if those are to be taken off, and the means."""
        count = max(self.count, 1)
        mean, wanted = self.given / count * centred, self.wanted / count * centred
        return self.seen / count - mean[:, :, None] * mean[:, None], self.crossed / count - wanted[:, :, None] * mean[:, None], mean, wanted


def _by_channel(array: Array, axis: int) -> Array:
    return np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1)


def _solve_recurrent(pair: Pair, origin: _Origin) -> None:
    """From the original's answers alone: the columns that are gone are made good by those that are left."""
    rows = np.take_along_axis(weight_rows(pair.original, 2)[origin.groups], origin.outputs[:, :, None], axis=1)
    second, count = np.zeros((len(rows), rows.shape[2], rows.shape[2])), 0
    for before, _ in pair.outputs():
        x = hidden_columns(pair.original, before)
        second += x @ x.swapaxes(1, 2)
        count += x.shape[2]
    if origin.whole or not np.isfinite(second).all():
        return
    second /= max(count, 1)
    crossed = np.take_along_axis(rows @ second, origin.columns[:, None], axis=2)
    left = np.take_along_axis(np.take_along_axis(second, origin.columns[:, :, None], axis=1), origin.columns[:, None], axis=2)
    write_rows(pair.node, 2, _solved(Moments(np.zeros(1), left), crossed, weight_rows(pair.node, 2)))
