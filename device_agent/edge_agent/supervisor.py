"""The agent's one lasting process: owns the sockets, the store, the workers and their counts. Standard library and h11 only.

    serve(resolve())           # until SIGTERM, SIGINT or `edge-agent stop`

Two never run on one folder: the lock file says who does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import select
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge_agent import __version__, api, facts, log, probe, systemd
from edge_agent import config as configuration
from edge_agent.config import ConfigError, SocketAccess
from edge_agent.deployments import Deployments
from edge_agent.home import code_digest, code_folder, runtime_problem, socket_address, socket_path
from edge_agent.journal import Journal, now
from edge_agent.models import Models
from edge_agent.page import History
from edge_agent.races import Races
from edge_agent.regions import Regions
from edge_agent.scrub import Scrub
from edge_agent.server import Room, Server
from edge_agent.store import Store, write_atomically
from edge_agent.zygote import Zygote

SAVE_EVERY_S = 60  # flash wears: nothing is written more often than this
_LOOPBACK = "127.0.0.1"


class Agent:
    """What the routes work on."""

    def __init__(self, home: Path, zygote: Zygote) -> None:
        self.home = home
        self.since = now()
        self.config = configuration.read(home)
        self.room = Room(self.config.limits)
        self.journal = Journal(home)
        self.history = History(self.journal.path)
        self.store = Store(home)
        self.models = Models(home, self.store, self.journal, self.config.limits, zygote)
        self.deployments = Deployments(home, self.store, self.models, self.journal, unsigned=self.config.trust.unsigned, check=self.config.check)
        self.models.damaged = self.deployments.recover
        self.models.crashed = self.deployments.crashed
        self.scrub = Scrub(self.store, self.deployments.rotten)
        self.races = Races(home, self.deployments)
        self.regions = Regions(self.config.limits)
        self._ended, self._ending = os.pipe()
        os.set_blocking(self._ending, False)
        self._tcp: Server | None = None
        self._tcp_lock = threading.Lock()

    def stop(self) -> None:
        """Let `serve` end; returns at once."""
        with contextlib.suppress(BlockingIOError):  # it has been told often enough
            os.write(self._ending, b"\0")

    def stop_at(self, *signals: int) -> None:
        """Let each of them end `serve`.

        The kernel's handler writes to the pipe. One of Python's could not tell: an event that it sets may be held at that moment, and one that is
        pending when a wait begins is not run before that ends.
        """
        signal.set_wakeup_fd(self._ending)
        for number in signals:
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Until somebody stops it. Meanwhile the counts are saved, what a host left behind is removed, and systemd hears that we are well."""
        patience_s = systemd.watchdog_s()
        saved = time.monotonic()
        while not select.select([self._ended], [], [], min(SAVE_EVERY_S, patience_s / 3) if patience_s else SAVE_EVERY_S)[0]:
            if patience_s:
                systemd.notify("WATCHDOG=1")
            if time.monotonic() - saved >= SAVE_EVERY_S - 1:
                saved = time.monotonic()
                self.models.save()
                self.races.sweep()
                self.scrub.look()
                with contextlib.suppress(OSError):  # then a start more counts as failed than did
                    _say_well(self.home)

    def status(self) -> dict[str, Any]:
        runtime = self.models.runtime() or self._installed
        return {
            "agent": {
                "version": __version__,
                "digest": code_digest(),
                "pid": os.getpid(),
                "python": sys.version.split()[0],
                "onnxruntime": runtime.get("onnxruntime"),
                "numpy": runtime.get("numpy"),
                "home": str(self.home),
                "since": self.since,
                "problem": self.problem(),
            },
            "models": self.models.status(),
            "staged": [waiting.to_dict() for waiting in self.deployments.staging.all()],
            "store": self.store.usage(),
            "device": facts.read(),
        }

    def problem(self) -> str | None:
        """What a person has to do something about, beyond one model."""
        code, current = code_folder(), os.path.basename(os.path.realpath(self.home / "agent" / "current"))
        if code.parent == Path(os.path.realpath(self.home / "agent")) and code.name != current:
            return f"the agent {current} did not start, or died; {code.name}, the one before it, runs: update edgesdk, then `edgesdk setup HOST`"
        return runtime_problem(self.home)

    @functools.cached_property
    def _installed(self) -> dict[str, Any]:
        """Asked once, and only while no worker runs that could tell."""
        found = probe.runtime(str(self.home))
        version = found["onnxruntime"]["version"] if found["onnxruntime"] else None
        return {"onnxruntime": version, "numpy": found["numpy"]}

    def logs(self, lines: int) -> list[str]:
        """The newest last. The journal is in the log too; alone it is shown when nothing was logged."""
        return log.newest(self.home / "agent.log", lines) or log.newest(self.journal.path, lines)

    def listen(self, port: int | None, address: str = _LOOPBACK) -> dict[str, Any]:
        """Open TCP at once, or close it, and remember it. Raises OSError if the port cannot be had."""
        with self._tcp_lock:
            listener = None if port is None else _tcp_listener(address, port, self._tcp)
            if self._tcp is not None and (listener is None or listener is not self._tcp.listener):
                self._tcp.stop(patience_s=1)
                self._tcp = None
            where = None
            if listener is not None:
                where = _written(*listener.getsockname()[:2])
                if self._tcp is None:
                    self._tcp = Server(
                        listener,
                        functools.partial(api.respond, self),
                        token=_token(self.home),
                        hosts=self.config.hosts,
                        most_connections=self.config.limits.tcp_connections,
                        room=self.room,
                    )
                    self._tcp.start()
            configuration.write_tcp(self.home, where)
            self.journal.append("tcp", address=where)
        return {"url": f"http://{where}" if where else None, "token_file": str(_token_path(self.home)) if where else None}

    def close(self) -> None:
        """End the workers, and write what was counted."""
        self.deployments.close()
        if self._tcp is not None:
            self._tcp.stop(patience_s=1)
        self.models.stop()
        self.models.save()
        self.regions.close()


