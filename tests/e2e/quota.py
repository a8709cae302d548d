"""A device whose CPU quota is cut while it works: an agent in a control group, its clients and workers too. For root.

    cut = measured_across_a_cut(tmp_path, seconds=40, cut_s=20)
    cut.late_s, cut.apart

The group comes before all others while it has its quota, so that what else this machine does is not taken for throttling.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.conditions import own_s
from edge_agent.connection import Connection
from edgesdk import profiles, results
from edgesdk.results import Result
from tests.agent.toys import layers, make

PERIOD_US = 100_000
_ROOTS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))
_NAME = "toy"


def possible() -> bool:
    """Whether this process may make such groups."""
    return os.getuid() == 0 and any(os.access(root / "cgroup.procs", os.W_OK) for root in _ROOTS)


@dataclass(frozen=True)
class Group:
    """A control group, of version 1 or 2."""

    folder: Path

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Group]:
        root = next(root for root in _ROOTS if os.access(root / "cgroup.procs", os.W_OK))
        group = cls(root / f"edgesdk-{os.getpid()}-{time.monotonic_ns()}")
        group.folder.mkdir()
        try:
            group._write({"cpu.shares": "262144", "cpu.weight": "10000"})
            yield group
        finally:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    group.folder.rmdir()
                    break
                time.sleep(0.1)

    def limit(self, cores: float) -> None:
        quota = round(cores * PERIOD_US)
        self._write({"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota), "cpu.max": f"{quota} {PERIOD_US}"})

    def _write(self, settings: dict[str, str]) -> None:
        for name, value in settings.items():
            if (self.folder / name).exists():
                (self.folder / name).write_text(value)


@contextmanager
def before_all_others() -> Iterator[None]:
    """This process, and what it starts meanwhile, get the processors whenever they want them, where that can be had."""
    if not possible():
        yield
        return
    with Group.made() as group:
        (group.folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (group.folder.parent / "cgroup.procs").write_text(str(os.getpid()))


@dataclass(frozen=True)
class Cut:
    """What `bench --sustained` said, and what is known: when the quota was cut, and the answers a second by the agent's own counter."""

    found: Result
    at_s: float
    before: float
    after: float

    @property
    def late_s(self) -> float | None:
        return None if self.found.throttled_at_s is None else self.found.throttled_at_s - self.at_s

    @property
    def said(self) -> tuple[float, float]:
        """Answers a second before and from ``throttled_at_s`` on, of all levels there."""
        when = self.found.throttled_at_s or 0.0
        parts = [level for level in self.found.levels if level.from_s < when], [level for level in self.found.levels if level.from_s >= when]
        first, last = (sum(one.throughput * (one.to_s - one.from_s) for one in part) / (sum(one.to_s - one.from_s for one in part) or 1.0) for part in parts)
        return first, last

    @property
    def apart(self) -> tuple[float, float]:
        """How far that is from what was counted: 0.05 is 5 %."""
        return self.said[0] / self.before - 1, self.said[1] / self.after - 1


def measured_across_a_cut(folder: Path, seconds: float, cut_s: float) -> Cut:
    """A sustained run of a deployed model whose agent loses half of the processor time that it used, so long after its begin."""
    home, out = folder / "agent", folder / "found.json"
    environment = {**os.environ, "EDGE_AGENT_HOME": str(home), "EDGESDK_CACHE": str(folder / "cache")}
    own = profiles.find("x86-cpu" if os.uname().machine == "x86_64" else "arm-cpu")
    profile = own.model_copy(update={"runtime": own.runtime.model_copy(update={"intra_op_threads": 1, "allow_spinning": False})}).to_dict()
    bundle = make(folder / "bundle", layers(48), name=_NAME, feeds=[{"x": np.ones((16, 256), np.float32)}], profile=profile)
    with Group.made() as group:
        _edgesdk("deploy", "local", str(bundle), environment=environment, within=group)
        try:
            run = subprocess.Popen(
                [sys.executable, "-m", "edgesdk.cli", "bench", "local", _NAME, "--sustained", f"{seconds:g}s", "-o", str(out)],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            try:
                counted = [_asked_often(home)]
                time.sleep(max(0.0, counted[0][0] + cut_s - 5 - time.monotonic()))
                agent = int(_ask(home, "/edge/alive")["pid"])
                used, counted = own_s([agent]), [*counted, _count(home)]
                time.sleep(max(0.0, counted[0][0] + cut_s - time.monotonic()))
                counted.append(_count(home))
                used = (own_s([agent]) - used) / (counted[2][0] - counted[1][0])
                group.limit(used / 2)
                at = time.time()
                time.sleep(1.5)
                counted.append(_count(home))
                time.sleep(max(0.0, counted[0][0] + seconds - 8 - time.monotonic()))  # two seconds before its end at least
                counted.append(_count(home))
                assert run.wait(120) == 0
            finally:
                run.kill()
                run.wait()
        finally:
            group.limit(os.cpu_count() or 1)
            subprocess.run([str(home / "bin" / "edge-agent"), "stop"], env=environment, check=False, stdout=subprocess.DEVNULL, timeout=60)
    found = results.load(out)
    return Cut(found, at - _moment(found.started), _rate(counted[0], counted[2]), _rate(counted[3], counted[4]))


def _asked_often(home: Path) -> tuple[float, int]:
    """When the run has begun for sure: it has asked for three seconds."""
    first, until = _count(home), time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(1)
        if _count(home)[1] > first[1] + 500:
            time.sleep(3)
            return _count(home)
    raise AssertionError("nobody asks")


def _count(home: Path) -> tuple[float, int]:
    """A moment, and the answers until then."""
    (model,) = _ask(home, f"/edge/report/{_NAME}")["models"]
    return time.monotonic(), int(model["count"])


def _rate(one: tuple[float, int], other: tuple[float, int]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _ask(home: Path, target: str) -> Any:
    with Connection(home=home) as connection:
        return json.loads(connection.request("GET", target).body)


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def _edgesdk(*arguments: str, environment: dict[str, str], within: Group) -> None:
    argv = [sys.executable, "-c", "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"]
    done = subprocess.run(
        [*argv, str(within.folder / "cgroup.procs"), "-m", "edgesdk.cli", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
