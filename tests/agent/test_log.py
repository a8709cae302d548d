"""The log: an object a line whoever spoke, bounded, and readable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, linear, make, wait_until

from edge_agent import Runtime, connect, log
from edge_agent.client import BadRequest


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(path: Path, program: str) -> None:
    """In a process of its own: standard error is a process's."""
    source = f"from pathlib import Path\nfrom edge_agent import log\nimport os, subprocess, sys\nwith log.opened(Path({str(path)!r})):\n"
    source += "".join(f"    {line}\n" for line in program.splitlines())
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)


def test_whoever_speaks_it_is_an_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    run(
        path,
        """log.event("info", "activated", model="ocr", release=2)
os.write(2, b"a library\\nspeaks \\xff")
subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('a child speaks')"])
log.event("error", "bug", traceback="Traceback: two\\nlines")""",
    )
    told = lines(path)
    assert {"time", "level", "event"} <= set.intersection(*(set(line) for line in told))
    assert next(line for line in told if line["event"] == "activated")["release"] == 2
    assert "".join(line["text"] for line in told if line["event"] == "said") == "a libraryspeaks \ufffda child speaks"


def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    written = log.Log(path)
    for number in range(20):
        written.write(json.dumps({"number": number, "text": "x" * 1_000_000}))
    written.close()
    assert path.stat().st_size + log.older(path).stat().st_size <= 8 << 20
    assert [json.loads(line)["number"] for line in log.newest(path, 3)] == [17, 18, 19]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["agent.log", "agent.log.1"]


def test_who_repeats_himself_is_cut_short(tmp_path: Path) -> None:
    run(tmp_path / "agent.log", 'os.write(2, b"again\\n" * 5000)')
    assert len(lines(tmp_path / "agent.log")) == 600


def test_a_full_disk_costs_the_line_only(tmp_path: Path) -> None:
    written = log.Log(Path("/dev/full"))
    written.write("lost")
    written.close()
    written.write("too late")


@pytest.mark.parametrize("line", ["plain text", "[1]", '{"event": "x"}', "{", '"text"', ""])
def test_a_line_that_is_none_of_ours_is_shown_as_it_is(line: str) -> None:
    assert log.in_words(line) == line


def test_a_traceback_is_shown_below_its_line() -> None:
    line = json.dumps({"time": "2026-01-02T03:04:05.678+00:00", "level": "error", "event": "bug", "traceback": "Traceback:\n  File"})
    assert log.in_words(line) == "2026-01-02 03:04:05 error bug\n    Traceback:\n      File"


@pytest.mark.e2e
def test_what_happens_to_a_model_is_in_the_log_and_what_it_is_asked_is_not(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", linear(), name="toy", release=3))
    secret = np.full((1, 4), 73737.5, np.float32)
    with connect("toy", home=agent.home) as model, Runtime("toy", agent.home) as runtime:
        model(secret)
        runtime(secret)
        with pytest.raises(BadRequest):
            model(np.full((1, 5), 73737.5, np.float32))
    os.kill(agent.worker("toy"), 11)
    wait_until(lambda: "worker died" in (agent.home / "agent.log").read_text())
    url = agent.ask("POST", "/edge/tcp", {"port": 0})["url"]
    token = (agent.home / "secrets" / "token").read_text().strip()
    agent.stop()
    told = lines(agent.home / "agent.log")
    assert all({"time", "level", "event"} <= set(line) for line in told)
    (activated,) = [line for line in told if line["event"] == "activated"]
    assert (activated["level"], activated["model"], activated["release"]) == ("info", "toy", "3")
    (died,) = [line for line in told if line["event"] == "worker died"]
    assert (died["level"], died["model"]) == ("warning", "toy")
    text = (agent.home / "agent.log").read_text()
    assert url[len("http://") :] in text
    assert token not in text
    assert "73737" not in text
