"""What starts the agent: an agent that does not start, or dies, gives way to the one before it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h11
import numpy as np
import pytest
from test_bootstrap import LAUNCHER, ask, install
from toys import Agent, linear, make, wait_until

import edge_agent
from edge_agent import connect, keeping, launcher
from edge_agent import home as homes

MAIN = b"""import sys

from edge_agent.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
"""
MORTAL = b"""
import os
_respond, _asked = respond, []
def respond(agent, request):
    _asked.append(request)
    if len(_asked) == 3:
        os._exit(9)
    return _respond(agent, request)
"""


def toy(words: str) -> dict[str, bytes]:
    return {"__main__.py": b"def main():\n    " + words.encode()}


def run(home: Path, *argv: str) -> tuple[int, str]:
    done = subprocess.run([home / "bin" / "edge-agent", *argv], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout.strip()


def starts(home: Path) -> list[str]:
    return (home / "agent" / "starts").read_text().split()


def test_it_is_small_and_no_update_touches_it(tmp_path: Path) -> None:
    assert len(LAUNCHER.splitlines()) <= 80
    install(tmp_path, toy("print(1)"))
    before = (tmp_path / "bin" / "launcher.py").stat().st_ino
    install(tmp_path, {**toy("print(2)"), "edge_agent/launcher.py": b"raise SystemExit('a launcher that is broken')"})
    assert (tmp_path / "bin" / "launcher.py").stat().st_ino == before
    assert run(tmp_path) == (0, "2")


def test_the_one_before_is_taken_after_three_starts_and_stays(tmp_path: Path) -> None:
    good = install(tmp_path, toy("print('good')"))["agent"]
    assert run(tmp_path, "serve") == (0, "good")
    bad = install(tmp_path, {"__main__.py": b"import a_module_that_is_not_there"})["agent"]
    for count in "123":
        assert run(tmp_path, "serve") == (70, "")
        assert starts(tmp_path) == [bad, bad, count]
    (tmp_path / "agent" / "starts").write_text(f"{bad} {bad} 3")
    assert run(tmp_path, "status") == (0, "good")  # every other verb at once
    assert run(tmp_path, "serve") == (0, "good")
    (tmp_path / "agent" / "starts").write_text(f"{bad} {good} 0")  # it was well for a minute
    assert run(tmp_path, "serve") == (0, "good")
    better = install(tmp_path, toy("print('better')"))["agent"]
    assert run(tmp_path, "serve") == (0, "better")
    assert {(tmp_path / "agent" / link).readlink().name for link in ("current", "previous")} == {better, good}
    assert not (tmp_path / "agent" / bad).exists()


def test_ending_in_peace_is_no_failed_start(tmp_path: Path) -> None:
    name = install(tmp_path, toy("return 1"))["agent"]
    for _ in range(5):
        assert run(tmp_path, "serve") == (1, "")
    assert starts(tmp_path) == [name, name, "0"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is too short to close what it reads
def test_pauses_double_up_to_a_minute_and_both_are_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("raise OSError", "raise ValueError"):
        install(tmp_path, toy(words))
    monkeypatch.setenv("EDGE_AGENT_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    pauses: list[float] = []
    raised: list[str] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: raised.append(kind.__name__))
    for _ in range(20):
        assert launcher.main(["serve"]) == 70
    assert pauses[:8] == [0, 1, 2, 4, 8, 16, 32, 60] and set(pauses[8:]) == {60}
    assert raised[:9] == ["ValueError"] * 3 + ["OSError"] * 3 + ["ValueError"] * 3


def test_a_python_that_is_gone_is_another_one_then(tmp_path: Path) -> None:
    install(tmp_path, toy("print('here')"))
    script = tmp_path / "bin" / "edge-agent"
    script.write_text(script.read_text().replace(sys.executable, "/usr/bin/python3.0"))
    assert run(tmp_path) == (0, "here")
    assert ask(tmp_path, "launcher")["changed"] is True


def sources(**changed: bytes) -> dict[str, bytes]:
    """The real agent as an archive, some modules changed."""
    found = {"__main__.py": MAIN}
    for package in (edge_agent, h11):
        folder = Path(package.__file__).parent
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".html") and "tests" not in path.parts:
                found[str(Path(package.__name__, path.relative_to(folder)))] = path.read_bytes()
    return {**found, **{f"edge_agent/{name}.py": source for name, source in changed.items()}}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Agent]:
    """A device that was set up, with a model that answers; its agent runs by the launcher."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    agent = Agent(folder)
    install(folder, sources())
    assert run(folder, "start")[0] == 0
    assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    yield agent
    run(folder, "stop")
    wait_until(lambda: not agent._answers())
    shutil.rmtree(folder)


def answered(agent: Agent) -> float:
    with connect("toy", home=agent.home) as model:
        return float(model(np.ones((1, 4), np.float32))["y"][0, 0])


