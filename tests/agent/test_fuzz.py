"""Thousands of requests, most of them broken somewhere; what is right is decided by a reader of the protocol written here, apart from the agent's.

FUZZ_REQUESTS says how many (default 1,000), FUZZ_SEED which.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import EVERY_DTYPE, Agent, everything, everything_feeds, make

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "5"))
MOST_BYTES = 200_000  # of a body, as this agent is configured
MAY_GROW_BYTES = 6 << 20  # all its processes together, after the first fifth

# The protocol's name, how struct writes one, the smallest and the largest whole number.
TYPES: dict[str, tuple[str, str, int, int]] = {
    "bool": ("BOOL", "?", 0, 1),
    "uint8": ("UINT8", "B", 0, 2**8 - 1),
    "uint16": ("UINT16", "H", 0, 2**16 - 1),
    "uint32": ("UINT32", "I", 0, 2**32 - 1),
    "uint64": ("UINT64", "Q", 0, 2**64 - 1),
    "int8": ("INT8", "b", -(2**7), 2**7 - 1),
    "int16": ("INT16", "h", -(2**15), 2**15 - 1),
    "int32": ("INT32", "i", -(2**31), 2**31 - 1),
    "int64": ("INT64", "q", -(2**63), 2**63 - 1),
    "float16": ("FP16", "e", 0, 0),
    "float32": ("FP32", "f", 0, 0),
    "float64": ("FP64", "d", 0, 0),
    "string": ("BYTES", "", 0, 0),
}
FORMATS = {datatype: (letter, low, high) for datatype, letter, low, high in TYPES.values()}
FLOATS = ("FP16", "FP32", "FP64")
ODD = [None, True, -1, 0, 1, 2, 2**31, 2**63, 2**64, 1.5, 1e39, 1e400, "", "x", "\ud800", [], [[]], {}, "FP32", "BYTES", "in_bool", "out_int8"]


class Invalid(Exception):
    """No request that anybody has to answer."""


@pytest.fixture(scope="module")
def small() -> Iterator[Agent]:
    """An agent with an echo of every dtype that takes little."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        agent = Agent(Path(folder, "home"))
        agent.home.mkdir()
        (agent.home / "config.json").write_text(json.dumps({"limits": {"body_bytes": MOST_BYTES, "idle_s": 5}}))
        agent.start()
        try:
            assert agent.activate(make(Path(folder, "bundle"), everything(), name="echo", feeds=[everything_feeds()]))["state"] == "done"
            yield agent
        finally:
            agent.stop()


def test_what_is_invalid_is_refused_and_what_is_valid_is_answered_rightly(small: Agent) -> None:
    rng = random.Random(SEED)
    seen: Counter[str] = Counter()
    memory_bytes = 0
    for number in range(REQUESTS):
        request = broken(rng, Draft(rng)) if rng.random() < 0.75 else Draft(rng).written()
        seen[judged(small, request, number)] += 1
        if number % 50 == 0:
            assert judged(small, Draft(rng).written(), number) in ("answered", "not as JSON")
        if number == REQUESTS // 5:
            memory_bytes = memory_of(small)
    grown = memory_of(small) - memory_bytes
    print(f"\n{REQUESTS} requests: {dict(seen)}; memory {memory_bytes / 1e6:.1f} MB {grown / 1e6:+.2f} MB")  # noqa: T201 - a figure for who looks on
    assert grown < MAY_GROW_BYTES
    assert min(seen["answered"], seen["refused"]) > REQUESTS // 10
    assert "Traceback" not in (small.home / "agent.log").read_text()


def judged(agent: Agent, request: bytes, number: int) -> str:
    """Send it, and hold the answer against what the reader below makes of it."""
    answer = exchanged(agent, request)
    status = int(answer[9:12]) if answer else 0
    where = f"request {number} of seed {SEED}: {request[:400]!r}… → {answer[:400]!r}"
    try:
        tensors, outputs = read(request)
    except Invalid:
        assert not answer or 400 <= status < 500, where
        return "refused" if answer else "cut off"
    expected = {name: tensors["in_" + name[len("out_") :]] for name in outputs}
    if any(datatype in FLOATS and not outputs[name] and any(value - value != 0 for value in values) for name, (datatype, values) in expected.items()):
        assert status == 422, where
        return "not as JSON"
    assert status == 200, where
    assert same(answered(answer), expected), where
    return "answered"


