"""The agent's log, a JSON object a line: time, level, event, and what belongs to it: model, release, digest, cause.

    with opened(home / "agent.log"):
        event("warning", "worker died", model="ocr", cause="killed by SIGSEGV")
    in_words(line)                             # the same for a person

What children and libraries write to standard error becomes lines of the same kind. Size and rate are bounded. No input of a model and no
secret is ever given to it. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

_MAX_BYTES = 4 << 20  # then one older file is kept beside it
_MAX_TEXT = 4000  # characters of one field
_SAID_A_MINUTE = 600  # lines of standard error: a library that repeats itself wears the flash out
_READ_BYTES = 1 << 16
_PATIENCE_S = 2


class Log:
    """A file that grows to 4 MB, twice. Any thread may write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._descriptor, self._size = self._open()

    def write(self, line: str) -> None:
        """A full disk costs the line, nothing else."""
        data = line.encode("utf-8", "replace") + b"\n"
        with self._lock, contextlib.suppress(OSError):
            if self._size + len(data) > _MAX_BYTES:
                os.replace(self._path, older(self._path))
                os.close(self._descriptor)
                self._descriptor, self._size = self._open()
            self._size += os.write(self._descriptor, data)

    def close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1  # a line that comes too late is lost

    def _open(self) -> tuple[int, int]:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
        return descriptor, os.fstat(descriptor).st_size


_current: Optional[Log] = None


def event(level: str, name: str, **fields: object) -> None:
    """One line; on standard error where no log is open. Levels: info, warning, error."""
    known = {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in fields.items()}
    line = json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "level": level, "event": name, **known}, ensure_ascii=False)
    if _current is not None:
        _current.write(line)
    else:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[None]:
    """Within the context events go there, and what this process and its children say on standard error. Raises OSError."""
    global _current
    _current = log = Log(path)
    sys.stderr.flush()
    before = os.dup(2)
    said, says = os.pipe()
    os.dup2(says, 2)
    os.close(says)
    listening = threading.Thread(target=_listen, args=(said,), name="standard error", daemon=True)
    listening.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)  # closes our end: the listener ends with the last child's
        os.close(before)
        listening.join(_PATIENCE_S)
        _current = None
        log.close()


def newest(path: Path, lines: int) -> list[str]:
    """The last lines, of the older file too, the newest last."""
    found: deque[str] = deque(maxlen=lines)
    for file in (older(path), path):
        with contextlib.suppress(FileNotFoundError), open(file, encoding="utf-8", errors="replace") as stream:
            found.extend(line.rstrip("\n") for line in stream)
    return list(found)


def older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def in_words(line: str) -> str:
    """A line for a person; one that is none of ours as it is.

    >>> in_words('{"time": "2026-01-02T03:04:05.678+00:00", "level": "warning", "event": "worker died", "model": "ocr", "cause": "killed"}')
    '2026-01-02 03:04:05 warning worker died: ocr, cause killed'
    """
    try:
        known = json.loads(line)
        when, level, name = (str(known.pop(key)) for key in ("time", "level", "event"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return line
    words = [str(known.pop("model"))] if "model" in known else []
    words += [str(known.pop("text"))] if "text" in known else []
    traceback = str(known.pop("traceback", ""))
    words += [f"{key} {_shortened(value)}" for key, value in known.items() if value is not None]
    told = when[:19].replace("T", " ") + ("" if level == "info" else f" {level}") + f" {name}" + (": " + ", ".join(words) if words else "")
    return "\n".join([told, *(f"    {row}" for row in traceback.splitlines())])


def _shortened(value: object) -> str:
    if isinstance(value, str):
        return value[:19] if value.startswith("sha256:") else value
    return json.dumps(value, ensure_ascii=False)


def _listen(descriptor: int) -> None:
    """Turn what comes into lines of the log, until the last writer is gone."""
    rest, minute, left = b"", 0.0, 0
    with open(descriptor, "rb", buffering=0) as stream:
        while True:
            data = stream.read(_READ_BYTES)
            *whole, rest = (rest + (data or b"\n")).split(b"\n")
            if len(rest) > _READ_BYTES:
                whole, rest = [*whole, rest], b""
            for line in whole:
                if time.monotonic() - minute >= 60:
                    if left < 0:
                        event("warning", "too much was said", lines_dropped=-left)
                    minute, left = time.monotonic(), _SAID_A_MINUTE
                left -= 1
                if left >= 0 and line.strip():
                    event("warning", "said", text=line.decode("utf-8", "replace"))
            if not data:
                return
