"""What happened on this device, a line each, oldest first: `journal.jsonl`. Standard library only.

    journal = Journal(home)
    journal.append("fell back", name="ocr", digest="sha256:…")
    journal.promise("swapping", name="ocr", …)        # or it is not done
    for entry in journal.entries(): …

A line is on the disk before the next thing is done. Lines are only ever added: one that was torn when the power failed is left out by
whoever reads, and the next begins a line of its own. What `recovery` needs is promised; of all else a full disk costs the line, never the deed.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_agent import log
from edge_agent.blobs import sync_folder

_LEVELS = {
    "worker died": "warning",
    "swapped back": "warning",
    "fell back": "warning",
    "undone": "warning",
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
        self._older = home / "journal.1.jsonl"
        self._lock = threading.Lock()

    def append(self, event: str, **fields: object) -> None:
        """One line, with the time; the log has it too."""
        try:
            self.promise(event, **fields)
        except OSError as error:
            log.event("error", "the journal lost a line", cause=error.strerror)

    def promise(self, event: str, **fields: object) -> None:
        """The same. Raises OSError where the line is not on the disk: then what it says must not be done."""
        line = json.dumps({"time": now(), "event": event, **fields}) + "\n"
        log.event(_LEVELS.get(event, "info"), event, **{"model" if key == "name" else key: value for key, value in fields.items()})
        with self._lock:
            self._write(line.encode())

    def entries(self) -> Iterator[dict[str, Any]]:
        """All that is kept, oldest first."""
        for path in (self._older, self.path):
            try:
                stream = open(path, "rb")  # noqa: SIM115 - closed below
            except OSError:
                continue
            with stream:
                for line in stream:
                    try:
                        entry = json.loads(line)
                    except (ValueError, RecursionError):
                        continue
                    if isinstance(entry, dict):
                        yield entry

    def _write(self, data: bytes) -> None:
        fresh = not self.path.exists()
        if not fresh and self.path.stat().st_size > _MAX_BYTES:
            os.replace(self.path, self._older)
            fresh = True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # torn by a power cut, or by a full disk
                data = b"\n" + data
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            sync_folder(self.path.parent)


def now() -> str:
    """The time for people, in UTC. Nothing is ordered by it: a device's clock may be wrong."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
