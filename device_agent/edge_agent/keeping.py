"""Finds the process that keeps an agent running where no systemd does: `bin/launcher.py keep`, of one folder.

    for process in keepers(home): ...

By what /proc shows of it: a file with its number could be of an earlier one. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

_PEACE_S = 0.3


def end(home: Path, patience_s: float) -> bool:
    """Whether none is left. One whose agent has ended in peace is about to end; one that waits to start it again is asked to, and killed if it does not."""
    begin = time.monotonic()
    while found := keepers(home):
        waited_s = time.monotonic() - begin
        if waited_s > patience_s:
            return False
        for process in found if waited_s > _PEACE_S else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if waited_s > patience_s / 2 else signal.SIGTERM)
        time.sleep(0.05)
    return True


def keepers(home: Path) -> list[int]:
    """Their processes, and their children before those become the agent. None of another user's."""
    argv = [os.fsencode(home / "bin" / "launcher.py"), b"keep"]
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.geteuid() and (folder / "cmdline").read_bytes().split(b"\0")[1:3] == argv:
                found.append(int(folder.name))
    return found
