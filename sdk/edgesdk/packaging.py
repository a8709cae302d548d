"""The main path: a model and a profile in, a bundle out, and nothing written that misses its budget.

    packaged = package(Request(model=Path("ocr.onnx"), profiles=(find("x86-cpu"),), name="ocr", output=Path("bundles/ocr")))

Read `package` and `_package_for` first: they are the whole story, top to bottom.
"""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import log10
from pathlib import Path
from typing import Any, Literal

from edge_agent import bundle, conditions, probe
from edge_agent.bundle import Contents, Layout
from edgesdk import constraints, costs, evidence, fixed_point, golden, graph, profiles, recipe, search, sparsity
from edgesdk.accuracy import AGREEMENT, Accuracy
from edgesdk.benchmark import Paired
from edgesdk.errors import BudgetMissed, ConstraintViolated, ModelError, ProjectError, SampleError
from edgesdk.evidence import Race, RacedHere
from edgesdk.fixed_point import Agreement
from edgesdk.graph import Model
from edgesdk.passes._sites import quantized, targets
from edgesdk.profiles import Profile, Scheme
from edgesdk.progress import Progress, silent
from edgesdk.race import Raced, racing
from edgesdk.recipe import Plan, Step
from edgesdk.search import QUICK, THOROUGH, Candidate, Choice
from edgesdk.signing import Signer
from edgesdk.source import Source, mislabelled, model_files, runner

FINAL_RACE_S = 6.0
LADDER = (0.2, 0.35, 0.5, 0.65, 0.8)  # shares of the multiply-accumulates that go, if nobody says how many
LADDER_MACS = 1e9  # of one sample: whoever has a larger model has to ask, since to find out what its channels do takes longer than all else
ORIGINAL = "original"
SLOWER = 0.98  # an exact rewriting whose speed-up surely lies below this is not worth shipping
MOST_JUDGED = 2  # after the winner, of those that are not exact
ON_JUDGING = "on the judging samples"
SLOWER_NOTE = "slower than the original, which is kept"
TOOLS = ("edgesdk", "numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to package. ``profiles`` carry the budget: what the command line changes of it is changed there. A path may be given as text."""

    model: Path
    profiles: tuple[Profile, ...]
    name: str
    output: Path
    calibration: str | None = None
    evaluate: str | None = None
    labels: Path | None = None
    release: int | None = None
    steps: tuple[Step, ...] | None = None  # replay this recipe instead of choosing one
    quick: bool = False  # try little
    prune: Literal["auto", "off", "2:4"] | float = "auto"  # a number: the share of the multiply-accumulates that goes, whatever is faster
    on: str | None = None  # time candidates on this host
    signer: Signer | None = None  # signs the bundle
    force: bool = False

    def __post_init__(self) -> None:
        for path in ("model", "output", "labels"):
            if isinstance(given := getattr(self, path), str):
                object.__setattr__(self, path, Path(given))


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """One profile's result; `to_dict` is what `package --json` prints."""

    bundle: Path
    digest: str
    name: str
    release: int
    profile: str
    recipe: tuple[Step, ...]
    size_bytes: dict[str, int]
    accuracy: Accuracy
    latency_ms: dict[str, Any]
    violations: tuple[str, ...]
    peak_rss_bytes: int
    seconds: float
    notes: tuple[str, ...]
    candidates: tuple[dict[str, Any], ...]
    signer: str | None  # the fingerprint of the key that signed it

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle),
            "digest": self.digest,
            "name": self.name,
            "release": self.release,
            "profile": self.profile,
            "recipe": list(self.recipe),
            "size_bytes": self.size_bytes,
            "accuracy": self.accuracy.to_dict(),
            "latency_ms": self.latency_ms,
            "violations": list(self.violations),
            "peak_rss_bytes": self.peak_rss_bytes,
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
            "candidates": list(self.candidates),
            "signer": self.signer,
        }


