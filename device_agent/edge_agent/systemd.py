"""What a process needs that systemd started: the sockets that it was handed, and the word that it is well. Standard library only.

    listener = inherited(socket_path(home))       # None where nobody handed one over
    notify("READY=1")
    beat_s = watchdog_s()                         # say WATCHDOG=1 more often than that

Without systemd all of it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Optional

_FIRST_DESCRIPTOR = 3


def inherited(path: Path) -> Optional[socket.socket]:
    """The listening socket at ``path``, if it was handed to this very process. It stays systemd's: never shut it down, nor remove its file."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return None
    found = None
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no name
        handed = socket.socket(fileno=descriptor)
        if found is None and handed.family == socket.AF_UNIX and _is_at(handed, path):
            found = handed
        else:
            handed.close()
    return found


def notify(state: str) -> None:
    """Tell systemd. What it does not hear is no failure."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
            sock.sendall(state.encode())


def watchdog_s() -> Optional[float]:
    """So long without a word, and systemd ends this process; None where it does not watch."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) and pid == str(os.getpid()) else None


def _is_at(handed: socket.socket, path: Path) -> bool:
    try:
        return os.path.samefile(handed.getsockname(), path)
    except (OSError, ValueError, TypeError):
        return False
