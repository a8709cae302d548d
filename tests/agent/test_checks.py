"""The device's own check: its configuration's command has to agree, at the trial and in probation."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toys import Agent, linear, make, processes, wait_until

from edge_agent import checks, connect
from edge_agent.bundle import Description
from edge_agent.checks import CheckFailed
from edge_agent.config import Check
from edge_agent.home import code_folder
from edge_agent.store import Deployment

TOY = Deployment(Path("/d"), "sha256:" + "0" * 64, Description("toy", 7, "x86-cpu", (), (), "1.16", 17, 8, {}, top1=False))


def refused(tmp_path: Path, *command: str, timeout_s: float = 20, stage: str = "trial") -> str:
    with pytest.raises(CheckFailed) as caught:
        checks.run(Check(command, timeout_s), TOY, tmp_path, stage=stage)
    assert caught.value.hint
    return str(caught.value)


def test_a_command_that_agrees_says_nothing(tmp_path: Path) -> None:
    checks.run(Check(("true",)), TOY, tmp_path, stage="trial")
    checks.run(Check(), TOY, tmp_path, stage="trial")


def test_one_that_does_not_is_quoted_harmlessly(tmp_path: Path) -> None:
    said = refused(tmp_path, "sh", "-c", r"echo starting; printf 'no \033[2J\007camera\n' >&2; exit 3")
    assert said == r"the device's own check `sh` does not agree with release 7 of toy at the trial (exit 3): starting | no \x1b[2J\x07camera"


def test_what_it_says_is_bounded_and_the_last_of_it_kept(tmp_path: Path) -> None:
    said = refused(tmp_path, "sh", "-c", "head -c 50000000 /dev/zero | tr '\\0' x; echo; echo the reason; exit 1")
    assert len(said) < 1300
    assert said.endswith("| the reason")


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    begin = time.monotonic()
    said = refused(tmp_path, "sh", "-c", "echo looking; sleep 4711 & wait", timeout_s=0.5)
    assert said == "the device's own check `sh` did not end within 0.5 s for release 7 of toy at the trial: looking"
    assert time.monotonic() - begin < 15
    wait_until(lambda: processes("sleep\0004711") == [])


def test_a_daemon_that_it_leaves_behind_holds_nobody_up(tmp_path: Path) -> None:
    checks.run(Check(("sh", "-c", "sleep 4712 & exit 0"), 30), TOY, tmp_path, stage="trial")
    wait_until(lambda: processes("sleep\0004712") == [])


@pytest.mark.parametrize("command", ["/nowhere/check", "/etc/passwd", "a\0b"])
def test_one_that_cannot_be_run_refuses(tmp_path: Path, command: str) -> None:
    assert "cannot be run" in refused(tmp_path, command)


def test_one_that_dies_names_the_signal(tmp_path: Path) -> None:
    assert "(signal 11)" in refused(tmp_path, "sh", "-c", "kill -SEGV $$")


def test_an_agent_that_ends_waits_for_no_check(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(CheckFailed):
        checks.run(Check(("sleep", "60"), 60), TOY, tmp_path, stage="trial", ending=lambda: True)
    assert time.monotonic() - begin < 10


SCRIPT = """\
#!{python}
import os, sys, numpy as np
sys.path.insert(0, {code!r})  # on a device a .pth file says it
from edge_agent import under_check
with under_check() as model:
    answer = float(model({{"x": np.ones((1, 4), np.float32)}})["y"][0, 0])
with open({log!r}, "a") as log:
    print(os.environ["EDGE_CHECK_STAGE"], os.environ["EDGE_CHECK_RELEASE"], answer, file=log)
if os.environ["EDGE_CHECK_STAGE"] == {stage!r} and answer > 6:
    raise SystemExit("more than 6")
"""


@pytest.mark.e2e
@pytest.mark.parametrize("stage", ["trial", "probation"])
def test_it_asks_the_new_version_before_and_after_the_swap_and_the_old_one_stays_where_it_refuses(agent: Agent, tmp_path: Path, stage: str) -> None:
    script, log = tmp_path / "check", tmp_path / "log"
    script.write_text(SCRIPT.format(python=sys.executable, code=str(code_folder()), log=str(log), stage=stage))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    agent.stop()
    (agent.home / "config.json").write_text(json.dumps({"check": {"command": [str(script)], "timeout_s": 60}}))
    agent.start()
    assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    failed = agent.activate(make(tmp_path / "2", linear(2), release=2))
    assert failed["state"] == "failed"
    assert failed["stage"] == stage
    assert failed["error"]["message"].endswith("(exit 1): more than 6")
    expected = ["trial 1 4.0", "probation 1 4.0", "trial 2 8.0", *(["probation 2 8.0"] if stage == "probation" else [])]
    assert log.read_text().splitlines() == expected
    with connect("toy", home=agent.home) as model:
        assert model(np.ones((1, 4), np.float32))["y"].tolist() == [[4.0] * 3]
    assert agent.model("toy")["release"] == "1"
    assert (agent.home / "active" / "toy").resolve().name == agent.model("toy")["digest"][7:23]
