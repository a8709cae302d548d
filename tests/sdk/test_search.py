"""The recipe is chosen by evidence: fastest within the budget, else the float model, else nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from edgesdk import graph, passes, recipe, sampling, search
from edgesdk.accuracy import Loss
from edgesdk.errors import BudgetMissed, ModelError
from edgesdk.graph import Model
from edgesdk.progress import silent
from edgesdk.recipe import Plan
from edgesdk.regions import Costs, Group, Link
from edgesdk.search import Choice, Correction, Effort, Tools
from tests import digits

pytestmark = pytest.mark.slow  # a model is quantized some twenty times for each choice

STEPS = tuple({"pass": name, "settings": {}} for name in passes.SIMPLIFY)
SETTINGS = {"operators": ["Conv", "Add", "Gemm"], "activations": "uint8", "symmetric": False}
FLOAT, INT8 = Plan("float32", "float32", STEPS), Plan("int8", "int8", (*STEPS, {"pass": "quantize", "settings": SETTINGS}))
HALF = Plan("float16", "float16", (*STEPS, {"pass": "to_float16", "settings": {}}))
EFFORT = Effort(64, (0.25, 1.0, 4.0, 16.0, 64.0), 3, ("minmax",), (), 9)


@dataclass(frozen=True)
class Speed:
    speedup: float

    @property
    def low(self) -> float:
        return self.speedup - 0.01

    @property
    def faster(self) -> bool:
        return self.speedup > 1.02

    def to_dict(self) -> dict[str, Any]:
        return {"speedup": self.speedup}


class World:
    """A real model, whose 8-bit Convs each make it faster and cost accuracy as they are told to."""

    def __init__(self, *, drops: Sequence[float] = (0.0,) * 9, gains: Sequence[float] = (0.1,) * 9, half: float = 1.0, doubt: float = 0.0) -> None:
        self.model = graph.load(digits.MODEL)
        self.samples = sampling.of(list(sampling.generated(self.model, 2)), self.model)
        base = passes.apply(STEPS, self.model)
        self.convolutions = [str(node.name) for node in base.graph if node.op_type == "Conv"]
        assert len(self.convolutions) == 9
        self.drops, self.gains, self.half, self.doubt = drops, gains, half, doubt
        self.scored: list[str] = []

    def quantized(self, model: Model) -> list[int]:
        by_name = {str(node.name): node for node in model.graph}
        return [place for place, name in enumerate(self.convolutions) if (value := by_name[name].inputs[1]) is not None and value.producer() is not None]

    def build(self, plan: Plan) -> tuple[Plan, Model]:
        return plan, passes.apply(plan.steps, self.model, self.samples)

    def error(self, model: Model) -> float:
        return sum(self.drops[place] for place in self.quantized(model)) ** 1.5

    def loss(self, plan: Plan) -> Loss:
        self.scored.append(plan.label)
        return Loss(sum(self.drops[place] for place in self.quantized(self.build(plan)[1])), self.doubt)

    def race(self, model: Model) -> Speed:
        if any(value.dtype is not None and value.dtype.name == "FLOAT16" for node in model.graph for value in node.outputs):
            return Speed(self.half)
        return Speed(1 + sum(self.gains[place] for place in self.quantized(model)))

    def costs(self, _base: Model, _whole: Model, parts: Sequence[Group], links: Sequence[Link]) -> Costs:
        gained = [sum(self.gains[self.convolutions.index(name)] for name in part.nodes if name in self.convolutions) for part in parts]
        return Costs([max(gain, 0) for gain in gained], [max(-gain, 0) for gain in gained], [0.001] * len(links))

    def tools(self, *, timed: bool = True) -> Tools:
        macs = dict.fromkeys(self.convolutions, 1)
        return Tools(self.build, self.error, self.loss, self.race if timed else None, self.costs, lambda _base: macs)

    def choose(self, *options: Plan, timed: bool = True, least_share: float = 0.0, effort: Effort = EFFORT) -> Choice:
        return search.choose(options, self.tools(timed=timed), max_drop=0.01, least_share=least_share, effort=effort, progress=silent)


def test_all_of_it_is_taken_where_that_keeps_the_budget() -> None:
    world = World()
    choice = world.choose(INT8, FLOAT)
    assert choice.plan.label == "int8"
    assert world.scored == ["int8"]  # nobody had to evaluate the others


def test_what_costs_accuracy_stays_float_and_the_rest_is_quantized() -> None:
    world = World(drops=(0.3, 0.2, 0.0001, 0.0001, 0.0001, 0.0001, 0.0001, 0.0001, 0.0001))
    choice = world.choose(INT8, FLOAT)
    assert world.quantized(choice.model) == [2, 3, 4, 5, 6, 7, 8]
    assert "parts" in choice.plan.label
    assert "loses 0.5" in choice.tried[0].note


def test_what_gains_nothing_stays_float() -> None:
    world = World(gains=(0.2, 0.2, -0.5, 0.2, 0.2, 0.2, 0.2, 0.2, -0.5), drops=(0.0,) * 9)
    choice = world.choose(INT8, FLOAT)
    assert world.quantized(choice.model) == [0, 1, 3, 4, 5, 6, 7]


def test_int8_that_is_not_faster_loses_to_float_unscored() -> None:
    world = World(gains=(-0.01,) * 9)
    choice = world.choose(INT8, FLOAT)
    assert choice.plan is FLOAT
    assert choice.tried[0].note == "not faster than float32"
    assert world.scored == ["float32"]


class Nothing(World):
    """Whose model has nothing that any format can quantize."""

    def build(self, plan: Plan) -> tuple[Plan, Model]:
        return replace(plan, steps=STEPS), passes.apply(STEPS, self.model)


def test_where_there_is_nothing_to_quantize_one_format_says_so() -> None:
    choice = Nothing().choose(replace(INT8, label="dynamic-int8", scheme="dynamic-int8"), INT8, FLOAT)
    assert [candidate.plan.label for candidate in choice.tried] == [f"dynamic-int8: {search.NOTHING}"]
    assert choice.plan.scheme == "float32"


def test_between_a_cut_that_missed_and_one_that_held_others_are_tried() -> None:
    drops = tuple(0.0008 * (1 + place) for place in range(9))
    coarse = Effort(64, (0.25, 4096.0), 0, ("minmax",), (), 9)
    first = World(drops=drops).choose(INT8, FLOAT, effort=coarse)
    refined = World(drops=drops).choose(INT8, FLOAT, effort=Effort(64, (0.25, 4096.0), 6, ("minmax",), (), 9))
    assert len(World(drops=drops).quantized(refined.model)) > len(World(drops=drops).quantized(first.model))


def test_a_standard_error_is_kept_in_reserve_where_possible() -> None:
    close = (0.009, 0, 0, 0, 0, 0, 0, 0, 0)
    assert 0 not in World(drops=close, doubt=0.005).quantized(World(drops=close, doubt=0.005).choose(INT8, FLOAT).model)
    assert World(drops=(0.009 / 9,) * 9, doubt=0.02).choose(INT8).plan.label == "int8"  # where nothing has it, the budget alone decides


def test_what_stands_by_disturbs_the_answers_half_as_much_each() -> None:
    world = World(drops=(0.2, *(0.00001 * 2**place for place in range(8))))
    effort = Effort(64, (1.0, 300.0, 3e3, 3e4, 3e5), 0, ("minmax",), (Correction("reconstructed", {"reconstruct": True}),), 9)
    choice = world.choose(INT8, FLOAT, effort=effort)
    first, *others = choice.others
    assert first.steps[-1]["settings"] == {**choice.plan.steps[-1]["settings"], "reconstruct": True}
    errors = [world.error(world.build(plan)[1]) for plan in (choice.plan, *others)]
    assert others
    assert all(after <= before / 2 for before, after in pairwise(errors))


def test_without_a_measurement_the_options_order_decides() -> None:
    assert World().choose(INT8, FLOAT, timed=False).plan.scheme == "int8"
    assert World().choose(FLOAT, INT8, timed=False).plan is FLOAT
    assert World(drops=(1.0,) * 9).choose(INT8, HALF, FLOAT, timed=False).plan is HALF


def test_a_part_that_is_too_small_for_the_accelerator_is_no_cut() -> None:
    world = World(drops=(0.3,) * 8 + (0.0,))
    assert world.quantized(world.choose(INT8, timed=False).model) == [8]
    with pytest.raises(BudgetMissed, match="cannot be kept"):
        world.choose(INT8, timed=False, least_share=0.5)


def test_a_correction_is_tried_on_what_missed() -> None:
    class Corrected(World):
        def loss(self, plan: Plan) -> Loss:
            found = super().loss(plan)
            return Loss(found.drop / 10, 0.0) if plan.steps[-1]["settings"].get("reduce_range") else found

        def error(self, model: Model) -> float:
            return super().error(model) * (0.1 if self.reduced(model) else 1)

        def reduced(self, model: Model) -> bool:
            arrays = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None]
            return all(abs(array.astype(int)).max() < 127 for array in arrays if array.dtype == "int8" and array.ndim == 4)

    world = Corrected(drops=(0.005,) * 9)
    effort = Effort(64, (4096.0,), 0, ("minmax",), (Correction("reduced", {"reduce_range": True}),), 9)  # any setting that changes the file will do
    choice = world.choose(INT8, FLOAT, effort=effort)
    assert choice.plan.label == "int8, reduced"
    assert world.scored.count("int8, reduced") == 1


def test_the_float_model_is_scored_however_many_missed() -> None:
    class Endless(World):
        def build(self, plan: Plan) -> tuple[Plan, Model]:
            return plan, self.model if plan.scheme == "float32" else super().build(HALF)[1]

        def loss(self, plan: Plan) -> Loss:
            return Loss(0.0 if plan.scheme == "float32" else 1.0, 0.0)

        def error(self, _model: Model) -> float:
            return 0.0

    many = [Plan(f"half {place}", "float16", (*HALF.steps, *STEPS[:1] * place)) for place in range(search.MOST_SCORED + 4)]
    assert Endless(half=2.0).choose(*many, FLOAT).plan is FLOAT


def test_a_plan_that_cannot_be_built_is_told_and_passed_over() -> None:
    class Broken(World):
        def build(self, plan: Plan) -> tuple[Plan, Model]:
            if plan.scheme == "float16":
                raise ModelError("it cannot be built")
            return super().build(plan)

    choice = Broken().choose(HALF, FLOAT)
    assert choice.plan is FLOAT
    assert choice.tried[0].note == "it cannot be built"


def test_nothing_within_the_budget_names_the_closest() -> None:
    with pytest.raises(BudgetMissed, match="cannot be kept") as missed:
        World(drops=(0.05,) + (1.0,) * 8).choose(INT8, effort=Effort(64, (1.0, 1000.0), 0, ("minmax",), (), 9))
    assert "0.0500" in missed.value.hint or "--max-drop" in missed.value.hint


LADDER: list[recipe.Step] = [{"pass": "prune", "settings": {"macs": 1 - gone}} for gone in (0.2, 0.35, 0.5, 0.65, 0.8)]


class Prunable:
    """A world in words: what a plan loses and gains follows from its scheme and from the share that is pruned."""

    def __init__(self, *, bears: float, int8_bears: float | None = None, int8_speed: float = 1.5, faster: bool = True) -> None:
        self.bears, self.int8_bears, self.int8_speed, self.faster = bears, bears if int8_bears is None else int8_bears, int8_speed, faster
        self.plans: dict[int, Plan] = {}
        self.models: list[Model] = []
        self.scored: list[str] = []

    def build(self, plan: Plan) -> tuple[Plan, Model]:
        self.models.append(graph.load(digits.MODEL))
        self.plans[id(self.models[-1])] = plan
        return plan, self.models[-1]

    def gone(self, plan: Plan) -> float:
        return max((1 - float(step["settings"]["macs"]) for step in plan.steps if step["pass"] == "prune"), default=0.0)

    def loss(self, plan: Plan) -> Loss:
        self.scored.append(plan.label)
        return Loss(0.0 if self.gone(plan) <= (self.int8_bears if plan.scheme == "int8" else self.bears) + 1e-9 else 0.5, 0.0)

    def race(self, model: Model) -> Speed:
        plan = self.plans[id(model)]
        return Speed((self.int8_speed if plan.scheme == "int8" else 1.0) * (1 + self.gone(plan) * self.faster))

    def costs(self, _base: Model, _whole: Model, parts: Sequence[Group], links: Sequence[Link]) -> Costs:
        return Costs([0.0] * len(parts), [1.0] * len(parts), [0.0] * len(links))  # so that no part becomes 8-bit alone

    def choose(self, *, timed: bool = True, pruning_s: float = 240.0) -> Choice:
        tools = Tools(self.build, lambda _model: 0.0, self.loss, self.race if timed else None, self.costs, lambda _base: {})
        effort = Effort(64, (), 0, ("minmax",), (), 9, pruning_s)
        return search.choose([INT8, FLOAT], tools, max_drop=0.01, effort=effort, ladders=[LADDER], progress=silent)


@pytest.mark.parametrize("bears", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_as_many_channels_go_as_the_budget_bears_and_fewer_bits_come_on_top(bears: float) -> None:
    world = Prunable(bears=bears)
    choice = world.choose()
    assert world.gone(choice.plan) == pytest.approx(bears)
    assert [step["pass"] for step in choice.plan.steps][-2:] == ["prune", "quantize"]
    assert choice.scored <= search.MOST_PRUNED + 1


def test_what_misses_with_fewer_bits_is_no_reason_to_prune_more() -> None:
    world = Prunable(bears=0.35)
    assert world.gone(world.choose().plan) == pytest.approx(0.35)
    assert not any("80%" in label for label in world.scored)


def test_the_float_model_is_pruned_where_eight_bits_do_not_bear_it() -> None:
    world = Prunable(bears=0.8, int8_bears=0.1, int8_speed=1.3)
    assert world.choose().plan == FLOAT.pruned(LADDER[-1])


def test_what_is_no_faster_for_it_is_not_pruned_nor_scored() -> None:
    world = Prunable(bears=0.8, faster=False)
    assert not world.choose().plan.prunes
    assert world.scored == ["int8"]


def test_pruning_ends_when_its_time_is_up_and_says_so() -> None:
    world = Prunable(bears=0.8)
    choice = world.choose(pruning_s=0.0)
    assert world.gone(choice.plan) == pytest.approx(0.5)  # the first that is tried
    assert [world.gone(candidate.plan) for candidate in choice.tried if candidate.note.startswith("not tried")] == pytest.approx([0.8])


def test_nothing_is_pruned_that_cannot_be_timed() -> None:
    world = Prunable(bears=0.8)
    assert world.choose(timed=False).plan.scheme == "int8"
    assert not any(candidate.plan.prunes for candidate in world.choose(timed=False).tried)


def test_nothing_is_pruned_where_no_channel_can_go() -> None:
    world = Prunable(bears=0.0)
    choice = world.choose()
    assert choice.plan.label == "int8"
    assert any("loses" in candidate.note for candidate in choice.tried if candidate.plan.prunes)


@pytest.mark.parametrize(("looked", "again", "taken", "races"), [(1.06, 1.0, "float32", 1), (1.06, 1.05, "int8", 1), (1.5, 1.0, "int8", 0)])
def test_what_looked_a_bit_faster_is_timed_again(looked: float, again: float, taken: str, races: int) -> None:
    world, raced = World(), list[Model]()

    def race(model: Model) -> Speed:
        raced.append(model)
        return Speed(looked if len(raced) == 1 else again)

    tools = replace(world.tools(), race=race)
    found = search.choose([INT8, FLOAT], tools, max_drop=0.01, effort=replace(EFFORT, groups=1), progress=silent)
    assert found.plan.scheme == taken
    assert len(raced) == 1 + races
    assert [each.note for each in found.tried if each.plan.scheme == "int8"] == [search.ONCE if taken == "float32" else "taken"]


def test_what_does_not_run_when_it_is_timed_again_is_not_taken() -> None:
    world, raced = World(), list[Model]()

    def race(model: Model) -> Speed:
        raced.append(model)
        if len(raced) > 1:
            raise ModelError("it died", "")
        return Speed(1.06)

    found = search.choose([INT8, FLOAT], replace(world.tools(), race=race), max_drop=0.01, effort=replace(EFFORT, groups=1), progress=silent)
    assert (found.plan.scheme, found.tried[0].note) == ("float32", "it died")
