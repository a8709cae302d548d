"""One ONNX Runtime session: providers chosen, model opened, run, its errors translated.

session = open_session(folder, profile)          # the host too: this is how a device would run the model
session.run({"x": array})["y"]
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_agent import placement
from edge_agent.bundle import BundleError, TensorInfo
from edge_agent.errors import AgentError
from edge_agent.placement import CPU, Node
from edge_agent.protocol import ProtocolError

Array = NDArray[Any]

# onnxruntime's names of element types, and numpy's as bundle.json has them.
_DTYPES = {
    "bool": "bool",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "float16": "float16",
    "float": "float32",
    "double": "float64",
    "string": "string",
}
_WHERE = re.compile(r"/\S+\.(?:cc|h):\d+ [^()]*\([^()]*\) ")  # file, line and signature, which onnxruntime puts before what it has to say
_XNNPACK = "XnnpackExecutionProvider"
_QUIET = 3  # onnxruntime's severity: errors only


class SessionError(AgentError):
    """The model cannot be opened here, or did not run."""


class ProviderMissing(SessionError):
    """The profile refuses to run without a provider that this onnxruntime lacks."""


class BadFeeds(SessionError):
    """Inputs that are not what the model takes."""


@dataclass(frozen=True)
class Session:
    """An opened model. ``providers``: what onnxruntime really took, in order. ``nodes``: what ran where, as far as it tells."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    providers: list[str]
    nodes: str
    placed: tuple[Node, ...] | None  # the same, node by node; None where onnxruntime does not tell
    threads: int  # within an operator, as many as onnxruntime runs
    spins: bool  # its threads wait busily for the next run, for some 25 ms
    _handle: Any

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """The outputs by name: those asked for, else all. Raises SessionError; of it BadFeeds where the inputs are to blame."""
        names = list(outputs) or [output.name for output in self.outputs]
        try:
            return dict(zip(names, self._handle.run(names, dict(feeds))))
        except _runtime_errors() as error:
            blamed = type(error).__name__ == "InvalidArgument"
            raise (BadFeeds if blamed else SessionError)(f"onnxruntime could not run the model: {_first_line(error)}") from error

    def end_trace(self) -> Path:
        """The file that onnxruntime wrote of what it ran, now whole."""
        return Path(self._handle.end_profiling())


def open_session(folder: Path, profile: Mapping[str, Any], *, threads: int | None = None, optimize: bool = True, trace: Path | None = None) -> Session:
    """Open ``folder``/model.onnx as the profile wants it. ``{home}`` in a provider's options becomes ``folder``/cache.

    ``trace``: how the files begin into which onnxruntime writes what its kernels take.

    Raises ProviderMissing, or SessionError if onnxruntime does not take the model.
    """
    import onnxruntime

    wanted = threads if threads is not None else int(profile.get("runtime", {}).get("intra_op_threads", 0))
    chosen = choose_providers(profile, onnxruntime.get_available_providers())
    onnxruntime.set_default_logger_severity(_QUIET)
    allowed = os.sched_getaffinity(0)
    cores, all_allowed = cores_of(allowed)
    # Without a number onnxruntime takes all cores that there are, those too on which this process may not run.
    options = _session_options(profile, wanted or (0 if all_allowed else cores), optimize=optimize)
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    handle = _opened(folder, profile, chosen, options)
    taken = handle.get_providers()
    if chosen[0]["name"] not in taken:  # onnxruntime has it, and it does not work here
        _missing(profile, chosen[0]["name"], taken)
    placed = placement.nodes_of(handle)
    return Session(
        tuple(map(_info, handle.get_inputs())),
        tuple(map(_info, handle.get_outputs())),
        taken,
        placement.in_words(placed, taken),
        placed,
        threads := wanted or cores,
        _spins(profile, threads, taken),
        handle,
    )


def cores_of(processors: Collection[int], root: Path = Path("/")) -> tuple[int, bool]:
    """On how many cores these logical processors lie, and whether they are all that there are. Two threads of one core are one: so onnxruntime counts, too."""
    alike: dict[int, str] = {}
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*"):
        try:
            alike[int(folder.name[3:])] = (folder / "topology" / "thread_siblings_list").read_text().strip()
        except (OSError, ValueError):
            continue  # switched off
    return len({alike.get(number, str(number)) for number in processors}), set(processors) >= set(alike)


