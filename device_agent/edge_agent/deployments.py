"""The transaction that makes a bundle active, as a job: verify, load, trial, swap, ask. Standard library only.

    deployments = Deployments(home, store, models, journal)
    job = deployments.activate("sha256:…")
    deployments.job(job.identity).to_dict()
    deployments.in_turn("race", work)          # changes nothing of what is active, and never runs beside what does

At every moment the model of that name answers with the old bundle or with the new one. Whatever fails, what was active stays
active; if the first live answer after the swap is wrong, it is swapped back.
"""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_agent import facts
from edge_agent.blobs import StoreError
from edge_agent.bundle import BundleError, TensorInfo, check_digest, check_name
from edge_agent.child import Child, ChildFailed
from edge_agent.journal import Journal
from edge_agent.models import Models, UnknownModel
from edge_agent.releases import Refused, Releases
from edge_agent.store import Deployment, Store, write_atomically
from edge_agent.trust import Trust, Untrusted

_TRIAL_S = 1800  # an engine build takes ten minutes
_ASK_S = 120
_TURN_S = 600  # a job that changes nothing waits so long for those that do
_JOBS_KEPT = 100
_PROBATION_S = 60  # since a version became active, or last crashed
_MOST_CRASHES = 3
_SPARE_BYTES = 64 << 20  # of memory, beside what a model needs


