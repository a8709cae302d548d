"""What happened on this device, a line each, oldest first: `journal.jsonl`. Standard library only.

    Journal(home).append("activated", name="ocr", digest="sha256:…")

A line is on the disk before the next thing is done. A full disk costs the line, never the deed.
"""

from __future__ import annotations

import json
import os
import threading
from datetime import datetime, timezone
from pathlib import Path

from edge_agent import log

_LEVELS = {
    "worker died": "warning",
    "swapped back": "warning",
    "fell back": "warning",
    "tcp failed": "warning",
    "failed": "error",
    "damaged": "error",
    "model failed": "error",
}
_MAX_BYTES = 4 << 20  # then one older file is kept beside it


class Journal:
    """Appends from any thread."""

    def __init__(self, home: Path) -> None:
        self.path = home / "journal.jsonl"
        self._lock = threading.Lock()

    def append(self, event: str, **fields: object) -> None:
        """One line, with the time; the log has it too."""
        line = json.dumps({"time": now(), "event": event, **fields}) + "\n"
        log.event(_LEVELS.get(event, "info"), event, **{"model" if key == "name" else key: value for key, value in fields.items()})
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
            log.event("error", "the journal lost a line", cause=error.strerror)


def now() -> str:
    """The time for people, in UTC. Nothing is ordered by it: a device's clock may be wrong."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
