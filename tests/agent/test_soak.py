from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from soaking import soak
from toys import Agent


@pytest.mark.slow
@pytest.mark.e2e
def test_requests_are_neither_dropped_nor_wrong_while_versions_are_swapped(agent: Agent) -> None:
    """`python -m tests.benchmarks.asking` asks 200,000."""
    with tempfile.TemporaryDirectory() as folder:
        told = soak(agent, Path(folder), 1500, swap_every_s=0.2, least_s=6)
    assert (told.dropped, told.wrong) == (0, 0), told
    assert told.swaps > 1
