"""The report as one HTML file: text and tables written here, charts drawn by charts.js with Observable Plot, both inside the file.

    Path("out.html").write_text(html(made))

Nothing is fetched, and nothing that devices or files say can run: it is escaped, the charts' data stand in a block that no text of theirs can end, and a
policy names by their digests the only scripts and styles that may be used.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Iterator
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from edgesdk.reporting.section import Chart, Column, Row, Section, shown, visible

if TYPE_CHECKING:
    from edgesdk.reporting import Report

MOST_BYTES = 1_000_000
CELLS = (6000, 2400, 1000, 400, 100)  # of a table: the first number with which the page is small enough
MOST_CHARTS = 20  # of a section
MOST_SENTENCES = 40
MOST_BESIDE = 5  # columns of facts
LONG = 24  # characters of a cell: more want some room even on a phone
WIDE = 8  # columns: more have to be small on paper
MOST_UNFOLDED = 3  # rows that stand below a chart at once

# What Plot writes into each of its pictures, so that the policy can name it; charts.js gives them this class.
_PLOT_STYLE = """:where(.plot) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.plot text),
:where(.plot tspan) {
  white-space: pre;
}"""
_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "charts.js")
_IN_JSON = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}  # could end the block, or open a comment in it


def html(report: "Report") -> str:
    """The whole file, below a megabyte: of what is large the tables show the first rows, and say so."""
    for cells in CELLS:
        page = _page(report, cells)
        if len(page.encode()) < MOST_BYTES:
            break
    return page


def _page(report: "Report", cells: int) -> str:
    style, scripts = _file("page.css"), [_file(name) for name in _SCRIPTS]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src {_digest(style)} {_digest(_PLOT_STYLE)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    charts = [chart for section in report.sections for chart in section.charts[:MOST_CHARTS]]
    numbers = {id(chart): number for number, chart in enumerate(charts)}
    data = json.dumps([{"kind": chart.kind, "data": _brief(chart.data)} for chart in charts], ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">',
            f'<title>{escape(report.title)}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n<body>',
            *_header(report),
            "<main>",
            *(line for section in report.sections for line in _section(section, numbers, cells)),
            *_lacks(report),
            "</main>",
            "<footer><p>Made by edgesdk. Drawn with Observable Plot and D3, whose terms lie in the source of this file.</p></footer>",
            f'<script type="application/json" id="data">{data.translate(_IN_JSON)}</script>',
            f"<!--\n{_file('vendor/LICENSES.txt').replace('--', '- -')}-->",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        )
    )


def _header(report: "Report") -> Iterator[str]:
    sources, made = report.sources, escape(report.made[:16].replace("T", " "))
    named = f" from {escape(', '.join(sources[:8]))}" + (f" and {len(sources) - 8} more" if len(sources) > 8 else "") if sources else ""
    yield f"<header>\n<h1>{escape(report.title)}</h1>"
    yield f'<p class="soft">Made <time datetime="{escape(report.made)}">{made} UTC</time>{named}.</p>'
    links = "".join(f'<li><a href="#{section.key}">{escape(section.title)}</a></li>' for section in report.sections)
    yield f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>'


def _section(section: Section, numbers: dict[int, int], cells: int) -> Iterator[str]:
    yield f'<section id="{section.key}" aria-labelledby="{section.key}-title">\n<h2 id="{section.key}-title">{escape(section.title)}</h2>'
    yield from (f"<p>{escape(sentence)}</p>" for sentence in section.said[:MOST_SENTENCES])
    for chart in section.charts[:MOST_CHARTS]:
        yield from _figure(chart, numbers[id(chart)])
    rows = section.rows[: max(1, cells // len(section.columns))]
    if len(section.charts) > MOST_CHARTS or len(section.rows) > len(rows):
        yield f'<p class="soft">The first of {len(section.charts)} charts and {len(section.rows)} rows: <code>edgesdk report --json</code> has all.</p>'
    if rows:
        made = _facts(section, rows) if section.facts and len(rows) < MOST_BESIDE else _table(section, rows)
        folded = section.charts and len(rows) > MOST_UNFOLDED
        yield f"<details><summary>{escape(section.title)} as a table</summary>{made}</details>" if folded else made
    yield "</section>"


def _figure(chart: Chart, number: int) -> Iterator[str]:
    """The picture itself is hidden from screen readers: they read the sentence instead, and the table."""
    yield f"<figure>\n<figcaption>{escape(chart.title)}</figcaption>"
    yield f'<div class="chart" data-chart="{number}"></div>\n<p class="unseen">{escape(chart.about)}</p>\n</figure>'


def _table(section: Section, rows: tuple[Row, ...]) -> str:
    columns = visible(section, rows)
    head = "".join(f'<th scope="col"{_side(column)}>{escape(column.title) or "<span class=unseen>number</span>"}</th>' for column in columns)
    body = "".join("<tr>" + "".join(_cell(row.get(column.key), column) for column in columns) + "</tr>" for row in rows)
    wide = ' class="wide"' if len(columns) > WIDE else ""
    return _scrolled(section, f"<table{wide}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _facts(section: Section, rows: tuple[Row, ...]) -> str:
    """A column a row, for what is read downwards."""
    columns = visible(section, rows)
    first, *others = columns
    head = "".join(f'<th scope="col">{escape(shown(row.get(first.key), first.form))}</th>' for row in rows)
    body = "".join(
        f'<tr><th scope="row">{escape(column.title)}</th>' + "".join(_cell(row.get(column.key), column, beside=True) for row in rows) + "</tr>"
        for column in others
    )
    return _scrolled(section, f'<table class="facts"><thead><tr><th scope="col">{escape(first.title)}</th>{head}</tr></thead><tbody>{body}</tbody></table>')


def _scrolled(section: Section, table: str) -> str:
    """Wide tables scroll within themselves, also by the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(section.title)}, table">{table}</div>'


def _side(column: Column) -> str:
    return "" if column.form in ("text", "time") else ' class="number"'


def _cell(value: Any, column: Column, *, beside: bool = False) -> str:
    """``beside``: to the right of its title, and not below it among other numbers."""
    text = shown(value, column.form)
    if column.key == "digest":
        return f"<td><code>{escape(text[:19])}</code></td>"
    side = "" if beside or isinstance(value, str) else _side(column)
    side = side or (' class="long"' if len(text) > LONG else "")
    return f"<td{side}>{escape(text)}</td>"


def _lacks(report: "Report") -> Iterator[str]:
    if report.lacks:
        items = "".join(f"<li>{escape(lack.what)}: <code>{escape(lack.command)}</code></li>" for lack in report.lacks)
        yield '<section id="lacks" aria-labelledby="lacks-title">\n<h2 id="lacks-title">Not in this report</h2>'
        yield "<p>What it has no data of, and the command that gives some:</p>"
        yield f"<ul>{items}</ul>\n</section>"


def _brief(value: Any) -> Any:
    """Numbers as exact as a picture can be."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _brief(each) for key, each in value.items()}
    return [_brief(each) for each in value] if isinstance(value, list | tuple) else value


@functools.cache
def _file(name: str) -> str:
    return resources.files("edgesdk.reporting").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
