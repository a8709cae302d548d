"""The verbs about numbers: bench, compare."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesdk.cli.output import AsJson, bytes_text, fail, progress, say, show, sparkline, table

if TYPE_CHECKING:
    from edgesdk.comparison import Comparison
    from edgesdk.past import Judged
    from edgesdk.results import Result


Despite = Annotated[list[str] | None, typer.Option(help="results may differ in this: device, threads …; repeat it, or part by commas")]
Room = Annotated[float | None, typer.Option(min=0, help="of results: what the second may be slower by before that fails; 0.05 if not given")]


def register(app: typer.Typer) -> None:
    """The verbs in the order in which one needs them."""
    for verb in (
        bench,
        compare,
    ):
        app.command()(verb)


def bench(
    host: Annotated[str, typer.Argument(help="a name of ~/.ssh/config, user@host[:port], or local")],
    what: Annotated[str, typer.Argument(metavar="NAME|FILE|BUNDLE", help="a model that is deployed there; or an ONNX file or a bundle, tried and taken away")],
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="how a file is run; a bundle's own, or the device's, if not given")] = None,
    scenario: Annotated[str, typer.Option(help="as MLPerf names them: single-stream, multi-stream, offline or server")] = "single-stream",
    per_query: Annotated[int | None, typer.Option(min=1, max=256, help="samples at once, of multi-stream and offline; 8 if not given")] = None,
    target_qps: Annotated[float | None, typer.Option(min=0.001, help="of server: questions a second, which come at random")] = None,
    input_file: Annotated[
        str | None, typer.Option("--input", help="what to ask, an .npz; generated if not given, of a deployed model its golden inputs")
    ] = None,
    limit_s: Annotated[float, typer.Option("--limit-s", min=1, help="no further restart after so many seconds, and five")] = 120,
    within: Annotated[float, typer.Option(min=0.001, max=1, help="enough when the interval is so narrow to either side: 0.02 is 2 %")] = 0.02,
    sustained: Annotated[str | None, typer.Option(metavar="30m", help="one run so long instead, and its curve: when it throttled, how fast it is then")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the result to this .json, for `compare` and `report`")] = None,
    baseline: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="compare with this earlier result; exit 1 if it is slower for sure: for CI")
    ] = None,
    despite: Despite = None,
    room: Room = None,
    *,
    as_json: AsJson = False,
) -> None:
    """How fast a model is on a device, with intervals over restarts, and what the device was like meanwhile."""
    from edgesdk import past, profiles, results, timing
    from edgesdk.cli import INTERRUPTED, files
    from edgesdk.errors import ProjectError

    if scenario not in results.SCENARIOS:
        raise typer.BadParameter(f"there is no scenario `{scenario}`: it is one of {', '.join(results.SCENARIOS)}")
    seconds = _seconds(sustained) if sustained else None
    if baseline is None and (despite or room is not None):
        raise ProjectError("--despite and --room are for --baseline", "name the earlier result: `--baseline main.json`")
    if baseline is not None and seconds is not None:
        raise ProjectError("--sustained is one run, and a --baseline is compared by its restarts", "leave one of them out")
    before = results.load(baseline) if baseline is not None else None
    if before is not None:
        past.check(before, _words(despite))
    if output is not None:
        files.check_result(output, sources=(baseline,))
    with progress() as tell:
        found = timing.bench(
            host,
            what,
            profile=profiles.find(profile) if profile else None,
            scenario=scenario,
            per_query=per_query,
            target_qps=target_qps,
            samples=input_file,
            limit_s=limit_s,
            within=within,
            sustained_s=seconds,
            progress=tell,
        )
    if output is not None:
        found.save(output)
    judged, unlike = None, None
    if before is not None and found.stopped != "interrupted":
        try:
            judged = past.compare(before, found, despite=_words(despite))
        except ProjectError as error:  # what was measured is shown all the same
            unlike = error
    document = found.to_dict() | ({"baseline": judged.to_dict()} if judged else {})
    document |= {"baseline": {"error": {"message": str(unlike), "hint": unlike.hint}}} if unlike else {}
    show(document, _measured(found) + (f"\n\n{_judged(judged)}" if judged else ""), as_json=as_json)
    if found.stopped == "interrupted":
        say("this is what there was by then")
        raise typer.Exit(INTERRUPTED)
    if unlike:
        fail(str(unlike), unlike.hint)
        raise typer.Exit(1)
    if judged and judged.slower_by(past.ROOM if room is None else room):
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|)", text)
    seconds = float(found[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if not 10 <= seconds <= 86400:
        raise typer.BadParameter(f"`{text}` is no time from 10 s to 24 h: 90s, 30m, 2h")
    return seconds


def _measured(found: "Result") -> str:
    latency, intervals = found.latency_ms, found.interval_ms
    rows = [(name, f"{getattr(latency, name):.3f}", _ends(intervals.get(name), 3)) for name in ("p50", "p90", "p99", "p999", "max", "mean", "std")]
    rows.append(("answers a second", f"{found.throughput:.1f}", _ends(found.throughput_interval, 1)))
    sure = f"{'95 % of this process' if len(found.restarts) == 1 else '99 % over restarts'}"
    runs, warm = sum(one.runs for one in found.restarts), sum(one.warmup_runs for one in found.restarts)
    release = f" release {found.release}" if found.release is not None else ""
    rate = f" at {found.target_qps:g} a second" if found.target_qps else f", {found.per_query} at once" if found.per_query > 1 else ""
    restarts = "one process" if len(found.restarts) == 1 else f"{len(found.restarts)} restarts"
    where = f"{found.device}{f' ({found.host})' if found.host else ''}"
    lines = [
        table(rows, head=("ms", found.name + release, sure)),
        "",
        f"latencies  {sparkline(_drawn(found))}  {_drawn_ends(found)}",
        *(_course(found) if found.curve else []),
        f"{found.scenario}{rate}: {runs:,} queries after {warm:,} of warm-up, {restarts} in {found.seconds:.0f} s; {found.stopped}",
        f"asked: {found.inputs.source}, {found.inputs.count} sample{'s' if found.inputs.count != 1 else ''}",
        f"on {where}: {found.nodes or found.provider}, {found.threads} threads, onnxruntime {found.onnxruntime}",
        *(["by phase, medians: " + ", ".join(f"{name} {value:.3f} ms" for name, value in found.phases_ms.items())] if found.phases_ms else []),
        ", ".join(_costs(found)),
        *(f"state: {words}" for words in [_state(found)] if words),
        *found.notes,
        *(f"disturbed: {sentence}" for sentence in found.disturbed),
    ]
    return "\n".join(lines)


def _ends(interval: tuple[float, float] | None, digits: int) -> str:
    return "–" if interval is None else f"{interval[0]:.{digits}f} … {interval[1]:.{digits}f}"


def _drawn(found: "Result") -> list[float]:
    """How many latencies lie in each of forty equal parts of a logarithmic scale, as roots: the few far out are seen, too."""
    from edge_agent.latency import Histogram

    counts = Histogram.from_dict(found.histogram).counts()
    low, high = math.log(max(counts[0][0], 1)), math.log(max(counts[-1][0], 1)) + 1e-9
    parts = [0.0] * 40
    for middle, count in counts:
        parts[min(int((math.log(max(middle, 1)) - low) / max(high - low, 1e-9) * 40), 39)] += count
    return [math.sqrt(part) for part in parts]


def _drawn_ends(found: "Result") -> str:
    return f"{found.histogram['min_ns'] / 1e6:.3f} … {found.histogram['max_ns'] / 1e6:.3f} ms"


def _course(found: "Result") -> list[str]:
    rows = [(f"{level.from_s:.0f} … {level.to_s:.0f} s", f"{level.p50_ms:.3f}", f"{level.p99_ms:.3f}", f"{level.throughput:.1f}") for level in found.levels]
    settled = found.levels[-1]
    said = (
        f"slower from {found.throttled_at_s:.0f} s on; it settles at {settled.throughput:.1f} answers a second"
        if found.throttled_at_s is not None
        else f"no lasting slow-down was seen in {settled.to_s:.0f} s"
    )
    return [
        f"rate       {sparkline([window.throughput for window in found.curve])}",
        f"p99        {sparkline([window.p99_ms for window in found.curve])}",
        "",
        table(rows, head=("level", "p50 ms", "p99 ms", "answers a second")),
        said,
        "",
    ]


def _costs(found: "Result") -> list[str]:
    told = [(found.load_ms, "load {:.1f} ms"), (found.first_answer_ms, "first answer {:.1f} ms")]
    words = [text.format(value) for value, text in told if value is not None]
    if found.peak_bytes is not None:
        words.append(f"at most {bytes_text(found.peak_bytes)} of memory")
    words.append(f"{found.energy_j * 1e3:.3g} mJ an answer" if found.energy_j is not None else f"energy not known: {found.energy_unknown}")
    return words


def _state(found: "Result") -> str:
    before, after = found.restarts[0].state.before, found.restarts[-1].state.after
    words = [f"governor {after.governor}"] if after.governor else []
    for name, unit in (("mhz", "MHz"), ("temperature_c", "°C")):
        one, other = getattr(before, name), getattr(after, name)
        if other is not None:
            words.append(f"{one:.0f} → {other:.0f} {unit}" if one is not None else f"{other:.0f} {unit}")
    busy = [one.state.during.load for one in found.restarts if one.state.during.load is not None]
    if busy:
        words.append(
            f"others kept {min(busy):.1f} … {max(busy):.1f} cores busy" if max(busy) >= min(busy) + 0.05 else f"others kept {max(busy):.1f} cores busy"
        )
    if after.throttled is not None:
        words.append(f"held back: {', '.join(after.throttled)}" if after.throttled else "not held back")
    return ", ".join(words)


def compare(
    before: Annotated[Path, typer.Argument(help="an ONNX file or a bundle; or what `edgesdk bench -o FILE.json` wrote")],
    after: Annotated[Path, typer.Argument(help="another of its kind")],
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="how both are run; a bundle's own, or this machine's, if not given")] = None,
    calibration: Annotated[str | None, typer.Option(help="what to ask them: real samples instead of random ones")] = None,
    on: Annotated[list[str] | None, typer.Option("--on", metavar="HOST", help="on this device; twice: the first on one, the second on the other")] = None,
    limit_s: Annotated[float, typer.Option("--limit-s", min=1, help="no further restart after so many seconds")] = 120,
    despite: Despite = None,
    room: Room = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the result to this .json, for `edgesdk report`")] = None,
    *,
    fail_if_slower: Annotated[bool, typer.Option("--fail-if-slower", help="exit 1 where the second is slower for sure: for CI")] = False,
    as_json: AsJson = False,
) -> None:
    """Which of two models is faster, with the interval, or that no difference was seen; measured now, or two results of `bench`."""
    from edgesdk import comparison, past, profiles, results
    from edgesdk.cli import files
    from edgesdk.errors import ProjectError

    given = [path for path in (before, after) if path.suffix == ".json"]
    hosts, words, chosen = on or [], _words(despite), profiles.find(profile) if profile else None
    if len(given) == 1:
        raise ProjectError(f"`{given[0]}` is a result, the other is none", "compare two results, or two models")
    if given and (profile or calibration or hosts):
        raise ProjectError("results were measured already", "leave out --profile, --calibration and --on")
    if len(hosts) > 2:
        raise ProjectError(f"--on was given {len(hosts)} times", "one device for both, or one for each")
    if not given and len(hosts) < 2 and (despite or room is not None):
        raise ProjectError("--despite and --room are for results of `bench`", "models that are compared now run under the same conditions")
    if output is not None:
        files.check_result(output, sources=(before, after))
    found: Comparison | Judged
    with progress() as tell:
        if given:
            found = past.compare(results.load(before), results.load(after), despite=words)
        elif len(hosts) == 2:
            both = (hosts[0], hosts[1])
            found = past.on_two(str(before), str(after), both, chosen, samples=calibration, limit_s=limit_s, despite=words, progress=tell)
        else:
            found = comparison.compare(before, after, chosen, on=next(iter(hosts), None), samples=calibration, limit_s=limit_s, progress=tell)
    if output is not None:
        results.write(output, found.to_dict())
    if isinstance(found, past.Judged):
        text, slower = _judged(found), found.slower_by(past.ROOM if room is None else room)
    else:
        text, slower = _compared(found), found.verdict == "slower"
    show(found.to_dict(), text, as_json=as_json)
    if fail_if_slower and slower:
        raise typer.Exit(1)


def _words(despite: list[str] | None) -> list[str]:
    return [word.strip() for each in despite or () for word in each.split(",")]


def _judged(found: "Judged") -> str:
    rows = [
        (name.removesuffix("_ms"), *(f"{value:.3f}" for value in found.medians[name]), f"{speedup:.3f}", f"{low:.3f} … {high:.3f}")
        for name, (speedup, low, high) in found.speedups.items()
    ]
    lines = [table(rows, head=("ms; answers a second", "before", "after", "speed-up", "99 %")), ""]
    lines += [f"in spite of this: {said}" for said in found.despite]
    verdict = f"{found.after} is {found.verdict} than {found.before}" if found.verdict != "no difference seen" else found.verdict
    return "\n".join([*lines, f"{verdict}, by {found.metric.removesuffix('_ms')} of {found.restarts[0]} and {found.restarts[1]} restarts"])


def _compared(found: "Comparison") -> str:
    least = max(1 - found.low, found.high - 1)
    verdict = {
        "faster": f"{found.after} is faster",
        "slower": f"{found.after} is slower",
        "no difference seen": f"no difference seen: if there is one, it is below {least:.1%}",
    }[found.verdict]
    where = f"{found.device}{f' ({found.host})' if found.host else ''}, {found.provider[0]}, {found.threads} threads, onnxruntime {found.onnxruntime}"
    rows = [
        ("before", found.before, f"{found.before_ms:.3f} ms"),
        ("after", found.after, f"{found.after_ms:.3f} ms"),
        ("speed-up", f"{found.speedup:.3f}", f"{found.low:.3f} … {found.high:.3f}, 99 %"),
        ("restarts", str(found.restarts), f"{found.pairs:,} pairs in {found.seconds:.0f} s; {found.stopped}"),
        ("asked", found.samples, ""),
        ("on", where, ""),
        *([("load", f"{found.load[0]:.1f} … {found.load[1]:.1f}", "of other work and this")] if found.load else []),
    ]
    return table(rows, head=("what", "", "")) + f"\n\n{verdict}"
