"""How long answers take: by device and version, over time, under lasting load, and how the devices of a fleet compare."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_agent.latency import Histogram
from edgesdk.replies import Percentiles, VersionReport
from edgesdk.reporting.gathering import Asked, Found
from edgesdk.reporting.section import Chart, Column, Row, Section, interval, short, unique
from edgesdk.results import Result, Window

MOST_LINES = 6  # of a chart, as many as there are colours and shapes to tell apart
MOST_DEVICES = 40  # of a chart
BINS = 48
MOST_DRAWN = 0.97  # of a distribution
PHASES = ("queue", "input", "run", "output")
FAR = 1.25  # times the median device: slower than that, and clear of what the others spread, is an outlier
FEWEST = 4  # devices among which one can be an outlier
FEW = 1000  # answers, of which p99.9 is the slowest one
_SPREAD = 3 * 1.4826  # median absolute deviations, in standard deviations of normal noise

PERCENTILES = tuple(
    Column(f"{name}_ms", f"{title}, ms", "ms") for name, title in (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p999", "p99.9"), ("max", "max"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One distribution of latencies, of a version as programs on a device saw it or of a bench. ``histogram`` is None where only percentiles are known."""

    model: str
    release: str
    where: str
    seen_by: str
    since: str
    count: int
    errors: int | None
    percentiles: dict[str, float | None]
    histogram: Histogram | None
    phases: dict[str, float]  # medians, ms
    active: bool  # nothing newer is known of this model there

    @property
    def title(self) -> str:
        return f"{self.model} {self.release} on {self.where}".replace("  ", " ") + ("" if self.seen_by == "programs" else f", {self.seen_by}")

    @property
    def p50(self) -> float:
        return self.percentiles["p50"] or 0.0

    def row(self) -> Row:
        told: Row = {"model": self.model, "release": self.release, "device": self.where, "seen_by": self.seen_by, "since": self.since, "count": self.count}
        told |= {"errors": self.errors, **{f"{name}_ms": self.percentiles.get(name) for name in ("p50", "p90", "p99", "p999", "max")}}
        return told | {f"{phase}_ms": self.phases.get(phase) for phase in PHASES}


def timings(found: Found) -> tuple[Timing, ...]:
    """All there are, the devices' first."""
    return (*(timing for asked in found.asked for timing in _of_device(asked)), *map(_of_result, found.results))


def latency(found: Found) -> Section | None:
    """Distributions, a chart a model."""
    told = [each for each in timings(found) if each.count]
    if not told:
        return None
    charts = [chart for model in dict.fromkeys(each.model for each in told) for chart in _charts(model, [each for each in told if each.model == model])]
    phases = [Column(f"{phase}_ms", f"{phase} p50, ms", "ms", aside=True) for phase in PHASES if any(phase in each.phases for each in told)]
    return Section(
        key="latency",
        title="Latency by device and version",
        said=(
            "From the request's last byte to the answer's first where programs on the device asked; from question to answer in a bench.",
            *(("p99 of fewer than 100 answers, and p99.9 of fewer than 1,000, is the slowest of them.",) if any(each.count < FEW for each in told) else ()),
        ),
        columns=(
            *(
                Column("model", "model"),
                Column("release", "release"),
                Column("device", "device"),
                Column("seen_by", "seen by"),
                Column("since", "since", "time", aside=True),
            ),
            *(Column("count", "answers", "count"), Column("errors", "errors", "count"), *PERCENTILES, *phases),
        ),
        rows=tuple(each.row() for each in told),
        charts=tuple(charts),
    )


