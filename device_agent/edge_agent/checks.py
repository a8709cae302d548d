"""The device's own check: a command of its config.json that has to agree before a version stays. Standard library only.

    run(Check(("/usr/local/bin/check-ocr",), 60), deployment, home, stage="trial")      # raises CheckFailed

The command is the device's, never a bundle's. It is run without a shell, as the agent's user, with no input, and finds out from its
environment what it is asked about: EDGE_CHECK_STAGE (trial, probation), EDGE_CHECK_MODEL, EDGE_CHECK_RELEASE, EDGE_CHECK_DIGEST,
EDGE_CHECK_FOLDER. In a check that is written in Python,

    with under_check() as model:
        text = model({"x": image})["y"]

asks the version in question: at the trial in the check's own process, since the agent does not know it yet; in probation through the agent.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge_agent.config import Check
from edge_agent.errors import AgentError
from edge_agent.store import Deployment

TRIAL, PROBATION = "trial", "probation"
_TOLD_BYTES = 1000  # of what it says, the last of it, since there the reason is
_TICK_S = 0.1
_GRACE_S = 0.5  # for what it said last


class CheckFailed(AgentError):
    """The device's own check does not agree. The message has what it said."""


def run(check: Check, deployment: Deployment, home: Path, *, stage: str, ending: Callable[[], bool] = lambda: False) -> None:
    """Ask the check about a version; nothing where the device has none. ``ending``: whether to give up. Raises CheckFailed."""
    if not check.command:
        return
    program = check.command[0]
    what = f"the device's own check `{_shown(program.encode())}`"
    about = f"release {deployment.release} of {deployment.name} at the {stage}" if stage == TRIAL else f"release {deployment.release} of {deployment.name}"
    try:
        process = subprocess.Popen(
            check.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_environment(deployment, home, stage),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{what} cannot be run: {getattr(error, 'strerror', None) or error}", "correct `check` in the device's config.json") from error
    with process:
        try:
            said, in_time = _heard(process, check.timeout_s, ending)
        finally:
            with contextlib.suppress(ProcessLookupError):  # and whatever it started
                os.killpg(process.pid, signal.SIGKILL)
    words = f": {_shown(said)}" if said.strip() else ""
    if not in_time:
        raise CheckFailed(f"{what} did not end within {check.timeout_s:g} s for {about}{words}", "see that command, on the device")
    if process.returncode:
        how = f"exit {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise CheckFailed(f"{what} does not agree with {about} ({how}){words}", "what it checks is this device's business: see that command there")


def _heard(process: subprocess.Popen[bytes], timeout_s: float, ending: Callable[[], bool]) -> tuple[bytes, bool]:
    """The last that it says, and whether it ended by itself in time."""
    assert process.stdout is not None
    said, descriptor = b"", process.stdout.fileno()
    until, reading = time.monotonic() + timeout_s, True
    while process.poll() is None:
        if time.monotonic() > until or ending():
            return said, False
        said, reading = _more(descriptor, said, _TICK_S) if reading else (said, False)
        if not reading:
            time.sleep(_TICK_S)
    until = time.monotonic() + _GRACE_S  # a child that it left behind may hold the pipe open
    while reading and time.monotonic() < until:
        said, reading = _more(descriptor, said, 0.05)
    return said, True


def _more(descriptor: int, said: bytes, patience_s: float) -> tuple[bytes, bool]:
    if not select.select([descriptor], [], [], patience_s)[0]:
        return said, True
    chunk = os.read(descriptor, 1 << 16)
    return (said + chunk)[-_TOLD_BYTES:], bool(chunk)


def _shown(said: bytes) -> str:
    """One line, with everything escaped that a terminal could obey."""
    text = " | ".join(line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _environment(deployment: Deployment, home: Path, stage: str) -> dict[str, str]:
    told = {
        "STAGE": stage,
        "MODEL": deployment.name,
        "RELEASE": deployment.release,
        "DIGEST": deployment.digest,
        "FOLDER": str(deployment.folder),
    }
    private = ("LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # systemd's words are for the agent
    kept = {key: value for key, value in os.environ.items() if key not in private}
    return {**kept, "EDGE_AGENT_HOME": str(home), **{f"EDGE_CHECK_{key}": value for key, value in told.items()}}


@contextlib.contextmanager
def under_check() -> Iterator[Callable[[Any], dict[str, Any]]]:
    """For a check command: the version in question, to be asked with its inputs by name. Raises ClientError, or KeyError where this is no check."""
    home, name = Path(os.environ["EDGE_AGENT_HOME"]), os.environ["EDGE_CHECK_MODEL"]
    if os.environ["EDGE_CHECK_STAGE"] != TRIAL:
        from edge_agent.client import connect

        with connect(name, home=home) as model:
            yield model
        return
    from edge_agent.runtime import opened

    yield opened(Path(os.environ["EDGE_CHECK_FOLDER"]), home).run
