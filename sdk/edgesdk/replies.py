"""What a device says, as types. Parsed once, on arrival; past that point nothing is a dict.

A device may be broken, or not ours: lengths are bounded, control characters are escaped before they reach a terminal, and
nothing said here ever becomes a path. Keys that we do not know are ignored: the agent may be newer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, PositiveInt, ValidationError, ValidationInfo

from edge_agent.latency import Histogram
from edgesdk.errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAME = b"edge-agent-reply: "
_MAX_TEXT = 4000


def printable(text: str) -> str:
    """The text with everything escaped that a terminal could obey.

    >>> printable("ok\\x1b[2J")
    'ok\\\\x1b[2J'
    """
    shown = "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text[:_MAX_TEXT])
    return shown + ("…" if len(text) > _MAX_TEXT else "")


Text = Annotated[str, AfterValidator(printable)]
Count = Annotated[int, Field(ge=0)]


def _as_typed_here(hint: str, info: ValidationInfo) -> str:
    """What the agent tells programs of its own device to type, as one types it here."""
    host = (info.context or {}).get("host")
    return hint.replace("`edge-agent status`", f"`edgesdk status {host}`") if host else hint


Hint = Annotated[Text, AfterValidator(_as_typed_here)]


class Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)  # what JSON has no word for, an agent does not send

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return self.model_dump(mode="json")


class Runtime(Reply):
    """The onnxruntime that a device has. ``where``: the system's, or the one that we sent."""

    version: Text
    providers: tuple[Text, ...] = ()
    where: Text = ""


class InstalledAgent(Reply):
    """``digest`` is None where one runs that was not put there by edgesdk: from a virtual environment, say."""

    digest: Text | None = None
    version: Text | None = None
    running: bool = False


class TrustFacts(Reply):
    """``known``: the device has a list of signers; ``demanded``: it takes nothing unsigned."""

    known: bool = False
    demanded: bool = False
    ssh_keygen: bool = False
    signers: tuple[Text, ...] | None = None  # fingerprints; None where the list does not say it
    revoked: tuple[Text, ...] = ()


class Accepted(Reply):
    """The highest release that a device has accepted of a model, and what it rolled back."""

    release: Count | None = None
    digest: Text | None = None
    rolled_back: tuple[Text, ...] = ()


class TrustedSigner(Reply):
    principals: Text
    kind: Text
    fingerprint: Text
    expires: Text | None = None
    revoked: bool = False


class Trusted(Reply):
    """Whose signatures a device takes."""

    demanded: bool
    signers: tuple[TrustedSigner, ...] = ()


class Facts(Reply):
    """What `edge-agent probe` found out about a device. What it could not read is None or empty."""

    system: Text | None = None
    architecture: Text
    python: Text
    executable: Text | None = None
    abi: Text
    libc: Text | None = None
    board: Text = ""
    cpu_model: Text | None = None
    cpu_features: tuple[Text, ...] = ()
    cores: Count | None = None
    memory_bytes: Count | None = None
    available_bytes: Count | None = None
    free_bytes: Count | None = None
    home: Text
    mode: Literal["user", "system"] = "user"
    systemd: bool = False
    writable: bool | None = None
    volatile: Text | None = None
    missing_modules: tuple[Text, ...] = ()
    files: tuple[Text, ...] = ()
    governor: Text | None = None
    temperature_c: float | None = None
    onnxruntime: Runtime | None = None
    numpy: Text | None = None
    agent: InstalledAgent | None = None
    trust: TrustFacts = TrustFacts()
    releases: dict[Text, Accepted] = {}
    user: Text | None = None
    held: dict[Text, Count] = {}


class Missing(Reply):
    """A blob that the device lacks, and how many of its bytes have arrived."""

    digest: Text
    offset: Count = 0


class MissingReply(Reply):
    missing: tuple[Missing, ...]


class Problem(Reply):
    """``again``: the link is to blame, and what arrived is kept."""

    message: Text
    hint: Hint = ""
    again: bool = False


