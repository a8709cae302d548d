"""Part of `make suite`: a fifth of every model's multiply-accumulates is taken away, and each result proven. For some models

    python -m tests.suite.prune rec det

What is left has to be valid, run, and answer in the same shapes as the original on inputs of several lengths; whatever was left whole has to
be named with the reason.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgesdk import costs, graph, passes, profiles, sampling, users_code
from edgesdk.errors import EvaluationError
from edgesdk.graph import Feeds, Model
from edgesdk.passes._dimensions import Whole, analyse
from edgesdk.passes.prune import Survey, carry_out, choose, survey
from edgesdk.sampling import Samples
from tests.suite import Entry, chosen

KEEP = 0.8
SAMPLES = 64
WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "LSTM": 2, "GRU": 2}  # operator → the place of the weights that sum over channels


@dataclass(frozen=True, slots=True)
class Pruned:
    """A simplified model and what is left of it."""

    given: Model
    made: Model
    kept: float  # of the multiply-accumulates
    whole: tuple[Whole, ...]
    seconds: float


def main(names: list[str]) -> None:
    """All in turn; what is wrong with one is an AssertionError."""
    print("| model | multiply-accumulates left | score before | after | left whole | s |", "| --- " * 6 + "|", sep="\n")
    for entry in chosen(names):
        model = graph.load(entry.model)
        done = pruned(model, sampling.load(entry.calibration, model).first(SAMPLES))
        before, after = (f"{_score(entry, model):.4f}" for model in (done.given, done.made))
        print(f"| {' | '.join([entry.name, f'{done.kept:.3f}', before, after, _reasons(done.whole), f'{done.seconds:.0f}'])} |", flush=True)


def pruned(model: Model, samples: Samples) -> Pruned:
    """Prune and prove. Raises AssertionError, or whatever onnx and onnxruntime raise."""
    began = time.monotonic()
    given = passes.apply([{"pass": name} for name in passes.SIMPLIFY], model)
    found = survey(given, samples=samples, multiple=profiles.find("x86-cpu").pruning.channel_multiple)
    made = carry_out(found, choose(found, macs=KEEP))
    seconds = time.monotonic() - began
    _prove_valid(made, given)
    for feeds in _feeds(given, samples):
        _prove_same_shapes(made, given, feeds)
    _prove_all_named(given, found)
    first = next(iter(samples))
    left, full = (sum(costs.macs(each, costs.shapes(each, first)).values()) for each in (made, given))
    assert left <= KEEP * full, f"{left / full:.3f} of the multiply-accumulates are left"
    return Pruned(given, made, left / full, found.whole, seconds)


def _reasons(whole: tuple[Whole, ...]) -> str:
    """What was left whole, by why."""
    named: dict[str, list[str]] = {}
    for one in whole:
        named.setdefault(one.reason, []).append(f"`{one.name}`")
    return "; ".join(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}" for reason, names in named.items())


def _score(entry: Entry, model: Model) -> float:
    session = graph.session(model)
    return float(np.mean(users_code.load(entry.evaluate, EvaluationError)(lambda feeds: graph.run(session, feeds))))


def _prove_valid(made: Model, given: Model) -> None:
    with tempfile.TemporaryDirectory() as folder:
        graph.save_as(made, Path(folder, "model.onnx"))
        onnx.checker.check_model(Path(folder, "model.onnx"), full_check=True)
    assert graph.inputs(made) == graph.inputs(given)
    assert graph.outputs(made) == graph.outputs(given)


def _feeds(given: Model, samples: Samples) -> Iterator[Feeds]:
    """A sample; two at once, where the batch is free; and one of another length where other lengths are."""
    first = next(iter(samples))
    yield first
    wanted = graph.inputs(given)
    if all(info.shape[0] is None for info in wanted):
        yield {name: np.concatenate([array, array]) for name, array in first.items()}
    if any(length is None for info in wanted for length in info.shape[1:]):
        yield next(iter(sampling.generated(given, 1)))


def _prove_same_shapes(made: Model, given: Model, feeds: Feeds) -> None:
    answers, expected = (graph.run(graph.session(model), feeds) for model in (made, given))
    assert {name: array.shape for name, array in answers.items()} == {name: array.shape for name, array in expected.items()}
    assert all(np.isfinite(array).all() for array in answers.values() if array.dtype.kind == "f"), "it answers with what is no number"


def _prove_all_named(given: Model, found: Survey) -> None:
    """The channels of each weighted node can go, or are said to be left whole, by their own name or as those of a group."""
    named = {each.group.name for each in found.prunable} | {one.name for one in found.whole}
    told = {part.node for group in analyse(given).groups if group.name in named for part in (*group.makers, *group.others)}
    for node in given.graph:
        if node.op_type in WEIGHTED and graph.constant(node.inputs[WEIGHTED[node.op_type]]) is not None:
            assert node.name in told or {value.name for value in node.outputs} & named, f"of the channels of `{node.name}` nothing is said"


if __name__ == "__main__":
    main(sys.argv[1:])
