"""The agent's own process: to be it, to start it, to end it, and whether it runs.

    start(home)["pid"]            # one that runs already is left alone
    stop(home)

Raises Failure, whose message is for a person.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent import home as homes
from edge_agent import log
from edge_agent.connection import AgentNotRunning, ClientError, Connection
from edge_agent.errors import AgentError

if TYPE_CHECKING:
    from edge_agent.zygote import Begun

_START_S = 30
_KEEPER_S = 6


class Failure(AgentError):
    """A verb did not work. The message is for a person. ``again``: the link is to blame, and what arrived is kept."""

    def __init__(self, message: str, hint: str = "", *, again: bool = False) -> None:
        super().__init__(message, hint)
        self.again = again


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What a connection to the agent raises, as a Failure."""
    try:
        yield
    except ClientError as error:
        raise Failure(str(error), error.hint) from error


def serve(home: Path, begun: Begun | None) -> None:
    """Returns when the agent has ended. ``begun`` is the zygote, if it runs already."""
    from edge_agent import lock, log
    from edge_agent.config import ConfigError
    from edge_agent.zygote import Zygote

    if sys.stderr.isatty():
        sys.stderr.write(f"the agent runs on {home}; it says what it does in {home / 'agent.log'}\n")
    os.umask(0o027)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o750)
        with lock.held(home), log.opened(home / "agent.log"):
            zygote = Zygote(home, begun)
            from edge_agent.supervisor import serve as run

            run(home, zygote)
    except (lock.AlreadyRunning, ConfigError) as error:
        raise Failure(str(error), error.hint) from error
    except OSError as error:
        raise Failure(f"the agent cannot use {error.filename or home}: {error.strerror}", "set EDGE_AGENT_HOME to a folder that this user may write") from error


def start(home: Path) -> dict[str, Any]:
    """Detached from this terminal. One that runs already is left alone."""
    running = alive(home)
    if running is not None:
        return running
    if homes.is_systems(home):
        raise Failure("the agent of this system does not answer", "`systemctl status edge-agent.socket edge-agent.service` tells why; systemd runs it")
    _check_configuration(home)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o750)
        with open(home / "agent.log", "ab") as said:
            process = subprocess.Popen(**homes.serving(home), stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    except OSError as error:
        raise Failure(f"the agent cannot use {error.filename or home}: {error.strerror}", "set EDGE_AGENT_HOME to a folder that this user may write") from error
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        running = alive(home)
        if running is not None:
            parent = _parent(running["pid"])
            if parent is not None and process.pid not in (running["pid"], parent):
                process.terminate()  # somebody else's was quicker: ours must not begin when that one ends
            return running
        if process.poll() is not None:
            with contextlib.suppress(Failure):
                return _outlived(home)  # somebody else started one at the same moment
            break
        time.sleep(0.02)
    last = " ".join(map(log.in_words, log.newest(home / "agent.log", 1)))
    raise Failure(
        f"the agent did not start within {_START_S} s" if process.poll() is None else f"the agent ended at once: {last[:300]}", f"see {home / 'agent.log'}"
    )


def stop(home: Path) -> dict[str, Any]:
    """Wait until it has ended, and what would start it again. None that runs is fine."""
    from edge_agent import keeping

    running = alive(home)
    if running is not None:
        with explained(), Connection(home=home) as connection:
            connection.request("POST", "/edge/stop")
        until = time.monotonic() + _START_S
        while os.path.exists(f"/proc/{running['pid']}") and not _is_zombie(running["pid"]):
            if time.monotonic() > until:
                raise Failure(f"the agent (process {running['pid']}) did not end within {_START_S} s", f"see {home / 'agent.log'}")
            time.sleep(0.02)
    if not keeping.end(home, _KEEPER_S):
        raise Failure("the process that starts the agent again and again does not end", f"see {home / 'agent.log'}")
    return {"running": False}


def alive(home: Path) -> dict[str, Any] | None:
    """The running agent's process, None where none answers."""
    try:
        with Connection(home=home, timeout_s=_START_S) as connection:
            found = connection.request("GET", "/edge/alive").json()
            return {"running": True, "pid": int(found["pid"]), "digest": found.get("digest")}
    except AgentNotRunning:
        return None
    except ClientError as error:
        raise Failure(str(error), error.hint) from error


def _check_configuration(home: Path) -> None:
    """Here, where a person reads it, rather than in the log."""
    from edge_agent import config

    try:
        config.read(home)
    except config.ConfigError as error:
        raise Failure(str(error), error.hint) from error


def _outlived(home: Path) -> dict[str, Any]:
    for _ in range(100):
        running = alive(home)
        if running is not None:
            return running
        time.sleep(0.02)
    raise Failure("no agent answers")


def _parent(pid: int) -> int | None:
    """None where it cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _is_zombie(pid: int) -> bool:
    """Ended, and its parent has not looked yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True
