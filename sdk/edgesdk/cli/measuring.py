"""The verbs about numbers: compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesdk.cli.output import AsJson, progress, show, table

if TYPE_CHECKING:
    from edgesdk.comparison import Comparison
    from edgesdk.past import Judged


def register(app: typer.Typer) -> None:
    """The verbs in the order in which one needs them."""
    for verb in (compare,):
        app.command()(verb)


def compare(
    before: Annotated[Path, typer.Argument(help="an ONNX file or a bundle; or what `edgesdk bench -o FILE.json` wrote")],
    after: Annotated[Path, typer.Argument(help="another of its kind")],
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="how both are run; a bundle's own, or this machine's, if not given")] = None,
    calibration: Annotated[str | None, typer.Option(help="what to ask them: real samples instead of random ones")] = None,
    on: Annotated[str | None, typer.Option("--on", metavar="HOST", help="compare on this device")] = None,
    limit_s: Annotated[float, typer.Option("--limit-s", min=1, help="no further restart after so many seconds")] = 120,
    despite: Annotated[list[str] | None, typer.Option(help="results may differ in this: device, threads …; repeat it, or part by commas")] = None,
    room: Annotated[float | None, typer.Option(min=0, help="with --fail-if-slower, of results: what the second may be slower by; 0.05 if not given")] = None,
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
    if len(given) == 1:
        raise ProjectError(f"`{given[0]}` is a result, the other is none", "compare two results, or two models")
    if given and (profile or calibration or on):
        raise ProjectError("results were measured already", "leave out --profile, --calibration and --on")
    if not given and (despite or room is not None):
        raise ProjectError("--despite and --room are for results of `bench`", "models that are compared now run under the same conditions")
    if output is not None:
        files.check(output)
    found: Comparison | Judged
    if given:
        words = [word.strip() for each in despite or () for word in each.split(",")]
        found = past.compare(results.load(before), results.load(after), despite=words)
        text, slower = _judged(found), found.slower_by(past.ROOM if room is None else room)
    else:
        with progress() as tell:
            found = comparison.compare(before, after, profiles.find(profile) if profile else None, on=on, samples=calibration, limit_s=limit_s, progress=tell)
        text, slower = _compared(found), found.verdict == "slower"
    if output is not None:
        results.write(output, found.to_dict())
    show(found.to_dict(), text, as_json=as_json)
    if fail_if_slower and slower:
        raise typer.Exit(1)


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
        *([("load", f"{found.load[0]} … {found.load[1]}", "of other work and this")] if found.load else []),
    ]
    return table(rows, head=("what", "", "")) + f"\n\n{verdict}"
