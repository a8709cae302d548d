"""Accuracy and speed of pruned networks, ours beside what else there is, on three CNNs with real images: part of `make bench`, or

    .venv-peers/bin/python -m tests.benchmarks.pruning resnet20

From 10 to 70 % of the multiply-accumulates go, without labels or training, by 512 training images; whoever measures on these does so on three
draws of them. A model that was made by the same version is kept in .cache/suite/pruning and not made again. Results go into
docs/pruning.json, docs/pruning.md and docs/pruning.svg.
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from edge_agent import probe
from edgesdk import graph, packaging, profiles, users_code
from edgesdk.errors import EvaluationError
from tests.benchmarks import pruning_page
from tests.benchmarks.contenders import in_onnxruntime
from tests.benchmarks.pruners import OURS, PRUNERS, TIMED, TRAINING, Calibration, Case, Pruner, simplified
from tests.benchmarks.rounds import ratio, rounds
from tests.suite import FETCHED, REPOSITORY, chosen, edgesdk_digest

Done = TypeVar("Done")

KEPT = FETCHED / "pruning"
RESULTS = REPOSITORY / "docs" / "pruning.json"
TOOLS = ("onnxruntime", "torch-pruning", "torch", "onnxsim")
DRAWS = 3
IMAGES = 512
FEEDS = 8  # images that are timed


@dataclass(frozen=True, slots=True)
class Made:
    """A pruned model: its file, what share of the multiply-accumulates is left, and what it scores."""

    version: str
    file: str
    kept: float
    score: float
    seconds: float


def main(names: list[str]) -> None:
    """Measure model by model; each is written when it is done."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    profile = profiles.recognise(probe.facts())[0]
    for entry in (entry for entry in chosen(names) if entry.name in TRAINING):
        results[entry.name] = measured(Case.of(entry, profile))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        pruning_page.write(results)


def measured(case: Case) -> dict[str, Any]:
    """One network's curves and speeds, fit for JSON."""
    curves: dict[str, list[dict[str, Any]]] = {}
    timed: dict[str, Path] = {}
    for pruner in PRUNERS:
        draws = [_curve(case, pruner, draw) for draw in range(DRAWS if pruner.draws else 1)]
        curves[pruner.label] = [
            {"gone": gone, "kept": [one.kept for one in made], "scores": [one.score for one in made], "seconds": statistics.median(one.seconds for one in made)}
            for gone, made in zip(pruner.gone, zip(*draws, strict=True), strict=True)
        ]
        if pruner.timed and TIMED in pruner.gone:
            timed[pruner.label] = KEPT / draws[0][pruner.gone.index(TIMED)].file
    return {"machine": _machine(case), "score": _score(case, case.entry.model), "curves": curves, "speeds": _speeds(case, timed)}


def _curve(case: Case, pruner: Pruner, draw: int) -> list[Made]:
    """Each model from one draw of the images: as it was kept, or made now and scored."""
    wanted = edgesdk_digest() if pruner.ours else " ".join(f"{tool} {version(tool)}" for tool in TOOLS)
    measured = cache(lambda: _timed(lambda: pruner.measured(case, _drawn(case, draw))))
    curve = []
    for gone in pruner.gone:
        stem = "".join(letter if letter.isalnum() else "-" for letter in f"{pruner.label}-{gone:.0%}-{draw}")
        path = KEPT / case.entry.name / f"{stem}.onnx"
        note = path.with_suffix(".json")
        if note.exists() and (kept := Made(**json.loads(note.read_text()))).version == wanted:
            curve.append(kept)
            continue
        prune, measuring_s = measured()
        model, pruning_s = _timed(lambda prune=prune, gone=gone: prune(1 - gone))
        graph.save_as(model, path)
        made = Made(wanted, str(path.relative_to(KEPT)), case.share(model), _score(case, path), measuring_s + pruning_s)
        what = f"{case.entry.name}: {pruner.label}, {gone:.0%} gone, draw {draw}"
        print(f"{what}: {made.score:.4f} with {made.kept:.3f} left, {made.seconds:.0f} s", file=sys.stderr, flush=True)
        note.write_text(json.dumps(asdict(made)))
        curve.append(made)
    return curve


def _timed(work: Callable[[], Done]) -> tuple[Done, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began


def _drawn(case: Case, draw: int) -> Calibration:
    everything = case.training()
    picked = np.random.default_rng(draw).choice(len(everything.images), IMAGES, replace=False)
    return Calibration(everything.images[picked], everything.labels[picked])


def _score(case: Case, path: Path) -> float:
    return float(np.mean(users_code.load(case.entry.evaluate, EvaluationError)(in_onnxruntime(path))))


def _speeds(case: Case, timed: dict[str, Path]) -> dict[str, Any]:
    """Of the simplified original and of what has half of its multiply-accumulates, each as it is and in int8."""
    whole = KEPT / case.entry.name / "whole.onnx"
    graph.save_as(case.simplified, whole)
    integers = {label: _quantized(case, path) for label, path in (("int8", whole), (f"{OURS.label}, int8", timed[OURS.label]))}
    files = {"simplified": whole, **{label: _exact(path) for label, path in timed.items()}, **integers}
    images = _drawn(case, 0).images[:FEEDS]
    times = rounds({label: in_onnxruntime(path) for label, path in files.items()}, [{"image": image[None]} for image in images])
    return {
        label: {
            "latency_ms": float(np.median(times[label])) / 1e6,
            "speedup": asdict(ratio(times["simplified"], times[label])),
            "score": _score(case, files[label]),
            "rounds": len(times[label]),
        }
        for label in files
    }


def _exact(path: Path) -> Path:
    """After the exact passes, like what it is compared with."""
    target = path.with_suffix(".simplified.onnx")
    graph.save_as(simplified(graph.load(path)), target)
    return target


def _quantized(case: Case, path: Path) -> Path:
    """As `edgesdk quantize` does it for the profile."""
    made, _ = packaging.quantize(path, case.profile, scheme="int8", samples=case.entry.calibration)
    target = path.with_suffix(".int8.onnx")
    graph.save_as(made, target)
    return target


def _machine(case: Case) -> dict[str, Any]:
    facts = probe.facts()
    return {
        "cpu": facts["cpu_model"],
        "cores": facts["cores"],
        "profile": case.profile.name,
        "multiple": case.profile.pruning.channel_multiple,
        "edgesdk": edgesdk_digest(),
        **{tool: version(tool) for tool in TOOLS},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
