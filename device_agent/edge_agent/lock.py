"""Two agents never run on one folder: the lock file says who does. Standard library only.

with held(home):
    ...
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edge_agent.errors import AgentError


class AlreadyRunning(AgentError):
    """Another agent holds this folder."""

    def __init__(self, home: Path, pid: str) -> None:
        super().__init__(f"an agent already runs on {home}" + (f" (process {pid})" if pid else ""), "`edge-agent stop` ends it")


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """Hold the folder. The kernel frees the lock of a process that died. Raises AlreadyRunning or OSError."""
    descriptor = os.open(home / "agent.lock", os.O_RDWR | os.O_CREAT, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(home, os.read(descriptor, 20).decode("ascii", "replace").strip()) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
