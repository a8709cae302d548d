from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import Agent

from edge_agent.bodies import HttpError
from edge_agent.config import Limits
from edge_agent.connection import BadRequest, ClientError, Connection, NoSuchModel
from edge_agent.peer import Peer
from edge_agent.regions import Regions, fill

ME = os.geteuid()
SHM = Path("/dev/shm")  # noqa: S108 - it is what is tested


@pytest.fixture
def memory() -> Iterator[Path]:
    """Sixty-four bytes: 0, 1, 2, …"""
    path = SHM / f"edge-agent-{secrets.token_hex(8)}"
    path.touch(0o600)
    path.write_bytes(bytes(range(64)))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def regions(memory: Path) -> Iterator[Regions]:
    """With `r`, the bytes from 16 on."""
    made = Regions(Limits())
    made.register(ME, "r", f"/{memory.name}", 16, 48)
    yield made
    made.close()


def filled(regions: Regions, document: Any, binary: bytes = b"", **options: Any) -> Any:
    head = json.dumps(document).encode()
    return fill(regions, lambda: ME, bytearray(head + binary), len(head), options.get("take", lambda _: None), options.get("limit", 1 << 20))


def tensor(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "UINT8", "shape": [4], "parameters": parameters}


def test_inputs_come_out_of_their_regions_and_others_stay_where_they_were(regions: Regions) -> None:
    inputs = [
        tensor("a", binary_data_size=4),
        tensor("b", shared_memory_region="r", shared_memory_byte_size=4, shared_memory_offset=8),
        tensor("c", binary_data_size=3),
        tensor("d", shared_memory_region="r", shared_memory_byte_size=2),
    ]
    request = filled(regions, {"inputs": inputs, "id": "7"}, b"AAAACCC!")
    document = json.loads(bytes(request.body[: request.header_bytes]))
    assert bytes(request.body[request.header_bytes :]) == b"AAAA" + bytes([24, 25, 26, 27]) + b"CCC" + bytes([16, 17]) + b"!"
    assert [entry["parameters"] for entry in document["inputs"]] == [{"binary_data_size": size} for size in (4, 4, 3, 2)]
    assert document["id"] == "7"


