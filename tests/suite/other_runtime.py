"""One file, another runtime: what onnxruntime and OpenVINO answer to the same feeds. OpenVINO is in .venv-peers only.

difference(Path("model.onnx"), feeds)       # the greatest relative error of any sample, 0.03; None where OpenVINO is not installed
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from edgesdk.graph import Array, Feeds

# |theirs - ours| / |ours| over an output. OpenVINO rounds between int8 layers in its own places: a step of 1/255 here and there, which the
# layers after it carry on. Float files are computed in float32 on both sides.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2}
QUANTIZED = 0.1


class NotRead(Exception):
    """OpenVINO does not know an operator of the file."""


def difference(model: Path, feeds: Sequence[Feeds]) -> float | None:
    """Raises NotRead. onnxruntime computes what the file says, its graph optimizations off."""
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    try:
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise NotRead(str(error).strip().splitlines()[-1]) from error
    names = [output.name for output in session.get_outputs()]
    worst = 0.0
    for feed in feeds:
        theirs = compiled(dict(feed))
        for name, ours in zip(names, session.run(names, dict(feed)), strict=True):
            worst = max(worst, _relative(np.asarray(ours), theirs[compiled.output(name)]))
    return worst


def _relative(ours: Array, theirs: Array) -> float:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.linalg.norm(theirs - ours) / max(float(np.linalg.norm(ours)), 1e-9))
