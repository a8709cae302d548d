"""Which of two models is faster, or that no difference was seen. The verb `compare`.

    compare(Path("old.onnx"), Path("bundles/ocr"), find("x86-cpu")).verdict       # "faster": the second is

A process is lucky or unlucky for as long as it lives: with where its memory lies, with what it runs beside. So the unit is a
restart. Within one, both models alternate in pairs, and the median of the pairs' ratios is its one number; which of the two is opened first
is drawn anew each time. The restarts' logarithms are averaged, with Student's interval.

It is looked at six times at most, and each look may err in a sixth of the cases that all may (Bonferroni over the looks, Pocock 1977 for why
looking again and again at an ordinary interval lies): the interval of whichever look is the last covers in 99 % of cases.
"""

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from edge_agent import bundle
from edge_agent.bundle import Layout
from edgesdk import graph, profiles, race, sampling
from edgesdk.errors import ProjectError
from edgesdk.graph import Model
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.race import Raced
from edgesdk.source import model_files

SCHEMA = 1
RESTART_S = 1.0  # of pairs
SMALLEST = 0.01  # a difference that nobody minds: once the interval is this narrow to either side, it is enough
LIMIT_S = 120.0
FEEDS = 16
# Restarts at which it is looked -> Student's quantile at 1 - 0.01 / 12 for one fewer degrees of freedom: both ends, six looks, 1 % in all.
LOOKS = {5: 7.529, 7: 5.398, 10: 4.422, 14: 3.948, 20: 3.660, 28: 3.492}

