"""What is known of models: what was tried and what it cost, what a run needs, and where it ran."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from edgesdk.reporting.documents import Bundled, Kernel, Tried
from edgesdk.reporting.gathering import Found
from edgesdk.reporting.section import Chart, Column, Row, Section, interval, short, unique

MOST_BARS = 12
MOST_PLACED = 40
_PLACED = re.compile(r"(\d+) of (\d+) nodes on ([^,]+)")
_ALL = re.compile(r"all nodes on ([^,]+)")

Point = dict[str, Any]


def frontier(found: Found) -> Section | None:
    """Accuracy against latency: a chart for each bundle whose candidates were timed and scored, one for all bundles of one metric and device."""
    charts, rows, said = list[Chart](), list[Row](), list[str]()
    for bundle in found.bundles:
        points = list(_points(bundle))
        rows += [{"bundle": bundle.title, **point} for point in points]
        placed = [point for point in points if point["ms"] is not None and point["change"] is not None]
        if len(placed) > 1:
            best = _best(placed)
            charts.append(
                Chart(
                    kind="frontier",
                    title=f"{bundle.title}: accuracy against latency",
                    about="The best for their time, the fastest first: " + "; ".join(f"{p['label']}, {p['ms']:.3f} ms, {p['change']:+.4f}" for p in best) + ".",
                    data={"points": placed, "frontier": best, "y": f"change of {bundle.accuracy.metric if bundle.accuracy else 'accuracy'}"},
                )
            )
        unscored = sum(each.selection_drop is None for each in bundle.candidates)
        if unscored:
            said.append(f"{bundle.title}: {unscored} of {len(bundle.candidates)} candidates stand in the table only; nobody had to score them.")
    charts += _of_several(found.bundles)
    if not rows:
        return None
    return Section(
        key="frontier",
        title="Accuracy against latency",
        said=(
            "What was tried is scored on the selection samples and timed in pairs against the best float model; what shipped, on the judging samples "
            "and against the original.",
            *said,
        ),
        columns=(
            *(Column("bundle", "bundle"), Column("label", "what"), Column("became", "became"), Column("ms", "latency, ms", "ms")),
            *(Column("speedup", "speed-up", "ratio"), Column("low", "from", "ratio"), Column("high", "to", "ratio"), Column("change", "accuracy", "signed")),
            Column("note", "why"),
        ),
        rows=tuple(rows),
        charts=tuple(charts),
    )


def operators(found: Found) -> Section | None:
    """Time by node where it was measured, else multiply-accumulates by kind."""
    charts, rows = list[Chart](), list[Row]()
    for each in found.inspected:
        if each.kernels:
            bars = [{"name": kernel.node or "(fused or added)", "kind": kernel.operator, "value": kernel.ms, "share": kernel.share} for kernel in each.kernels]
            rows += [{"model": each.title, "node": bar["name"], "operator": bar["kind"], "ms": bar["value"], "share": bar["share"]} for bar in bars]
            title = f"{each.title}: the {len(bars)} nodes that take longest"
            charts.append(_bars(title, bars[:MOST_BARS], "ms", "ms"))
        elif each.macs:
            bars = [
                {"name": kind.name, "kind": f"{kind.count} node{'s' * (kind.count != 1)}", "value": kind.macs, "share": kind.macs / each.macs}
                for kind in each.operators
                if kind.macs
            ]
            rows += [{"model": each.title, "operator": bar["name"], "node": bar["kind"], "macs": bar["value"], "share": bar["share"]} for bar in bars]
            charts.append(_bars(f"{each.title}: multiply-accumulates by operator", bars[:MOST_BARS], "multiply-accumulates", "count"))
    if not rows:
        return None
    return Section(
        key="operators",
        title="Work by operator",
        said=("Medians of kernels where they were timed: a fused one has the time of all its nodes. Else multiply-accumulates.",),
        columns=(
            *(Column("model", "model"), Column("node", "node"), Column("operator", "operator"), Column("ms", "ms", "ms")),
            *(Column("macs", "multiply-accumulates", "count"), Column("share", "share", "share")),
        ),
        rows=tuple(rows),
        charts=tuple(charts),
    )


def memory(found: Found) -> Section | None:
    """Activations over the run."""
    told = [(each, each.memory) for each in found.inspected if each.memory is not None]
    if not told:
        return None
    charts = [
        Chart(
            kind="memory",
            title=f"{each.title}: activation memory over the run",
            about=f"The peak of {memory.peak_bytes:,} bytes lies at {memory.node}; the largest tensors then: "
            + ", ".join(f"{live.tensor} ({live.bytes:,} bytes)" for live in memory.tensors[:3])
            + ".",
            data={"by_node": list(_thinned(memory.by_node)), "nodes": len(memory.by_node), "peak_bytes": memory.peak_bytes, "node": memory.node},
            sparks=((each.title, tuple(map(float, memory.by_node))),),
        )
        for each, memory in told
    ]
    return Section(
        key="memory",
        title="Memory over the run",
        said=tuple(
            f"{each.title}: {memory.peak_bytes:,} bytes at the peak, while {memory.node} runs, beside {each.summary.weight_bytes:,} bytes of weights."
            for each, memory in told
        ),
        columns=(Column("model", "model"), Column("tensor", "tensor at the peak"), Column("node", "made by"), Column("bytes", "size", "bytes")),
        rows=tuple({"model": each.title, "tensor": live.tensor, "node": live.node, "bytes": live.bytes} for each, memory in told for live in memory.tensors),
        charts=tuple(charts),
    )


def placement(found: Found) -> Section | None:
    """What ran where, and what a profile's hardware cannot take."""
    rows: list[Row] = [
        {"model": model.name, "device": asked.host, "provider": model.provider, "nodes": model.nodes}
        for asked in found.asked
        if asked.status is not None and asked.report is not None
        for model in asked.status.models
        if (model.nodes or model.provider) and model.name in {each.name for each in asked.report.models}
    ]
    rows += [{"model": each.name, "device": each.host or each.device, "provider": each.provider, "nodes": each.nodes} for each in found.results]
    rows += [
        {"model": each.title, "device": each.placement.host, "provider": each.placement.provider, "nodes": each.placement.nodes, "share": each.placement.share}
        | {"fell": _some(each.placement.fell)}
        for each in found.inspected
        if each.placement is not None
    ]
    rows = [row for place, row in enumerate(rows) if row not in rows[:place]]
    rows += [
        {
            "model": each.title,
            "device": f"profile {each.profile}",
            "nodes": f"{each.cut.nodes} of {each.cut.of} nodes on {each.profile}"
            + (f", {each.cut.of - each.cut.nodes} of {each.cut.of} nodes on something else" if each.cut.nodes < each.cut.of else ""),
            "share": each.cut.macs_share,
            "parts": each.cut.parts,
            "fell": _some(each.cut.fell),
        }
        for each in found.inspected
        if each.cut is not None
    ]
    if not rows:
        return None
    names = unique([f"{row['model']} on {row['device']}" for row in rows])
    parts = [
        {"name": name, "place": place, "nodes": count} for name, row in zip(names[:MOST_PLACED], rows, strict=False) for place, count in _placed(row["nodes"])
    ]
    about = "; ".join(f"{name}: {row['nodes'] or row.get('provider') or 'not told'}" for name, row in zip(names[:MOST_PLACED], rows, strict=False))
    columns = [Column("model", "model"), Column("device", "device"), Column("provider", "provider"), Column("nodes", "nodes")]
    if found.inspected:
        columns += [Column("share", "multiply-accumulates", "share"), Column("parts", "parts", "count"), Column("fell", "not taken")]
    return Section(
        key="placement",
        title="Placement",
        columns=tuple(columns),
        rows=tuple(rows),
        charts=(Chart(kind="placement", title="What ran where, in nodes", about=about + ".", data={"parts": parts}),) if parts else (),
    )


