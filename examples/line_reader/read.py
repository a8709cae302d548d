"""Read text-line images with the model that the agent runs on this device. Needs edge_agent, numpy and Pillow.

python read.py line.png more.jpg
"""

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edge_agent import connect
from edge_agent.client import ClientError

HEIGHT, WIDTH = 48, 320
ALPHABET = Path(__file__).with_name("alphabet.txt")


def main(paths: list[str]) -> None:
    """Print what each image says."""
    alphabet = load_alphabet()
    with connect("line-reader") as model:
        for path in paths:
            (scores,) = model(normalise(Image.open(path))[None]).values()
            print(decode(scores[0], alphabet))


def normalise(image: Image.Image) -> np.ndarray:
    """A line as the model wants it: [3, 48, 320], -1 … 1, blank on the right."""
    width = min(WIDTH, math.ceil(HEIGHT * image.width / image.height))
    pixels = np.asarray(image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    line = np.zeros((3, HEIGHT, WIDTH), np.float32)
    line[:, :, :width] = pixels.transpose(2, 0, 1) / 127.5 - 1
    return line


def decode(scores: np.ndarray, alphabet: list[str]) -> str:
    """Scores [steps, characters] → text: the best character of each step, repetitions and blanks (character 0) left out."""
    best = scores.argmax(axis=-1)
    before = np.concatenate([[0], best[:-1]])
    return "".join(alphabet[character] for character in best[(best != before) & (best != 0)])


def load_alphabet() -> list[str]:
    """The model's characters by number, as prepare.py wrote them: one a line. The first is the blank, the last a space."""
    return ["", *ALPHABET.read_text(encoding="utf-8").split("\n")]


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or sys.exit(__doc__))
    except ClientError as error:
        sys.exit(f"{error}: {error.hint}")
    except OSError as error:  # no such file, or no image
        sys.exit(str(error))
