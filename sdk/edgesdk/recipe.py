"""Recipes: the ordered passes with their settings, and which are worth trying for a profile.

    plans(profile, model, calibrated=True, shapes={})        # in the profile's order of preference

A recipe is a list of steps, `{"pass": name, "settings": {…}}`, which `passes.apply` replays. Which plan becomes the recipe of a
model is found out by `search`.
"""

import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge_agent.bundle import Layout
from edgesdk import graph, passes, profiles
from edgesdk.errors import ProfileError, ProjectError
from edgesdk.graph import Model
from edgesdk.passes.quantize import SETTINGS
from edgesdk.profiles import Profile, Scheme

Step = dict[str, Any]

PRUNING = ("prune", "prune_two_of_four")
FORMATS = {"quantize", "to_float16", "quantize_dynamic", "quantize_weights"}  # the passes that change the number format
_EXACT = {"fix_shapes", *passes.SIMPLIFY}
PRODUCTS = ("MatMul", "Gemm", "Gather")  # Gather: tables of embeddings, often most of a file


@dataclass(frozen=True, slots=True)
class Plan:
    """One thing to try: its steps in order, under the name that a person reads."""

    label: str
    scheme: Scheme
    steps: tuple[Step, ...]

    @property
    def prunes(self) -> bool:
        return any(step["pass"] in PRUNING for step in self.steps)

    @property
    def exact(self) -> bool:
        """Whether its model answers what the original does, but for rounding."""
        return self.scheme == "float32" and not self.prunes

    def pruned(self, step: Step) -> "Plan":
        """The same with that pruning step after what is exact, before whatever makes the number format."""
        exact = next((place for place, each in enumerate(self.steps) if each["pass"] not in _EXACT), len(self.steps))
        return replace(self, label=f"{self.label}, {_told(step)}", steps=(*self.steps[:exact], step, *self.steps[exact:]))


def plans(profile: Profile, model: Model, *, calibrated: bool, shapes: dict[str, list[int]]) -> list[Plan]:
    """What is worth trying for a model and a profile, in the profile's order of preference. ``shapes`` fix the inputs where the profile wants that.

    int8 needs calibration samples. Without a convolution dynamic int8 comes before it: so onnxruntime advises for transformers and
    recurrent models ("Quantize ONNX Models", "Choosing between dynamic and static").
    """
    wanted = [scheme for scheme in profile.quantization.schemes if calibrated or scheme != "int8"]
    if {"int8", "dynamic-int8"} <= set(wanted) and not any(node.op_type in ("Conv", "ConvTranspose") for node in graph.nodes(model)):
        wanted.remove("dynamic-int8")
        wanted.insert(wanted.index("int8"), "dynamic-int8")
    simplified = float_plan(profile, shapes)
    return [
        Plan(label, scheme, (*simplified.steps, *steps)) if steps else simplified for scheme in wanted for label, steps in _last_steps(scheme, profile).items()
    ]


def float_plan(profile: Profile, shapes: dict[str, list[int]]) -> Plan:
    """The best float32 file: the exact passes only."""
    simplify = tuple({"pass": name, "settings": {}} for name in passes.SIMPLIFY)
    fixed = ({"pass": "fix_shapes", "settings": {"shapes": shapes}},) if profile.graph.static_shapes else ()
    return Plan("float32", "float32", (*fixed, *simplify))


def pruning(profile: Profile, wanted: float | Literal["2:4"]) -> Step:
    """The step that takes away such a share of the multiply-accumulates, or two of every four weights.

    Raises ProjectError for a share that is none, and ProfileError where the hardware has no use for zeros.
    """
    if wanted == "2:4":
        if not profile.pruning.two_four:
            having = [name for name in profiles.names() if profiles.find(name).pruning.two_four]
            raise ProfileError(f"`{profile.name}` has no hardware for 2:4 sparsity", f"a profile that has: {', '.join(having)}")
        return {"pass": "prune_two_of_four", "settings": {}}
    if not 0 < wanted < 1:
        raise ProjectError(f"{wanted:g} is no share of the multiply-accumulates that can go", "0.3 takes three tenths away; or auto, off, 2:4")
    return {"pass": "prune", "settings": {"macs": round(1 - wanted, 6), "multiple": profile.pruning.channel_multiple}}


def _told(step: Step) -> str:
    return "2:4 sparse" if step["pass"] == "prune_two_of_four" else f"{1 - step['settings']['macs']:.0%} of the MACs pruned"


