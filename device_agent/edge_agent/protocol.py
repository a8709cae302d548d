"""Tensors of the Open Inference Protocol v2: JSON, and the extension that puts them as binary behind the JSON.

    head, buffers = encode_request({"x": array})                   # client
    request = decode_request(body, header_bytes=len(head))         # server: request.feeds["x"]
    head, buffers = encode_response("ocr", "3", outputs, request)  # server
    response = decode_response(body, header_bytes)                 # client: response.outputs["y"]

Both sides are strict: what is malformed, too long or too short is a ProtocolError that says which tensor and what was expected,
never another exception, and no memory is taken for what a shape only claims. JSON has no NaN and no infinity: they are
refused in both directions, with the advice to use binary tensors, rather than turned into something else silently.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.bundle import TensorInfo
from edge_agent.frames import Bytes

Array = NDArray[Any]

# The protocol's names, and numpy's as bundle.json has them.
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "string",
}
_DATATYPE_OF = {dtype: datatype for datatype, dtype in DATATYPES.items()}

MAX_JSON_BYTES = 16 << 20  # as objects of Python they take some thirty times as much
_MAX_RANK = 32  # numpy's, up to 1.26
_MAX_DIMENSION = (1 << 31) - 1
_MAX_TENSORS = 1024
_ALIGNMENT = 64  # the binary part begins at a multiple: no copy is needed to read it as an array
# Python 3.9 reads a number of a million digits in quadratic time.
_JSON_KINDS: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
_ENDLESS_NUMBER = re.compile(rb"[0-9]{400}")


class ProtocolError(Exception):
    """What came is not a request or response of this protocol. ``status`` is HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """A decoded request. ``outputs``: the wanted ones, and whether as binary; empty: all, as ``binary`` says."""

    feeds: dict[str, Array]
    outputs: dict[str, bool] = field(default_factory=dict)
    binary: bool = False
    identity: str | None = None


@dataclass(frozen=True)
class Response:
    """A decoded response, and the version of the model that gave it."""

    outputs: dict[str, Array]
    version: str


def encode_request(feeds: Mapping[str, Array], outputs: Sequence[str] = ()) -> tuple[bytes, list[Bytes]]:
    """The JSON head and the binary tensors behind it. Raises ProtocolError for arrays that the protocol cannot carry."""
    entries, buffers = [], []
    for name, array in feeds.items():
        entry, buffer = binary_tensor(name, array)
        entries.append(entry)
        buffers.append(buffer)
    document: dict[str, Any] = {"inputs": entries, "parameters": {"binary_data_output": True}}
    if outputs:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    return _head(document), buffers


def decode_request(body: Bytes, header_bytes: int | None = None) -> Request:
    """``header_bytes``: the HTTP header Inference-Header-Content-Length, None where there is none. Raises ProtocolError."""
    document, binary = _split(body, header_bytes)
    parameters = _parameters(document, "the request")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise ProtocolError("`id` is a string")
    return Request(
        feeds=_decode_tensors(document, "inputs", binary),
        outputs=_wanted(document, default=_flag(parameters, "binary_data_output", "the request")),
        binary=_flag(parameters, "binary_data_output", "the request"),
        identity=identity,
    )


def encode_response(model: str, version: str, outputs: Mapping[str, Array], request: Request) -> tuple[bytes, list[Bytes]]:
    """The JSON head, and the buffers behind it of the outputs that were wanted as binary. Raises ProtocolError (422) for NaN in JSON."""
    entries, buffers = [], []
    for name, array in outputs.items():
        if request.outputs.get(name, request.binary):
            entry, buffer = binary_tensor(name, array)
            buffers.append(buffer)
        else:
            entry = _json_tensor(name, array)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.identity is not None:
        document["id"] = request.identity
    return _head(document), buffers


def decode_response(body: Bytes, header_bytes: int | None = None) -> Response:
    """The outputs may share the body's memory. Raises ProtocolError."""
    document, binary = _split(body, header_bytes)
    version = document.get("model_version")
    if not isinstance(version, str):
        raise ProtocolError("the response lacks its model_version")
    return Response(_decode_tensors(document, "outputs", binary), version)