class Percentiles(Reply):
    """Latency in milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float | None = None
    max: float | None = None
    mean: float | None = None


class Difference(Reply):
    """The output that lies furthest from its golden answer."""

    output: Text
    difference: float
    tolerance: float


class Placed(Reply):
    """How much of the model the accelerator computes. ``kept``: None where that is not known."""

    share: float | None = None
    least: float
    kept: bool | None = None
    said: Text
    fell: tuple[Text, ...] = ()


class Trial(Reply):
    """How the model did on the device before it was switched to."""

    worst: Difference | None = None
    load_ms: float | None = None
    latency_ms: Percentiles | None = None
    provider: Text = ""
    nodes: Text = ""
    placement: Placed | None = None
    runs: Count | None = None
    warmup: Count | None = None


class Activated(Reply):
    """The end of a job that activates or rolls back."""

    name: Text
    release: Count
    digest: Text
    previous: Text | None = None
    outcome: Literal["active", "unchanged", "probation", "staged"]
    first_answer_ms: float | None = None
    at: Text | None = None
    trial: Trial | None = None


class Waiting(Reply):
    """What is staged. ``at``: when it becomes active, by the device's clock; ``error``: why it did not when its time had come."""

    name: Text
    release: Count
    digest: Text
    signer: Text | None = None
    at: Text | None = None
    error: Text | None = None


class JobStarted(Reply):
    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]


class Job(Reply):
    """A job of the agent. It goes on whether or not anybody asks."""

    state: Literal["running", "done", "failed"]
    stage: Text = ""
    result: Reply | None = None
    error: Problem | None = None


class Activation(Job):
    result: Activated | None = None


class Begun(Activation, JobStarted):
    """A job, and how it goes already."""


class Ran(Reply):
    """What one of two models ran on."""

    provider: Text
    nodes: Text = ""
    threads: Count = 0


class Times(Reply):
    """Two models in pairs, raw: nanoseconds before and after."""

    pairs_ns: Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Field(min_length=1, max_length=1000)]
    warmup: Count
    before: Ran
    after: Ran
    threads: Count
    together: Count = 1
    onnxruntime: Text
    governor: Text | None = None
    temperature_c: float | None = None


class ModelProblem(Problem):
    """``model`` is None where the device cannot tell which of the two it was."""

    model: Literal["before", "after"] | None = None


class ModelFailed(Reply):
    """One of the two does not run there."""

    failed: ModelProblem


class RaceJob(Job):
    result: Times | ModelFailed | None = None


class NodeAt(Reply):
    """A node, as onnxruntime gave it to a provider."""

    name: Text
    operator: Text
    provider: Text


class Timed(Reply):
    """A kernel and its median time in microseconds."""

    kernel: Text
    operator: Text
    provider: Text
    us: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Looked(Reply):
    """One model run under onnxruntime's profiler. ``placed`` is None where that onnxruntime does not tell."""

    provider: Text
    nodes: Text
    placed: tuple[NodeAt, ...] | None
    kernels: tuple[Timed, ...]
    runs: Count
    threads: Count
    onnxruntime: Text
    governor: Text | None = None
    temperature_c: float | None = None


class LookJob(Job):
    result: Looked | ModelFailed | None = None


class Answering(Reply):
    """A model that is open there and waits for questions. Name, release and digest are those of one that is active."""

    name: Text | None = None
    release: Count | None = None
    digest: Text | None = None
    provider: Text | None = None
    nodes: Text | None = None
    threads: Count | None = None
    onnxruntime: Text | None = None
    governor: Text | None = None
    temperature_c: float | None = None


class AgentStatus(Reply):
    version: Text
    digest: Text | None = None
    pid: int | None = None
    python: Text | None = None
    onnxruntime: Text | None = None
    numpy: Text | None = None
    home: Text = ""
    since: Text | None = None
    problem: Text | None = None


class ModelStatus(Reply):
    name: Text
    release: Count | None = None  # None where the deployment on the device cannot be read
    digest: Text | None = None
    profile: Text | None = None
    provider: Text | None = None
    nodes: Text | None = None
    state: Text
    previous: Text | None = None
    since: Text | None = None
    error: Text | None = None
    count: Count | None = None


class Kept(Reply):
    """A bundle that stays on the device, and why: active, previous, staged."""

    name: Text
    why: Text
    release: Count | None = None
    digest: Text | None = None
    bytes: Count = 0


class StoreStatus(Reply):
    """``keep``: how many bundles of a model stay beside what is staged; ``arriving_bytes``: of what no bundle needs yet, kept for an hour."""

    bytes: Count | None = None
    free_bytes: Count | None = None
    blobs: Count | None = None
    keep: Count | None = None
    kept: tuple[Kept, ...] = ()
    arriving_bytes: Count = 0


class Throttling(Reply):
    now: tuple[Text, ...] = ()
    events: dict[Text, Count] = {}


