"""Candidates timed on the device that they are for: two models against each other, in pairs, in a process of its agent.

    with racing("pi", profile, feeds) as racer:
        racer.race(model_files(before), model_files(after), limit_s=3).speedup

The device is set up as `deploy` does it. What is active there stays so; what was sent for the races is removed at the end, and by
the device itself where the connection is cut for good.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edge_agent import probe
from edge_agent.bundle import Descriptor, digest_of
from edge_agent.child import Child, ChildFailed
from edge_agent.golden import write_arrays
from edgesdk import device, preflight, profiles, sending, setting_up
from edgesdk.benchmark import Paired, summary
from edgesdk.device import Device
from edgesdk.errors import DeviceError, EdgeSDKError, ModelError, Refused
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.replies import Facts, Looked, ModelProblem, Times, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

Files = Mapping[str, bytes]  # a model's own: `model.onnx`, and `weights.bin` where there is one

_OPEN_S = 600
_MOST_PAIRS_HERE = 20_000
MOST_FEEDS = 200
MOST_FEED_BYTES = 64 << 20
_MODELS = {"before": "the first of two models", "after": "the second of two models", None: "one of two models"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Raced(Paired):
    """Two models in pairs, and where. ``providers`` are those that onnxruntime took: of the model before, and of the one after."""

    host: str
    device: str
    providers: tuple[str, str]
    nodes: tuple[str, str]
    threads: int  # of the model before
    threads_after: int = 0
    onnxruntime: str
    governor: str | None
    temperature_c: float | None


@contextmanager
def racing(host: str, profile: Profile | None, feeds: Sequence[Mapping[str, NDArray[Any]]], progress: Progress = silent) -> Iterator[Racer]:
    """Races on ``host`` while the context lasts, with the profile's providers, their options and its threads; without one, that which
    the device is recognised as.

    Of the ``feeds``, arrays by the name of their input, the first ones are asked: at most 200, and 64 MB. Raises Refused where the
    host is no device of the profile or cannot run the agent, ConnectionFailed, and DeviceError.
    """
    with prepared(host, profile, progress) as (there, facts, profile):
        racer = Racer(there, facts, profile, feeds, progress)
        try:
            yield racer
        finally:
            with suppress(EdgeSDKError):  # the device removes it by itself within the hour
                there.end_race(racer.session)


@contextmanager
def prepared(host: str, profile: Profile | None, progress: Progress = silent) -> Iterator[tuple[Device, Facts, Profile]]:
    """A device that runs our agent and is one of the profile; what it said of itself before. Raises Refused, ConnectionFailed, DeviceError."""
    with device.connect(host) as there:
        facts = there.facts()
        profile = profile or recognised(facts, host)
        preflight.check_target(profile, facts, host)
        plan = setting_up.plan_set_up(facts, prefer_installed=profile.runtime.prefer_installed, progress=progress)
        preflight.check_space(plan.needed_bytes, facts, host)
        setting_up.set_up(there, facts, plan, progress)
        yield there, facts, profile


def recognised(facts: Facts, host: str) -> Profile:
    """The first profile that fits a device. Raises Refused where none does."""
    found = profiles.recognise(facts.to_dict())
    if not found:
        raise Refused(f"no profile was recognised for `{host}`", "name one: `--profile`")
    return found[0]


@contextmanager
def racing_here(profile: Profile | None, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Iterator[Here]:
    """The same on this machine, each race in a process of its own, without an agent. Raises Refused where no profile is given and none fits."""
    with TemporaryDirectory(prefix="edgesdk-") as folder:
        yield Here(Path(folder), profile, feeds)


class Here:
    """This machine, as `Racer` has a device."""

    def __init__(self, folder: Path, profile: Profile | None, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        self._folder, self._inputs = folder, list(feeds[0])
        self.facts = parse(Facts, probe.facts(), "this machine")  # asked once: it looks for onnxruntime in a process of its own
        self._profile = profile or recognised(self.facts, "this machine")
        self._device = self.facts.board or self.facts.cpu_model or self.facts.architecture
        (folder / "feeds.npz").write_bytes(packed(feeds, self._inputs))

    def race(self, before: Files, after: Files, *, limit_s: float, profiles: tuple[Profile, Profile] | None = None, together: int = 1) -> Raced:
        """``profiles``: for each model one of its own; ``together``: questions that come at once. Raises ModelError where one of the two does not run here."""
        first, second = profiles or (self._profile, self._profile)
        question = {"before": self._laid_out(before, first), "after": self._laid_out(after, second), "feeds": "feeds.npz", "inputs": self._inputs}
        run_as = [first.to_dict(), second.to_dict()]
        with _translated(), Child("racer", self._folder, self._folder, what="the process that ran both models") as child:
            opened = child.ask({"arguments": {**question, "profiles": run_as}}, timeout_s=_OPEN_S)
            told = opened
            if "failed" not in opened:
                told = child.ask({"arguments": {"limit_s": limit_s, "most": _MOST_PAIRS_HERE, "together": together}}, timeout_s=limit_s + _OPEN_S)
        if "failed" in told:
            raise ModelError(f"{_MODELS[told['failed']['model']]} does not run here: {told['failed']['message']}", told["failed"]["hint"])
        return Raced(
            **asdict(summary([(first, second) for first, second in told["pairs_ns"]], told["warmup"])),
            host="",
            device=self._device,
            providers=(told["before"]["provider"], told["after"]["provider"]),
            nodes=(told["before"]["nodes"], told["after"]["nodes"]),
            threads=told["threads"],
            threads_after=told["after"]["threads"],
            onnxruntime=told["onnxruntime"],
            governor=told["governor"],
            temperature_c=told["temperature_c"],
        )

    def look(self, model: Files, *, runs: int) -> Looked:
        """Where its nodes are, and what its kernels take. Raises ModelError where it does not run here."""
        question = {"model": self._laid_out(model, self._profile), "feeds": "feeds.npz", "inputs": self._inputs, "runs": runs}
        with _translated(), Child("looker", self._folder, self._folder, what="the process that ran the model") as child:
            told = child.ask({"arguments": {**question, "profile": self._profile.to_dict()}}, timeout_s=_OPEN_S)
        if "failed" in told:
            raise ModelError(f"the model does not run here: {told['failed']['message']}", told["failed"]["hint"])
        return parse(Looked, told, "this machine")

    @property
    def onnxruntime(self) -> str:
        return self.facts.onnxruntime.version if self.facts.onnxruntime else ""

    def _laid_out(self, files: Files, profile: Profile) -> str:
        """In a folder for each way to compile it, too."""
        name = digest_of("".join([*map(digest_of, files.values()), *map(str, profile.providers)]).encode())[-16:]
        folder = self._folder / name
        if not folder.exists():
            folder.mkdir()
            for file, data in files.items():
                (folder / file).write_bytes(data)
        return name


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ChildFailed as error:
        raise ModelError(str(error), error.hint) from error


class Racer:
    """A device that is ready to time models. ``facts`` are what it said of itself before it was set up."""

    def __init__(self, there: Device, facts: Facts, profile: Profile, feeds: Sequence[Mapping[str, NDArray[Any]]], progress: Progress = silent) -> None:
        self.facts = facts
        self.session = secrets.token_hex(8)
        self.device, self.profile, self._progress = there, profile, progress
        self._inputs = list(feeds[0])
        self._feeds = packed(feeds, self._inputs)

    @property
    def onnxruntime(self) -> str:
        """The version that runs models there, now that it is set up."""
        return self.device.status().agent.onnxruntime or ""

    def race(self, before: Files, after: Files, *, limit_s: float, profiles: tuple[Profile, Profile] | None = None, together: int = 1) -> Raced:
        """Time both for about ``limit_s`` seconds, as `benchmark.compare` does. What the device has of an earlier race is not sent again.

        ``profiles``: for each model one of its own, instead of the one that was given. ``together``: so many questions come at once, and either
        side runs as many as one as its profile's `max_batch` says; the times are those of all of them.

        Raises ModelError where the second model does not run there, DeviceError where the first does not or the device fails,
        and ConnectionFailed.
        """
        contents = {digest_of(data): data for data in chain(before.values(), after.values(), [self._feeds])}
        document = {
            "before": {name: described(data) for name, data in before.items()},
            "after": {name: described(data) for name, data in after.items()},
            "feeds": described(self._feeds),
            "inputs": self._inputs,
            # Not `profile` with two of them: an agent that knows only that one refuses, and does not time what nobody asked for.
            **({"profiles": [each.to_dict() for each in profiles]} if profiles else {"profile": self.profile.to_dict()}),
            "limit_s": limit_s,
            **({"together": together} if together > 1 else {}),
        }

        def start() -> str:
            self.send(contents)
            return self.device.start_race(self.session, document)

        result = self.device.race(start).result
        if not isinstance(result, Times):
            assert result is not None  # `Device.race` returns what has one
            raise self._failed(result.failed)
        if result.together != together:
            raise DeviceError(f"the agent of `{self.device.host}` is older than this edgesdk and runs no questions together", "`edgesdk setup` renews it")
        return Raced(
            **asdict(summary(result.pairs_ns, result.warmup)),
            host=self.device.host,
            device=self.facts.board or self.facts.cpu_model or self.facts.architecture,
            providers=(result.before.provider, result.after.provider),
            nodes=(result.before.nodes, result.after.nodes),
            threads=result.threads,
            threads_after=result.after.threads or result.threads,
            onnxruntime=result.onnxruntime,
            governor=result.governor,
            temperature_c=result.temperature_c,
        )

    def look(self, model: Files, *, runs: int) -> Looked:
        """Where its nodes are, and what its kernels take. Raises ModelError where it does not run there, DeviceError and ConnectionFailed."""
        contents = {digest_of(data): data for data in chain(model.values(), [self._feeds])}
        document = {
            "model": {name: described(data) for name, data in model.items()},
            "feeds": described(self._feeds),
            "inputs": self._inputs,
            "profile": self.profile.to_dict(),
            "runs": runs,
        }

        def start() -> str:
            self.send(contents)
            return self.device.start_race(self.session, document)

        result = self.device.look(start).result
        if not isinstance(result, Looked):
            assert result is not None  # `Device.look` returns what has one
            raise ModelError(f"`{self.device.host}` cannot run the model: {result.failed.message}", result.failed.hint)
        return result

    def send(self, contents: Mapping[str, bytes]) -> None:
        """Files by their digests, those that the session lacks."""
        send(self.device, self.session, contents, self._progress)

    def _failed(self, problem: ModelProblem) -> EdgeSDKError:
        kind = DeviceError if problem.model == "before" else ModelError
        return kind(f"`{self.device.host}` cannot run {_MODELS[problem.model]}: {problem.message}", problem.hint)


def send(there: Device, session: str, contents: Mapping[str, bytes], progress: Progress = silent) -> None:
    """Files by their digests into a session of the device, which begins with that. A connection that breaks is opened again."""
    there.persistently(lambda: send_once(there, session, contents, progress, "send candidates"))


def send_once(there: Device, session: str, contents: Mapping[str, bytes], progress: Progress, stage: str) -> None:
    """The same over the connection that there is: for who opens it again with more than that. ``stage``: what the progress is called."""
    missing = there.missing([Descriptor(digest, len(data)) for digest, data in contents.items()], race=session)
    lacking = [(Descriptor(entry.digest, len(contents[entry.digest])), min(entry.offset, len(contents[entry.digest]))) for entry in missing]
    there.arrived = sum(map(len, contents.values())) - sum(blob.size - offset for blob, offset in lacking)

    def chunks() -> Iterator[bytes]:
        for done, (blob, offset) in enumerate(lacking):
            progress(stage, done, len(lacking))
            yield from sending.pieces(contents[blob.digest], offset)

    if lacking:
        there.put(lacking, chunks(), race=session)


def packed(feeds: Sequence[Mapping[str, NDArray[Any]]], inputs: Sequence[str]) -> bytes:
    """As the agent's `race.read_feeds` takes them: members `0.0`, `0.1`, by the places of feed and input."""
    arrays: dict[str, NDArray[Any]] = {}
    size = 0
    for index, feed in enumerate(feeds[:MOST_FEEDS]):
        size += sum(feed[name].nbytes for name in inputs)
        if index and size > MOST_FEED_BYTES:
            break
        arrays.update({f"{index}.{place}": feed[name] for place, name in enumerate(inputs)})
    return write_arrays(arrays)


def described(data: bytes) -> dict[str, Any]:
    return {"digest": digest_of(data), "size": len(data)}
