"""Verses in two translations for paraphrase-MiniLM-L3-v2: does a verse find itself in the other wording, among 400?

Samples are int64 [n, 48] `input_ids` and `attention_mask`, padded with 0; sentences have 12 to 46 tokens. A seeded permutation parts
evaluation and calibration. `vocabulary.txt` is BERT base uncased's.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / ".cache" / "suite"
VOCABULARY = {token: number for number, token in enumerate(Path(__file__).with_name("vocabulary.txt").read_text(encoding="utf-8").split("\n"))}
EMBEDDING = "461"  # float32 [n, 384], the mean over tokens; the model has three more outputs
LENGTH, VERSES, BATCH = 48, 400, 8
Feeds = dict[str, np.ndarray]


def evaluate(run: Callable[[Feeds], Feeds]) -> np.ndarray:
    """For each of 400 verses, found by cosine similarity from neither, one or both translations: 0, 0.5 or 1. The mean is recall@1."""
    first, second = (_embedded(ids, run) for ids in _pairs(0, VERSES))
    similar, itself = first @ second.T, np.arange(VERSES)
    return ((similar.argmax(1) == itself) + 0.0 + (similar.argmax(0) == itself)) / 2


def calibration() -> Iterator[Feeds]:
    """64 other verses in either translation."""
    for ids in np.concatenate(_pairs(5000, 64)):
        yield feeds(ids[None])


def feeds(ids: np.ndarray) -> Feeds:
    """What the model is fed for token numbers [n, 48]."""
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


def tokens(text: str) -> list[int]:
    """As BERT base uncased numbers them, with [CLS] and [SEP]."""
    plain = "".join(letter for letter in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(letter) != "Mn")
    numbers = [number for word in re.findall(r"\w+|[^\w\s]", plain) for number in pieces(word)]
    return [VOCABULARY["[CLS]"], *numbers, VOCABULARY["[SEP]"]]


def pieces(word: str) -> list[int]:
    """WordPiece: the longest known beginning, again and again (Wu et al. 2016, section 4.1)."""
    found, start = [], 0
    while start < len(word):
        known = (VOCABULARY.get(("##" if start else "") + word[start:end]) for end in range(len(word), start, -1))
        end, number = next(((len(word) - index, number) for index, number in enumerate(known) if number is not None), (0, 0))
        if not end:
            return [VOCABULARY["[UNK]"]]
        found.append(number)
        start = end
    return found


def _embedded(ids: np.ndarray, run: Callable[[Feeds], Feeds]) -> np.ndarray:
    vectors = np.concatenate([run(feeds(ids[begin : begin + BATCH]))[EMBEDDING] for begin in range(0, len(ids), BATCH)])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@cache
def _pairs(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers int64 [count, 48] of the same verses in either translation, from the ``first``th of the permutation on."""
    rows = _rows()
    order = np.random.default_rng(0).permutation(len(rows))[first:]
    both = (tuple(map(tokens, rows[row])) for row in order)
    fitting = islice((pair for pair in both if all(12 <= len(numbers) <= LENGTH - 2 for numbers in pair)), count)
    padded = np.array([[numbers + [0] * (LENGTH - len(numbers)) for numbers in pair] for pair in fitting], np.int64)
    return padded[:, 0], padded[:, 1]


def _rows() -> list[list[str]]:
    """Verses that occur once: a refrain would be another's twin."""
    rows = [line.split("\t") for line in (DATA / "verses.tsv").read_text(encoding="utf-8").splitlines()]
    often = Counter(_bare(half) for row in rows for half in row)
    return [row for row in rows if all(often[_bare(half)] == 1 for half in row)]


def _bare(text: str) -> str:
    return re.sub(r"\W+", "", text.lower())