def scheme_of(steps: Sequence[Step]) -> Scheme:
    """The number format that a recipe ends in."""
    last = next((step for step in reversed(steps) if step["pass"] in FORMATS), None)
    if last is None:
        return "float32"
    weights: Scheme = "weights-int4" if last["settings"].get("bits") == 4 else "weights-int8"
    made: dict[str, Scheme] = {"quantize": "int8", "to_float16": "float16", "quantize_dynamic": "dynamic-int8", "quantize_weights": weights}
    return made[last["pass"]]


def _last_steps(scheme: Scheme, profile: Profile) -> dict[str, tuple[Step, ...]]:
    """What makes the format of the simplified model, by what a person calls it."""
    wanted = profile.quantization
    settings: dict[str, tuple[str, dict[str, Any]] | None] = {
        "float32": None,
        "float16": ("to_float16", {"keep_float32": list(wanted.keep_float32)}),
        "int8": ("quantize", {**wanted.model_dump(mode="json", include=set(SETTINGS)), **({"reconstruct": True} if wanted.power_of_two else {})}),
        "dynamic-int8": ("quantize_dynamic", {"operators": [*PRODUCTS, "LSTM"], "per_channel": True, "reduce_range": wanted.reduce_range}),
        "dynamic-int8, one scale a tensor": (
            "quantize_dynamic",
            {"operators": [*PRODUCTS, "LSTM"], "per_channel": False, "reduce_range": wanted.reduce_range},  # LSTM's kernel: 1.5 times against 1.3
        ),
        "weights-int8": ("quantize_weights", {"bits": 8, "block_size": 128, "operators": list(PRODUCTS)}),
        "weights-int4": ("quantize_weights", {"bits": 4, "block_size": 128, "symmetric": False, "operators": list(PRODUCTS)}),
    }
    # One scale for all channels wants channels of one size (on PP-OCRv4 recognition 95 and 98 % of the lines, after reconstruction).
    before = ({"pass": "rewrite_for_dpu", "settings": {}}, {"pass": "equalize", "settings": {}}) if wanted.power_of_two else ()
    return {label: (*before, {"pass": asked[0], "settings": asked[1]}) if asked else () for label, asked in settings.items() if label.split(",")[0] == scheme}


_KEYS = ("pass", "settings")


def read(path: Path, profile: str) -> tuple[Step, ...]:
    """The steps in a `recipe.toml` or `.json`, or those of a bundle for that profile. Raises ProjectError."""
    try:
        if path.suffix == ".toml":
            steps = tomllib.loads(path.read_text(encoding="utf-8")).get("steps")
        elif path.suffix == ".json":
            steps = json.loads(path.read_bytes())
        else:
            with Layout.open(path) as layout:
                steps = json.loads(layout.blob(layout.manifests()[profile].layer("recipe.json").digest))
    except (OSError, ValueError, KeyError) as error:
        raise ProjectError(f"there is no recipe for `{profile}` in `{path}`: {error}", "give a recipe.toml, or a bundle that has this profile") from error
    steps = [{"settings": {}, **step} if isinstance(step, dict) else {} for step in steps] if isinstance(steps, list) else [{}]
    for number, step in enumerate(steps, 1):
        if strange := next((key for key in step if key not in _KEYS), None):
            raise ProjectError(f"`{path}`: step {number}: unknown key `{strange}`", f"a step has {' and '.join(_KEYS)}")
        if isinstance(step.get("pass"), str) and not _is_pass(step["pass"]):
            close = difflib.get_close_matches(step["pass"], passes.PASSES, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"the passes are {', '.join(passes.PASSES)}"
            raise ProjectError(f"`{path}`: step {number}: there is no pass `{step['pass']}`", hint)
    known = all(step.keys() == {"pass", "settings"} and _is_pass(step["pass"]) and isinstance(step["settings"], dict) for step in steps)
    if not known:
        raise ProjectError(f"`{path}` is no recipe", f"a list of steps, each a `pass` and its `settings`; the passes are {', '.join(passes.PASSES)}")
    return tuple(steps)


def _is_pass(name: Any) -> bool:
    return isinstance(name, str) and name in passes.PASSES


def to_toml(steps: Sequence[Step], comment: str) -> str:
    """The steps as a file to keep, to change and to replay. No steps: the model as it is."""
    told = [f"# {line}" for line in comment.splitlines()]
    if not steps:
        told += ["", "steps = []"]
    for step in steps:
        told += ["", "[[steps]]", f"pass = {_value(step['pass'])}"]
        told += [f"settings.{_value(name)} = {_value(value)}" for name, value in step["settings"].items()]
    return "\n".join(told) + "\n"


def _value(value: Any) -> str:
    """As TOML has it, which is as JSON has it but for tables and the last control character."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_value(name)} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
