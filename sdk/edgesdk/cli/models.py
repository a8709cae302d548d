"""The verbs about models: init, convert, inspect, check, quantize, prune, optimize, package, verify."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edge_agent.placement import listed, title
from edgesdk.cli.output import AsJson, bytes_text, progress, say, show, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgesdk.constraints import Violation
    from edgesdk.inspection import Inspection, Kernel, Placed
    from edgesdk.packaging import Packaged
    from edgesdk.profiles import Profile
    from edgesdk.pruning import Outlook

_MOST_PARTS = 12
_LAST_RELEASE = 2**53 - 1  # every program that reads JSON can hold it

ModelFile = Annotated[Path, typer.Argument(help="an ONNX file")]
ProfileName = Annotated[str, typer.Option("--profile", "-p", help="a profile's name, or a .toml file")]
Calibration = Annotated[str | None, typer.Option(help="unlabelled samples: .npz, .npy, a folder of them, or module.py:function")]


def register(app: typer.Typer) -> None:
    """The verbs in the order in which one needs them."""
    for verb in (init, convert, inspect, check, quantize, prune, optimize, package, verify):
        app.command()(verb)


def package(
    model: Annotated[Path | None, typer.Argument(help="an ONNX file; without one, what edgesdk.toml says")] = None,
    profile: Annotated[list[str] | None, typer.Option("--profile", "-p", help="hardware profile; repeat it for several in one bundle")] = None,
    calibration: Calibration = None,
    evaluate: Annotated[str | None, typer.Option(help="module.py:function(run) -> scores, or an .npz with `labels`")] = None,
    max_drop: Annotated[float | None, typer.Option(help="greatest loss of accuracy, in units of the metric")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="greatest median latency, here where it can be measured, and on the device")] = None,
    max_size_bytes: Annotated[int | None, typer.Option(help="greatest size of the model's files")] = None,
    labels: Annotated[Path | None, typer.Option(help="one class name a line, shipped beside the model")] = None,
    name: Annotated[str | None, typer.Option(help="what programs on the device ask for")] = None,
    release: Annotated[int | None, typer.Option(min=1, max=_LAST_RELEASE, metavar="N", help="release number; the next one if not given")] = None,
    recipe: Annotated[Path | None, typer.Option(help="replay the recipe in a recipe.toml or a bundle")] = None,
    save_recipe: Annotated[Path | None, typer.Option(help="write the chosen recipe here, a .toml to keep and to replay")] = None,
    explain: Annotated[Path | None, typer.Option(help="draw what was tried, accuracy against latency: a .png or .svg")] = None,
    prune: Annotated[
        str, typer.Option(help="auto: fewer channels where that is faster within the budget; off; a share of the multiply-accumulates that goes, 0.3; or 2:4")
    ] = "auto",
    on: Annotated[str | None, typer.Option("--on", metavar="HOST", help="time the candidates on this device")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder or .tar; bundles/NAME if not given")] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="try little: a first answer in a fraction of the time")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace another bundle, or a file, at --output")] = False,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="do not sign it, although `edgesdk key use` has chosen a key")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert, compress, prove and package a model for one or more profiles."""
    from edgesdk import packaging, profiles, project, signing
    from edgesdk import recipe as recipes
    from edgesdk.cli import files, plot
    from edgesdk.errors import ProjectError

    here = project.load(Path())
    source = model or project.find_model(Path(), here)
    called = name or project.name_for(source, here)
    limits = {
        "max_drop": max_drop if max_drop is not None else here.budget.max_drop,
        "max_latency_ms": max_latency_ms if max_latency_ms is not None else here.budget.max_latency_ms,
        "max_size_bytes": max_size_bytes if max_size_bytes is not None else here.budget.max_size_bytes,
    }
    chosen = [_with_limits(profiles.find(wanted), limits) for wanted in _wanted(profile, here.profiles)]
    if len({one.name for one in chosen}) != len(chosen):
        raise ProjectError("two of the profiles have the same name", "a profile's name is its file's: rename one of the files")
    if (recipe or save_recipe or explain or on) and len(chosen) > 1:
        raise ProjectError("a recipe, a plot and a device are of one profile", f"give one --profile with them, such as {chosen[0].name}")
    if explain is not None:
        plot.check(explain)
    if save_recipe is not None:
        files.check_recipe(save_recipe)
    request = packaging.Request(
        model=source,
        profiles=tuple(chosen),
        name=called,
        output=output or Path("bundles", called),
        calibration=calibration or here.calibration,
        evaluate=evaluate or here.evaluate,
        labels=labels or (Path(here.labels) if here.labels else None),
        release=release,
        steps=recipes.read(recipe, chosen[0].name) if recipe else None,
        quick=quick,
        prune=_pruning(prune),
        on=on,
        force=force,
        signer=None if unsigned else signing.in_use(),
    )
    if request.output.is_file():
        files.check(request.output, sources=(source, request.calibration, request.evaluate, request.labels))
    with progress() as advance:
        packaged = packaging.package(request, advance)
    if save_recipe is not None:
        save_recipe.write_text(recipes.to_toml(packaged[0].recipe, f"{called} for {chosen[0].name}: what `edgesdk package --recipe` replays"), encoding="utf-8")
    if explain is not None:
        plot.draw(packaged[0], explain)
    results = [one.to_dict() for one in packaged]
    show(results[0] if len(results) == 1 else results, "\n\n".join(map(_told, packaged)), as_json=as_json)


