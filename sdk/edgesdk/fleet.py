"""One bundle to many devices, in waves: a few first, and the rest only if those are well. What was done is not done again.

    devices = select(load(Path("fleet.toml")), ["hall-2"])
    rollout = Rollout(devices, Path("bundles/ocr"), Plan(parallel=16, canary="5%", max_failures=2), state=Path("fleet.state.json"))
    for deployment in rollout.run():           # as each ends; in its `outcome`, what became of it
        ...

A fleet is a file that people write:

    [[devices]]
    host = "pi@10.0.0.7"
    labels = ["hall-2", "camera"]
    as_profile = "raspberry-pi-5"      # the rest is optional: what differs for this one
    bundle = "bundles/ocr-v2"
    allow = ["allow-slow"]
"""

import functools
import json
import math
import queue
import re
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_agent.bundle import Layout, digest_of
from edge_agent.store import write_atomically
from edgesdk import deploying, device
from edgesdk.deploying import Deployment
from edgesdk.device import Stage
from edgesdk.errors import FleetError
from edgesdk.explaining import first_problem
from edgesdk.progress import Progress, silent

Attempt = Callable[["Member", Path, Progress], Deployment]
Watch = Callable[[str, str, int, int], None]  # host, stage, done, total

_SHARE = re.compile(r"(\d{1,3})%")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Member(_Table):
    """A device of a fleet, and what is different for it."""

    host: str = Field(min_length=1, max_length=300)
    labels: tuple[str, ...] = ()
    as_profile: str | None = None
    bundle: Path | None = None
    wheelhouse: Path | None = None
    allow: tuple[device.Allowance, ...] = ()


