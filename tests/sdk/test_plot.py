"""The picture is drawn of what was tried, and refused before the long work where it cannot be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgesdk.cli import plot
from edgesdk.errors import ProjectError
from edgesdk.packaging import Packaged


def packaged(*candidates: dict[str, object]) -> Packaged:
    class Accuracy:
        metric = "top-1"

    made = Packaged.__new__(Packaged)
    for name, value in (("candidates", candidates), ("accuracy", Accuracy()), ("name", "digits"), ("profile", "x86-cpu")):
        object.__setattr__(made, name, value)
    return made


def candidate(label: str, after_ms: float | None, drop: float | None, note: str = "") -> dict[str, object]:
    return {"label": label, "speed": {"before_ms": 2.0, "after_ms": after_ms} if after_ms else None, "selection_drop": drop, "note": note}


TRIED = [candidate("int8", 1.0, 0.2, "loses"), candidate("int8, 3 of 9 parts", 1.4, 0.0, "taken"), candidate("float32", None, None)]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_every_candidate_is_in_the_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tried{suffix}"
    plot.check(path)
    plot.draw(packaged(*TRIED), path)
    if suffix == ".png":
        assert np.asarray(Image.open(path)).std() > 5
    else:
        text = path.read_text()
        assert "digits for x86-cpu" in text
        assert all(str(each["label"]) in text for each in TRIED[:2])


def test_nothing_timed_is_drawn_in_the_order_of_preference(tmp_path: Path) -> None:
    plot.draw(packaged(candidate("int8", None, 0.02, "loses"), candidate("float16", None, 0.0, "taken")), tmp_path / "tried.svg")
    assert "nothing could be timed here" in (tmp_path / "tried.svg").read_text()


@pytest.mark.parametrize(("name", "told"), [("tried.jpg", "no picture"), ("nowhere/tried.png", "no folder"), ("folder.png", "is a folder")])
def test_what_cannot_be_drawn_is_refused_first(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ProjectError, match=told):
        plot.check(tmp_path / name)
