"""Curves of which it is known when they change and to what: found within five seconds and five per cent; and those that do not change."""

from collections.abc import Callable

import numpy as np
import pytest

from edgesdk.results import Window
from edgesdk.throttling import levels, partition, throttled_at


def curve(seconds: int, at: Callable[[float], tuple[float, float, float]], *, noise: float = 0.02, seed: int = 0, spikes: float = 0.0) -> list[Window]:
    """Windows of a second; ``at``: rate, median and p99 at that time. ``noise`` hangs together over some seconds; now and then p99 is far off."""
    drawn, wandering, windows = np.random.default_rng(seed), 0.0, []
    for t in range(seconds):
        rate, p50, p99 = at(t)
        wandering = 0.6 * wandering + noise * drawn.standard_normal()
        slower = np.exp(wandering)
        tail = p99 * slower * np.exp(3 * noise * drawn.standard_normal()) * (8 if drawn.random() < spikes else 1)
        windows.append(Window(t_s=float(t), seconds=1.0, runs=round(rate / slower), p50_ms=p50 * slower, p99_ms=tail, throughput=rate / slower))
    return windows


def quota(cut: float) -> Callable[[float], tuple[float, float, float]]:
    """Half a quota from then on: the median stays."""
    return lambda t: (1000.0, 1.0, 1.2) if t < cut else (500.0, 1.0, 51.0)


def clock(cut: float, share: float) -> Callable[[float], tuple[float, float, float]]:
    return lambda t: (1000.0, 1.0, 1.2) if t < cut else (1000 * share, 1 / share, 1.2 / share)


@pytest.mark.parametrize("seed", range(20))
def test_a_quota_that_is_cut_in_half_is_found_with_both_levels(seed: int) -> None:
    cut = 20 + 7.3 * seed % 60
    found = levels(curve(120, quota(cut), seed=seed, spikes=0.05))
    at = throttled_at(found)
    assert at is not None and abs(at - cut) <= 5
    assert len(found) == 2
    assert [level.throughput for level in found] == pytest.approx([1000, 500], rel=0.05)
    assert found[1].p50_ms == pytest.approx(1, rel=0.05) and found[1].p99_ms > 20 * found[0].p99_ms


@pytest.mark.parametrize("seed", range(20))
def test_a_clock_that_falls_by_a_tenth_is_found(seed: int) -> None:
    found = levels(curve(300, clock(97, 0.9), noise=0.01, seed=seed))
    at = throttled_at(found)
    assert at is not None and abs(at - 97) <= 5
    assert (found[0].throughput, found[-1].throughput) == pytest.approx((1000, 900), rel=0.05)


def test_what_never_changes_has_one_level_and_was_not_throttled() -> None:
    """Noise that wanders, and a p99 that is far off in one window of ten."""
    said = [levels(curve(300, quota(1e9), noise=0.03, seed=seed, spikes=0.1)) for seed in range(60)]
    assert sum(throttled_at(found) is not None for found in said) <= 1
    assert sum(len(found) > 1 for found in said) <= 6


def test_of_several_steps_the_first_counts_and_what_is_made_up_for_does_not() -> None:
    steps = levels(curve(300, lambda t: clock(60, 0.8)(t) if t < 180 else clock(0, 0.6)(t)))
    assert throttled_at(steps) == pytest.approx(60, abs=5)
    assert steps[-1].throughput == pytest.approx(600, rel=0.05)
    passing = levels(curve(300, lambda t: clock(0, 0.7)(t) if 100 <= t < 140 else clock(1e9, 1)(t)))
    assert [round(level.from_s / 5) * 5 for level in passing] == [0, 100, 140]
    assert throttled_at(passing) is None


def test_a_neighbour_before_and_a_slow_down_that_passes_are_not_taken_for_it() -> None:
    def at(t: float) -> tuple[float, float, float]:
        return clock(20, 0.94)(t) if t < 60 else clock(0, 0.7)(t) if t < 80 else clock(0, 0.94)(t) if t < 140 else (470.0, 1 / 0.94, 51.0)

    found = levels(curve(240, at, noise=0.01))
    assert len(found) >= 4
    assert throttled_at(found) == pytest.approx(140, abs=5)


def test_of_many_small_steps_the_last_is_not_waited_for() -> None:
    at = throttled_at(levels(curve(400, lambda t: clock(100, max(0.6, 1 - (t - 100) / 400) if t > 100 else 1)(t), noise=0.01)))
    assert at is not None and 100 <= at <= 180


def test_a_run_that_gets_faster_was_not_throttled() -> None:
    assert throttled_at(levels(curve(120, clock(40, 1.3)))) is None


def test_short_curves() -> None:
    assert levels([]) == () and throttled_at(()) is None
    (one,) = levels(curve(1, quota(9)))
    assert (one.from_s, one.to_s) == (0.0, 1.0)
    assert len(levels(curve(9, quota(4)))) == 1, "too short for two levels"


def test_a_partition_is_the_cheapest_one() -> None:
    """Against all there are, on a short series."""
    drawn = np.random.default_rng(3)
    series = np.concatenate([drawn.standard_normal((7, 2)), drawn.standard_normal((6, 2)) + 12, drawn.standard_normal((7, 2)) - 9])
    assert partition(series, 2) == [7, 13, 20]
    assert partition(series[:7], 2) == [7]
    assert partition(series, 30) == [20]
