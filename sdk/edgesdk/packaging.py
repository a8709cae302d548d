"""The main path: a model and a profile in, a bundle out, and nothing written that misses its budget.

    packaged = package(Request(model=Path("ocr.onnx"), profiles=(find("x86-cpu"),), name="ocr", output=Path("bundles/ocr")))

Read `package` and `_package_for` first: they are the whole story, top to bottom.
"""

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_agent import bundle, probe
from edge_agent import golden as answers
from edge_agent.bundle import Contents, Layout, Manifest
from edge_agent.worker import Session, open_session
from edgesdk import constraints, golden, graph, passes, profiles, recipe, sampling
from edgesdk.accuracy import AGREEMENT, Accuracy, Judge, Run, Scores
from edgesdk.benchmark import Paired, compare
from edgesdk.errors import BudgetMissed, ConstraintViolated, ModelError, ProjectError, SampleError
from edgesdk.graph import Feeds, Model
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.recipe import Candidate, Choice, Plan, Step
from edgesdk.sampling import Samples

GENERATED_SAMPLES = 32
ORIGINAL = "original"
SLOWER = 0.98  # an exact rewriting whose speed-up surely lies below this is not worth shipping
TOOLS = ("edgesdk", "numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to package. ``profiles`` carry the budget: what the command line changes of it is changed there."""

    model: Path
    profiles: tuple[Profile, ...]
    name: str
    output: Path
    calibration: str | None = None
    evaluate: str | None = None
    labels: Path | None = None
    release: int | None = None
    steps: tuple[Step, ...] | None = None  # replay this recipe instead of choosing one
    force: bool = False


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
        }


def package(request: Request, progress: Progress = silent) -> list[Packaged]:
    """Package a model for each profile into one bundle. Raises an EdgeSDKError, and then nothing is written."""
    check_output(request.output, request.name, force=request.force)
    source = Source.load(request)
    made = [_package_for(profile, source, request.steps, progress) for profile in request.profiles]
    release = request.release or _next_release(request, made)
    bundle.write(request.output, [one.contents(request.name, release) for one in made])
    return [one.packaged(request, release) for one in made]


def _package_for(profile: Profile, source: "Source", steps: tuple[Step, ...] | None, progress: Progress) -> "Made":
    """profile → recipe → passes → constraints → judged → budget → golden answers."""
    began = time.monotonic()
    here = profiles.resembles(profile, probe.facts())
    replay = [Plan("replayed", recipe.scheme_of(steps), steps)] if steps is not None else None
    plans = replay or recipe.plans(profile, calibrated=source.samples is not None, shapes=source.shapes)
    choice = recipe.choose(
        plans,
        build=source.build,
        drop=lambda model: source.judge.selection_drop(source.scores, source.scored(model, optimize=here)),
        race=_race(source, profile) if here and not replay else None,
        max_drop=profile.budget.max_drop,
        progress=progress,
    )
    accuracy = source.judged(choice, optimize=here)
    if accuracy.drop > profile.budget.max_drop:  # it passed the selection by luck; the exact model stands by
        choice, accuracy = _float_instead(source, choice, accuracy, plans, optimize=here)
    if violations := constraints.check(choice.model, profile):
        raise ConstraintViolated(f"the result does not obey `{profile.name}`: {violations[0]}", f"{len(violations)} in all: `edgesdk check` lists them")
    speed = _timed(source, choice.model, profile, progress) if here else None
    if speed and speed.high < SLOWER and choice.plan.scheme == "float32" and not replay and not constraints.check(source.model, profile):
        choice, speed = _original_kept(source, choice, speed)
        accuracy = source.judged(choice, optimize=here)
    files = model_files(choice.model)
    _enforce(profile, accuracy, speed, sum(map(len, files.values())))
    progress("golden answers", 0, 0)
    answers = golden.record(source.run, runner(choice.model, optimize=here, threads=1), source.held_back, source.inputs, source.outputs)
    return Made(profile, source, choice, accuracy, speed, answers, files, time.monotonic() - began)


