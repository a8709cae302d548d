"""Latency compared: two models on the same machine, in pairs.

    compare(original.run, result.run, feeds).speedup

Alone, a latency on a shared machine means little; the ratio of two runs next to each other does. So the two alternate, in
random order within each pair, and what is told is the median of the pairs' ratios with its interval.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Feed = TypeVar("Feed")

FASTER = 1.02  # the lower bound of a speed-up must lie above this to count


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models in pairs. ``speedup`` is the median of before/after; ``low`` and ``high`` its 95 % interval (bootstrap)."""

    before_ms: float
    after_ms: float
    speedup: float
    low: float
    high: float
    runs: int
    warmup: int

    @property
    def faster(self) -> bool:
        return self.low > FASTER

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    before: Callable[[Feed], object], after: Callable[[Feed], object], feeds: Sequence[Feed], *, warmup: int = 5, most: int = 200, limit_s: float = 6
) -> Paired:
    """Time both on the same feeds, at least 20 pairs, at most ``most``, and about ``limit_s`` seconds."""
    for index in range(warmup):
        before(feeds[index % len(feeds)])
        after(feeds[index % len(feeds)])
    shuffled = random.Random(0)
    times: list[tuple[int, int]] = []
    end = time.monotonic() + limit_s
    while len(times) < 20 or (len(times) < most and time.monotonic() < end):
        feed = feeds[len(times) % len(feeds)]
        if shuffled.random() < 0.5:
            times.append((_time(before, feed), _time(after, feed)))
        else:
            second = _time(after, feed)
            times.append((_time(before, feed), second))
    return _summary(np.array(times, float), warmup)


def _time(run: Callable[[Feed], object], feed: Feed) -> int:
    begin = time.perf_counter_ns()
    run(feed)
    return time.perf_counter_ns() - begin


def _summary(times: NDArray[np.float64], warmup: int) -> Paired:
    ratios = times[:, 0] / times[:, 1]
    draws = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    before_ms, after_ms = np.median(times, axis=0) / 1e6
    return Paired(
        before_ms=float(before_ms),
        after_ms=float(after_ms),
        speedup=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        runs=len(times),
        warmup=warmup,
    )
