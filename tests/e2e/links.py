"""Bad links in front of a device, by the tools in testbed/.

with slow_link(device.port, "--mbit", "50", "--rtt-ms", "20") as link:
    ...                                    # to 127.0.0.1:link.port
link.up, link.connections                  # payload bytes from the client, counted where they pass
"""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
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


@dataclass
class _Talk:
    """Of one connection: the client has heard something since it last spoke; it has said something that was not answered."""

    heard: bool = True
    said: bool = False


class Counter:
    """A proxy that counts round trips: the client heard something, spoke, and the device answered that. A farewell has no answer."""

    def __init__(self, host: str, port: int, delay_s: float = 0.1) -> None:
        self.target, self.delay_s, self.answers = (host, port), delay_s, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.ends: list[socket.socket] = []

    def __enter__(self) -> Counter:
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        for end in (self.server, *self.ends):
            end.close()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            there, talk = socket.create_connection(self.target), _Talk()
            self.ends += [client, there]
            for source, target, up in ((client, there, True), (there, client, False)):
                threading.Thread(target=self.carry, args=(source, target, talk, up), daemon=True).start()

    def carry(self, source: socket.socket, target: socket.socket, talk: _Talk, up: bool) -> None:
        flight: queue.SimpleQueue[tuple[float, bytes, bool]] = queue.SimpleQueue()
        threading.Thread(target=self.deliver, args=(target, flight, talk, up), daemon=True).start()
        data = b"-"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            anew = up and talk.heard and bool(data)
            if anew:
                talk.heard = False
            if not up and data and talk.said:
                talk.said = False
                self.answers += 1
            flight.put((time.monotonic() + self.delay_s, data, anew))

    def deliver(self, target: socket.socket, flight: queue.SimpleQueue[tuple[float, bytes, bool]], talk: _Talk, up: bool) -> None:
        while True:
            at, data, anew = flight.get()
            time.sleep(max(0.0, at - time.monotonic()))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                talk.said |= anew
                talk.heard |= not up
                target.sendall(data)
            except OSError:
                return
