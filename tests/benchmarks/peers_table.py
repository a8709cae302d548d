"""The results of `tests.benchmarks.peers` as Markdown: one line a model, the means beside what they are held to, then every contender."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tests.suite import REPOSITORY, SUITE

PAGE = REPOSITORY / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by `make bench` -->\n", "<!-- until here -->"

MEAN_SPEEDUP, EXPERT_LATENCY, INTEL_LATENCY, NNCF_TIME = 1.40, 0.88, 1.00, 1.00  # what the geometric means are held to
NOT_SLOWER = 0.98
QUICK = "edgesdk package --quick"

Results = Mapping[str, Mapping[str, Any]]


def write(results: Mapping[str, Results]) -> None:
    """Put the tables into the page's written part, processor by processor; what people wrote around it stays."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    found = {cpu: {entry.name: there[entry.name] for entry in SUITE if entry.name in there} for cpu, there in results.items()}
    tables = [f"## {cpu}\n\n{machine(there)}\n\n{summary(there)}\n\n{means(there)}" for cpu, there in found.items()]
    every = [f"## Every contender, {cpu}\n\n{details(there)}" for cpu, there in found.items()]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n\n".join([*tables, *every]) + f"\n{END}{after}", encoding="utf-8")


def machine(results: Results) -> str:
    """Where this was measured; more than one where models were measured at different times."""
    seen = dict.fromkeys(_machine(result["machine"]) for result in results.values())
    return "\n".join(seen)


def summary(results: Results) -> str:
    """One line a model."""
    ours = ("model", "as given", "edgesdk float32", "edgesdk package", "drop", "found in")
    columns = (*ours, "best of eight", "ours / theirs", "OpenVINO or NNCF", "ours / theirs", "NNCF's search", "edgesdk package --quick")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name, result in results.items():
        rows = {row["label"]: row for row in result["contenders"]}
        given, packaged, expert, intel = rows["as given"], rows["edgesdk package"], result["expert"], result["intel"]
        told = result["packaged"]
        cells = [
            name,
            f"{given['latency_ms']:.2f} ms, {given['score']:.4f}",
            _speedup(rows["edgesdk, float32"]),
            _speedup(packaged) if "note" in packaged else f"**{_speedup(packaged)}**",
            "–" if "note" in packaged else f"{packaged['drop']:.4f}" + (f" ({told['accuracy']['drop']:.4f} judged)" if told else ""),
            _seconds(packaged["seconds"]),
            f"{expert['label']}: {_speedup(rows[expert['label']])}",
            _ratio(expert["latency"]),
            f"{intel['label']}: {_speedup(rows[intel['label']])}" if intel["label"] else "none as accurate",
            _ratio(intel["latency"]),
            _seconds(intel["seconds"]),
            f"{_speedup(rows[QUICK])}, {_seconds(rows[QUICK]['seconds'])}" if QUICK in rows else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def means(results: Results) -> str:
    """What the figures are held to."""
    ours = {name: row for name, result in results.items() for row in result["contenders"] if row["label"] == "edgesdk package" and "speedup" in row}
    if not ours:
        return "edgesdk packaged none of them."
    experts = [result["expert"]["latency"]["value"] for result in results.values() if result["expert"]["latency"]]
    intel = [result["intel"]["latency"]["value"] for result in results.values() if result["intel"]["latency"]]
    slower = [name for name, row in ours.items() if row["speedup"]["low"] < NOT_SLOWER]
    lines = [
        "| held to | measured | |",
        "| --- | --- | --- |",
        *(_held(f"{name}: at least {results[name]['target']:g}×", row["speedup"]["value"], at_least=results[name]["target"]) for name, row in ours.items()),
        _held(
            f"geometric mean of {len(ours)} models: at least {MEAN_SPEEDUP:g}×", _mean(row["speedup"]["value"] for row in ours.values()), at_least=MEAN_SPEEDUP
        ),
        f"| none slower: the interval's lower end at least {NOT_SLOWER:g} | {', '.join(slower) or 'none'} | {'no' if slower else 'yes'} |",
    ]
    if experts:
        lines.append(_held(f"our latency over the best of eight's: at most {EXPERT_LATENCY:g}×", _mean(experts), at_most=EXPERT_LATENCY))
    if intel:
        lines.append(_held(f"our latency over OpenVINO's and NNCF's: at most {INTEL_LATENCY:g}×", _mean(intel), at_most=INTEL_LATENCY))
    longer = [row["seconds"] / results[name]["intel"]["seconds"] for name, row in ours.items()]
    lines.append(_held(f"our time to find it over that of NNCF's search: at most {NNCF_TIME:g}×", _mean(longer), at_most=NNCF_TIME))
    return "\n".join([*lines, *_quick(results)])


def _quick(results: Results) -> list[str]:
    """The same of a search that tries little."""
    rows = {name: row for name, result in results.items() for row in result["contenders"] if row["label"] == QUICK and "speedup" in row}
    intel = [results[name]["quick"]["intel"]["value"] for name in rows if results[name]["quick"]["intel"]]
    if not rows or not intel:
        return []
    lines = [
        _held(
            f"--quick: geometric mean of {len(rows)} models: at least {MEAN_SPEEDUP:g}×",
            _mean(row["speedup"]["value"] for row in rows.values()),
            at_least=MEAN_SPEEDUP,
        ),
        _held(f"--quick: our latency over OpenVINO's and NNCF's: at most {INTEL_LATENCY:g}×", _mean(intel), at_most=INTEL_LATENCY),
    ]
    shorter = [row["seconds"] / results[name]["intel"]["seconds"] for name, row in rows.items()]
    lines.append(_held(f"--quick: our time over that of NNCF's search: at most {NNCF_TIME:g}×", _mean(shorter), at_most=NNCF_TIME))
    lost = max(row["drop"] for row in rows.values())
    lines.append(f"| --quick: greatest drop: at most 0.010 | {lost:.4f} | {'yes' if lost <= 0.01 + 1e-9 else 'no'} |")
    return lines


def details(results: Results) -> str:
    """Every contender of every model."""
    parts = []
    for name, result in results.items():
        lines = [f"### {name}", "", "| contender | speed | score | drop | made in |", "| --- | --- | --- | --- | --- |"]
        for row in result["contenders"]:
            scored = [row["note"], "", ""] if "note" in row else [_speedup(row), f"{row['score']:.4f}", f"{row['drop']:+.4f}"]
            lines.append(f"| {' | '.join([row['label'], *scored, _seconds(row['seconds'])])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _machine(facts: Mapping[str, Any]) -> str:
    tools = ", ".join(f"{tool} {facts[tool]}" for tool in ("edgesdk", "onnxruntime", "openvino", "nncf"))
    return f"Measured on {facts['cpu']}, {facts['cores']} cores ({', '.join(facts['features'])}), one thread each, batch 1; {tools}."


def _held(what: str, value: float, *, at_least: float = 0, at_most: float = math.inf) -> str:
    return f"| {what} | {value:.2f}× | {'yes' if at_least <= value <= at_most else 'no'} |"


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _speedup(row: Mapping[str, Any]) -> str:
    return f"{row['speedup']['value']:.2f}× ({row['speedup']['low']:.2f} … {row['speedup']['high']:.2f})" if "speedup" in row else row["note"]


def _ratio(latency: Mapping[str, float] | None) -> str:
    return f"{latency['value']:.2f}× ({latency['low']:.2f} … {latency['high']:.2f})" if latency else "–"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.0f} s"
