"""Fashion-MNIST for resnet20_fashion and mobilenet_fashion: the first 5,000 images of its test part.

Samples are float32 [n, 1, 28, 28], pixel / 255.
"""

import gzip
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / ".cache" / "suite"
TEST, BATCH, TRAINING = 5000, 50, 60000
Feeds = dict[str, np.ndarray]


def evaluate(run: Callable[[Feeds], Feeds]) -> np.ndarray:
    """1 for each image that is told right, else 0."""
    images, labels = _images("t10k", TEST), _read("t10k-labels-idx1", header=8)[:TEST]
    right = []
    for begin in range(0, TEST, BATCH):
        (logits,) = run({"image": images[begin : begin + BATCH]}).values()
        right.extend(logits.argmax(-1) == labels[begin : begin + BATCH])
    return np.array(right, float)


def calibration() -> Iterator[Feeds]:
    """200 images of the training part."""
    for image in _images("train", 200):
        yield {"image": image[None]}


def training() -> tuple[np.ndarray, np.ndarray]:
    """What training saw: images [60000, 1, 28, 28] and labels [60000]."""
    return _images("train", TRAINING), _read("train-labels-idx1", header=8).astype(np.int64)


@cache
def _images(part: str, count: int) -> np.ndarray:
    return _read(f"{part}-images-idx3", header=16).reshape(-1, 1, 28, 28)[:count].astype(np.float32) / 255


@cache
def _read(name: str, *, header: int) -> np.ndarray:
    """What an IDX file holds (LeCun, "The MNIST database", file formats), without its header."""
    return np.frombuffer(gzip.decompress((DATA / f"{name}-ubyte.gz").read_bytes()), np.uint8, offset=header)
