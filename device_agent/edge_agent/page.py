"""The status page at `/`: one HTML file that fetches nothing but its own figures, from `/status.json`.

    page.html(asks=True)           # the file, with a policy that lets nothing but its own script run
    page.figures(agent)            # what it draws, as JSON

Over TCP the page itself needs no token, since a browser cannot send one with its first request; its figures do.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import pkgutil
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent import facts
from edge_agent.server import Response, json_response

if TYPE_CHECKING:
    from edge_agent.models import Active
    from edge_agent.supervisor import Agent

_HISTORY = 40
_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}

# What became of versions, in words; {name}, {release} and {digest} come from the journal.
_EVENTS = {
    "activated": "{name} release {release} ({digest}) became active{how}",
    "swapped back": "{name} ({digest}) failed its first question and was swapped back",
    "fell back": "{name} fell back to {digest}",
    "undone": "{name} ({digest}) had not answered when the agent ended; what ran before is active",
    "damaged": "{name} is damaged on the disk: {cause}",
    "removed": "{name} was removed",
    "failed": "{what} failed: {message}",
    "worker died": "the worker of {name} ({digest}) died: {cause}",
    "started": "the agent {version} started",
}


def html(*, asks: bool) -> Response:
    """The page. ``asks``: for the token, before it asks for anything else."""
    source, policy = _page()
    if asks:
        source = source.replace(b'<html lang="en">', b'<html lang="en" data-asks>', 1)
    return Response(200, [source], content_type="text/html; charset=utf-8", headers={**_HEADERS, "Content-Security-Policy": policy})


def figures(agent: Agent) -> Response:
    """Everything that it shows, as it is now. Histograms go as they are: the page itself takes differences between two of them."""
    told = agent.status()
    models = [{**status, **_latency(agent.models.find(status["name"]))} for status in told["models"]]
    return json_response(
        {
            "monotonic_s": time.monotonic(),
            "agent": {key: told["agent"][key] for key in ("version", "python", "onnxruntime", "since")},
            "device": facts.read(),
            "models": models,
            "history": agent.history.newest(),
        },
        headers=_HEADERS,
    )


def _latency(model: Active | None) -> dict[str, Any]:
    if model is None:
        return {"errors": 0, "latency": {}, "max_ms": {}}
    counters = model.counters
    with counters.lock:
        histograms = {"total": counters.total, **counters.phases}
        return {
            "errors": counters.errors,
            "latency": {phase: histogram.counts() for phase, histogram in histograms.items()},
            "max_ms": {phase: histogram.max_ns / 1e6 for phase, histogram in histograms.items()},
        }


class History:
    """The newest events of the journal that are about versions. Only what was added since is read again."""

    def __init__(self, journal: Path) -> None:
        self._path = journal
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._inode = 0
        self._entries: deque[dict[str, str]] = deque(maxlen=_HISTORY)

    def newest(self) -> list[dict[str, str]]:
        """The newest first."""
        with self._lock:
            with contextlib.suppress(OSError):  # no journal yet, or none that can be read
                self._follow()
            return list(reversed(self._entries))

    def _follow(self) -> None:
        with open(self._path, "rb") as stream:
            now = os.fstat(stream.fileno())
            if now.st_ino != self._inode or now.st_size < self._read_bytes:  # it was begun anew
                self._inode, self._read_bytes = now.st_ino, 0
            stream.seek(self._read_bytes)
            new = stream.read()
        whole = new.rfind(b"\n") + 1
        self._read_bytes += whole
        for line in new[:whole].splitlines():
            entry = _entry(line)
            if entry is not None:
                self._entries.append(entry)


def _entry(line: bytes) -> dict[str, str] | None:
    """None for what is about no version, or is no line of ours."""
    try:
        event = json.loads(line)
        words = _EVENTS.get(event["event"])
        if words is None:
            return None
        event["digest"] = str(event.get("digest", "")).replace("sha256:", "")[:12]
        event["how"] = " again, by a rollback" if str(event.get("what", "")).startswith("rollback") else ""
        return {"time": str(event["time"]), "words": words.format_map(event)[:500]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@functools.cache
def _page() -> tuple[bytes, str]:
    """The file, and a policy that names its script and its style by their digests."""
    source = pkgutil.get_data("edge_agent", "page.html") or b""
    script, style = (_digest_of(source, tag) for tag in (b"script", b"style"))
    policy = f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'"
    return source, f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _digest_of(source: bytes, tag: bytes) -> str:
    (content,) = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), source, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
