"""Verdicts: how often they are wrong, when they come, and what is not compared."""

import math
import random
from pathlib import Path

import numpy as np
import pytest

from edgesdk import comparison, graph, profiles
from edgesdk.comparison import LOOKS, compare, decided, estimate
from edgesdk.errors import ModelError, ProjectError
from edgesdk.race import Raced
from tests.bundles import write_bundle
from tests.sdk.small_models import DATA, build, node, numbers


def restart(log: float) -> Raced:
    ratio = math.exp(log)
    told = {"host": "", "device": "", "nodes": ("", ""), "threads": 1, "threads_after": 1, "onnxruntime": "", "governor": None, "temperature_c": None}
    return Raced(before_ms=ratio, after_ms=1.0, speedup=ratio, low=ratio, high=ratio, runs=100, warmup=5, providers=("first", "second"), **told)


def verdicts(difference: float, spread: float, count: int, seed: int) -> dict[str, int]:
    """Of so many comparisons where each restart is off by chance; ``difference``: how much faster the second model is."""
    drawn, found = random.Random(seed), {"faster": 0, "slower": 0, "no difference seen": 0}
    for _ in range(count):

        def run(first: int, second: int) -> Raced:
            return restart((1 if first < second else -1) * math.log1p(difference) + drawn.gauss(0, spread))

        _, estimated, _ = decided(run, limit_s=1e9, order=random.Random(drawn.random()))
        found[estimated.verdict] += 1
    return found


@pytest.mark.parametrize("spread", [0.005, 0.02, 0.1])
def test_a_model_is_seldom_told_from_itself(spread: float) -> None:
    found = verdicts(0.0, spread, 2000, seed=round(spread * 1e4))
    assert found["faster"] + found["slower"] <= 35  # 1 % of 2000, and three standard deviations


def test_a_difference_is_found_and_told_the_right_way_round() -> None:
    assert verdicts(0.05, 0.02, 300, seed=1) == {"faster": 300, "slower": 0, "no difference seen": 0}
    assert verdicts(-0.05, 0.02, 300, seed=2)["slower"] == 300
    assert verdicts(0.02, 0.01, 300, seed=3)["faster"] >= 280


def test_an_ordinary_interval_at_each_look_would_lie_more_often() -> None:
    drawn, lied = np.random.default_rng(0), 0
    for _ in range(2000):
        logs = drawn.normal(0, 0.02, 28)
        lied += any(abs(logs[:n].mean()) > 2.6 * logs[:n].std(ddof=1) / math.sqrt(n) for n in LOOKS)  # 2.6 and more is Student's at 1 %
    assert lied > 40


def test_it_stops_when_it_knows_enough_or_has_no_more_time() -> None:
    quiet = random.Random(3)
    raced, found, why = decided(lambda *_: restart(quiet.gauss(0, 1e-4)), limit_s=1e9, order=random.Random(0))
    assert (len(raced), found.verdict, why) == (5, "no difference seen", "narrow enough")
    noisy = random.Random(1)
    assert decided(lambda *_: restart(noisy.gauss(0, 0.3)), limit_s=0)[2] == "time is up"
    raced, _, why = decided(lambda *_: restart(noisy.gauss(0, 0.3)), limit_s=1e9)
    assert (len(raced), why) == (28, "most restarts")


def test_who_is_opened_first_is_drawn_and_turned_back() -> None:
    opened = []

    def run(first: int, second: int) -> Raced:
        opened.append(first)
        return restart(0.5 if first == 0 else -0.5)

    raced, found, _ = decided(run, limit_s=1e9, order=random.Random(0))
    assert {0, 1} == set(opened)
    assert found.speedup == pytest.approx(math.exp(0.5))
    assert all(each.after_ms == pytest.approx(1.0) or each.before_ms == pytest.approx(1.0) for each in raced)
    assert {each.providers for each in raced} == {("first", "second"), ("second", "first")}


def test_the_interval_is_students() -> None:
    from scipy import stats

    for count, quantile in LOOKS.items():
        assert quantile == pytest.approx(stats.t.ppf(1 - 0.01 / 12, count - 1), abs=1e-3)
    logs = [0.01, 0.02, 0.03, 0.02, 0.01, 0.02]
    half = LOOKS[5] * np.std(logs, ddof=1) / math.sqrt(6)  # between two looks the stricter one
    found = estimate(logs)
    assert math.log(found.high / found.low) == pytest.approx(2 * half)


@pytest.mark.slow
def test_two_bundles_are_run_as_their_profile_says(tmp_path: Path) -> None:
    for release in (1, 2):
        write_bundle(tmp_path / f"toy-{release}", release=release, seed=release)
    found = compare(tmp_path / "toy-1", tmp_path / "toy-2", limit_s=1)
    assert (found.before, found.after) == ("toy release 1", "toy release 2")
    assert found.restarts >= 5
    assert found.digests[0] != found.digests[1]


@pytest.mark.slow
def test_a_slower_copy_is_found_on_this_machine(tmp_path: Path) -> None:
    weights = {"w": numbers(256, 256)}
    once = build([node("MatMul", ["x", "w"], ["y"])], inputs={"x": (64, 256)}, outputs={"y": (64, 256)}, weights=weights)
    twice = build([node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])], inputs={"x": (64, 256)}, outputs={"y": (64, 256)}, weights=weights)
    for name, model in (("once", once), ("twice", twice)):
        graph.save_as(model, tmp_path / f"{name}.onnx")
    found = compare(tmp_path / "once.onnx", tmp_path / "twice.onnx", profiles.find("x86-cpu"))
    assert (found.verdict, found.stopped) == ("slower", "decided")
    assert found.speedup < 0.9
    told = found.to_dict()
    assert told["schema"] == 1
    assert told["samples"] == "generated samples"


def test_what_takes_other_inputs_is_not_compared(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"takes `image` float32, .* `cepstrum` float32"):
        compare(DATA / "resnet8_mnist.onnx", DATA / "bilstm_vowels.onnx", profiles.find("x86-cpu"))


def test_bundles_that_run_otherwise_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "one")
    one = comparison.opened(tmp_path / "one")
    assert one.profile is not None
    other = one.profile.model_copy(update={"runtime": one.profile.runtime.model_copy(update={"intra_op_threads": 3})})
    monkeypatch.setattr(comparison, "opened", lambda path: one if path.name == "one" else comparison.Contender("other", one.model, other))
    with pytest.raises(ProjectError, match=r"run with other runtime: intra_op_threads \d and 3"):
        compare(tmp_path / "one", Path("other"))


def test_a_model_that_does_not_run_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError):
        compare(DATA / "resnet8_mnist.onnx", broken, profiles.find("x86-cpu"))
