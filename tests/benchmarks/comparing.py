"""How often `compare` is right: a model with itself beside a busy neighbour, and with a copy of itself that is a little slower. A part of `make bench`.

    python -m tests.benchmarks.comparing                 # writes docs/comparing.md: an hour
    python -m tests.benchmarks.comparing --each 10

The slower copy does the same and, beside it, takes sines of a few numbers that nobody asked for. How many makes it so much slower is found by
many more pairs than a comparison has; nothing of it is known to what compares.
"""

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph, profiles, race, sampling
from edgesdk.comparison import RESTART_S, decided
from edgesdk.graph import Model
from edgesdk.race import Here
from edgesdk.source import model_files
from tests.benchmarks.asking import ROOT, machine

PAGE = ROOT / "docs" / "comparing.md"
MODEL = ROOT / "tests" / "data" / "resnet20_fashion.onnx"
LIMIT_S = 120.0
_HALVINGS, _CALIBRATED_S = 6, 4.0

NEIGHBOUR = """
import random, time
import numpy as np
drawn = random.Random()
a = np.ones((400, 400), np.float32)
while True:
    end = time.monotonic() + drawn.expovariate(1)
    while time.monotonic() < end:
        a @ a
    time.sleep(drawn.expovariate(1))
"""


@dataclass(frozen=True)
class Case:
    title: str
    slower: float  # than the original: 0.05
    neighbour: bool
    expected: str
    least: float  # share of the comparisons that must say so
    threads: int = 1  # 0: all cores, which wait busily


CASES = (
    Case("itself, beside a busy neighbour", 0.0, True, "no difference seen", 38 / 40),
    Case("a copy 5 % slower, beside a busy neighbour", 0.05, True, "slower", 36 / 40),
    Case("a copy 2 % slower", 0.02, False, "slower", 32 / 40),
    Case("itself, all cores, beside a busy neighbour", 0.0, True, "no difference seen", 38 / 40, threads=0),
    Case("a copy 5 % slower, all cores, beside a busy neighbour", 0.05, True, "slower", 36 / 40, threads=0),
    Case("a copy 2 % slower, all cores", 0.02, False, "slower", 32 / 40, threads=0),
)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--each", type=int, default=40, help="comparisons of each kind")
    each = arguments.parse_args().each
    profile = profiles.find("x86-cpu")
    model = graph.load(MODEL)
    feeds = list(sampling.generated(model, 4).first(4))
    lines = ["| with | said so | held to | restarts | seconds | found ratio |", "| --- | --- | --- | --- | --- | --- |"]
    for case in CASES:
        run_by = profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"intra_op_threads": case.threads})})
        with race.racing_here(run_by, feeds) as racer:
            lines.append(_tried(case, model, racer, each))
        print(lines[-1], flush=True)
    PAGE.write_text("\n".join([_HEAD, machine(), "", *lines]) + "\n")


_HEAD = """# How often a comparison is right

`python -m tests.benchmarks.comparing`, a part of `make bench`: `edgesdk compare` on a network of 19 million multiply-accumulates, one thread
unless said, verdicts at 1 %.
"""


def _tried(case: Case, model: Model, racer: Here, count: int) -> str:
    other = _slower(model, racer, case.slower) if case.slower else model
    files = model_files(model), model_files(other)
    said, restarts, seconds, ratios = 0, [], [], []
    with _neighbour() if case.neighbour else nullcontext():
        for _ in range(count):
            begin = os.times().elapsed
            raced, found, _ = decided(lambda first, second: racer.race(files[first], files[second], limit_s=RESTART_S), limit_s=LIMIT_S)
            said += found.verdict == case.expected
            restarts.append(len(raced))
            seconds.append(os.times().elapsed - begin)
            ratios.append(found.speedup)
    held = said >= case.least * count
    spread = f"{statistics.median(ratios):.4f} ({min(ratios):.4f} … {max(ratios):.4f})"
    return (
        f"| {case.title} | {said} of {count} “{case.expected}” | {math.ceil(case.least * count)}: {'yes' if held else '**no**'} "
        f"| {statistics.median(restarts):.0f} | {statistics.median(seconds):.0f} | {spread} |"
    )


def _slower(model: Model, racer: Here, share: float) -> Model:
    """By the search for a number of sines, each tried with as many pairs as four restarts have."""
    files = model_files(model)
    low, high = 1, 1
    while _ratio(racer, files, _planted(model, high)) < 1 + share:
        low, high = high, high * 2
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _ratio(racer, files, _planted(model, middle)) < 1 + share else (low, middle)
    return _planted(model, high)


def _ratio(racer: Here, files: dict[str, bytes], slower: Model) -> float:
    return 1 / statistics.median(racer.race(files, model_files(slower), limit_s=_CALIBRATED_S).speedup for _ in range(3))


def _planted(model: Model, count: int) -> Model:
    """With sines of so many hundred numbers on the way to an output that is new."""
    slow = graph.clone(model)
    inner = slow.graph
    noise = graph.add_constant(inner, "planted", np.random.default_rng(random.randrange(1 << 30)).random(count * 128).astype(np.float32))
    given = inner.inputs[0]
    nodes = [onnx_ir.node("ReduceMean", [given], {"keepdims": 0}), onnx_ir.node("Add", [noise, None])]
    nodes[1].replace_input_with(1, nodes[0].outputs[0])
    nodes += [onnx_ir.node("Sin", [nodes[1].outputs[0]])]
    nodes += [onnx_ir.node("ReduceMean", [nodes[2].outputs[0]], {"keepdims": 0})]
    for node in nodes:
        node.outputs[0].name = graph.fresh(inner, "planted")
        inner.append(node)
    last = nodes[-1].outputs[0]
    last.type, last.shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape([])
    inner.outputs.append(last)
    graph.check(slow)
    return slow


@contextmanager
def _neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
