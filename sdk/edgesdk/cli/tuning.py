"""The verbs about a model on its hardware: tune, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesdk.cli.output import AsJson, progress, say, show, table

if TYPE_CHECKING:
    from edgesdk.evaluation import Evaluated
    from edgesdk.tuning import Tuned

On = Annotated[str | None, typer.Option("--on", metavar="HOST", help="on this device; without, on this machine")]
Profile = Annotated[str | None, typer.Option("--profile", "-p", help="of an ONNX file: a profile's name, or a .toml file; recognised if not given")]


def register(app: typer.Typer) -> None:
    """The verbs in the order in which one needs them."""
    for verb in (tune, evaluate):
        app.command()(verb)


def tune(
    model: Annotated[Path, typer.Argument(metavar="MODEL|BUNDLE", help="an ONNX file or a bundle")],
    on: On = None,
    profile: Profile = None,
    calibration: Annotated[str | None, typer.Option(help="what to ask it: real samples instead of random ones")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="of a bundle, where its new release goes; of an ONNX file, a profile: tuned.toml")
    ] = None,
    limit_s: Annotated[float, typer.Option("--limit-s", min=1, help="so many seconds, of which a third is to confirm what looked best")] = 300,
    *,
    afresh: Annotated[bool, typer.Option("--afresh", help="measure again what was measured earlier")] = False,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="do not sign the new release, although `edgesdk key use` has chosen a key")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the threads, spinning, arena, execution, graph level, provider options and batch with which a model is fastest there. A cut run goes on."""
    from edgesdk import profiles, signing, tuning

    signer = None if unsigned or output is None or model.suffix == ".onnx" else signing.in_use()
    with progress() as advance:
        found = tuning.tune(
            model,
            profiles.find(profile) if profile else None,
            on=on,
            samples=calibration,
            limit_s=limit_s,
            output=output,
            signer=signer,
            afresh=afresh,
            progress=advance,
        )
    show(found.to_dict(), _tuned(found), as_json=as_json)
    if found.settings and output is None:
        say("nothing is written: `-o` names where the choice goes; what was measured is remembered")


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL|BUNDLE|NAME", help="an ONNX file, a bundle, or with --on the name of a model that is active there")],
    on: On = None,
    evaluate: Annotated[str | None, typer.Option(help="module.py:function(run) -> scores, or an .npz with `labels`; without, what edgesdk.toml says")] = None,
    profile: Profile = None,
    against: Annotated[Path | None, typer.Option(help="the original: what is lost and gained against it, on the same samples; it runs here")] = None,
    calibration: Annotated[str | None, typer.Option(help="without --evaluate: samples on which it should agree with the original")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="keep the result in this .json")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """The accuracy where a model runs: your evaluation runs here, its samples there."""
    from edgesdk import evaluation, profiles, project, results
    from edgesdk.cli import files

    if output is not None:
        files.check_result(output, sources=(evaluate, calibration))
    judge = evaluate or (None if calibration else project.load(Path()).evaluate)
    with progress() as advance:
        found = evaluation.evaluate(
            model,
            profiles.find(profile) if profile else None,
            evaluate=judge,
            on=on,
            samples=calibration,
            against=against,
            progress=advance,
        )
    if output is not None:
        results.write(output, found.to_dict())
    show(found.to_dict(), _evaluated(found), as_json=as_json)


def _evaluated(found: "Evaluated") -> str:
    interval = f"  {found.interval[0]:.4f} … {found.interval[1]:.4f}, 95 %" if found.interval else ""
    where = f"{found.device}{f' ({found.host})' if found.host else ''}, {found.nodes or found.provider or '–'}, onnxruntime {found.onnxruntime or '–'}"
    samples = f"{found.samples} samples, " if found.samples else ""
    lines = [
        f"{found.name}{f' release {found.release}' if found.release else ''}: {found.metric} {found.score:.4f}{interval}",
        f"  asked     {samples}{'once' if found.asked == 1 else f'{found.asked} times'} in {found.seconds:.0f} s",
        f"  on        {where}, {found.threads or '–'} threads",
    ]
    if found.against:
        other = found.against
        reach = f", 95 % of the drop in {other.interval[0]:+.4f} … {other.interval[1]:+.4f}" if other.interval else ""
        lines.append(f"  against   {other.name} here: {other.score:.4f}, {other.lost} lost, {other.gained} gained{reach}")
    return "\n".join(lines)


def _tuned(found: "Tuned") -> str:
    from edgesdk import knobs

    rows = [
        (knobs.in_words(one.settings), f"{one.speedup:.3f}" if one.speedup else "–", f"{one.ms:.3f}" if one.ms else "–", one.restarts, one.note)
        for one in found.tried
    ]
    where = f"{found.device}{f' ({found.host})' if found.host else ''}, {found.provider}, {found.threads} threads, onnxruntime {found.onnxruntime}"
    lines = [table(rows, head=("settings", "speed-up", "ms", "restarts", "")), ""]
    if found.batches:
        doubled = [
            (each.rows, f"{each.halves_ms:.3f}", f"{each.ms:.3f}", f"{each.speedup:.3f} ({each.low:.3f} … {each.high:.3f})", each.restarts, each.verdict)
            for each in found.batches
        ]
        lines += [table(doubled, head=("come at once", "in two halves, ms", "as one, ms", "mean answer sooner", "restarts", "")), ""]
    lines.append(f"on {where}")
    lines.append(f"asked {found.inputs['source']}; {found.measured} restarts measured, {found.remembered} remembered, {found.seconds:.0f} s")
    interval = f"{found.speedup:.3f} times as fast ({found.low:.3f} … {found.high:.3f}, 99 %, {found.restarts} restarts)"
    single = knobs.of_one(found.settings)
    if batch := found.settings.get("max_batch"):
        lines.append(f"{found.name}: max_batch {batch}: up to {batch} questions that wait at the same time are run as one")
    if single:
        lines.append(f"{found.name}: {knobs.in_words(single)}: {interval}, {found.before_ms:.3f} → {found.after_ms:.3f} ms")
    elif found.candidate:
        lines.append(f"{found.name}: `{found.profile}` stays as it is for one question: {knobs.in_words(found.candidate)} is not faster for sure: {interval}")
    else:
        lines.append(f"{found.name}: `{found.profile}` stays as it is for one question: nothing looked faster")
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join([*lines, *([f"written: {found.written}"] if found.written else [])])
