"""Ranges are what numpy finds, however many samples there are."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgesdk import calibration, graph, sampling
from edgesdk.errors import ModelError
from edgesdk.graph import Array
from tests import digits
from tests.sdk.small_models import build, node, numbers

ANY = (None, None, None, None)


def test_ranges_are_what_numpy_finds() -> None:
    weights = {"w": numbers(4, 3, 1, 1)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    model = build(nodes, inputs={"x": ("n", 3, 4, 4)}, outputs={"y": ANY}, weights=weights)
    samples = sampling.generated(model, 7)
    told: list[tuple[int, int | None]] = []
    found = calibration.ranges(model, ["x", "c", "y"], samples, histograms=True, progress=lambda *done: told.append(done))
    everything: dict[str, Array] = {"x": np.concatenate([feeds["x"] for feeds in samples])}
    both = build(nodes, inputs={"x": ("n", 3, 4, 4)}, outputs={"c": ANY, "y": ANY}, weights=weights)
    runs = [graph.run(graph.session(both, optimize=False), feeds) for feeds in samples]
    everything |= {name: np.concatenate([run[name] for run in runs]) for name in ("c", "y")}
    for name, array in everything.items():
        assert (found[name].low, found[name].high) == pytest.approx((array.min(), array.max()), rel=1e-6)
        counts = found[name].counts
        assert counts is not None
        assert counts.sum() == array.size
        assert np.abs(counts - np.histogram(array, calibration.HISTOGRAM_BINS, (-found[name].bound, found[name].bound))[0]).sum() <= 8  # at the edges
    assert told[-1] == (14, 14)
    with pytest.raises(ModelError, match="no tensor `z`"):
        calibration.ranges(model, ["z"], samples)


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    model, peaks = graph.load(digits.MODEL), []
    names = [str(each.outputs[0].name) for each in model.graph if each.op_type == "Conv"]
    for count in (8, 8, 1000):  # the first warms caches up
        np.savez(tmp_path / "c.npz", image=np.zeros((count, 1, 28, 28), np.float32))
        tracemalloc.start()
        calibration.ranges(model, names, sampling.load(tmp_path / "c.npz", model))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 0.2 * 992 * 28 * 28 * 4
