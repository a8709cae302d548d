"""Bad links in front of a device, by the tools in testbed/.

with slow_link(device.port, "--mbit", "50", "--rtt-ms", "20") as link:
    ...                                    # to 127.0.0.1:link.port
link.up, link.connections                  # payload bytes from the client, counted where they pass
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTBED = Path(__file__).with_name("testbed")


@dataclass
class Link:
    """``port``: where it listens. The counts are known when it has ended."""

    port: int
    process: subprocess.Popen[str]
    connections: int = 0
    up: int = 0
    down: int = 0

    def end(self) -> None:
        """Connections break; what went through is counted."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        said, _ = self.process.communicate(timeout=20)
        counts = re.search(r"(\d+) connections, (\d+) bytes up, (\d+) bytes down", said)
        if counts:
            self.connections, self.up, self.down = map(int, counts.groups())


@contextmanager
def slow_link(to: int | str, *options: str, port: int = 0) -> Iterator[Link]:
    """``to``: a port of loopback, or host:port. See testbed/slow-link for the options."""
    target = to if isinstance(to, str) else f"127.0.0.1:{to}"
    argv = [sys.executable, TESTBED / "slow-link", "--listen", f"127.0.0.1:{port}", "--to", target, *options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    link = Link(int(process.stdout.readline().rpartition(":")[2]), process)
    try:
        yield link
    finally:
        link.end()


@contextmanager
def lossy_link(name: str, state: str, *options: str) -> Iterator[None]:
    """In front of a bare device. See testbed/lossy-link for the options."""
    argv = [sys.executable, TESTBED / "lossy-link", name, *options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "EDGE_TESTBED_STATE": state})
    assert process.stdout and process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)