def optimize(model: Path, profile: Profile, output: Path, samples: str | None, progress: Progress = silent) -> dict[str, Any]:
    """The model alone that `package` would ship, written to ``output`` with its weights inside. Raises an EdgeSDKError."""
    request = Request(model=model, profiles=(profile,), name="model", output=output, calibration=samples)
    source = Source.load(request)
    made = _package_for(profile, source, None, progress)
    graph.save_as(made.choice.model, output)
    return {"model": str(output), **made.packaged(request, 1).to_dict()}


def verify(path: Path) -> list[dict[str, Any]]:
    """Digests of every blob, the constraints of each profile, and its golden answers where this machine can give them.

    Raises BundleError, ConstraintViolated or ModelError at the first thing that is not as it should be.
    """
    with Layout.open(path) as layout:
        layout.verify()
        return [_verified(layout, profile, manifest) for profile, manifest in layout.manifests().items()]


def _verified(layout: Layout, profile: str, manifest: Manifest) -> dict[str, Any]:
    description = layout.description(manifest)
    rules = profiles.parse(bundle.parse_json(layout.blob(manifest.layer("profile.json").digest), "profile.json"), layout.name)
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        for layer in manifest.layers:
            Path(folder, layer.file).write_bytes(layout.blob(layer.digest))
        model = graph.load(Path(folder, "model.onnx"))
        if violations := constraints.check(model, rules):
            raise ConstraintViolated(f"`{layout.name}` does not obey `{profile}`: {violations[0]}", "package the model again")
        here = profiles.resembles(rules, probe.facts())
        run = runner(model, optimize=here, threads=1)
        try:
            samples = answers.load(Path(folder, "golden.npz"), description)
            worst = answers.worst_of([answers.compare(sample.answers, run(sample.feeds), description) for sample in samples])
        except answers.Differs as error:
            raise ModelError(f"`{layout.name}` for `{profile}` does not give its golden answers here: {error}", "package the model again") from error
    return {
        "profile": profile,
        "name": description.name,
        "release": description.release,
        "digest": manifest.digest,
        "golden": {"samples": len(samples), **worst.to_dict()},
    }


@dataclass(frozen=True, slots=True)
class Source:
    """The model as it was given, its samples and its judge: the same for every profile."""

    digest: str
    size_bytes: int
    model: Model
    samples: Samples | None  # the user's, for calibration
    held_back: tuple[Feeds, ...]  # those that calibration never sees
    judge: Judge
    run: Run
    scores: Scores  # of the original
    labels: bytes | None
    _built: dict[str, tuple[tuple[Step, ...], Model]] = field(default_factory=dict, repr=False)
    _scored: dict[tuple[int, bool], tuple[Model, Scores]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, request: Request) -> "Source":
        """Raises ModelError, SampleError or EvaluationError."""
        model = graph.load(request.model)
        graph.check(model)
        run = runner(model)
        samples, held_back = None, sampling.generated(model, GENERATED_SAMPLES, seed=0)
        if request.calibration is not None:
            samples, held_back = sampling.load(request.calibration, model).split()
        spared = tuple(held_back)
        feeds = spared or tuple(samples or ())
        kind = "generated inputs" if not request.calibration else "held-back calibration samples" if spared else "calibration samples, none held back"
        judge = Judge.load(request.evaluate, run, feeds, held_back_source=f"{len(feeds)} {kind}")
        labels = read_labels(request.labels) if request.labels else None
        size_bytes = sum(map(len, model_files(model).values()))
        digest = bundle.digest_of_file(request.model)
        return cls(digest, size_bytes, model, samples, feeds, judge, run, judge.scores(run), labels)

    @property
    def inputs(self) -> list[str]:
        return [tensor.name for tensor in graph.inputs(self.model)]

    @property
    def outputs(self) -> list[str]:
        return [tensor.name for tensor in graph.outputs(self.model)]

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of the first sample: what an input is fixed to where a profile wants that."""
        return {name: list(array.shape) for name, array in self.held_back[0].items()}

    def build(self, plan: Plan) -> tuple[Plan, Model]:
        """The plan's model, and the plan with only those steps that changed something. Plans that begin alike share that work."""
        steps: tuple[Step, ...] = ()
        model, given = self.model, ""
        for step in plan.steps:
            given += json.dumps(step, sort_keys=True)
            if given not in self._built:
                changed = passes.apply([step], model, self.samples)
                same = changed is model or graph.to_bytes(changed) == graph.to_bytes(model)
                self._built[given] = (steps, model) if same else ((*steps, step), changed)
            steps, model = self._built[given]
        return replace(plan, steps=steps), model

    def judged(self, choice: Choice, *, optimize: bool) -> Accuracy:
        """The verdict on the judging samples, with how many candidates were scored on the way."""
        candidates = sum(candidate.drop is not None for candidate in choice.tried)
        return self.judge.compare(self.scores, self.scored(choice.model, optimize=optimize), candidates=candidates)

    def scored(self, model: Model, *, optimize: bool) -> Scores:
        """The judge's scores, asked for once a model."""
        key = (id(model), optimize)
        if key not in self._scored:
            self._scored[key] = (model, self.judge.scores(runner(model, optimize=optimize)))
        return self._scored[key][1]


