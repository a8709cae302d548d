"""What AMD Quark 0.13 says of files for the DPU. Runs under .venv-quark, on a folder of NAME.onnx with NAME.npz, one feed each.

    python simulate.py FOLDER

Writes NAME.simulated.npz: what every QuantizeLinear answers in Quark's simulation, from a file that says nothing of the DPU's
approximations itself; and a JSON object on the last line of stdout: for each NAME the positions that Quark's adjusting pass would move.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization.onnx_model import ONNXModel
from quark.shapeshifter.passes.onnx_xint8_adjust import QuantPosManager
from quark.shapeshifter.passes.onnx_xint8_simulate import SimulateDPU

APPROXIMATED = ("HardSigmoid", "AveragePool", "GlobalAveragePool")
ADJUSTMENTS = ("align_concat", "align_pool", "align_pad", "align_slice", "adjust_shift_read", "adjust_shift_write", "adjust_shift_cut")
ADJUSTMENTS += ("adjust_shift_bias", "adjust_hard_sigmoid", "adjust_shift_swish")
CONVERSIONS = ("leaky_relu_to_dpu_version", "hard_sigmoid_to_dpu_version", "avg_pool_to_dpu_version", "reduce_mean_to_dpu_version", "clip_to_dpu_version")


class Recording(QuantPosManager):  # type: ignore[misc]
    """Writes down what it would set."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self.moved: list[str] = []

    def _set_pos(self, node: onnx.NodeProto, new_pos: int) -> None:
        self.moved.append(f"{node.name} from {self._get_pos(node)} to {new_pos}")


def moved(model: onnx.ModelProto) -> list[str]:
    manager = Recording(model)
    for name in ADJUSTMENTS:
        getattr(manager, f"_{name}")()
    return manager.moved


def simulated(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """Every QuantizeLinear's answer, by the name of the tensor."""
    plain = onnx.shape_inference.infer_shapes(without_corrections(model))
    dpu = SimulateDPU(plain, [])
    for name in CONVERSIONS:
        getattr(dpu, f"_convert_{name}")()
    sorted_model = ONNXModel(dpu.model)
    sorted_model.topological_sort()
    made = sorted_model.model
    names = [node.output[0] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    del made.graph.output[:]
    made.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds), strict=True))


def without_corrections(model: onnx.ModelProto) -> onnx.ModelProto:
    """The factors near 1 behind what the DPU approximates are taken out: it is Quark's part to put them in."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    scalars = {each.name for each in plain.graph.initializer if not each.dims}
    made_by = {output: node for node in plain.graph.node for output in node.output}
    for node in list(plain.graph.node):
        if node.op_type == "Mul" and node.input[0] in made_by and made_by[node.input[0]].op_type in APPROXIMATED and node.input[1] in scalars:
            made_by[node.input[0]].output[0] = node.output[0]
            plain.graph.node.remove(node)
    return plain


def main(folder: Path) -> None:
    found = {}
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        found[path.stem] = moved(model)
        with np.load(path.with_suffix(".npz")) as feeds:
            np.savez(path.with_suffix(".simulated.npz"), **simulated(model, dict(feeds)))
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
