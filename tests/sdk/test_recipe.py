"""The recipe is chosen by evidence: fastest within the budget, else the float model, else nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgesdk import graph, profiles, recipe
from edgesdk.errors import BudgetMissed, ModelError
from edgesdk.progress import silent
from edgesdk.recipe import Choice, Plan


@dataclass(frozen=True)
class Speed:
    speedup: float

    @property
    def faster(self) -> bool:
        return self.speedup > 1.02

    def to_dict(self) -> dict[str, Any]:
        return {"speedup": self.speedup}


QUANTIZE = {"pass": "quantize", "settings": {}}
FLOAT, ALL, SOME = Plan("float32", "float32", ()), Plan("all", "int8", (QUANTIZE,)), Plan("some", "int8", (QUANTIZE,))


def choose(plans: list[Plan], drops: dict[str, float], speeds: dict[str, float] | None, broken: tuple[str, ...] = ()) -> Choice:
    """The choice where each plan's model, accuracy and speed are as given. Models are known by their graph's name."""

    def build(plan: Plan) -> tuple[Plan, graph.Model]:
        if plan.label in broken:
            raise ModelError("it cannot be built")
        model = graph.clone(MODEL)
        model.graph.name = plan.label
        return plan, model

    race = None if speeds is None else (lambda model: Speed(speeds[str(model.graph.name)]))
    return recipe.choose(plans, build=build, drop=lambda model: drops[str(model.graph.name)], race=race, max_drop=0.01, progress=silent)


MODEL = graph.load(Path(__file__).parents[1] / "data" / "resnet8_mnist.onnx")


def test_the_fastest_within_the_budget_is_taken() -> None:
    choice = choose([ALL, SOME, FLOAT], {"all": 0.0, "some": 0.0, "float32": 0.0}, {"all": 1.5, "some": 1.2})
    assert choice.plan is ALL


def test_a_faster_one_beyond_the_budget_is_passed_over_and_says_why() -> None:
    choice = choose([ALL, SOME, FLOAT], {"all": 0.2, "some": 0.005, "float32": 0.0}, {"all": 1.5, "some": 1.2})
    assert choice.plan is SOME
    assert "loses 0.2000" in choice.tried[0].note


def test_int8_that_is_not_faster_loses_to_float() -> None:
    choice = choose([ALL, SOME, FLOAT], {"all": 0.0, "some": 0.0, "float32": 0.0}, {"all": 0.6, "some": 1.01})
    assert choice.plan is FLOAT
    assert choice.tried[0].note == "not faster than float32"
    assert choice.tried[0].drop is None  # nobody had to evaluate it


def test_without_a_measurement_the_profiles_order_decides() -> None:
    assert choose([ALL, FLOAT], {"all": 0.0, "float32": 0.0}, None).plan is ALL
    assert choose([FLOAT, ALL], {"all": 0.0, "float32": 0.0}, None).plan is FLOAT
    assert choose([ALL, FLOAT], {"all": 0.5, "float32": 0.0}, None).plan is FLOAT


def test_a_plan_that_cannot_be_built_is_told_and_passed_over() -> None:
    choice = choose([ALL, FLOAT], {"float32": 0.0}, None, broken=("all",))
    assert choice.plan is FLOAT
    assert choice.tried[0].note == "it cannot be built"


def test_nothing_within_the_budget_names_the_closest() -> None:
    with pytest.raises(BudgetMissed, match="cannot be kept") as missed:
        choose([ALL, SOME], {"all": 0.2, "some": 0.05}, None)
    assert "0.0500" in missed.value.hint


def test_int8_plans_need_calibration_and_shrink_from_one_to_the_next() -> None:
    profile = profiles.find("x86-cpu")
    with_samples = [plan for plan in recipe.plans(profile, calibrated=True, shapes={}) if plan.scheme == "int8"]
    sizes = [len(plan.steps[-1]["settings"]["operators"]) for plan in with_samples]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes) == 3
    assert [plan.scheme for plan in recipe.plans(profile, calibrated=False, shapes={})] == ["float32"]


def test_shapes_are_fixed_where_the_profile_wants_that() -> None:
    first = recipe.float_plan(profiles.find("fpga-vitis"), {"x": [1, 3]}).steps[0]
    assert first == {"pass": "fix_shapes", "settings": {"shapes": {"x": [1, 3]}}}
    assert all(step["pass"] != "fix_shapes" for step in recipe.float_plan(profiles.find("x86-cpu"), {"x": [1, 3]}).steps)