def recipe(found: Found) -> Section | None:
    """The story of each bundle: its passes, in order, and what they came to together."""
    if not found.bundles:
        return None
    rows = [
        {"bundle": bundle.title, "order": place, "pass": step.name, "settings": short(_settings(step.settings), 240)}
        for bundle in found.bundles
        for place, step in enumerate(bundle.recipe, 1)
    ]
    return Section(
        key="recipe",
        title="The recipe",
        said=tuple(sentence for bundle in found.bundles for sentence in _story(bundle)),
        columns=(Column("bundle", "bundle"), Column("order", "", "count"), Column("pass", "pass"), Column("settings", "settings")),
        rows=tuple(rows),
    )


def evidence(found: Found) -> Section | None:
    """What was measured of each bundle, of what, and where."""
    if not found.bundles:
        return None
    return Section(
        key="evidence",
        title="Evidence",
        columns=(
            *(Column("name", "model"), Column("release", "release"), Column("profile", "profile"), Column("digest", "digest"), Column("signed", "signed")),
            *(Column("bytes_before", "size of the original", "bytes"), Column("bytes_after", "size", "bytes"), Column("metric", "metric")),
            *(Column("accuracy_before", "accuracy of the original", "ratio"), Column("accuracy_after", "accuracy", "ratio")),
            *(Column("drop", "drop", "signed"), Column("drop_interval", "95 % of the drop in"), Column("samples", "judging samples", "count")),
            *(Column("lost", "lost", "count"), Column("gained", "gained", "count"), Column("judged_by", "judged by"), Column("tried", "candidates", "count")),
            *(Column("before_ms", "latency of the original, ms", "ms"), Column("after_ms", "latency, ms", "ms"), Column("speedup", "speed-up", "ratio")),
            *(
                Column("speedup_interval", "95 % of it in"),
                Column("pairs", "pairs", "count"),
                Column("timed_on", "timed on"),
                Column("threads", "threads", "count"),
            ),
            *(
                Column("made_on", "made on"),
                Column("governor", "governor"),
                Column("seconds", "took, s", "number"),
                Column("peak_rss_bytes", "peak memory", "bytes"),
            ),
        ),
        rows=tuple(map(_measured, found.bundles)),
        facts=True,
    )


