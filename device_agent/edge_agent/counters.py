"""What is counted of each model's versions, kept across restarts. Standard library only.

ledger = Ledger(home / "latency")
counters = ledger.of("ocr", digest, release="3")     # goes on where it ended
counters.answered(total_ns, {"queue": …, "input": …, "run": …, "output": …})
ledger.save()                                        # what has changed: one small file a model
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent import log
from edge_agent.journal import now
from edge_agent.latency import Histogram
from edge_agent.store import write_atomically

PHASES = ("queue", "input", "run", "output")
_VERSIONS_KEPT = 4  # of one model: the active one, the previous one, and two before


@dataclass
class Counters:
    """What is counted of one deployment. ``total`` is from a request's last byte to its answer's first; failures are ``failed`` alone."""

    digest: str
    release: str
    since: str
    errors: int = 0
    total: Histogram = field(default_factory=Histogram)
    failed_total: Histogram = field(default_factory=Histogram)
    phases: dict[str, Histogram] = field(default_factory=lambda: {phase: Histogram() for phase in PHASES})
    joined: int = 0  # questions that the model was asked together with an earlier one
    not_finite: int = 0  # answers that hold NaN or infinity: no failures, and seldom meant

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.changed = False
        self.last_ms = 0  # since 1970, of the latest request since the agent started

    @property
    def used(self) -> bool:
        return bool(self.total.count or self.errors)

    def answered(self, total_ns: int, phases: dict[str, int]) -> None:
        with self.lock:
            self.total.record(total_ns)
            for phase in PHASES:
                self.phases[phase].record(phases.get(phase, 0))
            self._touch()

    def failed(self, total_ns: int) -> None:
        with self.lock:
            self.errors += 1
            self.failed_total.record(total_ns)
            self._touch()

    def add(self, run: Histogram, errors: int) -> None:
        """What was answered outside the agent: neither queued nor encoded."""
        with self.lock:
            self.total.merge(run)
            self.phases["run"].merge(run)
            self.errors += errors
            self._touch()

    def add_counts(self, counts: dict[str, Any]) -> None:
        """What a worker answered without the supervisor: some of the histograms, by name, ``joined`` and ``not_finite``. Raises ValueError."""
        with self.lock:
            for name, document in counts.items():
                if name in ("joined", "not_finite"):
                    setattr(self, name, getattr(self, name) + int(document))
                    continue
                histogram = Histogram.from_dict(document)
                if name == "failed":
                    self.failed_total.merge(histogram)
                    self.errors += histogram.count
                else:
                    (self.total if name == "total" else self.phases[name]).merge(histogram)
            self._touch()

    def merge(self, other: Counters) -> None:
        """Add what was counted elsewhere: in another process, or on another device."""
        with self.lock:
            self.errors += other.errors
            self.joined += other.joined
            self.not_finite += other.not_finite
            self.total.merge(other.total)
            self.failed_total.merge(other.failed_total)
            for phase in PHASES:
                self.phases[phase].merge(other.phases[phase])
            self.since = min(self.since, other.since)
            self._touch()

    def to_dict(self) -> dict[str, Any]:
        with self.lock:
            return {
                "digest": self.digest,
                "release": self.release,
                "since": self.since,
                "errors": self.errors,
                "joined": self.joined,
                "not_finite": self.not_finite,
                "total": self.total.to_dict(),
                "failed": self.failed_total.to_dict(),
                "phases": {phase: histogram.to_dict() for phase, histogram in self.phases.items()},
            }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Counters:
        """Raises ValueError. A file of before there were releases and failures in it is read, too."""
        try:
            return cls(
                str(document["digest"]),
                str(document.get("release", "")),
                str(document["since"]),
                int(document["errors"]),
                Histogram.from_dict(document["total"]),
                Histogram.from_dict(document["failed"]) if "failed" in document else Histogram(),
                {phase: Histogram.from_dict(document["phases"][phase]) for phase in PHASES},
                int(document.get("joined", 0)),
                int(document.get("not_finite", 0)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not counters: {error!r}") from error

    def _touch(self) -> None:
        self.changed, self.last_ms = True, time.time_ns() // 1_000_000


class Ledger:
    """The counters of every model, of its last few versions. Any thread may ask."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._models: dict[str, list[Counters]] = {}  # the version that was asked for last stands last

    def of(self, name: str, digest: str, release: str) -> Counters:
        """Those of that deployment: going on where they ended, or new."""
        with self._lock:
            known = self._known(name)
            found = next((counters for counters in known if counters.digest == digest), None) or Counters(digest, release, now())
            found.release = release
            # The last one runs still: its worker may have answered what it has not told yet.
            others = [counters for counters in known if counters.digest != digest and (counters.used or counters is known[-1])]
            self._models[name] = [*others[-(_VERSIONS_KEPT - 1) :], found]
            return found

    def versions(self, name: str) -> list[Counters]:
        """Oldest first; those that were never asked left out."""
        with self._lock:
            return [counters for counters in self._known(name) if counters.used]

    def forget(self, name: str) -> None:
        with self._lock:
            self._models.pop(name, None)
            with contextlib.suppress(FileNotFoundError):
                self._path(name).unlink()

    def save(self) -> None:
        """Write what has changed. A full disk costs the counts, never an answer."""
        with self._lock:
            models = {name: list(versions) for name, versions in self._models.items()}
        for name, versions in models.items():
            changed = [counters for counters in versions if counters.changed]
            if not changed:
                continue
            for counters in changed:
                counters.changed = False
            try:
                self._folder.mkdir(exist_ok=True, mode=0o750)
                kept = [counters.to_dict() for counters in versions if counters.used]
                write_atomically(self._path(name), json.dumps({"versions": kept}, separators=(",", ":")).encode())
            except OSError as error:
                for counters in changed:
                    counters.changed = True
                log.event("warning", "the latencies could not be saved", model=name, cause=error.strerror)

    def _known(self, name: str) -> list[Counters]:
        if name not in self._models:
            self._models[name] = list(self._read(name))
        return self._models[name]

    def _read(self, name: str) -> Iterable[Counters]:
        """What is on disk; nothing where that is damaged."""
        try:
            document = json.loads(self._path(name).read_bytes())
            return [Counters.from_dict(entry) for entry in document.get("versions", [document])][-_VERSIONS_KEPT:]
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return []

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
