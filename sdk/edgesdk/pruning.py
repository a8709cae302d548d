"""One step alone: a model with fewer channels, or with 2:4 sparse weights, as a profile's hardware likes them. The verb `prune`.

    goal = Goal("macs", 0.5)                                                                    # half of the work stays
    outlook(Path("model.onnx"), find("x86-cpu"), goal, samples="calibration.npz").channels      # what would go, and what that does
    model, told = prune(Path("model.onnx"), find("x86-cpu"), goal, samples="calibration.npz")

The simplified model is pruned without labels and without training (`passes.prune`, `passes.prune_two_of_four`); with PyTorch it can be
trained to answer as the original does, on the same unlabelled samples (`distillation`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from math import log10
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from edge_agent import probe
from edgesdk import costs, distillation, evidence, graph, profiles, recipe, sparsity
from edgesdk.errors import ModelError, ProjectError
from edgesdk.graph import Model
from edgesdk.passes._dimensions import Whole
from edgesdk.passes._sites import quantized
from edgesdk.passes.prune import Criterion, Prunable, Survey, carry_out, choose
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.recipe import Plan
from edgesdk.source import Source, model_files

HALVINGS = 6  # of the range in which the share of the multiply-accumulates is looked for that gives a latency
RACE_S = 3.0
Of = Literal["macs", "parameters", "latency", "2:4"]
GOALS = get_args(Of)
TAUGHT_S = 240.0  # of training, where that is asked for


@dataclass(frozen=True, slots=True)
class Goal:
    """The share that stays, between 0 and 1, of what the model costs; or two of every four weights."""

    of: Of
    share: float = 0.5

    def check(self, profile: Profile) -> None:
        """Raises ProjectError, and ProfileError where the hardware has no use for it."""
        if self.of not in GOALS:
            raise ProjectError(f"nobody prunes by {self.of!r}", f"by one of {', '.join(GOALS)}")
        if not 0 < self.share < 1:
            raise ProjectError(f"{self.of} is {self.share:g}: it is the share that stays, between 0 and 1", "0.5 keeps half")
        if self.of == "latency" and not profiles.resembles(profile, probe.facts()):
            raise ProjectError(f"this machine is no {profile.title}: its latency says nothing of that", "go by the multiply-accumulates: --macs")
        if self.of == "2:4":
            recipe.pruning(profile, "2:4")


@dataclass(frozen=True, slots=True)
class Channels:
    """A group of channels that go together."""

    name: str  # of the tensor that has them first
    channels: int
    stay: int | None  # of the channels; None without a goal
    macs: float  # share of the model's multiply-accumulates that these channels take part in
    effects: tuple[tuple[float, float], ...]  # share of the channels gone, and what that does to the answers, as a share of their variance

    def effect(self, gone: float) -> float | None:
        """Of so great a share; None where so many cannot go."""
        shares, effects = zip(*self.effects, strict=True)
        return float(np.interp(gone, shares, effects)) if gone <= shares[-1] else None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What pruning would do. Shares are what stays, for the goal; None without one."""

    channels: tuple[Channels, ...]
    whole: tuple[Whole, ...]
    macs: int  # of one sample
    parameters: int
    macs_share: float | None
    parameters_share: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def outlook(
    model: Path | str,
    profile: Profile,
    goal: Goal | None,
    *,
    samples: str,
    criterion: Criterion = "reconstruction",
    exclude: Sequence[str] = (),
    progress: Progress = silent,
) -> Outlook:
    """What there is to prune and what that does to the answers, what a goal would take of it, and what stays whole and why.

    2:4 is no goal here. Raises an EdgeSDKError.
    """
    if goal is not None:
        goal.check(profile)
    source, simple = _simplified(model, profile, samples, progress)
    found = source.survey(simple, _settings(profile, criterion, exclude), _stage(progress, "measure channels"))
    return _seen(found, choose(found, **_shares(found, goal, source, profile, progress)) if goal is not None else None)


