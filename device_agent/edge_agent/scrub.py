"""Bit rot between two loads: one blob a day is read again, the next one each time.

    scrub = Scrub(store, rotten)
    scrub.look()                    # from time to time, from one thread

``rotten`` hears of a blob whose content has changed, before it is removed, with the deployments that have it. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.blobs import Damaged
from edge_agent.bundle import Descriptor
from edge_agent.store import Deployment, Store, write_atomically

_FIRST_S = 600  # after the start: a device that is switched off every night has its turn, too
_EVERY_S = 24 * 3600
_LEAST_URGENT = 19


class Scrub:
    """Which one was read last is kept in a file, written once a day."""

    def __init__(self, store: Store, rotten: Callable[[Damaged, list[Deployment]], None]) -> None:
        self._store, self._rotten = store, rotten
        self._last = store.home / "scrubbed"
        self._due = time.monotonic() + _FIRST_S

    def look(self) -> None:
        """In a thread of its own, when a day has passed."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _EVERY_S
            threading.Thread(target=self._least_urgently, name="scrub", daemon=True).start()

    def _least_urgently(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_URGENT)
        self.one()

    def one(self) -> None:
        """The next blob. Raises OSError."""
        blob = self._next()
        if blob is None:
            return
        with contextlib.suppress(OSError):
            write_atomically(self._last, blob.name.encode())
        with open(blob, "rb") as stream:  # from the disk, where no model has it in memory
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        users = self._store.users(blob)
        try:
            self._store.verify(Descriptor(f"sha256:{blob.name}", blob.stat().st_size))
        except Damaged as damage:
            self._rotten(damage, users)

    def _next(self) -> Path | None:
        try:
            last = self._last.read_text(encoding="ascii", errors="replace")
        except OSError:
            last = ""
        blobs = sorted(self._store.all())
        return next((blob for blob in blobs if blob.name > last), blobs[0] if blobs else None)
