"""The weights of a pruned network set anew, so that each layer answers what the original's does on what the pruned network itself feeds it.

Layer by layer in the order of the graph, by least squares (`_least_squares`; He et al. 2017, arXiv:1707.06168, section 3.2): what was lost
before is made good as far as it can be. Depthwise layers are set anew like any other, one channel at a time. The weights by which LSTM, GRU
and RNN read their own answers are solved for on those of the original, which the pruned one is to give again.
"""

from collections.abc import Callable

import numpy as np

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._layers import Pair, pairs
from edgesdk.passes._least_squares import Origin, measure
from edgesdk.passes._patches import matrix
from edgesdk.passes._readers import Moments, add_shift, has_shift, hidden_columns, is_reader, weight_rows, write_rows
from edgesdk.sampling import Samples

Kept = Callable[[str, int], tuple[Array, ...]]  # of the constant that a node reads there, which indices stay along each axis, as truths


def repair(original: Model, pruned: Model, kept: Kept, samples: Samples, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Set the weights of ``pruned`` anew, in place. Weights that several nodes share stay (`is_reader`). Raises ModelError, SampleError."""
    by_name = {node.name: node for node in original.graph}
    layers = [(node, by_name[node.name]) for node in pruned.graph if node.name in by_name and (is_reader(node, 1) or is_reader(node, 2))]
    cut = [any(not mask.all() for place in (1, 2) if is_reader(node, place) for mask in kept(str(node.name), place)) for node, _ in layers]
    for pair in pairs(original, pruned, layers[cut.index(True) :] if any(cut) else [], samples, progress=progress):
        name = str(pair.node.name)
        if is_reader(pair.node, 1):
            _solve(pair, _origin(pair, 1, kept(name, 1)))
        if is_reader(pair.node, 2):
            _solve_recurrent(pair, _origin(pair, 2, kept(name, 2)))


def _origin(pair: Pair, place: int, kept: tuple[Array, ...]) -> Origin:
    shape = tuple(len(mask) for mask in kept)
    numbers = np.arange(np.prod(shape)).reshape(shape)
    before, now = (matrix(node, each) if place == 1 else each for node, each in ((pair.original, numbers), (pair.node, numbers[np.ix_(*kept)])))
    places = np.empty(before.size, np.int64)
    places[before.ravel()] = np.arange(before.size)
    group, output, column = np.unravel_index(places[now], before.shape)
    return Origin(group[:, 0, 0], output[:, :, 0], column[:, 0])


def _solve(pair: Pair, origin: Origin) -> None:
    weight, centred = graph.constant(pair.original.inputs[1]), has_shift(pair.node, 1)
    assert weight is not None
    problem = measure(pair, weight, centred=centred, origin=origin)
    if not problem.finite:
        return
    damped = problem.damped()
    rows = np.linalg.solve(damped.seen, damped.wanted.swapaxes(1, 2)).swapaxes(1, 2)
    write_rows(pair.node, 1, rows)
    if centred:
        add_shift(pair.node, problem.shift(rows))


def _solve_recurrent(pair: Pair, origin: Origin) -> None:
    """From the original's answers alone: what the columns that are gone did is left to the others."""
    rows, second, count = origin.rows(weight_rows(pair.original, 2)), np.zeros(1), 0
    for answer, _ in pair.outputs():
        x = hidden_columns(pair.original, answer)
        second, count = second + x @ x.swapaxes(1, 2), count + x.shape[2]
    if not np.isfinite(second).all():
        return
    damped = Moments(np.zeros(1), second / max(count, 1)).damped()
    left = np.take_along_axis(damped, origin.columns[:, :, None], axis=1)
    answers = np.linalg.solve(np.take_along_axis(left, origin.columns[:, None], axis=2), left @ rows.swapaxes(1, 2))
    write_rows(pair.node, 2, answers.swapaxes(1, 2))
