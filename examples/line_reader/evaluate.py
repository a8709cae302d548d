"""How many lines are read without a mistake? `edgesdk package` asks this of the original and of all that it tries."""

from collections.abc import Callable

import numpy as np
from lines import draw
from read import decode, load_alphabet

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def evaluate(run: Run) -> np.ndarray:
    """1 for each of 150 lines that is read exactly, spaces aside, else 0. Calibration sees none of them: its seed is 2."""
    alphabet = load_alphabet()
    images, texts = draw(150, seed=1)
    right = []
    for image, text in zip(images, texts, strict=True):
        (scores,) = run({"x": image[None]}).values()
        right.append(decode(scores[0], alphabet).replace(" ", "") == text.replace(" ", ""))
    return np.array(right, float)