def _opened(folder: Path, profile: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]], options: Any) -> Any:
    """With those providers; without the first of them where it fails and the profile lets that be. Raises SessionError."""
    import onnxruntime

    cache = folder / "cache"
    kept = _ready_cache(cache, onnxruntime.__version__) if any(map(_caches, chosen)) else False
    try:
        return onnxruntime.InferenceSession(
            str(folder / "model.onnx"),
            options,
            providers=[entry["name"] for entry in chosen],
            provider_options=[{key: value.replace("{home}", str(cache)) for key, value in entry.get("options", {}).items()} for entry in chosen],
            enable_fallback=0,  # else a provider that fails, even in the middle of a request, is silently the CPU
        )
    except _runtime_errors() as error:
        if kept:  # power failed while it was written, or it is another machine's after all
            _drop_cache(cache)
            return _opened(folder, profile, chosen, options)
        if len(chosen) > 1 and _rule(profile) != "refuse":
            return _opened(folder, profile, chosen[1:], options)
        raise SessionError(
            f"onnxruntime {onnxruntime.__version__} cannot open the model: {_first_line(error)}", "does this version read the model's opset?"
        ) from error


def _caches(entry: Mapping[str, Any]) -> bool:
    return any("{home}" in value for value in entry.get("options", {}).values())


def _ready_cache(cache: Path, version: str) -> bool:
    """Whether it holds what was compiled on this machine; what another left is dropped. Raises SessionError."""
    from edge_agent import engines  # only where a provider compiles: workers carry nothing that they do not need

    try:
        if engines.keep(cache, version):
            os.write(2, b"warning: what was compiled for another driver, device or onnxruntime is dropped, and compiled again\n")
        return engines.compiled(cache)
    except OSError as error:
        raise _unusable(cache, error) from error


def _drop_cache(cache: Path) -> None:
    """Raises SessionError."""
    from edge_agent import engines

    os.write(2, b"warning: what was compiled before does not open, and is compiled again\n")
    try:
        engines.drop(cache)
    except OSError as error:
        raise _unusable(cache, error) from error


def _unusable(cache: Path, error: OSError) -> SessionError:
    return SessionError(f"what is compiled for this device cannot be kept in {cache}: {error.strerror}", "free some space, or remove that folder")


def choose_providers(profile: Mapping[str, Any], available: Sequence[str]) -> list[dict[str, Any]]:
    """Those of the profile that are there, in its order; the CPU's where none is. Raises ProviderMissing if the profile refuses that."""
    wanted = profile.get("providers") or [{"name": CPU}]
    if wanted[0]["name"] not in available:
        _missing(profile, wanted[0]["name"], available)
    return [entry for entry in wanted if entry["name"] in available] or [{"name": CPU}]


def conform(feeds: Mapping[str, Array], inputs: Sequence[TensorInfo]) -> None:
    """Check names, dtypes and shapes before the runtime sees them. Raises ProtocolError that says what was expected and what came."""
    expected = {info.name: info for info in inputs}
    unknown = [name[:80] for name in feeds if name not in expected]
    lacking = [name for name in expected if name not in feeds]
    if unknown or lacking:
        raise ProtocolError(
            f"the model's inputs are {_listed(expected)}; {_listed(lacking) + ' is missing' if lacking else _listed(unknown) + ' is none of them'}"
        )
    for name, info in expected.items():
        array = feeds[name]
        dtype = "string" if array.dtype.kind in "OUS" else array.dtype.name
        fits = array.ndim == len(info.shape) and all(want is None or want == have for want, have in zip(info.shape, array.shape))
        if dtype != info.dtype or not fits:
            raise ProtocolError(f"the input `{name}` is {info.dtype} {_shape(info.shape)}, {dtype} {_shape(array.shape)} came")


def open_deployment(folder: Path) -> Session:
    """As it was activated. Raises SessionError or BundleError."""
    return open_session(folder, read_profile(folder, as_profile=_tried_as_another(folder)))


def read_profile(folder: Path, *, as_profile: bool) -> dict[str, Any]:
    """profile.json. ``as_profile``: somebody wants to try another device's profile here, so it refuses nothing. Raises BundleError."""
    try:
        profile: dict[str, Any] = json.loads((folder / "profile.json").read_bytes())
        if as_profile:
            profile = {**profile, "runtime": {**profile.get("runtime", {}), "on_missing_provider": "fallback"}, "deployable": True}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"the bundle's profile cannot be read: {error}", "package the model again") from error
    return profile


