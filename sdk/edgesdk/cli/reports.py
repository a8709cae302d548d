"""The verb `report`: what devices and files tell, on a page of its own or in the terminal."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesdk.cli.output import AsJson, progress, say, show, sparkline, table

if TYPE_CHECKING:
    from edgesdk.reporting import Report, Section

FILES = (".json", ".tar", ".onnx")  # what ends so is a file, and so is what has a slash; all else a host or a model's name
_MOST_LINES = 40  # of a section, in a terminal


def report(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HOST [NAME]] [FILE]…",
            help="a device, perhaps one model there, and files: bundles, models, what bench and other verbs wrote; with a slash, .json, .onnx or .tar",
        ),
    ] = None,
    fleet: Annotated[Path | None, typer.Option(help="a .toml file with devices, which are compared")] = None,
    select: Annotated[list[str] | None, typer.Option(help="of the fleet, only devices with this label; hall-2,camera: with both; repeatable")] = None,
    html: Annotated[Path | None, typer.Option(help="write one page there, with charts; it needs no network")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """What is known of a device's models: latency as programs there see it, and what bundles and measurements say, as a page or in the terminal."""
    from edge_agent.store import write_atomically
    from edgesdk import device, transport
    from edgesdk import fleet as fleets
    from edgesdk.cli import files
    from edgesdk.reporting import report as made_from

    names = [each for each in what or () if not _is_file(each)]
    paths = [Path(each) for each in what or () if _is_file(each)]
    if len(names) > 2 or (fleet and len(names) > 1):
        raise typer.BadParameter(f"{names[-1]!r} is no file: one device and one model can be named" if not fleet else "with --fleet, only a model can be named")
    if select and not fleet:
        raise typer.BadParameter("--select chooses from a fleet: name its file, --fleet fleet.toml")
    if html is not None:
        files.check(html, sources=paths)
    if as_json and not (paths or fleet or html):
        with device.connect(names[0] if names else "local") as opened:
            show(opened.report(names[1] if len(names) > 1 else None).model_dump(mode="json", exclude={"models": {"__all__": {"versions"}}}), "", as_json=True)
        return
    if fleet:
        hosts, model = [member.host for member in fleets.select(fleets.load(fleet), select or [])], names[:1]
        transport.ask_password = transport.tell_slow = None  # of many nobody is asked for theirs
    else:
        hosts, model = names[:1] or ([] if paths else ["local"]), names[1:]
    with progress() as advance:
        made = made_from(*hosts, name=model[0] if model else None, files=paths, progress=advance)
    if html is not None:
        write_atomically(html, made.to_html().encode(errors="replace"), 0o644)
        say(f"wrote {html}")
    show(made.to_dict(), "" if html else "\n".join(_told(made)), as_json=as_json)


def _is_file(text: str) -> bool:
    return "/" in text or text.endswith(FILES)


def _told(made: "Report") -> Iterator[str]:
    for section in made.sections:
        yield from (section.title, "═" * len(section.title), *section.said)
        if section.rows:
            yield _table(section)
        if len(section.rows) > _MOST_LINES:
            yield f"{len(section.rows) - _MOST_LINES} more: --json has them"
        for chart in section.charts:
            if chart.sparks:
                width = max(len(label) for label, _ in chart.sparks)
                yield from ("", chart.title, *(f"  {label.ljust(width)}  {sparkline(values)}" for label, values in chart.sparks))
        yield ""
    if not made.sections:
        yield "there is nothing to report: no model is active, and no file was named\n"
    if made.lacks:
        yield table([(lack.what, lack.command) for lack in made.lacks], head=("not in this report", "what would give it"))


def _table(section: "Section") -> str:
    from edgesdk.reporting.section import shown, visible

    rows = section.rows[:_MOST_LINES]
    columns = [column for column in visible(section, rows) if not column.aside]
    if section.facts:
        first, *others = columns
        head = (first.title, *(shown(row.get(first.key), first.form) for row in rows))
        return table([(column.title, *(shown(row.get(column.key), column.form) for row in rows)) for column in others], head=head)
    return table([[shown(row.get(column.key), column.form) for column in columns] for row in rows], head=[column.title for column in columns])