def metadata(name: str, version: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> dict[str, Any]:
    """A model's metadata as the protocol has it."""
    return {"name": name, "versions": [version], "platform": "onnxruntime_onnx", "inputs": [*map(_describe, inputs)], "outputs": [*map(_describe, outputs)]}


def tensors_of(entries: Any) -> tuple[TensorInfo, ...]:
    """The other way: what `metadata` lists as inputs or outputs. Raises ProtocolError."""
    try:
        return tuple(TensorInfo(str(e["name"]), DATATYPES[e["datatype"]], tuple(None if d == -1 else int(d) for d in e["shape"])) for e in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the model's metadata is malformed: {error!r}") from error


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's dtype. Raises ProtocolError where it has none."""
    if array.dtype.kind in "OUS":
        return "BYTES"
    if array.dtype.name not in _DATATYPE_OF:
        raise ProtocolError(f"the protocol has no tensors of {array.dtype.name}")
    return _DATATYPE_OF[array.dtype.name]


# reading


def _split(body: Bytes, header_bytes: int | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON document and the binary part."""
    view = memoryview(body).cast("B")
    end = len(view) if header_bytes is None else header_bytes
    if not 0 <= end <= len(view):
        raise ProtocolError(f"Inference-Header-Content-Length is {header_bytes}, the body has {len(view)} bytes")
    if end > MAX_JSON_BYTES:
        raise ProtocolError(f"the JSON has {end} bytes, at most {MAX_JSON_BYTES} are read: send binary tensors", 413)
    raw = bytes(view[:end])
    if _ENDLESS_NUMBER.search(raw):
        raise ProtocolError("the JSON holds a number of more than 400 digits")
    try:
        document = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise ProtocolError("the body is not a JSON object")
    return document, view[end:]


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON: send a binary tensor instead")


def _decode_tensors(document: dict[str, Any], key: str, binary: memoryview) -> dict[str, Array]:
    entries = document.get(key)
    if not isinstance(entries, list) or len(entries) > _MAX_TENSORS:
        raise ProtocolError(f"`{key}` is a list of at most {_MAX_TENSORS} tensors")
    tensors: dict[str, Array] = {}
    offset = 0
    for entry in entries:
        name, datatype, shape = header_of(entry, key, tensors)
        size = _parameters(entry, f"`{name}`").get("binary_data_size")
        if size is None:
            tensors[name] = _from_json(name, datatype, shape, entry.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - offset:
            raise ProtocolError(f"`{name}`: binary_data_size is {str(size)[:40]}, {len(binary) - offset} bytes are left in the body")
        if "data" in entry:
            raise ProtocolError(f"`{name}` has both data and binary_data_size")
        tensors[name] = from_binary(name, datatype, shape, binary[offset : offset + size])
        offset += size
    if offset != len(binary):
        raise ProtocolError(f"the body has {len(binary) - offset} bytes that belong to no tensor: is binary_data_size given for each?")
    return tensors


def header_of(entry: Any, key: str, seen: Mapping[str, Array]) -> tuple[str, str, tuple[int, ...]]:
    """Name, datatype and shape of one tensor."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ProtocolError(f"each of `{key}` is an object with a name")
    name = entry["name"]
    shown = name[:80]
    if name in seen:
        raise ProtocolError(f"`{shown}` is given twice")
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ProtocolError(f"`{shown}`: datatype is {str(datatype)[:40]!r}, not one of {', '.join(DATATYPES)}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(type(d) is int and 0 <= d <= _MAX_DIMENSION for d in shape):
        raise ProtocolError(f"`{shown}`: shape is {str(shape)[:80]}, not a list of at most {_MAX_RANK} lengths")
    return name, datatype, tuple(shape)


def from_binary(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    if datatype == "BYTES":
        return _shaped(name, _object_array(_split_strings(name, data, math.prod(shape))), shape)
    dtype = np.dtype(DATATYPES[datatype]).newbyteorder("<")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(data):
        raise ProtocolError(f"`{name}`: {datatype} {list(shape)} takes {wanted} bytes, binary_data_size is {len(data)}")
    if datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8)
        if flags.size and flags.max() > 1:
            raise ProtocolError(f"`{name}`: BOOL is a byte of 0 or 1, not {flags.max()}")
        return _shaped(name, flags.view(np.bool_), shape)
    array = np.frombuffer(data, dtype)
    # A kernel may read with aligned instructions what numpy reads anyhow.
    return _shaped(name, array if array.flags.aligned else array.copy(), shape)


def _split_strings(name: str, data: memoryview, count: int) -> list[str]:
    """Each is four bytes of length, little-endian, and so many of UTF-8."""
    strings: list[str] = []
    offset = 0
    while offset < len(data):
        if len(data) - offset < 4 or len(strings) == count:
            raise ProtocolError(f"`{name}`: binary_data_size does not fit its {count} strings")
        (length,) = struct.unpack_from("<I", data, offset)
        if length > len(data) - offset - 4:
            raise ProtocolError(f"`{name}`: string {len(strings)} claims {length} bytes, {len(data) - offset - 4} are left")
        try:
            strings.append(str(data[offset + 4 : offset + 4 + length], "utf-8"))
        except UnicodeDecodeError as error:
            raise ProtocolError(f"`{name}`: string {len(strings)} is not UTF-8") from error
        offset += 4 + length
    if len(strings) != count:
        raise ProtocolError(f"`{name}`: {count} strings wanted, {len(strings)} came")
    return strings


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    values = _flat(name, shape, data)
    if datatype == "BYTES":
        if not all(type(value) is str for value in values):
            raise ProtocolError(f"`{name}`: BYTES in JSON are strings")
        for value in values:
            if not _is_unicode(value):
                raise ProtocolError(f"`{name}`: a string holds half a surrogate pair")
        return _shaped(name, _object_array(values), shape)
    dtype = np.dtype(DATATYPES[datatype])
    kinds = set(map(type, values))
    allowed = _JSON_KINDS.get(dtype.kind, {int})
    if not kinds <= allowed:
        strange = next(kind for kind in kinds if kind not in allowed)
        raise ProtocolError(f"`{name}`: {datatype} wants {' or '.join(sorted(kind.__name__ for kind in allowed))}, {strange.__name__} came")
    if dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise ProtocolError(f"`{name}`: {datatype} reaches from {limits.min} to {limits.max}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype)
    except OverflowError as error:
        raise ProtocolError(f"`{name}`: a number is too large for {datatype}") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ProtocolError(f"`{name}`: a number is too large for {datatype}")
    return _shaped(name, array, shape)


def _flat(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """The values in row-major order: given so, or nested as the shape says."""
    if not isinstance(data, list):
        raise ProtocolError(f"`{name}`: data is a list; a binary tensor has binary_data_size among its parameters")
    count = math.prod(shape)
    if not any(isinstance(value, list) for value in data) and len(data) == count:
        return data
    level: list[Any] = [data]
    for depth, length in enumerate(shape):
        if not all(isinstance(item, list) and len(item) == length for item in level):
            raise ProtocolError(f"`{name}`: data does not have the shape {list(shape)} (axis {depth} wants lists of {length})")
        level = [value for item in level for value in item]
    if not shape or len(level) != count or any(isinstance(value, list) for value in level):
        raise ProtocolError(f"`{name}`: data does not have the shape {list(shape)}")
    return level


def _shaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise ProtocolError(f"`{name}`: no array can have the shape {list(shape)}") from error


def _wanted(document: dict[str, Any], *, default: bool) -> dict[str, bool]:
    entries = document.get("outputs", [])
    if not isinstance(entries, list) or len(entries) > _MAX_TENSORS:
        raise ProtocolError(f"`outputs` is a list of at most {_MAX_TENSORS} tensors")
    wanted: dict[str, bool] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ProtocolError("each of `outputs` is an object with a name")
        name = entry["name"]
        parameters = _parameters(entry, f"the output `{name[:80]}`")
        if parameters.get("classification"):
            raise ProtocolError(f"the output `{name[:80]}`: classification is not offered, ask for the tensor")
        wanted[name] = _flag(parameters, "binary_data", f"the output `{name[:80]}`", default=default)
    return wanted


def _parameters(entry: dict[str, Any], whose: str) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ProtocolError(f"the parameters of {whose} are an object")
    if "shared_memory_region" in parameters:
        raise ProtocolError(f"{whose}: shared memory is not offered, send the tensor in the body")
    return parameters


def _flag(parameters: dict[str, Any], key: str, whose: str, *, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{key} of {whose} is true or false")
    return value


# writing


def binary_tensor(name: str, array: Array) -> tuple[dict[str, Any], Bytes]:
    datatype = datatype_of(array)
    buffer: Bytes
    if datatype == "BYTES":
        encoded = [_encoded(name, value) for value in array.ravel().tolist()]
        buffer = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    else:
        contiguous = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        buffer = contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(buffer)}}, buffer


def _json_tensor(name: str, array: Array) -> dict[str, Any]:
    datatype = datatype_of(array)
    if datatype == "BYTES":
        try:
            values = [_encoded(name, value).decode() for value in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            raise ProtocolError(f"the output `{name}` holds bytes that are no text: ask for it with binary_data", 422) from error
        return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": values}
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ProtocolError(f"the output `{name}` holds NaN or infinity, which JSON cannot carry: ask for it with binary_data", 422)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


def _encoded(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise ProtocolError(f"`{name}` holds half a surrogate pair, which is no text") from error
    raise ProtocolError(f"`{name}` holds a {type(value).__name__}, which the protocol cannot carry")


def _head(document: dict[str, Any]) -> bytes:
    """As JSON, filled up with spaces to the alignment of what follows."""
    raw = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % _ALIGNMENT)


def _object_array(values: list[str]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": _DATATYPE_OF.get(info.dtype, info.dtype), "shape": [-1 if d is None else d for d in info.shape]}
