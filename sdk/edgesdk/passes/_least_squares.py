"""The weights with which a layer of a changed network answers what the original's does, on what the changed network feeds it.

    problem = measure(pair, weight, centred=True)
    weights = solve(problem.damped(), weight != 0)          # zeros stay

W' and b' for which |(W·x + b) - (W'·x' + b')|² is small over the samples, where the layer is given x in the original and x' in the changed
network: the second moments of x and x' are all that this needs, so memory does not grow with the samples. A layer whose answer goes
into a residual Add makes good what the other branch has lost (He et al. 2017, arXiv:1707.06168, section 3.3).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from edgesdk.graph import Array
from edgesdk.passes._layers import Pair
from edgesdk.passes._patches import columns, matrix, picked, positions

COLUMNS = 32768  # of a layer's inputs that are looked at, over all samples; at least four for each weight of an output
DAMPING = 0.01  # pull to the weights as they were, in mean second moments: a few samples do not say everything
STEPS = 200  # of conjugate gradients, at most
SOLVED = 1e-6  # of the first residual


@dataclass(frozen=True)
class Problem:
    """Weights W for which the trace of W·seen·Wᵀ - 2·W·wantedᵀ is to be small, by group; moments are about the means, if those are not 0."""

    weight: Array  # [groups, outputs, columns], the original's, of what is left of them
    seen: Array  # x'·x'ᵀ, [groups, column, column]
    wanted: Array  # W·x·x'ᵀ, [groups, outputs, column]
    seen_mean: Array  # of x', [groups, columns]
    wanted_mean: Array  # of W·x, [groups, outputs]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.seen).all() and np.isfinite(self.wanted).all())

    def damped(self) -> "Problem":
        """The same where the original's weights are wanted, too."""
        pull = damping(self.seen)
        return replace(self, seen=self.seen + pull * np.eye(self.seen.shape[1]), wanted=self.wanted + pull * self.weight)

    def shift(self, weights: Array) -> Array:
        """What these weights leave to the bias, [outputs of all groups]."""
        return np.asarray((self.wanted_mean - (weights @ self.seen_mean[:, :, None])[:, :, 0]).ravel())


@dataclass(frozen=True)
class Origin:
    """Which of the original's weights a layer still has, as [groups, outputs, columns]."""

    groups: Array  # [groups left]
    outputs: Array  # [groups left, outputs left], in their group
    columns: Array  # [groups left, columns left]

    @classmethod
    def whole(cls, rows: Array) -> "Origin":
        groups, outputs, length = rows.shape
        return cls(np.arange(groups), np.tile(np.arange(outputs), (groups, 1)), np.tile(np.arange(length), (groups, 1)))

    def rows(self, before: Array) -> Array:
        """The original's weights of the outputs left, for all columns."""
        return np.take_along_axis(before[self.groups], self.outputs[:, :, None], axis=1)


def damping(second: Array) -> Array:
    """What the diagonal of second moments [groups, column, column] gains, [groups, 1, 1]."""
    mean = np.trace(second, axis1=1, axis2=2) / second.shape[1]
    return np.asarray(np.where(mean > 0, DAMPING * mean, 1.0)[:, None, None])


