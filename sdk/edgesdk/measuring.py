"""One model, timed in a process of its own: here, on a device that gets its files for that, or deployed there and asked as programs ask it.

    with here(model_files(model), profile, feeds) as place:
        place.measure(Wanted("single-stream", limit_s=2)).restart.p50_ms

Each measurement is a restart. What was sent to a device is removed at the end, and by the device itself where the connection is cut for good.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import AfterValidator, ConfigDict, Field, PositiveInt

from edge_agent import probe
from edge_agent.bundle import digest_of
from edge_agent.child import Child, ChildFailed
from edge_agent.latency import Histogram
from edgesdk import device, race
from edgesdk.device import Device
from edgesdk.errors import DeviceError, EdgeSDKError, ModelError
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.race import Files
from edgesdk.replies import Count, Facts, Job, Problem, Reply, Text, parse, printable
from edgesdk.results import Scenario

if TYPE_CHECKING:
    from numpy.typing import NDArray

Milliseconds = Annotated[float, Field(ge=0, le=1e9)]  # what is more is no measurement, and would overflow where means are taken
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Rate = Annotated[float, Field(gt=0, le=1e12)]

_PATIENCE_S = 60  # with what was told to stop
_OPEN_S = 1800
_SLOWEST_S = 600
_MOST_WINDOWS, _MOST_SETTINGS, _MOST_RUNS = 10_000, 200, 1 << 53


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to ask. ``per_query``: samples at once; ``window_s``: for the curve, if it is wanted."""

    scenario: Scenario
    limit_s: float
    window_s: float = 0.1
    per_query: int = 1
    target_qps: float | None = None
    curve: bool = False


def _checked_histogram(document: dict[str, Any]) -> dict[str, Any]:
    """With at least one latency in it. Raises ValueError."""
    found = Histogram.from_dict(document)
    if not 0 < found.count <= _MOST_RUNS or not 0 <= found.min_ns <= found.max_ns or found.sum_ns < 0:
        raise ValueError("a histogram without latencies")
    plain = found.to_dict()
    return {**plain, "buckets": [list(pair) for pair in plain["buckets"]]}


def _harmless(value: Any, depth: int = 4) -> Any:
    """Plain values, and no text that a terminal would obey."""
    if isinstance(value, dict) and depth:
        return {printable(str(key)): _harmless(each, depth - 1) for key, each in list(value.items())[:_MOST_SETTINGS]}
    if isinstance(value, list) and depth:
        return [_harmless(each, depth - 1) for each in value[:_MOST_SETTINGS]]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else printable(str(value)[:_MOST_SETTINGS])


class Told(Reply):
    """What a device says of a measurement. It may be broken, or not ours."""

    model_config = ConfigDict(allow_inf_nan=False)


class Moment(Told):
    governor: Text | None = None
    mhz: float | None = None
    temperature_c: float | None = None
    throttled: tuple[Text, ...] | None = None
    load: float | None = None


class Moments(Told):
    before: Moment
    during: Moment = Moment()
    after: Moment


class Figures(Told):
    """A restart, as `results.Restart` has it."""

    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds
    throughput: Rate
    runs: PositiveInt
    warmup_runs: Count
    warmup_s: float
    steady: bool
    load_ms: Milliseconds | None = None
    first_answer_ms: Milliseconds | None = None
    peak_bytes: Count | None = None
    state: Moments
    disturbed: tuple[Text, ...] = ()
    histogram: Annotated[dict[str, Any], AfterValidator(_checked_histogram)]
    energy_j: Annotated[float, Field(ge=0, le=1e9)] | None = None


class Point(Told):
    """As `results.Window`."""

    t_s: Seconds
    seconds: Annotated[Seconds, Field(gt=0)]
    runs: PositiveInt
    p50_ms: Milliseconds
    p99_ms: Milliseconds
    throughput: Rate
    mhz: float | None = None
    temperature_c: float | None = None
    load: float | None = None


class AskedInputs(Told):
    source: Text
    count: Count
    digest: Text


class About(Told):
    """What was measured, and on what."""

    name: Text | None = None
    release: Count | None = None
    digest: Text | None = None
    provider: Text
    nodes: Text = ""
    threads: Count
    onnxruntime: Text
    settings: Annotated[dict[str, Any], AfterValidator(_harmless)] = Field(default_factory=dict)
    stacked: bool = False
    client: Text | None = None
    inputs: AskedInputs | None = None
    device: Text
    cpu: Text | None = None
    began: Annotated[float, Field(ge=0, le=1e11)] | None = None  # seconds since 1970, by its own clock


class Measured(Told):
    """What one process saw. ``interval_ms``: 95 %, of this process alone."""

    restart: Figures
    interval_ms: dict[Text, tuple[float, float]] = Field(default_factory=dict)
    energy_unknown: Text | None = None
    curve: Annotated[tuple[Point, ...], Field(max_length=_MOST_WINDOWS)] = ()
    stopped: bool = False
    phases_ms: dict[Text, float] | None = None
    about: About


class Unmeasured(Reply):
    """It does not run there."""

    failed: Problem


class MeasurementJob(Job):
    result: Measured | Unmeasured | None = None


