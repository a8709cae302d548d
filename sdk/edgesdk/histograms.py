"""How often a tensor took which values: histograms of bounded size that are added up exactly, whatever came first.

    seen = Histogram.of(array)
    seen = seen.joined(Histogram.of(another))
    seen.centres, seen.counts

Bins are 2**exponent wide and begin at multiples of their width. So a value divides into its bin without rounding, two bins
make one of the next width, and what is counted in parts, in any order, is what would have been counted at once:
no first pass has to find the range. A bin's place is the quotient without its fraction: bin 0 reaches from -width to width.
"""

from dataclasses import dataclass, field
from math import frexp
from typing import Self

import numpy as np

from edgesdk.graph import Array

BINS = 4096  # at most; a histogram of more than one value fills at least half of them
_NARROWEST = -126  # the finest width whose reciprocal is a float32
_EXACT = 24  # bits of a float32: finer bins would tell nothing
_CHUNK = 32_768  # values at once: what is computed of them stays in a core's cache


@dataclass(frozen=True, eq=False)
class Histogram:
    """Of finite values: ``counts[i]`` of them lie in the bin at place ``first + i``."""

    exponent: int
    first: int
    counts: Array  # int64, 1 … BINS of them, the outermost not 0; none: no values

    @classmethod
    def of(cls, values: Array) -> Self:
        """Of float32 values of any shape; those that are not finite are left out."""
        numbers = values.ravel()
        if not numbers.size:
            return cls.empty()
        low, high = float(numbers.min()), float(numbers.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            return cls.of(numbers[np.isfinite(numbers)])
        exponent = _exponent(low, high)
        first, last = _place(low, exponent), _place(high, exponent)
        counts = np.zeros(last - first + 1, np.int64)
        for start in range(0, numbers.size, _CHUNK):
            places = (numbers[start : start + _CHUNK] * np.float32(2.0**-exponent)).astype(np.intp)
            if first:
                places -= first
            counts += np.bincount(places, minlength=counts.size)
        return cls(exponent, first, counts)

    @classmethod
    def empty(cls) -> Self:
        """Of no values."""
        return cls(_NARROWEST, 0, np.zeros(0, np.int64))

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0**self.exponent

    @property
    def places(self) -> Array:
        """Of the bins."""
        return self.first + np.arange(self.counts.size)

    @property
    def edges(self) -> Array:
        """Where bins begin, and where the last one ends."""
        places = self.first + np.arange(self.counts.size + 1)
        return np.where(places > 0, places, places - 1) * self.width

    @property
    def centres(self) -> Array:
        """The middle of each bin."""
        return (self.places + 0.5 * np.sign(self.places)) * self.width

    def joined(self, other: Self) -> Self:
        """Of the values of both."""
        return self._combined(other, np.add)

    def united(self, other: Self) -> Self:
        """Of the values of either, where the one's are the other's, moved, repeated or left out: as many of each as there are more."""
        return self._combined(other, np.maximum)

    def magnitudes(self) -> Self:
        """Of the values without their signs."""
        below = max(0, min(-self.first, self.counts.size))
        mirrored = type(self)(self.exponent, max(1, 1 - self.first - self.counts.size), self.counts[:below][::-1])
        return type(self)(self.exponent, max(0, self.first), self.counts[below:]).joined(mirrored)

    def _combined(self, other: Self, combine: np.ufunc) -> Self:
        if not self.counts.size or not other.counts.size:
            return self if self.counts.size else other
        exponent = max(self.exponent, other.exponent)
        while True:
            one, two = self._widened(exponent), other._widened(exponent)
            first = min(one.first, two.first)
            size = max(one.first + one.counts.size, two.first + two.counts.size) - first
            if size <= BINS:
                break
            exponent += 1
        counts = np.zeros(size, np.int64)
        for each in (one, two):
            part = counts[each.first - first :][: each.counts.size]
            combine(part, each.counts, out=part)
        return type(self)(exponent, first, counts)

    def _widened(self, exponent: int) -> Self:
        """With wider bins."""
        if exponent == self.exponent:
            return self
        places = np.trunc(self.places * 2.0 ** (self.exponent - exponent)).astype(np.int64)
        starts = np.flatnonzero(np.diff(places, prepend=places[0] - 1))
        return type(self)(exponent, int(places[0]), np.add.reduceat(self.counts, starts))


@dataclass(frozen=True)
class Range:
    """What values a tensor took: the least and the greatest, infinities included, both NaN if there was one.

    A tensor that never had a value has 0 and 0.
    """

    low: float
    high: float
    average: tuple[float, float] | None = None  # of the samples' least and greatest values, the latest weighing most
    histogram: Histogram | None = field(default=None, repr=False, compare=False)  # where one was asked for

    @property
    def bound(self) -> float:
        """The greatest magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def counts(self) -> Array | None:
        """How often which values were seen; ``centres`` tells the values."""
        return None if self.histogram is None else self.histogram.counts

    @property
    def centres(self) -> Array | None:
        """The values that ``counts`` speaks of, each the middle of a bin."""
        return None if self.histogram is None else self.histogram.centres

    def joined(self, other: "Range") -> "Range":
        """Of two tensors of which one holds the other's values, moved, repeated or left out."""
        averages = [each.average for each in (self, other) if each.average is not None]
        return Range(
            min(self.low, other.low),
            max(self.high, other.high),
            (min(low for low, _ in averages), max(high for _, high in averages)) if len(averages) == 2 else None,
            self.histogram.united(other.histogram) if self.histogram is not None and other.histogram is not None else None,
        )


def _exponent(low: float, high: float) -> int:
    """Of the finest width at which BINS bins hold both, and their places are exact."""
    bound = max(abs(low), abs(high))
    exact = max(frexp(bound)[1] - _EXACT, _NARROWEST) if bound else _NARROWEST
    exponent = max(exact, frexp((high - low) / BINS)[1] - 2) if low < high else exact
    while _place(high, exponent) - _place(low, exponent) >= BINS:
        exponent += 1
    return exponent


def _place(value: float, exponent: int) -> int:
    return int(value * 2.0**-exponent)
