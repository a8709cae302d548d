"""Asking through shared memory, of a running agent: as the client does it, and as a client does that means harm."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, asked_while_versions_change, counter, everything_feeds, gather, linear, make, used_s, wait_until

from edge_agent import connect, ring
from edge_agent.client import BadRequest, ClientError, Model
from edge_agent.connection import Connection

ONES = np.ones((1, 4), np.float32)


def shm(agent: Agent, name: str, **options: Any) -> Model:
    model = connect(name, home=agent.home, via="shm", **options)
    assert isinstance(model, Model)
    return model


@pytest.mark.e2e
def test_every_dtype_goes_there_and_back(shared: Agent) -> None:
    feeds = everything_feeds()
    with shm(shared, "everything") as model:
        for _ in range(2):
            for name, array in model(feeds).items():
                np.testing.assert_array_equal(array, feeds[name.replace("out_", "in_")])
        empty = {name: array[:0] for name, array in feeds.items()}
        assert {array.shape for array in model(empty).values()} == {(0,)}
        swapped = {name: array.astype(array.dtype.newbyteorder(">")) if array.dtype.kind == "f" else array for name, array in feeds.items()}
        np.testing.assert_array_equal(model(swapped)["out_float64"], feeds["in_float64"])
        strided = {name: np.repeat(array, 2)[::2] for name, array in feeds.items()}
        np.testing.assert_array_equal(model(strided)["out_int16"], feeds["in_int16"])


@pytest.mark.e2e
def test_answers_are_the_callers_own(shared: Agent) -> None:
    with shm(shared, "linear") as model:
        first = model(ONES)["y"]
        second = model(2 * ONES)["y"]
        assert (first.tolist(), second.tolist()) == ([[4.0] * 3], [[8.0] * 3])
        first += 1
        assert model(ONES)["y"].tolist() == [[4.0] * 3]
    assert second.tolist() == [[8.0] * 3]  # after the region is gone, too


@pytest.mark.e2e
def test_shapes_may_change_and_regions_grow(shared: Agent) -> None:
    with shm(shared, "linear") as model:
        for rows in (1, 100_000, 3, 0, 5000):
            answer = model(np.ones((rows, 4), np.float32))["y"]
            assert answer.shape == (rows, 3)
            assert (answer == 4).all()


@pytest.mark.e2e
def test_an_answer_larger_than_expected_is_asked_for_again_in_a_larger_region(shared: Agent) -> None:
    rows = np.arange(60_000) % 5
    shared_gather(shared)
    with shm(shared, "gather") as model:
        model._answer_bytes = 1
        np.testing.assert_array_equal(model(rows)["y"], rows.astype(np.float32))


def shared_gather(agent: Agent) -> None:
    import tempfile

    if agent.model("gather") is None:
        with tempfile.TemporaryDirectory() as folder:
            assert agent.activate(make(Path(folder) / "gather", gather(), name="gather", feeds=[{"i": np.array([0])}]))["state"] == "done"


@pytest.mark.e2e
def test_what_is_wrong_is_a_sentence_and_the_line_goes_on(shared: Agent) -> None:
    with shm(shared, "linear") as model:
        with pytest.raises(BadRequest, match=r"the input `x` is float32 \[any, 4\], float64 \[1, 4\] came"):
            model(np.ones((1, 4)))
        with pytest.raises(BadRequest, match="`z` is none of them"):
            model({"x": ONES, "z": ONES})
        with pytest.raises(BadRequest, match="complex"):
            model(np.array([1j]))
        assert model(ONES)["y"].tolist() == [[4.0] * 3]
    shared_gather(shared)
    with shm(shared, "gather") as model, pytest.raises(BadRequest, match="out of data bounds"):
        model(np.array([9]))


@pytest.mark.e2e
def test_it_is_the_first_choice_and_its_latencies_are_in_the_report(shared: Agent, tmp_path: Path) -> None:
    assert shared.activate(make(tmp_path / "seen", linear(), name="seen"))["state"] == "done"
    before = shared.ask("GET", "/edge/report/seen")["models"][0]["count"]
    with connect("seen", home=shared.home) as model:
        assert isinstance(model, Model)
        assert model.via == "shm"
        for _ in range(30):
            model(ONES)
        assert set(model.timing_ms) == {"queue", "input", "run", "output"}
        with pytest.raises(BadRequest):
            model(np.ones(4, np.float32))
        report = shared.ask("GET", "/edge/report/seen")["models"][0]
    assert report["count"] == before + 30
    assert report["errors"] == 1
    assert 0 < report["phases_ms"]["run"]["p50"] < report["latency_ms"]["p50"]
    shared.ask("DELETE", "/edge/models/seen")


@pytest.mark.e2e
def test_a_wrong_way_is_a_sentence(shared: Agent) -> None:
    with pytest.raises(ClientError, match="there is no way 'carrier-pigeon' to a model"):
        connect("linear", home=shared.home, via="carrier-pigeon")
    with pytest.raises(ClientError, match=r'via="shm" does not go with a url'):
        connect("linear", url="http://127.0.0.1:9", via="shm")
    with connect("linear", home=shared.home, via="inprocess") as model:
        assert model(ONES)["y"].tolist() == [[4.0] * 3]


@pytest.mark.e2e
def test_no_question_is_lost_while_versions_change(agent: Agent, tmp_path: Path) -> None:
    problems, seen = asked_while_versions_change(agent, tmp_path, lambda: shm(agent, "toy"))
    assert problems == []
    assert seen == {("1", 4.0), ("2", 8.0)}


@pytest.mark.e2e
def test_a_crash_costs_the_question_in_flight_and_no_other(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "counter", counter(), name="counter", feeds=[{"n": np.array(10)}]))["state"] == "done"
    lost, idle_s, pid = [], used_s(agent.worker("counter")), agent.worker("counter")
    with shm(agent, "counter") as idle, shm(agent, "counter") as waiting:
        assert idle(np.array(3))["sum"] == waiting(np.array(3))["sum"] == 3

        def ask() -> None:
            with shm(agent, "counter") as model, pytest.raises(ClientError, match="the process of counter died while it answered") as caught:
                model(np.array(2**40))
            lost.append(caught.value)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: used_s(pid) > idle_s + 0.05)
        answers: list[Any] = []
        patient = threading.Thread(target=lambda: answers.append(until_answered(waiting, np.array(4))))
        patient.start()  # it rings while the worker is busy: nobody reads that
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        asking.join(20)
        patient.join(20)
        assert len(lost) == 1
        assert [float(answer) for answer in answers] == [4]
        wait_until(lambda: agent.model("counter")["state"] == "active")
        assert idle(np.array(5))["sum"] == 5


def until_answered(model: Model, feed: Any) -> Any:
    """The worker is started again after a pause: until then the agent says that it does not run."""
    while True:
        try:
            return model(feed)["sum"]
        except ClientError as error:
            assert "is not running at the moment" in str(error), error
            time.sleep(0.02)


@pytest.mark.e2e
def test_a_forked_child_asks_by_itself(shared: Agent) -> None:
    with shm(shared, "linear") as model:
        model(ONES)
        child = os.fork()
        if child == 0:
            right = all(model(3 * ONES)["y"].tolist() == [[12.0] * 3] for _ in range(200))
            os._exit(0 if right else 1)
        assert all(model(ONES)["y"].tolist() == [[4.0] * 3] for _ in range(200))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.e2e
def test_an_interrupted_question_does_not_leave_its_answer_to_the_next(shared: Agent) -> None:
    from edge_agent.shared import Asker

    with shm(shared, "linear") as model:
        model(ONES)
        assert isinstance(model._asker, Asker)
        line = model._asker._line
        assert line is not None

        class Interrupting:
            def send(self, data: bytes) -> int:
                line._bell = bell
                bell.send(data)
                raise KeyboardInterrupt

        bell = line._bell
        line._bell = Interrupting()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            model(7 * ONES)
        assert model(ONES)["y"].tolist() == [[4.0] * 3]


# by hand


class Stranger:
    """Shared memory with the model `linear`, without the client's care."""

    def __init__(self, agent: Agent, size: int = 1 << 16, name: str = "linear") -> None:
        self.line, bell = ring.Line.make(size, 20)
        with bell:
            assert hand_over(agent, [self.line.region.descriptor, bell.fileno()], name)["status"] == 200
        self.bell = self.line._bell

    def asks(self, **changes: Any) -> tuple[int, Any]:
        question = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "offset": 0}], "room": 64, **changes}
        return self.rings(json.dumps(question).encode())

    def rings(self, asked: bytes) -> tuple[int, Any]:
        status, _, said = self.line.ask(asked)
        return status, json.loads(said)


