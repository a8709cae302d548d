"""Latencies of one run, in windows of time: percentiles, when they stopped to change, and an interval from one process alone.

    run = Run()
    run.close([1_250_000, 1_300_000], begin_s=0.0, seconds=0.003)        # a window
    steady(run.windows), run.percentiles()["p99"], run.intervals_ns()

What lies within a second is alike (a neighbour, a clock, a cache), so an interval from one process draws whole tenths of its windows: a block bootstrap
(Künsch 1989). How a process would do that is started anew is none of what it says.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Dict, List

import numpy as np

from edge_agent import latency
from edge_agent.latency import Histogram

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
CHANGE = 0.02  # of the median from window to window: what is less is steady

_STEADY_WINDOWS = 3
_STEADY_S = 0.6  # what rises or falls more slowly is not seen in less
_PARTS = 10
_STUDENT = {5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by parts: the quantile at 0.975 for one degree of freedom fewer
_DRAWS = 500
_MOST_KEPT = 1 << 21  # latencies, 16 MB; above, the histogram tells the percentiles, within 1 %


@dataclass(frozen=True)
class Window:
    """``begin_s``: from that of the run. ``spread_ns``: how far off its median may be by chance, one standard error."""

    begin_s: float
    seconds: float
    runs: int
    ns: Mapping[str, float]
    spread_ns: float

    def to_dict(self, samples: int) -> Dict[str, Any]:
        return {
            "t_s": round(self.begin_s, 3),
            "seconds": round(self.seconds, 4),
            "runs": self.runs,
            "p50_ms": self.ns["p50"] / 1e6,
            "p99_ms": self.ns["p99"] / 1e6,
            "throughput": self.runs * samples / self.seconds,
        }


class Run:
    """All windows of a run, and what they sum up to."""

    def __init__(self) -> None:
        self.windows: List[Window] = []
        self.histogram = Histogram()
        self.seconds = 0.0
        self._kept = array("q")
        self._blocks: List[Histogram] = []

    def close(self, ns: Sequence[int], begin_s: float, seconds: float) -> Window:
        """One more window, of so many seconds, with at least one latency."""
        samples = np.array(ns, np.int64)
        histogram = latency.histogram_of(samples)
        self.histogram.merge(histogram)
        self._blocks.append(histogram)
        self.seconds += seconds
        if len(self._kept) <= _MOST_KEPT:
            self._kept.extend(ns)
        window = Window(begin_s, max(seconds, 1e-9), len(ns), quantiles(samples), spread(samples))
        self.windows.append(window)
        return window

    @property
    def runs(self) -> int:
        return self.histogram.count

    def percentiles(self) -> Dict[str, float]:
        """Nanoseconds."""
        if len(self._kept) == self.histogram.count:
            return quantiles(np.array(self._kept, np.int64))
        return {name: self.histogram.quantile(q) for name, q in QUANTILES.items()}

    def deviation_ns(self) -> float:
        """The standard deviation of all."""
        if len(self._kept) == self.histogram.count:
            return float(np.std(np.array(self._kept, np.int64)))
        counts = self.histogram.counts()
        mean = self.histogram.sum_ns / max(self.histogram.count, 1)
        return math.sqrt(sum(count * (middle - mean) ** 2 for middle, count in counts) / max(self.histogram.count, 1))

    def intervals_ns(self) -> Dict[str, List[float]]:
        """95 % of each percentile, by drawing tenths of the run; nothing where there are fewer than five windows.

        Windows next to each other are alike, too: drawn one by one, the interval would hold in three of four cases. Ten parts are few for a bootstrap,
        so its ends are put as much farther out as Student's distribution is wider than the normal one.
        """
        if len(self._blocks) < min(_STUDENT):
            return {}
        ends = np.linspace(0, len(self._blocks), min(_PARTS, len(self._blocks)) + 1).round().astype(int)
        blocks = [latency.merged(self._blocks[begin:end]) for begin, end in zip(ends[:-1], ends[1:])]
        wider = _STUDENT[len(blocks)] / 1.96 * math.sqrt(len(blocks) / (len(blocks) - 1))
        middles = np.array([middle for middle, _ in self.histogram.counts()])
        matrix = np.zeros((len(blocks), len(middles)))
        for row, block in enumerate(blocks):
            found = block.counts()
            matrix[row, np.searchsorted(middles, [middle for middle, _ in found])] = [count for _, count in found]
        drawn = np.random.default_rng(0).multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), _DRAWS) @ matrix
        sums = drawn.cumsum(axis=1)
        told = {}
        for name in ("p50", "p90", "p99"):
            places = (sums >= np.ceil(QUANTILES[name] * sums[:, -1:] - 1e-9)).argmax(axis=1)
            middle = max(self.histogram.quantile(QUANTILES[name]), 1.0)
            low, high = np.percentile(middles[places], [2.5, 97.5])
            told[name] = [middle * (max(end, 1.0) / middle) ** wider for end in (min(low, middle), max(high, middle))]
        return {name: [float(end) for end in ends] for name, ends in told.items()}


def quantiles(samples: Any) -> Dict[str, float]:
    """As `latency.percentiles` has them: the smallest sample that so many do not exceed."""
    ordered = np.sort(samples)
    return {name: float(ordered[max(1, math.ceil(q * len(ordered) - 1e-9)) - 1]) for name, q in QUANTILES.items()}


def spread(samples: Any) -> float:
    """The standard error of the median, of a normal distribution that has their median deviation: what is far out does not count."""
    deviation = 1.4826 * float(np.median(np.abs(samples - np.median(samples))))
    return 1.2533 * deviation / math.sqrt(len(samples))


def steady(windows: Sequence[Window]) -> bool:
    """Whether medians stopped to change: those of the last three windows, and of the last third against the third before it.

    No more than by 2 %, or than chance explains. Three windows alone see no slow change: a clock that takes a second to rise moves a tenth of a
    second by less than that.
    """
    if len(windows) < _STEADY_WINDOWS or windows[-1].begin_s + windows[-1].seconds < _STEADY_S:
        return False
    last, third = windows[-_STEADY_WINDOWS:], len(windows) // 3
    before, after = windows[-2 * third : -third], windows[-third:]
    return _alike([window.ns["p50"] for window in last], math.hypot(*(window.spread_ns for window in last))) and _alike(
        [_middle(before), _middle(after)], math.hypot(_error(before), _error(after))
    )


def _alike(medians: Sequence[float], error: float) -> bool:
    return max(medians) - min(medians) <= max(CHANGE * min(medians), 2 * error)


def _middle(windows: Sequence[Window]) -> float:
    return float(np.median([window.ns["p50"] for window in windows]))


def _error(windows: Sequence[Window]) -> float:
    """Of the median of their medians."""
    return (1.2533 if len(windows) > 2 else 1.0) * math.hypot(*(window.spread_ns for window in windows)) / len(windows)