@pytest.mark.e2e
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({"supervisor": b"raise ImportError('broken')"}, id="at import"),
        pytest.param({"verbs": b"raise ImportError('broken')"}, id="at every verb"),
        pytest.param({"api": (Path(edge_agent.__file__).parent / "api.py").read_bytes() + MORTAL}, id="at its third request"),
    ],
)
def test_an_agent_that_dies_gives_way_to_the_one_before_it(device: Agent, broken: dict[str, bytes]) -> None:
    good = (device.home / "agent" / "current").readlink().name
    bad = install(device.home, sources(**broken))["agent"]
    run(device.home, "stop")
    run(device.home, "start")

    def taken_over() -> bool:
        try:
            return bool(device.ask("GET", "/edge/status")["agent"]["digest"] == good and device.model("toy")["state"] == "active")
        except Exception:  # noqa: BLE001 - not yet
            return False

    wait_until(taken_over, 60)
    assert answered(device) == 4
    assert f"the agent {bad} did not start, or died; {good}, the one before it, runs" in device.ask("GET", "/healthz")["problem"]
    assert json.loads(run(device.home, "status", "--json")[1].partition(": ")[2])["agent"]["problem"]


@pytest.mark.e2e
def test_an_agent_that_is_killed_is_back_in_a_moment(device: Agent) -> None:
    pid = device.ask("GET", "/edge/alive")["pid"]
    os.kill(pid, 9)
    wait_until(lambda: device._answers() and device.ask("GET", "/edge/alive")["pid"] != pid)
    wait_until(lambda: device.model("toy")["state"] == "active")
    assert answered(device) == 4


@pytest.mark.e2e
def test_stop_ends_what_starts_an_agent_that_dies_again_and_again(tmp_path: Path) -> None:
    for words in (b"one", b"another"):  # there is none to go back to
        install(tmp_path, sources(supervisor=b"raise ImportError('" + words + b"')"))
    said = (tmp_path / "said").open("wb")
    keep = subprocess.Popen([tmp_path / "bin" / "edge-agent", "keep"], start_new_session=True, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        wait_until(lambda: (tmp_path / "agent" / "starts").is_file() and int(starts(tmp_path)[2]) >= 2, 60)
        assert keeping.keepers(tmp_path)[:1] and keep.poll() is None
        assert run(tmp_path, "stop", "--json") == (0, 'edge-agent-reply: {"running": false}')
        keep.wait(10)
        before = starts(tmp_path)
        time.sleep(2.5)
        assert (starts(tmp_path), keeping.keepers(tmp_path)) == (before, [])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keep.pid, 9)
        said.close()


@pytest.mark.e2e
def test_after_an_upgrade_of_python_it_says_what_to_run(tmp_path: Path) -> None:
    """A Python of the system, without packages of ours, and wheels for another one."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    python, agent = os.path.realpath(sys.executable), Agent(folder)
    install(folder, sources())
    script, fitting = folder / "bin" / "edge-agent", folder / "runtime" / homes.runtime_tag()
    script.write_text(script.read_text().replace(sys.executable, python))
    fitting.symlink_to(Path(np.__file__).parents[1])
    try:
        assert run(folder, "start")[0] == 0
        assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
        run(folder, "stop")
        other = fitting.rename(fitting.with_name("cp36-" + fitting.name.partition("-")[2]))
        assert run(folder, "start")[0] == 0
        here = ".".join(map(str, sys.version_info[:2]))
        told = f"python changed 3.6 → {here}: run `edgesdk setup HOST`"
        wait_until(lambda: agent.model("toy")["state"] == "failed")
        assert agent.ask("GET", "/edge/status")["agent"]["problem"] == agent.model("toy")["error"] == told
        other.rename(fitting)  # what `edgesdk setup` brings
        wait_until(lambda: agent.model("toy")["state"] == "active", 60)
    finally:
        run(folder, "stop")
        shutil.rmtree(folder)


@pytest.mark.e2e
def test_an_onnxruntime_that_ends_python_is_named(tmp_path: Path) -> None:
    """Built for a newer processor, say: SIGILL at its import, in the process that a trial is forked from."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    python, agent = os.path.realpath(sys.executable), Agent(folder)
    install(folder, sources())
    script, runtime = folder / "bin" / "edge-agent", folder / "runtime" / homes.runtime_tag()
    script.write_text(script.read_text().replace(sys.executable, python))
    (runtime / "onnxruntime").mkdir(parents=True)
    (runtime / "onnxruntime" / "__init__.py").write_text('import os\n__version__ = "1.20.0"\nos.kill(os.getpid(), 4)\n')
    for path in Path(np.__file__).parents[1].glob("numpy*"):
        (runtime / path.name).symlink_to(path)
    try:
        assert run(folder, "start")[0] == 0
        failed = agent.activate(make(tmp_path / "1", linear(1)))
        assert (failed["state"], failed["error"]["message"]) == ("failed", "this device has no onnxruntime that works: Python ends when it loads it")
        assert "the processor older" in failed["error"]["hint"]
        assert agent._answers()
    finally:
        run(folder, "stop")
        shutil.rmtree(folder)


def test_words_of_other_pythons_are_plain() -> None:
    assert homes._plain("cp313") == "3.13"
    assert homes._plain("musl") == "musl"
