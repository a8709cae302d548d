"""Questions that wait at the same time, asked as one: what may be put together, and how it is taken apart again.

    batching = chosen(profile, session, samples, description)     # most questions' rows at once, and for how long one waits for others
    for group in groups(questions, batching.most): ...            # each to be run as one
    outputs = session.run(joined([question.feeds for question in group]))
    taken = parted(outputs, [rows_of(question.feeds) for question in group])

A model is asked so only if its profile wants it, its first axis is free in every input and output, and its golden questions have the
same answers together as alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol, TypeVar

import numpy as np

from edge_agent import golden
from edge_agent.bundle import Description
from edge_agent.worker import Array, Session, SessionError


class Asked(Protocol):
    """A question, as far as it matters here."""

    feeds: dict[str, Array]
    outputs: tuple[str, ...]


Question = TypeVar("Question", bound=Asked)


@dataclass(frozen=True)
class Batching:
    """``most``: rows that are run at once; 1 is none. ``wait_s``: so long a question waits for others."""

    most: int = 1
    wait_s: float = 0.0


def chosen(profile: Mapping[str, Any], session: Session, samples: Sequence[golden.Sample], description: Description) -> Batching:
    """What the profile asks for, where the model can."""
    runtime = profile.get("runtime", {})
    wanted = Batching(int(runtime.get("max_batch", 1)), float(runtime.get("batch_wait_ms", 0)) / 1000)
    if wanted.most < 2 or not all(info.shape and info.shape[0] is None for info in (*session.inputs, *session.outputs)):
        return Batching()
    return wanted if _rows_are_apart(session, samples[0], description) else Batching()


def groups(questions: Sequence[Question], most: int) -> list[list[Question]]:
    """In the order in which they came, none kept behind a later one of its kind."""
    found: list[list[Question]] = []
    open_ones: dict[Any, tuple[list[Question], int]] = {}
    for question in questions:
        rows, kind = rows_of(question.feeds), _kind(question)
        group, held = open_ones.get(kind, ([], most))
        if not rows or held + rows > most:
            group, held = [], 0
            found.append(group)
        group.append(question)
        open_ones[kind] = (group, held + rows if rows else most)
    return found


def joined(feeds: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """One after the other along the first axis."""
    return {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}


def parted(outputs: Mapping[str, Array], rows: Sequence[int]) -> Optional[list[dict[str, Array]]]:
    """Each one's own; None where the answer has not a row for each row."""
    if any(output.shape[:1] != (sum(rows),) for output in outputs.values()):
        return None
    ends = np.cumsum(rows)
    return [{name: output[end - count : end] for name, output in outputs.items()} for count, end in zip(rows, ends)]


def rows_of(feeds: Mapping[str, Array]) -> int:
    """0 where the inputs do not agree: then it is asked alone."""
    lengths = {array.shape[0] for array in feeds.values()}
    return lengths.pop() if len(lengths) == 1 else 0


def _kind(question: Asked) -> Any:
    return question.outputs, tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in question.feeds.items()))


def _rows_are_apart(session: Session, sample: golden.Sample, description: Description) -> bool:
    """Whether a question and another, its rows mirrored, have together the answers that they have alone."""
    mirrored = {name: np.ascontiguousarray(array[..., ::-1]) for name, array in sample.feeds.items()}
    rows = rows_of(sample.feeds)
    if not rows:
        return False
    try:
        alone = [session.run(feeds) for feeds in (sample.feeds, mirrored)]
        together = parted(session.run(joined([sample.feeds, mirrored])), [rows, rows])
        if together is None:
            return False
        for expected, got in zip(alone, together):
            golden.compare(expected, got, description)
    except (golden.Differs, SessionError):
        return False
    return True
