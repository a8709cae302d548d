"""Who is compared: the file as given, what edgesdk makes of it, and what else a user could do; each a way to make a file and to run it.

    for contender in (GIVEN, REWRITTEN, PACKAGED, QUICK, *EXPERT, *INTEL):
        path = contender.make(entry, folder)
        contender.open(path)(feeds)

EXPERT is someone who knows onnxruntime's own toolkit well: eight settings, of which the fastest that loses too little is kept. INTEL is
OpenVINO with the files that it and NNCF make, by what their documentation advises.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edge_agent import probe
from edge_agent.bundle import Layout
from edgesdk import graph, packaging, passes, profiles, sampling, users_code
from edgesdk.accuracy import Run
from edgesdk.errors import EvaluationError
from edgesdk.graph import Feeds
from tests.suite import REPOSITORY, Entry

MAX_DROP = 0.01
QDQ_OPSET = 17  # what older files are raised to: per-channel QDQ needs 13


@dataclass(frozen=True, slots=True)
class Contender:
    """``make(entry, folder)`` writes a file into the folder and returns its path; ``open(path)`` gives a way to run it in one thread."""

    label: str
    make: Callable[[Entry, Path], Path]
    open: Callable[[Path], Run]


@dataclass(frozen=True, slots=True)
class Setting:
    """How onnxruntime's toolkit is called; otherwise its defaults: QDQ, min-max."""

    label: str
    dynamic: bool = False
    unsigned: bool = True  # activations
    per_channel: bool = True
    reduce_range: bool = False
    only_products: bool = False  # Conv, or MatMul where there is none
    pre_process: bool = False


SETTINGS = (
    Setting("dynamic", dynamic=True, per_channel=False),
    Setting("dynamic, per-channel, reduce_range", dynamic=True, reduce_range=True),
    Setting("static S8S8", unsigned=False),
    Setting("static U8S8"),
    Setting("static U8S8, only Conv or MatMul", only_products=True),
    Setting("static U8S8, only Conv or MatMul, reduce_range", only_products=True, reduce_range=True),
    Setting("static U8S8, pre-processed", pre_process=True),
    Setting("static U8S8, only Conv or MatMul, pre-processed", only_products=True, pre_process=True),
)


def in_onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return partial(graph.run, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


def in_openvino(path: Path, **settings: str) -> Run:
    import openvino

    one_thread = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **settings}
    return _running(openvino.Core().compile_model(path, "CPU", one_thread))


def _running(compiled: Any) -> Run:
    """An OpenVINO model of fixed shapes: a batch is fed sample by sample."""
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def once(feeds: Feeds) -> dict[str, graph.Array]:
        return dict(zip(names, request.infer(feeds, share_inputs=True).values(), strict=True))

    def run(feeds: Feeds) -> dict[str, graph.Array]:
        count = len(next(iter(feeds.values())))
        if count == 1:
            return once(feeds)
        answers = [once({name: array[index : index + 1] for name, array in feeds.items()}) for index in range(count)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in names}

    return run


def _given(entry: Entry, folder: Path) -> Path:
    return Path(shutil.copy(entry.model, folder))


def _rewritten(entry: Entry, folder: Path) -> Path:
    """The exact passes only."""
    graph.save_as(passes.apply([{"pass": name} for name in passes.SIMPLIFY], graph.load(entry.model)), folder / "model.onnx")
    return folder / "model.onnx"


def _packaged(entry: Entry, folder: Path, *, quick: bool = False) -> Path:
    """What `edgesdk package` chooses for this machine, out of its bundle; what it says of it is left beside."""
    profile = profiles.recognise(probe.facts())[0]
    settings = {"calibration": entry.calibration, "evaluate": entry.evaluate, "quick": quick, "force": True}
    (told,) = packaging.package(packaging.Request(model=entry.model, profiles=(profile,), name=entry.name, output=folder / "bundle", **settings))
    (folder / "told.json").write_text(json.dumps(told.to_dict()).replace(f"{REPOSITORY}/", ""))  # the same on every machine
    with Layout.open(folder / "bundle") as layout:
        for layer in layout.manifests()[profile.name].layers:
            (folder / layer.file).write_bytes(layout.blob(layer.digest))
    return folder / "model.onnx"


