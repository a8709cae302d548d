"""Two models timed against each other on this device, for a host that looks for the faster one. Standard library only.

    races = Races(home, deployments)
    blobs = races.missing("0123456789abcdef", [Descriptor(digest, size)])
    races.blobs("0123456789abcdef").receive(digest, size, offset, chunks)
    job = races.start("0123456789abcdef", document)       # its result: raw pairs in nanoseconds, and on what they were run
    races.end("0123456789abcdef")

Nothing of what is active changes, and no deployment is under way meanwhile. A session is a folder below `races`: it goes when the
host says so, an hour after the host last said anything, and when the agent starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import frames, measurements
from edge_agent.blobs import Blobs, Missing, StoreError, free_bytes, size_of
from edge_agent.bundle import BundleError, Descriptor, check_digest
from edge_agent.child import Child, ChildDied, ChildFailed
from edge_agent.deployments import Deployments
from edge_agent.errors import AgentError
from edge_agent.jobs import Job

SESSION = re.compile(r"[0-9a-f]{16}")
FILES = ("model.onnx", "weights.bin")
LONGEST_S = 600
MOST_INPUTS = 1000

_OPEN_S = 1800  # an engine build takes ten minutes
_SLOWEST_S = 600  # beyond its limit, for the twenty pairs that there have to be
_KEPT_S = 3600
_STREAM_S = 7 * 86400  # as long as somebody asks: it ends with the connection
_MOST_LOOKS = 1000
_MOST_TOGETHER = 1024


class UnknownRace(AgentError):
    """No session of that name."""

    def __init__(self, session: str) -> None:
        super().__init__(f"there is no race {session[:16]!r}; the agent may have been restarted", "send its files again")


@dataclass(frozen=True)
class Race:
    """What a host asks for, checked. Each model's files, by name."""

    before: dict[str, Descriptor]
    after: dict[str, Descriptor]
    feeds: Descriptor  # an .npz with members `0.0`, `0.1`: feed and input, by their places
    inputs: tuple[str, ...]
    profiles: tuple[dict[str, Any], dict[str, Any]]  # of the one before, and of the one after
    limit_s: float
    together: int = 1  # questions that come at once


@dataclass(frozen=True)
class Look:
    """At one model: what of it runs where, and what its kernels take."""

    model: dict[str, Descriptor]
    feeds: Descriptor
    inputs: tuple[str, ...]
    profile: dict[str, Any]
    runs: int


@dataclass
class Session:
    """One host's files, and when it last said anything."""

    blobs: Blobs
    used: float
    child: Child | None = None  # while it races
    stopping: bool = False  # what is measured is to end early, or has not begun and is to be short
    ended: bool = False  # its host said so: what still waits for its turn is not begun


