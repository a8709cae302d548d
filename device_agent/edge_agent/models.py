"""The models that answer now: which worker a request goes to, and what is counted about it.

    models = Models(home, store, journal, limits, zygote)
    models.boot()                              # what was active when the agent ended
    models.infer("ocr", header_bytes, body)
    models.route("ocr", model)                 # requests go to this one from now on
    models.save()                              # at most once a minute, and at the end

Standard library only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.blobs import StoreError
from edge_agent.bundle import BundleError
from edge_agent.config import Limits
from edge_agent.counters import Counters, Ledger
from edge_agent.errors import AgentError
from edge_agent.home import runtime_problem
from edge_agent.journal import Journal
from edge_agent.latency import Histogram
from edge_agent.store import Deployment, Store
from edge_agent.workers import Answered, Replaced, Worker, WorkerUnavailable
from edge_agent.zygote import Zygote

Answer = TypeVar("Answer")

_SWAP_S = 60  # a request waits so long for the version that replaces another


class UnknownModel(AgentError):
    """No model of that name is active."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no model `{name[:80]}` is active on this device", "`edge-agent status` lists those that are")


@dataclass(frozen=True)
class Active:
    """A deployment with its worker."""

    deployment: Deployment
    profile: str
    worker: Worker
    counters: Counters


