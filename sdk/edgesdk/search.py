"""The recipe that is chosen by evidence.

    choose(plans, tools, max_drop=0.01).plan

Every plan is built, timed and scored; the fastest that keeps the budget is taken. An int8 plan is tried as a whole and in parts:
how much each part of the graph alone disturbs the answers is measured, what it costs in float and in 8 bits is known from a
profiled run, and for a rising price of error the cheapest cut into float and 8-bit regions is computed (`regions`). The cuts lie
between all and nothing; where the budget runs out between two of them, more are made there, and what costs no time but wins
accuracy back is tried on those that missed. Where the budget then has room, the best and the float model are tried with ever fewer channels.
What this module must know it is handed as functions (`Tools`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Protocol

from edgesdk import regions
from edgesdk.accuracy import Loss
from edgesdk.calibration import METHODS, Method
from edgesdk.errors import BudgetMissed, ModelError
from edgesdk.graph import Model
from edgesdk.passes._sites import targets
from edgesdk.progress import Progress
from edgesdk.recipe import Plan, Step, scheme_of
from edgesdk.regions import Costs, Group, Link

NOTHING = "there is nothing to quantize"
ONCE = "not faster than float32 when it was timed again"
_BEYOND_LUCK = 1.1  # a lower bound that the luckiest of some thirty that are as fast as the float model does not reach
_HOPELESS = 2.0  # times the error of one that missed: nobody need score that
_CLEARLY = 0.9  # times as much: less by more than noise
_SAFER = 0.5  # times the error of one that did not hold before the judge
_NO_ERROR = 1e-12
_FAR = 64.0  # times: two prices between which nothing more is known
MOST_SCORED = 24  # evaluations, whatever there is to try
MOST_PRUNED = 6  # more of them, of what is pruned afterwards


class Speed(Protocol):
    """A candidate's latency against the best float model's, in pairs."""

    @property
    def speedup(self) -> float: ...
    @property
    def low(self) -> float: ...  # end of its interval
    @property
    def faster(self) -> bool: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What the search is handed."""

    build: Callable[[Plan], tuple[Plan, Model]]  # the plan's model, and the plan without the steps that changed nothing
    error: Callable[[Model], float]  # the noise in its answers against their power, on samples that calibration did not see
    loss: Callable[[Plan], Loss]  # on the selection samples
    race: Callable[[Model], Speed] | None  # against the best float model; None where nothing here tells the profile's speed
    costs: Callable[[Model, Model, Sequence[Group], Sequence[Link]], Costs]  # of the parts of a float and of an 8-bit model
    macs: Callable[[Model], dict[str, int]]  # multiply-accumulates by node


