"""Where things lie on a device, and how each process of the agent finds them.

    home = resolve()                          # EDGE_AGENT_HOME, else where this code lies, else the system's if it has one, else ~/.local/share/edge-agent
    subprocess.Popen(**child("worker", "ocr", home=home))
    use_runtime(home)                         # before the first import of numpy or onnxruntime

Standard library only: the supervisor imports it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.probe import runtime_tag

OLDEST_ONNXRUNTIME = (1, 16)
# Of every process of ours. numpy: nothing here multiplies matrices with it, and the zygote has one thread. glibc: each of many threads would have a heap.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
SYSTEM_HOME, SYSTEM_SOCKET = "/var/lib/edge-agent", "/run/edge-agent/agent.sock"
# sockaddr_un holds 108 bytes with the final NUL; some systems less.
LONGEST_SOCKET_PATH = 100
# What to try where onnxruntime does not load.
NO_RUNTIME = "run `edgesdk setup HOST`: it sends one; if it did, is its folder mounted noexec, or is the processor older than onnxruntime asks for?"


def resolve() -> Path:
    """The agent's folder, absolute. It need not exist."""
    named, code = os.environ.get("EDGE_AGENT_HOME"), code_folder()
    if not named and code.parent.name == "agent" and re.fullmatch("[0-9a-f]{16}", code.name):
        return code.parent.parent  # a program that found us by a .pth file asks the agent that put it there
    if not named and os.path.isdir(SYSTEM_HOME):
        return Path(SYSTEM_HOME)
    return Path(os.path.abspath(os.path.expanduser(named or "~/.local/share/edge-agent")))


def is_systems(home: Path) -> bool:
    """Whether it is the agent of the whole system: systemd runs it as a user of its own, and holds its socket."""
    return str(home) == SYSTEM_HOME


def socket_path(home: Path) -> Path:
    """The agent's Unix socket."""
    return Path(SYSTEM_SOCKET) if is_systems(home) else home / "agent.sock"


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """What to bind or connect to while the context lasts: a path too long for a socket is reached through its open folder."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def code_folder() -> Path:
    """The folder that holds the package `edge_agent`, links resolved: it stays when `agent/current` moves on."""
    return Path(os.path.realpath(__file__)).parent.parent


def code_digest() -> str | None:
    """Which agent this is, by the folder that set-up unpacked it to; None from a virtual environment or a checkout."""
    name = code_folder().name
    return name if re.fullmatch("[0-9a-f]{16}", name) else None


def child(verb: str, *arguments: str, home: Path) -> dict[str, Any]:
    """What Popen needs to run a verb with this code: from the unpacked folder, a virtual environment or a checkout alike."""
    return module("edge_agent", verb, *arguments, home=home)


def serving(home: Path) -> dict[str, Any]:
    """What Popen needs to have the agent run, and run again when it dies: the launcher's business where set-up put one."""
    script = home / "bin" / "edge-agent"
    if code_folder().parent != Path(os.path.realpath(home / "agent")) or not (home / "bin" / "launcher.py").is_file():
        return child("serve", home=home)
    return {"args": ["/bin/sh", str(script), "keep"], "cwd": "/"}


def module(name: str, *arguments: str, home: Path) -> dict[str, Any]:
    """The same for a module of its own, without what all verbs import."""
    environment = {**ENVIRONMENT, **os.environ, "EDGE_AGENT_HOME": str(home)}
    environment.pop("PYTHONSAFEPATH", None)  # `-m` finds us by the working folder
    return {"args": [sys.executable, "-m", name, *arguments], "cwd": str(code_folder()), "env": environment}


def use_runtime(home: Path) -> None:
    """Put the wheels that the host sent on sys.path, unless this Python has an onnxruntime that will do."""
    own = installed_onnxruntime()
    folder = home / "runtime" / runtime_tag()
    if (own is None or version_of(own) < OLDEST_ONNXRUNTIME) and folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def runtime_problem(home: Path) -> str | None:
    """Why none of the wheels that the host sent fits any more. None where one does, or none was needed."""
    own = installed_onnxruntime()
    if (own is not None and version_of(own) >= OLDEST_ONNXRUNTIME) or (home / "runtime" / runtime_tag()).is_dir():
        return None
    sent = sorted(path.name for path in (home / "runtime").glob("cp*-*-*") if path.is_symlink())
    if not sent:
        return None
    kinds = ("python", "processor", "libc")
    parts = [(kind, before, here) for kind, before, here in zip(kinds, sent[-1].split("-"), runtime_tag().split("-")) if before != here]
    changes = [f"{kind} changed {_plain(before)} → {_plain(here)}" for kind, before, here in parts]
    return f"{', '.join(changes)}: run `edgesdk setup HOST`"


def _plain(part: str) -> str:
    """`3.11` for cp311."""
    found = re.fullmatch("cp([0-9])([0-9]+)", part)
    return f"{found[1]}.{found[2]}" if found else part


def use_numpy() -> None:
    """A program on a bare device: only the agent's store has numpy. What the program has of its own comes first. Raises ImportError."""
    if "numpy" in sys.modules or importlib.util.find_spec("numpy") is not None:
        return
    folder = resolve() / "runtime" / runtime_tag()
    if not folder.is_dir():
        raise ImportError(f"edge_agent needs numpy, and the agent brought none for this Python ({runtime_tag()}): install it, or use the agent's python3")
    sys.path.append(str(folder))


def installed_onnxruntime() -> str | None:
    """Its version, read without importing it: that takes seconds on a small board."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.origin:
        return None
    try:
        with open(spec.origin, encoding="utf-8") as stream:
            found = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", stream.read(1 << 20), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def version_of(text: str) -> tuple[int, ...]:
    """A version's leading numbers, for comparison.

    >>> version_of("1.16.3+cu12") >= (1, 16)
    True
    """
    leading = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()
