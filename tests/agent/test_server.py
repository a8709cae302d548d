"""What the sockets answer to the well-behaved, the mistaken and the malicious."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, counter, everything_feeds, gather, logarithm, make, wait_until

from edge_agent import connect
from edge_agent.client import BadRequest, ClientError
from edge_agent.connection import Connection

pytestmark = pytest.mark.e2e

X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}


def raw(agent: Agent, data: bytes, *, port: int | None = None, wait_s: float = 10) -> bytes:
    """Everything that comes back until the agent closes."""
    with opened(agent, port) as sock:
        sock.settimeout(wait_s)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return received(sock)


def opened(agent: Agent, port: int | None = None) -> socket.socket:
    if port is not None:
        return socket.create_connection(("127.0.0.1", port))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(agent.home / "agent.sock"))
    return sock


def received(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def post(agent: Agent, document: Any, name: str = "linear") -> Any:
    return agent.ask("POST", f"/v2/models/{name}/infer", document)


def test_the_protocols_questions_are_answered(shared: Agent) -> None:
    server = shared.ask("GET", "/v2")
    assert (server["name"], server["extensions"]) == ("edge-agent", ["binary_tensor_data", "model_repository(index)", "statistics", "system_shared_memory"])
    assert shared.ask("GET", "/v2/health/live") == {"live": True}
    assert shared.ask("GET", "/v2/health/ready") == {"ready": True}
    assert shared.ask("GET", "/v2/models/linear/ready") == {"name": "linear", "ready": True}
    assert shared.ask("GET", "/v2/models/linear/versions/1/ready") == {"name": "linear", "ready": True}
    assert shared.ask("GET", "/v2/models/linear") == {
        "name": "linear",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    answer = post(shared, {"id": "7", "inputs": [X]})
    assert answer == {
        "model_name": "linear",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [4.0] * 3}],
        "id": "7",
    }
    assert shared.ask("POST", "/v2/models/linear/versions/1/infer", {"inputs": [X], "outputs": [{"name": "y"}]})["outputs"][0]["data"] == [4.0] * 3


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"inputs": []}, "the model's inputs are `x`; `x` is missing"),
        ({"inputs": [{**X, "name": "z"}]}, "the model's inputs are `x`; `x` is missing"),
        ({"inputs": [X, {**X, "name": "z"}]}, "`z` is none of them"),
        ({"inputs": [{**X, "datatype": "FP64"}]}, "the input `x` is float32 [any, 4], float64 [1, 4] came"),
        ({"inputs": [{**X, "shape": [4]}]}, "the input `x` is float32 [any, 4], float32 [4] came"),
        ({"inputs": [{**X, "shape": [4, 1]}]}, "the input `x` is float32 [any, 4], float32 [4, 1] came"),
        ({"inputs": [{**X, "data": [1, 2, 3]}]}, "`x`: data does not have the shape [1, 4]"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": "\ud800"}}]}, r"`x`: binary_data_size is \ud800, 0 bytes are left"),
        ({"inputs": [X], "outputs": [{"name": "z"}]}, "the model's outputs are `y`; `z` is none of them"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 16}}]}, "`x`: binary_data_size is 16, 0 bytes are left"),
    ],
)
def test_a_wrong_question_is_told_what_was_expected(shared: Agent, document: Any, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        post(shared, document)
    assert message in str(caught.value)


def test_the_runtimes_own_objections_are_the_clients_fault_too(shared: Agent, tmp_path: Path) -> None:
    shared.activate(make(tmp_path / "gather", gather(), name="gather", feeds=[{"i": np.array([1])}]))
    with pytest.raises(BadRequest, match="out of data bounds"):
        post(shared, {"inputs": [{"name": "i", "datatype": "INT64", "shape": [1], "data": [9]}]}, "gather")
    shared.ask("DELETE", "/edge/models/gather")


def test_nan_goes_out_as_binary_and_never_as_bad_json(shared: Agent, tmp_path: Path) -> None:
    shared.activate(make(tmp_path / "log", logarithm(), name="log", feeds=[{"x": np.array([1, -1, 0], np.float32)}]))
    with connect("log", home=shared.home) as model:
        answer = model(np.array([-1, 0], np.float32))["y"]
    assert np.isnan(answer[0])
    assert answer[1] == -np.inf
    with pytest.raises(BadRequest, match="`y` holds NaN or infinity, which JSON cannot carry: ask for it with binary_data"):
        post(shared, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [-1]}]}, "log")
    assert post(shared, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}, "log")["outputs"][0]["data"] == [0.0]
    shown = shared.verb("infer", "log", "--golden")
    assert shown["outputs"]["y"]["data"] == [0.0, None, None]
    assert shown["agrees"] is True
    shared.ask("DELETE", "/edge/models/log")


def test_every_dtype_travels_as_json_and_as_binary(shared: Agent) -> None:
    feeds = everything_feeds()
    with connect("everything", home=shared.home) as model:
        answers = model(feeds)
    for name, array in feeds.items():
        np.testing.assert_array_equal(answers[name.replace("in_", "out_")], array)
    inputs = [
        {"name": i["name"], "datatype": i["datatype"], "shape": [2], "data": feeds[i["name"]].tolist()}
        for i in shared.ask("GET", "/v2/models/everything")["inputs"]
    ]
    for output in post(shared, {"inputs": inputs}, "everything")["outputs"]:
        np.testing.assert_array_equal(
            np.array(output["data"], feeds[output["name"].replace("out_", "in_")].dtype), feeds[output["name"].replace("out_", "in_")]
        )


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/linear/versions/7", 404),
        ("GET", "/v2/models/../../etc/passwd", 404),
        ("GET", "/v2/models/%2e%2e", 404),
        ("DELETE", "/v2/models/linear", 405),
        ("GET", "/v2/models/linear/infer", 405),
        ("PUT", "/edge/blobs/" + "0" * 64 + "?size=-1", 400),
        ("PUT", "/edge/blobs/" + "0" * 64 + "?size=5&offset=9", 400),
        ("GET", "/edge/jobs/1234", 404),
        ("GET", "/edge/logs?lines=x", 400),
        ("POST", "/edge/missing", 400),
        ("POST", "/edge/activate", 400),
        ("POST", "/edge/tcp", 400),
    ],
)
def test_every_failure_is_json_with_its_status(shared: Agent, method: str, target: str, status: int) -> None:
    answer = raw(shared, f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["error"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"noise\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5000000\r\n", 413),
        (b"PUT /edge/blobs/" + b"0" * 64 + b"?size=5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 411),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nInference-Header-Content-Length: 9\r\n\r\nabc", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nInference-Header-Content-Length: x\r\n\r\nabc", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc", 415),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 40_000, 431),
    ],
)
def test_what_is_no_honest_request_is_cut_off(shared: Agent, data: bytes, status: int) -> None:
    answer = raw(shared, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert b"Connection: close" in answer or status in (400, 415)


def test_requests_may_come_in_one_piece_or_byte_by_byte(shared: Agent) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    body = json.dumps({"inputs": [X]}).encode()
    two = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    assert raw(shared, one + two + one).count(b"HTTP/1.1 200 OK") == 3
    with opened(shared) as sock:
        for byte in one + two:
            sock.sendall(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        assert received(sock).count(b"HTTP/1.1 200 OK") == 2


def test_a_head_that_was_read_before_is_told_from_one_that_only_begins_so(shared: Agent) -> None:
    body = json.dumps({"inputs": [X]}).encode()
    head = f"POST /v2/models/linear/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode()
    good, bad = head + b"\r\n" + body, head + b"Content-Length: 7\r\n\r\n" + body
    answers = raw(shared, good * 3 + b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + good + bad)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200"] * 5 + [b"400"]
    assert len(re.findall(rb'"data": ?\[4\.0', answers)) == 4
    in_two = raw(shared, good + good[:60])  # the second ends within its head
    assert in_two.count(b"HTTP/1.1 200") == 1


def test_a_body_may_come_in_chunks_and_a_request_behind_it(shared: Agent) -> None:
    body = json.dumps({"inputs": [X]}).encode()
    head = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(f"{len(part):x};a=b\r\n".encode() + part + b"\r\n" for part in (body[:1], body[1:7], body[7:])) + b"0\r\nA: trailer\r\n\r\n"
    answer = raw(shared, head + chunks + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'"data":[4.0,4.0,4.0]' in answer


def test_a_method_that_is_not_possible_is_told_which_are(shared: Agent) -> None:
    answer = raw(shared, b"DELETE /v2/models/linear HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"\r\nAllow: GET\r\n" in answer
    head = raw(shared, b"HEAD /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert head.endswith(b"\r\n\r\n")


def test_an_unwanted_body_does_not_break_the_next_request(shared: Agent) -> None:
    body = bytes(1 << 20)
    first = b"POST /v2/models/nothing/infer HTTP/1.1\r\nHost: x\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    answer = raw(shared, first + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b'{"live": true}')


def test_a_client_that_asks_first_is_told_to_go_on(shared: Agent) -> None:
    body = json.dumps({"inputs": [X]}).encode()
    with opened(shared) as sock:
        sock.settimeout(10)
        head = (
            b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: "
            + str(len(body)).encode()
            + b"\r\n\r\n"
        )
        sock.sendall(head)
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert received(sock).startswith(b"HTTP/1.1 200 OK")


def test_a_large_body_is_refused_before_it_is_sent(shared: Agent) -> None:
    answer = raw(shared, b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "the body has 100000000 bytes, at most 67108864 are taken"


def test_too_many_connections_are_refused_and_the_others_are_served(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1"))["state"] == "done"
    with connect("toy", home=agent.home) as model:
        model(np.ones((1, 4), np.float32))
        crowd = [opened(agent) for _ in range(300)]
        try:
            assert model(np.ones((1, 4), np.float32))["y"].shape == (1, 3)
            wait_until(lambda: refused(agent))
        finally:
            for sock in crowd:
                sock.close()
    wait_until(lambda: agent._answers())


def refused(agent: Agent) -> bool:
    try:
        agent.ask("GET", "/edge/alive")
    except ClientError as error:
        assert "connections are open" in str(error)
        return True
    return False


def test_a_busy_model_does_not_hold_up_the_others(shared: Agent, tmp_path: Path) -> None:
    shared.activate(make(tmp_path / "counter", counter(), name="counter", feeds=[{"n": np.array(10)}]))
    with connect("counter", home=shared.home) as slow, connect("linear", home=shared.home) as quick:
        asking = threading.Thread(target=lambda: slow({"n": np.array(1_000_000)}))
        asking.start()
        time.sleep(0.1)
        begin = time.perf_counter()
        quick(np.ones((1, 4), np.float32))
        assert time.perf_counter() - begin < 0.5
        assert asking.is_alive()
        asking.join(60)
    shared.ask("DELETE", "/edge/models/counter")


@pytest.mark.parametrize(
    ("headers", "target", "status"),
    [
        ("Host: anything", "/edge/alive", 200),
        ("Host: localhost:8000\r\nOrigin: http://localhost:8000", "/edge/alive", 200),
        ("Host: localhost:8000\r\nOrigin: http://evil.example", "/edge/alive", 403),
        ("Host: rebound.example:8000\r\nOrigin: http://rebound.example:8000", "/edge/alive", 403),
        ("Host: localhost:8000\r\nOrigin: null", "/edge/alive", 403),
        ("Host: localhost:8000\r\nSec-Fetch-Site: cross-site", "/edge/alive", 403),
        ("Host: localhost:8000\r\nSec-Fetch-Site: same-origin", "/status.json", 200),
        ("Host: localhost:8000\r\nSec-Fetch-Site: cross-site", "/", 200),
    ],
)
def test_a_socket_that_was_forwarded_to_a_port_is_closed_to_other_pages(shared: Agent, headers: str, target: str, status: int) -> None:
    assert raw(shared, f"GET {target} HTTP/1.1\r\n{headers}\r\n\r\n".encode()).split()[1] == str(status).encode()


def test_tcp_wants_the_token_and_offers_only_models(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1"))["state"] == "done"
    reply = agent.verb("tcp", "0")
    token_file = Path(reply["token_file"])
    token = token_file.read_text().strip()
    assert (token_file.stat().st_mode & 0o777, token_file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    port = int(reply["url"].rsplit(":", 1)[1])

    def status(*headers: str, target: str = "/v2", host: str = f"127.0.0.1:{port}") -> int:
        lines = "".join(f"{header}\r\n" for header in headers)
        answer = raw(agent, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode(), port=port)
        assert answer.count(b"WWW-Authenticate: Bearer") == (answer[9:12] == b"401")
        return int(answer[9:12])

    bearer = f"Authorization: Bearer {token}"
    assert status() == 401
    assert status("Authorization: Bearer wrong") == 401
    assert status(f"Authorization: Basic {token}") == 401
    assert status("Authorization: Bearer \xff") == 401
    assert status(bearer) == 200
    assert status(bearer, host=f"localhost:{port}") == 200
    assert status(bearer, host="evil.example") == 403
    assert status(bearer, "Origin: http://evil.example") == 403
    assert status(bearer, f"Origin: http://localhost:{port}") == 403  # not the page's own address
    assert status(bearer, f"Origin: http://127.0.0.1:{port}") == 200
    assert status(bearer, "Origin: null") == 403
    assert status(bearer, host="127.0.0.1.evil.example") == 403
    assert status(bearer, host="192.168.7.7") == 403
    assert status(target="/", host="evil.example") == 403
    assert status(bearer, target="/edge/status") == 404

    with connect("toy", url=reply["url"], token=token) as model:
        assert model(np.ones((1, 4), np.float32))["y"].tolist() == [[4.0] * 3]
    with pytest.raises(BadRequest, match="Authorization: Bearer TOKEN"):
        connect("toy", url=reply["url"], token="wrong")

    assert agent.stop() == 0
    agent.start()  # it is remembered, with the same token
    wait_until(lambda: agent.model("toy")["state"] == "active")
    assert status(bearer) == 200
    assert agent.verb("tcp", str(port))["url"] == reply["url"]
    assert status(bearer) == 200
    assert agent.verb("tcp", "off") == {"url": None, "token_file": None}
    with pytest.raises(OSError, match="refused"):
        opened(agent, port)
    for file in ("agent.log", "journal.jsonl", "config.json"):
        assert token not in (agent.home / file).read_text()


@pytest.mark.parametrize(("address", "reached", "authority"), [("0.0.0.0", "127.0.0.1", "127.0.0.1"), ("::1", "::1", "[::1]")])  # noqa: S104 - on request
def test_tcp_opens_elsewhere_when_it_is_told_to_and_answers_to_names_that_the_file_lists(agent: Agent, address: str, reached: str, authority: str) -> None:
    assert agent.stop() == 0
    (agent.home / "config.json").write_text(json.dumps({"hosts": ["Camera.local"]}))
    agent.start()
    try:
        reply = agent.verb("tcp", "0", "--address", address)
    except AssertionError:
        pytest.skip("no IPv6 here")
    token, port = Path(reply["token_file"]).read_text().strip(), int(reply["url"].rsplit(":", 1)[1])
    assert json.loads((agent.home / "config.json").read_text())["hosts"] == ["Camera.local"]

    def status(host: str) -> int:
        with socket.create_connection((reached, port)) as sock:
            sock.sendall(f"GET /v2 HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode())
            return int(received(sock)[9:12])

    assert [status(host) for host in (authority, f"{authority}:{port}", "localhost", "camera.local:80", "evil.example", "")] == [200, 200, 200, 200, 403, 403]
    assert agent.stop() == 0
    agent.start()
    assert status(authority) == 200


def test_a_port_that_is_taken_is_a_sentence(shared: Agent) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ClientError, match="cannot be opened: Address already in use"):
            shared.ask("POST", "/edge/tcp", {"port": taken.getsockname()[1]})


def test_a_stale_connection_is_opened_again_once(shared: Agent) -> None:
    with Connection(home=shared.home) as connection:
        connection.request("GET", "/v2")
        assert connection._socket is not None
        connection._socket.shutdown(socket.SHUT_RDWR)  # as after the agent's idle time
        assert connection.request("GET", "/v2/health/live").json() == {"live": True}
