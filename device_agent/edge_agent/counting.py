"""Counts of answers that the agent did not give itself: gathered in this process, sent to the agent in batches by a thread of its own.

    counting = Counting("ocr", home)
    times = counting.times_of(digest)
    times.append(35_000)                       # nanoseconds; any thread
    counting.awake or counting.wake()
    counting.flush()

Nothing here raises or waits in the caller's way. While no agent runs, the counts wait, in bounded memory.
"""

from __future__ import annotations

import json
import threading
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_agent.connection import AgentNotRunning, ClientError, Connection
from edge_agent.latency import Histogram, histogram_of

_EVERY_S = 1.0
_ANSWER_S = 5.0
_FLUSH_S = 1.0  # an agent that hangs does not keep a program from ending


@dataclass
class _Batch:
    errors: int = 0
    run: Histogram = field(default_factory=Histogram)


class Counting:
    """What one model did in this process, by version."""

    def __init__(self, name: str, home: Path) -> None:
        self.awake = False  # a batch is being gathered, and takes along what is appended now
        self._name, self._home = name, home
        self._lock = threading.Lock()
        self._times: dict[str, array[int]] = {}
        self._errors: dict[str, int] = {}
        self._unsent: dict[str, _Batch] = {}
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    def times_of(self, digest: str) -> array[int]:
        """Where the nanoseconds of that version's answers go."""
        with self._lock:
            return self._times.setdefault(digest, array("q"))

    def failed(self, digest: str) -> None:
        """It gave an error instead."""
        with self._lock:
            self._errors[digest] = self._errors.get(digest, 0) + 1
        self.wake()

    def wake(self) -> None:
        """There is something to send, within a second."""
        self.awake = True
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"counts of {self._name}", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Send what there is now. Waits a second at most."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._hurry.set()
            thread.join(_FLUSH_S)

    def _run(self) -> None:
        """A batch a second, until there is none."""
        while True:
            hurry = self._hurry.wait(_EVERY_S)
            self._hurry.clear()
            self.awake = False  # what is appended from here on wakes it again
            idle = not self._gather()
            self._send()
            with self._lock:
                if not self.awake and (hurry or idle):
                    self._thread = None
                    return

    def _gather(self) -> bool:
        """Whether there was anything new."""
        with self._lock:
            times, errors, self._errors = list(self._times.items()), self._errors, {}
        for digest, count in errors.items():
            self._waiting(digest).errors += count
        new = bool(errors)
        for digest, appended in times:
            count = len(appended)
            if count:
                histogram = histogram_of(np.frombuffer(appended[:count].tobytes(), np.int64))
                del appended[:count]  # what was appended meanwhile stays
                self._waiting(digest).run.merge(histogram)
                new = True
        return new

    def _waiting(self, digest: str) -> _Batch:
        return self._unsent.setdefault(digest, _Batch())

    def _send(self) -> None:
        with Connection(home=self._home, timeout_s=_ANSWER_S) as connection:
            for digest, batch in list(self._unsent.items()):
                document = {"digest": digest, "errors": batch.errors, "run": batch.run.to_dict()}
                try:
                    connection.request("POST", f"/edge/models/{self._name}/counts", [json.dumps(document).encode()])
                except AgentNotRunning:
                    return  # nothing was counted: it goes with the next batch
                except ClientError:
                    pass  # no longer active, or perhaps counted: better too few than twice
                del self._unsent[digest]
