"""What was judged: which of two is faster, which settings are, how right the answers are on a device."""

from edgesdk import knobs
from edgesdk.reporting.documents import Compared, Evaluated
from edgesdk.reporting.gathering import Found
from edgesdk.reporting.section import Chart, Column, Row, Section, interval, short, unique

MOST_LINES = 40


def comparisons(found: Found) -> Section | None:
    """Ratios of latencies with their intervals and verdicts."""
    if not found.compared:
        return None
    told = found.compared
    names = unique([f"{short(each.after, 36)} against {short(each.before, 36)}" for each in told])
    rows = [{"name": name, **{key: getattr(each, key) for key in ("speedup", "low", "high", "verdict")}} for name, each in zip(names, told, strict=True)]
    chart = Chart(
        kind="ratios",
        title="How many times as fast the second is",
        about=" ".join(f"{row['name']}: {row['verdict']}, {row['speedup']:.3f} ({row['low']:.3f} to {row['high']:.3f})." for row in rows[:MOST_LINES]),
        data={"rows": rows[:MOST_LINES]},
    )
    columns = (Column("before", "first"), Column("after", "second"), Column("verdict", "the second is"), Column("speedup", "speed-up", "ratio"))
    interval = (Column("low", "from", "ratio"), Column("high", "to", "ratio"), Column("before_ms", "first, ms", "ms"), Column("after_ms", "second, ms", "ms"))
    return Section(
        key="comparisons",
        title="Comparisons",
        said=("1 is as fast, 2 twice as fast. The interval holds in 99 % of cases, however often it was looked at; one that holds 1 shows no difference.",),
        columns=(*columns, *interval, Column("restarts", "restarts", "count"), Column("stopped", "stopped"), Column("device", "device")),
        rows=tuple({column.key: getattr(each, column.key) for column in (*columns, *interval)} | _ran(each) for each in told),
        charts=(chart,),
    )


def tuning(found: Found) -> Section | None:
    """What settings were tried, and what each gave."""
    if not found.tuned:
        return None
    rows, charts, said = list[Row](), list[Chart](), list[str]()
    for each in found.tuned:
        chosen = knobs.in_words(each.settings) if each.settings else "the profile's settings stay"
        said.append(f"{each.title}: {chosen}; {knobs.in_words(each.candidate)}: {each.verdict}, {each.speedup:.3f} ({each.low:.3f} to {each.high:.3f}).")
        tried: list[Row] = [
            {"tuned": each.title, "settings": knobs.in_words(one.settings), "speedup": one.speedup, "restarts": one.restarts, "ms": one.ms}
            for one in each.tried
        ]
        rows += [{**row, "note": one.note} for row, one in zip(tried, each.tried, strict=True)]
        final: Row = {
            "tuned": each.title,
            "settings": f"{knobs.in_words(each.candidate)}, confirmed",
            "speedup": each.speedup,
            "low": each.low,
            "high": each.high,
        }
        rows.append({**final, "restarts": each.restarts, "ms": each.after_ms, "note": each.verdict})
        rows += [
            {
                "tuned": each.title,
                "settings": f"{one.rows} questions at once, as one",
                "speedup": one.speedup,
                "low": one.low,
                "high": one.high,
                "restarts": one.restarts,
                "ms": one.ms,
                "note": f"the mean answer against two halves: {one.verdict}",
            }
            for one in each.batches
        ]
        ran = sorted((row for row in tried if row["speedup"] is not None), key=lambda row: -row["speedup"])[:MOST_LINES]
        names = unique([short(str(row["settings"]), 60) for row in [final, *ran]])
        bars = [
            {"name": name, "speedup": row["speedup"], "low": row.get("low", row["speedup"]), "high": row.get("high", row["speedup"])}
            for name, row in zip(names, [final, *ran], strict=True)
        ]
        verdicts = [each.verdict, *("in the search" for _ in ran)]
        charts.append(
            Chart(
                kind="ratios",
                title=f"{each.title}: times as fast as with the profile's settings",
                about=said[-1],
                data={"rows": [{**bar, "verdict": verdict} for bar, verdict in zip(bars, verdicts, strict=True)]},
            )
        )
    return Section(
        key="tuning",
        title="Settings that were tried",
        said=(*said, "In the search a setting has a few restarts only; the best one started again from nothing, and its interval holds in 99 % of cases."),
        columns=(
            *(Column("tuned", "model"), Column("settings", "settings"), Column("speedup", "speed-up", "ratio"), Column("low", "from", "ratio")),
            *(Column("high", "to", "ratio"), Column("ms", "ms", "ms"), Column("restarts", "restarts", "count"), Column("note", "became")),
        ),
        rows=tuple(rows),
        charts=tuple(charts),
    )


def accuracy(found: Found) -> Section | None:
    """Scores that were found on devices."""
    if not found.evaluated:
        return None
    told = found.evaluated
    names = unique([" ".join(filter(None, (each.name, str(each.release or ""), "on", each.host or each.device))) for each in told])
    charts = []
    for metric in dict.fromkeys(each.metric for each in told):
        rows = [
            {"name": name, "score": each.score, "low": low, "high": high, "original": each.against.score if each.against else None}
            for name, each in zip(names, told, strict=True)
            if each.metric == metric
            for low, high in [each.interval or (each.score, each.score)]
        ][:MOST_LINES]
        about = "; ".join(
            f"{row['name']}: {row['score']:.4f}" + (f", the original {row['original']:.4f}" if row["original"] is not None else "") for row in rows
        )
        charts.append(Chart(kind="scores", title=f"{metric}, measured on the device", about=about + ".", data={"rows": rows, "metric": metric}))
    return Section(
        key="accuracy",
        title="Accuracy on devices",
        said=("The evaluation ran on the host, the samples on the device. Whiskers are 95 % intervals; the square is the original on the same samples.",),
        columns=(
            *(Column("name", "model"), Column("release", "release"), Column("device", "device"), Column("metric", "metric"), Column("score", "score", "ratio")),
            *(Column("interval", "95 % of it in"), Column("samples", "samples", "count"), Column("original", "of the original", "ratio")),
            *(
                Column("drop", "drop", "signed"),
                Column("drop_interval", "95 % of the drop in"),
                Column("lost", "lost", "count"),
                Column("gained", "gained", "count"),
            ),
            *(Column("source", "judged by"), Column("nodes", "nodes", aside=True), Column("started", "begun", "time", aside=True)),
        ),
        rows=tuple(map(_scored, told)),
        charts=tuple(charts),
    )


def _scored(each: Evaluated) -> Row:
    row: Row = {key: getattr(each, key) for key in ("name", "release", "metric", "score", "samples", "source", "nodes", "started")}
    row |= {"device": each.host or each.device, "interval": interval(each.interval, ".4f")}
    if each.against is None:
        return row
    drop = {key: getattr(each.against, key) for key in ("drop", "lost", "gained")}
    return row | {"original": each.against.score, **drop, "drop_interval": interval(each.against.interval, "+.4f")}


def _ran(compared: Compared) -> Row:
    return {"restarts": compared.restarts, "stopped": compared.stopped, "device": compared.host or compared.device}