def package(request: Request, progress: Progress = silent) -> list[Packaged]:
    """Package a model for each profile into one bundle. Raises an EdgeSDKError, and then nothing is written."""
    check_output(request.output, request.name, force=request.force)
    if request.signer:
        request.signer.check()
    for profile in request.profiles:
        _asked(profile, request)
    progress("read and score the model", 0, 0)
    source = Source.load(request.model, calibration=request.calibration, evaluate=request.evaluate, labels=request.labels)
    made = [_package_for(profile, source, request, progress) for profile in request.profiles]
    release = request.release or _next_release(request, made)
    bundle.write(request.output, [one.contents(request.name, release) for one in made], request.signer.sign if request.signer else None)
    return [one.packaged(request, release) for one in made]


def _package_for(profile: Profile, source: Source, request: Request, progress: Progress) -> "Made":
    """profile → recipe → passes → constraints → judged → budget → golden answers."""
    began = time.monotonic()
    here = profiles.resembles(profile, probe.facts())
    with _racing(profile, source, request, progress, here=here) as race:
        exact = _exact_plans(profile, source) if request.steps is None and _asked(profile, request) is None else []
        choice = _choice(profile, source, request, race, exact, progress, here=here)
        accuracy = source.judged(choice.plan, candidates=choice.scored, optimize=here)
        standing_by = iter(()) if request.steps is not None else _standing_by(choice, profile, source, request, exact, optimize=here)
        while accuracy.drop > profile.budget.max_drop and (plan := next(standing_by, None)) is not None:  # it passed the selection by luck
            choice, accuracy = _instead(source, choice, accuracy, plan, optimize=here)
        _check_pruning(choice, request)
        if violations := constraints.check(choice.model, profile):
            raise ConstraintViolated(f"the result does not obey `{profile.name}`: {violations[0]}", f"{len(violations)} in all: `edgesdk check` lists them")
        integers = _in_whole_numbers(choice.model, source, progress) if profile.quantization.power_of_two else None
        progress("time original and result", 0, 0)
        speed = race(source.model, choice.model, FINAL_RACE_S) if race else None
    if speed and speed.high < SLOWER and any(not plan.steps for plan in exact):
        choice, speed = _original_kept(source, choice, speed)
        accuracy = source.judged(choice.plan, candidates=choice.scored, optimize=here)
    pruned = _pruned_away(choice, profile, source) if request.steps is None else None
    files = model_files(choice.model)
    _enforce(profile, accuracy, speed, sum(map(len, files.values())))
    progress("golden answers", 0, 0)
    answers = golden.record(source.run, runner(choice.model, optimize=here, threads=1), source.held_back, source.inputs, source.outputs)
    counted = costs.macs(choice.model, costs.shapes(choice.model, source.held_back[0])) if profile.runtime.least_placed else None
    return Made(profile, source, choice, accuracy, speed, integers, pruned, answers, counted, files, time.monotonic() - began)


@contextmanager
def _racing(profile: Profile, source: Source, request: Request, progress: Progress, *, here: bool) -> Iterator[Race | None]:
    """Candidates are timed on the host that was named, else here if this machine resembles the profile's hardware, else not."""
    if request.on is None:
        yield evidence.race_here(profile, source.held_back) if here else None
        return
    with racing(request.on, profile, source.held_back, progress) as racer:
        yield lambda before, after, limit_s: racer.race(model_files(before), model_files(after), limit_s=limit_s)


def _choice(profile: Profile, source: Source, request: Request, race: Race | None, exact: list[Plan], progress: Progress, *, here: bool) -> Choice:
    """The recipe that is asked for, or the one that the search finds."""
    if request.steps is not None:
        plan, model = source.build(Plan("replayed", recipe.scheme_of(request.steps), request.steps))
        return Choice(plan, model, (Candidate(plan, note="taken"),))
    untouched = [plan for plan in exact if not plan.steps]
    ladders = _ladders(profile) if request.prune == "auto" and not request.quick and race is not None and source.samples is not None else []
    large = ladders and _macs(source, recipe.float_plan(profile, source.shapes)) > LADDER_MACS
    choice = search.choose(
        [*_plans(profile, source, request), *untouched],
        evidence.gather(source, profile, race, here=here),
        max_drop=profile.budget.max_drop,
        least_share=profile.quantization.least_share,
        effort=QUICK if request.quick else THOROUGH,
        ladders=[] if large else ladders,
        progress=progress,
    )
    unpruned = (
        Candidate(choice.plan.pruned(ladders[-1][0]), note="not tried, since for so large a model it takes long: ask with --prune 0.3") if large else None
    )
    return replace(choice, tried=(*choice.tried, unpruned)) if unpruned is not None else choice