def test_outputs_go_where_they_were_asked_to_and_others_are_sent(regions: Regions, memory: Path) -> None:
    outputs = [{"name": "y", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}}, {"name": "z"}]
    request = filled(regions, {"inputs": [], "outputs": outputs})
    assert json.loads(bytes(request.body[: request.header_bytes]))["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]
    head = json.dumps({"outputs": [tensor("y", binary_data_size=4), tensor("z", binary_data_size=2)]}).encode()
    buffers, header_bytes = request.deliver(bytearray(head + b"YYYYzz"), len(head))
    assert bytes(buffers[1]) == b"zz"
    answer = json.loads(bytes(buffers[0]))
    assert header_bytes == len(buffers[0])
    assert answer["outputs"][0]["parameters"] == {"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": 4}
    assert memory.read_bytes() == bytes(range(20)) + b"YYYY" + bytes(range(24, 64))


def test_nothing_is_written_if_one_output_has_no_room(regions: Regions, memory: Path) -> None:
    outputs = [{"name": name, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": size}} for name, size in (("y", 8), ("z", 2))]
    request = filled(regions, {"inputs": [], "outputs": outputs})
    head = json.dumps({"outputs": [tensor("y", binary_data_size=4), tensor("z", binary_data_size=4)]}).encode()
    with pytest.raises(HttpError, match="`z` has 4 bytes, its place in shared memory 2"):
        request.deliver(bytearray(head + b"YYYYzzzz"), len(head))
    assert memory.read_bytes() == bytes(range(64))


def test_a_region_that_shrinks_is_an_error_and_grows_no_more(regions: Regions, memory: Path) -> None:
    os.truncate(memory, 20)
    with pytest.raises(HttpError, match="has been shortened"):
        filled(regions, {"inputs": [tensor("a", shared_memory_region="r", shared_memory_byte_size=8)]})
    with pytest.raises(HttpError, match="has been shortened"):
        regions.get(ME, "r").write(0, memoryview(b"12345678"))
    assert memory.stat().st_size == 20


def test_one_that_was_unlinked_serves_on_until_it_is_unregistered(regions: Regions, memory: Path) -> None:
    memory.unlink()
    entry = {"inputs": [tensor("a", shared_memory_region="r", shared_memory_byte_size=1)]}
    request = filled(regions, entry)
    assert bytes(request.body[request.header_bytes :]) == b"\x10"
    region = regions.get(ME, "r")
    regions.unregister(ME, "r")
    with pytest.raises(HttpError, match="no shared memory `r` is registered"):
        filled(regions, entry)
    with pytest.raises(HttpError, match="unregistered meanwhile"):
        region.read(0, memoryview(bytearray(1)))


@pytest.mark.parametrize("key", ["", "/", ".", "..", "/..", "/../x", "a/b", "//a", "/a/b/c", "../../etc/passwd", "a\0b", "a" * 300, "ä"])
def test_a_key_is_one_name_below_the_systems_folder(key: str) -> None:
    with pytest.raises(HttpError, match="is no name of shared memory"):
        Regions(Limits()).register(ME, "r", key, 0, 1)


def test_only_a_file_of_ones_own_is_taken(memory: Path, tmp_path: Path) -> None:
    regions = Regions(Limits())
    with pytest.raises(HttpError) as caught:
        regions.register(ME + 1, "r", memory.name, 0, 1)
    assert caught.value.status == 403
    memory.chmod(0o666)
    with pytest.raises(HttpError, match="not this user's alone"):
        regions.register(ME, "r", memory.name, 0, 1)
    memory.unlink()
    with pytest.raises(HttpError, match="there is no shared memory"):
        regions.register(ME, "r", memory.name, 0, 1)
    memory.symlink_to(tmp_path)
    with pytest.raises(HttpError, match="there is no shared memory"):
        regions.register(ME, "r", memory.name, 0, 1)
    memory.unlink()
    os.mkfifo(memory)
    with pytest.raises(HttpError):
        regions.register(ME, "r", memory.name, 0, 1)


def test_counts_and_sizes_are_bounded(memory: Path) -> None:
    regions = Regions(Limits(named_regions=2, named_region_bytes=128))
    with pytest.raises(HttpError, match="65 at 0 do not lie within"):
        regions.register(ME, "r", memory.name, 0, 65)
    with pytest.raises(HttpError, match="1 at 64 do not lie within"):
        regions.register(ME, "r", memory.name, 64, 1)
    regions.register(ME, "a", memory.name, 0, 64)
    with pytest.raises(HttpError, match="`a` is registered already"):
        regions.register(ME, "a", memory.name, 0, 64)
    regions.register(ME, "b", memory.name, 0, 64)
    with pytest.raises(HttpError, match="2 regions of shared memory are registered") as caught:
        regions.register(ME, "c", memory.name, 0, 64)
    assert caught.value.status == 429
    regions.unregister(ME, None)
    os.truncate(memory, 129)
    with pytest.raises(HttpError, match="would take 129 bytes"):
        regions.register(ME, "a", memory.name, 0, 64)
    assert regions.of(ME) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (tensor("a", shared_memory_region="r"), "shared_memory_byte_size is a number"),
        (tensor("a", shared_memory_region="r", shared_memory_byte_size=-1), "shared_memory_byte_size is a number"),
        (tensor("a", shared_memory_region="r", shared_memory_byte_size=True), "shared_memory_byte_size is a number"),
        (tensor("a", shared_memory_region="r", shared_memory_byte_size=1, shared_memory_offset=-1), "shared_memory_offset is a number"),
        (tensor("a", shared_memory_region="r", shared_memory_byte_size=1, shared_memory_offset=48), "1 at 48 do not lie within"),
        (tensor("a", shared_memory_region="r", shared_memory_byte_size=1 << 40), "do not lie within"),
        (tensor("a", shared_memory_region=7, shared_memory_byte_size=1), "shared_memory_region is a string"),
        (tensor("a", shared_memory_region="other", shared_memory_byte_size=1), "no shared memory `other` is registered"),
        (tensor("a", shared_memory_region="r", shared_memory_byte_size=1, binary_data_size=1), "has both binary_data_size and"),
        ({**tensor("a", shared_memory_region="r", shared_memory_byte_size=1), "data": []}, "has both data and"),
    ],
)
def test_what_is_wrong_is_said(regions: Regions, entry: Any, message: str) -> None:
    with pytest.raises(HttpError, match=message):
        filled(regions, {"inputs": [entry]})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"inputs": "shared_memory_region"',
        b'"shared_memory_region"',
        b'{"shared_memory_region": ' + b"9" * 500 + b"}",
        b'{"shared_memory_region": ' + b"[" * 90_000,
        b'{"inputs": 4, "outputs": ["shared_memory_region", 3], "parameters": 7}',
        b'{"inputs": [{"parameters": 7, "name": "shared_memory_region"}]}',
    ],
)
def test_what_a_worker_will_refuse_reaches_it(regions: Regions, body: bytes) -> None:
    request = fill(regions, lambda: ME, bytearray(body), None, lambda _: None, 1 << 20)
    assert request.places == {}
    assert fill(regions, lambda: ME, bytearray(body), len(body) + 9, lambda _: None, 1 << 20).header_bytes == len(body) + 9


