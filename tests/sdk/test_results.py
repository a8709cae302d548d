"""A result as a file: what is written is read again, and anything else is an error that names the file."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.bundle import to_json
from edge_agent.latency import Histogram
from edgesdk import results
from edgesdk.errors import ResultError
from edgesdk.results import SCENARIOS, Conditions, Inputs, Latency, Level, Restart, Result, State, Window

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 1 << 60)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MAYBE = st.none() | FINITE


def histogram(samples: list[int]) -> dict[str, Any]:
    made = Histogram()
    for sample in samples:
        made.record(sample)
    return json.loads(json.dumps(made.to_dict()))


def of(made: type, **given_: Any) -> st.SearchStrategy[Any]:
    """Every field that is not given, by its type."""
    known = {float: FINITE, int: COUNT, str: TEXT, bool: st.booleans(), float | None: MAYBE, int | None: st.none() | COUNT, str | None: st.none() | TEXT}
    texts = st.lists(TEXT, max_size=3).map(tuple)
    known |= {tuple[str, ...]: texts, tuple[str, ...] | None: st.none() | texts}
    return st.builds(made, **{name: known[hint] for name, hint in get_type_hints(made).items() if name not in given_}, **given_)


HISTOGRAMS = st.lists(st.integers(0, 1 << 40), max_size=5).map(histogram)
INTERVAL = st.tuples(FINITE, FINITE)
CONDITIONS = of(Conditions)
RESULTS = of(
    Result,
    kind=st.sampled_from(["bench", "sustained"]),
    settings=st.dictionaries(TEXT, TEXT | COUNT | st.booleans(), max_size=3),
    scenario=st.sampled_from(SCENARIOS),
    inputs=of(Inputs),
    via=st.sampled_from(["agent", "session"]),
    stopped=st.sampled_from(["narrow enough", "most restarts", "time is up", "interrupted"]),
    latency_ms=of(Latency),
    interval_ms=st.dictionaries(st.sampled_from(["p50", "p90", "p99"]), INTERVAL),
    throughput_interval=st.none() | INTERVAL,
    histogram=HISTOGRAMS,
    restarts=st.lists(of(Restart, state=of(State, before=CONDITIONS, after=CONDITIONS, during=CONDITIONS), histogram=HISTOGRAMS), max_size=2).map(tuple),
    phases_ms=st.none() | st.dictionaries(TEXT, FINITE, max_size=2),
    curve=st.lists(of(Window), max_size=2).map(tuple),
    levels=st.lists(of(Level), max_size=2).map(tuple),
    schema=st.just(results.SCHEMA),
)


@given(RESULTS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_what_is_saved_is_loaded_again(tmp_path: Path, found: Result) -> None:
    path = tmp_path / "found.json"
    found.save(path)
    assert results.load(path) == found
    assert json.loads(path.read_text()) == json.loads(json.dumps(found.to_dict()))
    assert len(found.rows()) == len(found.restarts)


def a_result() -> Result:
    restart = Restart(
        p50_ms=1,
        p90_ms=2,
        p99_ms=3,
        throughput=900,
        runs=2,
        warmup_runs=30,
        warmup_s=0.4,
        steady=True,
        load_ms=4,
        first_answer_ms=5,
        peak_bytes=6,
        state=State(before=Conditions(), after=Conditions()),
        disturbed=(),
        histogram=histogram([1_000_000, 2_000_000]),
    )
    return Result(
        kind="bench",
        name="ocr",
        digest="sha256:0",
        release=1,
        host="pi",
        device="Raspberry Pi 5",
        cpu="Cortex-A76",
        provider="CPUExecutionProvider",
        nodes="all on the CPU",
        threads=4,
        onnxruntime="1.23.2",
        settings={},
        scenario="single-stream",
        target_qps=None,
        inputs=Inputs(source="golden", count=2, digest="sha256:1"),
        via="agent",
        started="2026-11-30T22:00:00+00:00",
        seconds=12,
        stopped="narrow enough",
        disturbed=(),
        latency_ms=Latency(p50=1, p90=2, p99=3, p999=3, max=3, mean=1.5, std=0.5),
        interval_ms={"p50": (0.9, 1.1)},
        throughput=900,
        throughput_interval=(890, 910),
        load_ms=None,
        first_answer_ms=5,
        peak_bytes=6,
        energy_j=None,
        energy_unknown="no sensor",
        histogram=restart.histogram,
        restarts=(restart,),
    )


def test_a_key_that_is_new_is_passed_over(tmp_path: Path) -> None:
    results.write(tmp_path / "x.json", {**a_result().to_dict(), "humidity": 0.4})
    assert results.load(tmp_path / "x.json") == a_result()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON"),
        (b"\xff{}", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "is no result of edgesdk"),
        (b'{"schema": true, "kind": "bench"}', "is no result of edgesdk"),
        (b'{"schema": 1, "kind": "poem"}', "is no result of edgesdk"),
        (b'{"schema": 2, "kind": "bench"}', "has the schema 2, this edgesdk knows 1"),
        (b'{"schema": 1, "kind": "tune"}', "is a result of `tune`, not of `bench`"),
        (b'{"schema": 1, "kind": "bench"}', "is no result: name: Field required"),
    ],
)
def test_anything_else_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ResultError, match=r"x\.json") as caught:
        results.load(tmp_path / "x.json")
    assert said in str(caught.value)
    assert caught.value.hint


def test_a_histogram_that_does_not_add_up_is_no_result(tmp_path: Path) -> None:
    broken = replace(a_result(), histogram={**histogram([1, 2]), "count": 7})
    broken.save(tmp_path / "x.json")
    with pytest.raises(ResultError, match="do not add up"):
        results.load(tmp_path / "x.json")


def test_other_kinds_are_read_and_written_as_documents(tmp_path: Path) -> None:
    results.write(tmp_path / "x.json", {"schema": 1, "kind": "tune", "tried": []})
    assert results.read(tmp_path / "x.json")["tried"] == []


def test_a_name_that_is_no_utf_8_costs_no_result(tmp_path: Path) -> None:
    odd = os.fsdecode(b"odd\xff.onnx")
    results.write(tmp_path / "x.json", {"schema": 1, "kind": "evaluate", "name": odd})
    assert results.read(tmp_path / "x.json")["name"] == "odd?.onnx"
    assert json.loads(to_json({"source": odd})) == {"source": "odd?.onnx"}


def test_a_file_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="cannot be read: No such file"):
        results.load(tmp_path / "none.json")
    with pytest.raises(ResultError, match="cannot be written: No such file"):
        a_result().save(tmp_path / "none" / "x.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(a_result(), seconds=math.nan).save(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none_is_no_result(tmp_path: Path, number: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"schema": 1, "kind": "bench", "seconds": {number}}}')
    with pytest.raises(ResultError, match="a number that is none"):
        results.read(path)
