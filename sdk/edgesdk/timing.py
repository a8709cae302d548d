"""How fast one model is on one device, and how sure that is. The verb `bench`.

    found = bench("pi@192.168.1.20", "ocr")                  # a deployed model, as a local program sees it
    found.latency_ms.p99, found.interval_ms["p99"], found.stopped
    bench("local", "model.onnx", sustained_s=1800).throttled_at_s

A process is lucky or unlucky for as long as it lives, so the unit is a restart: at least five processes, each warmed up until its median changes
no more. The intervals are those of the restarts' logarithms, looked at as `comparison` looks: at fixed counts, with a quantile that allows for
all looks. A sustained run is one process; its intervals are of a block bootstrap, and say nothing of how another process would do.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_agent import bundle
from edge_agent.bundle import Layout
from edge_agent.latency import Histogram, merged
from edgesdk import arrays, comparison, measuring, race, sampling, throttling
from edgesdk.comparison import LIMIT_S, LOOKS
from edgesdk.errors import ProjectError
from edgesdk.measuring import Interrupted, Measured, Place, Wanted
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.results import Conditions, Inputs, Interval, Latency, Restart, Result, Scenario, State, Stopped, Window
from edgesdk.source import model_files

WITHIN = 0.02
RESTART_S = 2.0
MULTI_STREAM = 8  # samples a query, as MLPerf has it

_FEWEST_ARRIVALS, _LONGEST_RESTART_S = 100, 60.0
_WINDOW_S, _MOST_WINDOWS = 1.0, 3600
_MUCH = 0.2  # of the restarts, disturbed: then the result is
_KEEPS_UP = 0.95  # of a target rate
_HISTOGRAM = 1.01  # its quantiles are off by less
_WANTS = {"p90": 10, "p99": 100, "p99.9": 1000}  # answers, of which the slowest is none of the percentile


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is to be measured, and how to get at it. What a deployed model is, its device tells."""

    place: AbstractContextManager[Place]
    name: str
    digest: str | None
    release: int | None
    inputs: Inputs | None


def bench(
    host: str | None,
    what: str | Path,
    *,
    profile: Profile | None = None,
    scenario: Scenario = "single-stream",
    per_query: int | None = None,
    target_qps: float | None = None,
    samples: str | None = None,
    limit_s: float = LIMIT_S,
    within: float = WITHIN,
    sustained_s: float | None = None,
    progress: Progress = silent,
) -> Result:
    """Measure a model that is deployed on ``host`` under the name ``what``, or an ONNX file or a bundle, which is tried there and taken away again.

    A file is measured on this machine where ``host`` is `local` or None. ``per_query``: samples asked at once. ``target_qps``: of the scenario
    `server`. ``samples``: what to ask; generated, or a deployed model's golden inputs, if not given. It ends when the interval of the median (offline:
    of the throughput) is ``within`` so much to either side, after ``limit_s`` seconds and five restarts, or with Ctrl-C; ``sustained_s``: one run
    of that length instead. Raises an EdgeSDKError where it cannot be measured.
    """
    wanted = _wanted(scenario, per_query, target_qps, sustained_s)
    if profile is not None and is_name(what):
        raise ProjectError(f"`{what}` is deployed, and runs as its bundle says", "leave out --profile, or name the file")
    subject = _deployed(host, str(what), samples, progress) if is_name(what) else _file(host, Path(what), profile, samples, progress)
    started, began = datetime.now(UTC), time.monotonic()
    with subject.place as place:
        if sustained_s is not None:
            measured, stopped = _sustained(place, wanted, progress)
        else:
            measured, stopped = _restarted(place, wanted, within, limit_s, progress)
    return _result(subject, measured, wanted, stopped, host, started, time.monotonic() - began)


def is_name(what: str | Path) -> bool:
    """Of a deployed model, not a file."""
    path = Path(what)
    return not (isinstance(what, Path) or path.suffix in (".onnx", ".tar") or len(path.parts) > 1 or path.is_file() or (path / "index.json").exists())


