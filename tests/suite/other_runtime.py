"""One file, another runtime: what onnxruntime and OpenVINO answer to the same feeds. OpenVINO is in .venv-peers only.

differences(Path("model.onnx"), feeds, original)       # [Difference(other=0.03, own=0.05, rewritten=0.03)]; none where OpenVINO is not installed
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from edgesdk.graph import Feeds

# |theirs - ours| / |ours| of an output over all feeds: of a single one a step of rounding may turn an answer that was a near thing, such as
# a letter. OpenVINO rounds between int8 layers in its own places: a step of 1/255 here and there, which the layers after it carry on. So a
# quantized file may differ by as much as that, or by what quantizing itself did on both sides: twice the file's own distance from the
# original. Float files are computed in float32 on both sides.
#
# Both compute what the file says: onnxruntime without its graph optimizations, OpenVINO without its low-precision transformations. With them
# OpenVINO 2026.4 loses the text of the detector in int8 (0.99 off, without them 0.08; the gate of a squeeze-and-excite block, read beside its
# product, is another than read alone), so that is told and not judged.
AS_WRITTEN = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
REWRITTEN = {"INFERENCE_PRECISION_HINT": "f32"}
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
    rewritten: float  # as other, after OpenVINO's low-precision transformations

    def within(self, scheme: str) -> bool:
        """Whether it is no more than the scheme explains."""
        return self.other <= (TOLERANCE[scheme] if scheme in TOLERANCE else max(QUANTIZED, TWICE * self.own))


def differences(model: Path, feeds: Sequence[Feeds], original: Path) -> list[Difference]:
    """Raises NotRead."""
    if importlib.util.find_spec("openvino") is None:
        return []
    import openvino

    session, before, core = _session(model), _session(original), openvino.Core()
    try:
        readers = [core.compile_model(model, "CPU", settings) for settings in (AS_WRITTEN, REWRITTEN)]
    except RuntimeError as error:
        raise NotRead(str(error).strip().splitlines()[-1]) from error
    names = [output.name for output in session.get_outputs()]
    off = {name: np.zeros(5) for name in names}  # squares: of theirs from ours, two ways; of ours; of ours from the original's; of those
    for feed in feeds:
        answers = [reader(dict(feed)) for reader in readers]
        for name, ours, given in zip(names, session.run(names, dict(feed)), before.run(names, dict(feed)), strict=True):
            ours, given = np.asarray(ours, np.float64), np.asarray(given, np.float64)
            theirs = (answer[reader.output(name)] for answer, reader in zip(answers, readers, strict=True))
            off[name] += [np.square(array).sum() for array in (*(each - ours for each in theirs), ours, ours - given, given)]
    return [
        Difference(*(float(np.sqrt(part / max(whole, _TINY))) for part, whole in ((written, size), (own, before_size), (rewritten, size))))
        for written, rewritten, size, own, before_size in off.values()
    ]


def _session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
