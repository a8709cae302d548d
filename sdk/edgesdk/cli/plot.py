"""Pictures: what was tried, accuracy against latency, a point a candidate; what fewer channels do to the answers, a line a group."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk.cli import files
from edgesdk.errors import ProjectError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgesdk.packaging import Packaged
    from edgesdk.pruning import Outlook

FORMATS = (".png", ".svg")
NAMED = 12  # groups of channels whose lines bear a name


def check(path: Path) -> None:
    """Before the long work: the picture can be drawn. Raises ProjectError."""
    if path.suffix not in FORMATS:
        raise ProjectError(f"`{path}` is no picture that can be drawn", f"give a name that ends in {' or '.join(FORMATS)}")
    files.check(path)
    if find_spec("matplotlib") is None:
        raise ProjectError("the picture is drawn by matplotlib, which is not installed", "pip install 'edgesdk[plot]'")


def draw(packaged: "Packaged", path: Path) -> None:
    """Scored candidates by what they lose and how long they take; those that nobody had to score stand below the axis."""
    shown = [candidate for candidate in packaged.candidates if candidate["speed"] is not None or candidate["selection_drop"] is not None]
    timed = any(candidate["speed"] for candidate in shown)
    whole = next((candidate["speed"]["before_ms"] for candidate in shown if candidate["speed"]), 1.0)
    worst = max([abs(candidate["selection_drop"] or 0.0) for candidate in shown] + [0.01])
    with _picture(path) as axes:
        for place, candidate in enumerate(shown):
            taken = candidate["note"] == "taken"
            across = candidate["speed"]["after_ms"] if candidate["speed"] else whole if timed else float(place)
            scored = candidate["selection_drop"] is not None
            height = -candidate["selection_drop"] if scored else -1.15 * worst
            colour = "tab:green" if taken else "tab:grey" if not scored else "tab:blue" if candidate["note"] == "" else "tab:red"
            axes.plot(across, height, "o", color=colour, fillstyle="full" if scored else "none", markersize=11 if taken else 7)
            axes.annotate(candidate["label"], (across, height), xytext=(6, 5), textcoords="offset points", fontsize=8)
        axes.axhline(0.0, color="black", linewidth=0.6)
        axes.set_xlabel("latency, ms (median of pairs)" if timed else "candidate, in the order of preference: nothing could be timed here")
        axes.set_ylabel(f"change of {packaged.accuracy.metric} on the selection samples")
        axes.set_title(f"{packaged.name} for {packaged.profile}: green is taken, red misses the budget, hollow was not scored")


def draw_outlook(outlook: "Outlook", path: Path, model: str) -> None:
    """What a group's going does to the answers against the multiply-accumulates that go with it; a dot where the goal puts it."""
    with _picture(path) as axes:
        ordered = sorted(outlook.channels, key=lambda each: -each.macs)
        for place, each in enumerate(ordered):
            line = [(gone * each.macs, effect) for gone, effect in each.effects if gone]
            (drawn,) = axes.plot(*zip(*line, strict=True), marker=".", linewidth=1, label=f"{each.name}, {each.channels}" if place < NAMED else None)
            gone = 1 - each.stay / each.channels if each.stay is not None else 0.0
            if gone and (effect := each.effect(gone)) is not None:
                axes.plot(gone * each.macs, effect, "o", color=drawn.get_color())
        axes.set_yscale("log")
        axes.set_xlabel("share of the model's multiply-accumulates that goes")
        axes.set_ylabel("change of the answers, in shares of their variance")
        axes.set_title(f"{model}: a line a group of channels" + ("; dots: what the goal takes" if outlook.macs_share is not None else ""))
        if ordered:
            axes.legend(fontsize=7, title=None if len(ordered) <= NAMED else f"the {NAMED} of {len(ordered)} with most multiply-accumulates", title_fontsize=7)


@contextmanager
def _picture(path: Path) -> Iterator["Axes"]:
    """Axes to draw on; the file is written afterwards, the same for the same drawing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    try:
        yield axes
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    finally:
        pyplot.close(figure)
