"""Latency: histograms of bounded size, percentiles in milliseconds, and the one way that host and device measure.

    histogram = Histogram()
    histogram.record(1_250_000)
    histogram.percentiles().p99

Standard library only: the supervisor counts every request.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Feed = TypeVar("Feed")

FEWEST_PAIRS = 20
FEWEST_BLOCKS = 6  # fewer have no interval of 95 %

# 64 buckets an octave, each reported as its middle: off by 1/128 at most.
_BUCKETS_AN_OCTAVE_BITS = 6
_SETTLE_NS = 60_000_000  # a million turns of a thread that waits busily (onnxruntime's ThreadPool), and some more
_BLOCK_NS = 60_000_000
_MAX_NS = 1 << 50  # 13 days; what lies above is counted as this
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds. All zero where nothing was recorded."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def percentiles(samples: Sequence[int]) -> Percentiles:
    """Of nanoseconds, exactly: the smallest sample that so many samples do not exceed.

    >>> percentiles([1_000_000, 2_000_000, 9_000_000]).p50
    2.0
    """
    ordered = sorted(samples) or [0]
    found = {name: ordered[_rank(quantile, len(ordered)) - 1] for name, quantile in _QUANTILES.items()}
    return _in_ms(found, ordered[-1])


def measure(run: Callable[[], object], *, runs: int, warmup: int) -> list[int]:
    """Nanoseconds of each of ``runs`` calls, after ``warmup`` that do not count."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(runs):
        begin = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begin)
    return times


def side_by_side(
    before: Callable[[Feed], object], after: Callable[[Feed], object], feeds: Sequence[Feed], *, spinning: bool, most: int, limit_s: float, warmup: int = 5
) -> tuple[list[tuple[int, int]], int]:
    """Nanoseconds of two programs, next to each other, and how many runs of each at least were warm-up.

    ``spinning``: threads of one of the two wait busily after a run, so single runs of the other would compete with them for the cores.
    """
    if spinning:
        return blocks(before, after, feeds, most=most, limit_s=limit_s), 1
    return pairs(before, after, feeds, warmup=warmup, most=most, limit_s=limit_s), warmup


def pairs(
    before: Callable[[Feed], object], after: Callable[[Feed], object], feeds: Sequence[Feed], *, warmup: int, most: int, limit_s: float
) -> list[tuple[int, int]]:
    """Nanoseconds of two programs on the same feeds, next to each other, in random order within each pair.

    At least 20 pairs, however long they take; else at most ``most``, and about ``limit_s`` seconds. ``warmup`` runs of each
    do not count.
    """
    for index in range(warmup):
        before(feeds[index % len(feeds)])
        after(feeds[index % len(feeds)])
    shuffled = random.Random(0)
    times: list[tuple[int, int]] = []
    end = time.monotonic() + limit_s
    while len(times) < FEWEST_PAIRS or (len(times) < most and time.monotonic() < end):
        feed = feeds[len(times) % len(feeds)]
        if shuffled.random() < 0.5:
            times.append((_time(before, feed), _time(after, feed)))
        else:
            second = _time(after, feed)
            times.append((_time(before, feed), second))
    return times


def blocks(before: Callable[[Feed], object], after: Callable[[Feed], object], feeds: Sequence[Feed], *, most: int, limit_s: float) -> list[tuple[int, int]]:
    """Median nanoseconds of blocks of runs, one program's next to the other's; which comes first changes from pair to pair, and begins by chance.

    Threads of onnxruntime that wait busily do so for a while after their last run, and take the processor from whoever runs then. So each block
    begins with runs that do not count, until that is over. At least 6 pairs, however long they take; else at most ``most``, and about ``limit_s``.
    """
    begins = random.randrange(2)
    times: list[tuple[int, int]] = []
    end = time.monotonic() + limit_s
    while len(times) < FEWEST_BLOCKS or (len(times) < most and time.monotonic() < end):
        first = len(times) % 2 == begins
        one = _block(before if first else after, feeds)
        other = _block(after if first else before, feeds)
        times.append((one, other) if first else (other, one))
    return times


