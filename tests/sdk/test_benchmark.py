"""Latency in pairs: a clear difference is seen, none is not invented."""

import time

from edgesdk.benchmark import compare


def test_half_the_work_is_faster() -> None:
    result = compare(lambda _: time.sleep(0.004), lambda _: time.sleep(0.002), [0], most=25)
    assert result.faster
    assert 1.5 < result.speedup < 2.5
    assert result.low <= result.speedup <= result.high
    assert (result.runs, result.warmup) == (25, 5)


def test_the_same_work_is_not_faster() -> None:
    assert not compare(lambda _: time.sleep(0.002), lambda _: time.sleep(0.002), [0, 1], most=25).faster
