"""The parts of a report, as values: sentences, a table, charts. The page and the terminal both draw from these.

What comes from devices and files passes `clean` once, on its way in: text is printable, numbers are finite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import isfinite
from typing import Any, Literal, TypeVar

from edgesdk.replies import printable
from edgesdk.units import bytes_text

Form = Literal["text", "count", "ms", "number", "bytes", "share", "signed", "ratio", "time"]
Row = dict[str, Any]
_CUT = "…"
_GREATEST = 1 << 62  # what is counted is less
_NAMES = ("bundle", "run", "tuned")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Column:
    """``key`` of the rows. The unit stands in the title. ``aside``: a terminal has no room for it."""

    key: str
    title: str
    form: Form = "text"
    aside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """``kind`` says which function of charts.js draws ``data``; ``about`` says in words what there is to see; ``sparks`` are for the terminal."""

    kind: str
    title: str
    about: str
    data: dict[str, Any]
    sparks: tuple[tuple[str, tuple[float | None, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """``facts``: few rows of many columns, which are read downwards."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    said: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    facts: bool = False


def visible(section: Section, rows: Sequence[Row]) -> list[Column]:
    """The columns that say something: not those that are empty, nor the name of the one thing that the whole table is about."""
    said = [column for column in section.columns if any(row.get(column.key) not in (None, "") for row in rows)]
    if section.facts or len(rows) < 2:
        return said
    return [column for column in said if column.key not in _NAMES or len({str(row.get(column.key)) for row in rows}) > 1] or said


def shown(value: Any, form: Form) -> str:
    """A cell as people read it.

    >>> shown(1234567, "bytes"), shown(0.0123, "share"), shown(None, "ms"), shown(1234567, "count")
    ('1.2 MB', '1.2 %', '–', '1,234,567')
    """
    if value is None or value == "":
        return "–"
    if form == "time":
        return str(value)[:16].replace("T", " ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float) or form == "text":
        return str(value)
    match form:
        case "bytes":
            return bytes_text(value)
        case "share":
            return f"{value:.1%}".replace("%", " %")
        case "signed":
            return f"{value:+.4f}"
        case "count":
            return f"{value:,.0f}"
        case "ratio":
            return f"{value:.3f}"
        case "ms":
            return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
        case _:
            return f"{value:,.1f}"


def clean(value: Value) -> Value:
    """The same, fit to be shown: nothing in its texts that a terminal obeys or that hides what stands there, None for what is no number."""
    return _clean(value)  # type: ignore[no-any-return]  # what goes in comes out


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value).replace("\n", " ")
    if isinstance(value, int) and abs(value) > _GREATEST:
        return None
    if isinstance(value, float):
        return value if isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _clean(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, Mapping):
        return {printable(str(key)): _clean(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_clean, value))
    return value


def interval(ends: tuple[float, float] | None, form: str) -> str | None:
    """Its ends in that format."""
    return f"{ends[0]:{form}} … {ends[1]:{form}}" if ends else None


def short(text: str, most: int = 60) -> str:
    """Its two ends, where it is longer.

    >>> short("a" * 50 + "b" * 50, 9)
    'aaaa…bbbb'
    """
    return text if len(text) <= most else text[: most // 2] + _CUT + text[len(text) - (most - most // 2 - 1) :]


def unique(names: Sequence[str]) -> list[str]:
    """A number behind those that occur more than once, since a line of a chart goes by its name.

    >>> unique(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: dict[str, int] = {}
    told = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        told.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return told
