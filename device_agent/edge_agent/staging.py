"""Bundles that wait on this device: verified and tried, and made active by a word, or when their time has come. Standard library only.

    staging = Staging(home, activate)            # activate(waiting) makes one active, and says what went wrong, or nothing
    staging.put(Waiting("ocr", "sha256:…", 3, {}, None, None))
    staging.find("ocr")                          # by name, or by digest or the beginning of one
    staging.schedule("ocr", in_s=3600)
    staging.start()

One for each model, in `staged/NAME.json`; a newer one takes its place. What waits is not collected (`Store.staged`).

When its time has come is counted from the host's "so many seconds from now": while the device stays on, by the clock that counts since its start,
which nobody sets; after a restart by its wall clock. One whose time passed while the device was off is made active as soon as it is on.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from edge_agent import log
from edge_agent.blobs import StoreError, sync_folder
from edge_agent.bundle import DIGEST, BundleError, check_digest, check_name
from edge_agent.store import write_atomically

_LOOK_EVERY_S = 60  # after a restart: somebody may set the wall clock
_AGAIN_S = 5  # another deployment is under way
_MOST_TRIES = 3  # of one that takes the device down with it


class Later(Exception):
    """It cannot be made active just now; ask again."""


@dataclass(frozen=True)
class Due:
    """``up``: seconds since the start of the device, which was its start number ``boot``; ``wall``: the same moment by its wall clock."""

    boot: str
    up: float
    wall: float

    def left_s(self) -> float:
        return self.up - _up() if self.boot == _boot() else self.wall - time.time()


@dataclass(frozen=True)
class Waiting:
    """A bundle that waits, and what somebody allowed for it. ``error``: why it is not active although its time has come."""

    name: str
    digest: str
    release: int
    permissions: dict[str, bool]
    signature: Optional[str] = None
    signer: Optional[str] = None
    due: Optional[Due] = None
    tries: int = 0
    error: Optional[str] = None

    def to_dict(self) -> dict[str, Any]:
        """What others are told. ``at``: by this device's clock, in UTC."""
        at = datetime.fromtimestamp(time.time() + self.due.left_s(), timezone.utc).isoformat(timespec="seconds") if self.due else None
        return {"name": self.name, "release": self.release, "digest": self.digest, "signer": self.signer, "at": at, "error": self.error}


class Staging:
    """What waits, and the thread that knows when. ``activate`` returns what went wrong, None if nothing did, or raises Later."""

    def __init__(self, home: Path, activate: Callable[[Waiting], Optional[str]]) -> None:
        self._folder = home / "staged"
        self._activate = activate
        self._changed = threading.Condition()
        self._closed = False

    def put(self, waiting: Waiting) -> None:
        """Raises OSError."""
        self._folder.mkdir(exist_ok=True, mode=0o750)
        with self._changed:
            write_atomically(self._path(waiting.name), json.dumps(asdict(waiting), sort_keys=True).encode())
            self._changed.notify_all()

    def all(self) -> list[Waiting]:
        """By name. A damaged file is none: its bundle is staged again, or deployed."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, BundleError):
                found.append(_parsed(path))
        return found

    def of(self, name: str) -> Optional[Waiting]:
        return next((one for one in self.all() if one.name == name), None)

    def find(self, what: str) -> Optional[Waiting]:
        """By name, by digest, or by eight and more of its digits. None for a whole digest that does not wait. Raises StoreError for anything else."""
        for one in self.all():
            if what in (one.name, one.digest) or (re.fullmatch("(sha256:)?[0-9a-f]{8,64}", what) and one.digest[7:].startswith(what.replace("sha256:", ""))):
                return one
        if DIGEST.fullmatch(what):
            return None
        raise StoreError(f"nothing that is called {what[:80]!r} is staged on this device", "`edge-agent status` lists what is; deploy with --stage-only first")

    def schedule(self, what: str, in_s: float) -> Waiting:
        """Have it made active so many seconds from now. Raises StoreError, OSError."""
        waiting = replace(self._found(what), due=due(in_s), tries=0, error=None)
        self.put(waiting)
        return waiting

    def forget(self, name: str, digest: Optional[str] = None) -> None:
        """It waits no longer; with ``digest``, only if it is that one."""
        waiting = self.of(name)
        if digest is not None and (waiting is None or waiting.digest != digest):
            return
        with self._changed, contextlib.suppress(FileNotFoundError):
            self._path(name).unlink()
            sync_folder(self._folder)

    def cancel(self, what: str) -> Waiting:
        """The same, by any of its names. Raises StoreError."""
        waiting = self._found(what)
        self.forget(waiting.name)
        return waiting

    def start(self) -> None:
        threading.Thread(target=self._watch, name="staging", daemon=True).start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _found(self, what: str) -> Waiting:
        waiting = self.find(what)
        if waiting is None:
            raise StoreError(f"{what[:19]} is not staged on this device", "`edge-agent status` lists what is; deploy with --stage-only first")
        return waiting

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_name(name)}.json"

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                timed = [(one.due.left_s(), one) for one in self.all() if one.due]
                soonest = min(timed, key=lambda entry: entry[0], default=None)
                if soonest is None or soonest[0] > 0:
                    self._changed.wait(min(soonest[0], _LOOK_EVERY_S) if soonest else None)
                    continue
            try:
                self._begin(soonest[1])
            except Exception as error:  # noqa: BLE001 - whatever it is, the others' time comes too
                log.event("error", "a staged bundle was not made active", model=soonest[1].name, cause=str(error))
                self._pause()

    def _begin(self, waiting: Waiting) -> None:
        if waiting.tries >= _MOST_TRIES:
            self.put(replace(waiting, due=None, error=f"the agent or the device went down {_MOST_TRIES} times while it was being made active"))
            return
        self.put(replace(waiting, tries=waiting.tries + 1))  # before, since it may take the device down
        try:
            error = self._activate(waiting)
        except Later:
            self.put(waiting)
            self._pause()
            return
        if error is not None and self.of(waiting.name) is not None:
            # Where the agent ends, it goes on when that starts again.
            self.put(waiting if self._closed else replace(waiting, due=None, error=error))

    def _pause(self) -> None:
        with self._changed:
            if not self._closed:
                self._changed.wait(_AGAIN_S)


def due(in_s: float) -> Due:
    """So many seconds from now."""
    return Due(_boot(), _up() + in_s, time.time() + in_s)


def _parsed(path: Path) -> Waiting:
    document = json.loads(path.read_bytes())
    when = document.pop("due")
    known = {entry.name: document[entry.name] for entry in fields(Waiting) if entry.name in document}
    waiting = Waiting(**known, due=Due(str(when["boot"]), float(when["up"]), float(when["wall"])) if when else None)
    check_digest(waiting.digest)
    if check_name(waiting.name) != path.name[: -len(".json")]:
        raise ValueError(waiting.name)
    return replace(waiting, release=int(waiting.release), permissions={str(key): bool(value) for key, value in waiting.permissions.items()})


def _up() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
