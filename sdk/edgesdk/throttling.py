"""When a device became slower for good, and how fast it was before and after: the levels in a sustained run's curve.

    found = levels(curve)
    throttled_at(found)                      # seconds, or None

A clock that falls moves the median. A quota that is cut in half leaves the median as it is: the process runs as fast as before, and stands still
half of the time, so the rate halves and p99 is many times as long. So all three are looked at together: their logarithms, each in units of
its own noise, are divided where the squared distance to the means of the parts, and a price for each part, is smallest (optimal partitioning:
Jackson and others 2005, pruned as PELT, Killick and others 2012).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgesdk.results import Level, Window

CHANGE = 0.05  # of the rate or of the median: what is less is no other level
TAIL_CHANGE = 0.5  # of p99, which is noisy

_SHORTEST_MS = 1e-6
_SHORTEST_S = 10.0  # a level; what is shorter is a disturbance. Of a run below a minute: half of that
_APART = 6  # windows: so far apart noise does not hang together any more
_PRICE = 5.0  # of a part, times the figures and the logarithm of the number of windows
_FARTHEST = 4.0  # a window that is far off counts as this many deviations


def levels(curve: Sequence[Window]) -> tuple[Level, ...]:
    """At least one, where there is a window; a run that never changes has just that."""
    if not curve:
        return ()
    seconds = float(np.median([window.seconds for window in curve]))
    shortest_s = _SHORTEST_S if curve[-1].t_s >= 6 * _SHORTEST_S else _SHORTEST_S / 2
    ends = partition(_series(curve), max(1, math.ceil(shortest_s / seconds)))
    parts = [list(curve[begin:end]) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    found = [_level(part) for part in parts]
    while len(parts) > 1:  # the two that are most alike become one, until all differ by what counts
        apart = [_apart(one, other) for one, other in itertools.pairwise(found)]
        least = min(range(len(apart)), key=lambda place: apart[place])
        if apart[least] >= 1:
            break
        parts[least : least + 2] = [parts[least] + parts[least + 1]]
        found = [_level(part) for part in parts]
    return tuple(found)


def throttled_at(found: Sequence[Level]) -> float | None:
    """When it became slower for good: by a quarter at least of what it lost from its fastest level to its last one, and never better again.

    So neither a neighbour who comes before, nor a slow-down that passes, is taken for it, and of many small steps the first few are not waited for.
    """
    if len(found) < 2:
        return None
    fastest = min(range(len(found) - 1), key=lambda place: math.log(found[place].p50_ms / found[place].throughput))
    whole, since = _loss(found[fastest], found[-1]), None
    for level in reversed(found[fastest + 1 :]):
        if _loss(found[fastest], level) < max(1.0, whole / 4):
            break
        since = level.from_s
    return since


def partition(series: NDArray[np.float64], shortest: int) -> list[int]:
    """Ends of the parts of ``series`` (windows × figures, each in units of its noise) that cost least, none shorter than ``shortest``."""
    count = len(series)
    if count < 2 * shortest:
        return [count]
    price = _PRICE * series.shape[1] * math.log(count)
    sums = np.vstack([np.zeros(series.shape[1]), np.cumsum(series, axis=0)])
    squares = np.concatenate([[0.0], np.cumsum((series**2).sum(axis=1))])
    best, before = np.full(count + 1, math.inf), np.zeros(count + 1, int)
    best[0] = -price
    for end in range(shortest, count + 1):
        begins = np.arange(end - shortest + 1)
        length = end - begins
        inside = squares[end] - squares[begins] - ((sums[end] - sums[begins]) ** 2).sum(axis=1) / length
        costs = best[begins] + inside + price
        place = int(costs.argmin())
        best[end], before[end] = costs[place], begins[place]
    ends = [count]
    while before[ends[0]]:
        ends.insert(0, int(before[ends[0]]))
    return ends


def _series(curve: Sequence[Window]) -> NDArray[np.float64]:
    """Rate, median and p99 as logarithms, in units of their noise, what is far from its neighbours brought near."""
    columns = []
    for values in ([one.throughput for one in curve], [one.p50_ms for one in curve], [one.p99_ms for one in curve]):
        logs = np.log(np.maximum(values, 1e-9))
        deviation, lasting = _noise(logs)
        near = _median_of_neighbours(logs)
        columns.append(np.clip(logs, near - _FARTHEST * deviation, near + _FARTHEST * deviation) / lasting)
    return np.column_stack(columns)


def _noise(logs: NDArray[np.float64]) -> tuple[float, float]:
    """The deviation of one window, and what a mean of many is off by as if they were independent: with AR(1) noise it is more.

    Of differences, by their median: a change of level is in few of them. Those of neighbours and those farther apart tell how noise hangs together.
    """

    def at(lag: int) -> float:
        steps = np.abs(logs[lag:] - logs[:-lag])
        return 1.4826 * float(np.median(steps)) / math.sqrt(2) if len(steps) else 0.0

    near, far = at(1), max(at(1), at(_APART))
    deviation = max(far, CHANGE / 10)
    alike = min(max(1 - (near / far) ** 2 if far else 0.0, 0.0), 0.9)
    return deviation, deviation * math.sqrt((1 + alike) / (1 - alike))


def _median_of_neighbours(values: NDArray[np.float64], reach: int = 4) -> NDArray[np.float64]:
    padded = np.pad(values, reach, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1))


def _level(part: Sequence[Window]) -> Level:
    """The rate is that of the whole time; the percentiles are the windows' medians. The first and the last window may lie across a change."""
    inner = part[1:-1] if len(part) > 4 else part
    return Level(
        from_s=part[0].t_s,
        to_s=round(part[-1].t_s + part[-1].seconds, 3),
        p50_ms=max(float(np.median([one.p50_ms for one in inner])), _SHORTEST_MS),
        p99_ms=max(float(np.median([one.p99_ms for one in inner])), _SHORTEST_MS),
        throughput=sum(one.throughput * one.seconds for one in inner) / sum(one.seconds for one in inner),
    )


def _apart(one: Level, other: Level) -> float:
    """1 and more: they differ by what counts."""
    return max(_loss(one, other), _loss(other, one))


def _loss(before: Level, after: Level) -> float:
    """By how much it is slower, in units of what counts: by whichever of the three says most."""
    rate, median, tail = before.throughput / after.throughput, after.p50_ms / before.p50_ms, after.p99_ms / before.p99_ms
    return max(math.log(rate) / math.log1p(CHANGE), math.log(median) / math.log1p(CHANGE), math.log(tail) / math.log1p(TAIL_CHANGE))