def _quantized(setting: Setting, entry: Entry, folder: Path) -> Path:
    """onnxruntime's toolkit, with the settings that its documentation leaves to the user."""
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static, shape_inference

    source, target = folder / "prepared.onnx", folder / "quantized.onnx"
    onnx.save(_raised(entry.model), source)
    if setting.pre_process:  # its symbolic shape inference fails on many real models, so it does without
        shape_inference.quant_pre_process(source, source, skip_symbolic_shape=True)
    common: dict[str, Any] = {"per_channel": setting.per_channel, "reduce_range": setting.reduce_range, "weight_type": QuantType.QInt8}
    if setting.only_products:
        there = {node.op_type for node in onnx.load(source).graph.node}
        common["op_types_to_quantize"] = ["Conv"] if "Conv" in there else ["MatMul"]
    if setting.dynamic:
        quantize_dynamic(source, target, **common)
    else:
        quantize_static(source, target, _reader(entry), activation_type=QuantType.QUInt8 if setting.unsigned else QuantType.QInt8, **common)
    return target


def _raised(path: Path) -> onnx.ModelProto:
    """What the toolkit needs and does not do: an opset that has per-channel QDQ, and weights that are initializers, not constant nodes."""
    model = onnx.load(path)
    opset = next(used.version for used in model.opset_import if not used.domain)
    raised = onnx_ir.from_proto(model if opset >= QDQ_OPSET else onnx.version_converter.convert_version(model, QDQ_OPSET))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(raised)
    return onnx_ir.to_proto(raised)


def _reader(entry: Entry) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # no types are published
        def __init__(self) -> None:
            self.feeds = iter(calibration(entry))

        def get_next(self) -> Feeds | None:
            return next(self.feeds, None)

    return Reader()


def _converted(entry: Entry, folder: Path) -> Path:
    return _saved(_for_openvino(entry), folder)


def _nncf(entry: Entry, folder: Path) -> Path:
    """`nncf.quantize` by its defaults; a transformer is told to be one, as the documentation asks."""
    import nncf

    return _saved(nncf.quantize(_for_openvino(entry), nncf.Dataset(calibration(entry)), model_type=_model_type(entry)), folder)


def _nncf_with_accuracy_control(entry: Entry, folder: Path) -> Path:
    """`nncf.quantize_with_accuracy_control` with our evaluation and budget. Operators are ranked on calibration feeds."""
    import nncf

    evaluate, feeds = users_code.load(entry.evaluate, EvaluationError), nncf.Dataset(calibration(entry))

    def validate(compiled: Any, items: Iterable[Feeds]) -> tuple[float, list[list[graph.Array]]]:
        run = _running(compiled)
        return float(np.mean(evaluate(run))), [list(run(item).values()) for item in items]

    quantized = nncf.quantize_with_accuracy_control(_for_openvino(entry), feeds, feeds, validate, max_drop=MAX_DROP, model_type=_model_type(entry))
    return _saved(quantized, folder)


def _nncf_on_onnx(entry: Entry, folder: Path) -> Path:
    """`nncf.quantize` on the ONNX file, which stays one."""
    import nncf

    onnx.save(nncf.quantize(_raised(entry.model), nncf.Dataset(calibration(entry)), model_type=_model_type(entry)), folder / "model.onnx")
    return folder / "model.onnx"


def _for_openvino(entry: Entry) -> Any:
    """Its shapes fixed to a single sample's, as OpenVINO's documentation advises: with free ones small models are a fifth to a half slower."""
    import openvino

    model = openvino.convert_model(entry.model)
    model.reshape({name: list(array.shape) for name, array in calibration(entry)[0].items()})
    return model


def _saved(model: Any, folder: Path) -> Path:
    import openvino

    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _model_type(entry: Entry) -> Any:
    import nncf

    return nncf.ModelType.TRANSFORMER if "LayerNorm" in entry.model.read_bytes().decode("latin-1") else None


def calibration(entry: Entry) -> list[Feeds]:
    """The entry's calibration feeds."""
    return list(sampling.load(entry.calibration, graph.load(entry.model)))


GIVEN = Contender("as given", _given, in_onnxruntime)
REWRITTEN = Contender("edgesdk, float32", _rewritten, in_onnxruntime)
PACKAGED = Contender("edgesdk package", _packaged, in_onnxruntime)
QUICK = Contender("edgesdk package --quick", partial(_packaged, quick=True), in_onnxruntime)
EXPERT = tuple(Contender(f"onnxruntime {setting.label}", partial(_quantized, setting), in_onnxruntime) for setting in SETTINGS)
INTEL = (
    Contender("OpenVINO float32", _converted, partial(in_openvino, INFERENCE_PRECISION_HINT="f32")),
    Contender("OpenVINO as it comes", _converted, in_openvino),
    Contender("NNCF quantize", _nncf, in_openvino),
    Contender("NNCF quantize_with_accuracy_control", _nncf_with_accuracy_control, in_openvino),
    Contender("NNCF quantize, ONNX file in onnxruntime", _nncf_on_onnx, in_onnxruntime),
)