def measurements(found: Found) -> Section | None:
    """What `bench` found besides latencies, and how far it can be trusted."""
    if not found.results:
        return None
    rows = [
        {
            "run": _of_result(each).title,
            "started": each.started,
            "throughput": each.throughput,
            "throughput_interval": interval(each.throughput_interval, ".1f"),
            "p50_interval": interval(each.interval_ms.get("p50"), ".3f"),
            "p99_interval": interval(each.interval_ms.get("p99"), ".3f"),
            "load_ms": each.load_ms,
            "first_answer_ms": each.first_answer_ms,
            "peak_bytes": each.peak_bytes,
            "energy_j": each.energy_j if each.energy_j is not None else each.energy_unknown,
            "restarts": len(each.restarts),
            "sure": "95 %, one process" if len(each.restarts) == 1 else "99 %, over restarts",
            "stopped": each.stopped,
            "inputs": f"{each.inputs.count} of {each.inputs.source}",
            "via": each.via,
            "onnxruntime": each.onnxruntime,
            "disturbed": "; ".join(each.disturbed),
            "notes": "; ".join(each.notes),
        }
        for each in found.results
    ]
    disturbed = sum(bool(each.disturbed) for each in found.results)
    return Section(
        key="measurements",
        title="Measurements",
        said=(f"{disturbed} of {len(found.results)} were disturbed: trust their figures less.",) if disturbed else (),
        columns=(
            *(Column("run", "run"), Column("started", "begun", "time", aside=True), Column("throughput", "answers a second", "number")),
            *(Column("throughput_interval", "interval of that"), Column("p50_interval", "of p50, ms"), Column("p99_interval", "of p99, ms", aside=True)),
            Column("sure", "intervals of"),
            *(Column("load_ms", "load, ms", "ms"), Column("first_answer_ms", "first answer, ms", "ms"), Column("peak_bytes", "peak memory", "bytes")),
            *(Column("energy_j", "joule an answer", "ratio"), Column("restarts", "restarts", "count"), Column("stopped", "why it ended")),
            *(Column("inputs", "asked", aside=True), Column("via", "by", aside=True), Column("onnxruntime", "onnxruntime", aside=True)),
            *(Column("disturbed", "disturbed", aside=True), Column("notes", "notes", aside=True)),
        ),
        rows=tuple(rows),
        facts=True,
    )


def devices(found: Found) -> Section | None:
    """What runs on several devices, the slowest device first."""
    told, rows, charts, said = _newest(timings(found)), list[Row](), list[Chart](), list[str]()
    for model, seen_by in dict.fromkeys((each.model, each.seen_by) for each in told):
        alike = sorted((each for each in told if (each.model, each.seen_by) == (model, seen_by)), key=lambda each: -each.p50)
        if len({each.where for each in alike}) < 2:
            continue
        middle, odd = _outliers([each.p50 for each in alike])
        rows += [{**each.row(), "ratio": each.p50 / middle if middle else None, "outlier": is_odd} for each, is_odd in zip(alike, odd, strict=True)]
        charts.append(_ranges(model, seen_by, alike, odd, middle))
        slow = [each.where for each, is_odd in zip(alike, odd, strict=True) if is_odd]
        said.append(
            f"{model}: {', '.join(slow[:10])} {'is' if len(slow) == 1 else 'are'} slower than the others of {len(alike)} devices by more than they spread."
            if slow
            else f"{model}: none of {len(alike)} devices stands out; the median one has a p50 of {middle:.3f} ms."
        )
    silent = [asked for asked in found.asked if asked.error]
    said += [f"{asked.host} told nothing: {asked.error}" for asked in silent[:10]]
    said += [f"{len(silent) - 10} more devices told nothing."] if len(silent) > 10 else []
    rows += [{"device": asked.host, "error": asked.error} for asked in silent]
    if not rows:
        return None
    columns = (Column("model", "model"), Column("device", "device"), Column("release", "release"), Column("seen_by", "seen by"), *PERCENTILES[:3])
    more = (Column("ratio", "of the median", "ratio"), Column("outlier", "outlier"), Column("count", "answers", "count"), Column("errors", "errors", "count"))
    return Section(
        key="devices",
        title="Devices, the slowest first",
        said=tuple(said),
        columns=(*columns, *more, *([Column("error", "no answer")] if silent else [])),
        rows=tuple(rows),
        charts=tuple(charts),
    )


