"""Who prunes: edgesdk, plain L1, and what else there is for these networks; all without training.

    for pruner in PRUNERS:
        prune = pruner.measured(case, calibration)
        half, third = prune(1 / 2), prune(1 / 3)      # of the multiply-accumulates stay

Torch-Pruning is given the PyTorch source of the network, which a user of an ONNX file seldom has, and for its Taylor importance the labels;
onnxsim, like edgesdk, the file. Both are told a share of the channels, so it is found out which share comes nearest. Torch-Pruning is also
followed by what one would do who knows that BatchNormalization's statistics no longer hold: they are measured anew.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnxsim
import torch
import torch_pruning
from torch import nn
from torch.nn import functional

from edgesdk import costs, graph, passes, sampling
from edgesdk.distillation import distil
from edgesdk.graph import Array, Model
from edgesdk.passes.prune import carry_out, choose, survey
from edgesdk.profiles import Profile
from tests.benchmarks import networks
from tests.suite import Entry, digits, fashion

Made = TypeVar("Made")
Prune = Callable[[float], Model]

HALVINGS = 8  # of the interval in which the share of the channels lies
MOST_CHANNELS = 0.9
FEW = 8
PEERS, RE_ESTIMATED = "Torch-Pruning", "re-estimated"
TIMED = 0.5
GONE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the multiply-accumulates
TRAINING = {"resnet8": digits.training, "resnet20": fashion.training, "mobilenet": fashion.training}


@dataclass(frozen=True, slots=True)
class Case:
    """A network of the suite: as it was given, and after the exact passes; what is pruned is compared with the latter."""

    entry: Entry
    profile: Profile
    given: Model
    simplified: Model

    def training(self) -> "Calibration":
        """All that training saw."""
        return Calibration(*TRAINING[self.entry.name]())

    @classmethod
    def of(cls, entry: Entry, profile: Profile) -> "Case":
        given = graph.load(entry.model)
        return cls(entry, profile, given, simplified(given))

    def share(self, model: Model) -> float:
        """Of the simplified original's multiply-accumulates."""
        return macs(model) / macs(self.simplified)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Training images, float32 [n, 1, 28, 28], and their labels, int64 [n], which only Torch-Pruning's Taylor importance looks at."""

    images: Array
    labels: Array


@dataclass(frozen=True, slots=True)
class Pruner:
    """``measured(case, calibration)`` gives what prunes to a share of the multiply-accumulates; ``draws`` where it matters which images they are.

    ``timed`` unless another has the same shapes.
    """

    label: str
    measured: Callable[[Case, Calibration], Prune]
    draws: bool = True
    ours: bool = False
    gone: tuple[float, ...] = GONE
    timed: bool = True


def simplified(model: Model) -> Model:
    return passes.apply([{"pass": name} for name in passes.SIMPLIFY], model)


def macs(model: Model) -> int:
    """Multiply-accumulates for one sample."""
    return sum(costs.macs(model, costs.shapes(model, next(iter(sampling.generated(model, 1))))).values())


def _ours(case: Case, calibration: Calibration, **settings: Any) -> Prune:
    """The pass `prune` in its steps: what was measured serves every share."""
    samples = sampling.of([{"image": image[None]} for image in calibration.images], case.simplified)
    found = survey(case.simplified, samples=samples, multiple=case.profile.pruning.channel_multiple, **settings)
    return lambda keep: carry_out(found, choose(found, macs=keep))


def _distilled(case: Case, calibration: Calibration) -> Prune:
    """The same, then trained to answer as the original does on all training images, of which nobody tells the labels."""
    prune = _ours(case, calibration)
    samples = sampling.of([{"image": image[None]} for image in case.training().images], case.simplified)
    return lambda keep: distil(case.simplified, prune(keep), samples)


