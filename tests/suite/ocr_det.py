"""PP-OCRv4 detection: F1 of the text boxes found on 40 drawn pages.

Samples are float32 [1, 3, 640, 640]: pages of text on plain, shaded or textured paper, some over pictures of shapes. Calibration draws
with another seed. Needs scipy.
"""

import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

sys.path.append(str(Path(__file__).parents[2] / "examples" / "line_reader"))
from lines import WORDS

SIDE = 640
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Feeds = dict[str, np.ndarray]


def evaluate(run: Callable[[Feeds], Feeds]) -> float:
    """F1 at an intersection over union of 0.5, over all pages, each true box matched once."""
    hits = true = found = 0
    for page, boxes in _labelled():
        (probability,) = run({"x": normalise(page)[None]}).values()
        left = detect(probability[0, 0])
        true, found = true + len(boxes), found + len(left)
        for box in boxes:
            best = max(left, key=lambda other, box=box: overlap(box, other), default=None)
            if best is not None and overlap(box, best) >= 0.5:
                left.remove(best)
                hits += 1
    return 2 * hits / (true + found)


def calibration() -> Iterator[Feeds]:
    """32 other pages."""
    for page, _ in islice(pages(seed=2), 32):
        yield {"x": normalise(page)[None]}


def pages(seed: int) -> Iterator[tuple[np.ndarray, list[Box]]]:
    """Pages without end, uint8 [640, 640, 3], and the box of each line of text on them."""
    pick, noise = random.Random(seed), np.random.default_rng(seed)
    while True:
        page = paper(pick, noise)
        boxes = write(page, pick)
        pixels = np.asarray(page.filter(ImageFilter.GaussianBlur(pick.uniform(0, 0.9))), np.float32)
        yield np.clip(pixels + noise.normal(0, noise.uniform(0, 16), pixels.shape), 0, 255).astype(np.uint8), boxes


def paper(pick: random.Random, noise: np.random.Generator) -> Image.Image:
    """A page without text: one colour, a shade or a coarse texture, perhaps with shapes."""
    colour = np.array([pick.randint(120, 255) for _ in range(3)], np.float32)
    pixels = np.broadcast_to(colour, (SIDE, SIDE, 3)).copy()
    kind = pick.random()
    if kind < 0.4:
        pixels *= np.linspace(pick.uniform(0.55, 1), 1, SIDE, dtype=np.float32)[:, None, None]
    elif kind < 0.7:
        coarse = noise.normal(0, 1, (SIDE // 16, SIDE // 16, 1))
        pixels += pick.uniform(4, 22) * ndimage.zoom(coarse, (16, 16, 1), order=1)[:SIDE, :SIDE]
    page = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(page)
    for _ in range(pick.choice((0, 0, 3, 6))):
        x, y = pick.randint(0, SIDE), pick.randint(0, SIDE)
        shape = pick.choice((draw.ellipse, draw.rectangle))
        shape((x, y, x + pick.randint(20, 160), y + pick.randint(20, 160)), fill=tuple(pick.randint(90, 255) for _ in range(3)))
    return page


def write(page: Image.Image, pick: random.Random) -> list[Box]:
    """Fill the page with lines in several sizes, one or two beside each other. Returns their boxes."""
    draw, boxes, y = ImageDraw.Draw(page), [], pick.randint(8, 50)
    ink = tuple(pick.randint(0, 110) for _ in range(3))
    while y < SIDE - 60:
        size, x = pick.choice((11, 13, 16, 20, 26, 34, 44)), pick.randint(8, 120)
        while x < SIDE - 60:
            text = words(pick, _font(size), SIDE - 8 - x)
            box = draw.textbbox((x, y), text, font=_font(size))
            if box[2] > SIDE - 4:
                break
            draw.text((x, y), text, font=_font(size), fill=ink)
            boxes.append(box)
            x = int(box[2]) + pick.randint(3, 8) * size
        y += int(size * pick.uniform(1.6, 3.2))
    return boxes


def words(pick: random.Random, font: ImageFont.FreeTypeFont, room: float) -> str:
    """One to eight words, no longer than there is room if they are more than one."""
    text = pick.choice(WORDS)
    for _ in range(pick.randint(1, 7)):
        longer = f"{text} {pick.choice(WORDS)}"
        if font.getlength(longer) > room:
            break
        text = longer
    return text


def normalise(page: np.ndarray) -> np.ndarray:
    """As the model wants it: [3, 640, 640], -1 … 1."""
    return page.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1


def detect(probability: np.ndarray, threshold: float = 0.3, score: float = 0.6, unclip: float = 1.5) -> list[Box]:
    """Upright boxes in a map of probabilities [h, w]: connected parts, grown back (Liao et al. 2020, "Real-time scene text detection", 3.5)."""
    parts, count = ndimage.label(probability > threshold)
    means = ndimage.mean(probability, parts, range(1, count + 1))
    found = []
    for (rows, columns), mean in zip(ndimage.find_objects(parts), np.atleast_1d(means), strict=False):  # no part: one mean all the same
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) >= 3 and mean >= score:
            grow = width * height * unclip / (2 * (width + height))
            found.append((columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow))
    return found


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@cache
def _labelled() -> list[tuple[np.ndarray, list[Box]]]:
    return list(islice(pages(seed=1), 40))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
