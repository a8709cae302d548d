"""The small models of the suite, counted beside onnx-tool: what `make suite` does for all."""

import pytest

from edgesdk import graph, sampling
from tests.suite import SUITE, counts
from tests.suite.test_profiles import DATA


@pytest.mark.parametrize("entry", [entry for entry in SUITE if entry.name in DATA], ids=lambda entry: entry.name)
def test_another_counter_comes_to_the_same(entry):
    model = graph.load(entry.model)
    feeds = next(iter(sampling.generated(model, 1).first(1)))
    other = counts.profiled(entry, feeds)
    found = counts.macs(model, feeds, other)
    assert found
    assert all(abs(each.ours / each.left - 1) <= counts.CLOSE for each in found)
    assert graph.describe(model).parameters == pytest.approx(other.params, rel=counts.CLOSE)
    peak = counts.peak(model, feeds)
    assert 0.6 * peak.most <= peak.ours <= peak.most