def serve(home: Path, zygote: Zygote) -> None:
    """Run the agent on a folder that is held, its log opened. Raises ConfigError, or OSError if the folder cannot be used."""
    lent = systemd.inherited(socket_path(home))
    agent = Agent(home, zygote)
    agent.stop_at(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    server = Server(
        lent or _unix_listener(socket_path(home), agent.config.socket),
        functools.partial(api.respond, agent),
        most_connections=agent.config.limits.connections,
        room=agent.room,
    )
    agent.journal.append("started", version=__version__, pid=os.getpid())
    agent.deployments.resume()
    agent.models.boot()
    _reopen_tcp(agent)
    server.start()
    agent.deployments.staging.start()
    systemd.notify("READY=1")
    try:
        agent.wait()
    finally:
        systemd.notify("STOPPING=1")
        if lent is None:
            with contextlib.suppress(FileNotFoundError):
                socket_path(home).unlink()
        server.stop()
        agent.close()
        agent.journal.append("stopped", pid=os.getpid())


def _say_well(home: Path) -> None:
    """To the launcher: it has started us, and need not try another. Raises OSError."""
    code, said = code_folder(), home / "agent" / "starts"
    if code.parent == Path(os.path.realpath(home / "agent")):
        text = f"{os.path.basename(os.path.realpath(home / 'agent' / 'current'))} {code.name} 0"
        if not said.is_file() or said.read_text(encoding="ascii", errors="replace") != text:
            write_atomically(said, text.encode())


def _unix_listener(path: Path, access: SocketAccess) -> socket.socket:
    """We hold the lock, so a socket that lies there is nobody's. Raises ConfigError if it cannot be given to whom it should."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    given = access != SocketAccess()
    mask = os.umask(0o177 if given else 0o117)  # no wider for a moment than it will be; no other thread runs yet
    try:
        with socket_address(path) as address:
            listener.bind(address)
        if given:
            _give(path, access)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _give(path: Path, access: SocketAccess) -> None:
    try:
        shutil.chown(path, access.owner, access.group)  # type: ignore[arg-type] # one of them may be None
        path.chmod(0o660)
    except LookupError as error:
        raise ConfigError(f"config.json: socket: {error}") from error
    except OSError as error:
        whom = " and ".join(filter(None, (access.owner, access.group)))
        raise ConfigError(f"config.json: socket: this user may not give it to {whom}: {error.strerror}", "name a group that the agent's user is in") from error


def _tcp_listener(address: str, port: int, current: Server | None) -> socket.socket:
    if current is not None and current.listener.getsockname()[:2] == (address, port):
        return current.listener
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _written(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _reopen_tcp(agent: Agent) -> None:
    """As config.json has it."""
    if agent.config.tcp is None:
        return
    address, _, port = agent.config.tcp.rpartition(":")
    try:
        agent.listen(int(port), address.strip("[]"))
    except (OSError, ValueError, OverflowError) as error:
        agent.journal.append("tcp failed", address=agent.config.tcp, cause=str(error))


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