class _File(_Table):
    devices: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a rollout goes. ``canary``: how many come first, a number or a share such as ``5%``, and all have to work. ``max_failures``: of the others, so
    many may fail before no further one is begun; None, all are tried."""

    parallel: int = 8
    canary: str = "0"
    max_failures: int | None = None
    wait: bool = True  # for the end of each probation
    stage: Stage | None = None  # no further than that

    def first(self, count: int) -> int:
        """Devices in the first wave. Raises FleetError."""
        share = _SHARE.fullmatch(self.canary)
        if share and int(share[1]) <= 100:
            return math.ceil(count * int(share[1]) / 100)
        if self.canary.isdecimal():
            return min(int(self.canary), count)
        raise FleetError(f"{self.canary!r} is neither a number of devices nor a share of them", "such as --canary 2 or --canary 5%")


def load(path: Path) -> tuple[Member, ...]:
    """The devices of a fleet file. Raises FleetError, naming the key."""
    try:
        found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).devices
    except OSError as error:
        raise FleetError(f"`{path}` cannot be read: {error.strerror}", "a fleet is a .toml file with a [[devices]] table for each host") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FleetError(f"{path.name} is not TOML: {error}") from error
    except ValidationError as error:
        raise FleetError(f"{path.name}: {first_problem(error, _File)}", f"a device has {', '.join(Member.model_fields)}") from error
    if not found:
        raise FleetError(f"{path.name} names no device", 'begin with [[devices]] and host = "pi@10.0.0.7"')
    hosts = [member.host for member in found]
    for member in found:
        if hosts.count(member.host) > 1:
            raise FleetError(f"{path.name} names `{member.host}` twice", "leave one of them out")
        for label in member.labels:
            if not _LABEL.fullmatch(label):
                raise FleetError(f"{path.name}: `{member.host}` has the label {label[:70]!r}, which is none", "letters, digits and . _ -")
    return found


def select(members: Sequence[Member], wanted: Sequence[str]) -> tuple[Member, ...]:
    """Those that one of the expressions fits: ``hall-2``, a label or a host; ``hall-2,camera``, both. All where there is none. Raises FleetError."""
    if not wanted:
        return tuple(members)
    chosen = tuple(member for member in members if any(set(one.split(",")) <= {member.host, *member.labels} for one in wanted))
    if not chosen:
        known = sorted({label for member in members for label in member.labels})
        raise FleetError(f"no device is {' or '.join(wanted)}", f"labels are {', '.join(known)}" if known else "no device has a label")
    return chosen


class Rollout:
    """One bundle, or each device's own, to the devices of a fleet. Kept in ``state``, so that one that was stopped goes on where it was."""

    def __init__(self, members: Sequence[Member], bundle: Path | None, plan: Plan, *, state: Path | None = None, attempt: Attempt | None = None) -> None:
        self._members, self._bundle, self._plan, self._state = tuple(members), bundle, plan, state
        self._attempt = attempt or functools.partial(_attempted, wait=plan.wait, stage=plan.stage)
        self._first = plan.first(len(self._members))
        self._goal = {member.host: _goal(self._bundle_of(member), plan.stage) for member in self._members}
        self._done = self._read()
        self.resumed = tuple(host for host in self._goal if host in self._done)
        self.stopped = ""  # why not all were tried
        self.unkept = ""  # why the state is not what was done

    def run(self, watch: Watch = lambda *_: None) -> Iterator[Deployment]:
        """Each deployment as it ends, those of an earlier run first; in the end, those that were not tried."""
        for host in self.resumed:
            yield self._done[host]
        left = [member for member in self._members if member.host not in self._done]
        early = {member.host for member in self._members[: self._first]}
        canaries, others = [m for m in left if m.host in early], [m for m in left if m.host not in early]
        yield from self._wave(canaries, 0, "the first ones", watch)
        yield from self._wave(others, self._plan.max_failures, "the others", watch)
        if not self.stopped and self._state is not None:
            if all(one.worked for one in self._done.values()):
                self._state.unlink(missing_ok=True)
            return
        for member in self._members:
            if member.host not in self._done:
                yield Deployment(host=member.host, outcome="skipped", error={"message": f"not tried: {self.stopped}", "hint": "run the same command again"})

    def _wave(self, members: Sequence[Member], most: int | None, what: str, watch: Watch) -> Iterator[Deployment]:
        if self.stopped or not members:
            return
        failed: list[str] = []  # the threads look at it, so that none begins one too many
        for deployment in self._tried(members, watch, failed, len(members) if most is None else most):
            self._done[deployment.host] = deployment
            self._write()
            yield deployment
        if most is not None and len(failed) > most:
            self.stopped = f"{len(failed)} of {what} failed"

    def _tried(self, members: Sequence[Member], watch: Watch, failed: list[str], most: int) -> Iterator[Deployment]:
        """At most ``parallel`` at a time. Threads that nobody waits for: Ctrl-C ends this side at once, and a device finishes by itself."""
        waiting: queue.SimpleQueue[Member] = queue.SimpleQueue()
        ended: queue.SimpleQueue[Deployment | BaseException | None] = queue.SimpleQueue()
        for member in members:
            waiting.put(member)

        def attempt(member: Member) -> Deployment:
            return self._attempt(member, self._bundle_of(member), lambda stage, done, total: watch(member.host, stage, done, total))

        def work() -> None:
            try:
                while len(failed) <= most:
                    deployment = attempt(waiting.get_nowait())
                    if not deployment.worked and deployment.outcome != "probation":
                        failed.append(deployment.host)
                    ended.put(deployment)
            except queue.Empty:
                pass
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody sees it
                ended.put(error)
            ended.put(None)

        workers = min(self._plan.parallel, len(members))
        for number in range(workers):
            threading.Thread(target=work, name=f"rollout {number}", daemon=True).start()
        while workers:
            found = ended.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                workers -= 1
            else:
                yield found

    def _bundle_of(self, member: Member) -> Path:
        bundle = member.bundle or self._bundle
        if bundle is None:
            raise FleetError(f"no bundle was named for `{member.host}`", "give one, to the command or to the device in the fleet's file")
        return bundle

    def _read(self) -> dict[str, Deployment]:
        """What an earlier run of the same has done; only what worked counts."""
        if self._state is None or not self._state.exists():
            return {}
        try:
            entries = json.loads(self._state.read_bytes())["devices"]
            kept = {entry["deployment"]["host"]: (entry["goal"], Deployment(**entry["deployment"])) for entry in entries}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FleetError(
                f"`{self._state}` cannot be read: what an earlier rollout has done is not known", "remove it: every device is asked again then"
            ) from error
        return {host: done for host, (goal, done) in kept.items() if done.worked and self._goal.get(host) == goal}

    def _write(self) -> None:
        if self._state is not None:
            entries = [{"goal": self._goal[host], "deployment": done.to_dict()} for host, done in self._done.items()]
            try:
                write_atomically(self._state, (json.dumps({"devices": entries}, indent=1) + "\n").encode())
            except OSError as error:  # no reason to let go of what the devices are at
                self.unkept = f"`{self._state}` cannot be written: {error.strerror or error}"


def _attempted(member: Member, bundle: Path, progress: Progress = silent, *, wait: bool = True, stage: Stage | None = None) -> Deployment:
    try:
        return deploying.attempt(
            member.host,
            bundle,
            as_profile=member.as_profile,
            allowed=member.allow,
            wheelhouse=member.wheelhouse,
            wait=wait,
            stage=stage,
            progress=progress,
        )
    except OSError as error:  # this machine's: a socket, a file
        return Deployment(host=member.host, outcome="failed", error={"message": f"{error.strerror or error}", "hint": "run the same command again"})


def _goal(bundle: Path, stage: Stage | None = None) -> str:
    """What a device is to run, or to have staged: the digest over the bundle's manifests. Raises BundleError."""
    with Layout.open(bundle) as layout:
        manifests = {profile: manifest.digest for profile, manifest in layout.manifests().items()}
    when = {"staged": stage.at.isoformat() if stage.at else ""} if stage else {}
    return digest_of(json.dumps({**manifests, **when}, sort_keys=True).encode())


def summary(deployments: Sequence[Deployment]) -> dict[str, int]:
    """How many ended how."""
    counts: dict[str, int] = {}
    for one in deployments:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    return counts
