"""Weights rounded so that each layer answers what it answered, instead of each weight to its nearest integer.

    better = reconstruct(original, quantized, samples)

Layer by layer, on what the 8-bit network itself feeds it: the integers q for which |(W·x + b) - (Q·x' + b')|² is small over the samples,
where the float32 layer is given x and the 8-bit one x'. The second moments of x and x' are all that this needs, so memory does not
grow with the samples. Columns are decided one after another, and what rounding one loses is made good by those to come (GPTQ: Frantar
et al. 2022, arXiv:2210.17323); then coordinate descent until nothing moves. AdaRound (Nagel et al. 2020, arXiv:2004.10568) has the same
goal by gradient descent; this is a closed form: no learning rate, no chance but the fixed choice of columns, numpy alone.
"""

from collections.abc import Callable

import numpy as np

from edgesdk import graph, saturation
from edgesdk.graph import Array, Model
from edgesdk.passes._bias_correction import bias_of
from edgesdk.passes._layers import Layer, constant_at, walk
from edgesdk.passes._patches import columns, from_matrix, matrix, picked
from edgesdk.sampling import Samples

COLUMNS = 8192  # of a layer's inputs that are looked at, over all samples; at least four for each weight of an output
DAMPING = 0.01  # pull to the weights as they were, in mean second moments: a few samples do not say everything
SWEEPS = 8  # of coordinate descent, at most
LEVEL = 127  # the greatest integer of a weight
HALF = saturation.PAIR // 2  # two of these cannot saturate

Bounds = tuple[Array, Array]  # least and greatest integer of each weight


def reconstruct(original: Model, quantized: Model, samples: Samples, *, progress: Callable[[int, int], None] | None = None) -> Model:
    """``quantized`` with other integers in the weights of its Convs, Gemms and MatMuls; scales and all else stay.

    ``original`` is the float32 model that `quantize` was given. An output channel whose error on the samples would not be smaller
    keeps its integers, a weight that is 0 stays so, and a layer that could not saturate still cannot. ``progress`` is told how many
    layers are done, of how many. Raises ModelError, SampleError.
    """
    work = graph.clone(quantized)
    for layer in walk(original, work, samples, progress=progress):
        _reconstruct(layer)
    return work


def _reconstruct(layer: Layer) -> None:
    before = layer.integers()
    scale = matrix(layer.node, layer.grid.values(np.ones_like(before)).astype(np.float64))[:, :, :1]  # [groups, outputs, 1]
    nearest = matrix(layer.node, before).astype(np.float64)
    seen, wanted = _moments(layer)
    wanted = wanted / scale
    if not (np.isfinite(seen).all() and np.isfinite(wanted).all()):
        return
    weight = matrix(layer.node, layer.weight) / scale
    found = _rounded(seen, wanted, weight, _bounds(nearest, weight != 0))
    better = _error(found, seen, wanted) < _error(nearest, seen, wanted)
    kept = np.where(better[:, :, None], found, nearest)
    if (kept != nearest).any():
        layer.write_weight(from_matrix(layer.node, kept, before.shape).astype(before.dtype))


def _moments(layer: Layer) -> tuple[Array, Array]:
    """Means over columns: x'·x'ᵀ, [groups, column, column], and (W·x + b - b')·x'ᵀ, [groups, outputs, column]."""
    weight = matrix(layer.node, layer.weight).astype(np.float64)
    groups, _, length = weight.shape
    random = np.random.default_rng(0)
    seen, crossed, sums, count = np.zeros((groups, length, length)), np.zeros((groups, length, length)), np.zeros((groups, 1, length)), 0
    for given, given_8_bit in layer.inputs():
        looked_at = picked(layer.node, layer.weight, given.shape, COLUMNS, layer.samples, random)
        x, x_8_bit = (columns(layer.node, layer.weight, array, looked_at) for array in (given, given_8_bit))
        turned = np.swapaxes(x_8_bit, 1, 2)
        seen += x_8_bit @ turned
        crossed += x @ turned
        sums += x_8_bit.sum(axis=2, dtype=np.float64)[:, None]
        count += len(looked_at)
    offset = _bias_rounding(layer).reshape(groups, -1, 1)
    return seen / max(count, 1), (weight @ crossed + offset * sums) / max(count, 1)