def _torch_pruning(
    case: Case, calibration: Calibration, *, taylor: bool = False, re_estimate: bool = False, in_multiples: bool = False, **settings: Any
) -> Prune:
    """By L2 norms over all layers of a group, as its README begins, or by Taylor importance; what the classifier answers stays."""
    images = torch.from_numpy(calibration.images)
    whole = networks.loaded(case.entry.model.stem)
    if taylor:
        functional.cross_entropy(whole(images), torch.from_numpy(calibration.labels)).backward()
    importance = torch_pruning.importance.GroupTaylorImportance() if taylor else torch_pruning.importance.GroupMagnitudeImportance(p=2)

    def of_channels(ratio: float) -> nn.Module:
        network = copy.deepcopy(whole)
        for parameter, original in zip(network.parameters(), whole.parameters(), strict=True):
            parameter.grad = original.grad
        answers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        multiple = case.profile.pruning.channel_multiple if in_multiples else None
        torch_pruning.pruner.BasePruner(
            network, networks.SAMPLE, importance, pruning_ratio=ratio, ignored_layers=[answers], round_to=multiple, **settings
        ).step()
        return network

    def prune(keep: float) -> Model:
        network = _nearest(of_channels, lambda network: networks.macs(network) / networks.macs(whole), keep)
        if re_estimate:
            networks.re_estimate(network, images)
        with tempfile.TemporaryDirectory() as folder:
            networks.export(network, Path(folder, "model.onnx"))
            return graph.load(Path(folder, "model.onnx"))

    return prune


def _onnxsim(case: Case, calibration: Calibration) -> Prune:
    """Its own simplification, then whole channels by weight times activation, then its least-squares repair of what is MatMul or Gemm."""
    feeds, few = [{"image": calibration.images}], [{"image": calibration.images[:FEW]}]  # how many channels go does not depend on the images
    given, _ = onnxsim.simplify(onnx.load(case.entry.model))
    full = macs(_loaded(given))

    def of_channels(ratio: float) -> tuple[float, onnx.ModelProto]:
        return ratio, onnxsim.apply_structured_wanda_pruning(given, few, sparsity=ratio)

    def prune(keep: float) -> Model:
        ratio, _ = _nearest(of_channels, lambda made: macs(_loaded(made[1])) / full, keep)
        pruned = onnxsim.apply_structured_wanda_pruning(given, feeds, sparsity=ratio)
        return _loaded(onnxsim.apply_pruning_finetune(given, pruned, feeds))

    return prune


def _loaded(proto: onnx.ModelProto) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(proto, Path(folder, "model.onnx"))
        return graph.load(Path(folder, "model.onnx"))


def _nearest(make: Callable[[float], Made], kept: Callable[[Made], float], keep: float) -> Made:
    """Of what is made of shares of the channels, the one that keeps nearest to what is wanted; the interval is halved."""
    low, high = 0.0, MOST_CHANNELS
    tried: list[tuple[float, Made]] = []
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        made = make(middle)
        tried.append((kept(made), made))
        low, high = (low, middle) if tried[-1][0] <= keep else (middle, high)
    return min(tried, key=lambda each: abs(each[0] - keep))[1]


_TORCH_PRUNING = {
    "L2": {},
    "L2, isomorphic": {"global_pruning": True, "isomorphic": True},
    "Taylor": {"global_pruning": True, "taylor": True},
}

OURS = Pruner("edgesdk", _ours, ours=True)
DISTILLED = Pruner("edgesdk, distilled", _distilled, ours=True, gone=(0.7,))
PRUNERS = (
    OURS,
    DISTILLED,
    Pruner("L1, no repair", partial(_ours, criterion="l1", repair=False), draws=False, ours=True),
    *(Pruner(f"{PEERS} {label}", partial(_torch_pruning, **settings), draws="taylor" in settings, timed=False) for label, settings in _TORCH_PRUNING.items()),
    *(Pruner(f"{PEERS} {label}, {RE_ESTIMATED}", partial(_torch_pruning, re_estimate=True, **settings)) for label, settings in _TORCH_PRUNING.items()),
    Pruner(f"{PEERS} L2 in multiples, {RE_ESTIMATED}", partial(_torch_pruning, re_estimate=True, in_multiples=True), gone=(TIMED,)),
    Pruner("onnxsim", _onnxsim),
)
