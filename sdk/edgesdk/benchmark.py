"""Latency compared: two models on the same machine, in pairs.

    compare(original.run, result.run, feeds).speedup

Alone, a latency on a shared machine means little; the ratio of two runs next to each other does. So the two alternate, run by run or
in blocks of runs, in random order within each pair, and what is told is the median of the pairs' ratios with its interval.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from edge_agent.latency import side_by_side

Feed = TypeVar("Feed")

FASTER = 1.02  # the lower bound of a speed-up must lie above this to count
_QUANTILE = 1.96  # of a normal distribution: 2.5 % lie beyond


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models in pairs. ``speedup`` is the median of before/after; ``low`` and ``high`` its 95 % interval, of one process: a restart may lie beyond."""

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
    before: Callable[[Feed], object], after: Callable[[Feed], object], feeds: Sequence[Feed], *, spinning: bool = False, most: int = 200, limit_s: float = 6
) -> Paired:
    """Time both on the same feeds, at most ``most`` pairs, and about ``limit_s`` seconds.

    A pair is a run of each, of which there are 20 at least; where threads of one of the two wait busily after a run (``spinning``), it is
    the medians of a block of runs of each, and there are 6 at least.
    """
    return summary(*side_by_side(before, after, feeds, spinning=spinning, most=most, limit_s=limit_s))


def summary(times: Sequence[tuple[int, int]], warmup: int) -> Paired:
    """Of raw pairs: nanoseconds before and after.

    The interval is that of the sign test (Conover 1999, 3.2): two of the sorted ratios, as many from either end as can lie on one side of the median in
    2.5 % of cases, by the normal approximation. From six pairs on that is 95 % at least, of five 94 %; a bootstrap's of a dozen holds in 90 % of cases.
    """
    found = np.array(times, float)
    ratios = np.sort(found[:, 0] / found[:, 1])
    count = len(ratios)
    place = max(int((count - 1 - _QUANTILE * math.sqrt(count)) // 2), 0)
    before_ms, after_ms = np.median(found, axis=0) / 1e6
    return Paired(
        before_ms=float(before_ms),
        after_ms=float(after_ms),
        speedup=float(np.median(ratios)),
        low=float(ratios[place]),
        high=float(ratios[count - 1 - place]),
        runs=count,
        warmup=warmup,
    )
