"""The report as values, as a file and in the terminal; its page in a browser is test_reporting_in_browser's."""

import copy
import csv
import functools
import hashlib
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import edgesdk
from edgesdk import reporting, results
from edgesdk.cli import app, reports
from edgesdk.errors import ModelError, ResultError
from edgesdk.replies import Report as DeviceReport
from edgesdk.reporting import gathering, latencies, models, section
from edgesdk.reporting.gathering import Asked, Found
from edgesdk.reporting.section import Section
from edgesdk.results import Result
from tests import digits, vendor
from tests.bundles import write_bundle
from tests.sdk import reported

SECTIONS = [
    "devices",
    "frontier",
    "accuracy",
    "comparisons",
    "tuning",
    "latency",
    "measurements",
    "history",
    "sustained",
    "placement",
    "operators",
    "memory",
    "recipe",
    "evidence",
]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return reported.write(tmp_path)


@pytest.fixture
def made(files: list[Path]) -> reporting.Report:
    return edgesdk.report(files=files)


def of(made: reporting.Report, key: str) -> Section:
    found = made.section(key)
    assert found is not None
    return found


def test_an_interval_is_that_of_restarts_or_of_one_process(tmp_path: Path) -> None:
    one = reported.result("ocr", "pi", 9.0)
    (tmp_path / "one.json").write_text(json.dumps(one))
    (tmp_path / "five.json").write_text(json.dumps({**one, "restarts": one["restarts"] * 5}))
    rows = of(edgesdk.report(files=[tmp_path / "one.json", tmp_path / "five.json"]), "measurements").rows
    assert [row["sure"] for row in rows] == ["95 %, one process", "99 %, over restarts"]


def test_where_answers_are_few_the_report_says_what_the_last_percentiles_are(tmp_path: Path) -> None:
    for count in (500, 1000):
        (tmp_path / f"{count}.json").write_text(json.dumps(reported.result("ocr", "pi", 9.0, histogram=reported.histogram(9.0, count=count).to_dict())))
        said = of(edgesdk.report(files=[tmp_path / f"{count}.json"]), "latency").said
        assert any("is the slowest of them" in sentence for sentence in said) is (count < 1000)


def test_there_is_a_section_for_what_there_is_data_of(made: reporting.Report) -> None:
    assert [each.key for each in made.sections] == SECTIONS
    assert [lack.what for lack in made.lacks] == ["devices as they are"]
    assert made.title == "ocr, ocr small"


def test_without_data_it_says_which_command_gives_some(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(reported.inspected("model.onnx")))
    made = edgesdk.report(files=[path])
    assert [each.key for each in made.sections] == ["placement", "operators", "memory"]
    commands = {lack.what: lack.command for lack in made.lacks}
    assert commands["sustained load"] == "edgesdk bench HOST NAME --sustained 30m -o sustained.json"
    assert "edgesdk bench HOST NAME --sustained 30m" in made.to_html()


def test_rows_are_flat_and_go_into_a_table(made: reporting.Report) -> None:
    rows = made.rows()
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, bool, type(None)}
    written = io.StringIO()
    writer = csv.DictWriter(written, sorted({key for row in rows for key in row}))
    writer.writeheader()
    writer.writerows(rows)
    assert len(written.getvalue().splitlines()) == len(rows) + 1
    assert {row["section"] for row in made.rows("memory")} == {"memory"}


def test_it_is_json_and_html_below_a_megabyte(made: reporting.Report) -> None:
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["schema"] == 1
    assert len(made.to_html().encode()) < 700_000


