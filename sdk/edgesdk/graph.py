"""ONNX models in memory: read, write, describe, run. Knows no policy.

    model = load(Path("model.onnx"))
    describe(model).operators               # {"Conv": 38, "MatMul": 13, ...}
    feeds = {"x": numpy.zeros((1, 3, 48, 320), numpy.float32)}
    answers = run(session(model), feeds)
    save(model, Path("out"))

A ``Model`` is onnx_ir's: its nodes and values are objects that know their users, which is what passes want. It is
translated from and to ONNX's protobuf at `load` and `to_bytes` only. What onnx, onnx_ir and onnxruntime raise ends here as ModelError.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import onnxruntime
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx_ir.passes import common
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from edge_agent.bundle import TensorInfo
from edgesdk import runtimes
from edgesdk.errors import ModelError

Model = onnx_ir.Model
Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

WEIGHTS_FILE = "weights.bin"
PAGE_BYTES = 4096
INLINE_BYTES = 1 << 20  # weights up to here stay inside model.onnx
MAX_BYTES = (1 << 31) - 1  # what protobuf can hold

logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns, with tracebacks, of what is expected here: shapes that cannot be inferred

_NAMES = "edgesdk.names"  # a graph's note of the tensor names in it

# ONNX Runtime release whose CPU provider computes MatMulNBits of so many bits. Tried on x86-64 with nine releases from 1.16.0 to 1.24.1: 1.22.0
# has 8 bits with `accuracy_level` 4 only. For ARM64 8 bits came with microsoft/onnxruntime#25110, labelled release:1.23.0; not tried there.
_BLOCKWISE = {4: "1.17.0", 8: "1.23.0"}


@dataclass(frozen=True)
class Summary:
    """What there is to know of a model without running it."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: dict[str, int]  # how often each occurs, subgraphs included, the most frequent first; `domain::Name` outside ONNX's own
    parameters: int  # numbers in constant tensors
    weight_bytes: int
    opset: int
    ir_version: int
    domains: dict[str, int]  # operator sets other than ONNX's own
    producer: str
    metadata: dict[str, str]


def load(path: Path) -> Model:
    """The model in that file, its external data read into memory. Raises ModelError.

    Weights that an old exporter listed among the inputs too become constants, and nodes without a name, or sharing one, get one.
    """
    proto = _read(path)
    with _translated(f"`{path}` is not a valid ONNX model", "check how it was exported; `onnx.checker.check_model` says the same"):
        onnx.checker.check_model(proto)
        model = onnx_ir.serde.deserialize_model(proto)
    common.RemoveInitializersFromInputsPass()(model)
    _name_nodes(model)
    if not inputs(model):
        raise ModelError(f"`{path}` has no inputs", "a model answers something: export it with an input")
    if not outputs(model):
        raise ModelError(f"`{path}` has no outputs", "export it with an output")
    return model


def save(model: Model, folder: Path) -> Path:
    """Write `model.onnx`, and `weights.bin` where there is much of it, into a folder. Returns the former's path."""
    graph, weights = to_bytes(model)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "model.onnx"
    target.write_bytes(graph)
    if weights is not None:
        (folder / WEIGHTS_FILE).write_bytes(weights)
    return target


def to_bytes(model: Model) -> tuple[bytes, bytes | None]:
    """`model.onnx` and `weights.bin`: the same model gives the same bytes.

    Above 1 MB of weights each tensor of a page or more begins at a page of `weights.bin`, so that it can be mapped.
    """
    proto = _to_proto(model)
    tensors = [tensor for tensor in proto.graph.initializer if tensor.data_type != onnx.TensorProto.STRING]
    sizes = {tensor.name: _constant(model, tensor.name).nbytes for tensor in tensors}
    if sum(sizes.values()) <= INLINE_BYTES:
        return proto.SerializeToString(deterministic=True), None
    weights = bytearray()
    for tensor in tensors:
        if sizes[tensor.name] < PAGE_BYTES:
            continue
        data = _constant(model, tensor.name).tobytes()
        weights.extend(bytes(-len(weights) % PAGE_BYTES))
        _point_to(tensor, offset=len(weights), length=len(data))
        weights.extend(data)
    return proto.SerializeToString(deterministic=True), bytes(weights)


def save_as(model: Model, path: Path) -> None:
    """Write one file with the weights inside, in one step. Raises ModelError where that is more than protobuf can hold."""
    with _translated("the model is too large for one file", "package it instead: a bundle keeps the weights apart"):
        data = _to_proto(model).SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def inputs(model: Model) -> tuple[TensorInfo, ...]:
    """What the model wants to be fed. Raises ModelError if an input is not a tensor."""
    return tuple(_info(value, "input") for value in model.graph.inputs if not value.is_initializer())


