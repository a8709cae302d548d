"""The settings with which a device runs a model fastest: threads, spinning, arena, execution, graph optimizations, provider options. The verb `tune`.

    tune(Path("bundles/ocr"), on="pi", output=Path("bundles/ocr-tuned")).settings     # {"intra_op_threads": 2}

Every measurement is a race of the model against itself: as the profile has it, and with a change, in a process of their own that both begin
anew. First each change alone; then the best of each knob together, with half of the field dropped after every round (successive halving;
Jamieson and Talwalkar 2016). The one that is left has been lucky, too, so it starts again from nothing against the profile's settings, as `compare`
does it: only if it is faster for sure is it chosen. Else the profile stays as it is.

Batches are another matter, as a question that comes alone is not answered faster by them. Of two questions that come at once, run one after the other,
one has its answer after one run and the other after two: 1.5 runs on the mean. So up to two are run as one where that takes less than 1.5 runs,
up to four where it takes less than 1.5 times two, and so on, each for sure.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from edge_agent import bundle, probe
from edgesdk import comparison, device, graph, knobs, profiles, race, remote, repackaging, sampling
from edgesdk.cache import cache_folder
from edgesdk.comparison import Verdict
from edgesdk.errors import ModelError, ProjectError
from edgesdk.graph import Model
from edgesdk.knobs import Change, Knob
from edgesdk.ledger import Ledger
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.race import Raced
from edgesdk.signing import Signer
from edgesdk.source import model_files

SCHEMA = 1
LIMIT_S = 300.0
RESTART_S = 1.0  # of blocks; opening the model comes on top
FEEDS = 16
ALONE = 2  # restarts of each change by itself: one with either side opened first
ROUNDS = (1, 2, 4)  # restarts that a change has behind it after each round
MOST_TOGETHER = 16  # changes in the first of them
_WORTH = 0.005  # a setting that brings less than half a percent is not worth its line
_RESERVED = 0.35  # of the time, for the confirmation
_LEAST_TRIED = 3
_LEAST_CONFIRMED = 8  # restarts that the reserve is good for
_LEAST_BATCHED = 5  # restarts without which it is not begun

Stopped = Literal["decided", "narrow enough", "most restarts", "time is up", "nothing looked faster"]
# The model under two profiles, the first one opened first, asked so many questions at once.
Racing = Callable[[Profile, Profile, int], Raced]
BATCHES = (2, 4, 8, 16, 32)
_MEAN_OF_HALVES = 0.75  # of the time of two runs: the mean of when the first half and the second half of the questions are answered
_ANY_SHAPE = ("CPUExecutionProvider", "CUDAExecutionProvider", "XnnpackExecutionProvider")  # those that compile nothing for a number of rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One change. ``speedup``: the mean of its restarts in the search, above 1 is faster; None where it did not run."""

    settings: dict[str, Any]
    restarts: int
    speedup: float | None
    default_ms: float | None
    ms: float | None
    note: str  # what became of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``rows`` questions that come at once, run as one instead of as two halves. ``speedup``: of the mean time until an answer, with its 99 % interval."""

    rows: int
    verdict: Verdict
    speedup: float
    low: float
    high: float
    halves_ms: float  # of both, one after the other
    ms: float
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was found, of what, and where; its fields are the keys of `--json`.

    ``settings`` is what was chosen, as far as it differs from the profile: empty where the profile stays. ``candidate`` is what was confirmed, or
    was not; the interval (99 %) and the milliseconds are of that. `max_batch` is judged by itself, in ``batches``.
    """

    name: str
    digest: str  # of the model's own files
    release: int | None  # of the bundle that was tuned
    profile: str
    settings: dict[str, Any]
    candidate: dict[str, Any]
    verdict: Verdict
    speedup: float
    low: float
    high: float
    before_ms: float | None
    after_ms: float | None
    restarts: int  # of the confirmation
    stopped: Stopped
    tried: tuple[Tried, ...]
    batches: tuple[Batch, ...]  # from two rows on, as long as more were answered sooner
    measured: int  # restarts of this call
    remembered: int  # of earlier ones
    seconds: float
    started: str
    inputs: dict[str, Any]
    host: str | None
    device: str
    cpu: str | None
    provider: str
    nodes: str
    threads: int
    onnxruntime: str
    governor: str | None
    written: str | None = None
    notes: tuple[str, ...] = ()
    kind: Literal["tune"] = "tune"
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a change that was tried, as pandas.DataFrame takes them."""
        return [{"settings": knobs.in_words(one.settings), **{key: value for key, value in asdict(one).items() if key != "settings"}} for one in self.tried]