def restarts(
    run: Callable[[], Measured], figure: Callable[[Measured], float], *, within: float, limit_s: float, progress: Progress = silent
) -> tuple[list[Measured], Stopped]:
    """Restart after restart until the interval of their ``figure`` is narrow enough. Interrupted, those that there are, or KeyboardInterrupt."""
    done, until, most = list[Measured](), time.monotonic() + limit_s, max(LOOKS)
    while True:
        progress("restart", len(done), most)
        try:
            done.append(run())
        except Interrupted as cut:
            return [*done, cut.measured], "interrupted"
        except KeyboardInterrupt:
            if not done:
                raise
            return done, "interrupted"
        late = time.monotonic() > until and len(done) >= min(LOOKS)
        if len(done) not in LOOKS and not late:
            continue
        low, high = interval([figure(each) for each in done])
        if math.log(high / low) <= 2 * math.log1p(within):
            return done, "narrow enough"
        if late or len(done) == most:
            return done, "time is up" if late else "most restarts"


def interval(values: Sequence[float]) -> Interval:
    """Of the restarts' geometric mean, 99 % over all looks. ``values``: above zero, five or more."""
    found = comparison.estimate([math.log(max(value, 1e-9)) for value in values])
    return found.low, found.high


def _wanted(scenario: Scenario, per_query: int | None, target_qps: float | None, sustained_s: float | None) -> Wanted:
    if (scenario == "server") != (target_qps is not None):
        raise ProjectError(
            "the scenario `server` has a target rate, and no other has", "say both: `--scenario server --target-qps 50`" if target_qps is None else ""
        )
    if per_query is not None and scenario in ("single-stream", "server"):
        raise ProjectError(f"the scenario `{scenario}` asks one sample at a time", "several at once: `--scenario multi-stream`, or `offline`")
    at_once = per_query or (1 if scenario in ("single-stream", "server") else MULTI_STREAM)
    if sustained_s is not None:
        window_s = max(_WINDOW_S, sustained_s / _MOST_WINDOWS)
        return Wanted(scenario, sustained_s, window_s, per_query=at_once, target_qps=target_qps, curve=True)
    restart_s = RESTART_S if target_qps is None else min(max(RESTART_S, _FEWEST_ARRIVALS / target_qps), _LONGEST_RESTART_S)
    return Wanted(scenario, restart_s, per_query=at_once, target_qps=target_qps)


def _deployed(host: str | None, name: str, samples: str | None, progress: Progress) -> _Subject:
    bundle.check_name(name)
    feeds = arrays.read(Path(samples)) if samples else None
    inputs = Inputs(source=str(samples), count=1, digest=bundle.digest_of(race.packed([feeds], list(feeds)))) if feeds is not None else None
    return _Subject(measuring.served(host or "local", name, feeds, progress), name, None, None, inputs)


def _file(host: str | None, path: Path, wanted: Profile | None, samples: str | None, progress: Progress) -> _Subject:
    contender = comparison.opened(path)
    profile = wanted or contender.profile
    given = sampling.load(samples, contender.model) if samples else sampling.generated(contender.model, comparison.FEEDS)
    feeds = list(given.first(comparison.FEEDS))
    files = model_files(contender.model)
    name, release, digest = str(path), None, bundle.digest_of(b"".join(files.values()))
    if contender.profile is not None:
        with Layout.open(path) as layout:
            (manifest,) = layout.manifests().values()
            described = layout.description(manifest)
            name, release, digest = described.name, described.release, manifest.digest
    inputs = Inputs(source=given.source.replace("`", ""), count=len(feeds), digest=bundle.digest_of(race.packed(feeds, list(feeds[0]))))
    if host in (None, "local"):
        return _Subject(measuring.here(files, profile, feeds), name, digest, release, inputs)
    return _Subject(measuring.there(str(host), files, profile, feeds, progress), name, digest, release, inputs)


def _restarted(place: Place, wanted: Wanted, within: float, limit_s: float, progress: Progress) -> tuple[list[Measured], Stopped]:
    figure = _throughput if wanted.scenario == "offline" else _median
    return restarts(lambda: place.measure(wanted), figure, within=within, limit_s=limit_s, progress=progress)


