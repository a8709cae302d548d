"""`edge-agent stream`: questions one after the other, to a model that was sent for that or one that is active."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from test_races import described, external_weights, put
from toys import CPU_PROFILE, FRAME, Agent, answer, counter, everything, everything_feeds, gather, layers, linear, processes, wait_until

from edge_agent import frames, protocol
from edge_agent.connection import BadRequest, Connection, NoSuchModel

SESSION = "0123456789abcdef"
pytestmark = pytest.mark.e2e


class Stream:
    """A host's end of the verb."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def out(self) -> Any:
        return self.process.stdout

    def reply(self) -> Any:
        line = self.out.readline().decode()
        assert line.startswith(FRAME), line
        return json.loads(line[len(FRAME) :])

    def say(self, head: dict[str, Any], *body: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(bytes(piece) for piece in frames.message(head, *body)))
        self.process.stdin.flush()

    def hear(self) -> tuple[dict[str, Any], bytearray]:
        def fill(view: memoryview) -> None:
            while view:
                count = self.out.readinto(view)
                if not count:
                    raise EOFError
                view = view[count:]

        return frames.read(fill)

    def ask(self, feeds: dict[str, Any]) -> Any:
        """The outputs, or what was wrong."""
        document, buffers = protocol.encode_request(feeds)
        self.say({"header_bytes": len(document)}, document, *buffers)
        head, body = self.hear()
        return head["error"] if "error" in head else protocol.decode_response(body, head["header_bytes"]).outputs

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)


@contextmanager
def streaming(agent: Agent, *argv: str, document: Any = None) -> Iterator[Stream]:
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "stream", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=agent.environment(), bufsize=0
    )
    with process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(document or {}).encode() + b"\n")
            yield Stream(process)
        finally:
            process.kill()


@contextmanager
def sent(agent: Agent, model: bytes, profile: dict[str, Any] = CPU_PROFILE) -> Iterator[Stream]:
    put(agent, model)
    with streaming(agent, "--race", SESSION, document={"model": {"model.onnx": described(model)}, "profile": profile}) as stream:
        yield stream


def test_what_was_sent_answers_bit_for_bit_whatever_the_dtype(shared: Agent) -> None:
    feeds = everything_feeds()
    feeds["in_float32"] = np.array([np.nan, -0.0, np.inf], np.float32)
    with sent(shared, everything()) as stream:
        ready = stream.reply()
        assert (ready["provider"], ready["threads"]) == ("CPUExecutionProvider", 1)
        assert set(ready) == {"provider", "nodes", "threads", "onnxruntime", "governor", "temperature_c"}
        for _ in range(3):
            found = stream.ask(feeds)
            for name, expected in answer(everything(), feeds).items():
                assert found[name].dtype == expected.dtype
                assert found[name].tolist() == expected.tolist() if expected.dtype == object else found[name].tobytes() == expected.tobytes()
        assert stream.end() == 0
    wait_until(lambda: not processes(f"answerer\0{shared.home}/races"))


def test_a_large_array_comes_through(shared: Agent) -> None:
    x = np.random.default_rng(0).standard_normal((40_000, 256), np.float32)  # 41 MB there, and as many back
    with sent(shared, layers(1)) as stream:
        stream.reply()
        assert stream.ask({"x": x})["y"].tobytes() == x.tobytes()
        assert stream.end() == 0


def test_a_question_that_is_wrong_is_told_and_the_next_is_answered(shared: Agent) -> None:
    with sent(shared, gather()) as stream:
        stream.reply()
        assert "inputs are `i`" in stream.ask({"x": np.ones(1, np.float32)})["message"]
        assert "out of data bounds" in stream.ask({"i": np.array([9])})["message"]
        assert "`i` is int64 [any]" in stream.ask({"i": np.array([1], np.int32)})["message"]
        stream.say({"op": "alive"})
        assert stream.ask({"i": np.array([3])})["y"].tolist() == [3.0]
        stream.say({"header_bytes": 5}, b"noise")
        assert "is not JSON" in stream.hear()[0]["error"]["message"]


