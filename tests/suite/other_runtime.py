"""One file, another runtime: what onnxruntime and OpenVINO answer to the same feeds. OpenVINO is in .venv-peers only.

differences(Path("model.onnx"), feeds, original)       # [Difference(other=0.03, own=0.05)]; none where OpenVINO is not installed
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from edgesdk.graph import Array, Feeds

# |theirs - ours| / |ours| of an output over all feeds: of a single one a step of rounding may turn an answer that was a near thing, such as
# a letter. OpenVINO rounds between int8 layers in its own places: a step of 1/255 here and there, which the layers after it carry on. So a
# quantized file may differ by as much as that, or by what quantizing itself did on both sides: twice the file's own distance from the
# original. Float files are computed in float32 on both sides.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2}
QUANTIZED = 0.1
TWICE = 2.0
_TINY = 1e-18


class NotRead(Exception):
    """OpenVINO does not know an operator of the file."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one output."""

    other: float  # of OpenVINO's answer from onnxruntime's, the same file
    own: float  # of onnxruntime's answer from the original's

    def within(self, scheme: str) -> bool:
        """Whether it is no more than the scheme explains."""
        return self.other <= (TOLERANCE[scheme] if scheme in TOLERANCE else max(QUANTIZED, TWICE * self.own))


def differences(model: Path, feeds: Sequence[Feeds], original: Path) -> list[Difference]:
    """Raises NotRead. onnxruntime computes what the file says, its graph optimizations off."""
    if importlib.util.find_spec("openvino") is None:
        return []
    import openvino

    session, before = _session(model), _session(original)
    try:
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise NotRead(str(error).strip().splitlines()[-1]) from error
    squares = {output.name: np.zeros(4) for output in session.get_outputs()}
    for feed in feeds:
        theirs = compiled(dict(feed))
        for name, ours, given in zip(squares, session.run(None, dict(feed)), before.run(list(squares), dict(feed)), strict=True):
            squares[name] += [*_squares(np.asarray(ours), theirs[compiled.output(name)]), *_squares(np.asarray(given), np.asarray(ours))]
    return [Difference(*(float(np.sqrt(off / max(size, _TINY))) for off, size in found.reshape(2, 2))) for found in squares.values()]


def _session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _squares(ours: Array, theirs: Array) -> tuple[float, float]:
    """Of what they differ by, and of ours."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.square(theirs - ours).sum()), float(np.square(ours).sum())
