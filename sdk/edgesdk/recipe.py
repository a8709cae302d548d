"""Which passes for this model and this profile: candidates as data, and the choice by evidence.

    plans(profile, …)       what is worth trying, in the profile's order of preference
    choose(plans, …)        the fastest that keeps the budget; where speed cannot be measured, the first that keeps it

A recipe is a list of steps, `{"pass": name, "settings": {…}}`, which `passes.apply` replays. What this module must know it is
handed as functions: `build` makes a plan's model and leaves out the steps that changed nothing, `drop` scores it on the
selection samples, `race` times it against the best float model. It knows neither benchmark nor device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgesdk import passes
from edgesdk.errors import BudgetMissed, ModelError
from edgesdk.graph import Model
from edgesdk.passes.quantize import SETTINGS
from edgesdk.profiles import Profile, Scheme
from edgesdk.progress import Progress

Step = dict[str, Any]

MATRIX_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")
NOTHING = "there is nothing to quantize"


class Speed(Protocol):
    """A candidate's latency against the best float model's, in pairs."""

    @property
    def speedup(self) -> float: ...
    @property
    def faster(self) -> bool: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """One thing to try: its steps in order, under the name that a person reads."""

    label: str
    scheme: Scheme
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What became of a plan. ``note`` says in words why it was or was not taken."""

    plan: Plan
    model: Model | None = None
    speed: Speed | None = None
    drop: float | None = None  # on the selection samples
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.plan.label, "speed": self.speed.to_dict() if self.speed else None, "selection_drop": self.drop, "note": self.note}


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidate that is taken, and all that were tried, in order."""

    plan: Plan
    model: Model
    tried: tuple[Candidate, ...]


def plans(profile: Profile, *, calibrated: bool, shapes: dict[str, list[int]]) -> list[Plan]:
    """What is worth trying for a profile, in its order of preference. ``shapes`` fix the inputs where the profile wants that.

    int8 needs calibration samples; each int8 plan quantizes less than the one before it.
    """
    simplified = float_plan(profile, shapes)
    prepare = simplified.steps
    made = {
        "float32": [simplified],
        "float16": [Plan("float16", "float16", (*prepare, {"pass": "to_float16", "settings": {"keep_float32": list(profile.quantization.keep_float32)}}))],
        "int8": [
            Plan(label, "int8", (*prepare, {"pass": "quantize", "settings": _int8(profile, operators)}))
            for label, operators in _operator_sets(profile.quantization.operators)
            if calibrated
        ],
    }
    return [plan for scheme in profile.quantization.schemes for plan in made[scheme]]


def float_plan(profile: Profile, shapes: dict[str, list[int]]) -> Plan:
    """The best float32 file: the exact passes only."""
    simplify = tuple({"pass": name, "settings": {}} for name in passes.SIMPLIFY)
    fixed = ({"pass": "fix_shapes", "settings": {"shapes": shapes}},) if profile.graph.static_shapes else ()
    return Plan("float32", "float32", (*fixed, *simplify))


def scheme_of(steps: Sequence[Step]) -> Scheme:
    """The number format that a recipe ends in."""
    used = {step["pass"] for step in steps}
    return "int8" if "quantize" in used else "float16" if "to_float16" in used else "float32"


def choose(
    candidates: Sequence[Plan],
    *,
    build: Callable[[Plan], tuple[Plan, Model]],
    drop: Callable[[Model], float],
    race: Callable[[Model], Speed] | None,
    max_drop: float,
    progress: Progress,
) -> Choice:
    """Build, time and score the plans. ``race`` is None where this machine says nothing about the profile's hardware.

    The fastest within the budget wins if it beats the float model; the float model is taken where none does. Without ``race``
    the first within the budget wins. Raises BudgetMissed if no plan is within it.
    """
    tried: list[Candidate] = []
    for index, plan in enumerate(candidates):
        progress("try recipes", index, len(candidates))
        if plan.scheme == "int8" and any(candidate.plan.label.endswith(NOTHING) for candidate in tried):
            continue  # it would quantize less than nothing
        tried.append(_attempt(plan, build, race))
        if race is None and tried[-1].model is not None:
            tried[-1] = _scored(tried[-1], drop, max_drop)
            if not tried[-1].note:
                break
    if race is not None:
        tried = _scored_by_speed(tried, drop, max_drop)
    progress("try recipes", len(candidates), len(candidates))
    for candidate in sorted(tried, key=_speedup, reverse=True):
        if candidate.model is not None and candidate.drop is not None and not candidate.note:
            taken = replace(candidate, note="taken")
            return Choice(candidate.plan, candidate.model, tuple(taken if c is candidate else replace(c, model=None) for c in tried))
    raise BudgetMissed(*_missed(tried, max_drop))


def _attempt(plan: Plan, build: Callable[[Plan], tuple[Plan, Model]], race: Callable[[Model], Speed] | None) -> Candidate:
    try:
        plan, model = build(plan)
    except ModelError as error:
        return Candidate(plan, note=str(error))
    if plan.scheme == "int8" != scheme_of(plan.steps):
        plan = replace(plan, label=f"{plan.label}: {NOTHING}", scheme="float32")
    if race is None or plan.scheme == "float32":
        return Candidate(plan, model)
    speed = race(model)
    return Candidate(plan, model, speed, note="" if speed.faster else "not faster than float32")


def _scored_by_speed(tried: list[Candidate], drop: Callable[[Model], float], max_drop: float) -> list[Candidate]:
    """Score the fastest first and stop at the first within the budget: the others could only be slower."""
    scored = {id(candidate): candidate for candidate in tried}
    for candidate in sorted(tried, key=_speedup, reverse=True):
        if candidate.model is not None and not candidate.note:
            scored[id(candidate)] = result = _scored(candidate, drop, max_drop)
            if not result.note:
                break
    return [scored[id(candidate)] for candidate in tried]


def _scored(candidate: Candidate, drop: Callable[[Model], float], max_drop: float) -> Candidate:
    assert candidate.model is not None
    lost = drop(candidate.model)
    return replace(candidate, drop=lost, note="" if lost <= max_drop else f"loses {lost:.4f}, more than {max_drop:g}")


def _speedup(candidate: Candidate) -> float:
    return candidate.speed.speedup if candidate.speed else 1.0


def _int8(profile: Profile, operators: tuple[str, ...]) -> dict[str, Any]:
    return {**profile.quantization.model_dump(include=set(SETTINGS)), "operators": list(operators)}


def _operator_sets(operators: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """From all that the profile quantizes down to convolutions; a set that equals the one before it is left out."""
    products = tuple(op for op in operators if op in MATRIX_PRODUCTS)
    convolutions = tuple(op for op in operators if op in CONVOLUTIONS)
    sets = [("int8", operators), ("int8, convolutions and matrix products", products), ("int8, convolutions", convolutions)]
    return [(label, chosen) for index, (label, chosen) in enumerate(sets) if chosen and (not index or chosen != sets[index - 1][1])]


def _missed(tried: list[Candidate], max_drop: float) -> tuple[str, str]:
    """The sentence and the hint when nothing keeps the budget."""
    story = "; ".join(f"{candidate.plan.label}: {candidate.note}" for candidate in tried) or "there was nothing to try"
    drops = [candidate.drop for candidate in tried if candidate.drop is not None]
    if not drops:
        return f"no recipe of this profile works for this model ({story})", "give --calibration samples, or take another profile"
    closest = min(drops)
    allow = f"allow it with --max-drop {max(closest, 0) * 1.05 + 1e-4:.4f}, or " if closest < 0.1 else ""
    return (
        f"the accuracy budget of {max_drop:g} cannot be kept ({story})",
        f"the closest loses {closest:.4f}: {allow}take a profile that may keep float32, such as the CPU of that board: `edgesdk profile list`",
    )
