"""What one client may take, and that the others do not feel it."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toys import Agent, counter, linear, make, slow_to_load, wait_until

from edge_agent import connect, protocol
from edge_agent.client import ClientError

pytestmark = pytest.mark.e2e

LIMITS = {
    "body_bytes": 2_000_000,
    "in_flight_bytes": 3_000_000,
    "connections": 20,
    "idle_s": 1,
    "bytes_a_second": 2_000_000,
    "waiting": 2,
    "queue_s": 0.5,
    "answer_s": 2,
}


@pytest.fixture(scope="module")
def strict() -> Iterator[Agent]:
    """An agent that gives little, and waits a second."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        agent = Agent(Path(folder, "home"))
        agent.home.mkdir()
        (agent.home / "config.json").write_text(json.dumps({"limits": LIMITS}))
        agent.start()
        try:
            assert agent.activate(make(Path(folder, "bundle"), linear(), name="linear"))["state"] == "done"
            yield agent
        finally:
            agent.stop()


def opened(agent: Agent) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(agent.home / "agent.sock"))
    return sock


def question(rows: int) -> bytes:
    """To `linear`, in binary: 16 bytes a row, and 12 in the answer."""
    head, buffers = protocol.encode_request({"x": np.ones((rows, 4), np.float32)})
    body = head + bytes(buffers[0])
    return (
        f"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nInference-Header-Content-Length: {len(head)}\r\n\r\n".encode()
        + body
    )


def until_closed(sock: socket.socket) -> bytes:
    found = b""
    while data := sock.recv(1 << 16):
        found += data
    return found


def well(agent: Agent) -> None:
    with connect("linear", home=agent.home) as model:
        assert model(np.ones((2, 4), np.float32))["y"].tolist() == [[4.0] * 3] * 2


def test_an_answer_that_nobody_reads_is_given_up(strict: Agent) -> None:
    with opened(strict) as sock:
        sock.sendall(question(100_000))
        well(strict)
        strict.ask("GET", "/v2")
        wait_for_end(sock)
        answer = until_closed(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    (length,) = [int(line.split(b" ")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
    assert len(body) < length


def wait_for_end(sock: socket.socket) -> None:
    """Until the agent has closed its end, without reading anything."""
    import select

    poll = select.poll()
    poll.register(sock, select.POLLHUP)
    assert poll.poll(30_000)


@pytest.mark.parametrize("sent", [b"", b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\nContent-", question(10)[:-50], b"GET / HTTP/1.1\r\n"])
def test_who_falls_silent_is_cut_off(strict: Agent, sent: bytes) -> None:
    with opened(strict) as sock:
        sock.sendall(sent)
        well(strict)
        answer = until_closed(sock)
    assert answer.startswith(b"HTTP/1.1 408 ") if sent else answer == b""


def test_bodies_that_do_not_fit_together_come_again_later(strict: Agent) -> None:
    large = question(110_000)
    with opened(strict) as first, opened(strict) as second:
        first.sendall(large[:-100])
        begun = first_answer(second, large)
        while begun.startswith(b"HTTP/1.1 200 "):  # the first one's head had not been read yet
            begun = first_answer(second, large)
        assert begun.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in begun
        assert b"are being answered, " in begun
        well(strict)
        first.sendall(large[-100:])
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    well(strict)


def first_answer(sock: socket.socket, request: bytes) -> bytes:
    sock.sendall(request)
    answer = sock.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    (length,) = [int(line.split(b" ")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
    while len(body) < length:
        body += sock.recv(1 << 16)
    return answer


def test_a_question_that_takes_too_long_ends_and_the_model_answers_the_next(strict: Agent, tmp_path: Path) -> None:
    assert strict.activate(make(tmp_path / "counter", counter(), name="counter", feeds=[{"n": np.array(10)}]))["state"] == "done"
    with connect("counter", home=strict.home, via="http") as model:
        with pytest.raises(ClientError, match="the process of counter died while it answered"):
            model({"n": np.array(10**12)})
        well(strict)
        wait_until(lambda: strict.model("counter")["state"] == "active")
        assert model({"n": np.array(5)})["sum"] == 5


def test_more_than_may_wait_are_told_to_come_again(strict: Agent, tmp_path: Path) -> None:
    assert strict.activate(make(tmp_path / "counter", counter(), name="counter", feeds=[{"n": np.array(10)}]))["state"] == "done"
    asked = json.dumps({"inputs": [{"name": "n", "datatype": "INT64", "shape": [], "data": [10**12]}]}).encode()
    head = f"POST /v2/models/counter/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(asked)}\r\nConnection: close\r\n\r\n".encode()
    crowd = [opened(strict) for _ in range(16)]
    for sock in crowd:
        sock.sendall(head + asked)
    well(strict)
    answers = [until_closed(sock) for sock in crowd]
    for sock in crowd:
        sock.close()
    assert all(answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answer for answer in answers)
    assert any(b"requests wait for counter already" in answer for answer in answers)
    assert any(b"this request waited 0.5 s for its turn" in answer for answer in answers)
    wait_until(lambda: strict.model("counter")["state"] == "active")
    with connect("counter", home=strict.home) as model:
        assert model({"n": np.array(5)})["sum"] == 5


def test_a_model_that_is_being_loaded_is_not_waited_for_longer_than_for_a_turn(strict: Agent, tmp_path: Path) -> None:
    assert strict.activate(make(tmp_path / "slow", slow_to_load(), name="slow", feeds=[{"x": np.ones((1, 4), np.float32)}]))["state"] == "done"
    strict.stop()
    strict.start()
    asked = question(1).replace(b"/linear/", b"/slow/")
    for target in (b"GET /v2/models/slow HTTP/1.1\r\nHost: x\r\n\r\n", asked):
        with opened(strict) as sock:
            sock.sendall(target)
            answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"slow is not running at the moment: it is being loaded" in answer
    wait_until(lambda: strict.model("slow")["state"] == "active")
    with connect("slow", home=strict.home) as model:
        assert model(np.ones((1, 4), np.float32))["y"].tolist() == [[1] * 4]
    well(strict)


def test_a_crowd_leaves_room_again(strict: Agent) -> None:
    crowd = [opened(strict) for _ in range(40)]
    answers = [until_closed(sock) for sock in crowd]
    for sock in crowd:
        sock.close()
    refused = [answer for answer in answers if answer]
    assert len(refused) >= 20
    assert all(answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answer for answer in refused)
    well(strict)
