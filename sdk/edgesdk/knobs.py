"""What `tune` turns: settings of a session that change its speed and, but for rounding, none of its answers.

    knobs = knobs_of(profile, cores=4, providers=["CPUExecutionProvider"])
    applied(profile, {"intra_op_threads": 2, "allow_spinning": False}).runtime.intra_op_threads

A change is a dict: keys of a profile's `[runtime]`, or `NAME:OPTION` for an option of an execution provider. It says only what is other than
in the profile. Formats that round more (TF32, float16) are no business of a knob: they cost accuracy, which `package` judges.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgesdk.profiles import Profile

Change = Mapping[str, Any]

# Of each provider, its options and their values, onnxruntime's own first: what is worth trying.
# Sources: onnxruntime's pages of execution providers (CUDA, TensorRT, OpenVINO, XNNPACK, CoreML are those with such options).
PROVIDER_OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "CUDAExecutionProvider": {
        "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        "cudnn_conv_use_max_workspace": ("1", "0"),
        "prefer_nhwc": ("0", "1"),
    },
    "TensorrtExecutionProvider": {"trt_builder_optimization_level": ("3", "5"), "trt_auxiliary_streams": ("-1", "0")},
    "OpenVINOExecutionProvider": {"num_streams": ("1", "2")},
}
THREADED_OPTIONS = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}  # values: numbers of threads


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing to turn, and the changes that it can make: never what the profile says already."""

    name: str
    changes: tuple[Change, ...]


def knobs_of(profile: Profile, *, cores: int, providers: Sequence[str]) -> list[Knob]:
    """Those that a device with so many cores and these execution providers has."""
    runtime = profile.runtime
    given = runtime.intra_op_threads or cores
    threads = [count for count in _counts(cores) if count != given]
    beside = [(mode, count) for mode, count in [("sequential", 1), *(("parallel", count) for count in _counts(cores)[1:])]]
    now = (runtime.execution, runtime.inter_op_threads if runtime.execution == "parallel" else 1)
    found = [
        Knob("threads", tuple({"intra_op_threads": count} for count in threads)),
        Knob("spinning", ({"allow_spinning": not runtime.allow_spinning},) if cores > 1 else ()),
        Knob("arena", ({"memory_arena": not runtime.memory_arena},)),
        Knob("execution", tuple({"execution": mode, "inter_op_threads": count} for mode, count in beside if (mode, count) != now)),
        Knob("graph", tuple({"graph_optimization": level} for level in ("all", "extended", "basic", "none") if level != runtime.graph_optimization)),
        *_of_provider(profile, cores, providers),
    ]
    return [knob for knob in found if knob.changes]


def applied(profile: Profile, change: Change) -> Profile:
    """The profile with that."""
    runtime = {key: value for key, value in change.items() if ":" not in key}
    options: dict[str, dict[str, str]] = {}
    for key, value in change.items():
        name, _, option = key.partition(":")
        if option:
            options.setdefault(name, {})[option] = value
    providers = tuple(each.model_copy(update={"options": {**each.options, **options.get(each.name, {})}}) for each in profile.providers)
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update=runtime), "providers": providers})


def joined(changes: Sequence[Change]) -> dict[str, Any]:
    """Those of several knobs at once."""
    return {key: value for change in changes for key, value in change.items()}


def of_one(change: Change) -> dict[str, Any]:
    """What one question that comes alone feels of it.

    >>> of_one({"intra_op_threads": 2, "max_batch": 8})
    {'intra_op_threads': 2}
    """
    return {key: value for key, value in change.items() if key != "max_batch"}


def key_of(change: Change) -> str:
    """The same text for the same change."""
    return json.dumps(change, sort_keys=True)


def in_words(change: Change) -> str:
    """As a person reads it.

    >>> in_words({"intra_op_threads": 2, "allow_spinning": False})
    'intra_op_threads 2, allow_spinning off'
    """
    words = {True: "on", False: "off"}
    return ", ".join(f"{key} {words[value] if isinstance(value, bool) else value}" for key, value in change.items()) or "as the profile says"


def alike(profile: Profile, change: Change, *, cores: int) -> Change:
    """The same without what has no effect: one thread does not wait for itself. What is left equal runs equal."""
    runtime = applied(profile, change).runtime
    alone = (runtime.intra_op_threads or cores) == 1 and runtime.execution == "sequential"
    return {key: value for key, value in change.items() if not (alone and key == "allow_spinning")}


def _of_provider(profile: Profile, cores: int, there: Sequence[str]) -> Iterator[Knob]:
    """Of the profile's first one that is there: the others run what it leaves."""
    first = next((each for each in profile.providers if each.name in there), None)
    if first is None:
        return
    for option, values in PROVIDER_OPTIONS.get(first.name, {}).items():
        given = first.options.get(option, values[0])
        yield Knob(option, tuple({f"{first.name}:{option}": value} for value in values if value != given))
    if threads := THREADED_OPTIONS.get(first.name):
        given = first.options.get(threads, "")
        yield Knob(threads, tuple({f"{first.name}:{threads}": str(count)} for count in _counts(cores) if str(count) != given))


def _counts(cores: int) -> list[int]:
    """1, 2, 4 … and all of them.

    >>> _counts(6)
    [1, 2, 4, 6]
    """
    return sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})
