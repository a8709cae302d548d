from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from toys import CPU_PROFILE, LINEAR_FEEDS, Agent, answer, gather, linear, make, mean

from edge_agent import batching, connect, ring
from edge_agent.batching import Batching
from edge_agent.bundle import Description
from edge_agent.golden import Sample
from edge_agent.serving import Serving
from edge_agent.worker import Session, open_session

WANTED = {**CPU_PROFILE, "runtime": {**CPU_PROFILE["runtime"], "max_batch": 8, "batch_wait_ms": 20}}
LONG_S = 60.0  # no test waits so long: who waited for it would fail


@dataclasses.dataclass
class Asked:
    rows: int
    width: int = 4
    outputs: tuple[str, ...] = ()

    @property
    def feeds(self) -> dict[str, Any]:
        return {"x": np.zeros((self.rows, self.width), np.float32)}


def opened(folder: Path, model: bytes) -> Session:
    (folder / "model.onnx").write_bytes(model)
    return open_session(folder, CPU_PROFILE)


def centred() -> bytes:
    """y = x less the mean of all rows: free in its first axis, and yet no row is apart."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), helper.make_node("Sub", ["x", "m"], ["y"])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


def chosen(folder: Path, model: bytes, feeds: dict[str, Any], profile: dict[str, Any] = WANTED) -> Batching:
    session = opened(folder, model)
    description = Description("toy", 1, "x86-cpu", session.inputs, session.outputs, "1.16.0", 17, 8, {"y": 1e-4}, top1=False)
    return batching.chosen(profile, session, [Sample(feeds, answer(model, feeds))], description)


def test_a_group_holds_at_most_so_many_rows_of_one_kind() -> None:
    asked = [Asked(3), Asked(4), Asked(2, width=5), Asked(2), Asked(9), Asked(1), Asked(1, outputs=("y",)), Asked(0)]
    found = [[(one.rows, one.width) for one in group] for group in batching.groups(asked, 8)]
    assert found == [[(3, 4), (4, 4)], [(2, 5)], [(2, 4)], [(9, 4)], [(1, 4)], [(1, 4)], [(0, 4)]]


def test_a_model_is_batched_only_if_it_is_asked_for_and_its_rows_are_apart(tmp_path: Path) -> None:
    feeds = LINEAR_FEEDS[0]
    assert chosen(tmp_path, linear(), feeds) == Batching(8, 0.02)
    assert chosen(tmp_path, linear(), feeds, CPU_PROFILE) == Batching()
    assert chosen(tmp_path, centred(), feeds) == Batching()
    assert chosen(tmp_path, mean(), {"x": np.zeros((1, 3, 224, 224), np.float32)}) == Batching()


def test_answers_that_have_not_a_row_for_each_row_are_not_parted() -> None:
    assert batching.parted({"y": np.zeros((3, 2))}, [1, 1]) is None
    parts = batching.parted({"y": np.arange(6).reshape(3, 2)}, [1, 2])
    assert parts is not None
    assert [part["y"].tolist() for part in parts] == [[[0, 1]], [[2, 3], [4, 5]]]


class Counting:
    """An InferenceSession that remembers how many rows each run had."""

    def __init__(self, handle: Any) -> None:
        self._handle, self.rows = handle, []

    def run(self, names: list[str], feeds: dict[str, Any]) -> Any:
        self.rows.append(len(next(iter(feeds.values()))))
        return self._handle.run(names, feeds)


class Served:
    """A worker's loop in a thread, and programs that ask it."""

    def __init__(self, folder: Path, model: bytes, together: Batching, callers: int) -> None:
        session = opened(folder, model)
        self.counting = Counting(session._handle)
        self.lines: list[ring.Line] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._serving = Serving(theirs, dataclasses.replace(session, _handle=self.counting), "toy", "1", mmap.mmap(-1, ring.PULSE.size), together)
        self._theirs, self._thread = theirs, threading.Thread(target=self._serving.run)
        self._thread.start()
        for _ in range(callers):
            line, bell = ring.Line.make(1 << 16, 30)
            order = {"caller": "program", "bytes": line.region.size, "most_callers": 64, "most_bytes": 1 << 30}
            with bell:
                socket.send_fds(self._control, [json.dumps(order).encode()], [line.region.descriptor, bell.fileno()])
            self.lines.append(line)
        self._control.send(b'{"counts": true}')  # answered when all of them are known
        while b"counted" not in self._control.recv(1 << 18):
            pass

    def ask(self, caller: int, name: str, array: Any) -> tuple[int, Any]:
        line, datatype = self.lines[caller], {"f": "FP32", "i": "INT64"}[array.dtype.kind]
        line.region.view[: array.nbytes] = array.tobytes()
        asked = {"inputs": [{"name": name, "datatype": datatype, "shape": list(array.shape), "offset": 0}], "room": 4096}
        status, _, said = line.ask(json.dumps(asked).encode())
        if status != ring.ANSWERED:
            return status, json.loads(said)["error"]
        (output,) = json.loads(said)["outputs"]
        return status, np.ndarray(output["shape"], np.float32, line.region.view, output["offset"]).tolist()

    def ask_all(self, name: str, arrays: list[Any]) -> list[tuple[int, Any]]:
        with ThreadPoolExecutor(len(arrays)) as pool:
            return list(pool.map(lambda each: self.ask(each[0], name, each[1]), enumerate(arrays)))

    def close(self) -> None:
        self._control.send(b'{"leave": true}')
        self._thread.join(30)
        for caller in self._serving._callers.values():  # a worker's process ends here, and they with it
            caller.bell.close()
        for line in self.lines:
            line.close()
        self._control.close()
        self._theirs.close()