def _plans(profile: Profile, source: Source, request: Request, *, calibrated: bool = True) -> list[Plan]:
    """What is worth trying, pruned if that was asked for."""
    found, step = recipe.plans(profile, source.model, calibrated=calibrated and source.samples is not None, shapes=source.shapes), _asked(profile, request)
    return [plan.pruned(step) for plan in found] if step is not None else found


def _asked(profile: Profile, request: Request) -> Step | None:
    """The pruning that must be. Raises ProjectError and ProfileError where it cannot."""
    return None if request.prune == "auto" or request.prune == "off" else recipe.pruning(profile, request.prune)


def _ladders(profile: Profile) -> list[list[Step]]:
    """The pruning that may be."""
    channels = [recipe.pruning(profile, gone) for gone in LADDER]
    return [[recipe.pruning(profile, "2:4")], channels] if profile.pruning.two_four else [channels]


def optimize(model: Path | str, profile: Profile, output: Path | str, samples: str | None = None, progress: Progress = silent) -> dict[str, Any]:
    """The model alone that `package` would ship, written to ``output`` with its weights inside. Raises an EdgeSDKError."""
    model, output = Path(model), Path(output)
    request = Request(model=model, profiles=(profile,), name="model", output=output, calibration=samples)
    made = _package_for(profile, Source.load(model, calibration=samples), request, progress)
    graph.save_as(made.choice.model, output)
    return {"model": str(output), **made.packaged(request, 1).to_dict()}


def quantize(
    model: Path | str, profile: Profile, *, scheme: Scheme = "int8", samples: str | None = None, progress: Progress = silent, **settings: Any
) -> tuple[Model, dict[str, Any]]:
    """One step alone: the simplified model in that number format as the profile wants it, and what became of it.

    ``settings`` are those of the pass and win over the profile's. The second value has `scheme`, `recipe`, `size_bytes`, `snr_db` (of the
    answers, against the original's on held-back samples), `violations` and `seconds`. No accuracy is judged: that is what `package` does.
    Raises an EdgeSDKError.
    """
    began, model = time.monotonic(), Path(model)
    progress("read the model", 0, 0)
    source = Source.load(model, calibration=samples)
    wanted = profile.model_copy(update={"quantization": profile.quantization.model_copy(update={"schemes": (scheme,)})})
    options = recipe.plans(wanted, source.model, calibrated=source.samples is not None, shapes=source.shapes)
    if not options:
        raise SampleError(f"{scheme} measures ranges on samples, and there are none", "give some: `--calibration`")
    last = options[0].steps[-1]
    asked = {**last, "settings": {**last["settings"], **settings}} if settings else last
    progress("quantize", 0, 0)
    plan, made = source.build(replace(options[0], steps=(*options[0].steps[:-1], asked)))
    if recipe.scheme_of(plan.steps) != scheme and scheme != "float32":
        said = asked["settings"]
        if scheme == "int8" and targets(source.model, operators=said["operators"], exclude=said.get("exclude", ())):
            raise SampleError("the samples tell no ranges: what goes through the model is all nought, or endless", "give real ones: `--calibration`")
        hint = "it is quantized already: give the float model" if quantized(source.model) else "`edgesdk inspect` lists its operators"
        raise ModelError(f"there is nothing in `{model.name}` that can become {scheme}", hint)
    noise = source.error(made, optimize=profiles.resembles(profile, probe.facts()))
    return made, {
        "scheme": scheme,
        "recipe": list(plan.steps),
        "size_bytes": {"before": source.size_bytes, "after": sum(map(len, model_files(made).values()))},
        "snr_db": round(-10 * log10(noise), 1) if noise else None,
        "violations": [str(violation) for violation in constraints.check(made, profile)],
        "seconds": round(time.monotonic() - began, 1),
    }