def exchanged(agent: Agent, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(agent.home / "agent.sock"))
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has heard enough
            pass
        answer = b""
        try:
            while data := sock.recv(1 << 16):
                answer += data
        except ConnectionError:
            pass
        return answer


def memory_of(agent: Agent) -> int:
    """What the agent's processes have for themselves."""
    assert agent.process is not None
    pids, found = [agent.process.pid], 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            pids += map(int, task.read_text().split())
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found += sum(int(kilobytes) << 10 for kilobytes in re.findall(r"^Pss:\s+(\d+)", rollup, re.MULTILINE))
    return found


# the reader


def read(request: bytes) -> tuple[dict[str, tuple[str, list[Any]]], dict[str, bool]]:
    """The tensors of a request, and which outputs are wanted, as binary or not. Raises Invalid."""
    head, _, rest = request.partition(b"\r\n\r\n")
    headers = [line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:]]
    lengths, codings = ([value for name, value in headers if name == wanted] for wanted in ("Content-Length", "Transfer-Encoding"))
    if codings:
        body = unchunked(rest)
        must(codings == ["chunked"] and not lengths)
    else:
        must(len(set(lengths)) == 1 and re.fullmatch("[0-9]{1,15}", lengths[0]))
        must(int(lengths[0]) <= min(MOST_BYTES, len(rest)))
        body = rest[: int(lengths[0])]
    must(len(body) <= MOST_BYTES)
    split = [value for name, value in headers if name == "Inference-Header-Content-Length"]
    must(all(re.fullmatch("[0-9]{1,11}", value) and int(value) <= len(body) for value in split))
    end = int(split[0]) if split else len(body)
    return tensors_of(body[:end], body[end:])


