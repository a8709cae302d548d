from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import Agent, logarithm, make, wait_until

from edge_agent import connect, text
from edge_agent.connection import Connection
from edge_agent.counters import PHASES, Counters, Ledger

REQUESTS = st.lists(st.tuples(st.booleans(), st.integers(0, 10**9)), max_size=30)


def counted(requests: list[tuple[bool, int]]) -> Counters:
    counters = Counters("sha256:1", "1", "2026-01-01T00:00:00Z")
    for good, ns in requests:
        counters.answered(ns, {"run": ns // 2}) if good else counters.failed(ns)
    return counters


@given(REQUESTS, REQUESTS)
def test_merging_is_counting_both(first: list[tuple[bool, int]], second: list[tuple[bool, int]]) -> None:
    merged = counted(first)
    merged.merge(Counters.from_dict(json.loads(json.dumps(counted(second).to_dict()))))
    assert merged.to_dict() == counted(first + second).to_dict()


def test_failures_are_counted_apart() -> None:
    counters = counted([(True, 100), (False, 10**9)])
    assert (counters.total.count, counters.total.max_ns, counters.errors, counters.failed_total.max_ns) == (1, 100, 1, 10**9)


def test_each_version_goes_on_where_it_ended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "latency")
    for digest in ("a", "b", "a"):  # a, then b, then back
        ledger.of("ocr", digest, digest).answered(1000, {})
    ledger.save()
    again = Ledger(tmp_path / "latency")
    assert [(counters.digest, counters.total.count) for counters in again.versions("ocr")] == [("b", 1), ("a", 2)]
    assert again.of("ocr", "b", "b").total.count == 1


def test_a_model_of_many_versions_takes_no_more_room(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "latency")
    for release in range(20):
        ledger.of("ocr", str(release), str(release)).answered(1000, {})
    ledger.of("ocr", "never asked", "20")
    assert [counters.release for counters in ledger.versions("ocr")] == ["17", "18", "19"]
    assert len(Ledger(tmp_path / "other").versions("ocr")) == 0


def test_nothing_is_written_when_nothing_has_changed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "latency")
    ledger.of("ocr", "a", "1")
    ledger.save()
    assert not (tmp_path / "latency").exists()
    ledger.of("ocr", "a", "1").answered(1000, {})
    ledger.save()
    (tmp_path / "latency" / "ocr.json").unlink()
    ledger.save()
    assert not (tmp_path / "latency" / "ocr.json").exists()


def test_a_file_of_the_first_agent_is_read(tmp_path: Path) -> None:
    document = counted([(True, 1000), (False, 1000)]).to_dict()
    del document["release"], document["failed"]
    (tmp_path / "ocr.json").write_text(json.dumps(document))
    found = Ledger(tmp_path).of("ocr", "sha256:1", "7")
    assert (found.total.count, found.errors, found.release) == (1, 1, "7")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"versions": 7}', '{"versions": [7]}', "[" * 100_000])
def test_a_damaged_file_costs_the_counts_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "ocr.json").write_text(text)
    assert Ledger(tmp_path).of("ocr", "sha256:1", "1").total.count == 0


def test_every_phase_is_counted() -> None:
    counters = counted([(True, 100)])
    assert [counters.phases[phase].count for phase in PHASES] == [1] * len(PHASES)


@pytest.mark.e2e
def test_answers_that_hold_nan_or_infinity_are_no_errors_and_counted_apart(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "log", logarithm(), name="log", feeds=[{"x": np.ones(3, np.float32)}]))["state"] == "done"
    for way in ("shm", "http"):
        with connect("log", home=agent.home, via=way) as model:
            for value in (1, -1, 0, 2):  # -1: NaN, 0: minus infinity
                model(np.full(20_000, value, np.float32))

    def counted() -> tuple[int, int]:
        (report,) = agent.ask("GET", "/edge/report/log")["models"]
        return report["not_finite"], report["errors"]

    assert counted() == (4, 0)
    agent.stop()
    agent.start()
    wait_until(lambda: agent.model("log")["state"] == "active")
    assert counted() == (4, 0)
    assert "4 answers hold NaN or infinity" in text.render("report", agent.ask("GET", "/edge/report/log"))
    with Connection(home=agent.home) as connection:
        page = bytes(connection.request("GET", "/metrics").body).decode()
    assert 'edge_agent_not_finite_total{model="log",version="1"} 4' in page
