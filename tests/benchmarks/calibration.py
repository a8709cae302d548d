"""What measuring ranges costs beside onnxruntime's own calibrators: seconds and the greatest memory, each in a process of its own.

    python -m tests.benchmarks.calibration [COUNT]

The model is PP-OCRv4 recognition where `make suite-data` was run, else the small one of the repository, simplified; the tensors
are all of its float32 activations, and the ranges are worked out to the end. onnxruntime keeps every tensor of every sample to count
percentiles, so both are given as many samples as leave its process half of the memory that is free, or COUNT; ours then gets 128, too.
"""

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnxruntime.quantization import calibrate

from edgesdk import calibration, graph, passes, sampling
from edgesdk.graph import Feeds
from tests.digits import DATA
from tests.suite import SUITE

SAMPLES = 128
ROUNDS = {"percentile": 1, "minmax": 3}  # onnxruntime's percentiles take minutes
AT_MOST = {"percentile": "time 0.5, memory 0.15", "minmax": "time 1.1"}
THEIRS = {"percentile": calibrate.CalibrationMethod.Percentile, "minmax": calibrate.CalibrationMethod.MinMax}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process, its imports aside."""

    seconds: float
    peak_bytes: int
    tensors: int


def calibration_costs(folder: Path, count: int | None = None) -> None:
    """Print a line for each method."""
    name, sample_bytes = _prepare(folder)
    fitting = min(SAMPLES, count or max(1, _free_bytes() // (2 * sample_bytes)))
    for method, rounds in ROUNDS.items():
        pairs = [(_cost("ours", method, folder, fitting), _cost("theirs", method, folder, fitting)) for _ in range(rounds)]
        ours, theirs = (list(column) for column in zip(*pairs, strict=True))
        assert ours[0].tensors == theirs[0].tensors
        seconds = statistics.median(one.seconds / other.seconds for one, other in pairs)
        memory = statistics.median(one.peak_bytes / other.peak_bytes for one, other in pairs)
        print(
            f"calibration of {name}, {method}, {fitting} samples, {ours[0].tensors} tensors, ours / onnxruntime's: time {seconds:.2f}, memory {memory:.2f} "
            f"(issue: at most {AT_MOST[method]}); {_told(ours)} / {_told(theirs)}, {rounds} alternating runs",
            flush=True,
        )
        if fitting < SAMPLES:
            print(f"  ours with {SAMPLES} samples: {_told([_cost('ours', method, folder, SAMPLES)])}", flush=True)


def _prepare(folder: Path) -> tuple[str, int]:
    """Write model.onnx and samples.npz. Returns the model's name and what its tensors take for one sample."""
    entry = next(entry for entry in SUITE if entry.name == "rec")
    if entry.model.exists():
        given = graph.load(entry.model)
        samples = sampling.load(entry.calibration, given).first(SAMPLES)
    else:
        given = graph.load(DATA / "mobilenet_fashion.onnx")
        samples = sampling.generated(given, SAMPLES)
    model = passes.apply([{"pass": step} for step in passes.SIMPLIFY], graph.with_opset(given, 17))
    graph.save_as(model, folder / "model.onnx")
    feeds = list(samples)
    np.savez(folder / "samples.npz", **{name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]})  # type: ignore[arg-type]
    tensors = calibration._bytes(model, calibration._float_tensors(model), feeds[0])
    return entry.model.stem if entry.model.exists() else "mobilenet_fashion", sum(tensors.values())


def _free_bytes() -> int:
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) << 10


def _cost(whose: str, method: str, folder: Path, count: int) -> Cost:
    command = [sys.executable, "-m", "tests.benchmarks.calibration", whose, method, str(folder), str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Cost(**json.loads(done.stdout))


def _told(costs: list[Cost]) -> str:
    return f"{statistics.median(cost.seconds for cost in costs):.1f} s and {statistics.median(cost.peak_bytes for cost in costs) / 1e6:,.0f} MB"


def _measure(whose: str, method: str, folder: Path, count: int) -> None:
    """In the process that is measured."""
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # onnxruntime's calibrators talk
        tensors = (_ours if whose == "ours" else _theirs)(method, folder, count)
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": time.perf_counter() - begun, "peak_bytes": int(peak.split()[1]) << 10, "tensors": tensors}))


def _ours(method: str, folder: Path, count: int) -> int:
    model = graph.load(folder / "model.onnx")
    samples = sampling.load(folder / "samples.npz", model).first(count)
    found = calibration.ranges(model, calibration._float_tensors(model), samples, histograms=method in calibration.NEED_HISTOGRAMS)
    return len([calibration.clipped(seen, method, symmetric=True) for seen in found.values()])  # type: ignore[arg-type]


def _theirs(method: str, folder: Path, count: int) -> int:
    samples = sampling.load(folder / "samples.npz", graph.load(folder / "model.onnx")).first(count)
    theirs = calibrate.create_calibrator(
        folder / "model.onnx", augmented_model_path=str(folder / "augmented.onnx"), calibrate_method=THEIRS[method], extra_options={"symmetric": True}
    )
    theirs.collect_data(_Reader(samples))
    return len(list(theirs.compute_data().keys()))


class _Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]  # no types are published
    def __init__(self, samples: sampling.Samples) -> None:
        self.feeds = iter(samples)

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


def main(arguments: list[str]) -> None:
    """The benchmark alone, or one process of it."""
    if len(arguments) == 4:
        whose, method, folder, count = arguments
        _measure(whose, method, Path(folder), int(count))
    else:
        with tempfile.TemporaryDirectory() as made:
            calibration_costs(Path(made), int(arguments[0]) if arguments else None)


if __name__ == "__main__":
    main(sys.argv[1:])