def _sustained(place: Place, wanted: Wanted, progress: Progress) -> tuple[list[Measured], Stopped]:
    try:
        with _ticking(progress, round(wanted.limit_s)):
            return [place.measure(wanted)], "time is up"
    except Interrupted as cut:
        return [cut.measured], "interrupted"


@contextmanager
def _ticking(progress: Progress, seconds: int) -> Iterator[None]:
    """Tells how long it has been: what is measured must not be asked."""
    over, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not over.wait(1):
            progress("sustained, s", min(round(time.monotonic() - began), seconds), seconds)

    progress("sustained, s", 0, seconds)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _result(subject: _Subject, measured: Sequence[Measured], wanted: Wanted, stopped: Stopped, host: str | None, started: datetime, seconds: float) -> Result:
    about, last = measured[-1].about, measured[-1]
    done = tuple(map(_restart, measured))
    whole = merged(Histogram.from_dict(one.histogram) for one in done)
    inputs = subject.inputs or (Inputs(**about.inputs.to_dict()) if about.inputs else Inputs(source="golden", count=0, digest=""))
    curve = tuple(Window(**point.to_dict()) for point in last.curve)
    found = throttling.levels(curve)
    energies = [one.energy_j for one in done if one.energy_j is not None]
    return Result(
        kind="sustained" if wanted.curve else "bench",
        name=subject.name,
        digest=subject.digest or about.digest or "",
        release=subject.release if subject.release is not None else about.release,
        host=host,
        device=about.device,
        cpu=about.cpu,
        provider=about.provider,
        nodes=about.nodes,
        threads=about.threads,
        onnxruntime=about.onnxruntime,
        settings=about.settings,
        scenario=wanted.scenario,
        target_qps=wanted.target_qps,
        inputs=inputs,
        via="agent" if subject.digest is None else "session",
        started=_began(about.began if wanted.curve else None, started).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 1),
        stopped=stopped,
        disturbed=_disturbed(done),
        latency_ms=_latency(done, whole),
        interval_ms=_intervals(measured),
        throughput=statistics.fmean(one.throughput for one in done),
        throughput_interval=interval([one.throughput for one in done]) if len(done) >= min(LOOKS) else None,
        load_ms=_middle([one.load_ms for one in done]),
        first_answer_ms=_middle([one.first_answer_ms for one in done]),
        peak_bytes=max((one.peak_bytes for one in done if one.peak_bytes is not None), default=None),
        energy_j=statistics.fmean(energies) if energies else None,
        energy_unknown=None if energies else last.energy_unknown or "the device did not say",
        histogram=_plain(whole),
        restarts=done,
        per_query=wanted.per_query,
        phases_ms=last.phases_ms,
        notes=(*_notes(subject, measured, wanted), *_outside(_latency(done, whole), _intervals(measured))),
        curve=curve,
        throttled_at_s=throttling.throttled_at(found),
        levels=found,
    )


def _began(told: float | None, here: datetime) -> datetime:
    """A sustained run, whose curve is to be seen beside the device's logs, by the device's own clock."""
    return here if told is None else datetime.fromtimestamp(told, UTC)


def _restart(measured: Measured) -> Restart:
    told = measured.restart.to_dict()
    state = State(**{name: Conditions(**{**moment, "throttled": _words(moment["throttled"])}) for name, moment in told.pop("state").items()})
    return Restart(**{**told, "state": state, "disturbed": tuple(told["disturbed"])})


def _plain(histogram: Histogram) -> dict[str, Any]:
    """As JSON has it: lists, no tuples."""
    document = histogram.to_dict()
    return {**document, "buckets": [list(pair) for pair in document["buckets"]]}


