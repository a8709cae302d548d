"""Two results that were measured before, against each other: what `compare` does with two files of `bench`.

    compare(results.load(Path("main.json")), results.load(Path("branch.json"))).verdict        # "slower"

Only like may be compared with like. What differs is named, and is refused unless it is what one wants to see: `despite=("device",)`.
Restarts are the unit, as in `comparison`, but here they are not paired and were not taken at the same time: Welch's interval of the
difference of the mean logarithms (Welch 1947), of 99 %. What changed between the two runs and nobody saw is not in it; so who fails a build by
it gives it some room (`slower_by`).
"""

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgesdk import student, timing
from edgesdk.comparison import LIMIT_S, Estimate, Verdict
from edgesdk.errors import ProjectError
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.results import Conditions, Restart, Result

SCHEMA = 1
ROOM = 0.05  # what a build may be slower by before that fails it
FEWEST = 5
_OF_DEVICES = ("device", "provider", "threads", "settings", "onnxruntime", "state")
_CLOCK = 0.05  # of it
_WARMER_C = 15.0
_BUSIER = 0.25  # cores
_QUANTILE = 0.995

Metric = Literal["p50_ms", "p90_ms", "p99_ms", "throughput"]
METRICS: tuple[Metric, ...] = get_args(Metric)
JUDGED: Mapping[str, Metric] = {"single-stream": "p50_ms", "multi-stream": "p50_ms", "server": "p90_ms", "offline": "throughput"}  # by scenario


@dataclass(frozen=True, slots=True)
class Difference:
    """What is not the same. ``what`` is the word for `--despite`."""

    what: str
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The second against the first. ``speedups``: of each metric, with the ends of its interval; 2 is twice as fast. The verdict is about one."""

    before: str
    after: str
    digests: tuple[str, str]
    verdict: Verdict
    metric: Metric
    speedup: float
    low: float
    high: float
    speedups: dict[str, tuple[float, float, float]]
    medians: dict[str, tuple[float, float]]  # of the restarts, before and after
    restarts: tuple[int, int]
    despite: tuple[str, ...]  # sentences: what differs and was let pass
    kind: str = "comparison"
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a metric, as pandas.DataFrame takes them."""
        return [
            {"metric": name, "before": self.medians[name][0], "after": self.medians[name][1], "speedup": speedup, "low": low, "high": high}
            for name, (speedup, low, high) in self.speedups.items()
        ]

    def slower_by(self, room: float) -> bool:
        """For sure: the whole interval lies beyond that."""
        return self.high < 1 / (1 + room)


def compare(before: Result, after: Result, *, despite: Collection[str] = ()) -> Judged:
    """Raises ProjectError where they are not alike, or say too little."""
    for result in (before, after):
        check(result, despite)
    found = list(differences(before, after))
    forbidden = [each for each in found if each.what not in despite]
    if forbidden:
        words = ",".join(dict.fromkeys(each.what for each in forbidden))
        raise ProjectError(
            "these results are not of the same conditions: " + "; ".join(each.said for each in forbidden),
            f"measure both alike, or compare in spite of it: `--despite {words}`",
        )
    speedups = {metric: _speedup(before, after, metric) for metric in METRICS}
    metric = JUDGED[after.scenario]
    judged = speedups[metric]
    return Judged(
        before=_title(before, after),
        after=_title(after, before),
        digests=(before.digest, after.digest),
        verdict=judged.verdict,
        metric=metric,
        speedup=judged.speedup,
        low=judged.low,
        high=judged.high,
        speedups={name: (one.speedup, one.low, one.high) for name, one in speedups.items()},
        medians={name: (statistics.median(_of(before, name)), statistics.median(_of(after, name))) for name in METRICS},
        restarts=(len(before.restarts), len(after.restarts)),
        despite=tuple(each.said for each in found),
    )


def check(result: Result, despite: Collection[str]) -> None:
    """What can be known before the other one is measured. Raises ProjectError."""
    unknown = sorted(set(despite) - set(WORDS))
    if unknown:
        raise ProjectError(f"nothing is called `{unknown[0]}` that could differ", f"it is one of {', '.join(WORDS)}")
    if len(result.restarts) < FEWEST:
        raise ProjectError(f"the result of `{result.name}` has {len(result.restarts)} restarts, a comparison wants {FEWEST}", "measure it for longer")


def on_two(
    before: str | Path,
    after: str | Path,
    hosts: tuple[str, str],
    profile: Profile | None = None,
    *,
    samples: str | None = None,
    limit_s: float = LIMIT_S,
    despite: Collection[str] = (),
    progress: Progress = silent,
) -> Judged:
    """A model on a device, and the same or another on another device: as `bench` measures them, one after the other, each for ``limit_s`` seconds at most.

    What two devices cannot have alike may differ. Raises an EdgeSDKError.
    """
    measured = [
        timing.bench(host, what, profile=profile, samples=samples, limit_s=limit_s, progress=progress)
        for host, what in zip(hosts, (before, after), strict=True)
    ]
    return compare(measured[0], measured[1], despite=(*_OF_DEVICES, *despite))