def _tried_as_another(folder: Path) -> bool:
    """What was decided when this was activated: deployment.json."""
    try:
        return bool(json.loads((folder / "deployment.json").read_bytes())["as_profile"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _session_options(profile: Mapping[str, Any], threads: int, *, optimize: bool) -> Any:
    import onnxruntime

    runtime = profile.get("runtime", {})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    levels = onnxruntime.GraphOptimizationLevel
    options.execution_mode = _chosen(
        runtime, "execution", {"sequential": onnxruntime.ExecutionMode.ORT_SEQUENTIAL, "parallel": onnxruntime.ExecutionMode.ORT_PARALLEL}
    )
    options.graph_optimization_level = _chosen(
        runtime,
        "graph_optimization",
        {"all": levels.ORT_ENABLE_ALL, "extended": levels.ORT_ENABLE_EXTENDED, "basic": levels.ORT_ENABLE_BASIC, "none": levels.ORT_DISABLE_ALL},
    )
    options.inter_op_num_threads = int(runtime.get("inter_op_threads", 1))
    options.intra_op_num_threads = threads
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "1" if runtime.get("allow_spinning", True) else "0")
    options.add_session_config_entry("session.disable_prepacking", "0" if runtime.get("prepacking", True) else "1")
    options.enable_cpu_mem_arena = bool(runtime.get("memory_arena", True))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # from 1.24 on; unknown keys are ignored
    if not optimize:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    return options


def _spins(profile: Mapping[str, Any], threads: int, taken: Sequence[str]) -> bool:
    runtime = profile.get("runtime", {})
    several = threads > 1 or (runtime.get("execution") == "parallel" and int(runtime.get("inter_op_threads", 1)) != 1)
    return (several and bool(runtime.get("allow_spinning", True))) or (_XNNPACK in taken and _xnnpack_threads(profile) != "1")


def _xnnpack_threads(profile: Mapping[str, Any]) -> str:
    """Of a pool of its own (pthreadpool), whose threads wait busily for a million turns whatever is said to onnxruntime's."""
    options: Mapping[str, str] = next((entry.get("options", {}) for entry in profile.get("providers", []) if entry["name"] == _XNNPACK), {})
    return str(options.get("intra_op_num_threads", ""))


def _chosen(runtime: Mapping[str, Any], key: str, values: Mapping[str, Any]) -> Any:
    """What the profile says of it, else the first. Raises SessionError for a word that only a newer agent knows."""
    word = runtime.get(key, next(iter(values)))
    if word not in values:
        said = f"the profile wants `{key}` to be {str(word)[:40]!r}, and this agent knows {', '.join(values)}"
        raise SessionError(said, "update the agent: `edgesdk setup HOST`")
    return values[word]


def _rule(profile: Mapping[str, Any]) -> str:
    return str(profile.get("runtime", {}).get("on_missing_provider", "fallback"))


def _missing(profile: Mapping[str, Any], provider: str, there: Sequence[str]) -> None:
    """Obey the profile's rule."""
    rule = _rule(profile)
    if rule == "refuse":
        raise ProviderMissing(
            f"the profile {profile.get('name', '?')} wants {provider}, this onnxruntime offers {', '.join(there)}",
            "install the board's onnxruntime, package with a profile for this device, or try it with --as-profile",
        )
    if rule == "warn":
        os.write(2, f"warning: {provider} is not available here, the model runs on {', '.join(there)}\n".encode())


def _info(tensor: Any) -> TensorInfo:
    element = tensor.type[len("tensor(") : -1] if tensor.type.startswith("tensor(") else ""
    if element not in _DTYPES:
        raise SessionError(f"`{tensor.name}` is a {tensor.type}, which the agent cannot carry", "give the model plain tensors as inputs and outputs")
    return TensorInfo(tensor.name, _DTYPES[element], tuple(d if isinstance(d, int) and d >= 0 else None for d in tensor.shape))


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: classes of its own below Exception, and some of Python's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "NoSuchFile",
        "NoModel",
        "EngineError",
        "RuntimeException",
        "InvalidProtobuf",
        "ModelLoaded",
        "NotImplemented",
        "InvalidGraph",
        "EPFail",
    )
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError, ValueError, TypeError)


def _first_line(error: Exception) -> str:
    return _WHERE.sub("", " ".join(str(error).split()))[:300]


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shape(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if length is None else str(length) for length in shape) + "]"