def test_the_page_names_all_that_it_may_run_and_fetches_nothing(made: reporting.Report) -> None:
    page = made.to_html()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "unsafe" not in policy[1]
    ours = re.sub(r"<script>.*?</script>|<!--.*?-->", "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|url\(|@import|https?://|\son\w+=["']|\sstyle=""", ours)


def test_no_text_of_others_becomes_markup(tmp_path: Path) -> None:
    page = edgesdk.report(files=reported.write(tmp_path, hostile=True)).to_html()
    assert page.count("<script") == 4  # the data, d3, Plot, the charts
    assert page.count("</script>") == 4
    assert "<img" not in page
    assert "onload=document.title=" not in re.sub(r"&quot;&gt;&lt;/svg&gt;[^<]*|u003c[^<]*", "", page)
    assert "\x1b" not in page
    assert "\u202e" not in page
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    assert not set("<>&") & set(block[1])
    assert reported.HOSTILE[0] in json.dumps(json.loads(block[1]), ensure_ascii=False)  # it is there, as text


def test_in_a_terminal_no_text_of_others_is_obeyed(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["report", *map(str, reported.write(tmp_path, hostile=True))])
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.stdout
    assert "\u202e" not in shown.stdout


def test_in_a_terminal_there_are_tables_and_sparklines(files: list[Path]) -> None:
    shown = CliRunner().invoke(app, ["report", *map(str, files)])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"p99 +▂+█+", shown.stdout)
    assert "throttled from 302 s on, from 101.0 to 51.0 answers a second" in shown.stdout
    assert re.search(r"devices as they are +edgesdk report HOST", shown.stdout)


def test_the_verb_writes_the_page(files: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", *map(str, files), "--html", str(tmp_path / "out.html"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["title"] == "ocr, ocr small"
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")
    refused = CliRunner().invoke(app, ["report", str(files[0]), "--html", str(tmp_path / "nowhere" / "out.html")])
    assert (refused.exit_code, "there is no folder" in refused.stderr) == (1, True)


@pytest.mark.parametrize("arguments", [["a", "b", "c"], ["--select", "hall-2"], ["--fleet", "fleet.toml", "one", "two"]])
def test_what_cannot_be_meant_is_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["report", *arguments]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("3", "holds nothing that a report shows"),
        ("{}", "holds nothing that a report shows"),
        ('{"kind": "bench"}', "is no result of edgesdk"),
        ('{"kind": "bench", "schema": 99}', "has the schema 99"),
        ('{"summary": 3}', "is not what it seems to be: summary"),
        ('{"verdict": "faster", "speedup": Infinity}', "is not what it seems to be"),
        ('[{"bundle": "x", "name": []}]', "is not what it seems to be"),
    ],
)
def test_a_file_that_is_something_else_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=said):
        edgesdk.report(files=[path])