def test_a_model_that_is_active_is_asked_as_a_program_asks_it(shared: Agent) -> None:
    with streaming(shared, "linear") as stream:
        ready = stream.reply()
        assert (ready["name"], ready["release"], ready["provider"]) == ("linear", "1", "CPUExecutionProvider")
        assert ready["digest"].startswith("sha256:") and ready["onnxruntime"]
        assert stream.ask({"x": np.ones((2, 4), np.float32)})["y"].tolist() == [[4.0] * 3] * 2
        assert "inputs are `x`" in stream.ask({"z": np.ones(1, np.float32)})["message"]
        assert stream.end() == 0


def test_what_cannot_be_opened_is_a_reply(shared: Agent) -> None:
    for model, profile, words in (
        (b"\x08\x08\x3a\x00", CPU_PROFILE, "cannot open the model"),
        (linear(), {**CPU_PROFILE, "providers": [{"name": "X"}], "runtime": {"on_missing_provider": "refuse"}}, "wants X"),
        (linear(), {"providers": 3}, "names no model to ask"),
        (external_weights("../../../secrets/token"), CPU_PROFILE, "wants its weights from"),
    ):
        with sent(shared, model, profile) as stream:
            assert words in stream.reply()["error"]["message"]
            assert stream.process.wait(20) == 1
    with streaming(shared, "nobody") as stream:
        assert "nobody" in stream.reply()["error"]["message"]
    with streaming(shared) as stream:
        assert "either a model's name or --race" in stream.reply()["error"]["message"]
    with streaming(shared, "--race", "f" * 16, document={"model": {}}) as stream:
        assert "there is no race" in stream.reply()["error"]["message"]


def test_the_route_wants_an_upgrade_and_files_that_are_there(shared: Agent) -> None:
    put(shared, linear())
    with pytest.raises(BadRequest, match="is to be upgraded to edge-stream"):
        shared.ask("POST", f"/edge/races/{SESSION}/stream", {})
    with Connection(home=shared.home) as connection:
        lacking = {"model": {"model.onnx": described(b"not here")}, "profile": CPU_PROFILE}
        with pytest.raises(BadRequest, match="lacks the file"):
            connection.handed_over(f"/edge/races/{SESSION}/stream", "edge-stream", json.dumps(lacking).encode())
        with pytest.raises(NoSuchModel, match="there is no race"):
            connection.handed_over(f"/edge/races/{'e' * 16}/stream", "edge-stream", json.dumps(lacking).encode())


def test_a_crash_is_told_and_costs_the_active_models_nothing(shared: Agent) -> None:
    worker = shared.worker("linear")
    with sent(shared, counter()) as stream:
        stream.reply()
        document, buffers = protocol.encode_request({"n": np.array(10**9)})
        stream.say({"header_bytes": len(document)}, document, *buffers)
        (pid,) = processes(f"answerer\0{shared.home}/races/{SESSION}")
        os.kill(pid, signal.SIGSEGV)
        assert stream.hear()[0]["error"]["message"] == "the process that ran the model was killed by SIGSEGV"
    assert shared.worker("linear") == worker


@pytest.mark.parametrize("way", ["host killed", "session ended", "agent stopped"])
def test_whoever_is_gone_the_process_ends(agent: Agent, way: str) -> None:
    with sent(agent, counter()) as stream:
        stream.reply()
        document, buffers = protocol.encode_request({"n": np.array(10**6)})  # a second or so
        stream.say({"header_bytes": len(document)}, document, *buffers)
        assert processes(f"answerer\0{agent.home}/races/{SESSION}")
        if way == "host killed":
            stream.process.kill()
        elif way == "session ended":
            agent.ask("DELETE", f"/edge/races/{SESSION}")
        else:
            assert agent.stop() == 0
        wait_until(lambda: not processes(f"answerer\0{agent.home}/races"))


def test_a_host_that_says_nothing_for_long_is_gone(shared: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from edge_agent import answering, __main__; answering._SILENCE_S = 0.5; __main__.main(['stream', 'linear'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=shared.environment())
    with process:
        assert process.stdin is not None
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        assert process.wait(30) == 0
