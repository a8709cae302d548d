"""Which indices, along which axes of a graph's tensors, stay or go together.

    ties = Ties()
    channels, weights = ties.axis(64), ties.axis(64)
    ties.tie(channels, weights, "Conv `conv_1`")    # index by index
    ties.pin(channels, "`y` is an output")          # none of these, nor what is tied to them, can go

Every index is an atom, and ties join atoms into classes: a forest with path halving (Tarjan and van Leeuwen 1984).
"""

from dataclasses import dataclass

import numpy as np

from edgesdk.graph import Array


@dataclass(frozen=True, eq=False)
class Axis:
    """The axis of one tensor, or the same one of several. Two of unknown length are known to be equal if they are one object."""

    atoms: Array | None  # one for each index; None where nobody knows how many there are

    @property
    def length(self) -> int | None:
        return None if self.atoms is None else len(self.atoms)

    def at(self, indices: "Array | slice") -> "Axis":
        """Of these indices of it, as Gather or Slice take them."""
        return self if self.atoms is None else Axis(self.atoms[indices])


class Ties:
    """The atoms given out so far, what is tied to what, and why some are pinned."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}  # by root

    def axis(self, length: int) -> Axis:
        """Of new atoms that are tied to nothing."""
        first = len(self._parents)
        self._parents.extend(range(first, first + length))
        return Axis(np.arange(first, first + length))

    def fixed(self, length: int, reason: str) -> Axis:
        """Of that length for ever."""
        atom = self.axis(1)
        self.pin(atom, reason)
        assert atom.atoms is not None
        return Axis(np.repeat(atom.atoms, length))

    def tie(self, first: Axis, second: Axis, where: str) -> None:
        """Index by index. If one length is unknown, or they differ, both axes stay as they are."""
        if first is second:
            return
        if first.atoms is None or second.atoms is None or len(first.atoms) != len(second.atoms):
            self.pin(first, f"{where} reads an axis beside it whose length is not known")
            self.pin(second, f"{where} reads an axis beside it whose length is not known")
            return
        for one, other in zip(first.atoms.tolist(), second.atoms.tolist(), strict=True):
            self._join(one, other)

    def pin(self, axis: Axis, reason: str) -> None:
        if axis.atoms is not None:
            for atom in axis.atoms.tolist():
                self._reasons.setdefault(self._root(atom), reason)

    def reason(self, atom: int) -> str | None:
        """Why it stays, or None if it may go."""
        return self._reasons.get(self._root(atom))

    def is_free(self, axis: Axis) -> bool:
        """Whether any of its indices may go."""
        return axis.atoms is not None and any(self.reason(atom) is None for atom in axis.atoms.tolist())

    def roots(self) -> Array:
        """The class of each atom, as the atom that stands for it."""
        return np.array([self._root(atom) for atom in range(len(self._parents))], np.int64)

    def _root(self, atom: int) -> int:
        parents = self._parents
        while parents[atom] != atom:
            parents[atom] = atom = parents[parents[atom]]
        return atom

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        if first == second:
            return
        self._parents[second] = first
        reason = self._reasons.pop(second, None)
        if reason is not None:
            self._reasons.setdefault(first, reason)