def tune(
    path: Path | str,
    profile: Profile | None = None,
    *,
    on: str | None = None,
    samples: str | None = None,
    limit_s: float = LIMIT_S,
    output: Path | str | None = None,
    signer: Signer | None = None,
    afresh: bool = False,
    progress: Progress = silent,
) -> Tuned:
    """Of an ONNX file or a bundle, on this machine or on a device. About ``limit_s`` seconds from when the device is ready, and at least three
    restarts to look for something, and five to confirm what looked best.

    What is chosen is written to ``output``, if it is given: of a bundle, a new release of it with the choice in its profile; of a file, a profile (.toml)
    that extends the one given. What was measured earlier counts, unless ``afresh``. Raises an EdgeSDKError; what was measured until then is kept.
    """
    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    path, output = Path(path), Path(output) if output is not None else None
    opened = comparison.opened(path)
    target = profile_of(opened.profile, profile, on)
    if output is not None:
        repackaging.check(path, target, output)
    given = sampling.load(samples, opened.model) if samples else sampling.generated(opened.model, FEEDS)
    feeds, files = list(given.first(FEEDS)), model_files(opened.model)
    inputs = {"source": given.source, "count": len(feeds), "digest": given.first(FEEDS).digest()}
    with ExitStack() as stack:
        racer: race.Here | race.Racer = (
            stack.enter_context(race.racing(on, target, feeds, progress)) if on else stack.enter_context(race.racing_here(target, feeds))
        )
        digest = bundle.digest_of(b"".join(files.values()))
        about = {
            "model": digest,
            "device": _identity(racer, on),
            "onnxruntime": racer.onnxruntime,
            "providers": [each.model_dump(mode="json") for each in target.providers],
            "runtime": target.runtime.model_dump(mode="json"),
            "inputs": inputs["digest"],
            "restart_s": RESTART_S,
        }
        ledger = stack.enter_context(Ledger.open(_place(about), about, afresh=afresh))

        def measure(first: Profile, second: Profile, together: int) -> Raced:
            return racer.race(files, files, limit_s=RESTART_S, profiles=(first, second), together=together)

        def differs(other: Profile) -> str | None:
            with ExitStack() as asked:
                answering: remote.Remote | remote.Here = (
                    asked.enter_context(remote.opened(on, other, files, progress)) if on else asked.enter_context(remote.here(other, files))
                )
                return repackaging.difference(path, answering.run)

        cores = racer.facts.cores or 1
        there = racer.facts.onnxruntime.providers if racer.facts.onnxruntime else ("CPUExecutionProvider",)
        search = Search(target, cores, measure, ledger, time.monotonic(), limit_s, progress, differs if opened.profile else lambda _: None)
        candidate = search.best(knobs.knobs_of(target, cores=cores, providers=there))
        confirmed = search.confirmed(candidate) if candidate else None
        fixed = _unbatchable(opened.model, target, there)
        batches = search.batched(candidate if candidate and confirmed and confirmed[1].verdict == "faster" else {}) if not fixed else ()
    found = search.told(candidate, confirmed)
    rows = max((each.rows for each in batches if each.verdict == "faster"), default=1)
    if rows > target.runtime.max_batch:
        found["settings"]["max_batch"] = rows
    tuned = Tuned(
        name=opened.name or opened.title,
        digest=digest,
        release=opened.release,
        profile=target.name,
        inputs=inputs,
        host=on,
        cpu=racer.facts.cpu_model,
        started=started,
        seconds=round(time.monotonic() - begin, 1),
        notes=tuple(_notes(search, fixed, target.runtime.max_batch, rows)),
        batches=batches,
        **found,
    )
    if output is None or not tuned.settings:
        return tuned
    repackaging.write(path, output, target, knobs.applied(target, tuned.settings), tuned.to_dict(), signer)
    return dataclasses.replace(tuned, written=str(output))


