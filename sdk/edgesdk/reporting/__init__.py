"""Everything that is known of models and devices as one value: a page for people, tables for a terminal, rows for a notebook. The verb `report`.

    made = report("pi@10.0.0.7", files=[Path("bundles/ocr"), Path("monday.json")])
    Path("out.html").write_text(made.to_html())               # one file, which fetches nothing
    pandas.DataFrame(made.rows("latency"))                    # flat dicts, one a version and device

`gathering` asks and reads, `latencies`, `models` and `verdicts` make sections of it, `page` draws them. A section is there only where there is data; for
the others `lacks` says which command would give it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgesdk.progress import Progress, silent
from edgesdk.reporting import gathering, latencies, models, verdicts
from edgesdk.reporting.gathering import Found
from edgesdk.reporting.section import Chart, Column, Row, Section, clean

SCHEMA = 1

# In the order of the page: what a person looks for first. What is missing, and what would give it.
_SECTIONS = (
    (latencies.devices, "a comparison of devices", "edgesdk report --fleet fleet.toml"),
    (models.frontier, "accuracy against latency", "edgesdk package …, then name the bundle"),
    (verdicts.accuracy, "accuracy on devices", "edgesdk evaluate MODEL --on HOST -o evaluated.json"),
    (verdicts.comparisons, "comparisons", "edgesdk compare A B -o compared.json"),
    (verdicts.tuning, "settings that were tried", "edgesdk tune MODEL --on HOST --json > tuned.json"),
    (latencies.latency, "latencies", "edgesdk bench HOST NAME -o bench.json"),
    (latencies.measurements, "measurements", "edgesdk bench HOST NAME -o bench.json"),
    (latencies.history, "latency over time", "edgesdk bench HOST NAME -o again.json, another day"),
    (latencies.sustained, "sustained load", "edgesdk bench HOST NAME --sustained 30m -o sustained.json"),
    (models.placement, "placement", "edgesdk inspect MODEL --profile P --json > inspected.json"),
    (models.operators, "work by operator", "edgesdk inspect MODEL --profile-ops --json > inspected.json"),
    (models.memory, "memory over the run", "edgesdk report model.onnx …"),
    (models.recipe, "the recipe", "edgesdk package …, then name the bundle"),
    (models.evidence, "evidence", "edgesdk package …, then name the bundle"),
    (models.conditions, "devices as they are", "edgesdk report HOST"),
)


@dataclass(frozen=True, slots=True)
class Lack:
    """What the report has nothing of, and the command that would give it."""

    what: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``made``: when, ISO; ``sources``: the hosts and files."""

    title: str
    made: str
    sources: tuple[str, ...]
    sections: tuple[Section, ...]
    lacks: tuple[Lack, ...]
    schema: int = SCHEMA

    def section(self, key: str) -> Section | None:
        return next((each for each in self.sections if each.key == key), None)

    def rows(self, key: str | None = None) -> list[Row]:
        """Flat dicts as pandas.DataFrame and csv.DictWriter take them, of one section or of all; each names its section."""
        return [{"section": section.key, **row} for section in self.sections if key in (None, section.key) for row in section.rows]

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    def to_html(self) -> str:
        """One page that fetches nothing."""
        from edgesdk.reporting import page

        return page.html(self)


def report(*hosts: str, name: str | None = None, files: Sequence[Path] = (), progress: Progress = silent) -> Report:
    """Ask the devices of model ``name``, or of all that they run, and read ``files``: bundles, results of `bench`, what `--json` gave.

    Of several devices some may be silent: the report says which. Raises an EdgeSDKError where a file is none of these, or no device answers.
    """
    found = gathering.gather(hosts, name=name, files=files, progress=progress)
    return made_of(found, sources=[*hosts, *map(str, files)])


def made_of(found: Found, sources: Sequence[str]) -> Report:
    """The report of what was gathered."""
    made, lacks = list[Section](), list[Lack]()
    for build, what, command in _SECTIONS:
        section = build(found)
        if section is None:
            lacks.append(Lack(what, command))
        else:
            made.append(clean(section))
    return Report(
        title=clean(_title(found)),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=tuple(map(clean, sources)),
        sections=tuple(made),
        lacks=tuple(lacks),
    )


def _title(found: Found) -> str:
    """The model's name where it is about one, and on what."""
    told = (
        {each.title for each in found.inspected}
        if not (found.bundles or found.results or found.asked)
        else {each.name for each in found.bundles} | {each.name for each in found.results}
    )
    told |= {model.name for asked in found.asked if asked.report for model in asked.report.models}
    names, hosts = sorted(told), [asked.host for asked in found.asked]
    where = f" on {hosts[0]}" if len(hosts) == 1 else f" on {len(hosts)} devices" if hosts else ""
    return (", ".join(names) if 0 < len(names) < 4 else f"{len(names)} models") + where


__all__ = ["Chart", "Column", "Lack", "Report", "Section", "report"]