@dataclass(frozen=True, slots=True)
class Made:
    """All that is known of one profile's result before the release number is."""

    profile: Profile
    source: Source
    choice: Choice
    accuracy: Accuracy
    speed: Paired | None
    integers: Agreement | None  # of the hardware's whole numbers with the file
    pruned: float | None  # share of the multiply-accumulates that is gone, where channels were pruned
    golden: golden.Golden
    macs: dict[str, int] | None  # by node, where the profile says how many the accelerator must run
    model: dict[str, bytes]  # the model's own files
    seconds: float

    def contents(self, name: str, release: int) -> Contents:
        """The files of the bundle: a pure function of input, recipe, settings, release and tool versions. The evidence is apart."""
        files = {
            **self.model,
            "bundle.json": bundle.to_json(self._description(name, release)),
            "profile.json": bundle.to_json(self.profile.to_dict()),
            "recipe.json": bundle.to_json(list(self.choice.plan.steps)),
            "golden.npz": self.golden.archive,
            **({"labels.txt": self.source.labels} if self.source.labels else {}),
        }
        config = {
            "descriptor": {"name": name, "version": str(release)},
            "config": {"format": "onnx", "precision": self.choice.plan.scheme},
            "modelfs": {"type": "layers", "diffIds": [bundle.digest_of(files[file]) for file in bundle.LAYERS if file in files]},
        }
        return Contents(self.profile.name, config, files, self._evidence())

    def packaged(self, request: Request, release: int) -> Packaged:
        """What the caller is told."""
        return Packaged(
            bundle=request.output,
            digest=bundle.digest_of(bundle.manifest_of(self.contents(request.name, release))),
            name=request.name,
            release=release,
            profile=self.profile.name,
            signer=request.signer.fingerprint if request.signer else None,
            **self._measured(),
        )

    def _description(self, name: str, release: int) -> dict[str, Any]:
        described = graph.describe(self.choice.model)
        return {
            "format": bundle.FORMAT,
            "name": name,
            "release": release,
            "profile": self.profile.name,
            "model": {
                "inputs": [{"name": t.name, "dtype": t.dtype, "shape": t.shape} for t in graph.inputs(self.choice.model)],
                "outputs": [{"name": t.name, "dtype": t.dtype, "shape": t.shape} for t in graph.outputs(self.choice.model)],
                "opset": described.opset,
                "ir_version": described.ir_version,
                **({"macs": self.macs} if self.macs is not None else {}),
            },
            "needs": {"onnxruntime": graph.oldest_onnxruntime(self.choice.model)},
            "golden": {
                "samples": self.golden.samples,
                "tolerance": self.golden.tolerance,
                "top1": self.source.labels is not None,
                "source": "calibration" if self.source.samples else "generated",
            },
            "source": {"digest": self.source.digest},
            "tools": {tool: version(tool) for tool in TOOLS},
        }

    def _evidence(self) -> dict[str, Any]:
        measured = self._measured()
        return {**measured, "accuracy": self.accuracy.to_dict(), "device": probe.facts()}

    def _measured(self) -> dict[str, Any]:
        return {
            "recipe": self.choice.plan.steps,
            "size_bytes": {"before": self.source.size_bytes, "after": sum(map(len, self.model.values()))},
            "accuracy": self.accuracy,
            "latency_ms": _latency(self.speed),
            "violations": (),
            "peak_rss_bytes": _peak_bytes(),
            "seconds": round(self.seconds, 1),
            "notes": tuple(self._notes()),
            "candidates": tuple(candidate.to_dict() for candidate in self.choice.tried),
        }

    def _notes(self) -> Iterator[str]:
        """What a reader of the result should know, in sentences."""
        if not self.choice.plan.steps:
            yield f"the model is packaged as it is: {self._why_untouched()}"
        if self.source.samples is None and "int8" in self.profile.quantization.schemes:
            yield "int8 was not tried: it needs --calibration samples"
        if self.speed is None:
            yield f"latency not measured: this machine is no {self.profile.title}; `--on HOST` times candidates on one"
        if self.pruned is not None:
            yield f"{self.pruned:.0%} of the multiply-accumulates are pruned away"
        if self.integers is not None:
            told = f"{self.integers.tensors} tensors, {self.integers.values:,} values, {self.integers.ties:,} of them halfway"
            yield f"fixed-point arithmetic gives the file's own integers ({told})"
        failed = sum(candidate.note.endswith(ON_JUDGING) for candidate in self.choice.tried)
        if failed:
            yield f"{failed} faster {'one' if failed == 1 else 'ones'} kept the budget on the selection samples and missed it on the judging ones"
        if self.source.labels and (odd := mislabelled(self.source.labels, graph.outputs(self.source.model))):
            yield odd
        if not self.source.scores.any():
            yield "the original scores 0 on every sample: is the evaluation right?"
        if self.accuracy.metric == AGREEMENT:
            yield "accuracy is agreement with the original: give --evaluate to measure against labels"

    def _why_untouched(self) -> str:
        if any(candidate.note == SLOWER_NOTE for candidate in self.choice.tried):
            return "rewriting it made it slower here"
        if self.choice.plan.label == ORIGINAL:
            return "rewriting it changes answers by rounding, and the budget allows not even that"
        if any(candidate.plan.label.endswith(search.NOTHING) for candidate in self.choice.tried):
            return search.NOTHING
        return "no pass changes anything in it"


