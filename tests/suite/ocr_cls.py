"""PP-OCR's text direction: how many of 1,000 drawn lines are told to be upright or upside down.

Samples are float32 [1, 3, 48, 192]. The lines are harder than the recogniser's: faint, blurred, noisy. Calibration draws with another seed.
"""

import math
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

sys.path.append(str(Path(__file__).parents[2] / "examples" / "line_reader"))
from lines import MARGIN, WORDS

HEIGHT, WIDTH = 48, 192
Feeds = dict[str, np.ndarray]


def evaluate(run: Callable[[Feeds], Feeds]) -> np.ndarray:
    """1 for each of 1,000 lines whose direction is told right, else 0."""
    right = []
    for image, upside_down in _labelled():
        (scores,) = run({"x": image[None]}).values()
        right.append(bool(scores[0].argmax()) == upside_down)
    return np.array(right, float)


def calibration() -> Iterator[Feeds]:
    """200 other lines."""
    for image, _ in islice(lines(seed=2), 200):
        yield {"x": image[None]}


def lines(seed: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Lines without end, [3, 48, 192], and whether they stand on their heads, as every other one does."""
    pick, noise = random.Random(seed), np.random.default_rng(seed)
    while True:
        page = printed(pick)
        upside_down = pick.random() < 0.5
        if upside_down:
            page = page.rotate(180)
        pixels = np.asarray(page, np.float32) + noise.normal(0, noise.uniform(0, 30), (page.height, page.width, 3))
        yield normalise(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))), upside_down


def printed(pick: random.Random) -> Image.Image:
    """A few words, dark on light to hardly visible, a little askew and out of focus."""
    text = " ".join(pick.choice(WORDS) for _ in range(pick.randint(1, 4)))
    font = _font(pick.randint(14, 36))
    left, top, right, bottom = font.getbbox(text)
    paper = pick.randint(110, 255)
    ink = max(paper - pick.randint(50, 110), 0) if pick.random() < 0.5 else pick.randint(0, 60)
    page = Image.new("RGB", (int(right - left) + 2 * MARGIN, int(bottom - top) + 2 * MARGIN), (paper,) * 3)
    ImageDraw.Draw(page).text((MARGIN - left, MARGIN - top), text, font=font, fill=(ink,) * 3)
    return page.rotate(pick.uniform(-4, 4), fillcolor=(paper,) * 3).filter(ImageFilter.GaussianBlur(pick.uniform(0, 1.2)))


def normalise(page: Image.Image) -> np.ndarray:
    """As the model wants it: -1 … 1, blank on the right."""
    width = min(WIDTH, math.ceil(HEIGHT * page.width / page.height))
    line = np.zeros((3, HEIGHT, WIDTH), np.float32)
    line[:, :, :width] = np.asarray(page.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 127.5 - 1
    return line


@cache
def _labelled() -> list[tuple[np.ndarray, bool]]:
    return list(islice(lines(seed=1), 1000))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
