"""Accuracy: the same samples through the original and the result, and the budget's judge.

    judge = Judge.load("evaluate.py:evaluate", original, held_back)
    before = judge.scores(original_run)
    verdict = judge.compare(before, judge.scores(result_run), candidates=3)
    verdict.drop

Per-sample scores are parted in two by a fixed permutation: candidates are ranked on the first half (selection), and the one
winner is judged once on the second. Otherwise the best of many candidates passes by luck: with 300 samples, a true drop of
two points passes "at most one" in 24 % of cases with one candidate and in 99 % with the best of twenty.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk import arrays, student, users_code
from edgesdk.errors import EvaluationError, ModelError
from edgesdk.graph import Array, Feeds

Run = Callable[[Feeds], dict[str, Array]]
Scores = NDArray[np.float64]

AGREEMENT = "agreement with the original"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Original and result on the judging samples. Scores are "higher is better", their mean is the metric."""

    metric: str
    before: float
    after: float
    drop: float
    samples: int
    lost: int  # samples that score less than before
    gained: int
    interval: tuple[float, float] | None  # of the drop, 95 %; None where the function gives one number only
    candidates: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a candidate loses on the selection half, and the standard error of that: other samples will differ by about as much."""

    drop: float
    doubt: float


@dataclass(frozen=True, slots=True)
class Judge:
    """Scores a model. ``evaluate(run)`` gives one score a sample, or a single number."""

    metric: str
    source: str
    evaluate: Callable[[Run], Scores]

    @classmethod
    def load(cls, source: str | None, original: Run, held_back: Iterable[Feeds], *, held_back_source: str) -> "Judge":
        """The user's function or labelled file; without one, agreement with the original on held-back samples.

        Raises EvaluationError for what cannot be loaded.
        """
        if source is None:
            return _agreement(original, held_back, held_back_source)
        if source.endswith(".npz"):
            return _labelled(Path(source))
        return _function(source)

    def scores(self, run: Run) -> Scores:
        """Scores of shape [samples], or [1] where the user's function gives one number. Raises EvaluationError."""
        scores = self.evaluate(run)
        if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
            raise EvaluationError(
                f"`{self.source}` returned {_described(scores)}", "return a one-dimensional array of finite scores, one a sample, or one finite number"
            )
        return scores

    def compare(self, before: Scores, after: Scores, *, candidates: int) -> Accuracy:
        """The verdict on the judging half. Scores must be of the same samples."""
        halved = len(before) > 1
        before, after = (judging_half(scores) for scores in self._matched(before, after))
        return Accuracy(
            metric=self.metric,
            before=float(before.mean()),
            after=float(after.mean()),
            drop=float(before.mean() - after.mean()),
            samples=len(before),
            lost=int((after < before).sum()),
            gained=int((after > before).sum()),
            interval=drop_interval(before, after),
            candidates=candidates,
            source=self.source if halved else f"{self.source}, selected and judged on the same samples",
        )

    def selection(self, before: Scores, after: Scores) -> Loss:
        """How much a candidate loses on the half that candidates are ranked on; no doubt where all that there is is one number."""
        before, after = (selection_half(scores) for scores in self._matched(before, after))
        drops = before - after
        return Loss(float(drops.mean()), float(drops.std(ddof=1)) / math.sqrt(len(drops)) if len(drops) > 1 else 0.0)

    def _matched(self, before: Scores, after: Scores) -> tuple[Scores, Scores]:
        if before.shape != after.shape:
            raise EvaluationError(
                f"`{self.source}` returned {len(before)} scores for the original and {len(after)} for the result", "score the same samples each time"
            )
        return before, after