class Interrupted(Exception):
    """Somebody pressed Ctrl-C. ``measured``: what there was by then."""

    def __init__(self, measured: Measured) -> None:
        super().__init__()
        self.measured = measured


class Place(Protocol):
    """Where a model is measured, process after process."""

    def measure(self, wanted: Wanted) -> Measured:
        """Raises ModelError or DeviceError, and Interrupted for a Ctrl-C; a second one is KeyboardInterrupt."""
        ...


@contextmanager
def here(files: Files, profile: Profile | None, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Iterator[Place]:
    """This machine, without an agent. Raises Refused where no profile is given and none fits."""
    profile = profile or race.recognised(parse(Facts, probe.facts(), "this machine"), "this machine")
    with TemporaryDirectory(prefix="edgesdk-") as folder:
        yield _Here(Path(folder), files, profile, feeds)


@contextmanager
def there(host: str, files: Files, profile: Profile | None, feeds: Sequence[Mapping[str, NDArray[Any]]], progress: Progress = silent) -> Iterator[Place]:
    """A device, which is set up for it and gets the files. Raises what `race.racing` does."""
    inputs = list(feeds[0])
    packed = race.packed(feeds, inputs)
    with race.racing(host, profile, feeds, progress) as racer:
        document = {
            "model": {name: race.described(data) for name, data in files.items()},
            "feeds": race.described(packed),
            "inputs": inputs,
            "profile": racer.profile.to_dict(),
        }
        yield _There(racer.device, racer.session, document, [*files.values(), packed], progress)


@contextmanager
def served(host: str, name: str, feeds: Mapping[str, NDArray[Any]] | None, progress: Progress = silent) -> Iterator[Place]:
    """A deployed model, asked those ``feeds``, or else its golden inputs. Raises ConnectionFailed or DeviceError."""
    document: dict[str, Any] = {"name": name}
    contents = []
    if feeds is not None:
        contents.append(race.packed([feeds], list(feeds)))
        document |= {"feeds": race.described(contents[0]), "inputs": list(feeds)}
    with device.connect(host) as connected:
        active = [model.name for model in connected.status().models]
        if name not in active:
            raise DeviceError(
                f"no model `{name}` is active on `{host}`, and there is no file or bundle `{name}` here",
                f"active there: {', '.join(active)}" if active else f"`edgesdk deploy {host}` brings one there; a file is measured by its path",
            )
        session = secrets.token_hex(8)
        try:
            yield _There(connected, session, document, contents, progress)
        finally:
            with suppress(EdgeSDKError):  # the device removes it by itself within the hour
                connected.end_race(session)


class _Here:
    def __init__(self, folder: Path, files: Files, profile: Profile, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        self._folder = folder
        inputs = list(feeds[0])
        (folder / "model").mkdir()
        for name, data in files.items():
            (folder / "model" / name).write_bytes(data)
        (folder / "feeds.npz").write_bytes(race.packed(feeds, inputs))
        self._question = {"via": "session", "model": "model", "feeds": "feeds.npz", "inputs": inputs, "profile": profile.to_dict()}

    def measure(self, wanted: Wanted) -> Measured:
        question = {"arguments": {**self._question, "wanted": asdict(wanted)}}
        try:
            with Child("measurer", self._folder, self._folder, what="the process that ran the model") as child:
                try:
                    return self._told(child.ask(question, timeout_s=_OPEN_S + wanted.limit_s + _SLOWEST_S))
                except KeyboardInterrupt:
                    child.tell({"stop": True})
                    raise Interrupted(self._told(child.answer(timeout_s=_PATIENCE_S))) from None
        except ChildFailed as error:
            raise ModelError(str(error), error.hint) from error

    def _told(self, document: dict[str, Any]) -> Measured:
        if "failed" in document:
            raise ModelError(f"the model does not run here: {document['failed']['message']}", document["failed"]["hint"])
        return Measured.model_validate(document)


class _There:
    def __init__(self, connected: Device, session: str, document: Mapping[str, Any], contents: Sequence[bytes], progress: Progress) -> None:
        self._device, self._session, self._document, self._progress = connected, session, document, progress
        self._contents = {digest_of(data): data for data in contents}

    def measure(self, wanted: Wanted) -> Measured:
        job = ""

        def start() -> str:
            nonlocal job
            race.send(self._device, self._session, self._contents, self._progress)
            job = self._device.start_measurement(self._session, {**self._document, "wanted": asdict(wanted)})
            return job

        try:
            return self._told(self._device.measurement(MeasurementJob, start))
        except KeyboardInterrupt:
            if not job:
                raise
            self._device.reconnect()
            self._device.stop_measurement(self._session)
            raise Interrupted(self._told(self._device.measurement(MeasurementJob, lambda: job))) from None

    def _told(self, job: MeasurementJob) -> Measured:
        if not isinstance(job.result, Measured):
            assert job.result is not None  # `Device.measurement` returns what has one
            problem = job.result.failed
            kind: Callable[[str, str], EdgeSDKError] = DeviceError if "name" in self._document else ModelError
            raise kind(f"`{self._device.host}` cannot measure it: {problem.message}", problem.hint)
        return job.result
