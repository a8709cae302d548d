"""What was measured, as a value and as a file: what `bench` writes, and what `compare`, `tune` and `report` read.

    found = load(Path("before.json"))                   # of `edgesdk bench … -o before.json`
    found.latency_ms.p99, found.interval_ms["p99"], found.throughput
    pandas.DataFrame(found.rows())                      # one row a restart

A file is one JSON document. Keys that we do not know are passed over, a newer schema is refused. Results of other kinds (`tune`,
`evaluate`, `comparison`) have keys of their own beside `schema` and `kind`: `read` and `write` are for all of them.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from edge_agent.latency import Histogram
from edgesdk.errors import ResultError

SCHEMA = 1
Kind = Literal["bench", "sustained", "tune", "evaluate", "comparison"]
Scenario = Literal["single-stream", "multi-stream", "offline", "server"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
Stopped = Literal["narrow enough", "most restarts", "time is up", "interrupted"]
Interval = tuple[float, float]  # of 99 % over restarts, however often it was looked at; of 95 % within one process

_MOST_BYTES = 256 << 20
_MEASURED = ("bench", "sustained")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds, of all answers."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    mean: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What was asked. ``source``: a file, `generated`, or `golden` for those of the bundle."""

    source: str
    count: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The device at one moment. ``throttled``: what holds it back, None where nothing could tell; ``load``: cores that others keep busy."""

    governor: str | None = None
    mhz: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``during``: the lowest clock and the highest temperature seen meanwhile, and what others took on the average."""

    before: Conditions
    after: Conditions
    during: Conditions = Conditions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """One process that measured. ``steady``: whether its median had stopped to change after ``warmup_runs``."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float  # answers a second
    runs: int
    warmup_runs: int
    warmup_s: float
    steady: bool
    load_ms: float | None
    first_answer_ms: float | None
    peak_bytes: int | None
    state: State
    disturbed: tuple[str, ...]  # sentences
    histogram: dict[str, Any]  # edge_agent.latency.Histogram's
    energy_j: float | None = None  # an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some time of a sustained run. ``t_s``: its begin, from that of the run."""

    t_s: float
    seconds: float
    runs: int
    p50_ms: float
    p99_ms: float
    throughput: float
    mhz: float | None = None
    temperature_c: float | None = None
    load: float | None = None  # cores that others keep busy


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A time in which the speed stayed the same."""

    from_s: float
    to_s: float
    p50_ms: float
    p99_ms: float
    throughput: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `edgesdk bench` found; its fields are the keys of `--json`.

    ``via``: `agent`, a deployed model as a local program sees it, or `session`, a file or bundle opened for this alone.
    ``host`` is None for this machine without an agent. ``settings``: what the session was opened with.
    ``throttled_at_s`` and what follows: of a sustained run.
    """

    kind: Literal["bench", "sustained"]
    name: str
    digest: str
    release: int | None
    host: str | None
    device: str
    cpu: str | None
    provider: str
    nodes: str
    threads: int
    onnxruntime: str
    settings: dict[str, Any]
    scenario: Scenario
    target_qps: float | None
    inputs: Inputs
    via: Literal["agent", "session"]
    started: str  # ISO time; of a sustained run the begin of its curve, by the device's clock
    seconds: float
    stopped: Stopped
    disturbed: tuple[str, ...]  # sentences
    latency_ms: Latency
    interval_ms: dict[str, Interval]  # p50, p90, p99
    throughput: float  # answers a second
    throughput_interval: Interval | None
    load_ms: float | None
    first_answer_ms: float | None
    peak_bytes: int | None
    energy_j: float | None  # an answer
    energy_unknown: str | None  # why
    histogram: dict[str, Any]
    restarts: tuple[Restart, ...]
    per_query: int = 1  # samples in one query, which are asked at once
    phases_ms: dict[str, float] | None = None  # medians, where the agent tells them
    notes: tuple[str, ...] = ()  # sentences: what these figures are not
    curve: tuple[Window, ...] = ()
    throttled_at_s: float | None = None
    levels: tuple[Level, ...] = ()
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a restart, as pandas.DataFrame takes them."""
        named = {"name": self.name, "release": self.release, "host": self.host, "device": self.device, "scenario": self.scenario}
        kept = ("p50_ms", "p90_ms", "p99_ms", "throughput", "runs", "warmup_runs", "warmup_s", "steady", "load_ms", "first_answer_ms", "peak_bytes", "energy_j")
        return [
            {**named, "restart": number, **{key: getattr(one, key) for key in kept}, "temperature_c": one.state.after.temperature_c, "mhz": one.state.after.mhz}
            for number, one in enumerate(self.restarts)
        ]

    def save(self, path: Path) -> None:
        """Raises ResultError."""
        write(path, self.to_dict())


def load(path: Path) -> Result:
    """A result of `bench`. Raises ResultError for anything else."""
    document = read(path)
    if document["kind"] not in _MEASURED:
        raise ResultError(f"`{path}` is a result of `{document['kind']}`, not of `bench`", "give what `edgesdk bench … -o FILE.json` wrote")
    try:
        found = _RESULT.validate_python(document)
        for histogram in (found.histogram, *(one.histogram for one in found.restarts)):
            Histogram.from_dict(histogram)
    except ValidationError as error:
        first = error.errors()[0]
        raise ResultError(f"`{path}` is no result: {'.'.join(map(str, first['loc']))}: {first['msg']}", "measure again") from error
    except ValueError as error:
        raise ResultError(f"`{path}` is no result: {error}", "measure again") from error
    return found


def read(path: Path) -> dict[str, Any]:
    """Any kind's document, its `schema` and `kind` checked. Raises ResultError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ResultError(f"`{path}` is too large for a result", "give what `edgesdk bench … -o FILE.json` wrote")
        document = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise ResultError(f"`{path}` cannot be read: {error.strerror}", "give what `edgesdk bench … -o FILE.json` wrote") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"`{path}` is no JSON, or one with a number that is none", "give what `edgesdk bench … -o FILE.json` wrote") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is not int or schema < 1 or document.get("kind") not in get_args(Kind):
        raise ResultError(f"`{path}` is no result of edgesdk", "give what `edgesdk bench … -o FILE.json` wrote")
    if schema > SCHEMA:
        raise ResultError(f"`{path}` has the schema {schema}, this edgesdk knows {SCHEMA}", "update edgesdk")
    return dict(document)


def _finite(text: str) -> float:
    """NaN and what is too large are no numbers of JSON. Raises ValueError."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Beside, then renamed. What is no UTF-8 in a file's name becomes `?`. Raises ResultError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8", errors="replace")
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise ResultError(f"`{path}` cannot be written: {error.strerror}", "name a file in a folder that exists") from error


_RESULT: TypeAdapter[Result] = TypeAdapter(Annotated[Result, Field()])
