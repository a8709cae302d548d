"""The client against agents that misbehave: a socket that says what the test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toys import Agent

from edge_agent import connect
from edge_agent.client import AgentNotRunning, BadRequest, ClientError, NoSuchModel
from edge_agent.connection import Connection

METADATA = (
    b'{"name":"toy","versions":["1"],"inputs":[{"name":"x","datatype":"FP32","shape":[-1]},{"name":"z","datatype":"FP32","shape":[-1]}],'
    b'"outputs":[{"name":"y","datatype":"FP32","shape":[-1]}]}'
)
ANSWER = b'{"model_name":"toy","model_version":"2","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[5]}]}'
X = np.ones(1, np.float32)


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


class Fake:
    """Answers each connection with its own list of replies; None closes it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(home / "agent.sock"))
        self.listener.listen()
        self.asked = 0

    def plays(self, *connections: list[bytes]) -> None:
        threading.Thread(target=self._play, args=(connections,), daemon=True).start()

    def _play(self, connections: tuple[list[bytes], ...]) -> None:
        for replies in connections:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # the test is over: nobody is to connect any more
                return
            with sock:
                for reply in replies:
                    if not sock.recv(1 << 16):
                        break
                    self.asked += 1
                    sock.sendall(reply)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path)
    yield made
    made.listener.close()


def test_a_connection_that_was_closed_meanwhile_is_opened_again(fake: Fake) -> None:
    fake.plays([http(METADATA)], [http(ANSWER)])
    with connect("toy", home=fake.home, via="http") as model:
        assert model({"x": X, "z": X})["y"].tolist() == [5]
        assert model.release == "2"
        assert repr(model) == "Model('toy', release='2')"


def test_it_is_opened_again_once_only(fake: Fake) -> None:
    fake.plays([http(METADATA)], [], [http(ANSWER)])
    with connect("toy", home=fake.home, via="http") as model, pytest.raises(ClientError, match="closed the connection without an answer"):
        model({"x": X, "z": X})


def test_a_question_that_was_half_answered_is_not_asked_again(fake: Fake) -> None:
    fake.plays([http(METADATA), http(ANSWER)[:-5]], [http(ANSWER)])
    with connect("toy", home=fake.home, via="http") as model, pytest.raises(ClientError, match="was cut off"):
        model({"x": X, "z": X})
    assert fake.asked == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        (http(b"not json"), "no JSON"),
        (http(b"{}"), "malformed"),
        (http(b'{"versions":["1"],"inputs":[{"name":"x","datatype":"FP99","shape":[]}],"outputs":[]}'), "malformed"),
        (http(b"<html>", "502 Bad Gateway"), "status 502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "does not speak HTTP"),
    ],
)
def test_another_program_at_the_socket_is_a_sentence(fake: Fake, reply: bytes, message: str) -> None:
    fake.plays([reply])
    with pytest.raises(ClientError, match=message):
        connect("toy", home=fake.home, via="http")


def test_an_agent_that_does_not_answer_is_given_up(fake: Fake) -> None:
    with pytest.raises(ClientError, match=r"did not answer within 0\.2 s"):
        connect("toy", home=fake.home, timeout_s=0.2)


def test_no_agent_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AgentNotRunning, match="no agent answers at") as caught:
        connect("toy", home=tmp_path)
    assert caught.value.hint == "start it with `edge-agent start`"
    with pytest.raises(AgentNotRunning):
        connect("toy", url="http://127.0.0.1:9", token="t")


def test_a_token_that_would_end_the_head_is_refused_here(fake: Fake) -> None:
    with pytest.raises(ClientError, match="no header can"), Connection(home=fake.home, token="a\r\nX: y") as connection:
        connection.request("GET", "/v2")


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "a\r\nX: y"])
def test_what_is_no_name_is_not_asked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(NoSuchModel, match="is no name"):
        connect(name, home=tmp_path)


def test_one_array_is_enough_for_one_input_only(fake: Fake) -> None:
    fake.plays([http(METADATA)])
    with connect("toy", home=fake.home, via="http") as model, pytest.raises(BadRequest, match="toy has 2 inputs") as caught:
        model(X)
    assert "`z` float32 ['any']" in caught.value.hint


def test_arrays_that_cannot_travel_are_refused_here(fake: Fake) -> None:
    fake.plays([http(METADATA)])
    with connect("toy", home=fake.home, via="http") as model, pytest.raises(BadRequest, match="complex"):
        model({"x": np.array([1j]), "z": X})


@pytest.mark.e2e
def test_threads_may_share_a_model(shared: Agent) -> None:
    wrong: list[object] = []
    with connect("linear", home=shared.home) as model:

        def ask(number: int) -> None:
            for _ in range(50):
                answer = model(np.full((1, 4), number, np.float32))["y"]
                if answer.tolist() != [[4.0 * number] * 3]:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.e2e
def test_a_closed_model_opens_again(shared: Agent) -> None:
    model = connect("linear", home=shared.home)
    model.close()
    model.close()
    assert model(np.ones((1, 4), np.float32))["y"].shape == (1, 3)
    assert {"queue", "input", "run", "output"} == set(model.timing_ms)
    model.close()
