"""The small models of the suite, which are in the repository with some of their data, a fifth of them taken away: what `make suite` does for all."""

import pytest

from edgesdk import graph, sampling
from tests.suite import SUITE
from tests.suite.prune import SAMPLES, pruned
from tests.suite.test_profiles import DATA, written


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("entry", [entry for entry in SUITE if entry.name in DATA], ids=lambda entry: entry.name)
def test_a_small_model_is_pruned_and_proven(entry, tmp_path):
    calibration, _ = written(DATA[entry.name], tmp_path)
    model = graph.load(entry.model)
    done = pruned(model, sampling.load(calibration, model).first(SAMPLES))
    assert ("logits", "`logits` is an output of the model") in {(one.name, one.reason) for one in done.whole}
