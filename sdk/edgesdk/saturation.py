"""What x86 without VNNI does to uint8 times int8: VPMADDUBSW adds two products in 16 bits, and saturates.

Two weights of one sign that meet there must not come to more than 128, since each meets 255 at most. Which two meet depends on
the kernel, so the greatest two of an output channel are taken. onnxruntime's `reduce_range` takes 7 bits everywhere
("Quantize ONNX Models", "U8S8"), which is the same where a channel's two greatest are equal, and coarser elsewhere.
"""

import numpy as np

from edgesdk.graph import Array

PAIR = 128  # 255 · 128 < 2^15


def possible(integers: Array, axis: int) -> bool:
    """Whether two weights of an output channel can saturate, given the weights' axis of these."""
    rows = np.moveaxis(integers.astype(np.int64), axis, 0).reshape(integers.shape[axis], -1)
    return bool(greatest_pairs(rows).max(initial=0) > PAIR)


def greatest_pairs(rows: Array) -> Array:
    """The greatest magnitude to which two numbers of one sign add up, in each row."""
    return np.maximum(_greatest_pairs(rows), _greatest_pairs(-rows))


def _greatest_pairs(rows: Array) -> Array:
    above = np.maximum(rows, 0)
    if above.shape[1] < 2:
        return np.asarray(above.sum(axis=1))
    return np.asarray(np.partition(above, above.shape[1] - 2, axis=1)[:, -2:].sum(axis=1))