class Models:
    """Every active model, by name. Any thread may ask."""

    def __init__(self, home: Path, store: Store, journal: Journal, limits: Limits, zygote: Zygote) -> None:
        self._home, self._store, self._journal, self._limits = home, store, journal, limits
        self._ledger = Ledger(home / "latency")
        self.zygote = zygote
        self._lock = threading.Condition()
        self._closed = False
        self._active: dict[str, Active] = {}
        self._failed: dict[str, str] = {}  # active on disk, and cannot even be read
        self.damaged: Callable[[str, StoreError], None] = lambda _name, _error: None
        self.crashed: Callable[[Deployment, str], None] = lambda _deployment, _cause: None

    def boot(self) -> None:
        """Start a worker for each active deployment. One that cannot be read is told by `status`, and keeps none of the others away."""
        names = self._store.names()
        if names:
            with contextlib.suppress(OSError):  # each worker will say it
                self.zygote.start()
        for name in names:
            folder = self._store.active(name)
            try:
                model = self.prepare(self._store.opened(folder)) if folder else None
            except (StoreError, BundleError) as error:
                self.failed(name, str(error))
                self.damaged(name, StoreError(str(error), error.hint))
                continue
            if model is not None:
                model.worker.start()
                self.route(name, model)

    def prepare(self, deployment: Deployment) -> Active:
        """A worker for it, not started yet; its counters go on where those of the same digest ended."""
        name = deployment.name
        counters = self._ledger.of(name, deployment.digest, deployment.release)
        worker = Worker(
            name,
            deployment.folder,
            self.zygote,
            self._limits,
            check=lambda: self._check(deployment),
            died=lambda cause, charged: self._died(deployment, cause, charged=charged),
            damaged=lambda error: self.damaged(name, error),
            counted=counters.add_counts,
        )
        return Active(deployment, deployment.description.profile, worker, counters)

    def _check(self, deployment: Deployment) -> None:
        """Before its worker is started. Raises StoreError."""
        problem = runtime_problem(self._home)
        if problem is not None:
            raise StoreError(problem, "what ran here has no onnxruntime any more")
        self._store.verify_deployment(deployment.folder)

    def route(self, name: str, model: Active) -> Active | None:
        """Requests go to it from now on. What they went to before is returned, still running."""
        with self._lock:
            before = self._active.get(name)
            self._active[name] = model
            self._failed.pop(name, None)
            self._lock.notify_all()
        return before

    def forget(self, name: str) -> Active | None:
        """Requests find no such model any more."""
        with self._lock:
            self._failed.pop(name, None)
            before = self._active.pop(name, None)
            self._lock.notify_all()
        self._ledger.forget(name)
        return before

    def failed(self, name: str, why: str) -> None:
        """It is active on disk and cannot run."""
        self._journal.append("model failed", name=name, cause=why)
        with self._lock:
            self._failed[name] = why

    def get(self, name: str) -> Active:
        """Raises UnknownModel."""
        with self._lock:
            if name not in self._active:
                raise UnknownModel(name)
            return self._active[name]

    def find(self, name: str) -> Active | None:
        """The same, None where there is none."""
        with self._lock:
            return self._active.get(name)

    def names(self) -> list[str]:
        with self._lock:
            return sorted({*self._active, *self._failed})

    def ready(self, name: str) -> bool:
        model = self.find(name)
        return model is not None and model.worker.ready is not None

    def infer(self, name: str, header_bytes: int | None, body: bytearray) -> Answered:
        """Ask its worker. Raises UnknownModel or WorkerUnavailable."""
        begin = time.perf_counter_ns()
        try:
            model, answer = self._of_active(name, lambda model: (model, model.worker.ask(header_bytes, body)))
        except WorkerUnavailable:
            self.get(name).counters.failed(time.perf_counter_ns() - begin)
            raise
        if answer.status != 200:
            model.counters.failed(time.perf_counter_ns() - begin)
        else:
            model.counters.answered(time.perf_counter_ns() - begin, answer.phases)
        return answer

    def adopt(self, name: str, region: int, bell: int) -> None:
        """Let a program ask its worker directly. Raises UnknownModel, WorkerUnavailable or NotARegion."""
        self._of_active(name, lambda model: model.worker.adopt(region, bell))

    def described(self, name: str) -> dict[str, Any]:
        """What its worker says of itself, once it is loaded. Raises UnknownModel or WorkerUnavailable."""
        return self._of_active(name, lambda model: model.worker.described())

    def _of_active(self, name: str, ask: Callable[[Active], Answer]) -> Answer:
        """Of the one that is active, or of the one that replaced it while the question waited for its turn."""
        model = self.get(name)
        while True:
            try:
                return ask(model)
            except WorkerUnavailable as error:
                successor = self._successor(name, model, error)
                if successor is None:
                    raise
                model = successor

    def _successor(self, name: str, model: Active, error: WorkerUnavailable) -> Active | None:
        """Whom to ask instead: another that is active by now, or will be in a moment. Raises UnknownModel."""
        with self._lock:
            if isinstance(error, Replaced):  # one after the other, where memory is short
                self._lock.wait_for(lambda: self._active.get(name) is not model or self._closed, _SWAP_S)
            now_active = self._active.get(name)
        if now_active is None:
            raise UnknownModel(name)
        return None if now_active is model else now_active

    def _died(self, deployment: Deployment, cause: str, *, charged: bool) -> None:
        self._journal.append("worker died", name=deployment.name, digest=deployment.digest, cause=cause)
        if charged:
            self.crashed(deployment, cause)

    def count(self, name: str, digest: str, run: Histogram, errors: int) -> bool:
        """What a program ran in its own process; whether that version is known. Raises UnknownModel."""
        for counters in (self.get(name).counters, *self._ledger.versions(name)):
            if counters.digest == digest:
                counters.add(run, errors)
                return True
        return False

    def status(self) -> list[dict[str, Any]]:
        self._refresh()
        return [self._status(name) for name in self.names()]

    def versions(self, name: str) -> list[Counters]:
        """What was counted of each version, the active one last. Raises UnknownModel."""
        active = self.get(name).counters
        self._refresh(name)
        return [*(counters for counters in self._ledger.versions(name) if counters is not active), active]

    def report(self, name: str | None = None, *, histograms: bool = False) -> list[dict[str, Any]]:
        """Latency by model. ``histograms``: with every version's counters. Raises UnknownModel."""
        names = [name] if name is not None else [known for known in self.names() if self.find(known)]
        self._refresh(*names)
        reports = [_report(known, self.get(known)) for known in names]
        if histograms:
            return [{**report, "versions": [counters.to_dict() for counters in self.versions(report["name"])]} for report in reports]
        return reports

    def save(self) -> None:
        self._refresh()
        self._ledger.save()

    def stop(self) -> None:
        """End every worker, all at once."""
        with self._lock:
            models = list(self._active.values())
            self._closed = True
            self._lock.notify_all()
        threads = [threading.Thread(target=model.worker.stop, kwargs={"patience_s": 5}) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.zygote.close()

    def runtime(self) -> dict[str, Any]:
        """Versions as a running worker told them; empty where none runs."""
        with self._lock:
            models = list(self._active.values())
        return next((model.worker.ready for model in models if model.worker.ready), {})

    def _refresh(self, *names: str) -> None:
        """Hear from the workers what they answered without us."""
        for name in names or self.names():
            model = self.find(name)
            if model is not None:
                model.worker.refresh()

    def _status(self, name: str) -> dict[str, Any]:
        model = self.find(name)
        previous = self._previous(name)
        if model is None:
            unknown = dict.fromkeys(("release", "digest", "profile", "provider", "nodes", "since", "pid"))
            return {"name": name, **unknown, "state": "failed", "previous": previous, "error": self._failed.get(name), "count": 0}
        ready, error = model.worker.ready, model.worker.error
        return {
            "name": name,
            "release": model.deployment.release,
            "digest": model.deployment.digest,
            "profile": model.profile,
            "provider": ready["provider"] if ready else None,
            "nodes": (ready["nodes"] or None) if ready else None,
            "state": "active" if ready else "failed" if error else "loading",
            "previous": previous,
            "since": model.counters.since,
            "error": error,
            "pid": ready["pid"] if ready else None,
            "count": model.counters.total.count,
        }

    def _previous(self, name: str) -> str | None:
        folder = self._store.previous(name)
        with contextlib.suppress(StoreError, BundleError):
            return self._store.opened(folder).digest if folder else None
        return None


def _report(name: str, model: Active) -> dict[str, Any]:
    counters, ready = model.counters, model.worker.ready
    with counters.lock:
        return {
            "name": name,
            "release": model.deployment.release,
            "digest": model.deployment.digest,
            "provider": ready["provider"] if ready else None,
            "threads": ready["threads"] if ready else None,
            "count": counters.total.count,
            "errors": counters.errors,
            "not_finite": counters.not_finite,
            "latency_ms": counters.total.percentiles().to_dict(),
            "phases_ms": {phase: histogram.percentiles().to_dict() for phase, histogram in counters.phases.items()},
            "since": counters.since,
        }
