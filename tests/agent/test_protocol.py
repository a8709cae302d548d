from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import protocol
from edge_agent.protocol import DATATYPES, ProtocolError, Request

NUMERIC = [dtype for dtype in DATATYPES.values() if dtype != "string"]
SHAPES = st.lists(st.integers(0, 4), max_size=4)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT


@st.composite
def arrays(draw: Any, *, finite: bool = False) -> Any:
    shape = draw(SHAPES)
    dtype = draw(st.sampled_from([*NUMERIC, "string"]))
    count = int(np.prod(shape))
    if dtype == "string":
        made = np.empty(count, object)
        made[:] = draw(st.lists(TEXT, min_size=count, max_size=count))
        return made.reshape(shape)
    itemsize = np.dtype(dtype).itemsize
    raw = draw(st.binary(min_size=count * itemsize, max_size=count * itemsize))
    made = np.frombuffer(raw, np.uint8 if dtype == "bool" else dtype)
    made = made % 2 == 1 if dtype == "bool" else made.copy()
    if finite and dtype.startswith("float"):
        made = np.nan_to_num(made, nan=0.0, posinf=1.0, neginf=-1.0)
    return made.reshape(shape)


@given(st.dictionaries(NAMES, arrays(), max_size=4))
def test_binary_requests_come_back_bit_for_bit(feeds: dict[str, Any]) -> None:
    head, buffers = protocol.encode_request(feeds)
    request = protocol.decode_request(joined(head, buffers), len(head))
    assert_same(request.feeds, feeds)
    assert request.binary


@given(st.dictionaries(NAMES, arrays(), max_size=4), st.booleans())
def test_binary_responses_come_back_bit_for_bit(outputs: dict[str, Any], identified: bool) -> None:
    head, buffers = protocol.encode_response("toy", "3", outputs, Request({}, binary=True, identity="a" if identified else None))
    response = protocol.decode_response(joined(head, buffers), len(head))
    assert_same(response.outputs, outputs)
    assert response.version == "3"


@given(st.dictionaries(NAMES, arrays(finite=True), max_size=4))
def test_json_responses_come_back_value_for_value(outputs: dict[str, Any]) -> None:
    head, buffers = protocol.encode_response("toy", "3", outputs, Request({}))
    assert not buffers
    assert_same(protocol.decode_response(head).outputs, outputs)


