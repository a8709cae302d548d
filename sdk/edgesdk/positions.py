"""The fixed point of the Vitis DPU: an int8 tensor at position p stands for q · 2^-p, and operators shift bits.

A shift register is only so wide, so the positions of what an operator reads and writes must lie close enough together.
The bounds are AMD Quark's (0.13, `onnx_xint8_adjust`); passes choose positions within them and constraints check them.
"""

from collections.abc import Iterable
from math import floor, frexp, log2

import numpy as np

from edgesdk.graph import Array

CUT = (0, 16)  # Conv, Gemm: weight + input - output
READ = (0, 7)  # Add, Sub: greatest input - least input
ADD_WRITE = (-7, 25)  # Add, Sub: least input - output
MUL_WRITE = (0, 32)  # Mul: sum of the inputs - output
SWISH_WRITE = (0, 15)  # the Mul of x and a sigmoid of x
SIGMOID_READ = (0, 15)  # HardSigmoid: 3 has to be a whole number of steps
SIGMOID_WRITTEN = 7  # the coarsest it may answer at, at which 1 is 127: finer ones hold less than half of what it answers
BIAS = (0, 15)  # Conv, Gemm: weight + input - bias as passes choose it, so that the sum of products never has to be shifted for it

FURTHEST = 60  # positions either side of 0, so that products of scales are numbers of float32
MOST = 2**24 - 2**22  # what a sum of products may come to: float32 holds every whole number up to 2^24, and the bias, shifted, takes up to 2^22

LOWEST, HIGHEST = -128, 127


def bias_bounds(cut: int) -> tuple[int, int]:
    """For weight + input - bias, given the shift by which the product is cut."""
    return min(0, -(24 - (8 + cut))), 15


def of_scale(scale: float) -> int | None:
    """The position whose scale this is, or None if it is no power of two."""
    mantissa, exponent = frexp(scale)
    return 1 - exponent if mantissa == 0.5 else None


def widest(bound: float) -> int:
    """The finest position that still holds values up to this bound, if any of those that float32 computes with does."""
    return min(max(floor(log2(HIGHEST / bound)), -FURTHEST), FURTHEST) if bound > 0 else 0


def best_for(values: Array, counts: Array | None = None, *, finer: int = 3) -> int:
    """The position of least squared error for these values, each that often; up to a few finer than what holds them all.

    >>> best_for(np.array([0.5, -0.25]))
    7
    """
    times = np.ones(values.shape) if counts is None else counts
    kept = times.ravel() > 0
    numbers, times = values.ravel()[kept].astype(np.float64), times.ravel()[kept].astype(np.float64)
    bound = float(np.abs(numbers).max(initial=0.0))
    if bound == 0 or not np.isfinite(bound):
        return 0
    candidates = range(widest(bound), widest(bound) + finer + 1)
    return min(candidates, key=lambda position: (float((times * (numbers - rounded(numbers, position)) ** 2).sum()), position))


def rounded(values: Array, position: int) -> Array:
    """What is left of the values at a position."""
    return np.clip(np.rint(values * 2.0**position), LOWEST, HIGHEST) * 2.0**-position


def add_shifts(inputs: Iterable[int], output: int) -> tuple[int, int]:
    """The shifts by which an Add reads and writes."""
    read = sorted(inputs)
    return read[-1] - read[0], read[0] - output


def mul_shift(inputs: Iterable[int], output: int) -> int:
    """The shift by which a Mul writes."""
    return sum(inputs) - output