def _block(run: Callable[[Feed], object], feeds: Sequence[Feed]) -> int:
    """Their median."""
    taken: list[int] = []
    begin = time.perf_counter_ns()
    while True:  # one at least does not count
        _time(run, feeds[0])
        if time.perf_counter_ns() - begin > _SETTLE_NS:
            break
    begin = time.perf_counter_ns()
    while not taken or time.perf_counter_ns() - begin < _BLOCK_NS:
        taken.append(_time(run, feeds[len(taken) % len(feeds)]))
    return max(1, sorted(taken)[len(taken) // 2])


def _time(run: Callable[[Feed], object], feed: Feed) -> int:
    begin = time.perf_counter_ns()
    run(feed)
    return time.perf_counter_ns() - begin


class Histogram:
    """Counts of nanoseconds, in at most 2,900 buckets, whose quantiles are off by less than 1 %. Not for two threads at once."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_ns = 0
        self.min_ns = 0
        self.max_ns = 0
        self._buckets: dict[int, int] = {}

    def record(self, ns: int) -> None:
        """Count one. What is negative counts as 0."""
        ns = min(max(int(ns), 0), _MAX_NS)
        bucket = _bucket(ns)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.min_ns = min(self.min_ns, ns) if self.count else ns
        self.max_ns = max(self.max_ns, ns)
        self.sum_ns += ns
        self.count += 1

    def merge(self, other: Histogram) -> None:
        """Add another's counts to these."""
        if not other.count:
            return
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.min_ns = min(self.min_ns, other.min_ns) if self.count else other.min_ns
        self.max_ns = max(self.max_ns, other.max_ns)
        self.sum_ns += other.sum_ns
        self.count += other.count

    def quantile(self, q: float) -> float:
        """Nanoseconds that the share ``q`` of what was recorded does not exceed; 0 where nothing was."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        left = _rank(q, self.count)
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return float(min(max(_middle(bucket), self.min_ns), self.max_ns))
        return 0.0

    def below(self, bounds: Iterable[int]) -> list[int]:
        """How many were recorded below each of the ascending bounds, in nanoseconds: exact at powers of two, and half-way between them."""
        counts, left, total = [], sorted(self._buckets.items(), reverse=True), 0
        for bound in bounds:
            while left and left[-1][0] < _bucket(bound):
                total += left.pop()[1]
            counts.append(total)
        return counts

    def percentiles(self) -> Percentiles:
        """The usual ones, in milliseconds."""
        return _in_ms({name: self.quantile(quantile) for name, quantile in _QUANTILES.items()}, self.max_ns)

    def counts(self) -> list[tuple[float, int]]:
        """The middle of each bucket in nanoseconds, and how many lie there; the fastest first."""
        return [(_middle(bucket), count) for bucket, count in sorted(self._buckets.items())]

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON; `from_dict` reads it."""
        return {"count": self.count, "sum_ns": self.sum_ns, "min_ns": self.min_ns, "max_ns": self.max_ns, "buckets": sorted(self._buckets.items())}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Histogram:
        """Raises ValueError for anything that `to_dict` does not write."""
        histogram = cls()
        try:
            histogram.count, histogram.sum_ns = int(document["count"]), int(document["sum_ns"])
            histogram.min_ns, histogram.max_ns = int(document["min_ns"]), int(document["max_ns"])
            histogram._buckets = {int(bucket): int(count) for bucket, count in document["buckets"]}
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a histogram: {error!r}") from error
        if not 0 <= histogram.min_ns <= histogram.max_ns <= _MAX_NS or not 0 <= histogram.sum_ns <= histogram.count * _MAX_NS:
            raise ValueError("not a histogram: its extremes lie where no time does")
        buckets = histogram._buckets
        if sum(buckets.values()) != histogram.count or not all(0 <= bucket <= _bucket(_MAX_NS) and count > 0 for bucket, count in buckets.items()):
            raise ValueError("not a histogram: its buckets do not add up")
        return histogram


def histogram_of(samples: Any) -> Histogram:
    """The same of a numpy array of nanoseconds at once: so many calls would hold up the caller's other threads."""
    import numpy as np

    ns = np.clip(samples, 0, _MAX_NS)
    if not ns.size:
        return Histogram()
    octaves = np.maximum(np.frexp(ns.astype(np.float64))[1] - _BUCKETS_AN_OCTAVE_BITS - 1, 0)  # frexp's exponent is the bit length
    buckets, counts = np.unique((octaves << _BUCKETS_AN_OCTAVE_BITS) + (ns >> octaves), return_counts=True)
    return Histogram.from_dict(
        {"count": ns.size, "sum_ns": ns.sum(), "min_ns": ns.min(), "max_ns": ns.max(), "buckets": zip(buckets.tolist(), counts.tolist())}
    )


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """One of all: over the devices of a fleet, or the versions of a model. As exact as any one of them."""
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def _rank(q: float, count: int) -> int:
    """Which of the sorted samples, from 1, is the quantile. The small number takes off what q * count is too large by."""
    return max(1, math.ceil(q * count - 1e-9))


def _bucket(ns: int) -> int:
    """Exact up to two octaves' worth of buckets; above, the leading seven bits and their place."""
    octave = max(0, ns.bit_length() - _BUCKETS_AN_OCTAVE_BITS - 1)
    return (octave << _BUCKETS_AN_OCTAVE_BITS) + (ns >> octave)


def _middle(bucket: int) -> float:
    octave = max(0, (bucket >> _BUCKETS_AN_OCTAVE_BITS) - 1)
    lowest = (bucket - (octave << _BUCKETS_AN_OCTAVE_BITS)) << octave
    return lowest + ((1 << octave) - 1) / 2


def _in_ms(found: dict[str, Any], maximum: int) -> Percentiles:
    return Percentiles(max=round(maximum / 1e6, 6), **{name: round(ns / 1e6, 6) for name, ns in found.items()})