@dataclass(frozen=True, slots=True)
class Made:
    """All that is known of one profile's result before the release number is."""

    profile: Profile
    source: Source
    choice: Choice
    accuracy: Accuracy
    speed: Paired | None
    golden: golden.Golden
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
            },
            "needs": {"onnxruntime": graph.needed_onnxruntime(described.opset, described.ir_version)},
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
            "latency_ms": _latency(self.speed, self.profile),
            "violations": (),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
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
            yield f"latency not measured: this machine is no {self.profile.title}"
        if self.accuracy.metric == AGREEMENT:
            yield "accuracy is agreement with the original: give --evaluate to measure against labels"

    def _why_untouched(self) -> str:
        if self.choice.plan.label == ORIGINAL:
            return "rewriting it made it slower here"
        if any(candidate.plan.label.endswith(recipe.NOTHING) for candidate in self.choice.tried):
            return recipe.NOTHING
        return "no pass changes anything in it"


def runner(model: Model, *, optimize: bool = True, threads: int | None = None) -> Run:
    """The model on this machine's CPU. Without ``optimize`` int8 is computed as the file says, not as this CPU's kernels do it."""
    return partial(graph.run, graph.session(model, optimize=optimize, threads=threads or os.cpu_count() or 1))


def model_files(model: Model) -> dict[str, bytes]:
    """`model.onnx`, and `weights.bin` where there are many weights."""
    proto, weights = graph.to_bytes(model)
    return {"model.onnx": proto, **({"weights.bin": weights} if weights else {})}


def _race(source: Source, profile: Profile) -> Callable[[Model], Paired]:
    """Times a candidate against our own float file, which is what it has to beat."""
    _, best_float = source.build(recipe.float_plan(profile, source.shapes))
    return lambda candidate: _paired(best_float, candidate, profile, source.held_back, limit_s=3)


def _timed(source: Source, model: Model, profile: Profile, progress: Progress) -> Paired:
    progress("time original and result", 0, 0)
    return _paired(source.model, model, profile, source.held_back, limit_s=6)


def _paired(before: Model, after: Model, profile: Profile, feeds: tuple[Feeds, ...], *, limit_s: float) -> Paired:
    with _opened(before, profile) as first, _opened(after, profile) as second:
        return compare(first.run, second.run, feeds, limit_s=limit_s)