@given(arrays(finite=True))
def test_json_may_be_nested_or_flat(array: Any) -> None:
    for data in (array.ravel().tolist(), array.tolist() if array.ndim else [array.item()]):
        tensor = {"name": "x", "datatype": protocol.datatype_of(array), "shape": list(array.shape), "data": data}
        assert_same(protocol.decode_request(encoded({"inputs": [tensor]})).feeds, {"x": array})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from([*DATATYPES, "x", "2147483647"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters", "binary_data_size", "id"]), inner)
    ),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.just("x") | JSON, "datatype": st.sampled_from(list(DATATYPES)) | JSON, "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON},
    optional={"data": st.lists(st.integers() | st.floats() | st.booleans() | st.text(max_size=3), max_size=6) | JSON,
              "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 40)) | JSON},
)  # fmt: skip
DOCUMENT = st.fixed_dictionaries(
    {}, optional={"inputs": st.lists(TENSOR, max_size=3) | JSON, "outputs": st.lists(TENSOR, max_size=3) | JSON, "parameters": JSON, "id": JSON}
)


@given(DOCUMENT | JSON, st.binary(max_size=40), st.integers(-2, 60))
def test_malformed_documents_give_nothing_but_a_protocol_error(document: Any, binary: bytes, off: int) -> None:
    head = json.dumps(document).encode()
    for header_bytes in (len(head), len(head) + off, None):
        for decode in (protocol.decode_request, protocol.decode_response):
            try:
                decode(head + binary, header_bytes)
            except ProtocolError as error:
                assert str(error)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_any_bytes_give_nothing_but_a_protocol_error(body: bytes, header_bytes: int | None) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(body, header_bytes)


@given(st.dictionaries(NAMES, arrays(), min_size=1, max_size=2), st.data())
def test_one_changed_byte_gives_nothing_but_a_protocol_error(feeds: dict[str, Any], data: Any) -> None:
    head, buffers = protocol.encode_request(feeds)
    body = bytearray(joined(head, buffers))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for changed in (body, body[:cut]):
        try:
            protocol.decode_request(changed, len(head))
        except ProtocolError as error:
            assert str(error)


X = {"name": "x", "datatype": "FP32", "shape": [2]}


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({**X, "data": [1.0]}, "does not have the shape"),
        ({**X, "data": [[1.0], [2.0, 3.0]]}, "does not have the shape"),
        ({**X, "data": ["a", "b"]}, "FP32 wants float or int, str came"),
        ({**X, "data": [True, False]}, "FP32 wants float or int, bool came"),
        ({**X, "data": [1e39, 0]}, "too large for FP32"),
        ({**X, "data": [10**400 // 10**20, 0]}, "too large for FP32"),
        ({**X, "datatype": "INT8", "data": [1, 128]}, "INT8 reaches from -128 to 127"),
        ({**X, "datatype": "UINT64", "data": [-1, 0]}, "UINT64 reaches from 0"),
        ({**X, "datatype": "INT32", "data": [1.5, 2]}, "INT32 wants int, float came"),
        ({**X, "datatype": "BYTES", "data": [1, 2]}, "are strings"),
        ({**X, "datatype": "BYTES", "data": ["\ud800", ""]}, "surrogate"),
        ({**X, "datatype": "BF16", "data": [1, 2]}, "not one of BOOL"),
        ({**X, "shape": [-1], "data": []}, "shape is"),
        ({**X, "shape": [2.0], "data": [1, 2]}, "shape is"),
        ({**X, "shape": [1] * 40, "data": [1]}, "at most 32"),
        ({**X, "shape": [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "data": []}, "no array can have"),
        ({**X, "shape": [2**31 - 1, 2**31 - 1], "data": [1]}, "does not have the shape"),
        (X, "data is a list"),
        ({**X, "data": [1, 2], "parameters": {"binary_data_size": 0}}, "both data and"),
        ({**X, "parameters": {"binary_data_size": 8}}, "0 bytes are left"),
        ({**X, "parameters": {"binary_data_size": True}}, "binary_data_size is True"),
        ({**X, "parameters": {"shared_memory_region": "r"}}, "shared memory is not offered"),
        ({**X, "parameters": 7}, "are an object"),
        ({"datatype": "FP32", "shape": [1], "data": [1]}, "with a name"),
    ],
)
def test_what_is_wrong_is_said(tensor: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        protocol.decode_request(encoded({"inputs": [tensor]}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', "NaN is no JSON: send a binary tensor"),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON|list of at most"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "more than 400 digits"),
        (b"[]", "not a JSON object"),
        (b"{}", "is a list"),
        (b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}', "true or false"),
        (b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}', "classification"),
        (b'{"inputs": [], "outputs": 4}', "is a list"),
        (b'{"inputs": [], "outputs": [4]}', "with a name"),
        (b'{"inputs": [], "id": 4}', "string"),
        (b'{"inputs": []}trailing', "not JSON"),
    ],
)
def test_bodies_that_are_no_request(body: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        protocol.decode_request(body)


def test_bytes_that_belong_to_nothing_are_refused() -> None:
    head = encoded({"inputs": []})
    with pytest.raises(ProtocolError, match="4 bytes that belong to no tensor"):
        protocol.decode_request(head + b"abcd", len(head))


def test_a_bool_is_zero_or_one() -> None:
    head = encoded({"inputs": [{"name": "x", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}}]})
    with pytest.raises(ProtocolError, match="0 or 1, not 2"):
        protocol.decode_request(head + b"\x02", len(head))


def test_an_unaligned_tensor_is_read_aligned() -> None:
    head = encoded({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}]})
    for padding in range(8):
        body = bytearray(head + b" " * padding + np.float64(2.5).tobytes())
        array = protocol.decode_request(body, len(head) + padding).feeds["x"]
        assert array.flags.aligned
        assert array[0] == 2.5


def test_what_the_client_sends_is_read_without_a_copy() -> None:
    array = np.arange(6, dtype=np.float32)
    head, buffers = protocol.encode_request({"x": array})
    body = bytearray(joined(head, buffers))
    assert np.shares_memory(protocol.decode_request(body, len(head)).feeds["x"], np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_json_answers_refuse_what_json_lacks_and_say_what_to_do(value: float) -> None:
    outputs = {"y": np.array([1.0, value], np.float32)}
    with pytest.raises(ProtocolError, match="ask for it with binary_data") as caught:
        protocol.encode_response("toy", "1", outputs, Request({}))
    assert caught.value.status == 422
    head, buffers = protocol.encode_response("toy", "1", outputs, Request({}, outputs={"y": True}))
    assert_same(protocol.decode_response(joined(head, buffers), len(head)).outputs, outputs)


def test_arrays_that_the_protocol_cannot_carry_are_refused() -> None:
    for array in (np.array([1j]), np.array(["2020"], "datetime64[Y]"), np.array([object()], object)):
        with pytest.raises(ProtocolError):
            protocol.encode_request({"x": array})


def test_metadata_goes_both_ways() -> None:
    head, _ = protocol.encode_request({"x": np.zeros((1, 2), np.float32)})
    request = protocol.decode_request(head + bytes(8), len(head))
    assert request.feeds["x"].shape == (1, 2)
    infos = protocol.tensors_of([{"name": "x", "datatype": "FP32", "shape": [-1, 4]}])
    assert protocol.metadata("toy", "1", infos, ())["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    with pytest.raises(ProtocolError):
        protocol.tensors_of([{"name": "x"}])


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def joined(head: bytes, buffers: list[Any]) -> bytes:
    return head + b"".join(bytes(buffer) for buffer in buffers)


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        np.testing.assert_array_equal(got[name], array)