def hand_over(agent: Agent, descriptors: list[int], name: str = "linear") -> Any:
    with Connection(home=agent.home) as connection, connection.handed_over(f"/edge/models/{name}/ring", ring.PROTOCOL) as sock:
        socket.send_fds(sock, [b"{}"], descriptors)
        return json.loads(sock.recv(1 << 16))


@pytest.fixture
def stranger(shared: Agent) -> Iterator[Stranger]:
    made = Stranger(shared)
    yield made
    made.line.close()


ONE = {"name": "x", "datatype": "FP32", "shape": [1, 4], "offset": 0}
HARMFUL: list[dict[str, Any]] = [
    {"inputs": [{**ONE, "offset": 1 << 16}]},
    {"inputs": [{**ONE, "offset": -64}]},
    {"inputs": [{**ONE, "offset": 1}]},
    {"inputs": [{**ONE, "offset": 2**63}]},
    {"inputs": [{**ONE, "offset": 0.0}]},
    {"inputs": [{**ONE, "offset": "0"}]},
    {"inputs": [{**ONE, "offset": True}]},
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]},
    {"inputs": [{**ONE, "shape": [2**31 - 1, 4]}]},
    {"inputs": [{**ONE, "shape": [2**31 - 1] * 8}]},
    {"inputs": [{**ONE, "shape": [0, 2**31 - 1, 2**31 - 1, 2**31 - 1]}]},
    {"inputs": [{**ONE, "shape": [4097, 4]}]},
    {"inputs": [{**ONE, "shape": [-1, 4]}]},
    {"inputs": [{**ONE, "shape": "all"}]},
    {"inputs": [{**ONE, "datatype": "BYTES", "size": 1 << 20}]},
    {"inputs": [{**ONE, "datatype": "BYTES", "size": -1}]},
    {"inputs": [{**ONE, "datatype": "FP128"}]},
    {"inputs": [ONE, ONE]},
    {"inputs": [1, 2]},
    {"inputs": "x"},
    {"inputs": None},
    {"room": (1 << 16) + 64},
    {"room": -64},
    {"room": 7},
    {"room": None},
    {"outputs": ["z"]},
    {"outputs": [["y"]]},
    {"outputs": 5},
]