def unchunked(data: bytes) -> bytes:
    body = b""
    while True:
        found = re.match(rb"([0-9a-fA-F]{1,16})(;[\t -~\x80-\xff]*)?\r\n", data)
        must(found and len(found[0]) <= 1000)
        assert found
        size, data = int(found[1], 16), data[found.end() :]
        if size == 0:
            must(re.match(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n){0,60}\r\n", data))
            return body
        must(len(data) >= size + 2 and data[size : size + 2] == b"\r\n")
        body, data = body + data[:size], data[size + 2 :]


def tensors_of(raw: bytes, binary: bytes) -> tuple[dict[str, tuple[str, list[Any]]], dict[str, bool]]:
    must(not re.search(rb"[0-9]{400}", raw))
    try:
        document = json.loads(raw, parse_constant=lambda _: must(False))
    except (ValueError, RecursionError) as error:
        raise Invalid from error
    must(isinstance(document, dict) and isinstance(document.get("inputs"), list) and isinstance(document.get("id"), (str, type(None))))
    default = flag(parameters_of(document), "binary_data_output", default=False)
    tensors: dict[str, tuple[str, list[Any]]] = {}
    for entry in document["inputs"]:
        must(isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry["name"] not in tensors)
        dtype = entry["name"][len("in_") :]
        must(entry["name"].startswith("in_") and dtype in TYPES and entry.get("datatype") == TYPES[dtype][0])
        shape = entry.get("shape")
        must(isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and 0 <= shape[0] < 2**31)
        parameters = parameters_of(entry)
        size = parameters.get("binary_data_size")
        if size is None:
            values = plain(entry["datatype"], entry.get("data"), shape[0])
        else:
            must(type(size) is int and 0 <= size <= len(binary) and "data" not in entry)
            values, binary = packed(entry["datatype"], binary[:size], shape[0]), binary[size:]
        tensors[entry["name"]] = entry["datatype"], values
    must(not binary and set(tensors) == {f"in_{dtype}" for dtype in EVERY_DTYPE})
    return tensors, wanted(document, default=default)


def wanted(document: dict[str, Any], *, default: bool) -> dict[str, bool]:
    entries, found = document.get("outputs", []), {}
    must(isinstance(entries, list))
    for entry in entries:
        must(isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry["name"] in {f"out_{dtype}" for dtype in EVERY_DTYPE})
        parameters = parameters_of(entry)
        must(not parameters.get("classification"))
        found[entry["name"]] = flag(parameters, "binary_data", default=default)
    return found or {f"out_{dtype}": default for dtype in EVERY_DTYPE}


def plain(datatype: str, data: Any, count: int) -> list[Any]:
    """The values of a tensor in JSON."""
    must(isinstance(data, list) and len(data) == count)
    letter, low, high = FORMATS[datatype]
    kinds = {int, float} if datatype in FLOATS else {"BOOL": {bool}, "BYTES": {str}}.get(datatype, {int})
    must({type(value) for value in data} <= kinds)
    try:
        if datatype == "BYTES":
            return [value.encode() for value in data]
        if datatype in FLOATS:
            values = [struct.unpack("<" + letter, struct.pack("<" + letter, value))[0] for value in data]
            must(all(value - value == 0 for value in values))
            return values
    except (UnicodeEncodeError, OverflowError, struct.error) as error:
        raise Invalid from error
    must(all(low <= value <= high for value in data))
    return list(data)


def packed(datatype: str, data: bytes, count: int) -> list[Any]:
    """The values of a binary tensor."""
    if datatype == "BYTES":
        return strings(data, count)
    letter = FORMATS[datatype][0]
    must(len(data) == struct.calcsize("<" + letter) * count)
    must(datatype != "BOOL" or not data.strip(b"\0\1"))
    return list(struct.unpack(f"<{count}{letter}", data))


def strings(data: bytes, count: int) -> list[bytes]:
    found = []
    while data:
        must(len(data) >= 4)
        (length,) = struct.unpack_from("<I", data)
        must(len(data) >= 4 + length)
        try:
            data[4 : 4 + length].decode()
        except UnicodeDecodeError as error:
            raise Invalid from error
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    must(len(found) == count)
    return found


def answered(answer: bytes) -> dict[str, tuple[str, list[Any]]]:
    """The first response's tensors."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    body = rest[: int(headers["Content-Length"])]
    end = int(headers.get("Inference-Header-Content-Length", len(body)))
    document, binary = json.loads(body[:end]), body[end:]
    found = {}
    for output in document["outputs"]:
        (count,) = output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = plain(output["datatype"], output["data"], count)
        else:
            values, binary = packed(output["datatype"], binary[:size], count), binary[size:]
        found[output["name"]] = output["datatype"], values
    assert not binary
    return found


def same(got: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Bit for bit, so that NaN is like itself."""
    return got.keys() == expected.keys() and all(
        got[name][0] == datatype and len(got[name][1]) == len(values) and bits(datatype, got[name][1]) == bits(datatype, values)
        for name, (datatype, values) in expected.items()
    )


def bits(datatype: str, values: list[Any]) -> Any:
    if datatype not in FLOATS:
        return values
    return ["nan" if value != value else struct.pack("<d", value) for value in values]


def parameters_of(entry: dict[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    must(isinstance(parameters, dict) and "shared_memory_region" not in parameters)  # nobody has registered one
    return parameters  # type: ignore[no-any-return]


def flag(parameters: dict[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    must(isinstance(value, bool))
    return bool(value)


def must(condition: object) -> None:
    if not condition:
        raise Invalid


# the writer


class Draft:
    """A request in the making, right until somebody breaks it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.count = rng.choice([0, 1, 1, 2, 3, 7])
        self.document: dict[str, Any] = {"inputs": []}
        self.binary: list[bytes] = []
        self.headers: list[tuple[str, str]] = [("Host", "x")]
        for dtype in rng.sample(sorted(TYPES), len(TYPES)):
            self._add(dtype)
        if rng.random() < 0.5:
            self.document["parameters"] = {"binary_data_output": rng.random() < 0.7}
        if rng.random() < 0.5:
            chosen = rng.sample(sorted(TYPES), rng.randint(1, len(TYPES)))
            self.document["outputs"] = [
                {"name": f"out_{dtype}", **({"parameters": {"binary_data": rng.random() < 0.7}} if rng.random() < 0.7 else {})} for dtype in chosen
            ]
        if rng.random() < 0.3:
            self.document["id"] = "größer"

    def written(self, *, chunked: bool | None = None) -> bytes:
        raw = json.dumps(self.document).encode()
        body = raw + b"".join(self.binary)
        if self.binary or self.rng.random() < 0.3:
            self.headers.append(("Inference-Header-Content-Length", str(len(raw))))
        if self.rng.random() < 0.3 if chunked is None else chunked:
            self.headers.append(("Transfer-Encoding", "chunked"))
            body = in_chunks(self.rng, body)
        else:
            self.headers.append(("Content-Length", str(len(body))))
        return self.framed(body)

    def framed(self, body: bytes) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return f"POST /v2/models/echo/infer HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body

    def _add(self, dtype: str) -> None:
        datatype, letter, low, high = TYPES[dtype]
        entry: dict[str, Any] = {"name": f"in_{dtype}", "datatype": datatype, "shape": [self.count]}
        rng = self.rng
        if dtype == "string":
            texts = [rng.choice(["", "a", "größer 😀", "\0"]) for _ in range(self.count)]
            values: list[Any] = texts
            data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        elif letter in "efd":
            values = [rng.choice([0.0, -1.5, 0.1, 65504.0, rng.gauss(0, 100)]) for _ in range(self.count)]
            odd = [float("nan"), float("inf"), float("-inf")]
            data = struct.pack(f"<{self.count}{letter}", *(rng.choice(odd) if rng.random() < 0.1 else value for value in values))
        else:
            values = [rng.choice([low, high, rng.randint(low, high)]) for _ in range(self.count)]
            values = list(map(bool, values)) if letter == "?" else values
            data = struct.pack(f"<{self.count}{letter}", *values)
        if rng.random() < 0.5:
            entry["parameters"] = {"binary_data_size": len(data)}
            self.binary.append(data)
        else:
            entry["data"] = values
        self.document["inputs"].append(entry)


def in_chunks(rng: random.Random, body: bytes) -> bytes:
    chunks = b""
    while body:
        size = rng.choice([1, 7, 100, 5000])
        part, body = body[:size], body[size:]
        chunks += f"{len(part):{rng.choice('xX')}}".encode() + rng.choice([b"", b"", b";a=b"]) + b"\r\n" + part + b"\r\n"
    return chunks + rng.choice([b"0", b"000"]) + b"\r\n" + rng.choice([b"", b"A: b\r\n"]) + b"\r\n"


def broken(rng: random.Random, draft: Draft) -> bytes:
    """One thing is changed, and may be wrong now."""
    return rng.choice([cut, flipped, inserted, oversized, mistyped, misnamed, misshapen, deep, unlike_json, miscounted, misframed, doubled])(rng, draft)


def cut(rng: random.Random, draft: Draft) -> bytes:
    request = draft.written()
    head = request.index(b"\r\n\r\n") + 4
    return request[: rng.randint(head, len(request) - 1)]


def flipped(rng: random.Random, draft: Draft) -> bytes:
    """A byte of the body or of its chunks."""
    request = bytearray(draft.written())
    head = request.index(b"\r\n\r\n") + 4
    request[rng.randrange(head, len(request))] ^= 1 << rng.randrange(8)
    return bytes(request)


def inserted(rng: random.Random, draft: Draft) -> bytes:
    request = draft.written()
    at = rng.randint(request.index(b"\r\n\r\n") + 4, len(request))
    return request[:at] + rng.choice([b"\0", b"\r\n", b"\n", b" ", b"0", b"}", b"\xff" * 5]) + request[at:]


def oversized(rng: random.Random, draft: Draft) -> bytes:
    entry = rng.choice(draft.document["inputs"])
    kind = rng.randrange(4)
    if kind == 0:
        entry["shape"] = [rng.choice([2**31 - 1, 2**31, 10**18, 10**450 // 7])]
    elif kind == 1:
        draft.document["id"] = "x" * rng.choice([MOST_BYTES // 2, MOST_BYTES, MOST_BYTES * 2])
    elif kind == 2:
        entry.setdefault("parameters", {})["binary_data_size"] = rng.choice([2**31, 2**63, 2**64, 10**30])
    else:
        draft.headers.append(("Content-Length", rng.choice([str(MOST_BYTES + 1), "9" * 15])))
        return draft.framed(b"{}")
    return draft.written()


def mistyped(rng: random.Random, draft: Draft) -> bytes:
    entry = rng.choice(draft.document["inputs"])
    if entry.get("data") and rng.random() < 0.5:
        entry["data"][rng.randrange(len(entry["data"]))] = rng.choice(ODD)
    else:
        entry["datatype"] = rng.choice([*FORMATS, "BF16", "fp32", *ODD])
    return draft.written()


def misnamed(rng: random.Random, draft: Draft) -> bytes:
    """Any key of any object becomes something else, goes, or comes twice."""
    found = [draft.document, *draft.document["inputs"], *draft.document.get("outputs", [])]
    found += [entry["parameters"] for entry in found if isinstance(entry.get("parameters"), dict)]
    target = rng.choice([entry for entry in found if entry])
    key = rng.choice(sorted(target))
    if rng.random() < 0.3:
        del target[key]
    elif rng.random() < 0.3:
        target[rng.choice(["shared_memory_region", "classification", "binary_data", "binary_data_size", "parameters", "unknown"])] = rng.choice(ODD)
    else:
        target[key] = rng.choice(ODD)
    return draft.written()


def misshapen(rng: random.Random, draft: Draft) -> bytes:
    entry = rng.choice(draft.document["inputs"])
    entry["shape"] = rng.choice([[], [-1], [1.0], [True], [draft.count, 1], [1, draft.count], [draft.count + 1], ["2"], [1] * 40, [0], None])
    if "data" in entry and rng.random() < 0.3:
        entry["data"] = [entry["data"]]
    return draft.written()


def deep(rng: random.Random, draft: Draft) -> bytes:
    """Lists in lists where one list of values belongs."""
    depth = rng.choice([2, 30, 500, 20_000, 90_000])
    entry = rng.choice(draft.document["inputs"])
    mark = "DEEP"
    entry[rng.choice(["data", "shape", "name", "parameters"])] = mark
    raw = json.dumps(draft.document).replace(f'"{mark}"', "[" * depth + "]" * depth).encode()
    draft.headers += [("Inference-Header-Content-Length", str(len(raw))), ("Content-Length", str(len(raw) + sum(map(len, draft.binary))))]
    return draft.framed(raw + b"".join(draft.binary))


def unlike_json(rng: random.Random, draft: Draft) -> bytes:
    """NaN, infinity, endless numbers, strings that do not end."""
    text = rng.choice(
        ["NaN", "Infinity", "-Infinity", "nan", "1e999", "-1e999", "9" * 399, "9" * 401, "1e", "01", "+1", '"\x01"', '"\\ud800"', "'a'", "tru", ""]
    )
    floats = [entry for entry in draft.document["inputs"] if entry.get("data")] or draft.document["inputs"]
    entry = rng.choice(floats)
    if entry.get("data"):
        entry["data"][0] = "ODD"
    else:
        draft.document["id"] = "ODD"
    raw = json.dumps(draft.document).replace('"ODD"', text).encode()
    draft.headers += [("Inference-Header-Content-Length", str(len(raw))), ("Content-Length", str(len(raw) + sum(map(len, draft.binary))))]
    return draft.framed(raw + b"".join(draft.binary))


def miscounted(rng: random.Random, draft: Draft) -> bytes:
    """The JSON's length, or a binary tensor's, is not what is said."""
    raw = json.dumps(draft.document).encode()
    body = raw + b"".join(draft.binary)
    said = rng.choice(["", "-1", "x", "1e3", str(10**12), "0", str(len(raw) - 1), str(len(raw) + 1), str(len(body)), str(len(body) + 1), str(len(raw))])
    extra = rng.choice([b"", b"", b"\0", b"\0" * 64])
    draft.headers += [("Inference-Header-Content-Length", said), ("Content-Length", str(len(body + extra)))]
    return draft.framed(body + extra)


def misframed(rng: random.Random, draft: Draft) -> bytes:
    """Content-Length and Transfer-Encoding, wrong, twice or both."""
    body = json.dumps(draft.document).encode() + b"".join(draft.binary)
    right = ("Content-Length", str(len(body)))
    chunked = ("Transfer-Encoding", "chunked")
    draft.headers += rng.choice(
        [
            [right, chunked],
            [("Content-Length", str(len(body) + rng.choice([-1, 1, 7])))],
            [("Content-Length", rng.choice(["-5", "x", "0x10", "1.0", "1 2", "9" * 30]))],
            [right, ("Content-Length", str(len(body) + 1))],
            [("Transfer-Encoding", "gzip")],
            [("Transfer-Encoding", "gzip, chunked")],
            [chunked, chunked],
            [chunked],  # and no chunks
        ]
    )
    return draft.framed(body)


def doubled(rng: random.Random, draft: Draft) -> bytes:
    entries = draft.document[rng.choice(["inputs", "outputs"]) if "outputs" in draft.document else "inputs"]
    entry = rng.choice(entries)
    if rng.random() < 0.5:
        entries.remove(entry)
    else:
        entries.append({**entry, **({"name": "in_none"} if rng.random() < 0.5 else {})})
    return draft.written()