def places(document: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Everywhere in a document where something else could stand."""
    keys = list(document) if isinstance(document, dict) else range(min(len(document), 2)) if isinstance(document, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(document[key], (*path, key))  # type: ignore[index]  # a dict or a list


DOCUMENTS = {
    "bench": reported.result("a", "b", 3.0, seed=1),
    "sustained": reported.sustained("a", "b", 3.0),
    "package": reported.packaged("a"),
    "compare": reported.compared("a", "b", "faster", 1.2, 1.1, 1.3),
    "inspect": reported.inspected("m"),
    "tune": reported.tuned("a"),
    "evaluate": reported.evaluated("a"),
}
ODD = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=5) | st.sampled_from([10**400, -(10**30), 1e308, [], {}, [[]], [{}], "<b>"])
)


@pytest.mark.parametrize("verb", DOCUMENTS)
@settings(deadline=None, max_examples=60)
@given(odd=ODD, data=st.data())
def test_a_file_that_was_changed_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, verb: str, odd: object, data: st.DataObject) -> None:
    document: Any = copy.deepcopy(DOCUMENTS[verb])
    *way, last = data.draw(st.sampled_from(sorted(places(document), key=str)))
    functools.reduce(lambda inner, key: inner[key], way, document)[last] = odd
    path = tmp_path_factory.mktemp("changed") / "changed.json"
    path.write_text(json.dumps(document))
    try:
        made = edgesdk.report(files=[path])
    except ResultError:
        return
    assert made.to_html().count("<script") == 4
    json.dumps(made.to_dict(), allow_nan=False)
    "\n".join(reports._told(made)).encode()


def test_a_bundle_says_what_was_measured_of_it(tmp_path: Path) -> None:
    made = edgesdk.report(files=[write_bundle(tmp_path / "toy", release=3)])
    (row,) = of(made, "evidence").rows
    assert (row["name"], row["release"], row["signed"]) == ("toy", 3, False)


def test_a_model_is_inspected(tmp_path: Path) -> None:
    made = edgesdk.report(files=[digits.write(tmp_path)])
    assert [each.key for each in made.sections] == ["operators", "memory"]
    assert of(made, "memory").charts[0].data["peak_bytes"] > 100_000
    (tmp_path / "broken.onnx").write_bytes(b"noise")
    with pytest.raises(ModelError):
        edgesdk.report(files=[tmp_path / "broken.onnx"])


def test_the_frontier_is_what_nothing_else_beats_in_both(made: reporting.Report) -> None:
    points = [
        {"ms": ms, "change": change, "label": label} for ms, change, label in ((4, -0.03, "a"), (5, -0.01, "b"), (6, -0.02, "c"), (8, 0.0, "d"), (9, 0.0, "e"))
    ]
    assert [point["label"] for point in models._best(points)] == ["a", "b", "d"]
    chart, _, several = of(made, "frontier").charts
    assert [point["label"] for point in chart.data["frontier"]] == ["int8", "as shipped", "int8, 9 of 31 parts", "float32"]
    assert several.title == "2 bundles: top-1 against latency on Raspberry Pi 5"


def test_devices_come_the_slowest_first_and_outliers_are_named() -> None:
    told = [reported.result("ocr", f"camera-{n:02}", 15.0 if n == 6 else 5 + n / 100, seed=n) for n in range(12)]
    section = latencies.devices(Found(results=tuple(map(parsed, told))))
    assert section is not None
    assert section.rows[0]["device"] == "camera-06"
    assert [row["device"] for row in section.rows if row["outlier"]] == ["camera-06"]
    assert section.said == ("ocr: camera-06 is slower than the others of 12 devices by more than they spread.",)
    assert [row["p50_ms"] for row in section.rows] == sorted((row["p50_ms"] for row in section.rows), reverse=True)


def parsed(document: dict[str, object]) -> Result:
    return results._RESULT.validate_python(document)


def test_among_few_devices_none_is_an_outlier() -> None:
    assert latencies._outliers([9.0, 5.0, 5.0])[1] == [False] * 3
    assert latencies._outliers([9.0, 5.0, 5.0, 5.0])[1] == [True, False, False, False]
    assert latencies._outliers([9.0, 8.0, 7.0, 6.0, 5.0])[1] == [False] * 5


def test_a_device_that_tells_nothing_is_said_and_the_others_are_shown() -> None:
    model = {
        "name": "ocr",
        "release": 1,
        "digest": "d",
        "count": 3,
        "errors": 0,
        "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0},
        "since": "2026-01-01T00:00:00",
    }
    told = [Asked(host=f"pi-{n}", report=DeviceReport.model_validate({"models": [model]})) for n in range(2)]
    section = latencies.devices(Found(asked=(*told, Asked(host="pi-9", error="no route"))))
    assert section is not None
    assert "pi-9 told nothing: no route" in section.said
    assert [row["device"] for row in section.rows] == ["pi-0", "pi-1", "pi-9"]


def test_what_an_older_agent_tells_is_shown_too() -> None:
    """It knows of no histograms: there are percentiles in the table, and no chart."""
    model = {
        "name": "ocr",
        "release": 1,
        "digest": "d",
        "count": 3,
        "errors": 0,
        "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0},
        "phases_ms": {"run": None},
    }
    section = latencies.latency(Found(asked=(Asked(host="pi", report=DeviceReport.model_validate({"models": [model]})),)))
    assert section is not None
    assert section.rows[0]["p99_ms"] == 3.0
    assert section.charts == ()


def test_if_no_device_of_several_answers_that_is_an_error() -> None:
    with pytest.raises(edgesdk.EdgeSDKError, match="none of 2 devices answers"):
        gathering.gather(["nobody@127.0.0.1:1", "nobody@127.0.0.1:2"])


def test_a_distribution_adds_up() -> None:
    histogram = reported.histogram(5.0)
    shares = latencies._density(histogram, latencies._edges([histogram]))
    assert latencies.MOST_DRAWN - 0.01 < sum(shares) <= 1


def test_a_day_under_load_stays_below_a_megabyte() -> None:
    run = reported.sustained("ocr", "pi", 6.0)
    run["curve"] = [{**run["curve"][0], "t_s": 10.0 * n} for n in range(8640)]
    page = reporting.made_of(Found(results=(parsed(run),)), ["day.json"]).to_html()
    assert len(page.encode()) < 1_000_000
    assert "8640 rows" in page


def test_however_many_long_tables_there_are_it_stays_below_a_megabyte(made: reporting.Report) -> None:
    long = [replace(of(made, "memory"), key=f"memory-{n}", rows=of(made, "memory").rows * 3000) for n in range(12)]
    page = replace(made, sections=(*made.sections, *long)).to_html()
    assert len(page.encode()) < 1_000_000
    assert "3000 rows" in page


def test_a_large_fleet_stays_below_a_megabyte() -> None:
    told = Found(results=tuple(parsed(reported.result("ocr", f"hall-{n // 50}-camera-{n:04}", 5 + n % 7 / 10, seed=n % 5)) for n in range(400)))
    assert len(reporting.made_of(told, ["fleet.toml"]).to_html().encode()) < 1_000_000


def test_text_and_numbers_are_cleaned_on_their_way_in() -> None:
    cleaned = section.clean({"a\x1b": (float("inf"), "b\x1b", [1.5])})
    assert cleaned == {"a\\x1b": (None, "b\\x1b", [1.5])}


@pytest.mark.parametrize("package", [each for each in vendor.DRAWING if each.member], ids=lambda package: package.name)
def test_what_it_draws_with_is_what_was_pinned(package: vendor.Package) -> None:
    assert hashlib.sha256((vendor.FOLDER / package.file).read_bytes()).hexdigest() == package.sha256
    assert f"{package.name} {package.version}\n" in vendor.LICENSES.read_text()


def test_the_wheel_has_what_it_draws_with(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(Path(__file__).parents[2])).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as opened:
        names = {name.removeprefix("edgesdk/reporting/") for name in opened.namelist()}
    assert {"page.css", "charts.js", "vendor/d3.min.js", "vendor/plot.umd.min.js", "vendor/LICENSES.txt"} <= names


# What reaches whom of linear red, green and blue: everybody, and who lacks one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no middle": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
THEMES = re.findall(r":root \{([^}]*)\}", (Path(reporting.__file__).parent / "page.css").read_text())


def linear(colour: str) -> "np.ndarray[Any, Any]":
    """Red, green and blue of #0072b2 as light adds up."""
    whole = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    parts = np.array([int(whole[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """CIE 1976: as far apart as they look."""
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ np.clip(light, 0, 1) / [0.9505, 1, 1.089], 0.001))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """As WCAG 2.2 counts it: 1 to 21."""
    low, high = sorted(TO_XYZ[1] @ linear(colour) for colour in (one, other))
    return float((high + 0.05) / (low + 0.05))


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark", "paper"])
def test_what_is_drawn_stands_out_from_its_ground(theme: str) -> None:
    """axe looks at text only, and not into pictures: 3 for lines and shapes, 4.5 for what is read."""
    colours = dict(re.findall(r"--([\w]+): (#\w+)", theme))
    least = {**dict.fromkeys(("ink", "soft", "link", "bad"), 4.5), **dict.fromkeys((f"c{n}" for n in range(6)), 3.0)}
    assert {name: found for name, wanted in least.items() if (found := contrast(colours[name], colours["card"])) < wanted} == {}


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark", "paper"])
def test_nobody_takes_one_line_for_another(theme: str, vision: str) -> None:
    """A difference of 20 is seen at a glance. Dashes and shapes differ as well."""
    seen = {name: lab(VISIONS[vision] @ linear(colour)) for name, colour in re.findall(r"--(c\d): (#\w+)", theme)}
    assert len(seen) == 6
    assert min(float(np.linalg.norm(seen[one] - seen[other])) for one, other in itertools.combinations(seen, 2)) > 20
