"""Which part of a tensor's range its integers should span: all of it, or less so that what is frequent is finer.

    clipped(seen, "mse", symmetric=False)       # Range(low=-0.9, high=4.1), where seen was -1.2 … 6.0

- minmax: all that was seen.
- moving-average: the average of the samples' extremes (Jacob et al. 2018, arXiv:1712.05877, 3.1; the first hundred weigh alike).
- percentile: all but one in 100,000 values (McKinstry et al. 2018, arXiv:1809.04191; Wu et al. 2020, arXiv:2004.09602, 3.2).
- entropy: least information lost, the Kullback-Leibler divergence of the values from what is left of them
  (Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310).
- mse: least squared error of the integers (Choukroun et al. 2019, arXiv:1902.06822; Nagel et al. 2021, arXiv:2106.08295, 3.1).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from edgesdk.graph import Array
from edgesdk.histograms import Histogram, Range

Method = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
NEED_HISTOGRAMS = frozenset({"percentile", "entropy", "mse"})

PERCENTILE = 99.999
_CANDIDATES = 128  # bounds that are tried
_FINER = 16  # more of them around the best
_ALMOST_NOTHING = 1e-4  # how often a bin that is lost counts, for its logarithm (onnxruntime's `smooth_distribution`)

Bounds = tuple[float, float]


def clipped(seen: Range, method: Method, *, symmetric: bool, levels: int = 256, percentile: float = PERCENTILE) -> Range:
    """The range that a quantizer with so many levels should use: within what was seen; ``symmetric``: its levels lie evenly about 0.

    ``percentile`` is the share of the values in percent that the method of that name keeps. An infinite range stays as it is:
    to clip an infinity is not to approximate it. Percentile, entropy and mse need the histogram.
    """
    if method == "minmax" or not np.isfinite([seen.low, seen.high]).all():
        return seen
    if method == "moving-average":
        return seen if seen.average is None else _within(seen, seen.average)
    assert seen.histogram is not None, "measure with histograms=True"
    if not seen.histogram.counts.size or seen.bound == 0:
        return seen
    if method == "percentile":
        return _within(seen, _percentiles(seen.histogram, percentile, symmetric=symmetric))
    find = _least_divergence if method == "entropy" else _least_error
    return _within(seen, find(seen, symmetric=symmetric, levels=levels))


def _within(seen: Range, bounds: Bounds) -> Range:
    low, high = max(seen.low, bounds[0]), min(seen.high, bounds[1])
    return replace(seen, low=low, high=high) if low <= high else seen


def _percentiles(histogram: Histogram, percentile: float, *, symmetric: bool) -> Bounds:
    """Symmetric: of the magnitudes. Otherwise half of what is cut is cut at either end."""
    if symmetric:
        bound = _quantile(histogram.magnitudes(), percentile / 100)
        return -bound, bound
    cut = (100 - percentile) / 200
    return _quantile(histogram, cut), _quantile(histogram, 1 - cut)


def _quantile(histogram: Histogram, share: float) -> float:
    """The value that so many lie below, as if those of a bin were spread evenly over it."""
    below = np.cumsum(histogram.counts)
    wanted = share * below[-1]
    place = min(int(np.searchsorted(below, wanted)), below.size - 1)
    start, end = histogram.edges[place : place + 2]
    return float(end - (end - start) * (below[place] - wanted) / histogram.counts[place])


def _least_divergence(seen: Range, *, symmetric: bool, levels: int) -> Bounds:
    """Windows about 0, ever wider, are told from what they would be in so many levels; the one that loses least."""
    assert seen.histogram is not None
    histogram, levels = (seen.histogram.magnitudes(), levels // 2) if symmetric else (seen.histogram, levels)
    last = histogram.first + histogram.counts.size
    widest = max(1 - histogram.first, last)
    best, least = widest, np.inf
    for bound in np.unique(np.linspace(0, widest, _CANDIDATES + 1)[1:].astype(int)).tolist():
        start, end = max(histogram.first, 1 - bound), min(last, bound)
        if end - start >= min(levels, histogram.counts.size) and (lost := _divergence(histogram, start, end, levels)) < least:
            best, least = bound, lost
    bound = best * histogram.width
    return -bound, bound


def _divergence(histogram: Histogram, start: int, end: int, levels: int) -> float:
    """Of the bins from start to end, which hold what lies outside too, from the same bins where each level's share is even."""
    counts = histogram.counts.astype(np.float64)
    inside = counts[start - histogram.first : end - histogram.first]
    given = inside.copy()
    given[0] += counts[: start - histogram.first].sum()
    given[-1] += counts[end - histogram.first :].sum()
    filled = given > 0
    level = np.arange(inside.size) * levels // inside.size
    each = np.bincount(level, inside) / np.maximum(np.bincount(level, filled), 1)
    left = np.maximum(each[level][filled], _ALMOST_NOTHING)
    given = given[filled]
    return float((given * np.log(given * (left.sum() / given.sum()) / left)).sum() / given.sum())


def _least_error(seen: Range, *, symmetric: bool, levels: int) -> Bounds:
    """Both bounds drawn in alike, then each alone; what was seen is among the candidates, so nothing does worse than minmax."""
    assert seen.histogram is not None
    filled = seen.histogram.counts > 0
    numbers, times = seen.histogram.centres[filled], seen.histogram.counts[filled].astype(np.float64)

    def error(low: Array, high: Array) -> Array:
        return _squared_error(numbers, times, low, high, levels)

    if symmetric:
        widest = seen.bound * levels / (levels - 2)  # int8 has 128 levels below 0 and 127 above
        bound = seen.bound * _best_share(lambda shares: error(-widest * shares, seen.bound * shares))
        return -bound, bound
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    share = _best_share(lambda shares: error(low * shares, high * shares))
    low, high = low * share, high * share
    if low < 0 < high:
        high *= _best_share(lambda shares: error(np.full(shares.shape, low), high * shares))
        low *= _best_share(lambda shares: error(low * shares, np.full(shares.shape, high)))
    return low, high


def _best_share(error: Callable[[Array], Array]) -> float:
    """Of 1 and many less, by trial; then of many around that."""
    coarse = np.arange(_CANDIDATES, 0, -1) / _CANDIDATES
    best = coarse[np.argmin(error(coarse))]
    finer = best + np.arange(-_FINER, _FINER + 1) / (_FINER * _CANDIDATES)
    finer = np.concatenate([[best], finer[(finer > 0) & (finer <= 1)]])
    return float(finer[np.argmin(error(finer))])


def _squared_error(numbers: Array, times: Array, low: Array, high: Array, levels: int) -> Array:
    """Of the numbers, each that often, for each pair of bounds."""
    step = ((high - low) / (levels - 1))[:, None]
    nought = np.rint(-low[:, None] / step)
    integers = np.clip(np.rint(numbers / step) + nought, 0, levels - 1)
    errors: Array = ((integers - nought) * step - numbers) ** 2 @ times
    return errors