@contextmanager
def _opened(model: Model, profile: Profile) -> Iterator[Session]:
    """The model as the agent would run it."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        for name, data in model_files(model).items():
            Path(folder, name).write_bytes(data)
        yield open_session(Path(folder), profile.to_dict())


def _float_instead(source: Source, choice: Choice, accuracy: Accuracy, plans: Sequence[Plan], *, optimize: bool) -> tuple[Choice, Accuracy]:
    """The float model where the profile takes one, since the winner of the selection did not hold before the judge."""
    exact = next((plan for plan in plans if plan.scheme == "float32"), None)
    if exact is None or choice.plan.scheme == "float32":
        return choice, accuracy
    plan, model = source.build(exact)
    lost = f"loses {accuracy.drop:.4f} on the judging samples"
    tried = tuple(replace(candidate, note=lost) if candidate.plan == choice.plan else candidate for candidate in choice.tried)
    kept = Choice(plan, model, (*tried, Candidate(plan, note="taken instead")))
    return kept, source.judged(kept, optimize=optimize)


def _original_kept(source: Source, choice: Choice, speed: Paired) -> tuple[Choice, Paired]:
    """The file as it was given, because rewriting it made it slower here. Its own latency is before and after."""
    tried = (*choice.tried, Candidate(choice.plan, speed=speed, note="slower than the original, which is kept"))
    kept = Choice(Plan(ORIGINAL, "float32", ()), source.model, tried)
    return kept, replace(speed, after_ms=speed.before_ms, speedup=1.0, low=1.0, high=1.0)


def _enforce(profile: Profile, accuracy: Accuracy, speed: Paired | None, size_bytes: int) -> None:
    """Raises BudgetMissed for the first limit that does not hold. What was not measured here the device's trial will judge."""
    budget = profile.budget
    if accuracy.drop > budget.max_drop:
        raise BudgetMissed(
            f"{accuracy.metric} drops by {accuracy.drop:.4f} on the {accuracy.samples} judging samples ({accuracy.before:.4f} to {accuracy.after:.4f}), "
            f"more than the {budget.max_drop:g} allowed",
            "allow more with --max-drop, give more calibration samples, or take a profile with wider number formats",
        )
    if budget.max_latency_ms is not None and speed is not None and speed.after_ms > budget.max_latency_ms:
        raise BudgetMissed(f"the result takes {speed.after_ms:.2f} ms, more than the {budget.max_latency_ms:g} ms allowed", "allow more with --max-latency-ms")
    if budget.max_size_bytes is not None and size_bytes > budget.max_size_bytes:
        raise BudgetMissed(f"the result has {size_bytes} bytes, more than the {budget.max_size_bytes} allowed", "allow more with --max-size-bytes")


def _latency(speed: Paired | None, profile: Profile) -> dict[str, Any]:
    if speed is None:
        return {"before": None, "after": None, "device": None}
    facts = probe.facts()
    return {
        "before": round(speed.before_ms, 3),
        "after": round(speed.after_ms, 3),
        "device": facts["cpu_model"],
        "speedup": round(speed.speedup, 3),
        "interval": [round(speed.low, 3), round(speed.high, 3)],
        "runs": speed.runs,
        "warmup": speed.warmup,
        "threads": profile.runtime.intra_op_threads or facts["cores"],
        "provider": profile.providers[0].name,
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
    """Before the long work: the target can be written, and what is there is an older bundle of this name. Raises ProjectError."""
    bundle.check_name(name)
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


def read_labels(path: Path) -> bytes:
    """One class name a line. Raises SampleError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"the labels `{path}` cannot be read: {error}", "a text file in UTF-8, one class name a line") from error
    return text.encode()


def read_recipe(path: Path, profile: str) -> tuple[Step, ...]:
    """The steps in a `recipe.json`, or those of a bundle for that profile. Raises ProjectError."""
    try:
        if path.suffix == ".json":
            steps = json.loads(path.read_bytes())
        else:
            with Layout.open(path) as layout:
                steps = json.loads(layout.blob(layout.manifests()[profile].layer("recipe.json").digest))
    except (OSError, ValueError, KeyError) as error:
        raise ProjectError(f"there is no recipe for `{profile}` in `{path}`: {error}", "give a recipe.json, or a bundle that has this profile") from error
    known = isinstance(steps, list) and all(
        isinstance(step, dict) and step.get("pass") in passes.PASSES and isinstance(step.get("settings"), dict) for step in steps
    )
    if not known:
        raise ProjectError(f"`{path}` is no recipe", f'a list of {{"pass": name, "settings": {{}}}}; the passes are {", ".join(passes.PASSES)}')
    return tuple(steps)