def outputs(model: Model) -> tuple[TensorInfo, ...]:
    """What the model answers. Raises ModelError if an output is not a tensor."""
    return tuple(_info(value, "output") for value in model.graph.outputs)


def describe(model: Model) -> Summary:
    """Its operators, parameters and versions."""
    operators = Counter(qualified(node) for node in nodes(model))
    constants = [value.const_value for graph in model.graphs() for value in graph.initializers.values() if value.const_value is not None]
    constants += [attribute.as_tensor() for node in nodes(model) if node.op_type == "Constant" and (attribute := node.attributes.get("value"))]
    return Summary(
        inputs=inputs(model),
        outputs=outputs(model),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(constant.size for constant in constants),
        weight_bytes=sum(constant.nbytes for constant in constants if constant.dtype != onnx_ir.DataType.STRING),
        opset=opset(model),
        ir_version=ir_version(model),
        domains={domain: version for domain, version in sorted(model.opset_imports.items()) if domain},
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        metadata=dict(model.metadata_props),
    )


def check(model: Model) -> None:
    """Raises ModelError if onnx's checker or onnxruntime refuses the model."""
    with _translated("the model is not valid ONNX", "this is a mistake of the pass that ran last"):
        onnx.checker.check_model(_to_proto(model))
    session(model, optimize=any(node.op_type == "DequantizeLinear" for node in model.graph))  # whose fusion is what may fail


def opset(model: Model) -> int:
    """The version of ONNX's own operators that the model uses; 0 if it uses none of them."""
    return model.opset_imports.get("", 0)


def ir_version(model: Model) -> int:
    """The lowest file version that may carry what the model uses: the older the file, the older a runtime may be."""
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    needed = int(onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))
    return max(needed, 8 if model.functions else 4)  # 4: constants need not be inputs; 8: functions


def needed_onnxruntime(opset: int, ir_version: int) -> str:
    """The oldest ONNX Runtime release, from 1.16.0 on, that reads such a file; this machine's where that is not known."""
    return runtimes.needed(opset, ir_version) or str(onnxruntime.__version__)


def oldest_onnxruntime(model: Model) -> str:
    """The oldest ONNX Runtime release, from 1.16.0 on, that reads the model and has kernels for its weights of few bits."""
    needed = [needed_onnxruntime(opset(model), ir_version(model))]
    for node in nodes(model):
        if qualified(node) == "com.microsoft::MatMulNBits":
            needed.append(_BLOCKWISE.get(node.attributes["bits"].as_int() if "bits" in node.attributes else 4, onnxruntime.__version__))
    return max(needed, key=lambda release: [int(part) for part in release.split(".")[:3] if part.isdigit()])


def clone(model: Model) -> Model:
    """A copy to change, each node with a name of its own. Constant tensors, which nobody changes, are shared."""
    copy = model.clone()
    _name_nodes(copy)
    copy.graph.meta.pop(_NAMES, None)  # so that the names given next do not depend on those given to another copy
    return copy


def answering(model: Model, names: Iterable[str]) -> Model:
    """The model with these tensors as its outputs; one whose type nothing tells is float32."""
    asked = clone(model)
    values = onnx_ir.convenience.create_value_mapping(asked.graph)
    asked.graph.outputs.clear()
    for name in names:
        values[name].type = values[name].type or onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        asked.graph.outputs.append(values[name])
    return asked


def with_opset(model: Model, minimum: int) -> Model:
    """The model at that operator set version; the model itself if it is there already. Raises ModelError if it cannot be converted."""
    if not opset(model) or opset(model) >= minimum:
        return model
    if opset(model) < 13 <= minimum and any(node.op_type == "Hardmax" and not node.domain for node in nodes(model)):
        raise ModelError("Hardmax of an opset below 13 cannot be converted exactly", "export the model again with opset 13 or newer")
    known = clone(model)
    infer_shapes(known)  # where ranks are known, onnx's converter need not surround Softmax with Flatten and Reshape
    with _translated(f"the model cannot be converted from opset {opset(model)} to {minimum}", "export it again with a newer opset"):
        raised = onnx_ir.serde.deserialize_model(onnx.version_converter.convert_version(_to_proto(known), minimum))
    if opset(model) < 11 <= minimum:
        _keep_old_resizing(raised)
    raised.metadata_props.update(model.metadata_props)
    raised.producer_name, raised.producer_version = model.producer_name, model.producer_version
    _name_nodes(raised)
    return raised


