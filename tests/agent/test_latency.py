from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.latency import Histogram, measure, merged, percentiles

NANOSECONDS = st.one_of(st.integers(0, 300), st.integers(0, 10**7), st.integers(0, 1 << 50))
SAMPLES = st.lists(NANOSECONDS, min_size=1, max_size=200)


@given(SAMPLES, st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_a_quantile_is_within_one_percent_of_the_inverted_cdf(samples: list[int], q: float) -> None:
    exact = float(np.quantile(np.array(samples, np.float64), q, method="inverted_cdf"))
    assert histogram(samples).quantile(q) == pytest.approx(exact, rel=0.01, abs=0.5)


@given(SAMPLES, SAMPLES)
def test_merging_is_recording_both(first: list[int], second: list[int]) -> None:
    merged = histogram(first)
    merged.merge(histogram(second))
    assert merged.to_dict() == histogram(first + second).to_dict()


@given(st.lists(SAMPLES, max_size=5), st.randoms())
def test_a_fleets_histogram_is_that_of_all_its_samples_in_any_order(devices: list[list[int]], shuffled: Any) -> None:
    whole = merged(map(histogram, devices))
    again = [Histogram.from_dict(json.loads(json.dumps(histogram(samples).to_dict()))) for samples in devices]
    shuffled.shuffle(again)
    assert merged(again).to_dict() == whole.to_dict()
    samples = [sample for device in devices for sample in device]
    for q in (0.5, 0.9, 0.999):
        exact = float(np.quantile(np.array(samples or [0], np.float64), q, method="inverted_cdf"))
        assert whole.quantile(q) == pytest.approx(exact, rel=0.01, abs=0.5)


@given(SAMPLES)
def test_counts_below_a_power_of_two_are_exact(samples: list[int]) -> None:
    bounds = sorted({1 << octave for octave in range(51)} | {3 << octave for octave in range(6, 49)})
    assert histogram(samples).below(bounds) == [sum(min(sample, 1 << 50) < bound for sample in samples) for bound in bounds]


@given(SAMPLES)
def test_it_survives_json(samples: list[int]) -> None:
    before = histogram(samples)
    after = Histogram.from_dict(json.loads(json.dumps(before.to_dict())))
    assert after.to_dict() == json.loads(json.dumps(before.to_dict())) or after.percentiles() == before.percentiles()
    assert after.percentiles() == before.percentiles()


def test_memory_is_bounded() -> None:
    full = Histogram()
    for octave in range(60):
        for step in range(200):
            full.record((1 << octave) + step * (1 << octave) // 200)
    assert len(full.to_dict()["buckets"]) < 2900


def test_extremes_are_exact_and_nothing_is_zero() -> None:
    assert histogram([1_234_567, 9_876_543]).percentiles().max == 9.876543
    assert histogram([1_234_567]).quantile(0.5) == 1_234_567
    assert Histogram().percentiles().p99 == 0
    assert Histogram().quantile(0.5) == 0


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"count": 1, "sum_ns": 1, "min_ns": 1, "max_ns": 1, "buckets": []},
        {"count": 1, "sum_ns": 1, "min_ns": 1, "max_ns": 1, "buckets": [[10**9, 1]]},
        {"count": "x", "sum_ns": 1, "min_ns": 1, "max_ns": 1, "buckets": [[1, 1]]},
        {"count": 1, "sum_ns": 1, "min_ns": 1, "max_ns": 1, "buckets": 7},
        [],
    ],
)
def test_what_is_no_histogram_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match=r"not a histogram|invalid literal"):
        Histogram.from_dict(document)  # type: ignore[arg-type]


def test_a_quantile_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Histogram().quantile(1.5)


def test_measuring_leaves_out_the_warm_up() -> None:
    calls: list[int] = []
    times = measure(lambda: calls.append(1), runs=3, warmup=2)
    assert (len(calls), len(times)) == (5, 3)
    assert all(ns >= 0 for ns in times)
    assert percentiles([]).max == 0


def histogram(samples: list[int]) -> Histogram:
    made = Histogram()
    for sample in samples:
        made.record(sample)
    return made


def test_blocks_are_the_medians_of_one_program_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_agent import latency

    clock, ran = [0], []

    def runs(name: str, ns: int) -> Any:
        def run(_: object) -> None:
            ran.append(name)
            clock[0] += ns if len(ran) % 7 else 50 * ns  # an outlier now and then

        return run

    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: clock[0])
    for _ in range(3):
        ran.clear()
        found = latency.blocks(runs("a", 2_000_000), runs("b", 1_000_000), [None], most=9, limit_s=0)
        assert found == [(2_000_000, 1_000_000)] * latency.FEWEST_BLOCKS
        changes = sum(ran[at] != ran[at + 1] for at in range(len(ran) - 1))
        assert changes == latency.FEWEST_BLOCKS  # a b | b a | a b …: one within each pair, none between


def test_only_where_no_thread_spins_single_runs_alternate() -> None:
    from edge_agent.latency import FEWEST_BLOCKS, FEWEST_PAIRS, side_by_side

    ran: dict[bool, list[str]] = {True: [], False: []}
    for spinning in (False, True):
        noted = ran[spinning].append
        times, warmup = side_by_side(lambda _, n=noted: n("a"), lambda _, n=noted: n("b"), [None], spinning=spinning, most=3, limit_s=0)
        assert len(times) == (FEWEST_BLOCKS if spinning else FEWEST_PAIRS)
        assert warmup == (1 if spinning else 5)
    turns = {spinning: sum(names[at] != names[at + 1] for at in range(len(names) - 1)) for spinning, names in ran.items()}
    assert turns[True] == FEWEST_BLOCKS and turns[False] >= FEWEST_PAIRS
