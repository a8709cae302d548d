"""What the report reads besides devices and results: a bundle with what was measured of it, `inspect --json`, `package --json`, `compare --json`.

    documents.read(Path("bundles/ocr"))           # (Bundled(…),)
    documents.read(Path("inspected.json"))        # (Inspected(…),)

Parsed once, on arrival. Whoever wrote the file may not mean well: texts are cut short and made printable, numbers are finite.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field, ValidationError, model_validator

from edge_agent.bundle import Layout
from edgesdk import inspection, results
from edgesdk.errors import ResultError
from edgesdk.replies import Reply, Text, printable
from edgesdk.results import Result

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Interval = tuple[Number, Number]

HINT = "give a bundle, a model, or the JSON of bench, compare, evaluate, inspect, package or tune"
_MOST_BYTES = 64 << 20


class Step(Reply):
    """One pass of a recipe."""

    name: Text = Field(alias="pass")
    settings: dict[Text, Any] = Field(default_factory=dict)


class Speed(Reply):
    """Of a candidate, against the best float model."""

    before_ms: Number
    after_ms: Number
    speedup: Number
    low: Number
    high: Number
    runs: Count = 0


class Tried(Reply):
    """A candidate of the search. ``selection_drop``: of accuracy, None where nobody had to score it."""

    label: Text
    scheme: Text = ""
    speed: Speed | None = None
    selection_drop: Number | None = None
    note: Text = ""


class Judged(Reply):
    """Original and result on the judging samples."""

    metric: Text
    before: Number
    after: Number
    drop: Number
    samples: Count = 0
    lost: Count = 0
    gained: Count = 0
    interval: Interval | None = None
    source: Text = ""


class Timed(Reply):
    """Original and result in pairs; None where this could not be measured."""

    before: Number | None = None
    after: Number | None = None
    speedup: Number | None = None
    interval: Interval | None = None
    runs: Count = 0
    device: Text | None = None
    host: Text | None = None
    threads: Count | None = None
    provider: Text | None = None


class Machine(Reply):
    """On which a bundle was made."""

    board: Text | None = None
    cpu_model: Text | None = None
    cores: Count | None = None
    memory_bytes: Count | None = None
    architecture: Text | None = None
    governor: Text | None = None
    temperature_c: Number | None = None

    @property
    def title(self) -> str:
        return self.board or self.cpu_model or self.architecture or ""


class Bundled(Reply):
    """A packaged model and its evidence: of a bundle, or of `package --json`."""

    name: Text
    release: Count
    profile: Text
    digest: Text
    signed: bool | None = None  # by whom, `edgesdk verify` tells
    recipe: tuple[Step, ...] = ()
    size_bytes: dict[Text, Count] = Field(default_factory=dict)
    accuracy: Judged | None = None
    latency_ms: Timed = Timed()
    peak_rss_bytes: Count | None = None
    seconds: Number | None = None
    notes: tuple[Text, ...] = ()
    candidates: tuple[Tried, ...] = ()
    device: Machine = Machine()

    @property
    def title(self) -> str:
        return f"{self.name} {self.release} for {self.profile}"


class Operator(Reply):
    name: Text
    count: Count
    macs: Count | None = None


class Live(Reply):
    tensor: Text
    node: Text
    bytes: Count


class Memory(Reply):
    peak_bytes: Count
    node: Text
    tensors: tuple[Live, ...] = ()
    by_node: tuple[Count, ...] = ()


class Kernel(Reply):
    """``fused``: further nodes whose time is in this one."""

    node: Text
    operator: Text
    ms: Number
    share: Number
    fused: tuple[Text, ...] = ()
    provider: Text = ""


class Placed(Reply):
    """What ran where on a device."""

    host: Text
    device: Text = ""
    provider: Text = ""
    nodes: Text = ""
    share: Number | None = None
    fell: tuple[Text, ...] = ()


class Cut(Reply):
    nodes: Count
    of: Count
    macs_share: Number | None = None
    parts: Count = 0
    fell: tuple[Text, ...] = ()


class Weights(Reply):
    parameters: Count
    weight_bytes: Count = 0
    opset: Count = 0


class Inspected(Reply):
    """What `inspect` told of a model. ``title`` is the file's name: the document has none."""

    title: Text = ""
    summary: Weights
    macs: Count | None = None
    memory: Memory | None = None
    operators: tuple[Operator, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    profile: Text | None = None
    cut: Cut | None = None
    placement: Placed | None = None


class Compared(Reply):
    """The ratio of two latencies, before to after: 2 is twice as fast."""

    before: Text
    after: Text
    verdict: Text
    speedup: Number
    low: Number
    high: Number
    before_ms: Number | None = None
    after_ms: Number | None = None
    restarts: Count | None = None
    stopped: Text = ""
    device: Text = ""
    host: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_results(cls, document: Any) -> Any:
        """Two results that were compared afterwards have a number of restarts each, and medians by metric."""
        if not isinstance(document, dict) or not isinstance(document.get("medians"), dict):
            return document
        restarts, medians = document.get("restarts"), document["medians"].get(document.get("metric"))
        known = {"restarts": min(restarts) if restarts and isinstance(restarts, list) else None}
        if str(document.get("metric")).endswith("_ms") and isinstance(medians, list) and len(medians) == 2:
            known |= {"before_ms": medians[0], "after_ms": medians[1]}
        return {**document, **known}


class Change(Reply):
    """What `tune` tried. ``speedup``: above 1 is faster than the profile's settings; None where it did not run."""

    settings: dict[Text, Any] = Field(default_factory=dict)
    restarts: Count = 0
    speedup: Number | None = None
    ms: Number | None = None
    note: Text = ""


class Batch(Reply):
    """So many questions at once, as one instead of as two halves. ``speedup``: of the mean time until an answer."""

    rows: Count
    verdict: Text
    speedup: Number
    low: Number
    high: Number
    ms: Number | None = None
    restarts: Count = 0


class Tuned(Reply):
    """``settings``: what was chosen; ``candidate``: what was confirmed, or was not, with its interval."""

    name: Text
    host: Text | None = None
    device: Text = ""
    profile: Text = ""
    settings: dict[Text, Any] = Field(default_factory=dict)
    candidate: dict[Text, Any] = Field(default_factory=dict)
    verdict: Text
    speedup: Number
    low: Number
    high: Number
    before_ms: Number | None = None
    after_ms: Number | None = None
    restarts: Count = 0
    stopped: Text = ""
    tried: tuple[Change, ...] = ()
    batches: tuple[Batch, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.name} on {self.host or self.device}"


class Against(Reply):
    """The original on the same samples; the interval is of the drop."""

    name: Text = ""
    score: Number
    drop: Number
    interval: Interval | None = None
    lost: Count = 0
    gained: Count = 0


class Evaluated(Reply):
    """A score on a device. ``interval``: 95 %, None where the function gives one number."""

    name: Text
    release: Count | None = None
    metric: Text
    score: Number
    interval: Interval | None = None
    samples: Count | None = None
    against: Against | None = None
    host: Text | None = None
    device: Text = ""
    provider: Text | None = None
    nodes: Text | None = None
    source: Text = ""
    started: Text = ""


Document: TypeAlias = Bundled | Inspected | Compared | Tuned | Evaluated | Result
Kind = TypeVar("Kind", bound=Reply)


def read(path: Path) -> tuple[Document, ...]:
    """What there is in a file or folder; a model is inspected here and now. Raises ResultError, BundleError and ModelError."""
    if path.is_dir() or path.suffix == ".tar":
        return _bundles(path)
    if path.suffix == ".onnx":
        return (_parsed(Inspected, {**inspection.inspect(path).to_dict(), "title": path.stem}, path),)
    document = _json(path)
    if isinstance(document, list):  # `package --json` for several profiles
        return tuple(_parsed(Bundled, entry, path) for entry in document)
    if "kind" in document:
        return (_result(path),)
    if "verdict" in document:
        return (_parsed(Compared, document, path),)
    if "summary" in document:
        return (_parsed(Inspected, {**document, "title": Path(str(document.get("model") or path)).stem}, path),)
    if "bundle" in document or "candidates" in document:
        return (_parsed(Bundled, {**document, "signed": bool(document.get("signer"))}, path),)
    raise ResultError(f"`{path}` holds nothing that a report shows", HINT)


def _bundles(path: Path) -> tuple[Bundled, ...]:
    with Layout.open(path) as layout:
        found = []
        for profile, manifest in layout.manifests().items():
            described, evidence = layout.description(manifest), layout.evidence(manifest)
            known = {"name": described.name, "release": described.release, "profile": profile, "digest": manifest.digest}
            found.append(_parsed(Bundled, {**evidence, **known, "signed": layout.signature(manifest.digest) is not None}, path))
        return tuple(found)


def _result(path: Path) -> Document:
    document = results.read(path)
    if document["kind"] in ("bench", "sustained"):
        return results.load(path)
    if document["kind"] == "comparison":
        return _parsed(Compared, document, path)
    if document["kind"] == "tune":
        return _parsed(Tuned, document, path)
    return _parsed(Evaluated, document, path)


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ResultError(f"`{path}` is too large for a report", HINT)
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultError(f"`{path}` cannot be read: {error.strerror}", HINT) from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"`{path}` is no JSON", HINT) from error
    if not isinstance(document, dict | list):
        raise ResultError(f"`{path}` holds nothing that a report shows", HINT)
    return document


def _parsed(kind: type[Kind], document: Any, path: Path) -> Kind:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(str(part) for part in first["loc"]))
        raise ResultError(f"`{path}` is not what it seems to be: {where}: {first['msg']}", HINT) from error