def test_the_limit_holds_for_what_lies_in_regions_too(regions: Regions) -> None:
    inputs = [tensor(str(i), shared_memory_region="r", shared_memory_byte_size=48) for i in range(30)]
    with pytest.raises(HttpError, match="with its shared memory, at most 2000 are taken"):
        filled(regions, {"inputs": inputs}, limit=2000)
    with pytest.raises(HttpError, match="of a request with shared memory has 2"):
        filled(regions, {"inputs": inputs, "id": "x" * (2 << 20)})
    taken: list[int] = []
    request = filled(regions, {"inputs": inputs}, take=taken.append)
    assert taken == [len(request.body)]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["r", "x", "other", "\ud800", ""]) | st.integers(0, 64)
PARAMETERS = st.dictionaries(
    st.sampled_from(["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "binary_data_size", "binary_data"]), SCALARS
)
ENTRY = st.dictionaries(st.sampled_from(["name", "shape", "data"]), SCALARS) | st.fixed_dictionaries({"name": st.just("x"), "parameters": PARAMETERS | SCALARS})
REQUEST = st.dictionaries(st.sampled_from(["inputs", "outputs", "parameters", "id"]), st.lists(ENTRY | SCALARS, max_size=3) | SCALARS | ENTRY)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUEST, st.binary(max_size=40), st.integers(-3, 45))
def test_any_request_is_filled_refused_or_left_to_the_worker(regions: Regions, document: Any, binary: bytes, off: int) -> None:
    head = json.dumps(document).encode()
    for header_bytes in (None, len(head), max(0, len(head) + off)):
        try:
            request = fill(regions, lambda: ME, bytearray(head + binary), header_bytes, lambda _: None, 4096)
        except HttpError as error:
            assert 400 <= error.status < 500
        else:
            assert len(request.body) <= max(4096, len(head) + len(binary))


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6])
def test_the_other_end_of_a_connection_is_known(family: int, tmp_path: Path) -> None:
    with socket.socket(family) as listener, socket.socket(family) as client:
        try:
            listener.bind(str(tmp_path / "s") if family == socket.AF_UNIX else ("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert Peer(accepted).uid == ME
            client.close()


@pytest.mark.e2e
def test_over_the_unix_socket_from_register_to_unregister(shared: Agent, memory: Path) -> None:
    memory.write_bytes(np.ones(4, np.float32).tobytes() + bytes(48))
    shared.ask("POST", "/v2/systemsharedmemory/region/in/register", {"key": f"/{memory.name}", "offset": 0, "byte_size": 16})
    shared.ask("POST", "/v2/systemsharedmemory/region/out/register", {"key": memory.name, "offset": 16, "byte_size": 12})
    try:
        assert shared.ask("GET", "/v2/systemsharedmemory/region/out/status") == [{"name": "out", "key": memory.name, "offset": 16, "byte_size": 12}]
        request = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"shared_memory_region": "in", "shared_memory_byte_size": 16}}],
            "outputs": [{"name": "y", "parameters": {"shared_memory_region": "out", "shared_memory_byte_size": 12}}],
        }
        answer = shared.ask("POST", "/v2/models/linear/infer", request)
        assert answer["outputs"][0] == {
            "name": "y",
            "datatype": "FP32",
            "shape": [1, 3],
            "parameters": {"shared_memory_region": "out", "shared_memory_byte_size": 12, "shared_memory_offset": 0},
        }
        assert np.frombuffer(memory.read_bytes(), np.float32)[4:7].tolist() == [4.0] * 3
        request["inputs"][0]["shape"] = [1, 3]
        with pytest.raises(BadRequest, match="takes 12 bytes, binary_data_size is 16"):
            shared.ask("POST", "/v2/models/linear/infer", request)
    finally:
        shared.ask("POST", "/v2/systemsharedmemory/unregister", {})
    assert shared.ask("GET", "/v2/systemsharedmemory/status") == []
    with pytest.raises(NoSuchModel):
        shared.ask("GET", "/v2/systemsharedmemory/region/out/status")
    with pytest.raises(BadRequest, match="a region has a `key`"):
        shared.ask("POST", "/v2/systemsharedmemory/region/out/register", {"key": memory.name})
    with pytest.raises(NoSuchModel, match="is an extension that is not offered here"):
        shared.ask("GET", "/v2/cudasharedmemory/status")


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_another_user_with_the_token_sees_and_takes_nothing_of_ones_own(agent: Agent, memory: Path) -> None:
    agent.ask("POST", "/v2/systemsharedmemory/region/mine/register", {"key": memory.name, "byte_size": 64})
    reply = agent.verb("tcp", "0")
    token = Path(reply["token_file"]).read_text().strip()
    code = (
        "import encodings.idna, http.client, json, os, sys\n"
        "os.setuid(65534)\n"
        "for method, target, body in json.load(sys.stdin):\n"
        f"    c = http.client.HTTPConnection({reply['url'][len('http://') :]!r})\n"
        f"    c.request(method, target, json.dumps(body), {{'Authorization': 'Bearer {token}'}})\n"
        "    r = c.getresponse()\n"
        "    print(json.dumps([r.status, json.loads(r.read())]))\n"
    )
    questions = [
        ("GET", "/v2/systemsharedmemory/status", {}),
        ("POST", "/v2/systemsharedmemory/region/theirs/register", {"key": memory.name, "byte_size": 64}),
        ("POST", "/v2/systemsharedmemory/unregister", {}),
    ]
    done = subprocess.run([sys.executable, "-I", "-c", code], input=json.dumps(questions).encode(), capture_output=True, check=True, timeout=60)
    status, register, unregister = map(json.loads, done.stdout.splitlines())
    assert status == [200, []]
    assert register[0] == 403
    assert unregister[0] == 200
    assert [entry["name"] for entry in agent.ask("GET", "/v2/systemsharedmemory/status")] == ["mine"]
    with Connection(home=agent.home, url=reply["url"], token=token) as connection:
        assert connection.request("GET", "/v2/systemsharedmemory/status").json()[0]["name"] == "mine"
    with pytest.raises(ClientError, match="registered already"):
        agent.ask("POST", "/v2/systemsharedmemory/region/mine/register", {"key": memory.name, "byte_size": 64})
