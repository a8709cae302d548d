"""How long work tells how far it is; who shows it is the caller's business."""

from typing import Protocol


class Progress(Protocol):
    """Called with the stage's name and how much of it is done: samples, candidates or bytes. ``total`` 0: not known."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """For callers who do not want to know."""