@dataclass(frozen=True, slots=True)
class Correction:
    """What costs no time on the device and wins accuracy back: settings of `quantize`, perhaps after another pass."""

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    after: str = ""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried."""

    groups: int  # parts whose effect is measured one by one
    prices: tuple[float, ...]  # of error, in units of what there is to gain
    refinements: int  # prices tried between the last that missed and the first that held
    methods: tuple[Method, ...]  # ways to choose ranges, the usual one first
    corrections: tuple[Correction, ...]
    formats: int  # other than float32 and float16, the profile's first
    pruning_s: float = 240.0  # once one step of the ladder was tried, none is begun that would probably end later


# In the order in which they were found to help (rec, mobilenet and resnet20 by both kinds of scheme): biases alone often make it worse.
CORRECTIONS = (
    Correction("reconstructed", {"reconstruct": True}),
    Correction("reconstructed, biases corrected", {"reconstruct": True, "correct_bias": True}),
    Correction("biases corrected", {"correct_bias": True}),
    Correction("smoothed", after="smooth"),
)
THOROUGH = Effort(64, tuple(4.0**power for power in range(-2, 6)), 3, ("mse", *(method for method in METHODS if method != "mse")), CORRECTIONS, 99)
_CORRECTING = {name for correction in CORRECTIONS for name in correction.settings}
QUICK = Effort(12, (0.25, 1.0, 4.0), 0, ("mse",), (), 1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What became of a plan. ``note`` says in words why it was or was not taken."""

    plan: Plan
    speed: Speed | None = None
    error: float | None = None
    loss: Loss | None = None
    price: float = 0.0  # of error, at which a cut is the cheapest; the whole: nothing
    note: str = ""

    @property
    def speedup(self) -> float:
        """Of the float model, which is 1."""
        return self.speed.speedup if self.speed else 1.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.plan.label,
            "scheme": self.plan.scheme,
            "speed": self.speed.to_dict() if self.speed else None,
            "error": self.error,
            "selection_drop": self.loss.drop if self.loss else None,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan that is taken with its model, and all that were tried, in order."""

    plan: Plan
    model: Model
    tried: tuple[Candidate, ...]
    others: tuple[Plan, ...] = ()  # if it does not hold before the judge: each disturbs the answers half as much as the one before

    @property
    def scored(self) -> int:
        """How many were."""
        return sum(candidate.loss is not None for candidate in self.tried)


def choose(
    options: Sequence[Plan],
    tools: Tools,
    *,
    max_drop: float,
    least_share: float = 0.0,
    effort: Effort = THOROUGH,
    ladders: Sequence[Sequence[Step]] = (),
    progress: Progress,
) -> Choice:
    """The fastest within the budget, if it beats the float model; the float model where none does.

    ``ladders`` are pruning steps, each from little to much, that are tried on what was found, if it can be timed.

    Where nothing can be timed the first within the budget is taken, in the order of the options and from the whole to less.
    An 8-bit model must do at least ``least_share`` of its multiply-accumulates so. Raises BudgetMissed if nothing is within the budget.
    """
    search = _Search(tools, max_drop, least_share, effort, progress)
    reduced = list(dict.fromkeys(option.scheme for option in options if option.scheme not in ("float32", "float16")))
    for option in options:
        if option.scheme in reduced[effort.formats :]:
            continue
        if option.scheme == "int8":
            search.attempt_ranges(option)
        else:
            search.attempt(option)
        if tools.race is None:  # what comes first and holds is taken, so the next option may not be needed
            search.score()
            search.cut()
            search.score()
            search.refine()
            search.correct()
            if search.score():
                break
    if tools.race is not None:
        search.score(exact=False)
        search.cut()
        search.score(exact=False)
        search.refine()
        search.correct()
        search.score()
        for ladder in ladders:
            search.prune(ladder, next((option for option in options if option.exact and option.steps), None))
    return search.choice()


class _Search:
    """The candidates so far, in the order in which they were tried."""

    def __init__(self, tools: Tools, max_drop: float, least_share: float, effort: Effort, progress: Progress) -> None:
        self._tools, self._max_drop, self._least_share, self._effort, self._progress = tools, max_drop, least_share, effort, progress
        self._tried: list[Candidate] = []
        self._whole: Candidate | None = None  # 8-bit as far as can be, of which there may be parts
        self._cut_at: Callable[[float], Plan | None] = lambda _price: None
        self._macs: tuple[tuple[Step, ...], dict[str, int]] | None = None  # by node, of the model that these steps make and an int8 plan quantizes

    def attempt(self, plan: Plan, *, price: float = 0.0, speed: Speed | None = None) -> Candidate | None:
        """Build it, and time it unless that is known or it is the float model. None if that very recipe was tried already."""
        self._progress("try recipes", len(self._tried), 0)
        if plan.scheme == "int8" and (share := self._share(plan)) < self._least_share:
            return self._add(Candidate(plan, price=price, note=f"only {share:.0%} of its multiply-accumulates would be 8-bit"))
        try:
            made, model = self._tools.build(plan)
            if plan.scheme != scheme_of(made.steps):
                made = replace(made, label=f"{plan.label}: {NOTHING}", scheme=scheme_of(made.steps))
            if any(candidate.plan.steps == made.steps and candidate.plan.scheme == made.scheme for candidate in self._tried):
                return None
            if made.exact:
                return self._add(Candidate(made))
            error = self._tools.error(model)
            speed = self._tools.race(model) if self._tools.race is not None and speed is None else speed
        except ModelError as failed:
            return self._add(Candidate(plan, price=price, note=str(failed)))
        note = "not faster than float32" if speed is not None and not speed.faster else ""
        return self._add(Candidate(made, speed, error, price=price, note=note))

    def _share(self, plan: Plan) -> float:
        """Of the multiply-accumulates that the plan does in 8 bits; all of them where nobody asks."""
        if not self._least_share:
            return 1.0
        unquantized = _without_last(plan)
        _, base = self._tools.build(unquantized)
        if self._macs is None or self._macs[0] != unquantized.steps:
            self._macs = unquantized.steps, self._tools.macs(base)
        macs = self._macs[1]
        return sum(macs.get(name, 0) for name in _names(plan, base)) / max(sum(macs.values()), 1)

    def attempt_ranges(self, option: Plan) -> None:
        """An int8 plan with the ranges that disturb the answers least: the usual ones, unless others are clearly better."""
        methods = (
            self._effort.methods if not option.steps[-1]["settings"].get("power_of_two") else self._effort.methods[:1]
        )  # positions have a way of their own
        usual = self.attempt(_with(option, {"method": methods[0]}, ""))
        if usual is None or usual.plan.scheme != "int8" or usual.error is None:
            return
        errors = {methods[0]: usual.error}
        for method in methods[1:]:
            self._progress("choose ranges", len(errors), len(methods))
            _, model = self._tools.build(_with(option, {"method": method}, ""))
            errors[method] = self._tools.error(model)
        best = min(errors, key=lambda method: errors[method])
        self._whole = usual
        if best != methods[0] and errors[best] <= _CLEARLY * usual.error:
            self._tried[-1] = replace(usual, note=usual.note or f"{best} ranges disturb the answers less, at the same speed")
            self._whole = self.attempt(_with(option, {"method": best}, f", {best} ranges"), speed=usual.speed)

    def cut(self) -> None:
        """Float and 8-bit regions of what was quantized whole: where that held only the fastest, else one at each price of error."""
        whole, self._whole = self._whole, None
        if whole is None:
            return
        _, base = self._tools.build(_without_last(whole.plan))
        parts = regions.groups(base, _names(whole.plan, base), most=self._effort.groups)
        if len(parts) < 2:
            return
        held = [candidate for candidate in self._tried if self._holds(candidate)]
        whole = next(candidate for candidate in self._tried if candidate.plan == whole.plan)
        if self._tools.race is not None and any(candidate.speedup * _CLEARLY > whole.speedup for candidate in held if candidate is not whole):
            return  # something else holds, and is faster than the whole
        prices = self._effort.prices
        if self._holds(whole):
            prices = () if self._tools.race is None else (0.0,)
        self._cut_at = self._cutter(whole.plan, base, parts, measured=prices != (0.0,)) if prices else self._cut_at
        for price in prices:
            if (plan := self._cut_at(price)) is not None:
                self.attempt(plan, price=price)

    def _cutter(self, plan: Plan, base: Model, parts: list[Group], *, measured: bool) -> Callable[[float], Plan | None]:
        """What makes the cheapest cut at a price, of parts whose disturbance was measured one by one, if it counts."""
        _, whole = self._tools.build(plan)
        names, between = {name for part in parts for name in part.nodes}, regions.links(base, parts)
        costs = self._tools.costs(base, whole, parts, between)
        alone, plain = [0.0] * len(parts), _with(plan, {"reconstruct": False}, "")  # which takes a while for each, and tells no more
        for place, part in enumerate(parts if measured else ()):
            self._progress("measure what each part disturbs", place, len(parts))
            _, model = self._tools.build(_excluding(plain, names - set(part.nodes), ""))
            alone[place] = self._tools.error(model)
        gain = sum(max(in_float - in_8_bits, 0.0) for in_float, in_8_bits in zip(costs.float_, costs.int8, strict=True))

        def cut_at(price: float) -> Plan | None:
            unit = price * gain / max(sum(alone), _NO_ERROR)
            priced = replace(costs, int8=[cost + unit * error for cost, error in zip(costs.int8, alone, strict=True)])
            chosen = regions.cheapest(parts, between, priced)
            kept = {name for place in chosen for name in parts[place].nodes}
            return _excluding(plan, names - kept, f", {len(chosen)} of {len(parts)} parts") if kept else None

        return cut_at

    def score(self, *, exact: bool = True) -> bool:
        """The most promising first, until nothing better is left than what holds. Whether something does. ``exact``: float32 too."""
        while True:
            held = min(filter(self._holds, self._tried), key=self._rank, default=None)
            spent = sum(candidate.loss is not None for candidate in self._tried) >= MOST_SCORED
            waiting = [c for c in self._tried if c.loss is None and not c.note and (exact if c.plan.exact else not spent)]
            best = min(waiting, key=self._rank, default=None)
            if best is None or (held is not None and self._rank(held) <= self._rank(best)):
                return held is not None
            self._score(best)

    def refine(self) -> None:
        """Between the last cut that missed and the first that held there are others."""
        for _ in range(self._effort.refinements):
            missed = [c.price for c in self._tried if c.loss is not None and c.plan.scheme == "int8" and not self._holds(c)]
            if not missed:
                return
            held = min((c.price for c in self._tried if self._holds(c) and c.price), default=_FAR * max(*missed, 1.0))
            last = max((price for price in missed if price < held), default=0.0)
            price = sqrt(held * max(last, held / _FAR))
            plan = self._cut_at(price)
            candidate = self.attempt(plan, price=price) if plan is not None else None
            if candidate is None:
                return
            if not candidate.note:
                self._score(candidate)

    def correct(self) -> None:
        """What missed and would be better than what held gets its weights and biases corrected: that costs no time on the device."""
        held = min(filter(self._holds, self._tried), key=self._rank, default=None)
        missed = [c for c in self._tried if c.loss is not None and c.plan.scheme == "int8" and not self._holds(c)]
        for candidate in sorted(missed, key=self._rank)[:3]:
            if held is not None and self._rank(held) <= self._rank(candidate):
                return
            for correction in self._effort.corrections:
                better = self.attempt(_corrected(candidate.plan, correction), price=candidate.price, speed=candidate.speed)
                if better is None or better.note or (better.error or 0) > _CLEARLY * (candidate.error or 0):
                    continue
                if self._holds(self._score(better)):
                    return

    def prune(self, ladder: Sequence[Step], float_: Plan | None) -> None:
        """The best so far with as many channels less as the budget bears, found by halving the ladder; failing that, the float model."""
        best = min(filter(self._holds, self._tried), key=self._rank, default=None)
        if best is None or best.loss is None or best.loss.drop + 2 * best.loss.doubt > self._max_drop:
            return  # no room
        bases = [best.plan] if best.plan.steps else []
        bases += [float_] if float_ is not None and float_.steps != best.plan.steps else []
        low, high = 0, len(ladder) if bases else 0
        began, last_s = time.monotonic(), 0.0
        while low < high:
            middle = (low + high) // 2
            spent = time.monotonic() - began
            if last_s and spent + last_s > self._effort.pruning_s:
                self._add(Candidate(bases[0].pruned(ladder[middle]), note=f"not tried: to prune took {spent:.0f} s already; --prune asks for it"))
                return
            if self._bears(bases, ladder[middle]):
                low = middle + 1
            else:
                high = middle
            last_s = time.monotonic() - began - spent

    def _bears(self, bases: Sequence[Plan], step: Step) -> bool:
        """Whether more may go: one of these holds when it is pruned so, or none of them is any faster for it."""
        slow = missed = False
        for base in bases:
            candidate = self.attempt(base.pruned(step))
            if candidate is None or candidate.speed is None:
                continue
            held = min(filter(self._holds, self._tried), key=self._rank)
            if candidate.note or candidate.speed.low <= held.speedup:
                self._tried[-1] = replace(candidate, note=candidate.note or "not faster than what holds")
                slow = True
                continue
            if any(self._holds(self._score(each)) for each in self._with_correction(candidate) if self._pruned_scored() < MOST_PRUNED):
                return True
            missed = True
        return slow and not missed

    def _with_correction(self, candidate: Candidate) -> Iterator[Candidate]:
        """As it is, and then the way that helps 8 bits most."""
        yield candidate
        for correction in self._effort.corrections[:1] if candidate.plan.scheme == "int8" else ():
            corrected = self.attempt(_corrected(candidate.plan, correction), speed=candidate.speed)
            if corrected is not None and not corrected.note:
                yield corrected

    def _pruned_scored(self) -> int:
        return sum(candidate.loss is not None and candidate.plan.prunes for candidate in self._tried)

    def choice(self) -> Choice:
        """The best that holds; if need be, without anything to spare. What is hardly faster is timed again: of so many one was lucky."""
        while True:
            scored = [candidate for candidate in self._tried if candidate.loss is not None and not candidate.note]
            best = min(filter(self._holds, scored), key=self._rank, default=None) or min(scored, key=self._rank, default=None)
            if best is None:
                raise BudgetMissed(*_missed(self._tried, self._max_drop))
            if self._still_faster(best):
                break
            self.score()
        _, model = self._tools.build(best.plan)
        self._progress("try recipes", len(self._tried), len(self._tried))
        return Choice(best.plan, model, tuple(replace(c, note="taken") if c is best else c for c in self._tried), tuple(self._safer(best)))

    def _still_faster(self, best: Candidate) -> bool:
        """Whether it beats the float model once more, in a race that nothing was chosen by; where there is no float model nobody asks."""
        if self._tools.race is None or best.speed is None or best.speed.low > _BEYOND_LUCK or not any(c.plan.exact and not c.note for c in self._tried):
            return True
        self._progress("time it again", len(self._tried), len(self._tried))
        try:
            again = self._tools.race(self._tools.build(best.plan)[1])
        except ModelError as failed:
            self._tried[self._tried.index(best)] = replace(best, note=str(failed))
            return False
        if not again.faster:
            self._tried[self._tried.index(best)] = replace(best, speed=again, note=ONCE)
        return again.faster

    def _safer(self, failed: Candidate) -> Iterator[Plan]:
        """The same, corrected; then the fastest that disturbs the answers at most half as much, the fastest that does half of that, and so on.

        Half as much as without corrections: what they win on the calibration samples is what may not hold.
        """
        if failed.plan.scheme == "int8" and failed.plan.steps[-1]["settings"].keys().isdisjoint(_CORRECTING):
            yield from (_corrected(failed.plan, correction) for correction in self._effort.corrections[:1])
        same = [c for c in self._tried if (c.price, c.plan.scheme, c.plan.prunes) == (failed.price, failed.plan.scheme, failed.plan.prunes)]
        most = _SAFER * max((c.error or 0.0 for c in same), default=0.0)
        left = [c for c in self._tried if not c.note and c is not failed and not c.plan.exact and c.plan.scheme != "float16"]
        for candidate in sorted(left, key=self._rank):
            if (candidate.error or 0.0) <= most:
                yield candidate.plan
                most = _SAFER * (candidate.error or 0.0)

    def _score(self, candidate: Candidate) -> Candidate:
        place = self._tried.index(candidate)
        self._progress("score recipes", place, len(self._tried))
        alike = [c for c in self._tried if c.plan.prunes == candidate.plan.prunes]  # fewer channels err otherwise than fewer bits
        hopeless = [c.error for c in alike if c.error is not None and c.loss is not None and c.loss.drop > self._max_drop]
        if candidate.error is not None and hopeless and candidate.error > _HOPELESS * min(hopeless):
            scored = replace(candidate, note="disturbs the answers much more than one that missed the budget")
        else:
            loss = self._tools.loss(candidate.plan)
            scored = replace(candidate, loss=loss, note="" if loss.drop <= self._max_drop else f"loses {loss.drop:.4f}, more than {self._max_drop:g}")
        self._tried[place] = scored
        return scored

    def _holds(self, candidate: Candidate) -> bool:
        """Within the budget with a standard error to spare: the judge will see other samples."""
        return candidate.loss is not None and not candidate.note and candidate.loss.drop + candidate.loss.doubt <= self._max_drop

    def _rank(self, candidate: Candidate) -> tuple[float, int]:
        """The fastest first; where nothing is timed in the order of trying, cuts by their price."""
        if self._tools.race is not None:
            return -candidate.speedup, 0
        return candidate.price, self._tried.index(candidate)

    def _add(self, candidate: Candidate) -> Candidate:
        self._tried.append(candidate)
        return candidate


def _excluding(plan: Plan, names: set[str], told: str) -> Plan:
    return _with(plan, {"exclude": sorted(names)}, told)


def _corrected(plan: Plan, correction: Correction) -> Plan:
    before = ({"pass": correction.after, "settings": {}},) if correction.after else ()
    changed = _with(plan, correction.settings, f", {correction.label}")
    return replace(changed, steps=(*changed.steps[:-1], *before, changed.steps[-1]))


def _without_last(plan: Plan) -> Plan:
    return replace(plan, steps=plan.steps[:-1])


def _names(plan: Plan, base: Model) -> list[str]:
    """Of the nodes that the plan quantizes."""
    settings = plan.steps[-1]["settings"]
    return targets(base, operators=settings["operators"], exclude=settings.get("exclude", ()))


def _with(plan: Plan, settings: dict[str, Any], told: str) -> Plan:
    """The plan with other settings for its last step."""
    last = plan.steps[-1]
    return replace(plan, label=plan.label + told, steps=(*plan.steps[:-1], {**last, "settings": {**last["settings"], **settings}}))


def _missed(tried: Sequence[Candidate], max_drop: float) -> tuple[str, str]:
    """The sentence and the hint when nothing keeps the budget."""
    told = [candidate for candidate in tried if candidate.loss is not None] or tried
    story = "; ".join(f"{candidate.plan.label}: {candidate.note}" for candidate in told) or "there was nothing to try"
    drops = [candidate.loss.drop for candidate in tried if candidate.loss is not None]
    if not drops:
        return f"no recipe of this profile works for this model ({story})", "give --calibration samples, or take another profile"
    closest = min(drops)
    allow = f"allow it with --max-drop {max(closest, 0) * 1.05 + 1e-4:.4f}, or " if closest < 0.1 else ""
    return (
        f"the accuracy budget of {max_drop:g} cannot be kept ({story})",
        f"the closest loses {closest:.4f}: {allow}take a profile that may keep float32, such as the CPU of that board: `edgesdk profile list`",
    )
