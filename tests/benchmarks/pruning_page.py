"""The results of `tests.benchmarks.pruning` as Markdown and as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.pruners import DISTILLED, OURS, PEERS, RE_ESTIMATED
from tests.suite import REPOSITORY, SUITE

PAGE, PICTURE = REPOSITORY / "docs" / "pruning.md", REPOSITORY / "docs" / "pruning.svg"
BEGIN, END = "<!-- written by `make bench` -->\n", "<!-- until here -->"

# What the figures are held to: percentage points of top-1 that may be lost with that share of the multiply-accumulates gone …
MOST_LOST = (
    (OURS, 0.5, {"resnet8": 0.5, "resnet20": 0.5, "mobilenet": 1.5}),
    (OURS, 0.7, {"resnet8": 2.0, "resnet20": 2.0, "mobilenet": 3.0}),
    (DISTILLED, 0.7, {"resnet8": 0.5, "resnet20": 0.5, "mobilenet": 1.0}),
)
LEAST_SPEEDUP = {"resnet8": 1.3, "resnet20": 1.5, "mobilenet": 1.5}  # … and how much faster half of them has to be

Results = Mapping[str, Mapping[str, Any]]
Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def write(results: Results) -> None:
    """Put the tables into the page's written part, and draw; what people wrote around it stays."""
    ordered = {entry.name: results[entry.name] for entry in SUITE if entry.name in results}
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [_machine(ordered), _held(ordered), *(_network(name, result) for name, result in ordered.items())]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{after}", encoding="utf-8")
    _draw(ordered)


def _machine(results: Results) -> str:
    """Where this was measured; more than one where networks were measured at different times."""
    told = []
    for facts in (result["machine"] for result in results.values()):
        tools = ", ".join(f"{tool} {facts[tool]}" for tool in ("edgesdk", "onnxruntime", "torch", "torch-pruning", "onnxsim"))
        told.append(f"Measured on {facts['cpu']}, {facts['cores']} cores, profile {facts['profile']}, channels in multiples of {facts['multiple']}; {tools}.")
    return "\n".join(dict.fromkeys(told))


def _held(results: Results) -> str:
    lines = ["| held to | measured | |", "| --- | --- | --- |"]
    for pruner, gone, most in MOST_LOST:
        for name, result in results.items():
            lost = _lost(result, pruner.label, gone)
            kept = "yes" if statistics.mean(lost) <= most[name] else "no"
            lines.append(f"| {name}, {pruner.label}, {gone:.0%} of the multiply-accumulates gone: at most {most[name]:g} points | {_points(lost)} | {kept} |")
    for name, result in results.items():
        speed = result["speeds"][OURS.label]["speedup"]
        kept = "yes" if speed["value"] >= LEAST_SPEEDUP[name] else "no"
        lines.append(f"| {name}, half of them gone: at least {LEAST_SPEEDUP[name]:g}× as fast | {_speedup(speed)} | {kept} |")
    return "\n".join(lines)


def _network(name: str, result: Mapping[str, Any]) -> str:
    shares = [point["gone"] for point in result["curves"][OURS.label]]
    lines = [
        f"## {name}",
        "",
        f"Top-1 as given: {result['score']:.4f}. Percentage points lost, mean (least … most of the draws):",
        "",
        f"| multiply-accumulates gone | {' | '.join(f'{gone:.0%}' for gone in shares)} |",
        "| --- " * (len(shares) + 1) + "|",
        *(f"| {label} | {' | '.join(_points(_lost(result, label, gone)) for gone in shares)} |" for label in result["curves"]),
        "",
        "With half of them gone, or all there:",
        "",
        "| | speed | latency | top-1 | multiply-accumulates left | made in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label, row in result["speeds"].items():
        point = next((point for point in result["curves"].get(label, ()) if point["gone"] == 0.5), None)
        made = [f"{point['kept'][0]:.2f}", f"{point['seconds']:.0f} s"] if point else ["", ""]
        told = [label, _speedup(row["speedup"]), f"{row['latency_ms']:.3f} ms", f"{row['score']:.4f}", *made]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def _lost(result: Mapping[str, Any], label: str, gone: float) -> list[float]:
    """Of each draw, in percentage points; empty where it was not measured."""
    return [100 * (result["score"] - score) for point in result["curves"].get(label, ()) if point["gone"] == gone for score in point["scores"]]


def _points(lost: Sequence[float]) -> str:
    if len(lost) < 2:
        return f"{lost[0]:.1f}" if lost else ""
    return f"{statistics.mean(lost):.1f} ({min(lost):.1f} … {max(lost):.1f})"


def _speedup(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f}× ({ratio['low']:.2f} … {ratio['high']:.2f})"


def _draw(results: Results) -> None:
    """A panel for each network: top-1 by what is gone indeed, a band from the least to the most of the draws."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgesdk", "font.size": 9}):
        figure, row = pyplot.subplots(1, len(results), figsize=(4.2 * len(results), 4.2), layout="constrained", squeeze=False, sharey=True)
        for axes, (name, result) in zip(row[0], results.items(), strict=True):
            for label, points in _lines(result["curves"]).items():
                across = [100 * (1 - statistics.mean(point["kept"])) for point in points]
                low, mean, high = ([100 * measure(point["scores"]) for point in points] for measure in (min, statistics.mean, max))
                (line,) = axes.plot(across, mean, "o-", label=label, markersize=3, linewidth=2.5 if label == OURS.label else 1)
                axes.fill_between(across, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            axes.axhline(100 * result["score"], color="black", linewidth=0.6, linestyle=":")
            axes.set_title(name)
            axes.set_xlabel("multiply-accumulates gone, %")
        row[0][0].set_ylabel("top-1, %")
        figure.legend(*row[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_lines(result["curves"])), fontsize=8)
        figure.savefig(PICTURE, metadata={"Date": None})
        pyplot.close(figure)


def _lines(curves: Curves) -> Curves:
    """As they are, but of Torch-Pruning's settings the one that scores best at each share: it could not be known beforehand."""
    theirs = {label: points for label, points in curves.items() if label.startswith(PEERS) and len(points) == len(curves[OURS.label])}
    best = {
        label: [max(points, key=lambda point: statistics.mean(point["scores"])) for points in zip(*settings, strict=True)]
        for label, settings in (
            (f"{PEERS}, best of three", [points for label, points in theirs.items() if not label.endswith(RE_ESTIMATED)]),
            (f"{PEERS}, {RE_ESTIMATED}, best of three", [points for label, points in theirs.items() if label.endswith(RE_ESTIMATED)]),
        )
    }
    return {label: points for label, points in curves.items() if not label.startswith(PEERS)} | best
