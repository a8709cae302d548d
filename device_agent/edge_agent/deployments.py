"""The transaction that makes a bundle active, as a job: verify, load, trial, swap, ask, probation. Standard library only.

    deployments = Deployments(home, store, models, journal)
    job = deployments.activate("sha256:…")
    job = deployments.stage("sha256:…")                   # the same as far as the swap: it waits for its `activate`
    deployments.job(job.identity).to_dict()
    deployments.in_turn("race", work)          # changes nothing of what is active, and never runs beside what does

At every moment the model of that name answers with the old bundle or with the new one. Whatever fails, what was active stays
active; if the first live answer after the swap is wrong, it is swapped back. The journal has the line `swapping` before a link changes, and
`activated` once the new version has answered: an agent that starts between the two undoes what the first says (`recovery`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_agent import checks, facts, interface, log, probe, recovery
from edge_agent.blobs import Damaged, StoreError
from edge_agent.bundle import BundleError, check_digest, check_name
from edge_agent.checks import CheckFailed
from edge_agent.child import Child, ChildDied, ChildFailed, forked
from edge_agent.config import Check
from edge_agent.errors import AgentError
from edge_agent.home import NO_RUNTIME
from edge_agent.jobs import Busy, Job, Permissions, UnknownJob
from edge_agent.journal import Journal
from edge_agent.models import Models, UnknownModel
from edge_agent.probation import GOOD_ANSWERS, PROBATION_S, Probations
from edge_agent.releases import Releases
from edge_agent.staging import Due, Later, Staging, Waiting
from edge_agent.store import Deployment, Store, write_atomically
from edge_agent.trust import Trust

_TRIAL_S = 1800  # an engine build takes ten minutes
_ASK_S = 120
_TURN_S = 600  # a job that changes nothing waits so long for those that do
_JOBS_KEPT = 100
_PAUSE_S = 0.2  # between two rounds of a probation
_STRICT = Permissions()
_NO_CHECK = Check()


class Deployments:
    """Changes what is active, one change at a time."""

    def __init__(self, home: Path, store: Store, models: Models, journal: Journal, *, unsigned: bool = False, check: Check = _NO_CHECK) -> None:
        self._home, self._store, self._models, self._journal = home, store, models, journal
        self._trust, self._unsigned, self._releases = Trust(home), unsigned, Releases(home)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._holder: Job | None = None
        self._proving: dict[str, Job] = {}  # by model: whose probation somebody waits for
        self._children: list[Child] = []
        self._closed = False
        self._probations = Probations(journal)
        self._check_command = check
        self.staging = Staging(home, self._activate_waiting)

    def activate(self, what: str, *, signature: bytes | None = None, permissions: Permissions = _STRICT, by: str = "") -> Job:
        """Start to make a bundle active: that of this manifest, or what is staged under this name or digest, with what was allowed for it then.

        The same one again, while it is under way, is the same job. ``by``: who others are told is at it. Raises Busy, BundleError, StoreError.
        """
        waiting = self.staging.find(what)
        if waiting is not None:
            what, permissions = waiting.digest, permissions.with_those(waiting.permissions)
            signature = signature or (waiting.signature.encode() if waiting.signature else None)
        digest = check_digest(what)
        return self._start(f"activate {digest[:19]}", lambda job: self._activate(job, digest, signature, permissions), by)

    def stage(self, digest: str, *, signature: bytes | None = None, permissions: Permissions = _STRICT, due: Due | None = None, by: str = "") -> Job:
        """Start to verify and try it, and keep it for `activate`, or for its time. What is active stays so. Raises Busy, BundleError."""
        check_digest(digest)
        return self._start(f"stage {digest[:19]}", lambda job: self._stage(job, digest, signature, permissions, due), by)

    def rollback(self, name: str, *, by: str = "") -> Job:
        """Start to make the previous bundle of that name active. Raises Busy, BundleError."""
        check_name(name)
        return self._start(f"rollback {name}", lambda job: self._rollback(job, name), by)

    def remove(self, name: str) -> int:
        """Forget a model and free its space. The bytes freed. Raises Busy, UnknownModel, BundleError."""
        check_name(name)
        with self._holding(Job(f"remove {name}")):
            known = name in self._models.names() or self._store.active(name) is not None
            if not known:
                raise UnknownModel(name)
            self._journal.append("removing", name=name)
            before = self._models.forget(name)
            if before is not None:
                before.worker.stop()
            freed = self._store.remove(name)
            self._releases.forget(name)
            self.staging.forget(name)
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
                self._children.append(child)
                closed = self._closed
            try:
                if closed:
                    raise ChildFailed("the agent is stopping", "try again when it runs")
                yield child
            finally:
                with self._lock:
                    self._children.remove(child)

    def recover(self, name: str, damage: StoreError) -> None:
        """The active bundle's files are damaged: what ran before answers again. Runs in a thread of its own."""
        threading.Thread(target=self._recover, args=(name, damage), name=f"recover {name}", daemon=True).start()

    def rotten(self, damage: Damaged, users: list[Deployment]) -> None:
        """A stored file has changed by itself. A version that runs from it gives way to the one before, where there is one."""
        for deployment in users:
            if self._store.active(deployment.name) == deployment.folder:
                threading.Thread(target=self._recover, args=(deployment.name, damage), kwargs={"running": True}, daemon=True).start()
            else:
                self._journal.append("damaged", name=deployment.name, digest=deployment.digest, cause=str(damage))

    def crashed(self, deployment: Deployment, cause: str) -> None:
        """Charge it to its model: the third within the probation, and what ran before answers again."""
        told = self._probations.charged(deployment, cause)
        if told:
            recover = functools.partial(self._recover, deployment.name, StoreError(told), crashed=deployment)
            threading.Thread(target=recover, name=f"recover {deployment.name}", daemon=True).start()

    def resume(self) -> None:
        """What the agent left when it last ended: a change under way, versions on probation. Before the first model is started."""
        told = recovery.recover(self._store, self._journal, self._releases.forget)
        self._probations.resume(told.on_probation, told.deaths, self._gone)

    def close(self) -> None:
        """Cancel what is under way: what was active stays so."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        self.staging.close()
        for child in children:
            child.cancel()

    # jobs

    def _start(self, what: str, work: Callable[[Job], dict[str, Any]], by: str = "") -> Job:
        with self._lock:
            for known in (self._holder, *self._proving.values()):
                if known is not None and known.what == what:
                    return known
            job = Job(what, by)
            self._take(job)
            self._remember(job)
        threading.Thread(target=self._run, args=(job, work), name=what, daemon=True).start()
        return job

    def _run(self, job: Job, work: Callable[[Job], dict[str, Any]]) -> None:
        error: dict[str, str] = {"message": "the agent failed; its log says more", "hint": "see `edge-agent logs`"}
        result = None
        try:
            result = work(job)
        except AgentError as failure:
            error = {"message": str(failure), "hint": failure.hint}
        except OSError as failure:
            error = {"message": f"{failure.strerror or failure}: {failure.filename or self._home}", "hint": "free some space, or see `edge-agent logs`"}
        finally:  # a bug of ours goes to the log as a traceback; the job does not hang for it
            self._let_go(job)
            if result is None:
                self._journal.append("failed", what=job.what, stage=job.stage, **error)
                job.result, job.error, job.state = None, error, "failed"
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
            raise Busy(self._holder.what, time.monotonic() - self._holder.begin, self._holder.by)
        if self._closed:
            raise Busy("the agent is stopping", 0)
        self._holder, job.begin = job, time.monotonic()

    def _let_go(self, job: Job) -> None:
        with self._lock:
            if self._holder is job:
                self._holder = None

    def _promise(self, event: str, **fields: object) -> None:
        """Raises StoreError where the journal cannot be written: without that line a power cut could not be mended."""
        try:
            self._journal.promise(event, **fields)
        except OSError as error:
            raise self._store.unwritable(error) from error

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
        deployment, signer, runs = self._accepted(digest, signature, permissions)
        if runs:
            done = self._unchanged(job, deployment)
        else:
            done = self._exchange(job, deployment, permissions, signer)
        self.staging.forget(deployment.name, deployment.digest)
        return done

    def _stage(self, job: Job, digest: str, signature: bytes | None, permissions: Permissions, due: Due | None) -> dict[str, Any]:
        """As far as the swap."""
        deployment, signer, runs = self._accepted(digest, signature, permissions)
        if runs:
            return self._unchanged(job, deployment)
        job.stage = "load"
        with self._trying(deployment) as trial:
            tried = self._tried(job, trial, deployment, permissions, signer)
        text = signature.decode("ascii", "replace") if signature else None
        self.staging.put(Waiting(deployment.name, digest, deployment.description.release, asdict(permissions), text, signer, due))
        self._journal.append("staged", name=deployment.name, release=deployment.release, digest=digest, signer=signer, **asdict(permissions))
        self._store.collect()  # what was staged before it
        waiting = self.staging.of(deployment.name)
        return {**self._result(deployment, "staged", {"first_answer_ms": None}, tried), "at": waiting.to_dict()["at"] if waiting else None}

    def _activate_waiting(self, waiting: Waiting) -> str | None:
        """Its time has come. What went wrong, None if nothing did. Raises Later."""
        try:
            job = self.activate(waiting.digest)
        except Busy as error:
            raise Later(str(error)) from error
        job.ended.wait()
        return job.error["message"] if job.error else None

    def _accepted(self, digest: str, signature: bytes | None, permissions: Permissions) -> tuple[Deployment, str | None, bool]:
        """What may become active here, who signed it, and whether it already is. Raises Untrusted, StoreError, BundleError, Refused."""
        signer = self._trust.check(self._store.read(digest), signature, unsigned=self._unsigned)
        deployment = self._staged(digest)
        running = self._models.find(deployment.name)
        if running is not None and running.deployment == deployment and running.worker.ready and _as_decided(self._store, deployment):
            return deployment, signer, True
        self._releases.check(deployment, allow_downgrade=permissions.allow_downgrade, retry=permissions.retry)
        if running is not None and not permissions.allow_signature_change:
            interface.check(deployment, running.deployment)
        return deployment, signer, False

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
        return self._exchange(job, self._store.opened(folder), permissions, before.get("signer"), checked=False)

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
            if self._probations.proves(deployment):
                self._prove(job, deployment, trial)
        return self._result(deployment, "unchanged", answer, _decided(deployment.folder).get("trial"))

    def _exchange(self, job: Job, deployment: Deployment, permissions: Permissions, signer: str | None, *, checked: bool = True) -> dict[str, Any]:
        """Try it beside what runs, then swap, then ask. Not ``checked`` is what ran here before: a check that fails must not keep people from going back."""
        job.stage = "load"
        with self._trying(deployment) as trial:
            tried = self._tried(job, trial, deployment, permissions, signer, checked=checked)
            job.stage = "swap"
            with self._swapped(deployment, tried["memory_bytes"]):
                job.stage = "ask"
                answer = trial.ask({"op": "ask"}, timeout_s=_ASK_S)
                self._releases.accepted(deployment)
                told = {"name": deployment.name, "release": deployment.release, "digest": deployment.digest}
                self._promise("activated", **told, what=job.what, signer=signer, **asdict(permissions))
            with contextlib.suppress(OSError):  # the next one tries again; what is active stays so
                self._store.collect()
            job.result = self._result(deployment, "probation", answer, tried)
            self._prove(job, deployment, trial, checked=checked)
        return self._result(deployment, "active", answer, tried)

    def _prove(self, job: Job, deployment: Deployment, trial: Child, *, checked: bool = True) -> None:
        """Until it has given twenty good answers, or a minute has passed: others may change what is active meanwhile. Raises StoreError."""
        name, until = deployment.name, time.monotonic() + PROBATION_S
        job.stage = "probation"
        with self._lock:
            self._proving[name] = job
        self._let_go(job)
        try:
            model = self._models.find(name)
            before = model.counters.total.count if model is not None else 0
            good, asking = 0, True
            while good < GOOD_ANSWERS and time.monotonic() < until:
                asking = asking and self._asked(deployment, trial, GOOD_ANSWERS - good)
                self._check_proves(deployment)
                if model is not None:
                    model.worker.refresh()
                    good = model.counters.total.count - before
                if good < GOOD_ANSWERS:
                    time.sleep(_PAUSE_S)
            if checked:
                self._check_agrees(deployment)
            self._probations.proven(name, deployment.digest, good)
        finally:
            with self._lock:
                if self._proving.get(name) is job:
                    del self._proving[name]

    def _asked(self, deployment: Deployment, trial: Child, questions: int) -> bool:
        """Golden questions, as a local program asks them; whether more can be asked. Raises StoreError for a wrong answer."""
        try:
            trial.ask({"op": "prove", "questions": questions}, timeout_s=_ASK_S)
        except ChildDied:
            if self._closed:
                raise
            return False  # the asker's end says nothing about the model
        except ChildFailed as wrong:
            told = StoreError(f"within its probation: {wrong}", wrong.hint)
            self._recover(deployment.name, told, crashed=deployment)
            raise told from wrong
        return True

    def _check_agrees(self, deployment: Deployment) -> None:
        """The device's own check, asked about what answers now. Raises StoreError."""
        try:
            self._ask_check(deployment, checks.PROBATION)
        except CheckFailed as failed:
            if self._closed:
                raise
            told = StoreError(f"within its probation: {failed}", failed.hint)
            self._recover(deployment.name, told, crashed=deployment)
            raise told from failed

    def _check_proves(self, deployment: Deployment) -> None:
        """Raises StoreError where another version answers, or has to."""
        name, verdict = deployment.name, self._probations.verdict(deployment)
        until = time.monotonic() + PROBATION_S
        while verdict and self._store.previous(name) is not None and self._is_active(deployment) and time.monotonic() < until:
            time.sleep(_PAUSE_S)  # what ran before is on its way
        if verdict:
            raise StoreError(verdict, "what ran before answers again" if not self._is_active(deployment) else "nothing ran before it; see `edge-agent logs`")
        if not self._is_active(deployment):
            raise StoreError(f"release {deployment.release} of {name} was replaced within its probation", "`edge-agent status` tells by what")

    def _is_active(self, deployment: Deployment) -> bool:
        model = self._models.find(deployment.name)
        return model is not None and model.deployment == deployment

    def _tried(self, job: Job, trial: Child, deployment: Deployment, permissions: Permissions, signer: str | None, *, checked: bool = True) -> dict[str, Any]:
        """How it did, by its golden answers, its latency and the device's own check. Raises ChildFailed, CheckFailed."""
        arguments = {"as_profile": permissions.as_profile, "allow_slow": permissions.allow_slow}

        def enter(stage: str) -> None:
            job.stage = stage

        try:
            tried = trial.ask({"op": "trial", "arguments": arguments}, timeout_s=_TRIAL_S, stage=enter)
        except ChildDied as died:  # was it the import? Then the zygote died of it, and the trial with that
            if self._closed or probe.runtime(str(self._home))["onnxruntime"] is not None:
                raise
            raise ChildFailed("this device has no onnxruntime that works: Python ends when it loads it", NO_RUNTIME) from died
        write_atomically(deployment.folder / "deployment.json", json.dumps({**arguments, "signer": signer, "trial": tried}).encode())
        if checked:
            self._ask_check(deployment, checks.TRIAL)
        return tried

    def _ask_check(self, deployment: Deployment, stage: str) -> None:
        """Raises CheckFailed."""
        checks.run(self._check_command, deployment, self._home, stage=stage, ending=lambda: self._closed)

    @contextlib.contextmanager
    def _swapped(self, deployment: Deployment, needed_bytes: int) -> Iterator[None]:
        """The new worker answers within the context. It does so afterwards too, unless an exception ends it: then the old one does.

        It is loaded beside the old one where there is memory for both, else after it; requests wait meanwhile.
        """
        name = deployment.name
        active, previous = self._store.active(name), self._store.previous(name)
        before, free_bytes = self._models.find(name), facts.free_memory_bytes()
        model = self._models.prepare(deployment)
        if before is not None and free_bytes is not None and free_bytes < needed_bytes + facts.SPARE_BYTES:
            self._journal.append("short of memory", name=name, needed_bytes=needed_bytes, free_bytes=free_bytes)
            before.worker.stop()
        model.worker.start()
        swapped = routed = False
        try:
            model.worker.wait_ready()
            was = {"before": active and active.name, "previous": previous and previous.name}
            self._promise("swapping", name=name, release=deployment.release, digest=deployment.digest, **was)
            swapped = True
            self._store.swap(name, deployment.folder)
            before, routed = self._models.route(name, model), True
            self._probations.begin(deployment)
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
            if swapped:
                self._swap_back(deployment, active, previous, asked=routed)
            raise
        if before is not None:
            before.worker.stop()

    def _swap_back(self, deployment: Deployment, active: Path | None, previous: Path | None, *, asked: bool) -> None:
        try:
            self._store.restore(deployment.name, active, previous)
        except OSError as error:  # `swapping` has no end in the journal: the next start does it
            log.event("error", "the links could not be put back", model=deployment.name, cause=error.strerror)
            return
        self._journal.append("swapped back", name=deployment.name, digest=deployment.digest)
        if asked:
            self._gave_up(deployment.name, deployment.digest)

    def _start_again(self, name: str, deployment: Deployment) -> None:
        """What had to make room for a version that failed. Requests wait until it answers."""
        again = self._models.prepare(deployment)
        again.worker.start()
        with contextlib.suppress(ChildFailed):  # it is tried again and again
            again.worker.wait_ready()
        self._models.route(name, again)

    def _trying(self, deployment: Deployment) -> contextlib.AbstractContextManager[Child]:
        started = forked(self._models.zygote, deployment.name, deployment.folder)
        return self.driving(Child("trial", deployment.folder, self._home, what=f"the trial of {deployment.name}", started=started))

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

    def _recover(self, name: str, damage: StoreError, *, crashed: Deployment | None = None, running: bool = False) -> None:
        self._journal.append("crashes" if crashed else "damaged", name=name, cause=str(damage))
        folder = self._store.previous(name)
        if folder is None:
            return
        job = Job(f"recover {name}")
        while True:
            try:
                with self._holding(job):
                    self._fall_back(name, folder, crashed, running=running)
                return
            except Busy:
                if self._closed:
                    return
                time.sleep(1)
            except (StoreError, BundleError, OSError) as error:
                self._journal.append("failed", what=job.what, message=str(error))
                return

    def _fall_back(self, name: str, folder: Path, crashed: Deployment | None, *, running: bool = False) -> None:
        """It ran here before, so it is not tried again: anything is better than no answer. ``running``: what is active answers still, and must go."""
        broken = self._store.active(name)
        current = self._models.find(name)
        if current is not None and (current.deployment.folder != broken or (crashed is None and not running and current.worker.ready)):
            return  # somebody deployed meanwhile
        if crashed is not None and (current is None or current.deployment != crashed):
            return
        self._store.verify_deployment(folder)
        model = self._models.prepare(self._store.opened(folder))
        try:
            # The broken one is not kept as the previous: nobody may roll back to it.
            self._store.restore(name, folder, None)
        except OSError as error:  # a disk that is full or read-only keeps nobody from answering; after a restart it is the broken one's turn again
            log.event("error", "the links could not be changed", model=name, cause=error.strerror)
        self._journal.append("fell back", name=name, digest=model.deployment.digest)
        model.worker.start()
        before = self._models.route(name, model)
        if before is not None:
            before.worker.stop()
        with contextlib.suppress(OSError):
            self._store.collect()
        if crashed is not None:
            self._gave_up(name, crashed.digest)

    def _gone(self, name: str, why: str) -> None:
        """A version whose probation the agent did not outlive: it must not be started again. What ran before is active when models are."""
        folder, active = self._store.previous(name), self._store.active(name)
        if folder is None or active is None:
            return
        try:
            self._store.verify_deployment(folder)
            self._store.restore(name, folder, None)
        except (StoreError, OSError) as error:
            log.event("error", "what ran before cannot take over", model=name, cause=str(error))
            return
        self._journal.append("fell back", name=name, digest=self._store.opened(folder).digest, cause=why)

    def _gave_up(self, name: str, digest: str) -> None:
        """It is not tried again by itself."""
        with contextlib.suppress(OSError):  # a full disk must not keep the old one from answering
            self._releases.rolled_back(name, digest)


def _as_decided(store: Store, deployment: Deployment) -> bool:
    """Whether it is what was activated: its files were not laid out anew since."""
    return bool(_decided(deployment.folder)) and not store.was_mended(deployment.folder)


def _decided(folder: Path) -> dict[str, Any]:
    """How a deployment was activated; empty before it was, or when its files were laid out anew."""
    try:
        document = json.loads((folder / "deployment.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
