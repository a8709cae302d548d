"""The model as it was given, its samples and its judge, and what passes make of it: the same for every profile.

source = Source.load(Path("ocr.onnx"), calibration="samples.npz", evaluate="evaluate.py:evaluate", labels=None)
plan, model = source.build(plan)
source.loss(plan, optimize=True)
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import bundle
from edge_agent.bundle import TensorInfo
from edgesdk import graph, passes, sampling
from edgesdk.accuracy import Accuracy, Judge, Loss, Run, Scores
from edgesdk.errors import SampleError
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes.prune import Survey, carry_out, choose, survey
from edgesdk.recipe import FORMATS, Plan, Step
from edgesdk.sampling import Samples

GENERATED_SAMPLES = 32
COMPARED_SAMPLES = 8  # on which the noise of a candidate's answers is measured
_LATEST = 2  # models of a reduced format that are kept


@dataclass(frozen=True, slots=True)
class Source:
    """A model file, read and scored."""

    digest: str
    size_bytes: int
    model: Model
    samples: Samples | None  # the user's, for calibration
    held_back: tuple[Feeds, ...]  # those that calibration never sees
    judge: Judge
    run: Run
    scores: Scores  # of the original
    labels: bytes | None
    answers: tuple[dict[str, Array], ...]  # of the original, to the first that were held back
    _built: dict[str, tuple[tuple[Step, ...], Model]] = field(default_factory=dict, repr=False)
    _surveyed: dict[str, Survey] = field(default_factory=dict, repr=False)
    _scored: dict[tuple[str, bool], Scores] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path, *, calibration: str | None = None, evaluate: str | None = None, labels: Path | None = None) -> "Source":
        """Raises ModelError, SampleError or EvaluationError."""
        model = graph.load(path)
        graph.check(model)
        run = runner(model)
        samples, held_back = None, sampling.generated(model, GENERATED_SAMPLES, seed=0)
        if calibration is not None:
            samples, held_back = sampling.load(calibration, model).split()
        spared = tuple(held_back)
        feeds = spared or tuple(samples or ())
        kind = "generated inputs" if not calibration else "held-back calibration samples" if spared else "calibration samples, none held back"
        judge = Judge.load(evaluate, run, feeds, held_back_source=f"{len(feeds)} {kind}")
        return cls(
            digest=bundle.digest_of_file(path),
            size_bytes=sum(map(len, model_files(model).values())),
            model=model,
            samples=samples,
            held_back=feeds,
            judge=judge,
            run=run,
            scores=judge.scores(run),
            labels=read_labels(labels) if labels else None,
            answers=tuple(run(feed) for feed in feeds[:COMPARED_SAMPLES]),
        )

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
            before, given = given, given + json.dumps(step, sort_keys=True)
            if given not in self._built:
                changed = self._applied(step, before, model)
                same = changed is model or graph.to_bytes(changed) == graph.to_bytes(model)
                self._keep(step, given, (steps, model) if same else ((*steps, step), changed))
            steps, model = self._built[given]
        return replace(plan, steps=steps), model

    def survey(self, plan: Plan, settings: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> Survey:
        """What can be pruned of the plan's model, with these settings of the pass `prune` but for shares: found out once."""
        _, model = self.build(plan)
        return self._survey("".join(json.dumps(step, sort_keys=True) for step in plan.steps), model, settings, progress)

    def scored(self, plan: Plan, *, optimize: bool) -> Scores:
        """The judge's scores of a plan's model, asked for once."""
        if not plan.steps:
            return self.scores
        key = (json.dumps(plan.steps, sort_keys=True), optimize)
        if key not in self._scored:
            _, model = self.build(plan)
            self._scored[key] = self.judge.scores(in_batches(runner(model, optimize=optimize), self.model, model))
        return self._scored[key]

    def loss(self, plan: Plan, *, optimize: bool) -> Loss:
        """What the plan's model loses on the selection samples."""
        return self.judge.selection(self.scores, self.scored(plan, optimize=optimize))

    def judged(self, plan: Plan, *, candidates: int, optimize: bool) -> Accuracy:
        """The verdict on the judging samples; how many candidates were scored on the way is part of it."""
        return self.judge.compare(self.scores, self.scored(plan, optimize=optimize), candidates=candidates)

    def error(self, model: Model, *, optimize: bool) -> float:
        """The noise in the model's answers against their power: the mean over held-back samples and outputs; of whole numbers the share that is other."""
        run = runner(model, optimize=optimize)
        ratios = [
            _noise(answer[name], got[name]) for feed, answer in zip(self.held_back, self.answers, strict=False) for got in (run(feed),) for name in answer
        ]
        return float(np.mean(ratios))

    def _applied(self, step: Step, before: str, model: Model) -> Model:
        """Pruned to another share, a model needs no other survey."""
        if step["pass"] != "prune" or self.samples is None:
            return passes.apply([step], model, self.samples)
        passes.validate(step, model)
        shares = {of: share for of, share in step["settings"].items() if of in ("macs", "parameters")}
        found = self._survey(before, model, {name: value for name, value in step["settings"].items() if name not in shares})
        pruned = carry_out(found, choose(found, **shares))
        if pruned is not model:
            graph.check(pruned)
        return pruned

    def _survey(self, before: str, model: Model, settings: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> Survey:
        key = before + json.dumps(settings, sort_keys=True)
        if key not in self._surveyed:
            if self.samples is None:
                raise SampleError("the pass `prune` measures on samples, and there are none", "give some: `--calibration`")
            passes.validate({"pass": "prune", "settings": settings}, model)
            self._surveyed[key] = survey(model, samples=self.samples, progress=progress, **settings)
        return self._surveyed[key]

    def _keep(self, step: Step, given: str, made: tuple[tuple[Step, ...], Model]) -> None:
        """Of models in a reduced format, of which there are many, only the latest."""
        if step["pass"] in FORMATS:
            for old in [key for key, (steps, _) in self._built.items() if steps and steps[-1]["pass"] in FORMATS][: 1 - _LATEST or None]:
                del self._built[old]
        self._built[given] = made


def runner(model: Model, *, optimize: bool = True, threads: int | None = None) -> Run:
    """The model on this machine's CPU. Without ``optimize`` int8 is computed as the file says, not as this CPU's kernels do it."""
    return partial(graph.run, graph.session(model, optimize=optimize, threads=threads or os.cpu_count() or 1))


def in_batches(run: Run, given: Model, made: Model) -> Run:
    """Whoever fed batches to the model as it was given may do so where the profile has fixed its batch: they are run one after the other."""
    free = [info.name for info in graph.inputs(given) if info.shape and info.shape[0] is None]
    fixed = {info.name: info.shape[0] for info in graph.inputs(made) if info.shape and info.shape[0] is not None and info.name in free}
    lengths = set(fixed.values())
    if len(lengths) != 1 or set(fixed) != {info.name for info in graph.inputs(made)}:
        return run
    (each,) = (length for length in lengths if length is not None)

    def one_after_the_other(feeds: Feeds) -> dict[str, Array]:
        count = len(next(iter(feeds.values())))
        if count <= each or count % each:
            return run(feeds)
        parts = [run({name: array[start : start + each] for name, array in feeds.items()}) for start in range(0, count, each)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return one_after_the_other


def model_files(model: Model) -> dict[str, bytes]:
    """`model.onnx`, and `weights.bin` where there are many weights."""
    proto, weights = graph.to_bytes(model)
    return {"model.onnx": proto, **({"weights.bin": weights} if weights else {})}


def read_labels(path: Path) -> bytes:
    """One class name a line. Raises SampleError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise SampleError(f"the labels `{path}` cannot be read: {reason}", "a text file in UTF-8, one class name a line") from error
    if not text.strip():
        raise SampleError(f"`{path}` names no class", "one class name a line")
    return text.encode()


def mislabelled(labels: bytes, outputs: Iterable[TensorInfo]) -> str:
    """What is odd about labels beside such outputs; nothing where some axis has as many, or is free."""
    count, axes = len(labels.decode().splitlines()), [length for info in outputs for length in info.shape[1:]]
    return f"{count} labels, and no output has so many classes: is it the right file?" if axes and None not in axes and count not in axes else ""


def _noise(expected: Array, got: Array) -> float:
    """1, as of an answer of nothing, where what is no number differs."""
    if expected.shape != got.shape:
        return 1.0
    if expected.dtype.kind != "f":
        return float((expected != got).mean()) if expected.size else 0.0
    before, after = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(before)
    if not np.array_equal(before[~finite], after[~finite], equal_nan=True) or not np.isfinite(after[finite]).all():
        return 1.0
    power, noise = float((before[finite] ** 2).sum()), float(((before[finite] - after[finite]) ** 2).sum())
    return noise / power if power else float(noise > 0)
