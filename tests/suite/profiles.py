"""`make suite`: every model of the suite packaged for every profile, and each result proven. For some models

    python -m tests.suite.profiles rec det

A result must be valid, load and run in onnxruntime, obey its profile and keep the budget; a pair may be refused only if docs/refused.md
lists it. Two pairs at a time; one that was done by this very edgesdk is not done again, so it can be interrupted.
"""

import json
import multiprocessing
import re
import sys
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import edgesdk
from edge_agent.bundle import Layout
from edgesdk import graph, packaging, profiles, recipe, sampling
from edgesdk.errors import BudgetMissed, ConstraintViolated
from tests.suite import FETCHED, REPOSITORY, SUITE, Entry, chosen, edgesdk_digest, other_runtime

KEPT = FETCHED / "profiles"
AT_ONCE = 2
MOST_REFUSED = 8
FEEDS = 16  # calibration samples that onnxruntime and OpenVINO are compared on


@dataclass(frozen=True, slots=True)
class Pair:
    """What became of a model and a profile. ``refused`` has the sentence with which it was, ``wrong`` what must not be."""

    model: str
    profile: str
    edgesdk: str
    seconds: float
    recipe: str = ""
    drop: float | None = None
    size: float | None = None  # of the original's
    openvino: str = ""  # the greatest relative difference of its answers to the same file; or why there is none
    refused: str = ""
    wrong: str = ""


def main(names: list[str]) -> None:
    """Do what is not done, tell all, and exit with what is wrong."""
    pairs = [(entry, profile) for entry in chosen(names) for profile in profiles.names()]
    context = multiprocessing.get_context("spawn")
    done = []
    with ProcessPoolExecutor(AT_ONCE, mp_context=context, max_tasks_per_child=1) as pool:
        for pair in pool.map(_kept, *zip(*pairs, strict=True)):
            done.append(pair)
            print(_line(pair), file=sys.stderr, flush=True)
    print("| model | profile | recipe | drop | size | OpenVINO | s |", "| --- | --- | --- | --- | --- | --- | --- |", *map(_line, done), sep="\n")
    if problems := list(wrong(done)):
        sys.exit("\n".join(problems))


def wrong(pairs: Iterable[Pair]) -> list[str]:
    """In sentences: results that are not as they should be, and refusals that differ from the list."""
    known, done = refused(), {(titles()[pair.model], pair.profile): pair for pair in pairs}
    found = [f"{model} for {profile}: {pair.wrong}" for (model, profile), pair in done.items() if pair.wrong]
    found += [
        f"{model} for {profile} is refused and not listed: {pair.refused}"
        for (model, profile), pair in done.items()
        if pair.refused and (model, profile) not in known
    ]
    found += [
        f"{model} for {profile} is listed as refused and is not" for model, profile in known if (model, profile) in done and not done[model, profile].refused
    ]
    if len(known) > MOST_REFUSED:
        found.append(f"docs/refused.md lists {len(known)} pairs, more than {MOST_REFUSED}")
    return found


def refused() -> set[tuple[str, str]]:
    """The pairs that docs/refused.md lists: the model's title and the profile."""
    page = (REPOSITORY / "docs" / "refused.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| (.+?) \| `([a-z0-9-]+)` \|", page, re.MULTILINE))


def titles() -> dict[str, str]:
    return {entry.name: entry.title for entry in SUITE}


def packaged(request: packaging.Request, name: str, *, digest: str) -> Pair:
    """Package for the request's one profile and prove the result."""
    (profile,) = request.profiles
    began = time.monotonic()

    def pair(**outcome: Any) -> Pair:
        return Pair(name, profile.name, digest, time.monotonic() - began, **outcome)

    try:
        (told,) = packaging.package(request)
    except (BudgetMissed, ConstraintViolated) as error:
        return pair(refused=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other pairs go on
        return pair(wrong=_described(error))
    try:
        openvino = _prove(request, told)
    except Exception as error:  # noqa: BLE001
        return pair(wrong=_described(error))
    shrunk = told.size_bytes["after"] / told.size_bytes["before"]
    return pair(recipe=recipe.scheme_of(told.recipe) if told.recipe else "as given", drop=told.accuracy.drop, size=shrunk, openvino=openvino)


def _kept(entry: Entry, profile: str) -> Pair:
    """As an earlier run of the same edgesdk left it, or done now."""
    note, digest = KEPT / f"{entry.name}-{profile}.json", edgesdk_digest()
    if note.exists() and (kept := Pair(**json.loads(note.read_text()))).edgesdk == digest:
        return kept
    request = packaging.Request(
        model=entry.model,
        profiles=(profiles.find(profile),),
        name=entry.name,
        output=KEPT / f"{entry.name}-{profile}",
        calibration=entry.calibration,
        evaluate=entry.evaluate,
        force=True,
    )
    pair = packaged(replace(request, quick=True), entry.name, digest=digest)
    if pair.refused:  # what a quick search finds is proof enough, what it does not find is none
        pair = packaged(request, entry.name, digest=digest)
    KEPT.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asdict(pair)))
    return pair


def _prove(request: packaging.Request, told: packaging.Packaged) -> str:
    """Apart from what `package` says of itself: raises AssertionError or whatever onnx and onnxruntime raise. Returns how far OpenVINO is off."""
    (profile,) = request.profiles
    files = request.output.with_name(f"{request.output.name}-files")
    files.mkdir(exist_ok=True)
    with Layout.open(request.output) as layout:
        for layer in layout.manifests()[profile.name].layers:
            (files / layer.file).write_bytes(layout.blob(layer.digest))
    model = files / "model.onnx"
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert request.calibration is not None
    feeds = list(sampling.load(request.calibration, graph.load(request.model)).first(FEEDS))
    for answer in session.run(None, dict(feeds[0])):
        assert answer.dtype.kind != "f" or np.isfinite(answer).all(), "it answers with what is no number"
    edgesdk.verify(request.output)
    assert told.violations == ()
    assert told.accuracy.drop <= profile.budget.max_drop, f"it loses {told.accuracy.drop}"
    return _compared(model, feeds, request.model, recipe.scheme_of(told.recipe))


def _compared(model: Path, feeds: list[graph.Feeds], original: Path, scheme: str) -> str:
    try:
        found = other_runtime.differences(model, feeds, original)
    except other_runtime.NotRead as error:
        return f"not read: {error}"
    for each in found:
        assert each.within(scheme), f"OpenVINO's answers are {each.other:.4f} off, onnxruntime's {each.own:.4f} from the original's"
    if not found:
        return ""
    written, rewritten = max(each.other for each in found), max(each.rewritten for each in found)
    return f"{written:.4f}" + (f" (transformed {rewritten:.4f})" if not all(replace(each, other=each.rewritten).within(scheme) for each in found) else "")


def _described(error: Exception) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())


def _line(pair: Pair) -> str:
    kept = (
        [pair.recipe, f"{pair.drop:.4f}", f"{pair.size:.2f}×", pair.openvino]
        if pair.drop is not None and pair.size is not None
        else [pair.wrong or f"refused: {pair.refused}", "", "", ""]
    )
    return f"| {' | '.join([pair.model, pair.profile, *kept, f'{pair.seconds:.0f}'])} |"


if __name__ == "__main__":
    main(sys.argv[1:])
