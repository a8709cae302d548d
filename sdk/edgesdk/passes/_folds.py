"""Axes folded into others, as Reshape does it: which of their indices may go."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from edgesdk.passes._ties import Axis, Ties


@dataclass(frozen=True, eq=False)
class Fold:
    """Axes that a node folds into others, of the same numbers in the same order: no unknown lengths, none of 1, several on one side at least."""

    before: list[Axis]
    after: list[Axis]
    where: str

    def choices(self, ties: Ties) -> list[list[tuple[Axis, Axis]]]:
        """The axes, or parts of them, that lie whole on both sides and whose indices may go, the outermost first: with the units of their indices."""
        sides = _strided(self.before), _strided(self.after)
        found = []
        for length, stride in self._candidates(sides):
            carriers = [each for side in sides if (each := _carrier(side, length, stride)) is not None and ties.is_free(each[0])]
            if len(carriers) == 2:
                units = ties.axis(length)
                found.append([(axis, units.at(np.arange(axis.length or 0) // within % length)) for axis, within in carriers])
        return found

    def settle(self, ties: Ties) -> None:
        """The outermost choice; all else stays."""
        chosen = next(iter(self.choices(ties)), [])
        for axis, units in chosen:
            ties.tie(axis, units, self.where)
        for axis in (*self.before, *self.after):
            if not any(axis is each for each, _ in chosen):
                ties.pin(axis, f"{self.where} folds it with others")

    def _candidates(self, sides: tuple[list["_Strided"], list["_Strided"]]) -> list[tuple[int, int]]:
        """Lengths and strides in the index over all, the outermost first: between any two places where an axis of either side ends, and what leads both."""
        ends = sorted({length * stride for side in sides for _, length, stride in side} | {1}, reverse=True)
        outer = int(np.gcd(sides[0][0][1], sides[1][0][1]))
        found = {(whole // stride, stride) for whole, stride in pairwise(ends) if whole % stride == 0} | {(outer, ends[0] // outer)}
        return sorted((each for each in found if each[0] > 1), key=lambda each: (-each[0] * each[1], -each[1]))


def settle(folds: Sequence[Fold], ties: Ties) -> None:
    """First those that leave no choice, since what they pin may leave none to others; then one after the other."""
    waiting = list(folds)
    while waiting:
        forced = [fold for fold in waiting if len(fold.choices(ties)) < 2]
        for fold in forced or waiting[:1]:
            fold.settle(ties)
            waiting.remove(fold)


_Strided = tuple[Axis, int, int]  # with its length, and its stride in the index over all axes of a side


def _strided(axes: Sequence[Axis]) -> list[_Strided]:
    lengths = [axis.length or 0 for axis in axes]
    return [(axis, length, prod(lengths[place + 1 :])) for place, (axis, length) in enumerate(zip(axes, lengths, strict=True))]


def _carrier(side: list[_Strided], length: int, stride: int) -> tuple[Axis, int] | None:
    """The axis that alone decides (index // stride) % length, and how many of its indices after one another do so alike."""
    for axis, along, each in side:
        if stride % each == 0 and (each * along) % (stride * length) == 0:
            return axis, stride // each
    return None