@pytest.mark.e2e
def test_what_lies_outside_of_the_region_is_refused_and_the_worker_lives(shared: Agent, stranger: Stranger) -> None:
    pid = shared.worker("linear")
    for changes in HARMFUL:
        status, said = stranger.asks(**changes)
        assert status == 400, (changes, said)
        assert said["error"], changes
    for asked in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 60_000, b'{"inputs":' + b"9" * 5000 + b"}"):
        assert stranger.rings(asked)[0] == 400, asked[:20]
    status, said = stranger.asks(room=1 << 16)
    assert (status, said["bytes"] > 1 << 16) == (ring.TOO_SMALL, True)
    stranger.line.region.view[:16] = ONES.tobytes()
    assert stranger.asks()[0] == 200
    assert shared.worker("linear") == pid


@pytest.mark.e2e
def test_descriptors_that_could_harm_are_not_taken(shared: Agent, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream = socket.socketpair()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 4096)
    good = ring.Region.make(4096)
    unsealed, read_only = memfd(0), memfd(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    huge, empty = memfd(fcntl.F_SEAL_SHRINK, size=1 << 40), memfd(fcntl.F_SEAL_SHRINK, size=0)
    opened = [file, unsealed, read_only, huge, empty]
    attempts = {
        "no memfd": [file, theirs.fileno()],
        "not sealed against shrinking": [unsealed, theirs.fileno()],
        "cannot be written": [read_only, theirs.fileno()],
        "has 1099511627776 bytes": [huge, theirs.fileno()],
        "has 0 bytes": [empty, theirs.fileno()],
        "no Unix socket of whole messages": [good.descriptor, stream[0].fileno()],
        "a memfd and a socket are wanted": [good.descriptor],
    }
    try:
        for message, descriptors in attempts.items():
            told = hand_over(shared, descriptors)
            assert (told["status"], message in told["error"]) == (400, True), told
            assert told["hint"]
        assert hand_over(shared, [good.descriptor, theirs.fileno()])["status"] == 200
    finally:
        for sock in (ours, theirs, *stream):
            sock.close()
        for descriptor in opened:
            os.close(descriptor)
        good.close()
    assert answered(shared) == 4


def memfd(seals: int, size: int = 4096) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def answered(agent: Agent) -> float:
    with shm(agent, "linear") as model:
        return float(model(ONES)["y"][0, 0])


@pytest.mark.e2e
def test_bytes_that_change_while_they_are_read_hurt_nobody(shared: Agent) -> None:
    """An index is checked and then used: it is read once."""
    shared_gather(shared)
    pid = shared.worker("gather")
    stranger = Stranger(shared, name="gather")
    count = 5000
    indices = np.ndarray(count, np.int64, stranger.line.region.view)
    indices[:] = 0
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            indices[:] = 1 << 40
            indices[:] = 0

    changing = threading.Thread(target=change)
    changing.start()
    entry = {"name": "i", "datatype": "INT64", "shape": [count], "offset": 0}
    try:
        statuses = {stranger.asks(inputs=[entry], room=40_064)[0] for _ in range(300)}
    finally:
        stop.set()
        changing.join()
        stranger.line.close()
    assert statuses <= {200, 400}
    assert shared.worker("gather") == pid


@pytest.mark.e2e
def test_one_that_rings_and_never_listens_is_dropped_and_delays_nobody(shared: Agent) -> None:
    flooding = Stranger(shared)
    question = ring.QUESTION.pack(0) + json.dumps({"inputs": [ONE], "room": 64}).encode()
    flooding.bell.settimeout(0)
    with shm(shared, "linear") as model:
        sent = 0
        for _ in range(100_000):
            try:
                flooding.bell.send(question)
                sent += 1
            except BlockingIOError:
                assert model(ONES)["y"].tolist() == [[4.0] * 3]
            except OSError:
                break
        else:
            raise AssertionError(f"still listened to after {sent} questions")
    assert answered(shared) == 4
    flooding.line.close()


@pytest.mark.e2e
def test_callers_are_limited_and_told_so(agent: Agent, tmp_path: Path) -> None:
    agent.stop()
    (agent.home / "config.json").write_text(json.dumps({"limits": {"callers": 2, "shared_bytes": 1 << 20}}))
    agent.start()
    assert agent.activate(make(tmp_path / "toy"))["state"] == "done"
    with shm(agent, "toy") as one, shm(agent, "toy") as two, shm(agent, "toy") as three:
        assert one(ONES)["y"].tolist() == two(ONES)["y"].tolist() == [[4.0] * 3]
        with pytest.raises(ClientError, match=r"2 programs share .* bytes with toy, more are not served"):
            three(ONES)
        one.close()
        assert wait_until(lambda: asked(three)) == [[4.0] * 3]
        with pytest.raises(ClientError, match="the memfd has 2097152 bytes, between 1 and 1048576 are taken"):
            three(np.ones((100_000, 4), np.float32))
    with connect("toy", home=agent.home) as model:  # what does not fit goes by HTTP
        assert isinstance(model, Model)
        assert model(np.ones((100_000, 4), np.float32))["y"].shape == (100_000, 3)
        assert model.via == "http"


def asked(model: Model) -> Any:
    try:
        return model(ONES)["y"].tolist()
    except ClientError:
        return None
