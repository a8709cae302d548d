"""A profile: a hardware target as data. What it runs best, what it cannot run, how to recognise it.

    profile = find("raspberry-pi-5")
    profile.quantization.schemes        # what to try, the first when nothing can be measured
    recognise(facts)                    # the profiles that fit a device, the closest first

Profiles are TOML files typed by people: an unknown key is an error that names its path. The ones that come with edgesdk
say beside each value where it comes from. A profile of one's own is a path: `--profile boards/mine.toml`.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_agent.bundle import NAME
from edgesdk.errors import ProfileError
from edgesdk.explaining import first_problem

Scheme = Literal["float32", "int8", "float16", "dynamic-int8", "weights-int8", "weights-int4"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Recognise(_Table):
    """Facts that a device of this profile shows; all of those given must hold."""

    architecture: tuple[str, ...] = Field((), description="machine names as `uname -m` prints them")
    board: str = Field("", description="regular expression found in the device tree's model")
    files: tuple[str, ...] = Field((), description="files that exist there")
    cpu_features: tuple[str, ...] = Field((), description="flags of /proc/cpuinfo; `a|b`: one of them")


class Provider(_Table):
    """An ONNX Runtime execution provider with its options."""

    name: str
    options: dict[str, str] = Field(default_factory=dict, description="provider options; `{home}` becomes the model's cache folder on the device")


class Runtime(_Table):
    """How the agent runs a model."""

    on_missing_provider: Literal["refuse", "warn", "fallback"] = Field("fallback", description="what to do when the first provider is not installed")
    prefer_installed: bool = Field(default=False, description="keep the onnxruntime that the board's vendor installed, never send one")
    least_placed: float = Field(
        0.0, ge=0, le=1, description="share of the multiply-accumulates that the accelerator must run, not the CPU: else a device refuses; 0: none"
    )
    onnxruntime: str = Field("", description="the version that the board's vendor ships, where it is fixed")
    intra_op_threads: int = Field(0, ge=0, le=1024, description="threads within an operator; 0: one for each core")
    allow_spinning: bool = Field(default=True, description="threads wait busily: faster, and hot")
    prepacking: bool = Field(default=True, description="weights are copied as kernels like them; without, weights.bin stays mapped from the disk")
    max_batch: int = Field(1, ge=1, le=1024, description="rows of questions that wait at the same time and are run as one; 1: none")
    batch_wait_ms: float = Field(0.0, ge=0, le=1000, description="so long a question waits for others to be run with; 0: only for those that are there")
    memory_arena: bool = Field(default=True, description="memory of a run is kept for the next one; without, it is given back")
    execution: Literal["sequential", "parallel"] = Field("sequential", description="operators one after the other, or branches beside each other")
    inter_op_threads: int = Field(1, ge=1, le=1024, description="with `execution` parallel: operators that run at the same time")
    graph_optimization: Literal["all", "extended", "basic", "none"] = Field("all", description="how far onnxruntime rewrites the graph when it opens it")


class Quantization(_Table):
    """Which number formats to try, and what an int8 file for this hardware looks like."""

    schemes: tuple[Scheme, ...] = Field(
        ("float32",), min_length=1, description="to try, in order of preference; the first ships where speed cannot be measured"
    )
    activations: Literal["int8", "uint8", "int16", "uint16"] = "int8"
    symmetric: bool = Field(default=True, description="activations' zero points are the middle of their range")
    per_channel: bool = Field(default=True, description="one weight scale an output channel")
    reduce_range: bool = Field(default=False, description="7-bit weights: no saturation in 16-bit sums")
    power_of_two: bool = Field(default=False, description="every scale is 2 to a whole power; ranges of least squared error")
    bias: Literal["int32", "int8", "float32"] = Field("int32", description="what a bias is stored as")
    operators: tuple[str, ...] = Field(("Conv", "ConvTranspose", "Gemm", "MatMul"), description="operators whose inputs are quantized")
    outputs: bool = Field(default=True, description="what these operators answer is quantized too, as onnxruntime's integer kernels want it")
    least_share: float = Field(0.0, ge=0, le=1, description="share of the multiply-accumulates that must be 8-bit: what is not runs elsewhere")
    keep_float32: tuple[str, ...] = Field((), description="operators that stay float32 in a float16 model")


class Graph(_Table):
    """What a graph for this hardware must look like."""

    max_opset: int = Field(0, ge=0, description="newest opset that the board's runtime reads; 0: any")
    static_shapes: bool = Field(default=False, description="every dimension known, the batch included")
    accelerated: tuple[str, ...] = Field((), description="operators that the accelerator computes; empty: all")


class Pruning(_Table):
    """Granularity at which fewer channels mean less time."""

    channel_multiple: int = Field(1, ge=1)
    two_four: bool = Field(default=False, description="2:4 sparsity in hardware")


class Budget(_Table):
    """What the user will not give up, unless the command line says otherwise."""

    max_drop: float = Field(0.01, description="greatest loss of accuracy, in units of the metric")
    max_latency_ms: float | None = Field(None, gt=0)
    max_size_bytes: int | None = Field(None, gt=0)


class Profile(_Table):
    """A hardware target. ``name`` is its file's name."""

    name: str
    title: str
    extends: str = ""
    family: tuple[str, ...] = Field((), description="set by `extends`: the profiles that this one builds on, nearest first")
    deployable: bool = True
    reason: str = Field("", description="why it is not deployable")
    recognise: Recognise = Recognise()
    providers: tuple[Provider, ...] = Field(min_length=1)
    runtime: Runtime = Runtime()
    quantization: Quantization = Quantization()
    graph: Graph = Graph()
    pruning: Pruning = Pruning()
    budget: Budget = Budget()

    def to_dict(self) -> dict[str, Any]:
        """As it is written into a bundle, fit for JSON."""
        return self.model_dump(mode="json")


