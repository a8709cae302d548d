"""What a report is made of: devices that are asked now, and files that were written before.

found = gather(["pi@10.0.0.7"], name="ocr", files=[Path("bundles/ocr"), Path("monday.json")])
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from edge_agent.bundle import BundleError
from edgesdk import device, replies
from edgesdk.errors import DeviceError, EdgeSDKError
from edgesdk.progress import Progress, silent
from edgesdk.reporting import documents
from edgesdk.reporting.documents import Bundled, Compared, Evaluated, Inspected, Tuned
from edgesdk.results import Result

AT_ONCE = 8  # devices that are asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a device said. ``status`` is None where it told its latency only; ``report`` too, where ``error`` says why it told nothing."""

    host: str
    report: replies.Report | None = None
    status: replies.Status | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    asked: tuple[Asked, ...] = ()
    bundles: tuple[Bundled, ...] = ()
    inspected: tuple[Inspected, ...] = ()
    compared: tuple[Compared, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    results: tuple[Result, ...] = ()
    evaluated: tuple[Evaluated, ...] = ()

    @property
    def sustained(self) -> tuple[Result, ...]:
        return tuple(each for each in self.results if each.curve)


def gather(hosts: Sequence[str], *, name: str | None = None, files: Sequence[Path] = (), progress: Progress = silent) -> Found:
    """Files first: what is wrong with them is known at once. Raises an EdgeSDKError, also where none of the devices answers."""
    read = [document for path in files for document in documents.read(path)]
    return Found(
        asked=_asked(hosts, name, progress),
        bundles=tuple(each for each in read if isinstance(each, Bundled)),
        inspected=tuple(each for each in read if isinstance(each, Inspected)),
        compared=tuple(each for each in read if isinstance(each, Compared)),
        tuned=tuple(each for each in read if isinstance(each, Tuned)),
        results=tuple(each for each in read if isinstance(each, Result)),
        evaluated=tuple(each for each in read if isinstance(each, Evaluated)),
    )


def _asked(hosts: Sequence[str], name: str | None, progress: Progress) -> tuple[Asked, ...]:
    if len(hosts) == 1:
        return (_ask(hosts[0], name),)
    found: dict[str, Asked] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asking = {pool.submit(_ask_if_there, host, name): host for host in hosts}
        for done, future in enumerate(as_completed(asking), 1):
            found[asking[future]] = future.result()
            progress("ask the devices", done, len(hosts))
    silent_ones = [each for each in found.values() if each.error]
    if hosts and len(silent_ones) == len(hosts):
        raise DeviceError(f"none of {len(hosts)} devices answers; the first: {silent_ones[0].error}", f"`edgesdk status {silent_ones[0].host}` may tell more")
    return tuple(found[host] for host in hosts)


def _ask_if_there(host: str, name: str | None) -> Asked:
    """Of a fleet some device is always off, or without that model."""
    try:
        return _ask(host, name)
    except (EdgeSDKError, BundleError) as error:
        return Asked(host=host, error=str(error))


def _ask(host: str, name: str | None) -> Asked:
    with device.connect(host) as opened:
        return Asked(host=host, report=opened.report(name, histograms=True), status=opened.status())