def verify(bundle: Annotated[Path, typer.Argument(help="a bundle: folder or .tar")], *, as_json: AsJson = False) -> None:
    """Check a bundle: digests, its profile's constraints, and the golden answers on this machine."""
    from edgesdk import verification

    checked = verification.verify(bundle)
    rows = [
        (
            one["profile"],
            one["name"],
            one["release"],
            one["digest"][7:19],
            f"{one['golden']['difference']:.2g} of {one['golden']['tolerance']:.2g} allowed",
            one["signer"] or "unsigned",
        )
        for one in checked
    ]
    show(checked, table(rows, head=("profile", "name", "release", "digest", "golden answers here", "signed by")), as_json=as_json)


def optimize(
    model: ModelFile,
    profile: ProfileName,
    output: Annotated[Path, typer.Option("--output", "-o", help="the optimized .onnx")],
    calibration: Calibration = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write the model that `package` would put into a bundle, without the bundle."""
    from edgesdk import packaging, profiles
    from edgesdk.cli import files

    files.check(output, makes_folders=True, sources=(model, calibration))
    with progress() as advance:
        written = packaging.optimize(model, profiles.find(profile), output, calibration, advance)
    text = f"{output}: {bytes_text(written['size_bytes']['before'])} → {bytes_text(written['size_bytes']['after'])}, {_steps(written['recipe'])}"
    show(written, text, as_json=as_json)


def quantize(
    model: ModelFile,
    profile: ProfileName,
    output: Annotated[Path, typer.Option("--output", "-o", help="the quantized .onnx")],
    scheme: Annotated[str, typer.Option(help="int8, dynamic-int8, weights-int8, weights-int4 or float16")] = "int8",
    calibration: Calibration = None,
    method: Annotated[str | None, typer.Option(help="how ranges are chosen: minmax, moving-average, percentile, entropy or mse (int8)")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="a node that stays float32, by its name in the simplified model (not float16); repeatable")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write a model in one number format, as a profile wants it: one step alone, with no search and no judge."""
    from typing import cast, get_args

    from edgesdk import graph, packaging, profiles
    from edgesdk.calibration import METHODS
    from edgesdk.cli import files
    from edgesdk.errors import ProjectError

    schemes = [name for name in get_args(profiles.Scheme) if name != "float32"]
    if scheme not in schemes:
        raise ProjectError(f"there is no scheme `{scheme}`", f"there are {', '.join(schemes)}")
    if method is not None and method not in METHODS:
        raise ProjectError(f"there is no method `{method}`", f"there are {', '.join(METHODS)}")
    if method is not None and scheme != "int8":
        raise ProjectError(f"{scheme} measures no ranges for `--method` to choose", "leave it out, or take --scheme int8")
    target = profiles.find(profile)
    if method is not None and target.quantization.power_of_two:
        raise ProjectError(
            f"`{profile}` wants powers of two, whose positions `--method` does not choose", "leave it out: they are those of least squared error"
        )
    if exclude and scheme == "float16":
        raise ProjectError("float16 leaves out operators, not nodes: `--exclude` is of the other schemes", "name them as `keep_float32` in your own profile")
    files.check(output, makes_folders=True, sources=(model, calibration))
    settings: dict[str, Any] = {key: value for key, value in (("method", method), ("exclude", exclude)) if value}
    with progress() as advance:
        made, told = packaging.quantize(model, target, scheme=cast("profiles.Scheme", scheme), samples=calibration, progress=advance, **settings)
        graph.save_as(made, output)
    size = told["size_bytes"]
    noise = f"answers {told['snr_db']:.0f} dB above their error" if told["snr_db"] is not None else "the same answers"
    lines = [f"{output}: {bytes_text(size['before'])} → {bytes_text(size['after'])}, {noise}", *told["violations"]]
    show({"model": str(output), **told}, "\n".join(lines), as_json=as_json)


def prune(
    model: ModelFile,
    profile: ProfileName,
    calibration: Annotated[str, typer.Option(help="unlabelled samples: .npz, .npy, a folder of them, or module.py:function")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the pruned .onnx")] = None,
    macs: Annotated[float | None, typer.Option(help="share of the multiply-accumulates that stays: 0.5 keeps half")] = None,
    parameters: Annotated[float | None, typer.Option(help="share of the parameters that stays")] = None,
    latency: Annotated[float | None, typer.Option(help="share of the time that stays, where this machine resembles the profile's")] = None,
    criterion: Annotated[str, typer.Option(help="which channels go first: reconstruction, activation, l1 or l2")] = "reconstruction",
    exclude: Annotated[list[str] | None, typer.Option(help="a node whose weights stay whole, by its name in the simplified model; repeatable")] = None,
    plot: Annotated[Path | None, typer.Option(help="with --dry-run: draw what fewer channels do to the answers, a .png or .svg")] = None,
    *,
    two_four: Annotated[bool, typer.Option("--two-four", help="two of every four weights instead of channels, for hardware that skips them")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the groups of channels, what each does to the answers, and what stays whole")] = False,
    distill: Annotated[bool, typer.Option("--distill", help="train it to answer as the original does, on the same samples; needs PyTorch")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model with fewer channels, its layers set anew so that it answers what it answered: no labels, no training."""
    from typing import cast, get_args

    from edgesdk import graph, profiles, pruning
    from edgesdk.cli import files
    from edgesdk.cli import plot as plots
    from edgesdk.errors import ProjectError
    from edgesdk.passes.prune import Criterion

    shares = {"macs": macs, "parameters": parameters, "latency": latency, "2:4": 0.5 if two_four else None}
    goals = [pruning.Goal(cast("Any", of), share) for of, share in shares.items() if share is not None]
    if len(goals) > 1 or not (goals or dry_run):
        raise ProjectError("pruning goes by one of --macs, --parameters, --latency and --two-four", "--macs 0.5 keeps half of the multiply-accumulates")
    if dry_run == (output is not None) or (plot is not None and not dry_run):
        raise ProjectError("either a model is written, or a dry run shows what would go", "give --output, or --dry-run, perhaps with --plot")
    if two_four and (dry_run or criterion != "reconstruction"):
        raise ProjectError("two of every four weights go, whatever the channels are: there is nothing to look at or to choose", "leave the other option out")
    if criterion not in get_args(Criterion):
        raise ProjectError(f"there is no criterion `{criterion}`", f"there are {', '.join(get_args(Criterion))}")
    chosen, settings = profiles.find(profile), {"samples": calibration, "criterion": criterion, "exclude": exclude or ()}
    if output is None:
        if plot is not None:
            plots.check(plot)
        with progress() as advance:
            seen = pruning.outlook(model, chosen, goals[0] if goals else None, progress=advance, **cast("Any", settings))
        if plot is not None:
            plots.draw_outlook(seen, plot, model.name)
        show(seen.to_dict(), _foreseen(seen), as_json=as_json)
        return
    files.check(output, makes_folders=True, sources=(model, calibration))
    with progress() as advance:
        made, told = pruning.prune(model, chosen, goals[0], distil=distill, progress=advance, **cast("Any", settings))
        graph.save_as(made, output)
    show({"model": str(output), **told}, f"{output}: {_pruned(told)}", as_json=as_json)


def _foreseen(seen: "Outlook") -> str:
    """Groups of channels and what stays whole, as a person reads it."""
    goal = seen.macs_share is not None
    rows = [
        (each.name, each.channels, *((each.stay,) if goal else ()), f"{each.macs:.1%}", *(_effect(each.effect(gone)) for gone in (0.25, 0.5, 0.75)))
        for each in sorted(seen.channels, key=lambda each: -each.macs)
    ]
    lines = [table(rows, head=("channels of", "there", *(("stay",) if goal else ()), "in MACs", "¼ gone", "½ gone", "¾ gone"))]
    lines += ["", "gone: squared change of the model's answers in shares of their variance, from that group alone; –: so many cannot go"]
    if goal:
        lines.append(f"{seen.macs:,} multiply-accumulates, {seen.macs_share:.1%} stay; {seen.parameters:,} parameters, {seen.parameters_share:.1%} stay")
    else:
        lines.append(f"{seen.macs:,} multiply-accumulates, {seen.parameters:,} parameters")
    return "\n".join([*lines, *(f"whole: {each.name}, {each.count} channels: {each.reason}" for each in seen.whole)])


def _effect(effect: float | None) -> str:
    return "–" if effect is None else f"{effect:.4f}"


def _pruned(told: dict[str, Any]) -> str:
    """The result of `prune` as a person reads it."""
    size, macs, latency = told["size_bytes"], told["macs"], told["latency_ms"]
    facts = [f"{bytes_text(size['before'])} → {bytes_text(size['after'])}"]
    if "sparse" in told:
        facts.append(f"{told['sparse']['two_four']} of {told['sparse']['weights']} weights are 2:4 sparse")
    else:
        facts.append(f"{macs['before']:,} → {macs['after']:,} multiply-accumulates ({macs['after'] / max(macs['before'], 1):.0%})")
    if latency is not None:
        facts.append(f"{latency['speedup']:.2f}× as fast here ({latency['low']:.2f} … {latency['high']:.2f}, 95 %)")
    facts.append(f"answers {told['snr_db']:.0f} dB above their error" if told["snr_db"] is not None else "the same answers")
    if told["distilled"] is not None:
        facts.append("distilled" if told["distilled"] else "not distilled: training brought it no closer on samples held back, more of them may help")
    return ", ".join(facts)


def check(model: ModelFile, profile: ProfileName, *, as_json: AsJson = False) -> None:
    """List what in a model does not obey a profile; exit 1 if anything does not."""
    from edgesdk import constraints, graph, profiles

    violations = constraints.check(graph.load(model), profiles.find(profile))
    text = "\n".join(map(str, violations)) or f"{model} obeys `{profile}`"
    show([asdict(violation) for violation in violations], text, as_json=as_json)
    if violations:
        raise typer.Exit(1)


def inspect(
    model: ModelFile,
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="what of it this hardware cannot run, why, and what to do")] = None,
    calibration: Annotated[str | None, typer.Option(help="real samples, where random ones will not do")] = None,
    save_node: Annotated[str | None, typer.Option("--save-node", metavar="NAME", help="write this node as a model of its own, its inputs beside it")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="with --save-node: the .onnx to write; its inputs become the .npz beside it")] = None,
    on: Annotated[str | None, typer.Option("--on", metavar="HOST", help="run it on this device, and tell what ran where; how the accelerator is cut")] = None,
    *,
    profile_ops: Annotated[bool, typer.Option("--profile-ops", help="the ten nodes that take longest, on this machine or --on the device")] = False,
    as_json: AsJson = False,
) -> None:
    """What a model is made of, what a run of it needs, and what a profile's hardware would say to it."""
    from edgesdk import inspection, profiles
    from edgesdk.errors import ProjectError

    if output is not None and save_node is None:
        raise ProjectError("--output is where --save-node writes", "what is told goes into a file with: --json > inspected.json")
    if save_node is not None and (profile or on or profile_ops):
        raise ProjectError("--save-node writes one node, and looks at nothing else", "leave out --profile, --on and --profile-ops")
    if save_node is not None:
        _save_node(model, save_node, calibration, output or Path(re.sub(r"[^A-Za-z0-9._-]+", "_", save_node).strip("_.") + ".onnx"), as_json=as_json)
        return
    with progress() as tell:
        found = inspection.inspect(model, profiles.find(profile) if profile else None, samples=calibration, time_kernels=profile_ops, on=on, progress=tell)
    show({"model": str(model), **found.to_dict()}, _inspected(found), as_json=as_json)


def _by_rule(violations: "Sequence[Violation]") -> list[str]:
    """The first of each kind, and how many more there are of it."""
    kinds: dict[tuple[str, str, str], list[Violation]] = {}
    for violation in violations:
        kinds.setdefault((violation.rule, violation.wanted, violation.hint), []).append(violation)
    return [str(alike[0]) + (f"; {len(alike) - 1} more of this kind" if len(alike) > 1 else "") for alike in kinds.values()]


def _save_node(model: Path, name: str, calibration: str | None, output: Path, *, as_json: bool) -> None:
    from edge_agent.golden import write_arrays
    from edge_agent.store import write_atomically
    from edgesdk import graph, inspection
    from edgesdk.cli import files

    inputs = output.with_suffix(".npz")
    for target in (output, inputs):
        files.check(target, sources=(model, calibration))
    single, feeds = inspection.alone(model, name, samples=calibration)
    graph.save_as(single, output)
    write_atomically(inputs, write_arrays(feeds), 0o644)
    show({"model": str(output), "inputs": str(inputs)}, f"{output}\n{inputs}", as_json=as_json)


def _inspected(found: "Inspection") -> str:
    summary = found.summary
    rows = [("input", t.name, f"{t.dtype} {_shape(t.shape)}") for t in summary.inputs]
    rows += [("output", t.name, f"{t.dtype} {_shape(t.shape)}") for t in summary.outputs]
    rows += [("opset", str(summary.opset), f"IR version {summary.ir_version}"), ("parameters", f"{summary.parameters:,}", bytes_text(summary.weight_bytes))]
    shapes = ", ".join(f"{name} {shape}" for name, shape in found.assumed.items())
    if found.macs is not None and found.memory is not None:
        rows += [("multiply-accumulates", f"{found.macs:,}", f"of one run on {shapes}")]
        rows += [("", "not counted", f"{count} {kind}") for kind, count in found.uncounted.items()]
        rows += [("peak of activations", bytes_text(found.memory.peak_bytes), f"at {found.memory.node}")]
        rows += [("", each.tensor, bytes_text(each.bytes)) for each in found.memory.tensors[:4]]
    else:
        rows += [("multiply-accumulates", "unknown", found.unknown)]
    rows += [("2:4 sparse", f"{found.sparse} of {found.weights}", "weights")] if found.sparse else []
    for each in found.operators:
        share = f", {each.macs / found.macs:.1%} of the work" if each.macs and found.macs else ""
        rows.append(("operator", each.name, f"{each.count}{share}"))
    told = [table(rows, head=("what", "name", ""))]
    if found.kernels:
        slow = [(_kernel(kernel), kernel.operator, f"{kernel.ms:.3f}", f"{kernel.share:.1%}") for kernel in found.kernels]
        told += ["", table(slow, head=("node", "operator", f"ms on {found.placement.host if found.placement else 'one thread here'}", "share"))]
    if found.placement is not None:
        told += ["", *_where(found.placement)]
    if found.cut is not None:
        work = f", {found.cut.macs_share:.1%} of the multiply-accumulates," if found.cut.macs_share is not None else ""
        parts = f" in {found.cut.parts} parts" if found.cut.parts > 1 else ""
        told += ["", f"`{found.profile}` takes {found.cut.nodes} of {found.cut.of} nodes{work}{parts} as the file is; `edgesdk package` changes what it can"]
        told += [f"  {line}" for line in _by_rule(found.violations)]
    return "\n".join(told)


def convert(
    source: Annotated[str, typer.Argument(help=".skops, .pkl or .joblib (scikit-learn); .pt2, .pt or module.py:function (PyTorch)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the .onnx to write")],
    samples: Annotated[str | None, typer.Option(help="samples to check the result on: .npz or .npy")] = None,
    input_: Annotated[list[str] | None, typer.Option("--input", help="NAME=SHAPE where the source does not say, like image=1,3,224,224; repeatable")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset to write")] = None,
    *,
    trust: Annotated[bool, typer.Option("--trust", help="load a pickle: it can run any code")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a scikit-learn or PyTorch model to ONNX, checked against the source on samples."""
    from edgesdk import convert as converting

    with progress() as tell:
        converted = converting.convert(source, output, samples=samples, inputs=input_ or (), trust=trust, opset=opset, progress=tell)
    show(converted.to_dict(), converted.to_text(), as_json=as_json)


def init(model: Annotated[Path | None, typer.Argument(help="an ONNX file; without one, the only one here")] = None, *, as_json: AsJson = False) -> None:
    """Write a commented edgesdk.toml from what is in this folder."""
    from edge_agent import probe
    from edge_agent.store import write_atomically
    from edgesdk import profiles, project
    from edgesdk.errors import ProjectError

    target = Path(project.FILE)
    if target.exists():
        raise ProjectError(f"{project.FILE} is already here", "edit it, or remove it first")
    chosen = model or project.find_model(Path(), project.Project())
    if not chosen.is_file():
        raise ProjectError(f"there is no model at `{chosen}`", "check the path")
    found = {key: next((str(path) for path in sorted(Path().glob(pattern))), None) for key, pattern in (("calibration", "calib*"), ("evaluate", "eval*"))}
    evaluate = found["evaluate"] + ":evaluate" if found["evaluate"] and found["evaluate"].endswith(".py") else found["evaluate"]
    fitting = [profile.name for profile in profiles.recognise(probe.facts())][:1]
    text = project.template(str(chosen), calibration=found["calibration"], evaluate=evaluate, profiles=fitting)
    try:
        write_atomically(target, text.encode(), 0o644)
    except UnicodeEncodeError as error:
        raise ProjectError("a name is no UTF-8, which TOML wants", "rename the file") from error
    show({"written": str(target)}, "", as_json=as_json)
    say(f"wrote {target}: look it through, then run `edgesdk package`")


def _wanted(given: list[str] | None, project_profiles: tuple[str, ...]) -> tuple[str, ...]:
    from edge_agent import probe
    from edgesdk import profiles
    from edgesdk.errors import ProjectError

    if given or project_profiles:
        return tuple(dict.fromkeys(given or project_profiles))
    fitting = [profile.name for profile in profiles.recognise(probe.facts())]
    raise ProjectError(
        "no profile was named", f"give --profile; `edgesdk profile list` shows them all, and this machine is {' or '.join(fitting) or 'none of them'}"
    )


def _pruning(said: str) -> Literal["auto", "off", "2:4"] | float:
    from edgesdk.errors import ProjectError

    words: dict[str, Literal["auto", "off", "2:4"]] = {"auto": "auto", "off": "off", "2:4": "2:4"}
    try:
        return words.get(said) or float(said)
    except ValueError as error:
        raise ProjectError(f"`--prune {said}` is no way to prune", "auto, off, 2:4, or the share that goes: 0.3") from error


def _with_limits(profile: "Profile", limits: dict[str, Any]) -> "Profile":
    """The profile with what the command line and the project say of its budget."""
    from edgesdk import profiles

    said = {key: value for key, value in limits.items() if value is not None}
    return profile.model_copy(update={"budget": profiles.limited(profile.budget, said)})


def _told(packaged: "Packaged") -> str:
    """The result as a person reads it."""
    size, accuracy, latency = packaged.size_bytes, packaged.accuracy, packaged.latency_ms
    interval = f", 95 % of the drop in {accuracy.interval[0]:+.4f} … {accuracy.interval[1]:+.4f}" if accuracy.interval else ""
    lines = [
        f"{packaged.bundle}  {packaged.name} release {packaged.release} for {packaged.profile}  {packaged.digest[7:19]}",
        f"  recipe    {_steps(packaged.recipe)}",
        f"  size      {bytes_text(size['before'])} → {bytes_text(size['after'])}",
        f"  accuracy  {accuracy.before:.4f} → {accuracy.after:.4f}  "
        f"({accuracy.metric}, {accuracy.samples} samples: {accuracy.lost} lost, {accuracy.gained} gained{interval})",
    ]
    if latency["before"] is not None:
        low, high = latency["interval"]
        speed = f"{latency['speedup']:.2f}× ({low:.2f} … {high:.2f}, 95 %; {latency['runs']} pairs on {latency['device']})"
        lines.append(f"  latency   {_ms(latency['before'])} → {_ms(latency['after'])} ms, {speed}")
    lines += [f"  tried     {one['label']}: {_became(one)}" for one in packaged.candidates]
    lines += [f"  note      {note}" for note in packaged.notes]
    lines.append(f"  signed    by {packaged.signer}" if packaged.signer else "  unsigned")
    return "\n".join(lines)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.3f}"


def _became(candidate: dict[str, Any]) -> str:
    speed = f"{candidate['speed']['speedup']:.2f}× of float32" if candidate["speed"] else ""
    drop = f"drop {candidate['selection_drop']:.4f}" if candidate["selection_drop"] is not None else ""
    return ", ".join(filter(None, (speed, drop, candidate["note"]))) or "not scored: something better holds"


def _steps(recipe: Any) -> str:
    return " → ".join(step["pass"] for step in recipe) or "none: the original"


def _kernel(kernel: "Kernel") -> str:
    """Its node and those that are computed with it: nobody knows how their time parts."""
    if not kernel.node:
        return "(changes of layout)" if kernel.operator.startswith("Reorder") else "(what onnxruntime made of several)"
    return kernel.node + (f" with {', '.join(kernel.fused)}" if kernel.fused else "")


def _where(placed: "Placed") -> list[str]:
    share = f", {placed.share:.1%} of the multiply-accumulates elsewhere than on the CPU" if placed.share is not None else ""
    lines = [f"on {placed.device} ({placed.host}), onnxruntime {placed.onnxruntime}, {placed.threads} threads: {placed.nodes or placed.provider}{share}"]
    if len({part.provider for part in placed.parts}) > 1:
        lines += [f"  {title(part.provider)}: {part.nodes} nodes, {part.first} … {part.last}" for part in placed.parts[:_MOST_PARTS]]
        lines += [f"  and {len(placed.parts) - _MOST_PARTS} more parts"] if len(placed.parts) > _MOST_PARTS else []
    if placed.fell:
        lines.append(f"  on the CPU: {listed(placed.fell)}")
    return lines


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
