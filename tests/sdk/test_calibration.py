"""Ranges are what numpy finds, however many samples there are, in whatever order and by however many cores; and are measured once."""

import itertools
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import calibrate

from edgesdk import cache, calibration, graph, histograms, range_cache, sampling
from edgesdk.calibration import Histogram, Range
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Feeds, Model
from edgesdk.sampling import Samples
from tests import digits
from tests.sdk.small_models import build, node, numbers

ANY = (None, None, None, None)
NODES = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
WEIGHTS = {"w": numbers(4, 3, 1, 1)}


def small(outputs: tuple[str, ...] = ("y",)) -> Model:
    return build(NODES, inputs={"x": ("n", 3, 4, 4)}, outputs=dict.fromkeys(outputs, ANY), weights=WEIGHTS)


def squared() -> Model:
    """Of integers, so that no sum is rounded and every machine and order gives the very same."""
    return build([node("Mul", ["x", "x"], ["m"]), node("Relu", ["m"], ["y"])], inputs={"x": ("n", 3)}, outputs={"y": (None, 3)})


def all_values(samples: Samples) -> dict[str, Array]:
    runs = [graph.run(graph.session(small(("c", "y")), optimize=False), feeds) for feeds in samples]
    return {"x": np.concatenate([feeds["x"] for feeds in samples])} | {name: np.concatenate([run[name] for run in runs]) for name in ("c", "y")}


def test_ranges_are_what_numpy_finds() -> None:
    samples = sampling.generated(small(), 7)
    told: list[tuple[int, int | None]] = []
    found = calibration.ranges(small(), ["x", "c", "y"], samples, histograms=True, progress=lambda *done: told.append(done))
    for name, array in all_values(samples).items():
        assert (found[name].low, found[name].high) == pytest.approx((array.min(), array.max()), rel=1e-6)
        extremes = array.reshape(7, -1)
        assert found[name].average == pytest.approx((extremes.min(axis=1).mean(), extremes.max(axis=1).mean()), rel=1e-5)
        histogram = found[name].histogram
        assert histogram is not None
        assert histogram.counts.sum() == array.size
        assert histograms.BINS // 2 <= histogram.counts.size <= histograms.BINS
        assert np.abs(histogram.counts - np.histogram(array, histogram.edges)[0]).sum() <= 8  # rounded to either side of an edge
    assert told[-1] == (7, 7)
    with pytest.raises(ModelError, match="no tensor `z`"):
        calibration.ranges(small(), ["z"], samples)


def test_ranges_are_what_onnxruntime_finds(tmp_path: Path) -> None:
    samples = sampling.generated(small(), 7)
    graph.save_as(small(("c", "y")), tmp_path / "m.onnx")
    found = calibration.ranges(small(), ["x", "c", "y"], samples, histograms=True)
    for method, kind, extra in (
        ("minmax", calibrate.CalibrationMethod.MinMax, {}),
        ("moving-average", calibrate.CalibrationMethod.MinMax, {"moving_average": True}),
        ("percentile", calibrate.CalibrationMethod.Percentile, {"percentile": 99.0, "symmetric": True}),
        ("percentile", calibrate.CalibrationMethod.Percentile, {"percentile": 99.0, "symmetric": False}),
    ):
        theirs = calibrate.create_calibrator(tmp_path / "m.onnx", augmented_model_path=str(tmp_path / "a.onnx"), calibrate_method=kind, extra_options=extra)
        theirs.collect_data(_Reader(samples))
        for name, data in theirs.compute_data().items():
            if name not in found:
                continue
            ours = calibration.clipped(found[name], method, symmetric=extra.get("symmetric", False), percentile=99.0)  # type: ignore[arg-type]
            low, high = (float(np.ravel(bound)[0]) for bound in data.range_value)
            # Their histogram has 2048 bins over twice the bound, and they take a bin's edge.
            expected = (max(low, found[name].low), min(high, found[name].high))
            assert (ours.low, ours.high) == pytest.approx(expected, abs=2 * found[name].bound / 1024 if method == "percentile" else 1e-5), (method, name)


