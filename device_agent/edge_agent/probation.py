"""Versions that have to prove themselves: twenty good answers, or a minute without a fault; a third crash brings back what ran before.

    probations = Probations(journal)
    probations.begin(deployment)
    probations.charged(deployment, cause)          # True at the third crash
    probations.verdict(deployment)                 # why it had to go

Whoever waits for a deployment waits for the twenty answers, which the agent asks for itself where no program does. Crashes are charged for
a minute, and for another after each, whatever was answered by then. Standard library only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge_agent.journal import Journal
from edge_agent.store import Deployment

GOOD_ANSWERS = 20
PROBATION_S = 60  # since a version became active, or last crashed
MOST_CRASHES = 3


@dataclass
class _Probation:
    digest: str
    crashes: int = 0
    proven: bool = False
    verdict: str = ""
    until: float = field(default_factory=lambda: time.monotonic() + PROBATION_S)


class Probations:
    """By model, of its active version. Any thread may ask."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._known: dict[str, _Probation] = {}

    def begin(self, deployment: Deployment) -> None:
        with self._lock:
            self._known[deployment.name] = _Probation(deployment.digest)

    def resume(self, on_probation: Mapping[str, str], deaths: Mapping[str, int], gone: Callable[[str, str], None]) -> None:
        """Those that had not proven themselves when the agent ended. Each of its deaths since counts as one of the model's: it may have caused them.

        ``gone`` hears of a model that must not be started a fourth time.
        """
        for name, digest in on_probation.items():
            crashes = deaths.get(name, 0)
            with self._lock:
                self._known[name] = probation = _Probation(digest, crashes)
            if crashes >= MOST_CRASHES:
                probation.verdict = f"the agent ended {crashes} times within the probation of this version"
                gone(name, probation.verdict)
            else:
                threading.Thread(target=self._wait, args=(name, probation), name=f"probation {name}", daemon=True).start()

    def charged(self, deployment: Deployment, cause: str) -> str:
        """A crash. At the third within the probation, why that version has to go; else empty."""
        with self._lock:
            probation = self._known.get(deployment.name)
            if probation is None or probation.digest != deployment.digest or time.monotonic() > probation.until:
                return ""
            probation.crashes += 1
            probation.until = time.monotonic() + PROBATION_S
            if probation.crashes == MOST_CRASHES:
                probation.verdict = f"it crashed {MOST_CRASHES} times within its probation, at last: {cause}"
                return probation.verdict
            return ""

    def verdict(self, deployment: Deployment) -> str:
        """Why it had to go; empty where it did not."""
        with self._lock:
            probation = self._known.get(deployment.name)
            return probation.verdict if probation is not None and probation.digest == deployment.digest else ""

    def proves(self, deployment: Deployment) -> bool:
        """Whether it has still to prove itself."""
        with self._lock:
            probation = self._known.get(deployment.name)
            return probation is not None and probation.digest == deployment.digest and not probation.proven and not probation.verdict

    def proven(self, name: str, digest: str, answers: int) -> None:
        with self._lock:
            probation = self._known.get(name)
            if probation is None or probation.digest != digest or probation.proven or probation.verdict:
                return
            probation.proven = True
        self._journal.append("proven", name=name, digest=digest, answers=answers)

    def _wait(self, name: str, probation: _Probation) -> None:
        """Nobody waits for this one any more: its minute has to pass."""
        while (left := probation.until - time.monotonic()) > 0:
            time.sleep(left)
        with self._lock:
            current = self._known.get(name) is probation
        if current:
            self.proven(name, probation.digest, 0)