@contextlib.contextmanager
def serving(folder: Path, model: bytes, together: Batching, callers: int) -> Iterator[Served]:
    served = Served(folder, model, together, callers)
    try:
        yield served
    finally:
        served.close()


def test_who_asks_together_is_answered_together_each_with_its_own(tmp_path: Path) -> None:
    with serving(tmp_path, linear(), Batching(8, LONG_S), 3) as served:
        answers = served.ask_all("x", [np.full((rows, 4), rows, np.float32) for rows in (1, 2, 3)])
        assert answers == [(200, [[4.0 * rows] * 3] * rows) for rows in (1, 2, 3)]
        assert served.counting.rows == [6]


def test_a_bad_question_hurts_nobody_else(tmp_path: Path) -> None:
    with serving(tmp_path, gather(), Batching(8, LONG_S), 3) as served:
        good, bad, other = served.ask_all("i", [np.array([1, 2]), np.array([9]), np.array([4])])
        assert (good, other) == ((200, [1.0, 2.0]), (200, [4.0]))
        assert bad[0] == 400
        assert "out of data bounds" in bad[1]
        assert served.counting.rows[0] == 4
        assert sorted(served.counting.rows[1:]) == [1, 1, 2]


def test_who_has_the_model_alone_does_not_wait(tmp_path: Path) -> None:
    with serving(tmp_path, linear(), Batching(8, LONG_S), 1) as served:
        assert served.ask(0, "x", np.ones((1, 4), np.float32)) == (200, [[4.0] * 3])


def test_one_of_two_waits_no_longer_than_the_profile_says(tmp_path: Path) -> None:
    with serving(tmp_path, linear(), Batching(8, 0.05), 2) as served:
        for _ in range(3):
            assert served.ask(0, "x", np.ones((1, 4), np.float32)) == (200, [[4.0] * 3])
        assert served.counting.rows == [1, 1, 1]


def test_a_full_batch_goes_at_once_and_the_rest_after_it(tmp_path: Path) -> None:
    with serving(tmp_path, linear(), Batching(2, LONG_S), 3) as served:
        served.ask_all("x", [np.ones((1, 4), np.float32)] * 2)  # the third caller is silent
        assert served.counting.rows == [2]


@pytest.mark.e2e
def test_an_agent_answers_many_at_once_by_both_ways(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "b", linear(), profile=WANTED))["state"] == "done"

    def ask(number: int) -> bool:
        with connect("toy", home=agent.home, via="shm" if number % 2 else "http") as model:
            return all((model(np.full((1 + i % 3, 4), number, np.float32))["y"] == 4 * number).all() for i in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert agent.model("toy")["count"] == 181  # with the questions of the activation
    told = agent.ask("GET", "/v2/models/toy/stats")["model_stats"][0]
    assert told["inference_count"] == 181
    assert 181 / 8 <= told["execution_count"] < 181  # several at a time