class _Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]  # no types are published
    def __init__(self, samples: Samples) -> None:
        self.feeds = iter(samples)

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    model, peaks = graph.load(digits.MODEL), []
    names = [str(each.outputs[0].name) for each in model.graph if each.op_type == "Conv"]
    for count in (256, 256, 1256):  # the first warms caches up
        np.savez(tmp_path / "c.npz", image=numbers(count, 1, 28, 28))
        tracemalloc.start()
        calibration.ranges(model, names, sampling.load(tmp_path / "c.npz", model), histograms=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 0.5 * 1000 * 28 * 28 * 4


def same(one: dict[str, Range], other: dict[str, Range]) -> bool:
    return one == other and all(
        (a := one[name].histogram, b := other[name].histogram) == (None, None)
        or (a is not None and b is not None and (a.exponent, a.first, a.counts.tolist()) == (b.exponent, b.first, b.counts.tolist()))
        for name in one
    )


def test_the_number_of_cores_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph.load(digits.MODEL)
    names = calibration._float_tensors(model)
    samples = sampling.of([{"image": image[None]} for image in digits.images()[0][:37]], model)
    found = []
    for cores in (1, 2, 7):
        monkeypatch.setattr(calibration, "_cores", lambda cores=cores: cores)
        found.append(calibration.ranges(model, names, samples, histograms=True))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@given(st.lists(st.lists(st.integers(-1000, 1000), min_size=3, max_size=3), min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_neither_the_order_nor_the_grouping_of_samples_matters(rows: list[list[int]], random: Any) -> None:
    def measured(batches: list[list[list[int]]]) -> dict[str, Range]:
        found = calibration.ranges(
            squared(), ["x", "m", "y"], sampling.of([{"x": np.array(batch, np.float32)} for batch in batches], squared()), histograms=True
        )
        return {name: Range(seen.low, seen.high, None, seen.histogram) for name, seen in found.items()}  # the average is of samples, in order

    shuffled = random.sample(rows, len(rows))
    expected = measured([[row] for row in rows])
    assert same(measured([[row] for row in shuffled]), expected)
    assert same(measured([rows]), expected)
    assert same(measured([rows[: len(rows) // 2 + 1], *([row] for row in rows[len(rows) // 2 + 1 :])]), expected)


def test_samples_run_together_where_that_is_the_same_and_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    seen = calibration._seen

    def noted(session: Any, axes: dict[str, int | None], batch: list[Feeds], *, histograms: bool) -> Any:
        sizes.append(len(batch))
        return seen(session, axes, batch, histograms=histograms)

    monkeypatch.setattr(calibration, "_seen", noted)
    rows = [{"x": numbers(1, 3, seed=i)} for i in range(40)]
    model = build(
        [node("Mul", ["x", "x"], ["m"]), node("Transpose", ["m"], ["t"]), node("Add", ["w", "w"], ["ww"]), node("Add", ["m", "ww"], ["y"])],
        inputs={"x": ("n", 3)},
        outputs={"y": (None, 3), "t": (3, None)},
        weights={"w": numbers(1, 3)},
    )
    found = calibration.ranges(model, ["m", "t", "ww", "y"], sampling.of(rows, model), histograms=True)
    assert sizes == [32, 8]
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "BATCH_BYTES", 0)
        assert same(calibration.ranges(model, ["m", "t", "ww", "y"], sampling.of(rows, model), histograms=True), found)
    mixing = build([node("ReduceMax", ["x"], ["m"], axes=[0], keepdims=1), node("Relu", ["m"], ["y"])], inputs={"x": ("n", 3)}, outputs={"y": (None, 3)})
    for model in (mixing, build([node("Mul", ["x", "x"], ["m"]), node("Relu", ["m"], ["y"])], inputs={"x": (1, 3)}, outputs={"y": (1, 3)})):
        sizes.clear()
        calibration.ranges(model, ["m"], sampling.of(rows, model))
        assert sizes == [1] * 40
    sizes.clear()
    calibration.ranges(squared(), ["m"], sampling.of(rows[:1] * 3, squared()))  # two alike tell nothing
    assert sizes == [1] * 3


def test_tensors_too_large_to_be_fetched_at_once_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, told = sampling.generated(small(), 5), []
    whole = calibration.ranges(small(), ["x", "c", "y"], samples, histograms=True)
    monkeypatch.setattr(calibration, "RUN_BYTES", 4 * 64 + 1)
    parts = calibration.ranges(small(), ["x", "c", "y"], samples, histograms=True, progress=lambda *done: told.append(done))
    assert same(parts, whole)
    assert told[-1] == (15, 15)


@pytest.mark.parametrize(
    ("values", "low", "high", "count"),
    [
        ([0.0, 0.0, 0.0], 0, 0, 3),
        ([5.0, 5.0], 5, 5, 2),
        ([-3.0], -3, -3, 1),
        ([], 0, 0, 0),
        ([1.0, np.inf, -2.0], -2, np.inf, 2),
        ([-np.inf, 1.0], -np.inf, 1, 1),
        ([1e-44, -1e-44, 3e-39], -1e-44, 3e-39, 3),
        ([3e38, -3e38, 1.0], -3e38, 3e38, 3),
        ([np.nan, 1.0, -2.0], np.nan, np.nan, 2),
        ([np.nan], np.nan, np.nan, 0),
    ],
)
def test_odd_values(values: list[float], low: float, high: float, count: int) -> None:
    model = build([node("Identity", ["x"], ["y"])], inputs={"x": ("n",)}, outputs={"y": (None,)})
    array = np.array(values, np.float32)

    def read() -> itertools.chain[Feeds]:  # what a sample may not hold, a tensor inside may
        return itertools.chain([{"x": array}], [{"x": array[:0]}])

    seen = calibration.ranges(model, ["y"], Samples("odd values", read), histograms=True)["y"]
    assert (seen.low, seen.high) == pytest.approx((low, high), rel=1e-6, nan_ok=True)
    assert seen.counts is not None
    assert seen.counts.sum() == count
    for method in calibration.METHODS:
        for symmetric in (False, True):
            used = calibration.clipped(seen, method, symmetric=symmetric)
            if np.isfinite([low, high]).all():
                assert seen.low <= used.low <= used.high <= seen.high
                assert used.bound > 0 or seen.bound == 0
            else:
                assert used is seen


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
arrays = st.lists(finite, min_size=0, max_size=50).map(lambda values: np.array(values, np.float32))


@given(st.lists(arrays, max_size=6))
def test_histograms_add_up_exactly(parts: list[Array]) -> None:
    whole = Histogram.of(np.concatenate([*parts, np.zeros(0, np.float32)]))
    assert whole.counts.sum() == sum(part.size for part in parts)
    assert whole.counts.size <= histograms.BINS
    for order in (parts, parts[::-1]):
        added = Histogram.empty()
        for part in order:
            added = added.joined(Histogram.of(part))
        assert (added.exponent, added.first, added.counts.tolist()) == (whole.exponent, whole.first, whole.counts.tolist())


@given(arrays)
def test_magnitudes_are_the_values_without_signs(values: Array) -> None:
    found = Histogram.of(values).magnitudes()
    assert found.counts.sum() == values.size
    places = np.trunc(np.abs(values.astype(np.float64)) / found.width).astype(int)
    assert found.counts.tolist() == np.bincount(places - found.first, minlength=found.counts.size).tolist()


def test_a_tensor_that_holds_anothers_values_adds_none() -> None:
    given, moved = numbers(1000), numbers(1000)[300:]
    one, other = (Range(float(each.min()), float(each.max()), None, Histogram.of(each)) for each in (given, moved))
    for joined in (one.joined(other), other.joined(one), one.joined(other).joined(other)):
        assert (joined.low, joined.high) == (one.low, one.high)
        assert joined.counts is not None
        assert joined.counts.sum() == 1000
    assert Range(0, 1).joined(one).counts is None


def spread(seed: int, kind: str, size: int = 20_000) -> Array:
    values = numbers(size, seed=seed, scale=0.7)
    if kind == "relu":
        return np.maximum(values, 0)
    if kind == "outliers":
        values[:4] *= 60
    elif kind == "shifted":
        values += 9
    elif kind == "heavy":
        values **= 3
    return values


def range_of(values: Array) -> Range:
    return Range(float(values.min()), float(values.max()), None, Histogram.of(values))


KINDS = ("normal", "relu", "outliers", "shifted", "heavy")


@given(st.integers(0, 100), st.sampled_from(KINDS), st.floats(50, 99.999), st.booleans())
@settings(max_examples=50, deadline=None)
def test_percentile_is_numpys(seed: int, kind: str, percentile: float, symmetric: bool) -> None:
    values = spread(seed, kind)
    seen = range_of(values)
    assert seen.histogram is not None
    found = calibration.clipped(seen, "percentile", symmetric=symmetric, percentile=percentile)
    cut = (100 - percentile) / 200
    if symmetric:
        bound = np.quantile(np.abs(values), percentile / 100, method="inverted_cdf")
        expected = max(-bound, seen.low), min(bound, seen.high)
    else:
        expected = np.quantile(values, cut, method="inverted_cdf"), np.quantile(values, 1 - cut, method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx(expected, abs=1.001 * seen.histogram.width)


def error(values: Array, used: Range, *, symmetric: bool, levels: int) -> float:
    """Mean square of what a quantizer leaves out."""
    if symmetric:
        step, nought = used.bound / (levels // 2 - 1), levels // 2
    else:
        low, high = min(used.low, 0), max(used.high, 0)
        step = (high - low) / (levels - 1)
        nought = int(np.rint(-low / step))
    integers = np.clip(np.rint(values.astype(np.float64) / step) + nought, 0, levels - 1)
    return float((((integers - nought) * step - values) ** 2).mean())


@given(st.integers(0, 100), st.sampled_from(KINDS), st.sampled_from([16, 256]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_mse_is_never_worse_than_minmax_and_near_the_best(seed: int, kind: str, levels: int, symmetric: bool) -> None:
    values = spread(seed, kind)
    seen = range_of(values)
    found = error(values, calibration.clipped(seen, "mse", symmetric=symmetric, levels=levels), symmetric=symmetric, levels=levels)
    assert found <= 1.02 * error(values, seen, symmetric=symmetric, levels=levels)  # bins stand for their middles
    shares = np.linspace(0.02, 1, 99)
    if symmetric:
        grid = [Range(-seen.bound * share, seen.bound * share) for share in shares]
    else:
        grid = [Range(low * seen.low, high * seen.high) for low, high in itertools.product(shares[::7], shares[::7])]
    best = min(error(values, each, symmetric=symmetric, levels=levels) for each in grid)
    assert found <= (1.05 if levels == 256 else 1.25) * best  # each bound is sought along a line, not over the plane


def plain_divergence(counts: Array, start: int, end: int, levels: int) -> float:
    """As in Migacz's slides, bin by bin."""
    given = [float(count) for count in counts[start:end]]
    given[0] += float(counts[:start].sum())
    given[-1] += float(counts[end:].sum())
    left = [0.0] * len(given)
    for level in range(levels):
        own = [i for i in range(len(given)) if i * levels // len(given) == level]
        filled = [i for i in own if given[i] > 0]
        for i in filled:
            left[i] = max(float(sum(counts[start + j] for j in own)) / len(filled), 1e-4)
    return sum(p / sum(given) * np.log((p / sum(given)) / (q / sum(left))) for p, q in zip(given, left, strict=True) if p > 0)


@pytest.mark.parametrize("kind", ["normal", "relu", "outliers", "heavy"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_takes_the_window_that_loses_least(kind: str, symmetric: bool) -> None:
    seen = range_of(spread(0, kind))
    assert seen.histogram is not None
    found = calibration.clipped(seen, "entropy", symmetric=symmetric)
    histogram, levels = (seen.histogram.magnitudes(), 128) if symmetric else (seen.histogram, 256)
    losses = {}
    widest = max(1 - histogram.first, histogram.first + histogram.counts.size)
    for bound in np.linspace(0, widest, 129)[1:].astype(int)[::4]:  # every fourth of ours, the widest too
        start, end = max(1 - bound - histogram.first, 0), min(bound - histogram.first, histogram.counts.size)
        if end - start >= levels:
            losses[float(bound) * histogram.width] = plain_divergence(histogram.counts, start, end, levels)
    best = min(losses, key=lambda bound: losses[bound])
    chosen = round(found.bound / histogram.width)
    start, end = max(1 - chosen - histogram.first, 0), min(chosen - histogram.first, histogram.counts.size)
    assert plain_divergence(histogram.counts, start, end, levels) <= losses[best] * 1.0001
    if kind in ("outliers", "heavy"):
        assert found.bound < 0.8 * seen.bound


def test_entropy_is_near_onnxruntimes() -> None:
    values = spread(0, "outliers")
    seen = range_of(values)
    found = calibration.clipped(seen, "entropy", symmetric=True)
    collector = calibrate.HistogramCollector("entropy", True, 2048, 255, 99.999, "same")
    counts, edges = np.histogram(values, 2048, (-seen.bound, seen.bound))
    theirs = collector.get_entropy_threshold((counts, edges.astype(np.float32), values.min(), values.max(), None), 255)
    ours, given = (error(values, each, symmetric=True, levels=256) for each in (found, Range(float(theirs[0]), float(theirs[1]))))
    assert found.bound == pytest.approx(max(abs(theirs[0]), abs(theirs[1])), rel=0.35)
    assert ours < 2 * given


def no_session(*arguments: object, **settings: object) -> Any:
    raise AssertionError("a session was made")


def test_a_second_recipe_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sampling.generated(small(), 5)
    first = calibration.statistics(small(), ["x", "y"], samples, histograms=True, cache=tmp_path)
    assert same(first, calibration.ranges(small(), ["x", "y"], samples, histograms=True))
    model = small()
    with monkeypatch.context() as patched:
        patched.setattr(graph, "session", no_session)
        assert same(calibration.statistics(model, ["x", "y"], samples, histograms=True, cache=tmp_path), first)
        other = calibration.statistics(model, ["c"], samples, histograms=False, cache=tmp_path)["c"]
        assert calibration.clipped(other, "mse", symmetric=True).bound <= other.bound
    assert other.low == calibration.ranges(small(), ["c"], samples)["c"].low
    with pytest.raises(ModelError, match="no tensor `z`"):
        calibration.statistics(small(), ["z"], samples, histograms=True, cache=tmp_path)


def test_other_samples_or_another_model_are_measured(tmp_path: Path) -> None:
    calibration.statistics(small(), ["y"], sampling.generated(small(), 5), histograms=False, cache=tmp_path)
    calibration.statistics(small(), ["y"], sampling.generated(small(), 5, seed=1), histograms=False, cache=tmp_path)
    model = build(NODES, inputs={"x": ("n", 3, 4, 4)}, outputs={"y": ANY}, weights={"w": -WEIGHTS["w"]})
    calibration.statistics(model, ["y"], sampling.generated(model, 5), histograms=False, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    samples = sampling.generated(small(), 5)
    seen = calibration.statistics(small(), ["y"], samples, histograms=True, cache=tmp_path)["y"]  # extremes alone do not answer it
    assert seen.histogram is not None


@pytest.mark.parametrize("kept", [slice(0), slice(300), slice(-1), slice(100, None)])
def test_a_damaged_file_is_measured_again(tmp_path: Path, kept: slice) -> None:
    samples = sampling.generated(small(), 3)
    first = calibration.statistics(small(), ["x", "y"], samples, histograms=True, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[kept])
    assert same(calibration.statistics(small(), ["x", "y"], samples, histograms=True, cache=tmp_path), first)
    assert range_cache.read(file) is not None


def test_the_longest_unused_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibration.ranges(small(), ["x"], sampling.generated(small(), 1), histograms=True)
    for day, name in enumerate(("a", "b", "c")):
        range_cache.keep(tmp_path / f"{name}.npz", found)
        os.utime(tmp_path / f"{name}.npz", (day, day))
    monkeypatch.setattr(range_cache, "MOST_BYTES", int(2.5 * (tmp_path / "a.npz").stat().st_size))
    assert range_cache.read(tmp_path / "a.npz") is not None
    range_cache.keep(tmp_path / "d.npz", found)
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["a", "d"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    samples = sampling.generated(small(), 3)
    found = calibration.statistics(small(), ["y"], samples, histograms=True, cache=tmp_path / "file" / "below")
    assert same(found, calibration.ranges(small(), ["y"], samples, histograms=True))


def test_with_no_folder_given_this_machines_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "cache_folder", cache.cache_folder)
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path))
    calibration.statistics(small(), ["y"], sampling.generated(small(), 2), histograms=False)
    assert len(list((tmp_path / "calibration").iterdir())) == 1


def test_what_was_not_asked_for_is_measured_too_unless_it_is_constant() -> None:
    model = build(
        [
            node("Shape", ["x"], ["s"]),
            node("Cast", ["s"], ["f"], to=1),
            node("Add", ["w", "w"], ["ww"]),
            node("Relu", ["x"], ["y"]),
            node("Mul", ["y", "ww"], ["z"]),
        ],
        inputs={"x": ("n", 3)},
        outputs={"z": (None, 3), "f": (None,)},
        weights={"w": numbers(3)},
    )
    assert calibration._float_tensors(model) == ["x", "f", "ww", "y", "z"]