def conditions(found: Found) -> Section | None:
    """The devices that were asked, as they are now."""
    rows = []
    for asked in found.asked:
        if asked.report is None:
            continue
        facts, status = asked.report.device, asked.status
        rows.append(
            {
                "device": asked.host,
                "board": facts.board or facts.cpu,
                "cores": facts.cores,
                "state": facts.in_words(),
                "throttling": ", ".join(facts.throttling.now) if facts.throttling and facts.throttling.now else None,
                "agent": status.agent.version if status else None,
                "onnxruntime": status.agent.onnxruntime if status else None,
                "since": status.agent.since if status else None,
                "store_bytes": status.store.bytes if status else None,
                "free_bytes": status.store.free_bytes if status else None,
            }
        )
    if not rows:
        return None
    columns = (
        Column("device", "device"),
        Column("board", "board"),
        Column("cores", "cores", "count"),
        Column("state", "state"),
        Column("throttling", "throttled"),
    )
    more = (Column("agent", "agent"), Column("onnxruntime", "onnxruntime"), Column("since", "since", "time"), Column("store_bytes", "store", "bytes"))
    return Section(
        key="conditions",
        title="Devices as they are",
        columns=(*columns, *more, Column("free_bytes", "free", "bytes")),
        rows=tuple(rows),
        facts=len(rows) < 4,
    )


def _node(kernel: Kernel) -> str:
    return (kernel.node or "(fused or added)") + (f" and {len(kernel.fused)} fused" if kernel.fused else "")


def _points(bundle: Bundled) -> Iterator[Point]:
    """Candidates in the order in which they were tried, then the original and what shipped. ``change``: of the accuracy."""
    for tried in bundle.candidates:
        speed = tried.speed
        yield {
            "label": tried.label,
            "became": _became(tried),
            "ms": speed.after_ms if speed else None,
            "speedup": speed.speedup if speed else None,
            "low": speed.low if speed else None,
            "high": speed.high if speed else None,
            "change": 0.0 - tried.selection_drop if tried.selection_drop is not None else None,
            "note": tried.note if tried.note != "taken" else "",
        }
    accuracy, latency = bundle.accuracy, bundle.latency_ms
    if accuracy is not None:
        low, high = latency.interval or (None, None)
        yield {"label": "the original", "became": "original", "ms": latency.before, "speedup": None, "low": None, "high": None, "change": 0.0, "note": ""}
        shipped = {"label": "as shipped", "became": "shipped", "ms": latency.after, "speedup": latency.speedup, "low": low, "high": high}
        yield {**shipped, "change": 0.0 - accuracy.drop, "note": "on the judging samples"}


def _became(tried: Tried) -> str:
    if tried.note == "taken" or tried.note.startswith("taken"):
        return "taken"
    return "not scored" if tried.selection_drop is None else "within the budget" if not tried.note else "refused"


def _best(points: Sequence[Point], *, of: str = "change") -> list[Point]:
    """Those that no other one beats in both, the fastest first."""
    best, most = list[Point](), float("-inf")
    for point in sorted(points, key=lambda each: (each["ms"], -each[of])):
        if point[of] > most:
            best.append(point)
            most = point[of]
    return best


