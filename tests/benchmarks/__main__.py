"""`make bench`: our figures beside what a user would pick instead, in one run, alternating, as ratios.

Absolute times on a shared machine mean little; each line gives the ratio's median with its 95 % interval, the pairs and the warm-up.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime

from edge_agent import connect
from edgesdk import graph, passes, sampling
from edgesdk.benchmark import Paired, compare
from edgesdk.source import runner
from tests import digits
from tests.benchmarks.calibration import calibration_costs

TWO_COMMANDS = """
import typer
app = typer.Typer()
@app.command()
def one(name: str) -> None: "First."
@app.command()
def two(name: str) -> None: "Second."
app()
"""


def main() -> None:
    """Each benchmark in turn; a failure of one is the program's."""
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in (help_text, simplified, asked_through_the_agent, calibration_costs):
            benchmark(Path(folder))


def help_text(folder: Path) -> None:
    """`edgesdk --help` against the `--help` of a typer program with two commands."""
    program = folder / "two_commands.py"
    program.write_text(TWO_COMMANDS)
    ours, theirs = [sys.executable, "-m", "edgesdk.cli", "--help"], [sys.executable, str(program), "--help"]
    told("edgesdk --help / a two-command typer program's (issue: at most 1.5)", compare(_running(ours), _running(theirs), [0], warmup=2, most=30, limit_s=60))


def simplified(folder: Path) -> None:
    """The exact rewriting, and onnxruntime's own static quantization with its defaults, against the file as given."""
    given = graph.load(digits.DATA / "mobilenet_fashion.onnx")
    feeds = list(sampling.generated(given, 8, seed=0))
    ours = passes.apply([{"pass": name} for name in passes.SIMPLIFY], given)
    graph.save_as(given, folder / "given.onnx")
    _quantize_static(folder / "given.onnx", folder / "static.onnx", feeds)
    original = runner(given, threads=1)
    told("mobilenet as given / simplified (above 1: ours is faster)", compare(original, runner(ours, threads=1), feeds))
    told("mobilenet as given / onnxruntime quantize_static", compare(original, runner(graph.load(folder / "static.onnx"), threads=1), feeds))


def asked_through_the_agent(folder: Path) -> None:
    """One question through the agent's socket against `session.run` in this process, on the same file and feeds."""
    os.environ["EDGE_AGENT_HOME"] = str(folder / "agent")
    model = digits.write(folder)
    for verb in (["package", str(model), "-p", _own_profile(), "--name", "digits", "-o", str(folder / "digits")], ["deploy", "local", str(folder / "digits")]):
        subprocess.run([sys.executable, "-m", "edgesdk.cli", *verb], check=True, capture_output=True)
    try:
        feeds = [{"image": digits.images()[0][:1]}]
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        with connect("digits") as asked:
            told("asked over the Unix socket / session.run in this process", compare(asked, lambda feed: session.run(None, feed), feeds, most=2000))
    finally:
        subprocess.run([sys.executable, "-m", "edge_agent", "stop"], check=True, capture_output=True)


def told(what: str, result: Paired) -> None:
    print(
        f"{what}: {result.speedup:.2f} ({result.low:.2f} … {result.high:.2f}), {result.before_ms:.3f} / {result.after_ms:.3f} ms, "
        f"{result.runs} pairs after {result.warmup} of warm-up",
        flush=True,
    )


def _running(command: list[str]) -> Callable[[int], object]:
    return lambda _: subprocess.run(command, check=True, capture_output=True)


def _quantize_static(source: Path, target: Path, feeds: list[graph.Feeds]) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # no types are published
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> graph.Feeds | None:
            return next(self.feeds, None)

    quantization.quantize_static(source, target, Reader(), per_channel=True)


def _own_profile() -> str:
    return "x86-cpu" if os.uname().machine == "x86_64" else "arm-cpu"


if __name__ == "__main__":
    main()