class DeviceFacts(Reply):
    """What the latency depends on besides the model. What the device could not read is None or empty."""

    board: Text | None = None
    cpu: Text | None = None
    cores: Count | None = None
    architecture: Text | None = None
    governor: Text | None = None
    frequency_mhz: dict[Text, float] = {}
    accelerators: dict[Text, dict[Text, float | Text]] = {}
    temperatures_c: dict[Text, float] = {}
    throttling: Throttling | None = None
    power_w: dict[Text, float] = {}
    memory: dict[Text, Count] = {}

    def in_words(self) -> str:
        """One line; empty where nothing is known."""
        from edge_agent import facts

        return facts.in_words({key: value for key, value in self.to_dict().items() if value is not None})


class Status(Reply):
    agent: AgentStatus
    models: tuple[ModelStatus, ...] = ()
    staged: tuple[Waiting, ...] = ()
    store: StoreStatus = StoreStatus()
    device: DeviceFacts = DeviceFacts()


def _histogram(document: Any) -> Histogram:
    """Raises ValueError, which pydantic reports."""
    return document if isinstance(document, Histogram) else Histogram.from_dict(document)


Counted = Annotated[Histogram, PlainValidator(_histogram), PlainSerializer(Histogram.to_dict)]


class VersionReport(Reply):
    """All that was counted of one version of a model. ``total`` and ``phases`` are of what was answered, ``failed`` of the errors."""

    digest: Text
    release: Text = ""
    since: Text
    errors: Count
    not_finite: Count = 0
    total: Counted
    failed: Counted = Field(default_factory=Histogram)
    phases: dict[Text, Counted] = {}


class ModelReport(Reply):
    """The latency of one model, as local programs saw it."""

    name: Text
    release: Count
    digest: Text
    provider: Text | None = None
    count: Count
    errors: Count
    not_finite: Count = 0  # answers that hold NaN or infinity
    latency_ms: Percentiles | None = None
    phases_ms: dict[Text, Percentiles | None] = {}
    since: Text | None = None
    versions: tuple[VersionReport, ...] = ()  # where histograms were asked for: the oldest first, the active one last


class Report(Reply):
    models: tuple[ModelReport, ...]
    device: DeviceFacts = DeviceFacts()


class Removed(Reply):
    removed: Text
    freed_bytes: Count = 0


class TornDown(Reply):
    """What a teardown removed, or would; and what it left since it is not the agent's."""

    home: Text
    dry_run: bool
    removed: tuple[Text, ...] = ()
    kept: tuple[Text, ...] = ()


class Accounts(Reply):
    """A user and a group that a set-up made, and a teardown removes."""

    removed: tuple[Text, ...] = ()


class Logs(Reply):
    lines: tuple[Text, ...]


class Tensor(Reply):
    """An output as JSON carries it; text is `string`."""

    dtype: Annotated[str, Field(pattern=r"^[a-z]+[0-9]*$")]
    shape: tuple[Count, ...]
    data: Any


class Answer(Reply):
    """What a model answered. ``agrees`` where a golden input was asked: whether the answer is the golden one."""

    outputs: dict[Text, Tensor]
    latency_ms: float
    agrees: bool | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The outputs as numpy's. Raises DeviceError where data and shape disagree."""
        import numpy as np

        try:
            return {name: np.array(t.data, "str" if t.dtype == "string" else t.dtype).reshape(t.shape) for name, t in self.outputs.items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise DeviceError(f"the device answers with a tensor that is none: {error}", "is its agent of another version?") from error


class Freed(Reply):
    freed_bytes: Count = 0


class Held(Reply):
    held: dict[str, Count]


class Running(Reply):
    """``digest``: which agent answers, where set-up put it there."""

    digest: Text | None = None


class Launcher(Reply):
    changed: bool


Kind = TypeVar("Kind", bound=Reply)
JobKind = TypeVar("JobKind", bound=Job)


def framed(stdout: bytes) -> dict[str, Any] | None:
    """The last line that carries our frame, whatever a banner or a .bashrc printed around it, line ends or not. None where there is none."""
    for line in reversed(stdout.splitlines()):
        _, frame, text = line.partition(FRAME)
        if frame:
            try:
                document = json.loads(text)
            except (ValueError, RecursionError):
                return None
            return document if isinstance(document, dict) else None
    return None


def parse(kind: type[Kind], document: dict[str, Any], host: str) -> Kind:
    """The document as that type. Raises DeviceError."""
    try:
        return kind.model_validate(document, context={"host": host})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DeviceError(f"`{host}` gives an answer that makes no sense: {printable(where)}: {first['msg']}", "is its agent of another version?") from error