Verdict = Literal["faster", "slower", "no difference seen"]
Stopped = Literal["decided", "narrow enough", "most restarts", "time is up"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of the ratio of the latencies, before to after: 2 is twice as fast."""

    speedup: float
    low: float
    high: float  # of the 99 % interval, however often it was looked at

    @property
    def verdict(self) -> Verdict:
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "no difference seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was seen, of what, and where. ``speedup`` and its interval as an `Estimate` has them."""

    before: str
    after: str
    digests: tuple[str, str]  # of the models' own files
    verdict: Verdict
    speedup: float
    low: float
    high: float
    stopped: Stopped
    restarts: int
    pairs: int
    before_ms: float
    after_ms: float
    seconds: float
    samples: str
    device: str
    host: str | None
    provider: tuple[str, str]
    threads: int
    onnxruntime: str
    governor: str | None
    temperature_c: tuple[float | None, float | None]  # at the first restart and at the last
    load: tuple[float, float] | None  # of this machine, one minute's average, before and after; of a device None
    kind: str = "comparison"
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Contender:
    """A model and how a device would run it."""

    title: str
    model: Model
    profile: Profile | None  # a bundle brings its own
    name: str = ""  # of a bundle
    release: int | None = None


def compare(
    before: Path | str,
    after: Path | str,
    profile: Profile | None = None,
    *,
    on: str | None = None,
    samples: str | None = None,
    limit_s: float = LIMIT_S,
    progress: Progress = silent,
) -> Comparison:
    """Two ONNX files or bundles, on this machine or on a device. Raises an EdgeSDKError where they cannot be told apart fairly."""
    contenders = (opened(Path(before)), opened(Path(after)))
    shared = _profile(contenders, profile)
    _check_alike(*contenders)
    given = sampling.load(samples, contenders[0].model) if samples else sampling.generated(contenders[0].model, FEEDS)
    feeds = list(given.first(FEEDS))
    files = [model_files(contender.model) for contender in contenders]
    began, load = time.monotonic(), os.getloadavg()[0]
    with ExitStack() as stack:
        racer: race.Here | race.Racer = (
            stack.enter_context(race.racing(on, shared, feeds, progress)) if on else stack.enter_context(race.racing_here(shared, feeds))
        )
        raced, estimate, stopped = decided(lambda first, second: racer.race(files[first], files[second], limit_s=RESTART_S), limit_s=limit_s, progress=progress)
    return Comparison(
        before=contenders[0].title,
        after=contenders[1].title,
        digests=(bundle.digest_of(b"".join(files[0].values())), bundle.digest_of(b"".join(files[1].values()))),
        verdict=estimate.verdict,
        speedup=estimate.speedup,
        low=estimate.low,
        high=estimate.high,
        stopped=stopped,
        restarts=len(raced),
        pairs=sum(each.runs for each in raced),
        before_ms=statistics.median(each.before_ms for each in raced),
        after_ms=statistics.median(each.after_ms for each in raced),
        seconds=round(time.monotonic() - began, 1),
        samples=given.source,
        device=raced[0].device,
        host=on,
        provider=raced[0].providers,
        threads=raced[0].threads,
        onnxruntime=raced[0].onnxruntime,
        governor=raced[0].governor,
        temperature_c=(raced[0].temperature_c, raced[-1].temperature_c),
        load=None if on else (round(load, 2), round(os.getloadavg()[0], 2)),
    )


def decided(
    run: Callable[[int, int], Raced], *, limit_s: float, progress: Progress = silent, order: random.Random | None = None
) -> tuple[list[Raced], Estimate, Stopped]:
    """Restart after restart until there is a verdict. ``run`` times two of the models 0 and 1, the first of them opened first."""
    drawn, until, raced = order or random.Random(), time.monotonic() + limit_s, list[Raced]()
    most = max(LOOKS)
    while True:
        progress("restart", len(raced), most)
        first = drawn.randrange(2)
        each = run(first, 1 - first)
        raced.append(each if first == 0 else turned(each))
        late = time.monotonic() > until and len(raced) >= min(LOOKS)
        if len(raced) not in LOOKS and not late:
            continue
        found = estimate([math.log(each.speedup) for each in raced])
        if found.verdict != "no difference seen":
            return raced, found, "decided"
        if math.log(found.high / found.low) <= 2 * math.log1p(SMALLEST):
            return raced, found, "narrow enough"
        if late:
            return raced, found, "time is up"
        if len(raced) == most:
            return raced, found, "most restarts"


def estimate(logs: Sequence[float]) -> Estimate:
    """Of the restarts' logarithms, five or more. Between two looks the stricter quantile counts."""
    quantile = LOOKS[max(count for count in LOOKS if count <= len(logs))]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    return Estimate(math.exp(mean), math.exp(mean - quantile * error), math.exp(mean + quantile * error))


def opened(path: Path) -> Contender:
    """An ONNX file, or the one model of a bundle. Raises ModelError, BundleError, ProjectError."""
    if path.suffix == ".onnx":
        return Contender(str(path), graph.load(path), None)
    with Layout.open(path) as layout, TemporaryDirectory(prefix="edgesdk-") as folder:
        manifests = layout.manifests()
        if len(manifests) != 1:
            raise ProjectError(f"`{path}` holds models for {', '.join(f'`{name}`' for name in manifests)}", "compare bundles of one profile each")
        ((_, manifest),) = manifests.items()
        for layer in manifest.layers:
            Path(folder, layer.file).write_bytes(layout.blob(layer.digest))
        brought = profiles.parse(bundle.parse_json(Path(folder, "profile.json").read_bytes(), "profile.json"), layout.name)
        described = layout.description(manifest)
        return Contender(f"{described.name} release {described.release}", graph.load(Path(folder, "model.onnx")), brought, described.name, described.release)


def _profile(contenders: Sequence[Contender], wanted: Profile | None) -> Profile | None:
    """The one under which both run, or None: the device's. Raises ProjectError where that would be another one for each."""
    brought = [contender.profile for contender in contenders if contender.profile is not None]
    if wanted is not None or not brought:
        return wanted
    for of in ("providers", "runtime"):
        settings: list[Mapping[str, Any]] = [each.to_dict()[of] for each in brought]
        if settings[0] != settings[-1]:
            raise ProjectError(
                f"the bundles run with other {of}: {_difference(settings[0], settings[-1])}", "say under which profile both are to run: `--profile`"
            )
    return brought[0]


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, dict):
        return ", ".join(f"{key} {one[key]} and {other.get(key)}" for key in one if one[key] != other.get(key))
    return f"{[each['name'] for each in one]} and {[each['name'] for each in other]}"


def _check_alike(before: Contender, after: Contender) -> None:
    """Both take the same questions. Raises ProjectError."""
    asked = [[(each.name, each.dtype, each.shape) for each in graph.inputs(contender.model)] for contender in (before, after)]
    if [each[:2] for each in asked[0]] != [each[:2] for each in asked[1]]:
        raise ProjectError(f"`{before.title}` takes {_told(asked[0])}, `{after.title}` {_told(asked[1])}", "what is compared must take the same inputs")


def _told(inputs: Sequence[tuple[str, str, object]]) -> str:
    return ", ".join(f"`{name}` {dtype}" for name, dtype, _ in inputs)


def turned(each: Raced) -> Raced:
    return replace(
        each,
        before_ms=each.after_ms,
        after_ms=each.before_ms,
        speedup=1 / each.speedup,
        low=1 / each.high,
        high=1 / each.low,
        providers=each.providers[::-1],
        nodes=each.nodes[::-1],
        threads=each.threads_after,
        threads_after=each.threads,
    )