def history(found: Found) -> Section | None:
    """The same measured again, and versions after one another: percentiles at their times."""
    told = [each for each in timings(found) if each.count and each.since]
    lines: dict[tuple[str, str, str], list[Timing]] = {}
    for each in told:
        lines.setdefault((each.model, each.where, each.seen_by), []).append(each)
    lines = {key: sorted(line, key=lambda each: each.since) for key, line in lines.items() if len({each.since for each in line}) > 1}
    if not lines:
        return None
    charts = []
    for model in dict.fromkeys(key[0] for key in lines):
        own = sorted((line for key, line in lines.items() if key[0] == model), key=lambda line: -line[-1].p50)
        series = [
            {
                "name": f"{line[0].where}, {line[0].seen_by}",
                "points": [{"t": each.since, "p50": each.p50, "p99": each.percentiles["p99"], "release": each.release} for each in line],
            }
            for line in own[:MOST_LINES]
        ]
        about = "; ".join(f"{one['name']}: {line[0].p50:.3f} ms at first, {line[-1].p50:.3f} ms at last" for one, line in zip(series, own, strict=False))
        sparks = tuple((str(one["name"]), tuple(each.p50 for each in line)) for one, line in zip(series, own, strict=False))
        charts.append(Chart(kind="history", title=f"{model}: p50 and p99 over time", about=about, data={"series": series}, sparks=sparks))
    return Section(
        key="history",
        title="Latency over time",
        said=("A point is a version since its first answer on a device, or a bench when it was begun. Lines go from p50 to p99.",),
        columns=(
            *(Column(key, key) for key in ("model", "device", "release")),
            Column("since", "since", "time"),
            Column("seen_by", "seen by"),
            *PERCENTILES[:3],
        ),
        rows=tuple(each.row() for line in lines.values() for each in line),
        charts=tuple(charts),
    )


def sustained(found: Found) -> Section | None:
    """The course of runs that went on for long."""
    if not found.sustained:
        return None
    names, charts, said, rows = unique([_of_result(each).title for each in found.sustained]), list[Chart](), list[str](), list[Row]()
    for name, each in zip(names, found.sustained, strict=True):
        speeds = [level.throughput for level in each.levels]
        if each.throttled_at_s is not None:
            end = f", from {speeds[0]:.1f} to {speeds[-1]:.1f} answers a second" if len(speeds) > 1 else ""
            verdict = f"throttled from {each.throttled_at_s:.0f} s on{end}"
        else:
            verdict = f"not throttled in {each.curve[-1].t_s + each.curve[-1].seconds:.0f} s"
        said.append(f"{name}: {verdict}.")
        rows += [{"run": name, **_window(window)} for window in each.curve]
        data = {
            "curve": list(_thinned(each.curve)),
            "throttled_at_s": each.throttled_at_s,
            "levels": [{key: getattr(level, key) for key in ("from_s", "to_s", "p50_ms", "p99_ms", "throughput")} for level in each.levels],
        }
        sparks = (
            ("answers a second", tuple(window.throughput for window in each.curve)),
            ("p50", tuple(window.p50_ms for window in each.curve)),
            ("p99", tuple(window.p99_ms for window in each.curve)),
        )
        charts.append(Chart(kind="sustained", title=name, about=f"Answers a second, p50 and p99 over the run: {verdict}.", data=data, sparks=sparks))
    columns = (Column("run", "run"), Column("t_s", "at, s", "number"), Column("throughput", "answers a second", "number"), *PERCENTILES[:1], *PERCENTILES[2:3])
    return Section(
        key="sustained",
        title="Sustained load",
        said=tuple(said),
        columns=(*columns, Column("mhz", "MHz", "count"), Column("temperature_c", "°C", "number")),
        rows=tuple(rows),
        charts=tuple(charts),
    )