def differences(before: Result, after: Result) -> Iterator[Difference]:
    """All that makes two results unlike, the models aside."""
    for what, title, value in _ALIKE:
        one, other = value(before), value(after)
        if one != other:
            yield Difference(what, f"{title} {_told(one, other)}")
    if (before.device, before.cpu) == (after.device, after.cpu):  # two boards have a clock each
        yield from _states(before, after)
    for result, place in ((before, "first"), (after, "second")):
        if result.disturbed:
            yield Difference("disturbed", f"the {place} was disturbed: {result.disturbed[0]}")


_ALIKE: Sequence[tuple[str, str, Callable[[Result], Any]]] = (
    ("scenario", "the scenario is", lambda one: one.scenario),
    ("scenario", "the target rate is", lambda one: one.target_qps),
    ("scenario", "the samples of a query are", lambda one: one.per_query),
    ("scenario", "the kind of run is", lambda one: one.kind),
    ("via", "what was measured is", lambda one: one.via),
    ("device", "the device is", lambda one: one.device),
    ("device", "its CPU is", lambda one: one.cpu),
    ("provider", "the provider is", lambda one: one.provider),
    ("threads", "the threads are", lambda one: one.threads),
    ("settings", "the settings are", lambda one: one.settings),
    ("onnxruntime", "onnxruntime is", lambda one: one.onnxruntime),
    ("inputs", "the inputs are", lambda one: f"{one.inputs.count} of {one.inputs.source} ({one.inputs.digest[-12:]})"),
)
WORDS = (*dict.fromkeys(what for what, _, _ in _ALIKE), "state", "disturbed")


def _states(before: Result, after: Result) -> Iterator[Difference]:
    governors = tuple({str(one.state.before.governor) for one in result.restarts} for result in (before, after))
    if governors[0] != governors[1]:
        yield Difference("state", f"the governor is {_told(*(' and '.join(sorted(each)) for each in governors))}")
    clocks = _medians(before, after, lambda at: at.mhz)
    if clocks and abs(clocks[0] - clocks[1]) > _CLOCK * max(clocks):
        yield Difference("state", f"the clock is {clocks[0]:.0f} MHz and {clocks[1]:.0f}")
    warmth = _medians(before, after, lambda at: at.temperature_c)
    if warmth and abs(warmth[0] - warmth[1]) > _WARMER_C:
        yield Difference("state", f"the device has {warmth[0]:.0f} °C and {warmth[1]:.0f}")
    loads = _medians(before, after, lambda at: at.load)
    if loads and abs(loads[0] - loads[1]) > _BUSIER:
        yield Difference("state", f"others keep {loads[0]:.1f} cores busy and {loads[1]:.1f}")
    held = tuple({reason for one in result.restarts for at in _moments(one) for reason in at.throttled or ()} for result in (before, after))
    if held[0] != held[1]:
        yield Difference("state", f"what holds the device back is {_told(*(', '.join(sorted(each)) or 'nothing' for each in held))}")


def _medians(before: Result, after: Result, of: Callable[[Conditions], float | None]) -> tuple[float, float] | None:
    """Of the restarts' ends; None where one of the two does not know."""
    known = [[value for one in result.restarts if (value := of(one.state.after)) is not None] for result in (before, after)]
    return (statistics.median(known[0]), statistics.median(known[1])) if all(known) else None


def _moments(one: Restart) -> tuple[Conditions, ...]:
    return one.state.before, one.state.during, one.state.after


def _told(one: Any, other: Any) -> str:
    """Of two mappings only what differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in sorted({*one, *other}) if one.get(key) != other.get(key))
    return f"{one} and {other}"


def _speedup(before: Result, after: Result, metric: Metric) -> Estimate:
    slow, quick = (after, before) if metric == "throughput" else (before, after)  # of which more is better
    return _ratio(_of(slow, metric), _of(quick, metric))


def _of(result: Result, metric: Metric) -> list[float]:
    values = [float(getattr(one, metric)) for one in result.restarts]
    if min(values) <= 0:
        raise ProjectError(f"the result of `{result.name}` has a restart whose {metric} is {min(values)}", "measure it again")
    return values


def _ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Of the means of the logarithms, with Welch's interval."""
    logs = [[math.log(value) for value in values] for values in (above, below)]
    errors = [statistics.variance(each) / len(each) for each in logs]
    error = math.sqrt(sum(errors))
    mean = statistics.fmean(logs[0]) - statistics.fmean(logs[1])
    freedom = sum(errors) ** 2 / sum(each**2 / (len(one) - 1) for each, one in zip(errors, logs, strict=True)) if error else math.inf
    reach = student.quantile(freedom, _QUANTILE) * error
    return Estimate(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def _title(one: Result, other: Result) -> str:
    """With what tells the two apart."""
    release = f" release {one.release}" if one.release is not None else ""
    where = f" on {one.host or one.device}" if (one.host, one.device) != (other.host, other.device) else ""
    return f"{one.name}{release}{where}" + (f" ({one.started})" if (one.name, one.release, one.host) == (other.name, other.release, other.host) else "")