def selection_half(scores: Scores) -> Scores:
    """The scores on which candidates are ranked; all of them where there is only one."""
    return scores[np.random.default_rng(0).permutation(len(scores))[: len(scores) // 2]] if len(scores) > 1 else scores


def judging_half(scores: Scores) -> Scores:
    """The scores on which the one winner is judged; all of them where there is only one."""
    return scores[np.random.default_rng(0).permutation(len(scores))[len(scores) // 2 :]] if len(scores) > 1 else scores


def agree(expected: Feeds, got: Feeds) -> float:
    """1.0 where two answers say the same: equal argmax for softmax-like outputs, cosine of at least 0.99 for the others."""
    return float(all(_same(expected[name], got[name]) for name in expected))


def _same(expected: NDArray[Any], got: NDArray[Any]) -> bool:
    if expected.shape != got.shape:
        return False
    if expected.dtype.kind not in "fc":
        return bool((expected == got).all())
    if _is_distribution(expected):
        return bool((expected.argmax(-1) == got.argmax(-1)).all())
    a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return False
    a, b = a[finite], b[finite]
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) >= 0.99 * lengths if lengths else bool(np.allclose(a, b))


def _is_distribution(values: NDArray[Any]) -> bool:
    return values.ndim >= 2 and values.shape[-1] > 1 and bool((values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-3))


def _agreement(original: Run, held_back: Iterable[Feeds], source: str) -> Judge:
    feeds = list(held_back)
    answers = [original(feed) for feed in feeds]

    def evaluate(run: Run) -> Scores:
        return np.array([agree(answer, run(feed)) for feed, answer in zip(feeds, answers, strict=True)], float)

    return Judge(AGREEMENT, source, evaluate)


def _labelled(path: Path) -> Judge:
    """Top-1 on an .npz that holds the inputs and ``labels``."""
    loaded = arrays.read(path)
    if "labels" not in loaded:
        raise EvaluationError(f"`{path.name}` has no `labels`, it holds {', '.join(loaded) or 'nothing'}", "save it as np.savez(..., labels=classes)")
    labels = loaded.pop("labels")
    if not labels.ndim or not loaded or any(not array.ndim or len(array) != len(labels) for array in loaded.values()):
        raise EvaluationError(f"`{path.name}` has {labels.size} labels, and inputs of other lengths", "one label for each sample along the first axis")
    labels = _classes(labels, path.name)

    def evaluate(run: Run) -> Scores:
        right = []
        for index, label in enumerate(labels):
            try:
                answer = run({name: array[index : index + 1] for name, array in loaded.items()})
            except ModelError as error:
                raise EvaluationError(f"`{path.name}`: {error}", error.hint or "its arrays are `labels` and the model's inputs, by their names") from error
            found = _class_of(answer, path)
            if isinstance(found, str) != isinstance(label, str):
                raise EvaluationError(
                    f"`{path.name}` has labels such as {label!s}, and the model answers {found!s}", "save as `labels` what the model calls its classes"
                )
            right.append(found == label)
        return np.array(right, float)

    return Judge("top-1", path.name, evaluate)


def _classes(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """One a sample. Raises EvaluationError for what is none: with those no answer would ever be right."""
    flat = labels.reshape(-1) if labels.size == len(labels) else labels
    if flat.ndim != 1:
        raise EvaluationError(f"`{name}` has labels of shape {list(labels.shape)}", "one class a sample: of rows with a 1 in each, `labels.argmax(1)`")
    if flat.dtype.kind not in "biufUS" or (flat.dtype.kind == "f" and (flat != np.round(flat)).any()):
        raise EvaluationError(f"`{name}` has labels that are no classes, such as {flat[0]!s}", "whole numbers or text; else write module.py:function")
    return flat.astype(np.str_) if flat.dtype.kind == "S" else flat


def _class_of(answer: Feeds, path: Path) -> Any:
    """A whole-number or text output of one element is the class itself; else the argmax of the first output with classes."""
    for values in answer.values():
        if values.size == 1 and values.dtype.kind in "iuUO":
            return values.ravel()[0]
    for values in answer.values():
        if values.dtype.kind == "f" and values.size > 1:
            return int(values.ravel().argmax())
    raise EvaluationError(
        f"no output of the model is a class or has scores of classes, so `{path.name}` cannot be used", "write a function: module.py:function"
    )


def _function(source: str) -> Judge:
    """``module.py:function(run)``."""
    function = users_code.load(source, EvaluationError)

    def evaluate(run: Run) -> Scores:
        def ask(feeds: Feeds) -> dict[str, Array]:
            if not isinstance(feeds, Mapping):
                raise EvaluationError(f"`{source}` asked with {type(feeds).__name__}", "`run` takes the inputs by name: run({'x': array})")
            return run(feeds)

        scores = function(ask)
        if scores is None:
            raise EvaluationError(f"`{source}` returned nothing", "end it with `return`: an array of scores, one a sample, or one number")
        try:
            return np.atleast_1d(np.asarray(scores, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"`{source}` returned {type(scores).__name__}: {error}", "return an array of scores, one a sample, or one number") from error

    return Judge(f"{function.__name__}({Path(source.rpartition(':')[0]).name})", source, evaluate)


def drop_interval(before: Scores, after: Scores) -> tuple[float, float] | None:
    """95 % interval of the mean drop of paired scores.

    For scores of 0 and 1 the adjusted Wald interval of Agresti and Min (2005, "Simple improved confidence intervals for
    comparing matched proportions"), which adds half a sample to each cell and so does not collapse when nothing was lost;
    for other scores Student's.
    """
    count = len(before)
    if count < 2:
        return None
    drops = before - after
    mean, variance = float(drops.mean()), float(drops.var(ddof=1)) / count
    if set(np.unique(before)) | set(np.unique(after)) <= {0.0, 1.0}:
        lost, gained, total = float((drops > 0).sum()) + 0.5, float((drops < 0).sum()) + 0.5, count + 2
        mean = (lost - gained) / total
        variance = (lost + gained - (lost - gained) ** 2 / total) / total**2
        reach = 1.96 * math.sqrt(variance)
    else:
        reach = student.quantile(count - 1, 0.975) * math.sqrt(variance)
    return round(mean - reach, 6), round(mean + reach, 6)


def score_interval(scores: Scores) -> tuple[float, float] | None:
    """95 % interval of the mean score; None for one number.

    For scores of 0 and 1 Wilson's (1927, "Probable inference, the law of succession, and statistical inference"), which stays within 0 and 1 and does
    not collapse where all are right; for other scores Student's.
    """
    count = len(scores)
    if count < 2:
        return None
    mean = float(scores.mean())
    if set(np.unique(scores)) <= {0.0, 1.0}:
        whole = 1 + 1.96**2 / count
        middle = (mean + 1.96**2 / (2 * count)) / whole
        reach = 1.96 * math.sqrt(mean * (1 - mean) / count + 1.96**2 / (4 * count**2)) / whole
        return round(max(middle - reach, 0.0), 6), round(min(middle + reach, 1.0), 6)
    reach = student.quantile(count - 1, 0.975) * float(scores.std(ddof=1)) / math.sqrt(count)
    return round(mean - reach, 6), round(mean + reach, 6)


def _described(scores: Scores) -> str:
    if scores.ndim != 1 or not scores.size:
        return f"an array of shape {list(scores.shape)}"
    return f"{int((~np.isfinite(scores)).sum())} scores that are not finite, of {len(scores)}"
