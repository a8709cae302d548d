"""The process that workers are forked from, through a running agent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import Agent, arguments, counter, linear, make, processes, used_s, wait_until

from edge_agent import connect
from edge_agent.connection import ClientError
from edge_agent.zygote import untouched

ONES = np.ones((1, 4), np.float32)


def answered(agent: Agent, name: str) -> float:
    with connect(name, home=agent.home) as model:
        return float(model(ONES)["y"][0, 0])


def answers(agent: Agent, name: str) -> bool:
    try:
        return answered(agent, name) == 4
    except ClientError:
        return False


@pytest.mark.e2e
def test_workers_are_forked_from_one_process_of_one_thread(shared: Agent) -> None:
    zygote = shared.zygote()
    assert {"linear", "everything"} <= set(shared.workers().values())
    assert shared.worker("linear") in shared.workers()
    assert len(list(Path(f"/proc/{zygote}/task").iterdir())) == 1


@pytest.mark.e2e
def test_a_dead_zygote_is_replaced_and_its_workers_with_it(agent: Agent, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert agent.activate(make(tmp_path / name, linear(), name=name))["state"] == "done"
    before, workers = agent.zygote(), agent.workers()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    wait_until(lambda: all(agent.model(name)["state"] == "active" and agent.model(name)["pid"] not in workers for name in ("one", "two")))
    assert [answered(agent, name) for name in ("one", "two")] == [4, 4]
    assert agent.zygote() != before
    causes = {line["cause"] for line in agent.journal() if line["event"] == "worker died"}
    assert causes == {f"the process of {name} died with the process that it was forked from" for name in ("one", "two")}


@pytest.mark.e2e
def test_where_a_model_waits_the_agent_begins_by_forking_it(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "one", linear(), name="one"))["state"] == "done"
    agent.stop()
    agent.start()
    before = agent.zygote()
    assert "serve" in arguments(before)  # not a Python of its own
    open_there = {str(file.readlink()) for file in Path(f"/proc/{before}/fd").iterdir() if file.exists()}
    assert not any("agent.lock" in file or "agent.log" in file for file in open_there)
    wait_until(lambda: answers(agent, "one"))
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{before}").exists())
    wait_until(lambda: answers(agent, "one"))
    assert agent.zygote() != before


@pytest.mark.e2e
def test_an_agent_that_may_not_start_leaves_none_behind(shared: Agent) -> None:
    serving = [sys.executable, "-m", "edge_agent", "serve"]
    before = set(processes("edge_agent\0serve"))
    second = subprocess.run(serving, env=shared.environment(), capture_output=True, text=True, check=False, timeout=30)
    assert second.returncode == 1
    assert "already runs" in second.stdout + second.stderr
    wait_until(lambda: set(processes("edge_agent\0serve")) <= before)


@pytest.mark.e2e
def test_a_model_that_runs_for_ever_does_not_outlive_the_agent(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "counter", counter(), name="counter", feeds=[{"n": np.array(10)}]))["state"] == "done"
    worker, zygote = agent.worker("counter"), agent.zygote()
    idle_s = used_s(worker)
    asking = [sys.executable, "-c", "import numpy as np; from edge_agent import connect; connect('counter')(np.array(2**40))"]
    with subprocess.Popen(asking, stderr=subprocess.DEVNULL, env=agent.environment()) as client:
        wait_until(lambda: used_s(worker) > idle_s + 0.05)
        assert agent.process is not None
        agent.process.kill()
        agent.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (worker, zygote)))
        client.kill()


def test_onnxruntime_is_told_to_phone_nobody() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    told = "import os, edge_agent; import onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'], len(os.listdir('/proc/self/task')))"
    alone = subprocess.run([sys.executable, "-c", told], env={**environment, "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    assert alone.stdout.split() == ["1", "1"]  # the thread that would phone is not there


@pytest.mark.e2e
def test_it_lets_go_of_what_forking_does_not_need(agent: Agent, tmp_path: Path) -> None:
    """A second after the last fork; and what it let go of comes back when the next worker is wanted."""
    assert agent.activate(make(tmp_path / "one", linear(), name="one"))["state"] == "done"
    zygote = agent.zygote()
    wait_until(lambda: library_bytes(zygote) < 4 << 20)
    assert library_bytes(agent.worker("one")) > 4 << 20
    os.kill(agent.worker("one"), signal.SIGKILL)
    wait_until(lambda: answers(agent, "one"))
    assert agent.activate(make(tmp_path / "two", linear(2.0), name="two"))["state"] == "done"
    assert [answered(agent, "one"), answered(agent, "two"), agent.zygote()] == [4, 8, zygote]
    wait_until(lambda: library_bytes(zygote) < 4 << 20)


def library_bytes(pid: int) -> int:
    """Of onnxruntime's library, as it is in the file."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    parts = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps)
    found = [re.search(r"^Rss: +(\d+) kB$.*^Anonymous: +0 kB$", part, re.S | re.M) for part in parts if "onnxruntime_pybind11" in part.partition("\n")[0]]
    return sum(int(match[1]) << 10 for match in found if match)


@given(
    st.lists(st.tuples(st.sampled_from(["r-xp", "r--p", "rw-p", "r-xs"]), st.sampled_from(["/lib/x.so", "", "[heap]"]), st.sampled_from([0, 4])), max_size=20)
)
def test_only_what_is_in_a_file_as_it_is_in_memory_is_let_go(mapped: list[tuple[str, str, int]]) -> None:
    begins = range(0x1000, 0x1000 * (len(mapped) + 1), 0x1000)
    told = [
        f"{begin:x}-{begin + 0x1000:x} {mode} 00000000 08:01 12  {file}\nSize: 4 kB\nAnonymous: {changed} kB\nVmFlags: rd\n"
        for begin, (mode, file, changed) in zip(begins, mapped, strict=True)
    ]
    wanted = [(begin, begin + 0x1000) for begin, one in zip(begins, mapped, strict=True) if one in (("r-xp", "/lib/x.so", 0), ("r--p", "/lib/x.so", 0))]
    assert untouched("".join(told)) == wanted