class Races:
    """The sessions of one agent. Any thread may ask."""

    def __init__(self, home: Path, deployments: Deployments) -> None:
        self._home, self._deployments = home, deployments
        self._folder = home / "races"
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        shutil.rmtree(self._folder, ignore_errors=True)  # those of an earlier agent: nobody can know them

    def missing(self, name: str, wanted: Sequence[Descriptor]) -> list[Missing]:
        """Which of these have to be sent. Begins the session; where room is short, what it no longer asks for makes some."""
        self.sweep()
        session = self._entered(name)
        found = session.blobs.missing(wanted)
        if sum(blob.size for blob in wanted if not session.blobs.has(blob)) > free_bytes(self._home) and session.child is None:
            shutil.rmtree(session.blobs.home / "models", ignore_errors=True)
            session.blobs.keep(blob.digest for blob in wanted)
        return found

    def blobs(self, name: str) -> Blobs:
        """Where the session's files arrive. Raises UnknownRace."""
        return self._entered(name, new=False).blobs

    def start(self, name: str, document: Mapping[str, Any]) -> Job:
        """Start a race, or a look, as a job. Raises UnknownRace, BundleError for what is neither, StoreError for a file that is missing."""
        session = self._entered(name, new=False)
        if "model" in document:
            look = parse_look(document)
            _check_there(session, *look.model.values(), look.feeds)
            return self._deployments.in_turn(f"look {name}", lambda _: self._look(_there(session), look))
        race = parse(document)
        _check_there(session, *race.before.values(), *race.after.values(), race.feeds)
        return self._deployments.in_turn(f"race {name}", lambda job: self._run(job, _there(session), race))

    def stream(self, name: str, document: Mapping[str, Any]) -> Callable[[socket.socket], None]:
        """Have a process of its own open a model whose files were put there, and answer on a connection until that ends: see `answering`.

        Raises UnknownRace, BundleError for what is no question for that, StoreError for a file that is missing.
        """
        session = self._entered(name, new=False)
        try:
            files, profile = parse_files(document["model"]), parse_profile(document["profile"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"what came names no model to ask: {error}"[:200], "is this host's edgesdk of another version?") from error
        for blob in files.values():
            if not session.blobs.has(blob):
                raise StoreError(f"the session lacks the file {blob.digest[:19]}", "send it first")
        return lambda connection: self._stream(session, files, profile, connection)

    def _stream(self, session: Session, files: Mapping[str, Descriptor], profile: Mapping[str, Any], connection: socket.socket) -> None:
        """What goes wrong is told on the connection. No turn is taken: nothing is timed."""
        connection.settimeout(None)  # the process gets it as it is
        home = session.blobs.home
        try:
            folder = laid_out(session.blobs, files, profile)
            running = Child("answerer", home, self._home, what="the process that ran the model", lent=[connection.fileno()])
            with self._deployments.driving(running) as child:
                session.child = child
                try:
                    ready = child.ask({"arguments": {"model": folder, "profile": profile}}, timeout_s=_OPEN_S)
                    frames.send(connection, {"ready": ready})
                    child.ask({}, timeout_s=_STREAM_S)
                finally:
                    session.child, session.used = None, time.monotonic()
        except (ChildFailed, StoreError) as error:
            with contextlib.suppress(OSError):
                frames.send(connection, {"error": {"message": str(error), "hint": error.hint}})

    def measure(self, name: str, document: Mapping[str, Any]) -> Job:
        """Start the measurement of one model as a job. Raises as `start` does."""
        session, wanted = self._entered(name, new=False), measurements.parse(document)
        _check_there(session, *wanted.files)
        session.stopping = False
        return self._deployments.in_turn(f"measurement {name}", lambda job: measurements.run(job, _there(session), wanted, self._home, self._deployments))

    def stop(self, name: str) -> bool:
        """Have a measurement end with what there is, one that waits or loads as soon as it has measured anything. Whether one was under way.

        Raises UnknownRace.
        """
        session = self._entered(name, new=False)
        session.stopping = True
        child = session.child
        if child is None:
            return False
        child.tell({"stop": True})
        return True

    def end(self, name: str) -> int:
        """Remove what it left, and end its race if one is under way. The bytes freed; 0 where it has ended already."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is None:
            return 0
        session.ended = True
        child = session.child
        if child is not None:
            child.cancel()
        freed = sum(size_of(path) for path in (session.blobs.home / "blobs").rglob("*") if path.is_file())
        shutil.rmtree(session.blobs.home, ignore_errors=True)
        return freed

    def sweep(self) -> None:
        """End the sessions whose host is gone."""
        with self._lock:
            old = [name for name, session in self._sessions.items() if time.monotonic() - session.used > _KEPT_S and session.child is None]
        for name in old:
            self.end(name)

    def _entered(self, name: str, *, new: bool = True) -> Session:
        if not SESSION.fullmatch(name):
            raise BundleError(f"{name[:40]!r} names no race", "it is sixteen hexadecimal digits")
        with self._lock:
            if name not in self._sessions:
                if not new:
                    raise UnknownRace(name)
                self._sessions[name] = Session(Blobs(self._folder / name), 0)
            self._sessions[name].used = time.monotonic()
            return self._sessions[name]

    def _run(self, job: Job, session: Session, race: Race) -> dict[str, Any]:
        """A model that does not run here is a result. Raises StoreError, or ChildFailed where the device is to blame."""
        blobs = session.blobs
        question = {
            "before": laid_out(blobs, race.before, race.profiles[0]),
            "after": laid_out(blobs, race.after, race.profiles[1]),
            "feeds": str(blobs.path(race.feeds.digest).relative_to(blobs.home)),
            "inputs": race.inputs,
            "profiles": race.profiles,
        }

        def enter(stage: str) -> None:
            job.stage = stage

        with self._deployments.driving(Child("racer", blobs.home, self._home, what="the process that ran both models")) as child:
            session.child = child
            try:
                opened = child.ask({"arguments": question}, timeout_s=_OPEN_S, stage=enter)
                if "failed" in opened:
                    return opened
                enter("race")
                return child.ask({"arguments": {"limit_s": race.limit_s, "together": race.together}}, timeout_s=race.limit_s + _SLOWEST_S)
            except ChildDied as error:
                return {"failed": {"model": job.stage if job.stage in ("before", "after") else None, "message": str(error), "hint": error.hint}}
            finally:
                session.child, session.used = None, time.monotonic()

    def _look(self, session: Session, look: Look) -> dict[str, Any]:
        """The same, of one model."""
        blobs = session.blobs
        question = {
            "model": laid_out(blobs, look.model, look.profile),
            "feeds": str(blobs.path(look.feeds.digest).relative_to(blobs.home)),
            "inputs": look.inputs,
            "profile": look.profile,
            "runs": look.runs,
        }
        with self._deployments.driving(Child("looker", blobs.home, self._home, what="the process that ran the model")) as child:
            session.child = child
            try:
                return child.ask({"arguments": question}, timeout_s=_OPEN_S)
            except ChildDied as error:
                return {"failed": {"model": None, "message": str(error), "hint": error.hint}}
            finally:
                session.child, session.used = None, time.monotonic()


def _there(session: Session) -> Session:
    """Raises StoreError where it ended while this waited for its turn."""
    if session.ended:
        raise StoreError("the session ended before it was its turn", "measure again")
    return session


def _check_there(session: Session, *blobs: Descriptor) -> None:
    for blob in blobs:
        if not session.blobs.has(blob):
            raise StoreError(f"the race lacks the file {blob.digest[:19]}", "send it first")


def parse_look(document: Mapping[str, Any]) -> Look:
    """What a host sent. Raises BundleError for anything that is no look."""
    try:
        inputs, runs = tuple(document["inputs"]), document["runs"]
        look = Look(parse_files(document["model"]), parse_descriptor(document["feeds"]), inputs, parse_profile(document["profile"]), runs)
        if not all(isinstance(name, str) for name in inputs) or not len(inputs) <= MOST_INPUTS or type(runs) is not int or not 0 < runs <= _MOST_LOOKS:
            raise ValueError("inputs or runs")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"what came is no look: {error}"[:200], "is this host's edgesdk of another version?") from error
    return look


def parse(document: Mapping[str, Any]) -> Race:
    """What a host sent. Raises BundleError for anything that is no race."""
    try:
        inputs = tuple(document["inputs"])
        limit_s, together = float(document["limit_s"]), document.get("together", 1)
        profiles = document["profiles"] if "profiles" in document else [document["profile"]] * 2
        first, second = map(parse_profile, profiles)
        before, after, feeds = parse_files(document["before"]), parse_files(document["after"]), parse_descriptor(document["feeds"])
        race = Race(before, after, feeds, inputs, (first, second), limit_s, together)
        if not all(isinstance(name, str) for name in inputs) or not len(inputs) <= MOST_INPUTS or not 0 < limit_s <= LONGEST_S:
            raise ValueError("inputs or limit_s")
        if type(together) is not int or not 0 < together <= _MOST_TOGETHER:
            raise ValueError(f"together is a number up to {_MOST_TOGETHER}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"what came is no race: {error}"[:200], "is this host's edgesdk of another version?") from error
    return race


def parse_files(document: Mapping[str, Any]) -> dict[str, Descriptor]:
    files = {name: parse_descriptor(entry) for name, entry in document.items()}
    if FILES[0] not in files or not set(files) <= set(FILES):
        raise ValueError(f"a model is {FILES[0]}, and may have {FILES[1]}")
    return files


def parse_descriptor(document: Mapping[str, Any]) -> Descriptor:
    size = document["size"]
    if type(size) is not int or size < 0:
        raise ValueError("a size is a number of bytes")
    return Descriptor(check_digest(document["digest"]), size)


def parse_profile(document: Mapping[str, Any]) -> dict[str, Any]:
    """As far as `worker.open_session` reads it."""
    for provider in document["providers"]:
        options = provider.get("options", {})
        if not isinstance(provider["name"], str) or not all(isinstance(part, str) for pair in options.items() for part in pair):
            raise ValueError("a provider has a name, and options of text")
    runtime = document.get("runtime", {})
    for key, least in (("intra_op_threads", 0), ("inter_op_threads", 1), ("max_batch", 1)):
        given = runtime.get(key, least)
        if type(given) is not int or not least <= given <= 1024:
            raise ValueError(f"{key} is a number")
    return dict(document)


def laid_out(blobs: Blobs, files: Mapping[str, Descriptor], profile: Mapping[str, Any]) -> str:
    """The model's files under their names, in a folder that is theirs for the whole session: an engine is built once for each way to build it.

    Its path below the session's.
    """
    told = [f"{name} {files[name].digest}\n" for name in sorted(files)] + [json.dumps(profile["providers"], sort_keys=True)]
    key = hashlib.sha256("".join(told).encode()).hexdigest()[:16]
    folder = blobs.home / "models" / key
    if not folder.is_dir():
        scratch = folder.with_name(f".{key}")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True, mode=0o750)
            for name, blob in files.items():
                os.link(blobs.path(blob.digest), scratch / name)
            os.rename(scratch, folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(scratch)
            raise StoreError(f"the race's files cannot be laid out: {error.strerror}", "is the disk full, or did the session end meanwhile?") from error
    return str(folder.relative_to(blobs.home))
