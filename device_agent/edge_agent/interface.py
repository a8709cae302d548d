"""What programs rely on: the names, kinds and shapes of a model's inputs and outputs, and its labels. Standard library only.

check(new, old)        # raises Refused where they differ
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.bundle import TensorInfo
from edge_agent.releases import Refused
from edge_agent.store import Deployment


def check(new: Deployment, old: Deployment) -> None:
    """A correct model can still break the program that asks it. Raises Refused, with both printed."""
    hint = "programs here may rely on them: deploy it with --allow-signature-change, or under another name"
    for what, offered, expected in (
        ("inputs", new.description.inputs, old.description.inputs),
        ("outputs", new.description.outputs, old.description.outputs),
    ):
        if offered != expected:
            raise Refused(
                f"the {what} of release {new.release} of {new.name} are {_told(offered)}; those of release {old.release}, which is active, {_told(expected)}",
                hint,
            )
    labels = [_labels(deployment.folder) for deployment in (new, old)]
    if labels[0] != labels[1]:
        raise Refused(
            f"the labels of release {new.release} of {new.name} are {', '.join(labels[0][:8]) or 'none'}; "
            f"those of release {old.release}, which is active, {', '.join(labels[1][:8]) or 'none'}",
            hint,
        )


def _told(tensors: tuple[TensorInfo, ...]) -> str:
    return ", ".join(f"`{one.name}` {one.dtype} [{', '.join('any' if length is None else str(length) for length in one.shape)}]" for one in tensors)


def _labels(folder: Path) -> list[str]:
    try:
        return (folder / "labels.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