def _peak_bytes() -> int:
    """Of this process. What `getrusage` tells begins with what the process had that started this one: a shell's little, a notebook's gigabytes."""
    return conditions.peak_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _check_pruning(choice: Choice, request: Request) -> None:
    """What was asked for was done. Raises ModelError and ConstraintViolated."""
    if request.prune != "auto" and request.prune != "off" and request.steps is None and not choice.plan.prunes:
        raise ModelError(f"nothing in `{request.model.name}` can be pruned so", "`edgesdk prune --dry-run` tells what stays whole, and why")
    dense = [str(weight.node.name) for weight in sparsity.weights(choice.model) if not weight.obeys] if request.prune == "2:4" else []
    if dense:
        raise ConstraintViolated(f"{len(dense)} weights are not 2:4 sparse, the first of them `{dense[0]}`", "report the model to us")


def _pruned_away(choice: Choice, profile: Profile, source: Source) -> float | None:
    """The share of the simplified model's multiply-accumulates that is gone with its channels."""
    step = next((step for step in choice.plan.steps if step["pass"] == "prune"), None)
    if step is None:
        return None
    whole = recipe.float_plan(profile, source.shapes)
    return 1 - _macs(source, whole.pruned(step)) / max(_macs(source, whole), 1)


def _macs(source: Source, plan: Plan) -> int:
    """Of one sample."""
    _, model = source.build(plan)
    return sum(costs.macs(model, costs.shapes(model, source.held_back[0])).values())


def _in_whole_numbers(model: Model, source: Source, progress: Progress) -> Agreement:
    """The proof that fixed-point hardware computes what the file says. Raises ConstraintViolated."""
    progress("evaluate in whole numbers", 0, 0)
    found = fixed_point.agreement(model, source.held_back[0])
    if found.differences:
        first = found.differences[0]
        raise ConstraintViolated(
            f"whole numbers and the file disagree on {first.values} of {first.of} values of `{first.tensor}`, by {first.most} at most",
            "report the model to us: it would answer otherwise on the board",
        )
    return found


def _exact_plans(profile: Profile, source: Source) -> list[Plan]:
    """Those that change no answer but by rounding, as far as the profile takes them: the float model, and the file as it was given."""
    if "float32" not in profile.quantization.schemes:
        return []
    given = [Plan(ORIGINAL, "float32", ())] if not constraints.check(source.model, profile) else []
    return [recipe.float_plan(profile, source.shapes), *given]


def _standing_by(choice: Choice, profile: Profile, source: Source, request: Request, exact: list[Plan], *, optimize: bool) -> Iterator[Plan]:
    """Others that keep the budget on the selection samples, few since each is another chance to pass by luck; then float16, then the exact."""
    for plan in choice.others[:MOST_JUDGED]:
        if source.loss(plan, optimize=optimize).drop <= profile.budget.max_drop:
            yield plan
    yield from (plan for plan in _plans(profile, source, request, calibrated=False) if plan.scheme == "float16")
    yield from exact


def _instead(source: Source, choice: Choice, accuracy: Accuracy, plan: Plan, *, optimize: bool) -> tuple[Choice, Accuracy]:
    """A safer model or an exact one, since the winner of the selection did not hold before the judge."""
    plan, model = source.build(plan)
    lost = f"loses {accuracy.drop:.4g} {ON_JUDGING}"
    tried = tuple(replace(candidate, note=lost) if candidate.plan == choice.plan else candidate for candidate in choice.tried)
    kept = Choice(plan, model, (*tried, Candidate(plan, note="taken instead")))
    return kept, source.judged(plan, candidates=choice.scored + 1, optimize=optimize)


