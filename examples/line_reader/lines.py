"""Lines of text, drawn: as many as one likes, each with what it says. No data set to download, none to keep.

images, texts = draw(150, seed=1)
"""

import random
import re
from collections.abc import Iterator
from itertools import islice
from pydoc_data import topics

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from read import HEIGHT, WIDTH, normalise

WORDS = sorted(set(re.findall(r"\b[A-Za-z]{3,12}\b", " ".join(topics.topics.values()))))[::3]  # of Python's own help texts
MARGIN = 6


def draw(count: int, *, seed: int) -> tuple[np.ndarray, list[str]]:
    """Normalised lines, [count, 3, 48, 320], and what each says. Other seeds give other lines."""
    pages, texts = zip(*islice(scanned(seed), count), strict=True)
    return np.stack([normalise(page) for page in pages]), list(texts)


def scanned(seed: int) -> Iterator[tuple[Image.Image, str]]:
    """Lines without end, as a scanner sees them: in several sizes, a little askew, with noise."""
    pick, noise = random.Random(seed), np.random.default_rng(seed)
    while True:
        text = " ".join(pick.choice(WORDS) for _ in range(pick.randint(1, 3)))
        if pick.random() < 0.3:
            text += f" {pick.randint(0, 99999)}"
        size = pick.randint(18, 36)
        if not fits(text, size):
            continue
        paper, ink = pick.randint(150, 255), pick.randint(0, 90)
        page = printed(text, size=size, paper=paper, ink=ink).rotate(pick.uniform(-2, 2), fillcolor=(paper,) * 3)
        grain = noise.normal(0, noise.uniform(0, 18), (page.height, page.width, 3))
        yield Image.fromarray(np.clip(np.asarray(page, np.float32) + grain, 0, 255).astype(np.uint8)), text


def printed(text: str, *, size: int = 28, paper: int = 240, ink: int = 30) -> Image.Image:
    """Black on white, or nearly so, in the font that comes with Pillow."""
    left, top, right, bottom = ImageFont.load_default(size).getbbox(text)
    page = Image.new("RGB", (int(right - left) + 2 * MARGIN, int(bottom - top) + 2 * MARGIN), (paper,) * 3)
    ImageDraw.Draw(page).text((MARGIN - left, MARGIN - top), text, font=ImageFont.load_default(size), fill=(ink,) * 3)
    return page


def fits(text: str, size: int) -> bool:
    """Is the line no longer than what the model is given?"""
    left, top, right, bottom = ImageFont.load_default(size).getbbox(text)
    return (int(right - left) + 2 * MARGIN) / (int(bottom - top) + 2 * MARGIN) <= WIDTH / HEIGHT