class Busy(Exception):
    """Another change of what is active is under way."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"another deployment is under way on this device: {what}, for {seconds:.0f} s")
        self.hint = "wait for it to end, then try again"


class UnknownJob(Exception):
    """No such job: jobs are forgotten when the agent restarts."""

    def __init__(self, identity: str) -> None:
        super().__init__(f"there is no job {identity[:40]!r}; the agent may have been restarted")
        self.hint = "run the same command again: it tells what is active, and finishes what is not"


@dataclass(frozen=True)
class Permissions:
    """What somebody allows for once."""

    as_profile: bool = False  # the profile of another device: a provider that is missing is no reason to refuse
    allow_slow: bool = False  # the latency budget is missed
    allow_downgrade: bool = False  # a release that is lower than one accepted here, or another bundle of the same
    allow_signature_change: bool = False  # other inputs, outputs or labels than those of what is active
    retry: bool = False  # a bundle that was rolled back here


_STRICT = Permissions()


class Job:
    """A transaction under way or ended. Its thread writes, others read."""

    def __init__(self, what: str) -> None:
        self.identity = secrets.token_hex(6)
        self.what = what
        self.begin = time.monotonic()
        self.state, self.stage = "running", "verify"
        self.result: dict[str, Any] | None = None
        self.error: dict[str, str] | None = None
        self.ended = threading.Event()

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.identity, "state": self.state, "stage": self.stage, "result": self.result, "error": self.error}


@dataclass
class _Probation:
    """Of a version that was made active: it ends after a while without a crash."""

    digest: str
    crashes: int = 0
    until: float = field(default_factory=lambda: time.monotonic() + _PROBATION_S)


class Deployments:
    """Changes what is active, one change at a time."""

    def __init__(self, home: Path, store: Store, models: Models, journal: Journal, *, unsigned: bool = False) -> None:
        self._home, self._store, self._models, self._journal = home, store, models, journal
        self._trust, self._unsigned, self._releases = Trust(home), unsigned, Releases(home)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._holder: Job | None = None
        self._child: Child | None = None
        self._closed = False
        self._probations: dict[str, _Probation] = {}

    def activate(self, digest: str, *, signature: bytes | None = None, permissions: Permissions = _STRICT) -> Job:
        """Start to make the bundle of that manifest active. The same one again, while it is under way, is the same job. Raises Busy, BundleError."""
        check_digest(digest)
        return self._start(f"activate {digest[:19]}", lambda job: self._activate(job, digest, signature, permissions))

    def rollback(self, name: str) -> Job:
        """Start to make the previous bundle of that name active. Raises Busy, BundleError."""
        check_name(name)
        return self._start(f"rollback {name}", lambda job: self._rollback(job, name))

    def remove(self, name: str) -> int:
        """Forget a model and free its space. The bytes freed. Raises Busy, UnknownModel, BundleError."""
        check_name(name)
        with self._holding(Job(f"remove {name}")):
            known = name in self._models.names() or self._store.active(name) is not None
            if not known:
                raise UnknownModel(name)
            before = self._models.forget(name)
            if before is not None:
                before.worker.stop()
            freed = self._store.remove(name)
            self._releases.forget(name)
            self._journal.append("removed", name=name, freed_bytes=freed)
            return freed

    def job(self, identity: str) -> Job:
        """Raises UnknownJob."""
        with self._lock:
            if identity not in self._jobs:
                raise UnknownJob(identity)
            return self._jobs[identity]

    def in_turn(self, what: str, work: Callable[[Job], dict[str, Any]]) -> Job:
        """Start work that waits until nothing else is under way: it would disturb a trial's measurement, and be disturbed by it."""
        job = Job(what)
        job.stage = "wait"
        with self._lock:
            self._remember(job)
        threading.Thread(target=self._run, args=(job, lambda job: self._when_free(job, work)), name=what, daemon=True).start()
        return job

    @contextlib.contextmanager
    def driving(self, child: Child) -> Iterator[Child]:
        """The child of the job under way: it ends when the agent does. Raises ChildFailed if that is already ending."""
        with child:
            with self._lock:
                self._child = child
                closed = self._closed
            try:
                if closed:
                    raise ChildFailed("the agent is stopping", "try again when it runs")
                yield child
            finally:
                with self._lock:
                    self._child = None

    def recover(self, name: str, damage: StoreError) -> None:
        """The active bundle's files are damaged: what ran before answers again. Runs in a thread of its own."""
        threading.Thread(target=self._recover, args=(name, damage), name=f"recover {name}", daemon=True).start()

    def crashed(self, deployment: Deployment, cause: str) -> None:
        """Charge it to its model: the third within the probation, and what ran before answers again."""
        with self._lock:
            probation = self._probations.get(deployment.name)
            if probation is None or probation.digest != deployment.digest or time.monotonic() > probation.until:
                return
            probation.crashes += 1
            probation.until = time.monotonic() + _PROBATION_S
            if probation.crashes != _MOST_CRASHES:
                return
        told = StoreError(f"it crashed {_MOST_CRASHES} times within its probation, at last: {cause}")
        recover = functools.partial(self._recover, deployment.name, told, crashed=deployment)
        threading.Thread(target=recover, name=f"recover {deployment.name}", daemon=True).start()

    def close(self) -> None:
        """Cancel what is under way: what was active stays so."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            child.cancel()

    # jobs

    def _start(self, what: str, work: Callable[[Job], dict[str, Any]]) -> Job:
        with self._lock:
            if self._holder is not None and self._holder.what == what:
                return self._holder
            job = Job(what)
            self._take(job)
            self._remember(job)
        threading.Thread(target=self._run, args=(job, work), name=what, daemon=True).start()
        return job

    def _run(self, job: Job, work: Callable[[Job], dict[str, Any]]) -> None:
        error: dict[str, str] = {"message": "the agent failed; its log says more", "hint": "see `edge-agent logs`"}
        result = None
        try:
            result = work(job)
        except (StoreError, BundleError, ChildFailed, UnknownModel, Busy, Untrusted, Refused) as failure:
            error = {"message": str(failure), "hint": failure.hint}
        except OSError as failure:
            error = {"message": f"{failure.strerror or failure}: {failure.filename or self._home}", "hint": "free some space, or see `edge-agent logs`"}
        finally:  # a bug of ours goes to the log as a traceback; the job does not hang for it
            with self._lock:
                if self._holder is job:
                    self._holder = None
            if result is None:
                self._journal.append("failed", what=job.what, stage=job.stage, **error)
                job.error, job.state = error, "failed"
            else:
                job.result, job.state = result, "done"
            job.ended.set()

    def _when_free(self, job: Job, work: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
        """Raises Busy after _TURN_S. `_run` lets the next one have its turn."""
        until = time.monotonic() + _TURN_S
        while True:
            try:
                with self._lock:
                    self._take(job)
                break
            except Busy:
                if self._closed or time.monotonic() > until:
                    raise
                time.sleep(0.2)
        return work(job)

    def _remember(self, job: Job) -> None:
        self._jobs[job.identity] = job
        while len(self._jobs) > _JOBS_KEPT:
            del self._jobs[next(iter(self._jobs))]

    def _take(self, job: Job) -> None:
        if self._holder is not None:
            raise Busy(self._holder.what, time.monotonic() - self._holder.begin)
        if self._closed:
            raise Busy("the agent is stopping", 0)
        self._holder, job.begin = job, time.monotonic()

    @contextlib.contextmanager
    def _holding(self, job: Job) -> Iterator[None]:
        with self._lock:
            self._take(job)
        try:
            yield
        finally:
            with self._lock:
                self._holder = None

    # the transaction

    def _activate(self, job: Job, digest: str, signature: bytes | None, permissions: Permissions) -> dict[str, Any]:
        signer = self._trust.check(self._store.read(digest), signature, unsigned=self._unsigned)
        deployment = self._staged(digest)
        running = self._models.find(deployment.name)
        if running is not None and running.deployment == deployment and running.worker.ready and _decided(deployment.folder):
            return self._unchanged(job, deployment)
        self._releases.check(deployment, allow_downgrade=permissions.allow_downgrade, retry=permissions.retry)
        if running is not None and not permissions.allow_signature_change:
            _check_signature(deployment, running.deployment)
        done = self._exchange(job, deployment, permissions, signer)
        self._releases.accepted(deployment)
        return done

    def _rollback(self, job: Job, name: str) -> dict[str, Any]:
        if name not in self._models.names():
            raise UnknownModel(name)
        folder = self._store.previous(name)
        if folder is None:
            raise StoreError(f"{name} has no previous bundle to go back to", "deploy the one that you want")
        self._store.verify_deployment(folder)
        # It ran here before: how it was activated then still holds, and it may be slow.
        before = _decided(folder)
        permissions = Permissions(as_profile=bool(before.get("as_profile")), allow_slow=True)
        return self._exchange(job, self._store.opened(folder), permissions, before.get("signer"))

    def _staged(self, digest: str) -> Deployment:
        """Every blob checked, and laid out."""
        manifest = self._store.manifest(digest)
        for blob in manifest.blobs:
            self._store.verify(blob)
        return self._store.lay_out(manifest, self._store.description(manifest))

    def _unchanged(self, job: Job, deployment: Deployment) -> dict[str, Any]:
        job.stage = "verify"  # not "ask": a failure here swaps nothing back
        with self._trying(deployment) as trial:
            answer = trial.ask({"op": "ask"}, timeout_s=_ASK_S)
        self._journal.append("unchanged", name=deployment.name, digest=deployment.digest)
        return self._result(deployment, "unchanged", answer, _decided(deployment.folder).get("trial"))

    def _exchange(self, job: Job, deployment: Deployment, permissions: Permissions, signer: str | None) -> dict[str, Any]:
        """Try it beside what runs, then swap, then ask."""
        job.stage = "load"
        with self._trying(deployment) as trial:
            arguments = {"as_profile": permissions.as_profile, "allow_slow": permissions.allow_slow}

            def enter(stage: str) -> None:
                job.stage = stage

            tried = trial.ask({"op": "trial", "arguments": arguments}, timeout_s=_TRIAL_S, stage=enter)
            write_atomically(deployment.folder / "deployment.json", json.dumps({**arguments, "signer": signer, "trial": tried}).encode())
            job.stage = "swap"
            with self._swapped(deployment, tried["memory_bytes"]):
                job.stage = "ask"
                answer = trial.ask({"op": "ask"}, timeout_s=_ASK_S)
        self._journal.append(
            "activated", name=deployment.name, release=deployment.release, digest=deployment.digest, what=job.what, signer=signer, **asdict(permissions)
        )
        with contextlib.suppress(OSError):  # the next one tries again; what is active stays so
            self._store.collect()
        return self._result(deployment, "active", answer, tried)

    @contextlib.contextmanager
    def _swapped(self, deployment: Deployment, needed_bytes: int) -> Iterator[None]:
        """The new worker answers within the context. It does so afterwards too, unless an exception ends it: then the old one does.

        It is loaded beside the old one where there is memory for both, else after it; requests wait meanwhile.
        """
        name = deployment.name
        active, previous = self._store.active(name), self._store.previous(name)
        before, free_bytes = self._models.find(name), facts.free_memory_bytes()
        model = self._models.prepare(deployment)
        if before is not None and free_bytes is not None and free_bytes < needed_bytes + _SPARE_BYTES:
            self._journal.append("short of memory", name=name, needed_bytes=needed_bytes, free_bytes=free_bytes)
            before.worker.stop()
        model.worker.start()
        routed = False
        try:
            model.worker.wait_ready()
            self._store.swap(name, deployment.folder)
            before, routed = self._models.route(name, model), True
            self._probations[name] = _Probation(deployment.digest)
            yield
        except BaseException:
            if before is not None and before.worker.stopped:
                model.worker.stop()
                self._start_again(name, before.deployment)
            elif routed and before is not None:
                self._models.route(name, before)
            elif routed:
                self._models.forget(name)
            model.worker.stop()
            self._store.restore(name, active, previous)
            if routed:
                self._journal.append("swapped back", name=name, digest=deployment.digest)
                self._gave_up(name, deployment.digest)
            raise
        if before is not None:
            before.worker.stop()

    def _start_again(self, name: str, deployment: Deployment) -> None:
        """What had to make room for a version that failed. Requests wait until it answers."""
        again = self._models.prepare(deployment)
        again.worker.start()
        with contextlib.suppress(ChildFailed):  # it is tried again and again
            again.worker.wait_ready()
        self._models.route(name, again)

    def _trying(self, deployment: Deployment) -> contextlib.AbstractContextManager[Child]:
        return self.driving(Child("trial", deployment.folder, self._home, what=f"the trial of {deployment.name}"))

    def _result(self, deployment: Deployment, outcome: str, answer: dict[str, Any], tried: dict[str, Any] | None) -> dict[str, Any]:
        previous, digest = self._store.previous(deployment.name), None
        if previous:
            with contextlib.suppress(StoreError, BundleError):  # damaged: no reason to call what works a failure
                digest = self._store.opened(previous).digest
        return {
            "name": deployment.name,
            "release": deployment.release,
            "digest": deployment.digest,
            "previous": digest,
            "outcome": outcome,
            "first_answer_ms": answer["first_answer_ms"],
            "trial": tried,
        }

    def _recover(self, name: str, damage: StoreError, *, crashed: Deployment | None = None) -> None:
        self._journal.append("crashes" if crashed else "damaged", name=name, cause=str(damage))
        folder = self._store.previous(name)
        if folder is None:
            return
        job = Job(f"recover {name}")
        while True:
            try:
                with self._holding(job):
                    self._fall_back(name, folder, crashed)
                return
            except Busy:
                if self._closed:
                    return
                time.sleep(1)
            except (StoreError, BundleError, OSError) as error:
                self._journal.append("failed", what=job.what, message=str(error))
                return

    def _fall_back(self, name: str, folder: Path, crashed: Deployment | None) -> None:
        """It ran here before, so it is not tried again: anything is better than no answer."""
        broken = self._store.active(name)
        current = self._models.find(name)
        if current is not None and (current.deployment.folder != broken or (crashed is None and current.worker.ready)):
            return  # somebody deployed meanwhile
        if crashed is not None and (current is None or current.deployment != crashed):
            return
        self._store.verify_deployment(folder)
        model = self._models.prepare(self._store.opened(folder))
        # The broken one is not kept as the previous: nobody may roll back to it.
        self._store.restore(name, folder, None)
        model.worker.start()
        before = self._models.route(name, model)
        if before is not None:
            before.worker.stop()
        self._store.collect()
        self._journal.append("fell back", name=name, digest=model.deployment.digest)
        if crashed is not None:
            self._gave_up(name, crashed.digest)

    def _gave_up(self, name: str, digest: str) -> None:
        """It is not tried again by itself."""
        with contextlib.suppress(OSError):  # a full disk must not keep the old one from answering
            self._releases.rolled_back(name, digest)


def _check_signature(new: Deployment, old: Deployment) -> None:
    """A correct model can still break the program that asks it. Raises Refused, with both printed."""
    hint = "programs here may rely on them: deploy it with --allow-signature-change, or under another name"
    for what, offered, expected in (
        ("inputs", new.description.inputs, old.description.inputs),
        ("outputs", new.description.outputs, old.description.outputs),
    ):
        if offered != expected:
            raise Refused(
                f"the {what} of release {new.release} of {new.name} are {_told(offered)}; those of release {old.release}, which is active, {_told(expected)}",
                hint,
            )
    labels = [_labels(deployment.folder) for deployment in (new, old)]
    if labels[0] != labels[1]:
        raise Refused(
            f"the labels of release {new.release} of {new.name} are {', '.join(labels[0][:8]) or 'none'}; "
            f"those of release {old.release}, which is active, {', '.join(labels[1][:8]) or 'none'}",
            hint,
        )


def _told(tensors: tuple[TensorInfo, ...]) -> str:
    return ", ".join(f"`{one.name}` {one.dtype} [{', '.join('any' if length is None else str(length) for length in one.shape)}]" for one in tensors)


def _labels(folder: Path) -> list[str]:
    try:
        return (folder / "labels.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _decided(folder: Path) -> dict[str, Any]:
    """How a deployment was activated; empty before it was, or when its files were laid out anew."""
    try:
        document = json.loads((folder / "deployment.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