def _original_kept(source: Source, choice: Choice, speed: Paired) -> tuple[Choice, Paired]:
    """The file as it was given, because rewriting it made it slower here. Its own latency is before and after."""
    tried = (*choice.tried, Candidate(choice.plan, speed=speed, note=SLOWER_NOTE))
    kept = Choice(Plan(ORIGINAL, "float32", ()), source.model, tried)
    return kept, replace(speed, after_ms=speed.before_ms, speedup=1.0, low=1.0, high=1.0)


def _enforce(profile: Profile, accuracy: Accuracy, speed: Paired | None, size_bytes: int) -> None:
    """Raises BudgetMissed for the first limit that does not hold. What was not measured here the device's trial will judge."""
    budget = profile.budget
    if accuracy.drop > budget.max_drop:
        raise BudgetMissed(
            f"{accuracy.metric} drops by {accuracy.drop:.4g} on the {accuracy.samples} judging samples ({accuracy.before:.4f} to {accuracy.after:.4f}), "
            f"more than the {budget.max_drop:g} allowed",
            "allow more with --max-drop, give more calibration samples, or take a profile with wider number formats",
        )
    if budget.max_latency_ms is not None and speed is not None and speed.after_ms > budget.max_latency_ms:
        raise BudgetMissed(f"the result takes {speed.after_ms:.2f} ms, more than the {budget.max_latency_ms:g} ms allowed", "allow more with --max-latency-ms")
    if budget.max_size_bytes is not None and size_bytes > budget.max_size_bytes:
        raise BudgetMissed(f"the result has {size_bytes} bytes, more than the {budget.max_size_bytes} allowed", "allow more with --max-size-bytes")


def _latency(speed: Paired | None) -> dict[str, Any]:
    if speed is None:
        return {"before": None, "after": None, "device": None}
    where: dict[str, Any] = {}
    if isinstance(speed, RacedHere):
        where = {"device": probe.facts()["cpu_model"], "threads": speed.threads, "provider": speed.provider}
    elif isinstance(speed, Raced):
        where = {"device": speed.device, "host": speed.host, "threads": speed.threads, "provider": speed.providers[1]}
    return {
        "before": round(speed.before_ms, 6),
        "after": round(speed.after_ms, 6),
        "speedup": round(speed.speedup, 3),
        "interval": [round(speed.low, 3), round(speed.high, 3)],
        "runs": speed.runs,
        "warmup": speed.warmup,
        **where,
    }


def _next_release(request: Request, made: list[Made]) -> int:
    """The release that is there if nothing but the evidence would change, else the next one; 1 for the first."""
    if not request.output.exists():
        return 1
    try:
        with Layout.open(request.output) as layout:
            there = layout.manifests()
            last = max(layout.description(manifest).release for manifest in there.values())
    except bundle.BundleError:
        return 1  # replaced with --force
    again = {one.profile.name: bundle.digest_of(bundle.manifest_of(one.contents(request.name, last))) for one in made}
    return last if again == {profile: manifest.digest for profile, manifest in there.items()} else last + 1


def check_output(output: Path, name: str, *, force: bool) -> None:
    """Before the long work: the target can be written, and what is there is an older bundle of this name. Raises ProjectError.

    ``force`` replaces another bundle or file, never a folder of other things: `-o bundles --force` would take all of them.
    """
    bundle.check_name(name)
    if output.is_dir() and not (output / "oci-layout").exists() and any(output.iterdir()):
        raise ProjectError(f"`{output}` is a folder with other things in it", f"choose another -o, such as {output / name}")
    if output.exists() and not force:
        try:
            with Layout.open(output) as layout:
                there = {layout.description(manifest).name for manifest in layout.manifests().values()}
        except bundle.BundleError as error:
            raise ProjectError(f"`{output}` exists and is no bundle", "choose another -o, or replace it with --force") from error
        if there != {name}:
            raise ProjectError(f"`{output}` holds `{', '.join(sorted(there))}`, not `{name}`", "choose another -o, or replace it with --force")
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ProjectError(f"`{parent}` is no folder that can be written", "choose another -o")
