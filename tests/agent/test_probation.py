"""Twenty good answers, or a minute without a fault; what fails meanwhile gives way to what ran before."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, answer, counter, described, golden_file, make, wait_until

pytestmark = pytest.mark.e2e

STEPS = 200_000  # of a model that counts: twenty questions take seconds
SLOW_S = 0.5  # of one question, where it matters: they are read again after two seconds, also on a machine that is three times as fast by then


def on_probation(agent: Agent, folder: Path, steps: int = STEPS) -> Any:
    """Release 1 runs, release 2 has answered: its job."""
    assert agent.activate(make(folder / "1", counter(), feeds=[{"n": np.array(10)}]))["state"] == "done"
    second = make(folder / "2", counter(), release=2, feeds=[{"n": np.array(steps)}])
    started = agent.ask("POST", "/edge/activate", {"digest": agent.send(second)})
    wait_until(lambda: state(agent, started)["stage"] == "probation")
    return started


def state(agent: Agent, started: Any) -> Any:
    return agent.ask("GET", f"/edge/jobs/{started['job']}")


def events(agent: Agent, *wanted: str) -> list[str]:
    return [line["event"] for line in agent.journal() if line["event"] in wanted]


def test_a_job_tells_what_it_has_before_its_end_and_nobody_is_kept_from_the_lock(agent: Agent, tmp_path: Path) -> None:
    started = on_probation(agent, tmp_path)
    told = state(agent, started)
    assert (told["state"], told["result"]["outcome"]) == ("running", "probation")
    assert told["result"]["first_answer_ms"] > 0
    digest = agent.model("toy")["digest"]
    assert agent.ask("POST", "/edge/activate", {"digest": digest}) == started  # the same again is the same job
    ended = agent.job(started)
    assert ended["result"] == {**told["result"], "outcome": "active"}
    assert events(agent, "activated", "proven")[-2:] == ["activated", "proven"]
    assert agent.model("toy")["count"] >= 20


def test_a_rollback_ends_it(agent: Agent, tmp_path: Path) -> None:
    started = on_probation(agent, tmp_path)
    assert agent.rollback("toy")["result"]["release"] == "1"
    ended = agent.job(started)
    assert "release 2 of toy was replaced within its probation" in ended["error"]["message"]
    assert (ended["stage"], ended["result"]) == ("probation", None)


def test_the_third_crash_ends_it_for_whoever_waits(agent: Agent, tmp_path: Path) -> None:
    started = on_probation(agent, tmp_path)
    for _ in range(3):
        wait_until(lambda: agent.model("toy")["pid"])
        pid = agent.worker("toy")
        os.kill(pid, signal.SIGSEGV)
        wait_until(lambda pid=pid: agent.model("toy")["pid"] != pid)
    ended = agent.job(started)
    assert "it crashed 3 times within its probation, at last: the process of toy was killed by SIGSEGV" in ended["error"]["message"]
    assert agent.model("toy")["release"] == "1"
    refused = agent.job(agent.ask("POST", "/edge/activate", {"digest": agent.send(tmp_path / "2")}))
    assert "was tried here and rolled back" in refused["error"]["message"]


def test_a_wrong_answer_ends_it(agent: Agent, tmp_path: Path) -> None:
    begin = time.monotonic()
    answer(counter(), {"n": np.array(STEPS)})
    steps = round(STEPS * SLOW_S / (time.monotonic() - begin))  # twenty questions are more than are asked before the golden ones are read again
    feeds = [{"n": np.array(steps)}]
    wrong = [{name: value + 1 for name, value in answer(counter(), feeds[0]).items()}]
    other = agent.home / "other"
    other.write_bytes(golden_file(*described(counter()), feeds, wrong))  # before: to import onnxruntime takes as long as twenty questions may
    started = on_probation(agent, tmp_path, steps)
    other.replace((agent.home / "active" / "toy").resolve() / "golden.npz")
    ended = agent.job(started)
    assert "within its probation: an answer is wrong: the output `sum`" in ended["error"]["message"]
    assert agent.model("toy")["release"] == "1"


def test_a_version_that_the_agent_does_not_outlive_is_not_started_a_fourth_time(agent: Agent, tmp_path: Path) -> None:
    on_probation(agent, tmp_path)
    for release in ("2", "2", "1"):
        assert agent.process is not None
        os.killpg(agent.process.pid, signal.SIGKILL)
        agent.process.wait()
        agent.start()
        wait_until(lambda: agent.model("toy")["state"] == "active")
        assert agent.model("toy")["release"] == release
    assert events(agent, "undone", "fell back") == ["fell back"]
    again = agent.job(agent.ask("POST", "/edge/activate", {"digest": agent.send(tmp_path / "2")}))  # the power may have been to blame
    assert again["state"] == "done"
