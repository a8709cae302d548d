"""tests/ATTACKS.md names tests that exist."""

import re
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("ATTACKS.md").read_text(encoding="utf-8")
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:40] for row in ROWS])
def test_each_attack_is_tried_by_tests_that_exist(row: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row)
    assert named, "a row without a test"
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (Path(__file__).parent / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{test}"
