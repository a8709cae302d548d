"""Does a conversion answer as its source? Numbers within a tolerance, labels exactly."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesdk.errors import ConversionError, ModelError

if TYPE_CHECKING:
    from edgesdk.graph import Array, Feeds, Model

RELATIVE = 1e-4  # of the greatest magnitude in an answer, and no less than of 1: what float32 and another order of sums may change
BATCH = 4


@dataclass(frozen=True, slots=True)
class Agreement:
    """The worst sample of one output. Labels and other whole numbers have the tolerance 0."""

    output: str
    difference: float
    tolerance: float
    ties: int = 0  # labels that differ where the source's own two best scores are equal within the tolerance

    def to_text(self) -> str:
        if not self.tolerance:
            return f"{self.output}: equal" + (f", but for {self.ties} ties" if self.ties else "")
        return f"{self.output}: differs by {self.difference:.2g} at most, {self.tolerance:.2g} allowed"


def compare(source: "Callable[[Feeds], Feeds]", model: "Model", samples: "Iterable[Feeds]") -> tuple[Agreement, ...]:
    """Ask both the same, one sample at a time and then a few at once. Raises ConversionError for the first answer that differs."""
    from edgesdk import graph

    session = graph.session(model)
    worst: dict[str, Agreement] = {}
    for where, feeds in _with_batch(samples, model):
        expected = source(feeds)
        try:
            answers = graph.run(session, feeds)
        except ModelError as error:
            raise ConversionError(f"the conversion fails where the source answers, on {where}: {error}", error.hint) from error
        for name, answer in answers.items():
            found = _compared(name, expected, answer, where)
            known = worst.get(name, found)
            further = max(known, found, key=lambda one: one.difference / (one.tolerance or 1))
            worst[name] = Agreement(name, further.difference, further.tolerance, known.ties + found.ties if name in worst else found.ties)
    return tuple(worst.values())


def _with_batch(samples: "Iterable[Feeds]", model: "Model") -> "Iterator[tuple[str, Feeds]]":
    """Each sample, then the first few as one batch where the model's inputs have a free one: what was traced with one row may fail with four."""
    import numpy as np

    from edgesdk import graph

    first: list[Feeds] = []
    for number, feeds in enumerate(samples):
        first = [*first, feeds] if len(first) < BATCH else first
        yield f"sample {number}", feeds
    free = all(info.shape and info.shape[0] is None for info in graph.inputs(model))
    alike = len({tuple(array.shape for array in feeds.values()) for feeds in first}) == 1
    if free and alike and len(first) > 1:
        yield f"a batch of the first {len(first)} samples", {name: np.concatenate([feeds[name] for feeds in first]) for name in first[0]}


def _compared(name: str, answers: "Feeds", answer: "Array", where: str) -> Agreement:
    import numpy as np

    expected = np.asarray(answers[name])
    if expected.shape != answer.shape:
        raise _differs(name, where, f"has shape {list(answer.shape)}, the source's has {list(expected.shape)}")
    if answer.dtype.kind not in "fc":
        return Agreement(name, 0.0, 0.0, _ties(name, answers, answer, where))
    if not np.array_equal(np.isfinite(expected), np.isfinite(answer)):
        raise _differs(name, where, "is NaN or infinite in other places than the source's")
    finite = np.isfinite(answer)
    distance = np.abs(answer.astype(np.float64) - expected.astype(np.float64))[finite]
    difference, tolerance = float(distance.max(initial=0.0)), _tolerance(expected[finite], answer.dtype)
    if difference > tolerance:
        raise _differs(name, where, f"differs from the source's by {difference:.3g}, more than the {tolerance:.2g} allowed")
    return Agreement(name, difference, tolerance)


def _tolerance(expected: "Array", dtype: Any) -> float:
    """Float16 has fewer digits to agree in."""
    import numpy as np

    return max(RELATIVE, 8 * float(np.finfo(dtype).eps)) * max(1.0, float(np.abs(expected).max(initial=0.0)))


def _ties(name: str, answers: "Feeds", answer: "Array", where: str) -> int:
    """How many labels differ for want of a winner: half of a forest's trees vote for one class, half for another, and rounding decides."""
    import numpy as np

    expected = np.asarray(answers[name])
    texts = "U" in (expected.dtype.kind, answer.dtype.kind) or "O" in (expected.dtype.kind, answer.dtype.kind)
    unequal = np.argwhere(expected.astype(str) != answer.astype(str) if texts else expected != answer)
    tied = _tied_rows(answers) if answer.ndim == 1 else frozenset()
    for place in unequal:
        if int(place[0] if len(place) else 0) not in tied:
            at = tuple(int(index) for index in place)
            raise _differs(name, where, f"is {answer[at]}, the source's is {expected[at]}")
    return len(unequal)


def _tied_rows(answers: "Feeds") -> frozenset[int]:
    """Rows in which the source's scores have no clear winner."""
    import numpy as np

    rows: set[int] = set()
    for scores in map(np.asarray, answers.values()):
        if scores.ndim == 2 and scores.shape[1] > 1 and scores.dtype.kind == "f":
            best = np.sort(scores, axis=1)[:, -2:]
            rows.update(np.flatnonzero(best[:, 1] - best[:, 0] <= _tolerance(scores, np.float32)).tolist())
    return frozenset(rows)


def _differs(name: str, where: str, how: str) -> ConversionError:
    return ConversionError(
        f"the conversion does not answer as the source: on {where}, output `{name}` {how}; nothing was written",
        "try another --opset; features far from zero should be scaled before they become float32",
    )