@dataclass
class Entry:
    """A change that is being tried."""

    change: Change
    races: list[Raced] = field(default_factory=list)
    note: str = "not measured: the time was up"
    failed: bool = False

    @property
    def log(self) -> float:
        return statistics.fmean(math.log(each.speedup) for each in self.races) if self.races else -math.inf

    @property
    def score(self) -> float:
        """By which they are ranked: of two that are as fast, the one that changes less."""
        return self.log - _WORTH * len(self.change)


class Search:
    """Measures changes, each through the ledger, as long as there is time."""

    def __init__(
        self,
        profile: Profile,
        cores: int,
        measure: Racing,
        ledger: Ledger,
        begin: float,
        limit_s: float,
        progress: Progress = silent,
        differs: Callable[[Profile], str | None] = lambda _: None,
    ) -> None:
        """``differs`` tells what is wrong with the answers under a profile, None where nothing is."""
        self.entries: dict[str, Entry] = {}
        self.cut_short = False
        self.batch_failed: str | None = None  # why questions are not run as one
        self._profile, self._cores, self._measure, self._ledger, self._progress = profile, cores, measure, ledger, progress
        self._begin, self._limit_s, self._costs, self._differs = begin, limit_s, list[float](), differs

    def best(self, turned: Sequence[Knob]) -> Change | None:
        """The change that looked fastest; None where none looked faster than the profile's own settings."""
        alone = [self._entry(change) for knob in turned for change in knob.changes]
        for restarts in range(1, ALONE + 1):  # all of them once before one of them twice
            self._round("try each setting", alone, restarts)
        field = self._together(turned)
        for number, restarts in enumerate(ROUNDS):
            self._round(f"round {number + 1} of {len(ROUNDS)}", field, restarts)
            field = sorted((each for each in field if not each.failed and each.races), key=lambda each: -each.score)
            keep = math.ceil(len(field) / 2) if number < len(ROUNDS) - 1 else 1
            for each in field[keep:]:
                each.note = "others were faster"
            field = field[:keep]
        for each in field:
            each.note = "not faster once it was tried again" if each.score <= 0 else each.note
        return self._right(field)

    def confirmed(self, change: Change) -> tuple[list[Raced], comparison.Estimate, comparison.Stopped]:
        """The change against the profile's settings, by restarts that the search has not seen."""
        return self._decided("confirm", "confirm", change)

    def batched(self, settings: Change) -> tuple[Batch, ...]:
        """Under these settings: twice as many questions as one, again and again, as long as they are answered sooner for sure."""
        found = list[Batch]()
        for rows in BATCHES:
            if self._left_s() < _LEAST_BATCHED * (statistics.fmean(self._costs) if self._costs else RESTART_S):
                self.batch_failed = "the time was up"
                break
            try:
                found.append(self._doubled(settings, rows))
            except ModelError as error:
                self.batch_failed = str(error)
                break
            if found[-1].verdict != "faster":
                break
        return tuple(found)

    def _doubled(self, settings: Change, rows: int) -> Batch:
        """So many questions at once, in two halves and as one. Raises ModelError."""
        halves, one = {**settings, "max_batch": rows // 2}, {**settings, "max_batch": rows}
        races, estimate, _ = self._decided("batch", f"run {rows} as one", one, _MEAN_OF_HALVES, base=halves, together=rows)
        return Batch(
            rows=rows,
            verdict=estimate.verdict,
            speedup=estimate.speedup,
            low=estimate.low,
            high=estimate.high,
            halves_ms=statistics.median(each.before_ms for each in races),
            ms=statistics.median(each.after_ms for each in races),
            restarts=len(races),
        )

    def told(self, candidate: Change | None, confirmed: tuple[list[Raced], comparison.Estimate, comparison.Stopped] | None) -> dict[str, Any]:
        """As the fields of `Tuned`."""
        every = [each for entry in self.entries.values() for each in entry.races]
        races = confirmed[0] if confirmed else every
        if not races:
            why = next((each.note for each in self.entries.values() if each.failed), "the time was up")
            raise ModelError(f"nothing could be measured: {why}", "`edgesdk compare` tells whether the model itself runs; --limit-s gives more time")
        estimate = confirmed[1] if confirmed else comparison.Estimate(1.0, 1.0, 1.0)
        chosen = estimate.verdict == "faster"
        if candidate:
            said = {"faster": "chosen", "slower": "slower, when it was confirmed", "no difference seen": "not faster for sure, when it was confirmed"}
            self.entries[knobs.key_of(candidate)].note = said[estimate.verdict]
        return {
            "settings": dict(candidate or {}) if chosen else {},
            "candidate": dict(candidate or {}),
            "verdict": estimate.verdict,
            "speedup": estimate.speedup,
            "low": estimate.low,
            "high": estimate.high,
            "before_ms": statistics.median(each.before_ms for each in races),
            "after_ms": statistics.median(each.after_ms for each in races) if confirmed else None,
            "restarts": len(confirmed[0]) if confirmed else 0,
            "stopped": confirmed[2] if confirmed else "nothing looked faster",
            "tried": tuple(_tried(each) for each in sorted(self.entries.values(), key=lambda each: -each.log)),
            "measured": self._ledger.added,
            "remembered": self._ledger.found,
            "device": races[0].device,
            "provider": races[0].providers[1 if chosen else 0],
            "nodes": races[0].nodes[1 if chosen else 0],
            "threads": races[0].threads_after if chosen else races[0].threads,
            "onnxruntime": races[0].onnxruntime,
            "governor": races[0].governor,
        }

    def _right(self, field: Sequence[Entry]) -> Change | None:
        """The first of them, and then of all others, that looked faster and gives the right answers."""
        others = sorted((each for each in self.entries.values() if each.races), key=lambda each: (-len(each.races), -each.score))
        for each in (*field, *(one for one in others if one not in field)):
            if each.failed or each.score <= 0:
                continue
            wrong = self._differs(knobs.applied(self._profile, each.change))
            if wrong is None:
                return each.change
            each.failed, each.note = True, f"other answers than the golden ones: {wrong}"
        return None

    def _together(self, turned: Sequence[Knob]) -> list[Entry]:
        """Of each knob the change that looked best, if it looked faster, and all ways to put these together; the most promising ones."""
        best = [max((self._entry(change) for change in knob.changes), key=lambda each: each.score) for knob in turned]
        faster = sorted((each for each in best if each.score > 0), key=lambda each: -each.score)[: int(math.log2(MOST_TOGETHER))]
        for each in self.entries.values():
            if each.races and each not in faster:
                each.note = "not faster by itself" if each.log <= 0 else "hardly faster by itself" if each.score <= 0 else "another value was faster"
        subsets = [some for count in range(1, len(faster) + 1) for some in itertools.combinations(faster, count)]
        ways = [knobs.alike(self._profile, knobs.joined([each.change for each in some]), cores=self._cores) for some in subsets]
        return list({knobs.key_of(way): self._entry(way) for way in ways if way}.values())

    def _round(self, stage: str, entries: Sequence[Entry], restarts: int) -> None:
        for number, each in enumerate(entries):
            self._progress(stage, number, len(entries))
            while len(each.races) < restarts and not each.failed:
                index = len(each.races)
                known = self._ledger.get("search", knobs.key_of(each.change), index) is not None
                if not known and self._late():
                    self.cut_short = True
                    return
                try:
                    each.races.append(self._raced("search", each.change, index, default_first=index % 2 == 0))
                except ModelError as error:
                    each.failed, each.note = True, f"does not run: {error}"
        self._progress(stage, len(entries), len(entries))

    def _left_s(self) -> float:
        """So that the last restart ends in time."""
        return max(self._limit_s - (time.monotonic() - self._begin) - (max(self._costs[-5:]) if self._costs else 0), 0)

    def _late(self) -> bool:
        """Whether what is left belongs to the confirmation. The first few measurements are always made, else nothing could be said."""
        if len(self._costs) < _LEAST_TRIED:
            return False
        left = self._limit_s - (time.monotonic() - self._begin)
        each = statistics.fmean(self._costs) if self._costs else 0.0
        return left < max(_RESERVED * self._limit_s, _LEAST_CONFIRMED * each)

    def _decided(self, phase: str, stage: str, change: Change, worth: float = 1.0, **asked: Any) -> tuple[list[Raced], comparison.Estimate, comparison.Stopped]:
        """As `compare` decides, by restarts of this phase alone. ``worth``: what a ratio is multiplied by; ``asked``: as `_raced` has it."""
        count = itertools.count()

        def run(first: int, _second: int) -> Raced:
            found = self._raced(phase, change, next(count), default_first=first == 0, **asked)
            found = dataclasses.replace(found, speedup=found.speedup * worth)
            return found if first == 0 else comparison.turned(found)

        return comparison.decided(run, limit_s=self._left_s(), progress=lambda _, done, total: self._progress(stage, done, total))

    def _raced(self, phase: str, change: Change, index: int, *, default_first: bool, base: Change | None = None, together: int = 1) -> Raced:
        """The change against the profile as it is, or with another change: from the ledger, or measured and written there.

        Raises ModelError where it does not run, which is a measurement, too.
        """
        what, begin = knobs.key_of(change), time.monotonic()
        known = self._ledger.get(phase, what, index)
        if known is None or not _readable(known):
            try:
                both = knobs.applied(self._profile, base or {}), knobs.applied(self._profile, change)
                known = asdict(self._measure(*both, together) if default_first else comparison.turned(self._measure(*both[::-1], together)))
            except ModelError as error:
                known = {"failed": str(error)}
            self._ledger.add(phase, what, index, known)
            self._costs.append(time.monotonic() - begin)
        if "failed" in known:
            raise ModelError(str(known["failed"]))
        return _RACED.validate_python(known)

    def _entry(self, change: Change) -> Entry:
        return self.entries.setdefault(knobs.key_of(change), Entry(change))


_RACED = TypeAdapter(Raced)


def _readable(known: Any) -> bool:
    """Not so what an edgesdk of another version remembered otherwise, or what is damaged: that is measured again."""
    try:
        return isinstance(known, dict) and ("failed" in known or bool(_RACED.validate_python(known)))
    except ValidationError:
        return False


def _tried(entry: Entry) -> Tried:
    return Tried(
        settings=dict(entry.change),
        restarts=len(entry.races),
        speedup=math.exp(entry.log) if entry.races else None,
        default_ms=statistics.median(each.before_ms for each in entry.races) if entry.races else None,
        ms=statistics.median(each.after_ms for each in entry.races) if entry.races else None,
        note=entry.note,
    )


def profile_of(brought: Profile | None, wanted: Profile | None, on: str | None) -> Profile:
    """The bundle's own; else the one that was named, or is recognised. Raises ProjectError, ConnectionFailed."""
    if brought is not None:
        if wanted is not None and wanted.name != brought.name:
            raise ProjectError(f"the bundle is for `{brought.name}`, not for `{wanted.name}`", "leave --profile out: a bundle brings its own")
        return brought
    if wanted is not None:
        return wanted
    if on is None:
        facts: Mapping[str, Any] = probe.facts()
    else:
        with device.connect(on) as there:
            facts = there.facts().to_dict()
    found = profiles.recognise(dict(facts))
    if not found:
        raise ProjectError(f"no profile was recognised for {f'`{on}`' if on else 'this machine'}", "name one: `--profile`")
    return found[0]


def _identity(racer: "race.Here | race.Racer", on: str | None) -> dict[str, Any]:
    """Of the device: what it was called, and what it is."""
    facts = racer.facts
    return {
        "host": on,
        "board": facts.board,
        "cpu": facts.cpu_model,
        "architecture": facts.architecture,
        "cores": facts.cores,
        "memory_bytes": facts.memory_bytes,
        "governor": facts.governor,
    }


def _place(about: Mapping[str, Any]) -> Path:
    return cache_folder() / "tuning" / f"{bundle.digest_of(bundle.to_json(about))[7:39]}.jsonl"


def _unbatchable(model: Model, profile: Profile, there: Sequence[str]) -> str | None:
    """Why questions cannot be run as one; None where they can."""
    if not all(info.shape and info.shape[0] is None for info in (*graph.inputs(model), *graph.outputs(model))):
        return "the model's first axis is fixed"
    first = next((each.name for each in profile.providers if each.name in there), _ANY_SHAPE[0])
    return None if first in _ANY_SHAPE else f"{first} compiles for each number of rows"


def _notes(search: Search, fixed: str | None, given: int, rows: int) -> list[str]:
    """What a reader of the result should know, in sentences. ``given``: the profile's `max_batch`; ``rows``: what was found good."""
    said = ["the time was up before all that looked promising was tried: the same command again goes on from here"] if search.cut_short else []
    if why := fixed or search.batch_failed:
        said.append(f"batches: {why}")
    elif rows < given:
        said.append(f"max_batch {given} is the profile's and stays; of {2 * rows} questions that come at once, {rows} at a time are answered as soon")
    return said
