"""Recipes: the ordered passes with their settings, and which are worth trying for a profile.

    plans(profile, calibrated=True, shapes={})        # in the profile's order of preference

A recipe is a list of steps, `{"pass": name, "settings": {…}}`, which `passes.apply` replays. Which plan becomes the recipe of a
model is found out by `search`.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.bundle import Layout
from edgesdk import passes
from edgesdk.errors import ProjectError
from edgesdk.passes.quantize import SETTINGS
from edgesdk.profiles import Profile, Scheme

Step = dict[str, Any]

# What the passes that change the number format make.
FORMATS: dict[str, Scheme] = {"quantize": "int8", "to_float16": "float16", "quantize_dynamic": "dynamic-int8", "quantize_weights": "weights-int8"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One thing to try: its steps in order, under the name that a person reads."""

    label: str
    scheme: Scheme
    steps: tuple[Step, ...]


def plans(profile: Profile, *, calibrated: bool, shapes: dict[str, list[int]]) -> list[Plan]:
    """What is worth trying for a profile, in its order of preference. ``shapes`` fix the inputs where the profile wants that.

    int8 needs calibration samples.
    """
    simplified = float_plan(profile, shapes)
    wanted = [scheme for scheme in profile.quantization.schemes if calibrated or scheme != "int8"]
    return [simplified if scheme == "float32" else Plan(scheme, scheme, (*simplified.steps, *_last_steps(scheme, profile))) for scheme in wanted]


def float_plan(profile: Profile, shapes: dict[str, list[int]]) -> Plan:
    """The best float32 file: the exact passes only."""
    simplify = tuple({"pass": name, "settings": {}} for name in passes.SIMPLIFY)
    fixed = ({"pass": "fix_shapes", "settings": {"shapes": shapes}},) if profile.graph.static_shapes else ()
    return Plan("float32", "float32", (*fixed, *simplify))


def scheme_of(steps: Sequence[Step]) -> Scheme:
    """The number format that a recipe ends in."""
    return next((FORMATS[step["pass"]] for step in reversed(steps) if step["pass"] in FORMATS), "float32")


def _last_steps(scheme: Scheme, profile: Profile) -> tuple[Step, ...]:
    """What makes the format of the simplified model."""
    settings = profile.quantization
    made: dict[Scheme, tuple[Step, ...]] = {
        "float16": ({"pass": "to_float16", "settings": {"keep_float32": list(settings.keep_float32)}},),
        "int8": ({"pass": "quantize", "settings": settings.model_dump(mode="json", include=set(SETTINGS))},),
    }
    return made[scheme]


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
    known = all(step.keys() == {"pass", "settings"} and step["pass"] in passes.PASSES and isinstance(step["settings"], dict) for step in steps)
    if not known:
        raise ProjectError(f"`{path}` is no recipe", f"a list of steps, each a `pass` and its `settings`; the passes are {', '.join(passes.PASSES)}")
    return tuple(steps)


def to_toml(steps: Sequence[Step], comment: str) -> str:
    """The steps as a file to keep, to change and to replay."""
    told = [f"# {line}" for line in comment.splitlines()]
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
