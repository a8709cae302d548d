"""What an agent does first: a change that was under way when the last one ended is finished or undone, and the journal says so.

    on_probation = recover(store, journal, removed)      # before the first model is started

A swap that had not answered yet is undone, a removal is finished. Which version is still on probation, and how often the agent died
since it became active, is in the journal, too. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent import log
from edge_agent.bundle import BundleError, check_name
from edge_agent.journal import Journal
from edge_agent.store import Store

_BEGIN = ("swapping", "removing")
_END = ("activated", "swapped back", "undone", "fell back", "removed")
_SCRATCH = re.compile(r"\..+\.[0-9]+\.[0-9]+")  # `write_atomically` names them so


@dataclass
class Told:
    """What the journal says of now."""

    under_way: dict[str, dict[str, Any]] = field(default_factory=dict)  # by model: how the change began that has no end
    on_probation: dict[str, str] = field(default_factory=dict)  # by model: the digest of what has not proven itself
    deaths: dict[str, int] = field(default_factory=dict)  # by model: since then the agent ended so often without a word


def read(entries: Iterable[dict[str, Any]]) -> Told:
    """Oldest first.

    >>> told = read([{"event": "swapping", "name": "ocr"}, {"event": "activated", "name": "ocr", "digest": "sha256:1"}, {"event": "started"}])
    >>> told.under_way, told.on_probation
    ({}, {'ocr': 'sha256:1'})
    """
    told, runs = Told(), False
    for entry in entries:
        event, name = entry.get("event"), entry.get("name")
        if event == "started":
            if runs:
                told.deaths = {known: told.deaths.get(known, 0) + 1 for known in told.on_probation}
            runs = True
        elif event == "stopped":
            runs = False
        elif not isinstance(name, str):
            continue
        elif event in _BEGIN:
            told.under_way[name] = entry
        elif event in _END:
            told.under_way.pop(name, None)
            for known in (told.on_probation, told.deaths):
                known.pop(name, None)
            if event == "activated":
                told.on_probation[name] = str(entry.get("digest"))
        elif event == "proven":
            for known in (told.on_probation, told.deaths):
                known.pop(name, None)
    return told


def recover(store: Store, journal: Journal, removed: Callable[[str], None]) -> Told:
    """``removed`` forgets what is known about a model besides its files. What cannot be written now is tried again at the next start."""
    sweep(store.home)
    told = read(journal.entries())
    for name, begun in told.under_way.items():
        with contextlib.suppress(BundleError):
            check_name(name)
            try:
                if begun["event"] == "removing":
                    freed = store.remove(name)
                    removed(name)
                    journal.append("removed", name=name, freed_bytes=freed, what="finished at the start")
                    continue
                active, previous = (_folder(store.home, name, begun.get(which)) for which in ("before", "previous"))
                if active is not None or begun.get("before") is None:  # else what is active now is better than nothing
                    store.restore(name, active, previous)
                    journal.append("undone", name=name, digest=begun.get("digest"))
            except OSError as error:
                log.event("error", "a change that was cut short cannot be undone yet", model=name, cause=error.strerror)
    return told


def sweep(home: Path) -> None:
    """What was half written when the last agent ended. We hold the folder, so nobody is at it."""
    for folder in (home, home / "latency", home / "staged", *(home / "deployments").glob("*/*")):
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if _SCRATCH.fullmatch(path.name) and not path.is_dir():
                    path.unlink()
    for folder in (home / "deployments").glob("*/.*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (home / "active", home / "previous"):
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if path.name.startswith("."):
                    path.unlink()


def _folder(home: Path, name: str, what: object) -> Path | None:
    """Of a deployment's folder the journal has the last part; one that is not there is none."""
    folder = home / "deployments" / name / os.path.basename(str(what))
    return folder if isinstance(what, str) and folder.is_dir() else None
