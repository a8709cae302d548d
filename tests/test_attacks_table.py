"""tests/ATTACKS.md names tests that exist."""

import re
from pathlib import Path

import pytest

from tests.benchmarks.defences import DEFENCES, ROOT

TABLE = Path(__file__).with_name("ATTACKS.md").read_text(encoding="utf-8")
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:40] for row in ROWS])
def test_each_attack_is_tried_by_tests_that_exist(row: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row)
    assert named, "a row without a test"
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (Path(__file__).parent / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{test}"


def test_what_was_taken_out_is_what_the_benchmark_takes_out() -> None:
    """Each once, and none from a source that has changed since."""
    named = [word for row in ROWS for word in row.split("|")[4].strip().split(", ")]
    assert sorted(", ".join(named).split(", ")) == sorted(", ".join(one.what for one in DEFENCES).split(", "))
    for defence in DEFENCES:
        assert (ROOT / defence.file).read_text(encoding="utf-8").count(defence.text) == 1, defence.what
