"""Ctrl-C at any moment: soon over, one line, exit 130, nothing half-written; and the next run finishes the job."""

import fcntl
import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests import digits
from tests.bundles import write_bundle

# A job that a shell put into the background ignores SIGINT, and so would what it starts.
START = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from edgesdk.start import main
os.write(1, b"!")
raise SystemExit(main())
"""
MOMENTS = 10
PATIENCE_S = 8  # two seconds are promised; others work on this machine, too


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_AGENT_HOME", str(tmp_path / "agent"))
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    return tmp_path


def started(*arguments: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", START, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.read(1) == "!"
    return child


def interrupted(child: subprocess.Popen[str], after_s: float) -> tuple[int, str]:
    """Exit code and what it said."""
    time.sleep(after_s)
    child.send_signal(signal.SIGINT)
    try:
        _, said = child.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise AssertionError(f"{after_s:.2f} s after its start it did not hear") from None
    return child.returncode, said


def moments(whole_s: float) -> list[float]:
    """From the first to the last, thickest at the start, where imports are."""
    draw = random.Random(4711)
    return [whole_s * (number + draw.random()) ** 2 / MOMENTS**2 for number in range(MOMENTS)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_package_leaves_nothing_half_written_wherever_it_is_interrupted(folder: Path) -> None:
    digits.write(folder)
    given = ("package", "model.onnx", "-p", "x86-cpu", "--calibration", "calibration.npz", "--evaluate", "evaluation.npz", "--quick", "--json")
    argv = (*given, "-o", "bundle")
    begin = time.monotonic()
    child = started(*argv, "--save-recipe", "recipe.toml")
    out, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    whole_s, digest = time.monotonic() - begin, json.loads(out)["digest"]
    before = sorted(path for path in folder.iterdir() if path.name != "cache")
    stopped = 0
    for moment in moments(whole_s):
        code, said = interrupted(started(*argv), moment)
        if code:
            stopped += 1
            assert (code, said.splitlines()[-1:]) == (130, ["interrupted"]), (moment, said)
            assert "Traceback" not in said
        assert sorted(path for path in folder.iterdir() if path.name != "cache") == before, moment
    assert stopped >= MOMENTS // 2
    child = started(*given, "-o", "again", "--release", "1", "--recipe", "recipe.toml")  # a search may choose another of two that are as fast
    out, said = child.communicate(timeout=300)
    assert json.loads(out)["digest"] == digest, "what was there is as it was, and so is the cache"


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deploy_that_is_interrupted_anywhere_is_finished_by_the_next(folder: Path) -> None:
    bundles = [str(write_bundle(folder / str(release), release=release, seed=release, width=700)) for release in (1, 2)]
    child = started("deploy", "local", bundles[0], "--json")
    out, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    begin = time.monotonic()
    try:
        child = started("deploy", "local", bundles[1], "--json")
        child.communicate(timeout=300)
        whole_s = time.monotonic() - begin
        for number, moment in enumerate(moments(whole_s)):
            bundle = bundles[number % 2]
            code, said = interrupted(started("deploy", "local", bundle, "--allow-downgrade", "--retry", "--json"), moment)
            assert code in (0, 130), said
            if code:
                assert (said.splitlines()[-1:], "Traceback" in said) == (["interrupted"], False), (moment, said)
            child = started("deploy", "local", bundle, "--allow-downgrade", "--retry", "--json")
            out, said = child.communicate(timeout=300)
            assert child.returncode == 0, said
            assert json.loads(out)[0]["outcome"] in ("active", "unchanged")
    finally:
        stop = str(folder / "agent" / "bin" / "edge-agent")
        subprocess.run([stop, "stop"], check=False, timeout=60)


# Presses Ctrl-C while onnxruntime's own library is being started, which takes longer than that.
WITHIN = """
import os, signal, sys, time
def profile(frame, event, function):
    if event == "c_call" and function.__name__ == "create_dynamic":
        sys.setprofile(None)
        if not os.fork():
            time.sleep(0.005)
            os.kill(os.getppid(), signal.SIGINT)
            os._exit(0)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime.capi.onnxruntime_pybind11_state":
            sys.setprofile(profile)
sys.meta_path.insert(0, Finder())
"""


def test_within_the_start_of_a_library_it_waits_for_its_end(folder: Path) -> None:
    digits.write(folder)
    child = subprocess.run([sys.executable, "-c", WITHIN + START, "check", "model.onnx", "-p", "x86-cpu"], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr.splitlines()) == (130, ["interrupted"])


QUESTION = """
import sys
from edgesdk import cli
from edgesdk.cli.output import confirm

@cli.app.command()
def ask() -> None:
    confirm("remove all of it?", otherwise="say --yes")

sys.argv = ["edgesdk", "ask"]
cli.main()
"""


def test_a_question_that_is_interrupted_is_no_answer() -> None:
    """At a terminal, where typer ends it with 1 and a word of its own."""
    here, there = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", QUESTION], stdin=there, stdout=there, stderr=there, start_new_session=True, preexec_fn=_own_terminal)
    os.close(there)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(here, 4096)
    while child.poll() is None:
        os.write(here, b"\x03")
        time.sleep(0.2)
    assert child.returncode == 130
    assert "interrupted" in os.read(here, 4096).decode()
    os.close(here)


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
