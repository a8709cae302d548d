"""The agent's one lasting process: owns the sockets, the store, the workers and their counts. Standard library and h11 only.

    serve(resolve())           # until SIGTERM, SIGINT or `edge-agent stop`

Two never run on one folder: the lock file says who does.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent import __version__, api, probe
from edge_agent.deployments import Deployments
from edge_agent.home import code_folder, socket_address, socket_path
from edge_agent.journal import Journal, now, tail
from edge_agent.models import Models
from edge_agent.races import Races
from edge_agent.server import Server
from edge_agent.store import Store, write_atomically

SAVE_EVERY_S = 60  # flash wears: nothing is written more often than this
_MAX_LOG_BYTES = 4 << 20
_LOCAL_CONNECTIONS = 256
_TCP_CONNECTIONS = 64


class AlreadyRunning(Exception):
    """Another agent holds this folder."""

    def __init__(self, home: Path, pid: str) -> None:
        super().__init__(f"an agent already runs on {home}" + (f" (process {pid})" if pid else ""))
        self.hint = "`edge-agent stop` ends it"


class Agent:
    """What the routes work on."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.since = now()
        self.journal = Journal(home)
        self.store = Store(home)
        self.models = Models(home, self.store, self.journal)
        self.deployments = Deployments(home, self.store, self.models, self.journal)
        self.models.damaged = self.deployments.recover
        self.races = Races(home, self.deployments)
        self._ended = threading.Event()
        self._tcp: Server | None = None
        self._tcp_lock = threading.Lock()

    def stop(self) -> None:
        """Let `serve` end; returns at once."""
        self._ended.set()

    def wait(self) -> None:
        """Until somebody stops it. Meanwhile the counts are saved, and what a host left behind is removed."""
        while not self._ended.wait(SAVE_EVERY_S):
            self.models.save()
            self.races.sweep()

    def status(self) -> dict[str, Any]:
        runtime = self.models.runtime() or self._installed
        code = code_folder()
        return {
            "agent": {
                "version": __version__,
                "digest": code.name if re.fullmatch(r"[0-9a-f]{16}", code.name) else None,
                "pid": os.getpid(),
                "python": sys.version.split()[0],
                "onnxruntime": runtime.get("onnxruntime"),
                "numpy": runtime.get("numpy"),
                "home": str(self.home),
                "since": self.since,
            },
            "models": self.models.status(),
            "store": self.store.usage(),
        }

    @functools.cached_property
    def _installed(self) -> dict[str, Any]:
        """Asked once, and only while no worker runs that could tell."""
        found = probe.runtime(str(self.home))
        version = found["onnxruntime"]["version"] if found["onnxruntime"] else None
        return {"onnxruntime": version, "numpy": found["numpy"]}

    def logs(self, lines: int) -> list[str]:
        """The newest last. The journal is in the log too; alone it is shown when nothing was logged."""
        return tail(self.home / "agent.log", lines) or tail(self.journal.path, lines)

    def listen(self, port: int | None) -> dict[str, Any]:
        """Open loopback TCP at once, or close it, and remember it. Raises OSError if the port cannot be had."""
        with self._tcp_lock:
            listener = None if port is None else _tcp_listener(port, self._tcp)
            if self._tcp is not None and (listener is None or listener is not self._tcp.listener):
                self._tcp.stop(patience_s=1)
                self._tcp = None
            address = None
            if listener is not None:
                address = f"127.0.0.1:{listener.getsockname()[1]}"
                if self._tcp is None:
                    self._tcp = Server(listener, functools.partial(api.respond, self), token=_token(self.home), most_connections=_TCP_CONNECTIONS)
                    self._tcp.start()
            write_atomically(self.home / "config.json", json.dumps({"tcp": address}).encode())
            self.journal.append("tcp", address=address)
        return {"url": f"http://{address}" if address else None, "token_file": str(_token_path(self.home)) if address else None}

    def close(self) -> None:
        """End the workers, and write what was counted."""
        self.deployments.close()
        if self._tcp is not None:
            self._tcp.stop(patience_s=1)
        self.models.stop()
        self.models.save()


def serve(home: Path) -> None:
    """Run the agent. Raises AlreadyRunning, or OSError if the folder cannot be used."""
    os.umask(0o027)
    home.mkdir(parents=True, exist_ok=True, mode=0o750)
    with _locked(home), _logged(home / "agent.log"):
        agent = Agent(home)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: agent.stop())
        server = Server(_unix_listener(socket_path(home)), functools.partial(api.respond, agent), most_connections=_LOCAL_CONNECTIONS)
        agent.journal.append("started", version=__version__, pid=os.getpid())
        agent.models.boot()
        _reopen_tcp(agent)
        server.start()
        try:
            agent.wait()
        finally:
            with contextlib.suppress(FileNotFoundError):
                socket_path(home).unlink()
            server.stop()
            agent.close()
            agent.journal.append("stopped", pid=os.getpid())


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the folder. The kernel frees the lock of a process that died."""
    descriptor = os.open(home / "agent.lock", os.O_RDWR | os.O_CREAT, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(home, os.read(descriptor, 20).decode("ascii", "replace").strip()) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What this process and its children say goes into the log. It is renamed when it has grown: one older is kept."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _MAX_LOG_BYTES:
            os.replace(path, path.with_suffix(".log.1"))
    sys.stderr.flush()
    before = os.dup(2)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def _unix_listener(path: Path) -> socket.socket:
    """We hold the lock, so a socket that lies there is nobody's."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o117)  # 0660 from the first moment; no other thread runs yet
    try:
        with socket_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _tcp_listener(port: int, current: Server | None) -> socket.socket:
    if current is not None and current.listener.getsockname()[1] == port:
        return current.listener
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _reopen_tcp(agent: Agent) -> None:
    """As config.json remembers it."""
    try:
        address = json.loads((agent.home / "config.json").read_bytes())["tcp"]
        port = int(address.rsplit(":", 1)[1]) if address else None
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        agent.journal.append("config.json cannot be read", cause=str(error))
        return
    if port is not None:
        try:
            agent.listen(port)
        except OSError as error:
            agent.journal.append("tcp failed", port=port, cause=error.strerror)


def _token(home: Path) -> str:
    """The secret of the TCP address, made when it is first needed."""
    path = _token_path(home)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        write_atomically(path, f"{token}\n".encode(), 0o600)
        return token


def _token_path(home: Path) -> Path:
    return home / "secrets" / "token"
