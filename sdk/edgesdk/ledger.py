"""Measurements that outlive the process: a file of one JSON line each, on the disk before the next is begun.

    with Ledger.open(path, {"model": digest, "device": facts}) as ledger:
        ledger.get("search", change, 0) or ledger.add("search", change, 0, measured)

Whoever is killed in between loses the measurement under way and no other. A line that power cut off is dropped.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edgesdk.errors import ResultError

SCHEMA = 1


class Ledger:
    """Opened for one process at a time. Each measurement has a key: its phase, what was measured, and the how-many-eth of it."""

    def __init__(self, path: Path, stream: IO[bytes], known: dict[tuple[str, str, int], dict[str, Any]]) -> None:
        self.path = path
        self.found = len(known)  # by earlier processes
        self.added = 0
        self._stream, self._known = stream, known

    @classmethod
    @contextmanager
    def open(cls, path: Path, about: Mapping[str, Any], *, afresh: bool = False) -> Iterator["Ledger"]:
        """``about`` is written as the first line, for whoever looks into the file. Raises ResultError where it cannot be, or another process has it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+b")
        except OSError as error:
            raise ResultError(f"`{path}` cannot be written: {error.strerror}", "give the cache another folder: EDGESDK_CACHE") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResultError("the same is being tuned by another process", "wait for it to end: its measurements count here, too") from error
            if afresh:
                stream.truncate(0)
            known = _read(stream)
            ledger = cls(path, stream, known)
            if not stream.tell():
                ledger._append({"schema": SCHEMA, "about": about})
            yield ledger

    def get(self, phase: str, what: str, index: int) -> dict[str, Any] | None:
        """A measurement that is there."""
        return self._known.get((phase, what, index))

    def add(self, phase: str, what: str, index: int, measured: dict[str, Any]) -> dict[str, Any]:
        """Returns once it is on the disk."""
        self._append({"phase": phase, "what": what, "index": index, "measured": measured})
        self._known[phase, what, index] = measured
        self.added += 1
        return measured

    def _append(self, document: Mapping[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(document, ensure_ascii=False).encode(errors="replace") + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise ResultError(f"`{self.path}` cannot be written: {error.strerror}", "free some space; what was measured before is kept") from error


def _read(stream: IO[bytes]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Every whole line; what is behind the last one goes. The stream is at its end then."""
    stream.seek(0)
    data = stream.read()
    whole = data.rfind(b"\n") + 1
    known = {}
    for line in data[:whole].splitlines():
        try:
            document = json.loads(line)
            if "phase" in document:
                known[document["phase"], document["what"], document["index"]] = document["measured"]
        except (ValueError, KeyError, TypeError):
            continue  # damaged: it is measured again
    if whole < len(data):
        stream.truncate(whole)
    stream.seek(0, os.SEEK_END)
    return known
