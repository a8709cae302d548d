"""One file, another runtime: what onnxruntime and OpenVINO answer to the same feeds. OpenVINO is in .venv-peers only.

differences(Path("model.onnx"), feeds, original)       # [Difference(other=0.03, own=0.05), ...]; none where OpenVINO is not installed
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from edgesdk.graph import Array, Feeds

# |theirs - ours| / |ours| over an output. OpenVINO rounds between int8 layers in its own places: a step of 1/255 here and there, which the
# layers after it carry on. So a quantized file may differ by as much as that, or by what quantizing itself did on both sides: twice the
# file's own distance from the original. Float files are computed in float32 on both sides.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2}
QUANTIZED = 0.1
TWICE = 2.0


class NotRead(Exception):
    """OpenVINO does not know an operator of the file."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one output for one feed."""

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
    names = [output.name for output in session.get_outputs()]
    found = []
    for feed in feeds:
        theirs = compiled(dict(feed))
        for name, ours, given in zip(names, session.run(names, dict(feed)), before.run(names, dict(feed)), strict=True):
            found.append(Difference(_relative(np.asarray(ours), theirs[compiled.output(name)]), _relative(np.asarray(given), np.asarray(ours))))
    return found


def _session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _relative(ours: Array, theirs: Array) -> float:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.linalg.norm(theirs - ours) / max(float(np.linalg.norm(ours)), 1e-9))
