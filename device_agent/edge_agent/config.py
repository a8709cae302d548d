"""The agent's configuration, config.json in its folder: who may ask, where it listens, and how much anybody may take.

    config = read(home)
    config.limits.body_bytes
    write_tcp(home, "127.0.0.1:8000")          # the one key that the agent itself writes

People type this file, so an unknown key or a value of the wrong kind is an error that names its place. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from edge_agent.errors import AgentError
from edge_agent.store import write_atomically

_LARGEST = 1 << 40


class ConfigError(AgentError):
    """config.json is not what this agent reads."""

    def __init__(self, message: str, hint: str = "correct the file, and start the agent again") -> None:
        super().__init__(message, hint)


@dataclass(frozen=True)
class Limits:
    """What anybody may take. Beyond it a request is refused with 4xx, or 503 and Retry-After."""

    body_bytes: int = 64 << 20  # of one request, with its tensors in shared memory
    in_flight_bytes: int = 256 << 20  # of the bodies of all requests that are being answered
    connections: int = 256  # on the Unix socket
    tcp_connections: int = 64
    idle_s: float = 30  # without a byte: between requests, within one, or of an answer that nobody reads
    bytes_a_second: int = 64 << 10  # a transfer that is slower, over idle_s and more, is cut off
    named_regions: int = 64  # of shared memory that one user may register
    named_region_bytes: int = 1 << 30  # of the files of all of them together
    waiting: int = 64  # requests by HTTP that wait for one model
    queue_s: float = 30  # that one waits for its turn
    answer_s: float = 120  # that a model may take for one; a worker that takes longer hangs, and is ended
    callers: int = 64  # programs that share memory with one model
    shared_bytes: int = 256 << 20  # of one of them
    all_shared_bytes: int = 1 << 30  # of all that share with one model


@dataclass(frozen=True)
class SocketAccess:
    """Whose the Unix socket is. ``group`` may ask too; None: the agent's own."""

    owner: Optional[str] = None
    group: Optional[str] = None


@dataclass(frozen=True)
class TrustRules:
    """``unsigned``: bundles that nobody signed are taken even where the device knows who may sign."""

    unsigned: bool = False


@dataclass(frozen=True)
class Check:
    """``command``: the device's own, with its arguments, which has to agree with a version at its trial and in its probation; empty, there is none."""

    command: tuple[str, ...] = ()
    timeout_s: float = 60


@dataclass(frozen=True)
class Config:
    """``tcp``: the address to listen on, if any. ``hosts``: names that requests over TCP may be addressed to, beside the address itself."""

    tcp: Optional[str] = None
    hosts: tuple[str, ...] = ()
    socket: SocketAccess = field(default_factory=SocketAccess)
    trust: TrustRules = field(default_factory=TrustRules)
    check: Check = field(default_factory=Check)
    limits: Limits = field(default_factory=Limits)


def read(home: Path) -> Config:
    """All defaults where there is no file. Raises ConfigError."""
    config: Config = _section(Config, _document(home), "")
    return config


def write_tcp(home: Path, address: str | None) -> None:
    """Remember where to listen; what else the file says stays. Raises ConfigError or OSError."""
    document = {**_document(home), "tcp": address}
    write_atomically(home / "config.json", (json.dumps(document, indent=2) + "\n").encode())


def _document(home: Path) -> dict[str, Any]:
    try:
        document = json.loads((home / "config.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"config.json cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config.json is no JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise ConfigError("config.json is not a JSON object")
    return document


def _section(kind: Any, document: Any, path: str) -> Any:
    if not isinstance(document, dict):
        raise ConfigError(f"config.json: {path.rstrip('.')} is not an object")
    hints, known = typing.get_type_hints(kind), {entry.name for entry in dataclasses.fields(kind)}
    for key in document:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key, known, 1)
            raise ConfigError(f"config.json: {path}{key[:80]}: unknown key" + (f" (did you mean {near[0]}?)" if near else ""))
    return kind(**{key: _value(hints[key], value, f"{path}{key}") for key, value in document.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{path}.")
    if hint is bool:
        if type(value) is not bool:
            raise ConfigError(f"config.json: {path} is true or false, not {str(value)[:40]}")
        return value
    if hint in (int, float):
        if type(value) not in {hint, int} or not 0 < value <= _LARGEST:
            raise ConfigError(f"config.json: {path} is a{'' if hint is float else ' whole'} number above 0, not {str(value)[:40]}")
        return value
    if hint == Optional[str]:
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigError(f"config.json: {path} is a string or null, not {str(value)[:40]}")
        return value
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        raise ConfigError(f"config.json: {path} is a list of strings, not {str(value)[:40]}")
    return tuple(value)
