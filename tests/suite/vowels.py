"""Japanese vowels for bilstm_vowels: which of nine speakers says /ae/, 370 utterances.

Samples are float32 [1, 29, 12]: twelve cepstrum coefficients a step, 7 to 29 steps, zeros after the end. The data set's own training
and test parts (Kudo, Toyama, Shimbo 1999).
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / ".cache" / "suite"
STEPS = 29
Feeds = dict[str, np.ndarray]


def evaluate(run: Callable[[Feeds], Feeds]) -> np.ndarray:
    """1 for each utterance whose speaker is told right, else 0."""
    right = []
    for utterance, speaker in _utterances("TEST"):
        (logits,) = run({"cepstrum": utterance[None]}).values()
        right.append(logits[0].argmax() == speaker)
    return np.array(right, float)


def calibration() -> Iterator[Feeds]:
    """The 270 utterances of the training part."""
    for utterance, _ in _utterances("TRAIN"):
        yield {"cepstrum": utterance[None]}


@cache
def _utterances(part: str) -> list[tuple[np.ndarray, int]]:
    """Utterances [29, 12] and their speakers, 0 to 8. A row of the file: channels parted by colons, then the speaker."""
    _, _, rows = (DATA / f"JapaneseVowels_{part}.ts").read_text().partition("@data\n")
    return [_utterance(row) for row in rows.splitlines() if row.strip()]


def _utterance(row: str) -> tuple[np.ndarray, int]:
    *channels, speaker = row.split(":")
    values = np.array([channel.split(",") for channel in channels]).astype(np.float32).T
    return np.pad(values, ((0, STEPS - len(values)), (0, 0))), int(speaker) - 1