def measure(pair: Pair, weight: Array, *, centred: bool, origin: Origin | None = None) -> Problem:
    """Of a layer with these weights in the original; ``centred`` where a bias can take up the means, ``origin`` where outputs and columns are gone."""
    before = matrix(pair.original, weight).astype(np.float64)
    origin = origin or Origin.whole(before)
    rows = origin.rows(before)
    groups, outputs, length, left = *rows.shape, origin.columns.shape[1]
    seen, crossed, lost = np.zeros((groups, left, left)), np.zeros((groups, length, left)), np.zeros((groups, outputs, left))
    sums, sums_before, sums_lost, count = np.zeros((groups, left)), np.zeros((groups, length)), np.zeros((groups, outputs)), 0
    for x, x_now, short in _picked(pair, weight, origin):
        turned = np.swapaxes(x_now, 1, 2)
        seen += x_now @ turned
        crossed += x @ turned
        sums += x_now.sum(axis=2, dtype=np.float64)
        sums_before += x.sum(axis=2, dtype=np.float64)
        count += x.shape[2]
        if short is not None:
            apart = short.reshape(groups, outputs, -1)
            lost += apart @ turned
            sums_lost += apart.sum(axis=2, dtype=np.float64)
    count = max(count, 1)
    wanted, mean = (rows @ crossed + lost) / count, sums / count
    wanted_mean = ((rows @ sums_before[:, :, None])[:, :, 0] + sums_lost) / count
    rows = np.take_along_axis(rows, origin.columns[:, None], axis=2)
    if not centred:
        return Problem(rows, seen / count, wanted, np.zeros_like(mean), np.zeros_like(wanted_mean))
    return Problem(rows, seen / count - mean[:, :, None] * mean[:, None], wanted - wanted_mean[:, :, None] * mean[:, None], mean, wanted_mean)


def solve(problem: Problem, kept: Array, start: Array | None = None) -> Array:
    """The best weights that are 0 where ``kept`` is False, by conjugate gradients from ``start`` or the original's, each output's diagonal evened out."""
    found = np.where(kept, problem.weight if start is None else start, 0.0)
    diagonal = np.diagonal(problem.seen, axis1=1, axis2=2)[:, None]
    residual = np.where(kept, problem.wanted - found @ problem.seen, 0.0)
    evened = residual / diagonal
    direction, size = evened, (residual * evened).sum(axis=2, keepdims=True)
    enough = SOLVED**2 * size.max(initial=0)
    for _ in range(STEPS):
        if not size.max(initial=0) > enough:
            break
        turned = np.where(kept, direction @ problem.seen, 0.0)
        bend = (direction * turned).sum(axis=2, keepdims=True)
        step = np.divide(size, bend, out=np.zeros_like(size), where=bend > 0)
        found = found + step * direction
        residual = residual - step * turned
        evened = residual / diagonal
        next_size = (residual * evened).sum(axis=2, keepdims=True)
        direction = evened + np.divide(next_size, size, out=np.zeros_like(size), where=size > 0) * direction
        size = next_size
    return found


def _picked(pair: Pair, weight: Array, origin: Origin) -> Iterator[tuple[Array, Array, Array | None]]:
    """Sample by sample some columns of x and of x', and by how much the other branch of a residual Add falls short there, [outputs of all groups, picked]."""
    outputs = matrix(pair.original, weight).shape[1]
    random = np.random.default_rng(0)
    channels = (origin.groups[:, None] * outputs + origin.outputs).ravel()
    answers_channels = pair.node.op_type in ("Conv", "Gemm", "MatMul")  # a matrix of a ConvTranspose has more outputs than it has channels
    summands: Iterable[tuple[Array, Array] | None] = (pair.summands() if answers_channels else None) or repeat(None, pair.samples)
    for (given, given_now), summand in zip(pair.inputs(), summands, strict=True):
        places = positions(pair.original, weight, given.shape)
        seen = picked(pair.original, weight, given.shape, COLUMNS, pair.samples, random)
        short = None
        if summand is not None:
            before, now = (_by_channel(pair, array) for array in summand)
            if before.shape[1] == now.shape[1] == places and len(now) == len(channels) <= len(before):
                short = (before[channels] - now)[:, seen]
        yield columns(pair.original, weight, given, seen)[origin.groups], columns(pair.node, weight, given_now, seen), short


def _by_channel(pair: Pair, array: Array) -> Array:
    """What is put to a layer's answer, [outputs of all groups, places]."""
    apart = np.moveaxis(array.astype(np.float64), 1 if pair.node.op_type == "Conv" else -1, 0)
    return apart.reshape(len(apart), -1)