def _words(given: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(given)


def _latency(done: Sequence[Restart], whole: Histogram) -> Latency:
    """Of one process as exactly as it was told, of several from their histograms, which are off by less than 1 %."""
    found = whole.percentiles()
    exact = {"p50": done[0].p50_ms, "p90": done[0].p90_ms, "p99": done[0].p99_ms} if len(done) == 1 else {}
    mean = whole.sum_ns / whole.count
    variance = sum(count * (middle - mean) ** 2 for middle, count in whole.counts()) / whole.count
    return Latency(**{**found.to_dict(), **exact, "mean": mean / 1e6, "std": math.sqrt(variance) / 1e6})


def _intervals(measured: Sequence[Measured]) -> dict[str, Interval]:
    """Over restarts; of a single one its own; of two to four none: so few say too little."""
    if len(measured) == 1:
        return dict(measured[0].interval_ms)
    if len(measured) < min(LOOKS):
        return {}
    return {name: interval([getattr(each.restart, f"{name}_ms") for each in measured]) for name in ("p50", "p90", "p99")}


def _disturbed(done: Sequence[Restart]) -> tuple[str, ...]:
    """What disturbed more than one in five: the rest is in the restarts."""
    if len(done) == 1:
        return done[0].disturbed
    disturbed = [one for one in done if one.disturbed]
    if len(disturbed) <= _MUCH * len(done):
        return ()
    return (f"{len(disturbed)} of {len(done)} restarts were disturbed, such as: {'; '.join(disturbed[-1].disturbed)}",)


def _notes(subject: _Subject, measured: Sequence[Measured], wanted: Wanted) -> Iterator[str]:
    if subject.digest is None:
        yield "the asking program was started anew each time, the served model was not: it was loaded and warm"
        if measured[-1].about.client == "http":
            yield "asked over HTTP: shared memory was not to be had"
    restless = sum(not each.restart.steady for each in measured)
    if restless:
        yield f"{restless} of {len(measured)} processes never got steady: their median still moved after ten seconds of warm-up"
    if wanted.per_query > 1 and subject.digest is not None:
        stacked = measured[-1].about.stacked
        yield f"the {wanted.per_query} samples of a query run " + ("as one batch" if stacked else "one after the other: the model takes no batch of them")
    if wanted.target_qps is not None and not _keeps_up(measured, wanted):
        yield f"the device does not keep up with {wanted.target_qps:g} questions a second: the longer it runs, the longer they wait"
    if 1 < len(measured) < min(LOOKS):
        yield f"{len(measured)} restarts are too few for an interval"
    yield from _few([each.restart.runs for each in measured])


def _few(runs: Sequence[int]) -> Iterator[str]:
    """Which percentiles are nothing but the slowest answer, since there were fewer than it takes."""
    of_all = [name for name, wants in _WANTS.items() if sum(runs) < wants]
    of_one = [name for name, wants in _WANTS.items() if sum(runs) >= wants > min(runs) and name != "p99.9"]  # which has no interval
    if of_all:
        wants = " and ".join(f"{_WANTS[name]:,}" for name in of_all)
        yield f"{' and '.join(of_all)}: the slowest of {sum(runs):,} answers, it takes {wants} to tell"
    if of_one:
        yield f"the interval of {' and '.join(of_one)} is that of the slowest answer of each restart: one has only {min(runs):,}"


def _outside(latency: Latency, intervals: Mapping[str, Interval]) -> Iterator[str]:
    """Percentiles are of all answers and intervals of the mean restart: where half of these are twice as slow, both are right and lie apart."""
    apart = [name for name, (low, high) in intervals.items() if not low / _HISTOGRAM <= getattr(latency, name) <= high * _HISTOGRAM]
    if apart:
        yield f"{' and '.join(apart)} of all answers lies outside of the interval, which is of the mean restart: they differ too much to be called one"


def _keeps_up(measured: Sequence[Measured], wanted: Wanted) -> bool:
    """Whether all that came in the time was answered in little more. How many came is chance; of a run that was cut short nothing else is known."""
    assert wanted.target_qps is not None
    whole = [one for one in measured if not one.stopped]
    seconds = sum(one.restart.runs / one.restart.throughput for one in whole or measured)
    if whole:
        return _KEEPS_UP * seconds <= len(whole) * wanted.limit_s
    expected = wanted.target_qps * seconds
    return sum(one.restart.runs for one in measured) >= _KEEPS_UP * expected - 3 * math.sqrt(expected)


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _median(measured: Measured) -> float:
    return measured.restart.p50_ms


def _throughput(measured: Measured) -> float:
    return measured.restart.throughput
