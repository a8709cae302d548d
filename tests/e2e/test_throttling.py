"""A real quota that is cut at a random moment of a short sustained run: when it was, and what was left."""

import random
from pathlib import Path

import pytest

from tests.e2e import quota

SECONDS = 36.0


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(not quota.possible(), reason="needs root and a control group of its own")
def test_a_quota_that_is_cut_is_noticed_with_both_levels(tmp_path: Path) -> None:
    cut_s = random.Random().uniform(8, 18)
    cut = quota.measured_across_a_cut(tmp_path, SECONDS, cut_s)
    told = (cut.at_s, cut.late_s, cut.apart, cut.before, cut.after, cut.found.levels)
    assert cut.late_s is not None and abs(cut.late_s) <= 5, told
    assert 0.3 < cut.after / cut.before < 0.7, told
    assert all(abs(apart) <= 0.1 for apart in cut.apart), told  # docs/sustained.md holds it to half of that, on a machine with nothing else to do
    assert cut.found.levels[-1].p99_ms > 3 * cut.found.levels[0].p99_ms, told
    assert any("quota" in sentence for sentence in cut.found.disturbed), told