def _thinned(curve: Sequence[Window], most: int = 400) -> Iterator[Row]:
    """Of more windows than a screen has room for, what each run of them came to: mean rate, median p50, greatest p99."""
    step = -(-len(curve) // most)
    for begin in range(0, len(curve), step):
        run = curve[begin : begin + step]
        yield _window(run[0]) | {
            "seconds": sum(window.seconds for window in run),
            "p50_ms": statistics.median(window.p50_ms for window in run),
            "p99_ms": max(window.p99_ms for window in run),
            "throughput": statistics.fmean(window.throughput for window in run),
        }


def _window(window: Window) -> Row:
    return {key: getattr(window, key) for key in ("t_s", "seconds", "p50_ms", "p99_ms", "throughput", "mhz", "temperature_c")}


def _of_device(asked: Asked) -> Iterator[Timing]:
    for model in asked.report.models if asked.report else ():
        for version in model.versions:
            yield _of_version(asked.host, model.name, version, active=version is model.versions[-1])
        if not model.versions:  # its agent tells no more
            medians = {phase: each.p50 for phase, each in model.phases_ms.items() if each}
            yield Timing(
                model=model.name,
                release=str(model.release),
                where=asked.host,
                seen_by="programs",
                since=model.since or "",
                count=model.count,
                errors=model.errors,
                percentiles=_known(model.latency_ms),
                histogram=None,
                phases=medians if model.count else {},
                active=True,
            )


def _of_version(host: str, model: str, version: VersionReport, *, active: bool) -> Timing:
    return Timing(
        model=model,
        release=version.release or version.digest[7:15],
        where=host,
        seen_by="programs",
        since=version.since,
        count=version.total.count,
        errors=version.errors,
        percentiles=dict(version.total.percentiles().to_dict()),
        histogram=version.total,
        phases={phase: histogram.quantile(0.5) / 1e6 for phase, histogram in version.phases.items() if histogram.count and phase in PHASES},
        active=active,
    )


def _of_result(result: Result) -> Timing:
    at = f"{result.target_qps:g} a second" if result.target_qps else ""
    kind = ", ".join(filter(None, ("sustained" if result.curve else "bench", result.scenario, at, f"{result.threads} threads")))
    histogram = Histogram.from_dict(result.histogram)
    return Timing(
        model=result.name,
        release=str(result.release) if result.release is not None else result.digest.removeprefix("sha256:")[:8],
        where=result.host or result.device,
        seen_by=kind,
        since=result.started,
        count=histogram.count,
        errors=None,
        percentiles={name: getattr(result.latency_ms, name) for name in ("p50", "p90", "p99", "p999", "max")},
        histogram=histogram,
        phases={phase: ms for phase, ms in (result.phases_ms or {}).items() if phase in PHASES},
        active=True,
    )


def _known(percentiles: Percentiles | None) -> dict[str, float | None]:
    return {name: getattr(percentiles, name) if percentiles else None for name in ("p50", "p90", "p99", "p999", "max")}


def _charts(model: str, told: Sequence[Timing]) -> Iterator[Chart]:
    """Of one model: the distributions, and where the time goes."""
    drawn = sorted((each for each in told if each.histogram is not None), key=lambda each: -each.p50)
    left_out = f" Of {len(drawn)}, the {MOST_LINES} slowest are drawn." if len(drawn) > MOST_LINES else ""
    drawn = drawn[:MOST_LINES]
    names = _told_apart(drawn)
    if drawn:
        edges = _edges([each.histogram for each in drawn if each.histogram])
        densities = [_density(each.histogram, edges) for each in drawn if each.histogram]
        series = [
            {
                "name": name,
                "points": [{"ms": math.sqrt(low * high), "share": share} for low, high, share in zip(edges, edges[1:], density, strict=False)],
                "p50": each.p50,
                "p99": each.percentiles["p99"],
            }
            for name, each, density in zip(names, drawn, densities, strict=True)
        ]
        yield Chart(
            kind="distribution",
            title=f"{model}: how long answers took, {MOST_DRAWN:.0%} of them".replace("%", " %"),
            about="; ".join(f"{name}: p50 {each.p50:.3f} ms, p99 {each.percentiles['p99'] or 0:.3f} ms" for name, each in zip(names, drawn, strict=True))
            + "."
            + left_out,
            data={"series": series},
            sparks=tuple((name, tuple(density)) for name, density in zip(names, densities, strict=True)),
        )
    phased = [(name, each) for name, each in zip(names, drawn, strict=True) if each.phases]
    if phased:
        parts = [{"name": name, "phase": phase, "ms": each.phases[phase]} for name, each in phased for phase in PHASES if phase in each.phases]
        about = "; ".join(f"{name}: " + ", ".join(f"{phase} {each.phases[phase]:.3f} ms" for phase in PHASES if phase in each.phases) for name, each in phased)
        yield Chart(kind="phases", title=f"{model}: where the time goes, medians", about=about + ".", data={"parts": parts, "phases": list(PHASES)})


def _told_apart(told: Sequence[Timing]) -> list[str]:
    """Names for lines of one model: what differs among them."""
    parts = [[f"release {each.release}", each.where, each.seen_by, each.since[:16].replace("T", " ")] for each in told]
    differ = [len({part[place] for part in parts}) > 1 for place in range(4)]
    by_time = differ[3] and len({tuple(part[:3]) for part in parts}) < len(parts)  # else the others do
    differ = [*differ[:3], by_time] if any((*differ[:3], by_time)) else [True, True, False, False]
    return unique([", ".join(part for part, differs in zip(each, differ, strict=True) if differs) for each in parts])


def _newest(told: Sequence[Timing]) -> list[Timing]:
    """Of each model on each device what was seen last, in whatever way."""
    newest: dict[tuple[str, str, str], Timing] = {}
    for each in told:
        key = (each.model, each.where, each.seen_by)
        if each.count and each.active and (key not in newest or each.since > newest[key].since):
            newest[key] = each
    return list(newest.values())


def _edges(histograms: Sequence[Histogram]) -> list[float]:
    """Of bins in milliseconds, evenly on a logarithmic scale, from what nearly all answers took at least to what most took at most: of a long
    tail one would see nothing but that it is long."""
    low = max(min(each.quantile(0.001) for each in histograms), 1.0)
    high = max(max(each.quantile(MOST_DRAWN) for each in histograms), low * 1.05)
    return [low / 1e6 * (high / low) ** (step / BINS) for step in range(BINS + 1)]


def _density(histogram: Histogram, edges: Sequence[float]) -> list[float]:
    """The share of all answers in each bin; what lies outside stands in the table only."""
    shares, low, ratio = [0.0] * (len(edges) - 1), edges[0], math.log(edges[1] / edges[0])
    for ns, count in histogram.counts():
        place = math.floor(math.log(max(ns, 1.0) / 1e6 / low) / ratio + 1e-9)
        if place in (-1, len(shares)):  # the middle of a bucket whose end is the bin's
            place = min(max(place, 0), len(shares) - 1)
        if 0 <= place < len(shares):
            shares[place] += count / histogram.count
    return shares


def _outliers(slowest_first: Sequence[float]) -> tuple[float, list[bool]]:
    """The median, and which lie far above it."""
    middle = statistics.median(slowest_first)
    if len(slowest_first) < FEWEST:
        return middle, [False] * len(slowest_first)
    spread = statistics.median(abs(each - middle) for each in slowest_first)
    return middle, [each > FAR * middle and each > middle + _SPREAD * spread for each in slowest_first]


def _ranges(model: str, seen_by: str, slowest_first: Sequence[Timing], odd: Sequence[bool], middle: float) -> Chart:
    drawn = slowest_first[:MOST_DEVICES]
    names = unique([short(each.where, 48) for each in drawn])
    rows = [
        {"name": name, "p50": each.p50, "p90": each.percentiles["p90"], "p99": each.percentiles["p99"], "outlier": is_odd, "release": each.release}
        for name, each, is_odd in zip(names, drawn, odd, strict=False)
    ]
    left_out = f", the {MOST_DEVICES} slowest of {len(slowest_first)}" if len(slowest_first) > MOST_DEVICES else ""
    return Chart(
        kind="ranges",
        title=f"{model}, seen by {seen_by}: p50, p90 and p99 by device{left_out}",
        about=f"From {drawn[0].where} with a p50 of {drawn[0].p50:.3f} ms to {slowest_first[-1].where} with {slowest_first[-1].p50:.3f} ms.",
        data={"rows": rows, "median": middle},
        sparks=(("p50, the slowest first", tuple(each.p50 for each in slowest_first)),),
    )
