"""Owns the streams: data on stdout, talk and progress on stderr, progress on a terminal only."""

import atexit
import getpass
import io
import json
import os
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

from edge_agent import streams
from edgesdk.errors import EdgeSDKError
from edgesdk.progress import Progress, silent
from edgesdk.units import bytes_text as bytes_text

ENDS = ("active", "unchanged", "staged", "probation", "rolled-back", "failed", "unknown", "skipped")  # what a deployment can come to
_asking = threading.Event()  # for a password
BYTE_STAGES = ("push", "agent", "numpy", "onnxruntime")  # stages that count bytes


# Names in a model or a file are whoever's: none of them is to move the cursor or to colour the screen.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Group(TyperGroup):
    """Verbs whose flags the help shows without a type: `--json` takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:  # typer's own subclass of click's types
        return _without_types(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            _without_types(found.get_params(ctx))
        return found


def _without_types(params: list[Any]) -> list[Any]:
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
            param.metavar = ""
    return params


AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]


def open_streams() -> None:
    """A stream that is closed becomes an empty one; what stdout's encoding does not know is shown as `?`.

    File names that are no UTF-8 go out as the bytes that they are.
    """
    streams.open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape" if sys.stdout.encoding.lower() == "utf-8" else "replace")


def show(data: Any, text: str, *, as_json: bool) -> None:
    """A result: its JSON for scripts, or its text for people, if there is any."""
    if as_json or text:
        print(_json(data) if as_json else text.translate(_CONTROL))


def _json(data: Any) -> str:
    """With the letters as they are where stdout can take them, else escaped."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(data, indent=2)
    return text


def say(message: str) -> None:
    """Talk."""
    print(message.translate(_CONTROL), file=sys.stderr)


def fail(message: str, hint: str) -> None:
    """An error, in red on a terminal, unless NO_COLOR says otherwise (no-color.org)."""
    text = f"error: {message.translate(_CONTROL)}"
    typer.echo(text if os.environ.get("NO_COLOR") else typer.style(text, fg="red"), err=True)
    if hint:
        say(hint if hint.startswith("Traceback") else f"  try: {hint}")  # of the user's own code


def confirm(question: str, *, otherwise: str) -> None:
    """Go on only if a person says so. Where nobody can be asked it is an error with that hint."""
    if not sys.stdin.isatty():
        raise EdgeSDKError(f"nobody is here to be asked: {question}", otherwise)
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort as interrupt:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt from interrupt
    if not agreed:
        say("nothing was done")
        raise typer.Exit(1)


def password(question: str) -> str | None:
    """What somebody types unseen, at a terminal. None where they would rather not."""
    _asking.set()
    # Ctrl-C ends the program from another thread than the one that asks: the terminal shall show again what is typed.
    atexit.register(termios.tcsetattr, sys.stdin.fileno(), termios.TCSADRAIN, termios.tcgetattr(sys.stdin.fileno()))
    try:
        return getpass.getpass(f"{question}: ") or None
    except EOFError:
        return None
    finally:
        _asking.clear()


def say_connecting(host: str) -> None:
    """Where a host is not reached at once; not while somebody types a password."""
    if not _asking.is_set():
        say(f"connecting to `{host}` …")


def table(rows: Sequence[Sequence[object]], *, head: Sequence[str]) -> str:
    """Columns, as wide as they need; numbers to the right."""
    body = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *body]) for i in range(len(head))]
    right = [bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(cells, widths, right, strict=True)).rstrip()

    return "\n".join([line(head), line(["─" * width for width in widths]), *map(line, body)])


def sparkline(values: Sequence[float | None], *, width: int = 40) -> str:
    """A line of text that shows a course: the lowest bar is 0, the highest the greatest value; a gap where nothing is known. Means where there are too many.

    >>> sparkline([0, 1, 2, 4, 8, None, 8])
    '▁▂▃▅█ █'
    """
    bars, count = "▁▂▃▄▅▆▇█", len(values)
    if count > width:
        parts = [[v for v in values[place * count // width : (place + 1) * count // width] if v is not None] for place in range(width)]
        values = [sum(part) / len(part) if part else None for part in parts]
    most = max((value for value in values if value is not None), default=0) or 1
    return "".join(" " if value is None else bars[max(0, min(7, round(value / most * 7)))] for value in values)


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr while something runs; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    counted = Bars(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True)
    sent = Bars(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True)
    tasks: dict[str, Any] = {}

    def advance(stage: str, done: int, total: int) -> None:
        bars, other = (sent, counted) if stage.startswith(BYTE_STAGES) else (counted, sent)
        if stage not in tasks:
            other.stop()
            for task in bars.tasks:
                task.visible = False
            bars.start()
            tasks[stage] = bars.add_task(stage, total=total or None)
        bars.update(tasks[stage], completed=done, total=total or None, visible=True)

    try:
        yield advance
    finally:
        counted.stop()
        sent.stop()


@contextmanager
def rollout_progress(devices: int) -> Iterator[Callable[[str, str, int, int], None]]:
    """Of one device a bar; of several a table on a terminal, a line for each that ended elsewhere."""
    if devices == 1:
        with progress() as advance:
            yield lambda _host, stage, done, total: advance(stage, done, total) if not _is_end(stage, done, total) else None
        return
    if not sys.stderr.isatty():
        yield lambda host, stage, done, total: say(f"{host}: {stage}") if _is_end(stage, done, total) else None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    doing: dict[str, str] = {}
    ended: dict[str, int] = {}

    def drawn() -> Table:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(ended.items()))
        drawing = Table(title=f"{sum(ended.values())} of {devices} devices{f': {counts}' if counts else ''}", title_justify="left", box=None)
        for host, stage in list(doing.items()):
            drawing.add_row(host, stage)
        return drawing

    with Live(get_renderable=drawn, console=Console(stderr=True), refresh_per_second=4, transient=True):

        def watch(host: str, stage: str, done: int, total: int) -> None:
            if _is_end(stage, done, total):
                doing.pop(host, None)
                ended[stage] = ended.get(stage, 0) + 1
            else:
                doing[host] = f"{stage} {100 * done // total} %" if total else stage

        yield watch


def _is_end(stage: str, done: int, total: int) -> bool:
    """`probation` is a stage, too, and then one of several."""
    return stage in ENDS and done == total == 1


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdigit() or text in ("", "–")
