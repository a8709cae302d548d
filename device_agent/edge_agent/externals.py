"""Where a model says that its weights lie. onnxruntime 1.17 follows `../` out of the deployment's folder, 1.32 refuses to.

    check((folder / "model.onnx").read_bytes())        # raises BundleError

Walks the protobuf's bytes itself, since a device has no `onnx`: only the fields that lead to tensors are entered. Standard
library only.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_agent.bundle import BundleError

ALLOWED = "weights.bin"
_MAX_DEPTH = 100  # of subgraphs in subgraphs

# Message -> field number -> the message in that field, as onnx.proto has them.
_LEADS = {
    "model": {7: "graph", 25: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def check(model: bytes) -> None:
    """Every tensor lies in the model or in weights.bin beside it. Raises BundleError otherwise, and for what is no protobuf."""
    view = memoryview(model)
    waiting = [("model", view, 0)]
    while waiting:
        message, data, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise BundleError(f"model.onnx nests graphs more than {_MAX_DEPTH} messages deep", "do not use this bundle")
        leads = _LEADS[message]
        for number, value in _fields(data):
            inner = leads.get(number)
            if inner == "entry":
                _check_entry(value)
            elif inner is not None:
                waiting.append((inner, value, depth + 1))


def _check_entry(data: memoryview) -> None:
    """A key and a value, of which only `location` names a file."""
    pair = {number: bytes(value) for number, value in _fields(data)}
    location = pair.get(2, b"").decode("utf-8", "replace")
    if pair.get(1) == b"location" and location != ALLOWED:
        raise BundleError(f"model.onnx wants its weights from {location[:80]!r}, a bundle has them in {ALLOWED}", "do not use this bundle")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message, by number; the others are passed over."""
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        if key >> 32:  # a tag has 32 bits: a reader that drops the rest would see another field than we do
            raise BundleError("model.onnx is no ONNX model", "do not use this bundle")
        kind = key & 7
        if kind == 0:
            _, offset = _varint(data, offset)
            continue
        size, offset = (8, offset) if kind == 1 else (4, offset) if kind == 5 else _varint(data, offset)
        if kind not in (1, 2, 5) or size > len(data) - offset:
            raise BundleError("model.onnx is no ONNX model", "package the model again")
        if kind == 2:
            yield key >> 3, data[offset : offset + size]
        offset += size


def _varint(data: memoryview, offset: int) -> tuple[int, int]:
    value = 0
    for position in range(10):
        if offset + position >= len(data):
            break
        byte = data[offset + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, offset + position + 1
    raise BundleError("model.onnx is no ONNX model", "package the model again")