def _keep_old_resizing(raised: Model) -> None:
    """What Upsample and Resize meant before opset 11 (asymmetric; nearest: down, up where it shrinks); onnx's converter leaves today's defaults."""
    for node in nodes(raised):
        if node.op_type != "Resize" or node.domain or "coordinate_transformation_mode" in node.attributes:
            continue
        scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        shrinks = scales is not None and bool((scales < 1).any())
        nearest = "mode" not in node.attributes or node.attributes["mode"].as_string() == "nearest"
        if nearest and (scales is None or (shrinks and bool((scales > 1).any()))):
            raise ModelError(f"`{node.name}` resizes in a way that newer opsets cannot say", "export the model again with opset 11 or newer")
        for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "ceil" if shrinks else "floor")):
            node.attributes[name] = onnx_ir.AttrString(name, value)


def session(model: Model, *, optimize: bool = True, threads: int = 1, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime session on this machine's CPU, its kernels' times written to files that begin so. Raises ModelError if it does not load the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # nothing is timed here, and others want the cores
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with _translated("onnxruntime does not load the model"):
        return onnxruntime.InferenceSession(_to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, feeds: Feeds) -> dict[str, Array]:
    """The answers by name. Raises ModelError if the model fails on these feeds."""
    names = [output.name for output in session.get_outputs()]
    with _translated("the model fails on these inputs"):
        return dict(zip(names, session.run(names, _for_runtime(feeds)), strict=True))


def infer_shapes(model: Model) -> None:
    """Note the types and shapes that follow from the inputs, in place. What cannot be inferred stays unknown.

    Shapes that the file claims for tensors inside are not believed; those of its outputs are, and lengths left open there filled in.
    """
    claimed = [value.shape for value in model.graph.outputs]
    for node in nodes(model):
        for value in node.outputs:
            value.shape = value.shape if node.domain or value.is_graph_output() else None
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value, shape in zip(model.graph.outputs, claimed, strict=True):
        value.shape = _filled(shape, value.shape)


def _filled(claimed: onnx_ir.Shape | None, inferred: onnx_ir.Shape | None) -> onnx_ir.Shape | None:
    if claimed is None or inferred is None or len(claimed) != len(inferred):
        return claimed or inferred
    return onnx_ir.Shape([found if isinstance(found, int) and not isinstance(said, int) else said for said, found in zip(claimed, inferred, strict=True)])


def nodes(model: Model) -> Iterator[onnx_ir.Node]:
    """Every node, those of subgraphs and functions included."""
    yield from onnx_ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from onnx_ir.traversal.RecursiveGraphIterator(function)


def qualified(node: onnx_ir.Node) -> str:
    """`Conv`, or `com.microsoft::FusedConv` outside ONNX's own operators."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def constant(value: onnx_ir.Value | None) -> Array | None:
    """What the value always is, or None if that depends on the input."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None and value.is_initializer():
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and not producer.domain and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor().numpy()
    return None


def add_constant(graph: onnx_ir.Graph, stem: str, array: Array) -> onnx_ir.Value:
    """A new initializer under that name, or one like it where it is taken."""
    tensor = onnx_ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=fresh(graph, stem))
    value = onnx_ir.Value(name=tensor.name, shape=onnx_ir.Shape(array.shape), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def fresh(graph: onnx_ir.Graph, stem: str) -> str:
    """A name that no tensor has yet, in the graph or below it."""
    taken: set[str] | None = graph.meta.get(_NAMES)
    if taken is None:
        taken = graph.meta[_NAMES] = set(_names(graph))
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def _names(graph: onnx_ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        yield value.name or ""
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            yield value.name or ""
    for inner in graph.subgraphs():
        yield from (value.name or "" for value in (*inner.inputs, *inner.initializers.values()))


def _read(path: Path) -> onnx.ModelProto:
    """The file as protobuf, external data included."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            if (path / "oci-layout").exists():
                raise ModelError(f"`{path}` is a bundle, and no ONNX file", "`edgesdk verify` checks one, `edgesdk report` shows what is in it")
            raise ModelError(f"`{path}` is a folder", "name the .onnx file in it")
        if size > MAX_BYTES:
            raise ModelError(f"`{path}` is larger than 2 GB", "models for small computers are smaller")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"there is no model at `{path}`", "check the path") from error
    except OSError as error:
        raise ModelError(f"`{path}` cannot be read: {error.strerror}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"`{path}` is not an ONNX file, or a truncated one ({size} bytes)", "copy it again, or `edgesdk convert` it first") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"`{path}` is not an ONNX file, or a truncated one ({size} bytes)", "copy it again, or `edgesdk convert` it first")
    external = [tensor for tensor in _tensors(proto.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    total = size
    for tensor in external:
        total += _read_external(tensor, path)
        if total > MAX_BYTES:
            raise ModelError(f"`{path}` with its external data is larger than 2 GB", "models for small computers are smaller")
    return proto


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constant tensors, subgraphs' too."""
    yield from _attribute_tensors(graph)
    for each in _graphs(graph):
        yield from each.initializer


def _attribute_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for each in _graphs(graph):
        for node in each.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those below it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _read_external(tensor: onnx.TensorProto, model: Path) -> int:
    """Move a tensor's data from the file beside the model into it. Returns how many bytes. Only files in the model's folder are read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = model.resolve().parent
    lexical = PurePosixPath(location)
    if not location or lexical.is_absolute() or ".." in lexical.parts or not (folder / location).resolve().is_relative_to(folder):
        raise ModelError(f"`{model}` keeps weights in `{location[:200]}`, outside its own folder", "copy the weights beside the model and export it again")
    file = folder / location
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        size = file.stat().st_size
        length = size - offset if length < 0 else length
        if offset < 0 or offset + length > size:
            raise ModelError(f"`{location}` beside `{model}` is {size} bytes, and tensor `{tensor.name}` needs {offset + length}", "copy it again")
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
    except ValueError as error:
        raise ModelError(f"`{model}` says where tensor `{tensor.name}` lies in a way that cannot be read", "export it again") from error
    except OSError as error:
        raise ModelError(f"`{model}` keeps weights in `{location}`, which cannot be read: {error.strerror}", "copy it beside the model") from error
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    return length


def _name_nodes(model: Model) -> None:
    """Recipes name nodes, so each needs a name of its own, the same at every load."""
    taken: set[str] = set()
    for node in nodes(model):
        stem = node.name or (f"{node.op_type}_{node.outputs[0].name}" if node.outputs else node.op_type)
        name, count = stem, 0
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        node.name = name


def _to_proto(model: Model) -> onnx.ModelProto:
    with _translated("the model cannot be written as ONNX"):
        proto = onnx_ir.serde.serialize_model(model)
        proto.ir_version = ir_version(model)
        for tensor in _attribute_tensors(proto.graph):
            tensor.ClearField("name")  # means nothing, and changes when the tensor is shared with a model where it is an initializer
        return proto


def _constant(model: Model, name: str) -> onnx_ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    if tensor is None:
        raise ModelError(f"the constant `{name}` has no value", "export the model again")
    return tensor


def _point_to(tensor: onnx.TensorProto, *, offset: int, length: int) -> None:
    """Make the tensor refer to a part of `weights.bin`."""
    kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
        kept.external_data.add(key=key, value=value)
    tensor.CopyFrom(kept)


def _info(value: onnx_ir.Value, role: str) -> TensorInfo:
    if not isinstance(value.type, onnx_ir.TensorType):
        kind = "of unknown type" if value.type is None else f"a {type(value.type).__name__.removesuffix('Type').lower()}, not a tensor"
        raise ModelError(f"the {role} `{value.name}` is {kind}", "export it as tensors (scikit-learn: `zipmap=False`)")
    dtype = "string" if value.dtype == onnx_ir.DataType.STRING else np.dtype(value.type.dtype.numpy()).name
    if value.shape is None:
        raise ModelError(f"the {role} `{value.name}` has no shape, not even a rank", "export it with shapes, free lengths by name")
    return TensorInfo(value.name or "", dtype, tuple(length if isinstance(length, int) and length >= 0 else None for length in value.shape))


def _for_runtime(feeds: Feeds) -> dict[str, Array]:
    """onnxruntime takes text as objects."""
    return {name: array.astype(object) if array.dtype.kind in "US" else array for name, array in feeds.items()}


_FOREIGN = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    onnx_ir.serde.SerdeError,
    DecodeError,
    EncodeError,
    *(getattr(runtime_errors, name) for name in ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf")),
    *(getattr(runtime_errors, name) for name in ("ModelLoaded", "NoModel", "NoSuchFile", "NotImplemented", "RuntimeException")),
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def _translated(what: str, hint: str = "") -> Iterator[None]:
    """The border to onnx, onnx_ir and onnxruntime: their errors become ModelErrors, cut to the line that says something."""
    try:
        yield
    except _FOREIGN as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{what}: {said[:300]}", hint) from error
