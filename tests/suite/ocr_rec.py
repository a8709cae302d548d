"""PP-OCRv4 recognition: how many of 300 drawn lines are read exactly, spaces aside. Lines and reading are those of examples/line_reader.

Samples are float32 [1, 3, 48, 320]. Calibration draws with another seed.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "examples" / "line_reader"))
from lines import draw
from prepare import alphabet
from read import decode

MODEL = Path(__file__).parents[2] / ".cache" / "suite" / "ch_PP-OCRv4_rec_infer.onnx"  # the original: it carries the alphabet
Feeds = dict[str, np.ndarray]


def evaluate(run: Callable[[Feeds], Feeds]) -> np.ndarray:
    """1 for each of 300 lines that is read exactly, else 0."""
    characters = ["", *alphabet(MODEL)]
    right = []
    for image, text in zip(*_labelled(), strict=True):
        (scores,) = run({"x": image[None]}).values()
        right.append(decode(scores[0], characters).replace(" ", "") == text.replace(" ", ""))
    return np.array(right, float)


def calibration() -> Iterator[Feeds]:
    """128 other lines."""
    for image in draw(128, seed=2)[0]:
        yield {"x": image[None]}


@cache
def _labelled() -> tuple[np.ndarray, list[str]]:
    return draw(300, seed=1)
