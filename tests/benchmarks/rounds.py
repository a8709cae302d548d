"""Latency of many at once: in each round each runs for a few milliseconds, in random order, and ratios are taken within rounds.

    times = rounds({"theirs": theirs, "ours": ours}, feeds)
    ratio(times["theirs"], times["ours"]).value

What slows a shared machine down for a second slows all of a round down, so the ratios stay what they are.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesdk.graph import Feeds

Times = NDArray[np.float64]  # nanoseconds a run, one a round

SLOT_NS = 5e6  # a model faster than this runs several times in a row: what is timed is the model, not its way back into the caches
WARMUP = 3


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the rounds' ratios with its 95 % interval (bootstrap)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} … {self.high:.2f})"


def rounds(runs: Mapping[str, Callable[[Feeds], object]], feeds: Sequence[Feeds], *, least: int = 30, most: int = 200, limit_s: float = 60) -> dict[str, Times]:
    """Times of each in ``least`` to ``most`` rounds, about ``limit_s`` seconds."""
    often = {label: _repeats(run, feeds) for label, run in runs.items()}
    times: dict[str, list[float]] = {label: [] for label in runs}
    order, shuffled, end = list(runs), random.Random(0), time.monotonic() + limit_s
    for number in range(most):
        if number >= least and time.monotonic() > end:
            break
        shuffled.shuffle(order)
        for label in order:
            times[label].append(_time(runs[label], feeds[number % len(feeds)], often[label]))
    return {label: np.array(taken) for label, taken in times.items()}


def ratio(before: Times, after: Times) -> Ratio:
    """How many times faster ``after`` is; both of the same rounds."""
    ratios = before / after
    draws = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def _repeats(run: Callable[[Feeds], object], feeds: Sequence[Feeds]) -> int:
    for index in range(WARMUP):
        run(feeds[index % len(feeds)])
    return max(1, math.ceil(SLOT_NS / min(_time(run, feeds[0], 1) for _ in range(3))))


def _time(run: Callable[[Feeds], object], feed: Feeds, repeats: int) -> float:
    begin = time.perf_counter_ns()
    for _ in range(repeats):
        run(feed)
    return (time.perf_counter_ns() - begin) / repeats
