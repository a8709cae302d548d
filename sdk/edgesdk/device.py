"""What one does to a device: set it up, send it a bundle, switch to that, go back, ask.

    with connect("pi@192.168.1.20") as pi:
        pi.infer("ocr", {"x": image}).arrays()["y"]
        pi.report().models[0].latency_ms

The device's own agent does the work and keeps the promises; from here go verbs over a Transport, and typed replies come
back. `deploying` puts the whole of a deployment together.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

from edge_agent.bundle import Descriptor, Layout, to_json
from edgesdk import agent_package, preflight, sending, transport
from edgesdk.errors import ConnectionFailed, DeviceError, EdgeSDKError, OutcomeUnknown, Refused, RolledBack
from edgesdk.moments import in_seconds
from edgesdk.privileges import Ask, Root, become, on_terminal
from edgesdk.progress import Progress, silent
from edgesdk.replies import (
    Accounts,
    Activated,
    Activation,
    Answer,
    Begun,
    Facts,
    Freed,
    JobKind,
    JobStarted,
    Kind,
    Logs,
    LookJob,
    Missing,
    MissingReply,
    Problem,
    RaceJob,
    Removed,
    Report,
    Running,
    Status,
    TornDown,
    Trusted,
    Waiting,
    framed,
    parse,
    printable,
)
from edgesdk.runtimes import version_of
from edgesdk.transport import Completed, Pipe, Transport

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ANSWER_BYTES = 512 << 20
MAX_HISTOGRAMS_BYTES = 64 << 20
Result = TypeVar("Result")
Permission = Literal["allow-slow", "allow-downgrade", "allow-signature-change", "retry"]  # what a device refuses otherwise
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
Allowance = Permission | Literal["volatile"]  # the last one is asked for here, before the first byte
JOB_STAGES = ("verify", "load", "trial", "swap", "ask", "probation")
_SWAPPED = ("ask", "probation")  # a job that fails there went back to what ran before

# Where the agent is, the device knows: no path of ours or of a reply goes there.
_HOME = 'home=$EDGE_AGENT_HOME; if [ -z "$home" ]; then home=/var/lib/edge-agent; [ -d "$home" ] || home=$HOME/.local/share/edge-agent; fi'
_AGENT = ("sh", "-c", f'{_HOME}; exec "$home/bin/edge-agent" "$@"', "edge-agent")
# What another Python's settings would change; the agent's launcher drops them, too.
_CLEAN = ("env", "-u", "PYTHONPATH", "-u", "PYTHONHOME")
# Is our agent here ($1), and does it run that bundle already ($4 and on)? Else tell what the device is: in one command, and so in one round trip.
_GLANCE = f"""agent=$1 python=$2 probe=$3; shift 3
{_HOME}
[ "$(readlink "$home/agent/current" 2>/dev/null)" = "$agent" ] && "$home/bin/edge-agent" current "$@" && exit
exec {" ".join(_CLEAN)} "$python" -I -c "$probe"
"""
_WRONG_USAGE = 2  # argparse's
_RECONNECT_S = 60  # without a byte more
_MOST_PAUSE_S = 5.0
_WAIT_S = 20
_SILENCE_S = 90
_JOB_SILENCE_S = 60  # a question how a job goes is answered within _WAIT_S
_PUT_SILENCE_S = 60


@dataclass(frozen=True, slots=True)
class Stage:
    """Stop before the swap: the bundle waits on the device until somebody says `activate`, or until ``at``."""

    at: datetime | None = None

    @property
    def flags(self) -> list[str]:
        return ["--stage", *(["--in", f"{in_seconds(self.at):.3f}"] if self.at else [])]


def connect(host: str) -> Device:
    """The device at ``host``: a name of `~/.ssh/config`, `user@host[:port]`, or `local`. Raises ConnectionFailed."""
    return Device(lambda: transport.connect(host))


class Device:
    """A device that is connected. Its methods are the agent's verbs; a context manager."""

    def __init__(self, open_transport: Callable[[], Transport]) -> None:
        self._open = open_transport
        self._transport = open_transport()
        self._root: Root | None = None
        self.host = self._transport.host
        self.arrived = 0  # bytes that it said it has: whoever sends counts, and as long as there come more `persistently` goes on

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def glance(self, layout: Layout, as_profile: str | None = None) -> Facts | Activated:
        """What it is; or, if it runs that bundle already and answers correctly, just that. One command, whatever is there."""
        manifests = layout.manifests()
        chosen = manifests.get(as_profile or next(iter(manifests)))
        if chosen is None or not (as_profile or len(manifests) == 1):  # only the facts tell which one it is to run
            return self.facts()
        signature = layout.signature(chosen.digest)
        asked = [chosen.digest, *(["--signature", signature.decode("ascii", "replace")] if signature else []), *["--as-profile"] * bool(as_profile)]
        package, python = agent_package.build().name, self._transport.python
        done = self._run("probe", ["sh", "-c", _GLANCE, "glance", package, python, agent_package.source_of("probe"), *asked], silence_s=120)
        document = framed(done.stdout)
        if document is not None and "outcome" in document:
            return parse(Activated, document, self.host)
        return self._facts(done, document)

    def facts(self) -> Facts:
        """What it is. Needs nothing on the device but python3; raises DeviceError or Refused where that is missing or too old."""
        argv = [*_CLEAN, self._transport.python, "-I", "-c", agent_package.source_of("probe")]
        done = self._run("probe", *self._as_owner(argv), silence_s=120)
        return self._facts(done, framed(done.stdout))

    def _facts(self, done: Completed, document: dict[str, Any] | None) -> Facts:
        if document is None:
            raise self._no_facts(done)
        return parse(Facts, document, self.host)

    def status(self) -> Status:
        return self._reply(Status, "status")

    def report(self, name: str | None = None, *, histograms: bool = False) -> Report:
        """Latency as local programs see it, of one model or of all. ``histograms``: with every version's, by phase, where its agent can tell."""
        asked = ["report", *([name] if name else [])]
        if histograms:
            with contextlib.suppress(DeviceError):  # an agent of before there were any, or a model that is not there: the plain question tells
                return self._reply(Report, *asked, "--histograms", most_bytes=MAX_HISTOGRAMS_BYTES)
        return self._reply(Report, *asked)

    def logs(self, lines: int = 100) -> tuple[str, ...]:
        """The newest lines of the agent's log and journal, the newest last."""
        return self._reply(Logs, "logs", "--lines", str(lines)).lines

    def remove(self, name: str) -> Removed:
        return self._reply(Removed, "remove", name)

    def tear_down(self, *, dry_run: bool = False) -> TornDown:
        """Stop the agent and remove all that was put there. Needs no agent that works, but root where it is the system's."""
        flags = ["--dry-run"] if dry_run else []
        if self._root is None and self.facts().mode == "user":
            return parse(TornDown, self.bootstrap("teardown", *flags), self.host)
        self.become_root()
        accounts = parse(Accounts, self.account("remove", "--dry-run"), self.host).removed
        gone = parse(TornDown, self.bootstrap("teardown", *flags, as_root=True), self.host)
        if not dry_run:
            self.account("remove", *(["--group"] if any(one.startswith("group ") for one in accounts) else []))
        return gone.model_copy(update={"removed": (*gone.removed, *accounts)})

    def infer(self, name: str, feeds: Mapping[str, NDArray[Any]] | None = None) -> Answer:
        """Ask a model; without ``feeds``, its first golden input, and the answer says whether it agrees."""
        if feeds is None:
            return self._reply(Answer, "infer", name, "--golden", "--json", most_bytes=MAX_ANSWER_BYTES)
        from edge_agent.golden import write_arrays

        archive = write_arrays(feeds)
        return self._reply(Answer, "infer", name, "--json", stdin=sending.pieces(archive), most_bytes=MAX_ANSWER_BYTES)

    def missing(self, blobs: Iterable[Descriptor], *, race: str | None = None) -> tuple[Missing, ...]:
        """Those of the blobs that its store lacks, or that session of a race. Raises DeviceError for one that was not asked for."""
        wanted = {blob.digest: blob.size for blob in blobs}
        question = to_json({"digests": [{"digest": digest, "size": size} for digest, size in wanted.items()]})
        missing = self._reply(MissingReply, "missing", *_for_race(race), stdin=[question]).missing
        if not {entry.digest for entry in missing} <= set(wanted):
            raise DeviceError(f"`{self.host}` asks for a blob that is not in the bundle", "is its agent of another version?")
        return missing

    def put(self, blobs: sending.Blobs, chunks: Iterable[bytes], *, race: str | None = None) -> None:
        """Send what is left of blobs, each from its offset on, one behind the other; to the store or to a race. The device checks their digests."""
        self.receive(itertools.chain([sending.listed(blobs)], chunks), race=race)

    def receive(self, chunks: Iterable[bytes], *, race: str | None = None) -> None:
        """The same; what is sent begins with the list of it."""
        self.ask("receive", *_for_race(race), stdin=chunks, silence_s=_PUT_SILENCE_S)

    def patch(self, blob: Descriptor, base: str, packed: bytes) -> bool:
        """Send a blob as what differs from another that the device has; whether that went well. If not, nothing of it is there."""
        try:
            self.ask("patch", blob.digest, str(blob.size), base, str(len(packed)), stdin=sending.pieces(packed), silence_s=_PUT_SILENCE_S)
        except ConnectionFailed:
            raise
        except DeviceError:  # it has no such base any more, or a damaged one
            return False
        return True

    def race(self, start: Callable[[], str]) -> RaceJob:
        """Start a race, which returns its job, and wait for its end. ``start`` is called again where the agent forgot the job."""
        return self._finish(RaceJob, lambda: (start(), None), silent, stage="")

    def look(self, start: Callable[[], str]) -> LookJob:
        """The same of a look at one model."""
        return self._finish(LookJob, lambda: (start(), None), silent, stage="")

    def start_race(self, session: str, document: Mapping[str, Any]) -> str:
        """Have two models timed, or looked at one, whose files have been put there for this session. Returns the job."""
        return self._reply(JobStarted, "race", session, stdin=[to_json(document)]).job

    def talk(self, *verb: str, silence_s: float) -> Pipe:
        """One verb of `edge-agent`, left running. Raises ConnectionFailed."""
        return self._transport.open([*_AGENT, *verb], silence_s=silence_s)

    def explained(self, done: Completed, what: str) -> DeviceError:
        """Why a verb gave no answer."""
        return self._no_answer(done, what)

    def end_race(self, session: str) -> Freed:
        """Have what the session left removed. Twice does no harm."""
        return self._reply(Freed, "race", session, "--end")

    def measurement(self, kind: type[JobKind], start: Callable[[], str]) -> JobKind:
        """Likewise the measurement of one model."""
        return self._finish(kind, lambda: (start(), None), silent, stage="")

    def start_measurement(self, session: str, document: Mapping[str, Any]) -> str:
        """Have one model measured, a deployed one or files that were put there for this session. Returns the job."""
        return self._reply(JobStarted, "measure", session, stdin=[to_json(document)]).job

    def stop_measurement(self, session: str) -> None:
        """Have a measurement under way end with what there is by now."""
        self.ask("measure", session, "--stop")

    def activate(
        self,
        what: str,
        *,
        signature: bytes | None = None,
        as_profile: bool = False,
        allowed: Collection[str] = (),
        wait: bool = True,
        stage: Stage | None = None,
        follow: bool = False,
        progress: Progress = silent,
    ) -> Activated:
        """Have the agent try the bundle of that digest, or what is staged under that name, and switch to it; with ``stage``, all but the switch.

        Asking again after a lost reply does nothing twice. Not to ``wait`` is for those who do not want to see the end of the probation: the device
        ends it by itself. To ``follow`` saves a command, and wants an agent of this edgesdk.
        """
        words = [f"--{name}" for name in PERMISSIONS if name in allowed]
        flags = ["--by", _me(), *["--signed"] * (signature is not None), *["--as-profile"] * as_profile, *words]

        def start() -> tuple[str, Activation | None]:
            words, stdin = ["activate", what, *flags, *(stage.flags if stage else [])], [signature] if signature else []
            if not follow:
                return self._reply(JobStarted, *words, stdin=stdin).job, None
            begun = self._reply(Begun, *words, "--wait", str(_WAIT_S), stdin=stdin)
            return begun.job, begun

        return self._activated(start, progress, wait=wait)

    def schedule(self, what: str, at: datetime) -> Waiting:
        """Have it switch to what is staged, then."""
        return self._reply(Waiting, "activate", what, "--in", f"{in_seconds(at):.3f}")

    def unstage(self, what: str) -> Waiting:
        """Have it keep what is staged no longer."""
        return self._reply(Waiting, "unstage", what)

    def trusted(self) -> Trusted:
        """Whose signatures it takes."""
        return self._reply(Trusted, "trust")

    def trust(self, line: str) -> Trusted:
        """Have it take bundles of one more signer, given as a line of allowed_signers, and from then on no unsigned ones."""
        return self._owner_reply(Trusted, "trust", "--add", stdin=[line.encode()])

    def revoke(self, fingerprint: str) -> Trusted:
        """Have it refuse whatever that key signed."""
        return self._owner_reply(Trusted, "trust", "--revoke", fingerprint)

    def rollback(self, name: str, *, progress: Progress = silent) -> Activated:
        """Back to the version that ran before."""
        return self._activated(lambda: (self._reply(JobStarted, "rollback", name, "--by", _me()).job, None), progress, repeatable=False)

    def ask(self, *verb: str, stdin: Iterable[bytes] = (), silence_s: float = _SILENCE_S, most_bytes: int = transport.MAX_REPLY_BYTES) -> dict[str, Any]:
        """One verb of `edge-agent` and its reply. Raises DeviceError with what the agent says."""
        done = self._run(verb[0], [*_AGENT, *verb], stdin=stdin, silence_s=silence_s, most_bytes=most_bytes)
        return self._answered(done, verb[0])

    def bootstrap(self, *verb: str, stdin: Iterable[bytes] = (), as_root: bool = False) -> dict[str, Any]:
        """One verb of the program that sets an empty device up (edge_agent/bootstrap.py). In system mode it is edge-agent's work, but for what is root's."""
        argv = [*_CLEAN, self._transport.python, "-I", "-c", agent_package.source_of("bootstrap"), *verb]
        command, fed = self._as_root(["env", f"EDGE_AGENT_HOME={preflight.SYSTEM_HOME}", *argv], stdin) if as_root else self._as_owner(argv, stdin)
        return self._answered(self._run("set-up", command, fed, silence_s=300), "set-up")

    def account(self, *verb: str, stdin: Iterable[bytes] = ()) -> dict[str, Any]:
        """One verb of root's part of a set-up for the whole system (edge_agent/account.py)."""
        return self._answered(self._run("set-up", *self._as_root(self._account(*verb), stdin), silence_s=300), "set-up")

    def start(self, facts: Facts) -> str | None:
        """Have the agent run: as the login user, or by systemd where it is the system's. Which one does."""
        if self._root is None:
            return self._reply(Running, "start").digest
        package, found = agent_package.build(), self.facts().onnxruntime or facts.onnxruntime
        providers = ",".join(found.providers) if found else "CPUExecutionProvider"
        self.account("service", package.digest, str(len(package.data)), providers, stdin=[package.data])
        return self.status().agent.digest

    @property
    def is_root(self) -> bool:
        return self._root is not None

    def become_root(self, ask: Ask = on_terminal) -> None:
        """From now on the set-up's verbs are root's, and edge-agent's: see `privileges`. Raises Refused."""
        if self._root is None:
            self._root = become(self._transport, ask)

    def reconnect(self) -> None:
        self._transport.close()
        self._transport = self._open()

    def _account(self, *verb: str) -> list[str]:
        return [self._transport.python, "-I", "-c", agent_package.source_of("account"), *verb]

    def _as_root(self, argv: Sequence[str], stdin: Iterable[bytes] = ()) -> tuple[list[str], Iterable[bytes]]:
        assert self._root is not None  # `become_root` comes first
        return self._root.argv(argv), self._root.stdin(stdin)

    def _as_owner(self, argv: Sequence[str], stdin: Iterable[bytes] = ()) -> tuple[list[str], Iterable[bytes]]:
        """As whom the agent's folder belongs to."""
        return self._as_root(self._account("run", *argv), stdin) if self._root else (list(argv), stdin)

    def _owner_reply(self, kind: type[Kind], *verb: str, stdin: Iterable[bytes] = ()) -> Kind:
        """Of a verb that writes into the agent's folder itself."""
        if self._root is None and self.facts().mode == "system":
            self.become_root()
        command, fed = self._as_owner([*_AGENT, *verb], stdin)
        return parse(kind, self._answered(self._run(verb[0], command, fed, silence_s=90), verb[0]), self.host)

    def persistently(self, work: Callable[[], Result]) -> Result:
        """Do it again over a new connection when the old one breaks: for a minute, and as long as more arrives each time.

        ``work`` has to find out itself how far it came, and says so in ``arrived``.
        """
        self.arrived, before, deadline, pause_s = 0, -1, 0.0, 0.0
        while True:
            try:
                return work()
            except ConnectionFailed as error:
                if error.final:
                    raise
                if self.arrived > before:
                    before, deadline, pause_s = self.arrived, time.monotonic() + _RECONNECT_S, 0.0
                elif time.monotonic() > deadline:
                    raise
            while True:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s or 0.2, _MOST_PAUSE_S)
                try:
                    self.reconnect()
                    break
                except ConnectionFailed as error:
                    if error.final or time.monotonic() > deadline:
                        raise

    def _activated(self, start: Callable[[], tuple[str, Activation | None]], progress: Progress, *, repeatable: bool = True, wait: bool = True) -> Activated:
        result = self._finish(Activation, start, progress, repeatable=repeatable, until="" if wait else "probation").result
        assert result is not None  # `_finish` returns what has one
        return result

    def _finish(
        self,
        kind: type[JobKind],
        start: Callable[[], tuple[str, JobKind | None]],
        progress: Progress,
        *,
        repeatable: bool = True,
        stage: str = JOB_STAGES[0],
        until: str = "",
    ) -> JobKind:
        """Start a job and wait for its end: it has a result then. It goes on by itself when we lose the connection, so we come back and ask.

        ``until`` names a stage that is end enough, if the job has a result there.

        Not ``repeatable`` is what goes back two versions when it is asked for twice. The device answers when the job is at another ``stage``;
        without one, when it has ended, so that no question disturbs what it measures.
        """
        job, deadline = "", None
        while True:
            try:
                job, begun = (job, None) if job else start()
                state = begun or self._reply(kind, "job", job, "--wait", str(_WAIT_S), *(["--stage", stage] if stage else []), silence_s=_JOB_SILENCE_S)
            except DeviceError as error:
                if not job or "there is no job" not in str(error):
                    raise
                if not repeatable:
                    raise OutcomeUnknown(f"{error}; what `{self.host}` did meanwhile is not known", f"`edgesdk status {self.host}` tells") from error
                job, repeatable = "", False  # the agent was started anew: ask once more, which is `unchanged` if it was done
                continue
            except ConnectionFailed as error:
                deadline = deadline or time.monotonic() + _RECONNECT_S
                if time.monotonic() > deadline or not (job or repeatable):
                    raise OutcomeUnknown(f"{error}; what `{self.host}` did meanwhile is not known", f"`edgesdk status {self.host}` tells") from error
                time.sleep(1)
                self._try_to_reconnect()
                continue
            deadline = None
            if state.stage in JOB_STAGES:
                progress(state.stage, JOB_STAGES.index(state.stage), len(JOB_STAGES))
            if state.result and (state.state == "done" or (state.state == "running" and until and state.stage == until)):
                progress(JOB_STAGES[-1], len(JOB_STAGES), len(JOB_STAGES))
                return state
            if state.state != "running":
                problem = state.error or Problem(message="the agent gives no reason")
                raise (RolledBack if state.stage in _SWAPPED else DeviceError)(problem.message, problem.hint)
            stage = stage and state.stage

    def _try_to_reconnect(self) -> None:
        try:
            self.reconnect()
        except ConnectionFailed:
            return  # the next question says so again, until the time is up

    def _reply(
        self, kind: type[Kind], *verb: str, stdin: Iterable[bytes] = (), silence_s: float = _SILENCE_S, most_bytes: int = transport.MAX_REPLY_BYTES
    ) -> Kind:
        return parse(kind, self.ask(*verb, stdin=stdin, silence_s=silence_s, most_bytes=most_bytes), self.host)

    def _run(self, stage: str, argv: list[str], stdin: Iterable[bytes] = (), *, silence_s: float, most_bytes: int = transport.MAX_REPLY_BYTES) -> Completed:
        try:
            return self._transport.run(argv, stdin=stdin, silence_s=silence_s, most_bytes=most_bytes)
        except ConnectionFailed as error:
            raise ConnectionFailed(f"{error} (during `{stage}`)", error.hint, final=error.final) from error

    def _answered(self, done: Completed, what: str) -> dict[str, Any]:
        document = framed(done.stdout)
        if document is None:
            raise self._no_answer(done, what)
        if done.returncode:  # a job that failed is no failed question: its `error` comes with exit 0
            problem = parse(Problem, document["error"] if isinstance(document.get("error"), dict) else {}, self.host)
            if problem.again:
                raise ConnectionFailed(f"{problem.message} (during `{what}`)", problem.hint)
            raise DeviceError(problem.message, problem.hint)
        return document

    def _no_answer(self, done: Completed, what: str) -> DeviceError:
        if done.returncode == 126 and preflight.SYSTEM_HOME in done.stderr:
            return DeviceError(
                f"this user may not ask the agent of `{self.host}`", "its members of the group edge may: `usermod -aG edge USER` there, then log in anew"
            )
        if done.returncode in (126, 127):
            return DeviceError(f"`{self.host}` has no agent yet", f"`edgesdk setup {self.host}`, or `edgesdk deploy {self.host}`, which does it when needed")
        if done.returncode == _WRONG_USAGE:
            said = f"the agent of `{self.host}` does not know `{what}` as we say it: it is of another version"
            return DeviceError(said, f"`edgesdk setup {self.host}` brings it ours")
        return DeviceError(
            f"`{self.host}` gives no answer to `{what}` (exit {done.returncode}): {_last_words(done)}", f"`edgesdk logs {self.host}` may tell more"
        )

    def _no_facts(self, done: Completed) -> EdgeSDKError:
        """Why the probe said nothing: ask python3 for its version, and if there is none, the shell for its name."""
        python = self._transport.run([self._transport.python, "--version"])
        version = re.search(rb"^Python ([0-9.]+)", python.stdout, re.MULTILINE)
        if version and version_of(version[1].decode()) < preflight.OLDEST_PYTHON:
            return preflight.old_python(self.host, version[1].decode())
        if version:
            return DeviceError(f"`{self.host}` cannot be looked at (exit {done.returncode}): {_last_words(done)}", "does `python3` work there?")
        if python.returncode in (126, 127):
            return Refused(f"`{self.host}` has no python3", "install it there: `apt-get install python3`")
        return DeviceError(f"`{self.host}` runs no commands (exit {python.returncode}): {_last_words(python)}", "is its user's login shell one that works?")


def _me() -> str:
    """Who a device tells others is at work there."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return printable(f"{user}@{socket.gethostname()}")


def _for_race(session: str | None) -> list[str]:
    return ["--race", session] if session else []


def _last_words(done: Completed) -> str:
    """What a command said when it should have answered otherwise."""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout.decode(errors="replace")).splitlines() if line.strip()]
    return printable(lines[-1][:300]) if lines else "it says nothing"