def prune(
    model: Path | str,
    profile: Profile,
    goal: Goal,
    *,
    samples: str,
    criterion: Criterion = "reconstruction",
    exclude: Sequence[str] = (),
    distil: bool = False,
    progress: Progress = silent,
) -> tuple[Model, dict[str, Any]]:
    """The simplified model, pruned, and what became of it.

    The second value has `recipe`; `macs`, `parameters` and `size_bytes` {before, after}; `channels` and `whole` as an `Outlook` has them, or,
    for 2:4, `sparse` {weights, two_four}; `snr_db` of the answers, against the original's on held-back samples; `latency_ms` beside the
    simplified model, None where this machine does not resemble the profile's; `distilled`, whether training brought it closer, None where
    nobody asked; and `seconds`. No accuracy is judged: that is what `package` does. Raises an EdgeSDKError.
    """
    began = time.monotonic()
    goal.check(profile)
    if distil and not (find_spec("torch") and find_spec("onnx2torch")):
        raise ProjectError("distilling needs PyTorch and onnx2torch, which are not installed here", "pip install 'edgesdk[torch]'")
    source, simple = _simplified(model, profile, samples, progress)
    told: dict[str, Any] = {}
    if goal.of == "2:4":
        step = {**recipe.pruning(profile, "2:4"), "settings": {"exclude": list(exclude)} if exclude else {}}
    else:
        settings = _settings(profile, criterion, exclude)
        found = source.survey(simple, settings, _stage(progress, "measure channels"))
        shares = _shares(found, goal, source, profile, progress)
        step = {"pass": "prune", "settings": {**shares, **settings}}
        seen = _seen(found, choose(found, **shares))
        told = {"channels": [asdict(each) for each in seen.channels], "whole": [asdict(each) for each in seen.whole]}
    progress("set layers anew", 0, 0)
    (_, slim), (plan, made) = source.build(simple), source.build(replace(simple, steps=(*simple.steps, step)))
    if made is slim:
        hint = (
            "it is quantized: prune the float model, and quantize what comes out"
            if quantized(slim)
            else "`edgesdk prune --dry-run` tells what stays whole, and why"
        )
        raise ModelError(f"nothing in `{Path(model).name}` can be pruned so", hint)
    if goal.of == "2:4":
        weights = list(sparsity.weights(made))
        told["sparse"] = {"weights": len(weights), "two_four": sum(weight.obeys for weight in weights)}
    taught = made
    if distil:
        assert source.samples is not None
        taught = distillation.distil(slim, made, source.samples, seconds=TAUGHT_S, keep_zeros=goal.of == "2:4", progress=progress)
    here = profiles.resembles(profile, probe.facts())
    progress("compare", 0, 0)
    noise = source.error(taught, optimize=here)
    return taught, {
        "recipe": list(plan.steps),
        "macs": {"before": _macs(slim, source), "after": _macs(taught, source)},
        "parameters": {"before": graph.describe(slim).parameters, "after": graph.describe(taught).parameters},
        "size_bytes": {"before": source.size_bytes, "after": sum(map(len, model_files(taught).values()))},
        **told,
        "snr_db": round(-10 * log10(noise), 1) if noise else None,
        "latency_ms": evidence.race_here(profile, source.held_back)(slim, taught, RACE_S).to_dict() if here else None,
        "distilled": taught is not made if distil else None,
        "seconds": round(time.monotonic() - began, 1),
    }


def _simplified(model: Path | str, profile: Profile, samples: str, progress: Progress) -> tuple[Source, Plan]:
    progress("read the model", 0, 0)
    source = Source.load(Path(model), calibration=samples)
    return source, recipe.float_plan(profile, source.shapes)


def _settings(profile: Profile, criterion: Criterion, exclude: Sequence[str]) -> dict[str, Any]:
    return {"multiple": profile.pruning.channel_multiple, "criterion": criterion, **({"exclude": list(exclude)} if exclude else {})}


def _stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)


def _shares(found: Survey, goal: Goal, source: Source, profile: Profile, progress: Progress) -> dict[str, float]:
    """What `choose` goes by: the share of the multiply-accumulates that gives the latency, if that is the goal."""
    if goal.of != "latency":
        return {goal.of: goal.share}
    race, unrepaired = evidence.race_here(profile, source.held_back), replace(found, repair=False)  # other weights, the same time
    low, high = 0.0, 1.0
    for halving in range(HALVINGS):
        progress("time", halving, HALVINGS)
        middle = (low + high) / 2
        pruned = carry_out(unrepaired, choose(found, macs=middle))
        fast = race(found.model, pruned, RACE_S).speedup * goal.share >= 1
        low, high = (middle, high) if fast else (low, middle)
    if not low:
        raise ModelError(f"pruned as far as can be, the model still takes more than {goal.share:g} of the time", "ask for less, or see --dry-run")
    return {"macs": low}


def _seen(found: Survey, kept: Mapping[str, int] | None) -> Outlook:
    return Outlook(
        channels=tuple(_channels(found, each, kept) for each in found.prunable),
        whole=found.whole,
        macs=found.macs,
        parameters=found.parameters,
        macs_share=found.share("macs", kept) if kept is not None else None,
        parameters_share=found.share("parameters", kept) if kept is not None else None,
    )


def _channels(found: Survey, prunable: Prunable, kept: Mapping[str, int] | None) -> Channels:
    group = prunable.group
    return Channels(
        name=group.name,
        channels=group.count * group.width,
        stay=kept[group.name] * group.width if kept is not None else None,
        macs=1 - found.share("macs", {group.name: 0}),
        effects=tuple((1 - count / group.count, effect) for count, effect in zip(prunable.counts, prunable.effects, strict=True)),
    )


def _macs(model: Model, source: Source) -> int:
    return sum(costs.macs(model, costs.shapes(model, source.held_back[0])).values())