def _bias_rounding(layer: Layer) -> Array:
    """b - b', where the layer itself has a bias."""
    place = bias_of(layer.node, layer.channels)
    if place is None or place[0] is not layer.node:
        return np.zeros(layer.channels)
    before, now = graph.constant(layer.original.inputs[2]), constant_at(*place)
    return np.zeros(layer.channels) if before is None or now is None else before.astype(np.float64) - now


def _bounds(integers: Array, kept: Array) -> Bounds:
    """Between which each may move: anywhere, or where no two of an output come to what saturates, if none do now; what was pruned stays nought."""
    rows = integers.reshape(-1, integers.shape[2])
    if saturation.greatest_pairs(rows).max(initial=0) > saturation.PAIR:
        return np.where(kept, -LEVEL, 0), np.where(kept, LEVEL, 0)
    return np.where(kept, -_room(-rows).reshape(integers.shape), 0), np.where(kept, _room(rows).reshape(integers.shape), 0)


def _room(rows: Array) -> Array:
    """How great each may become: a half, or, beside one that is greater, what that one leaves."""
    place = rows.argmax(axis=1)[:, None]
    greatest = np.maximum(np.take_along_axis(rows, place, axis=1), HALF)
    room = np.broadcast_to(saturation.PAIR - greatest, rows.shape).copy()
    np.put_along_axis(room, place, greatest, axis=1)
    return room


def _rounded(seen: Array, wanted: Array, weight: Array, bounds: Bounds) -> Array:
    """The integers, in units of the scale: those that make q·seen·qᵀ - 2·q·wanted small for each output."""
    mean = np.trace(seen, axis1=1, axis2=2) / seen.shape[1]
    damping = np.where(mean > 0, DAMPING * mean, 1.0)[:, None, None]
    damped, wanted = seen + damping * np.eye(seen.shape[1]), wanted + damping * weight
    return _descended(_column_by_column(damped, wanted, bounds), damped, wanted, bounds)


def _column_by_column(seen: Array, wanted: Array, bounds: Bounds) -> Array:
    """GPTQ, from the best real numbers, columns of the largest moment first."""
    order = np.argsort(-np.diagonal(seen, axis1=1, axis2=2), axis=1, kind="stable")
    inverse = np.linalg.inv(seen)
    rest, least, greatest = (np.take_along_axis(array, order[:, None], axis=2) for array in (wanted @ inverse, *bounds))
    inverse = np.take_along_axis(np.take_along_axis(inverse, order[:, :, None], axis=1), order[:, None], axis=2)
    upper = np.swapaxes(np.linalg.cholesky((inverse + np.swapaxes(inverse, 1, 2)) / 2), 1, 2)
    found = np.empty_like(rest)
    for column in range(rest.shape[2]):
        found[:, :, column] = np.clip(np.rint(rest[:, :, column]), least[:, :, column], greatest[:, :, column])
        lost = (rest[:, :, column] - found[:, :, column]) / upper[:, None, column, column]
        rest[:, :, column + 1 :] -= lost[:, :, None] * upper[:, None, column, column + 1 :]
    return np.take_along_axis(found, np.argsort(order, axis=1, kind="stable")[:, None], axis=2)


def _descended(integers: Array, seen: Array, wanted: Array, bounds: Bounds) -> Array:
    """Each column in turn set to what is best beside all others, until none moves."""
    slope = integers @ seen - wanted
    least, greatest = bounds
    for _ in range(SWEEPS):
        moved = False
        for column in range(integers.shape[2]):
            best = np.rint(integers[:, :, column] - slope[:, :, column] / seen[:, None, column, column])
            best = np.clip(best, least[:, :, column], greatest[:, :, column])
            step = best - integers[:, :, column]
            if step.any():
                moved = True
                integers[:, :, column] = best
                slope += step[:, :, None] * seen[:, None, column]
        if not moved:
            break
    return integers


def _error(integers: Array, seen: Array, wanted: Array) -> Array:
    """Mean squared error of each output, in units of the scale and up to a constant."""
    return np.asarray(((integers @ seen - 2 * wanted) * integers).sum(axis=2))
