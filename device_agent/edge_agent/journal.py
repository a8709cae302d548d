"""What happened on this device, a line each, oldest first: `journal.jsonl`. Standard library only.

    Journal(home).append("activated", name="ocr", digest="sha256:…")

A line is on the disk before the next thing is done. A full disk costs the line, never the deed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from datetime import datetime, timezone
from pathlib import Path

_MAX_BYTES = 4 << 20  # then one older file is kept beside it


class Journal:
    """Appends from any thread."""

    def __init__(self, home: Path) -> None:
        self.path = home / "journal.jsonl"
        self._lock = threading.Lock()

    def append(self, event: str, **fields: object) -> None:
        """One line, with the time; it is told on standard error too."""
        line = json.dumps({"time": now(), "event": event, **fields}) + "\n"
        sys.stderr.write(line)
        sys.stderr.flush()
        try:
            with self._lock:
                if self.path.exists() and self.path.stat().st_size > _MAX_BYTES:
                    os.replace(self.path, self.path.with_suffix(".1.jsonl"))
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
                try:
                    os.write(descriptor, line.encode())
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            sys.stderr.write(f"the journal lost a line: {error.strerror}\n")


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a text file; none where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return [line.rstrip("\n") for line in deque(stream, maxlen=lines)]
    except FileNotFoundError:
        return []


def now() -> str:
    """The time for people, in UTC. Nothing is ordered by it: a device's clock may be wrong."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