def _of_several(bundles: Sequence[Bundled]) -> Iterator[Chart]:
    """Bundles beside each other, by the accuracy itself: only where it is the same metric, on the same device."""
    alike: dict[tuple[str, str], list[Bundled]] = {}
    for bundle in bundles:
        if bundle.accuracy is not None and bundle.latency_ms.after is not None:
            alike.setdefault((bundle.accuracy.metric, bundle.latency_ms.device or ""), []).append(bundle)
    for (metric, device), group in alike.items():
        if len(group) < 2:
            continue
        points: list[Point] = []
        for title, bundle in zip(unique([each.title for each in group]), group, strict=True):
            assert bundle.accuracy is not None
            points.append({"label": f"{title}, original", "became": "original", "ms": bundle.latency_ms.before, "accuracy": bundle.accuracy.before})
            points.append({"label": title, "became": "shipped", "ms": bundle.latency_ms.after, "accuracy": bundle.accuracy.after})
        placed = [point for point in points if point["ms"] is not None]
        best = _best(placed, of="accuracy")
        yield Chart(
            kind="frontier",
            title=f"{len(group)} bundles: {metric} against latency" + (f" on {device}" if device else ""),
            about="The best for their time, the fastest first: " + "; ".join(f"{p['label']}, {p['ms']:.3f} ms, {p['accuracy']:.4f}" for p in best) + ".",
            data={"points": placed, "frontier": best, "y": metric},
        )


def _bars(title: str, bars: Sequence[dict[str, Any]], unit: str, form: str) -> Chart:
    about = "; ".join(f"{bar['name']} {bar['share']:.1%}" for bar in bars)
    return Chart(
        kind="bars",
        title=title,
        about=about + ".",
        data={"bars": list(bars), "unit": unit, "form": form},
        sparks=(("the costliest first", tuple(float(bar["value"]) for bar in bars)),),
    )


def _thinned(series: Sequence[int], most: int = 1500) -> Iterator[tuple[int, int]]:
    """Place and bytes; of more nodes than a screen has points, the largest of each run of them."""
    step = max(1, -(-len(series) // most))
    for begin in range(0, len(series), step):
        place = max(range(begin, min(begin + step, len(series))), key=lambda each: series[each])
        yield place, series[place]


def _placed(nodes: object) -> list[tuple[str, int]]:
    """`3 of 5 nodes on CPU, 2 of 5 nodes on OpenVINO` as numbers; `all nodes on CPU` as one node of one."""
    text = str(nodes or "")
    if (whole := _ALL.match(text)) is not None:
        return [(whole[1].strip(), 1)]
    return [(place.strip(), int(count)) for count, _, place in _PLACED.findall(text)]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())


def _story(bundle: Bundled) -> Iterator[str]:
    steps = " → ".join(step.name for step in bundle.recipe) or "nothing: the original ships as it is"
    yield f"{bundle.title}: {steps}."
    size = bundle.size_bytes
    if "before" in size and "after" in size:
        yield f"Its files went from {size['before']:,} to {size['after']:,} bytes."
    became = Counter(_became(each) for each in bundle.candidates)
    if became:
        counts = ", ".join(f"{count} {word}" for word, count in became.most_common())
        yield f"{len(bundle.candidates)} candidates were tried: {counts}; “Accuracy against latency” tells why."
    yield from (f"{note[:1].upper()}{note[1:]}." for note in bundle.notes)


def _measured(bundle: Bundled) -> Row:
    accuracy, latency, size = bundle.accuracy, bundle.latency_ms, bundle.size_bytes
    row: Row = {key: getattr(bundle, key) for key in ("name", "release", "profile", "digest", "signed", "seconds", "peak_rss_bytes")}
    row |= {"bytes_before": size.get("before"), "bytes_after": size.get("after"), "tried": len(bundle.candidates) or None}
    row |= {"made_on": bundle.device.title, "governor": bundle.device.governor}
    row |= {"before_ms": latency.before, "after_ms": latency.after, "speedup": latency.speedup, "pairs": latency.runs or None, "threads": latency.threads}
    row |= {"timed_on": latency.host or latency.device, "speedup_interval": interval(latency.interval, ".3f")}
    if accuracy is None:
        return row
    row |= {"metric": accuracy.metric, "accuracy_before": accuracy.before, "accuracy_after": accuracy.after, "drop": accuracy.drop}
    row |= {"drop_interval": interval(accuracy.interval, "+.4f"), "samples": accuracy.samples, "judged_by": accuracy.source}
    return row | {"lost": accuracy.lost, "gained": accuracy.gained}
