"""Latency in pairs: a clear difference is seen, none is not invented."""

import math
import time

import numpy as np

from edgesdk import benchmark, evidence, graph, packaging, profiles, sampling
from edgesdk.benchmark import compare
from edgesdk.profiles import Provider, Runtime
from tests.sdk.small_models import DATA


def test_half_the_work_is_faster() -> None:
    result = compare(lambda _: time.sleep(0.004), lambda _: time.sleep(0.002), [0], most=25)
    assert result.faster
    assert 1.5 < result.speedup < 2.5
    assert result.low <= result.speedup <= result.high
    assert (result.runs, result.warmup) == (25, 5)


def test_the_same_work_is_not_faster() -> None:
    assert not compare(lambda _: time.sleep(0.002), lambda _: time.sleep(0.002), [0, 1], most=25).faster


def test_an_interval_of_few_pairs_holds_in_95_percent_of_cases_where_a_bootstrap_does_not() -> None:
    """Blocks, of which there are 6 to 25: independent ones, and ones that are a bit alike."""
    for alike, bootstrapped, ours in ((0.0, 0.93, 0.945), (0.3, 0.86, 0.905)):
        held = []
        for count in (6, 9, 13, 25):
            logs = _alike(np.random.default_rng(count), 400, count, alike)
            times = [[(round(1e9 * math.exp(log)), 1_000_000_000) for log in one] for one in logs]
            found = [(benchmark.summary(one, warmup=1), _bootstrapped(np.exp(logs[place]))) for place, one in enumerate(times)]
            held.append([(each.low <= 1 <= each.high, low <= 1 <= high) for each, (low, high) in found])
        share, before = np.mean(held, axis=(0, 1))
        assert before < bootstrapped
        assert share > ours


def test_of_a_pair_more_than_a_coin_can_throw_to_one_side_nothing_is_left_out() -> None:
    for count in range(6, 400):
        found = benchmark.summary([(1000 + place, 1000) for place in range(count)], warmup=1)
        left_out = round(found.low * 1000) - 1000
        assert 2 * sum(math.comb(count, each) for each in range(left_out + 1)) / 2**count <= 0.05
        assert round(found.high * 1000) - 1000 == count - 1 - left_out


def _alike(drawn: np.random.Generator, trials: int, count: int, alike: float) -> np.ndarray:
    """Noise of 2 %, of which a value hands so much on to the next."""
    logs = drawn.normal(0, 0.02, (trials, count))
    logs[:, 0] /= math.sqrt(1 - alike**2)
    for place in range(1, count):
        logs[:, place] += alike * logs[:, place - 1]
    return logs


def _bootstrapped(ratios: np.ndarray) -> tuple[float, float]:
    """As it was done before."""
    draws = np.random.default_rng(0).integers(0, len(ratios), (500, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)


def test_a_race_tells_the_provider_that_ran_and_not_the_one_that_was_wished_for() -> None:
    wished = profiles.find("x86-cpu").model_copy(
        update={"providers": (Provider(name="CUDAExecutionProvider"), Provider(name="CPUExecutionProvider")), "runtime": Runtime(intra_op_threads=1)}
    )
    model = graph.load(DATA / "resnet8_mnist.onnx")
    found = evidence.race_here(wished, list(sampling.generated(model, 1)))(model, model, 0.1)
    assert isinstance(found, evidence.RacedHere)
    assert (found.provider, found.threads) == ("CPUExecutionProvider", 1)
    told = packaging._latency(found)
    assert (told["provider"], told["threads"], told["before"]) == ("CPUExecutionProvider", 1, round(found.before_ms, 6))
