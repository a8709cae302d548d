"""Many requests while versions come and go: what was dropped, what was wrong, and how memory grew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toys import Agent, linear, make

# Release n answers 4n: an answer that does not fit its release is of two versions, or of none.
_ASKING = """
import json, sys, time
import numpy as np
from edge_agent import connect
via, count, until, asked = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3]), 0
ones, dropped, wrong, releases = np.ones((1, 4), np.float32), [], 0, set()
with connect("toy", via=via, timeout_s=60) as model:
    while asked < count or time.monotonic() < until:
        asked += 1
        try:
            answer = float(model(ones)["y"][0, 0])
        except Exception as error:
            dropped.append(repr(error))
            continue
        releases.add(model.release)
        wrong += answer != 4 * int(model.release)
print(json.dumps({"asked": asked, "dropped": dropped[:5], "count": len(dropped), "wrong": wrong, "releases": sorted(releases)}))
"""


@dataclass(frozen=True)
class Soaked:
    requests: int
    swaps: int
    dropped: int
    wrong: int
    growth: float  # of the supervisor's and the zygote's memory, from the first tenth to the end
    seconds: float
    examples: list[str]


def soak(agent: Agent, folder: Path, requests: int, *, ways: tuple[str, ...] = ("shm", "shm", "http"), swap_every_s: float = 1.0, least_s: float = 0) -> Soaked:
    """``requests`` in all or more, for ``least_s``, shared by one process a way, while two versions replace each other."""
    for release in (1, 2):
        assert agent.activate(make(folder / f"soak-{release}", linear(release), release=release))["state"] == "done"
    for _ in range(3):  # what the first swaps allocate is not growth
        assert agent.rollback("toy")["state"] == "done"
    before, begin, swaps, previous = _memory(agent), time.monotonic(), 0, None
    asking = [
        subprocess.Popen([sys.executable, "-c", _ASKING, way, str(requests // len(ways)), str(least_s)], env=agent.environment(), stdout=subprocess.PIPE)
        for way in ways
    ]
    settled = 0.0
    while any(process.poll() is None for process in asking):
        due = time.monotonic() + swap_every_s
        done = agent.rollback("toy")
        assert done["state"] == "done", done
        swaps += 1
        if not settled and swaps >= _SETTLED_SWAPS:
            settled = _memory(agent)
        time.sleep(max(0.0, due - time.monotonic()))
        previous = done
    told: list[dict[str, Any]] = [json.loads(process.communicate()[0]) for process in asking]
    assert previous is not None
    return Soaked(
        requests=sum(one["asked"] for one in told),
        swaps=swaps,
        dropped=sum(one["count"] for one in told),
        wrong=sum(one["wrong"] for one in told),
        growth=_memory(agent) / (settled or before) - 1,
        seconds=time.monotonic() - begin,
        examples=[example for one in told for example in one["dropped"]],
    )


_SETTLED_SWAPS = 5


def _memory(agent: Agent) -> float:
    """Anonymous bytes of the processes that stay: workers are replaced, and what they share with the zygote at the moment says nothing of growth."""
    assert agent.process is not None
    return float(sum(anonymous_bytes(pid) for pid in (agent.process.pid, agent.zygote())))


def anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="agent-") as scratch:
        running = Agent(Path(scratch, "home"))
        running.start()
        try:
            print(soak(running, Path(scratch), int(sys.argv[1]) if len(sys.argv) > 1 else 5000), os.getpid())  # noqa: T201
        finally:
            running.stop()