def folder() -> Path:
    """Where the profiles that come with edgesdk lie: inside the wheel, or in the checkout."""
    installed = Path(__file__).with_name("_profiles")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "profiles"


def names() -> list[str]:
    """The profiles that come with edgesdk, sorted."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def find(name: str | Path) -> Profile:
    """The profile of that name, or in that ``.toml`` file. Raises ProfileError."""
    name = str(name)
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        raise ProfileError(f"there is no profile `{name}`", f"did you mean `{close[0]}`?" if close else f"there are {', '.join(names())}; or give a .toml file")
    return load(path)


def load(path: Path) -> Profile:
    """Parse one file and what it extends. Raises ProfileError, naming the key."""
    merged, family = _merged(path, ())
    try:
        profile = Profile.model_validate({**merged, "name": path.stem, "family": family})
    except ValidationError as error:
        raise ProfileError(f"{path.name}: {first_problem(error, Profile)}") from error
    if not NAME.fullmatch(profile.name):
        raise ProfileError(f"{path.name}: a profile's name is its file's, and `{profile.name}` is no name", "lower-case letters, digits, `.`, `_` and `-`")
    try:
        re.compile(profile.recognise.board)
    except re.error as error:
        raise ProfileError(f"{path.name}: recognise.board: no regular expression: {error}") from error
    if not profile.deployable and not profile.reason:
        raise ProfileError(f"{path.name}: reason: missing", "`deployable = false` wants a sentence that says why")
    return profile


def limited(budget: Budget, said: dict[str, Any]) -> Budget:
    """The budget with what was said of it. Raises ProfileError for a limit that is none."""
    try:
        return Budget.model_validate({**budget.model_dump(), **said})
    except ValidationError as error:
        raise ProfileError(f"budget.{first_problem(error, Budget)}") from error


def parse(document: dict[str, Any], where: str) -> Profile:
    """A profile that a program wrote: `profile.json` of a bundle, from which nothing is left to inherit. Raises ProfileError."""
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        raise ProfileError(f"the profile in `{where}` says something that this edgesdk does not know", "update edgesdk, or package the model again") from error


def recognise(facts: dict[str, Any], among: Iterable[Profile] | None = None) -> list[Profile]:
    """The profiles whose facts the device shows (what `edge-agent probe` prints), the most specific first; of all that come with edgesdk, or ``among`` some."""
    fitting = [profile for profile in (map(find, names()) if among is None else among) if _fits(profile.recognise, facts)]
    return sorted(fitting, key=_specificity, reverse=True)


def resembles(profile: Profile, facts: dict[str, Any]) -> bool:
    """Whether a speed measured on the machine with these facts says something about the profile's hardware."""
    return _fits(profile.recognise, facts) and profile.providers[0].name in (facts.get("onnxruntime") or {}).get("providers", ["CPUExecutionProvider"])


def _fits(wanted: Recognise, facts: dict[str, Any]) -> bool:
    return (
        (not wanted.architecture or facts.get("architecture") in wanted.architecture)
        and (not wanted.board or re.search(wanted.board, facts.get("board", "")) is not None)
        and set(wanted.files) <= set(facts.get("files", []))
        and all(set(feature.split("|")) & set(facts.get("cpu_features", [])) for feature in wanted.cpu_features)
    )


def _specificity(profile: Profile) -> tuple[int, int]:
    wanted = profile.recognise
    return len(profile.family), bool(wanted.board) + len(wanted.files) + len(wanted.cpu_features)


def _merged(path: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The file's tables over those of what it extends, and the names of what it extends."""
    if path in below:
        raise ProfileError(f"{path.name}: extends: goes round in a circle")
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"the profile `{path}` cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path.name} is not TOML: {error}") from error
    for given in ("name", "family"):
        if given in own:
            raise ProfileError(f"{path.name}: {given}: cannot be set", "a profile's name is its file's name")
    parent = own.get("extends")
    if not parent:
        return own, ()
    base, family = _merged(_parent(str(parent), path), (*below, path))
    return _over(base, own), (str(parent), *family)


def _parent(name: str, path: Path) -> Path:
    """The file of that name beside ``path``, else the one that comes with edgesdk."""
    beside = path.with_name(f"{name}.toml")
    if beside.is_file():
        return beside
    if name not in names():
        hint = f"there are {', '.join(names())}; or a file beside it, without its `.toml`"
        raise ProfileError(f"{path.name}: extends: there is no profile `{name}`", hint)
    return folder() / f"{name}.toml"


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; anything else of ``own`` takes the place of ``base``'s."""
    merged = dict(base)
    for key, value in own.items():
        merged[key] = _over(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged
