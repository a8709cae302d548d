"""The supervisor's side of children that are driven step by step: a trial, a race.

    with Child("racer", folder, home, what="the process that ran both models") as child:
        child.ask({"op": "ask"}, timeout_s=120)

Standard library only: what needs numpy happens in the children.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Union

from edge_agent import frames
from edge_agent.errors import AgentError
from edge_agent.home import child
from edge_agent.zygote import Forked, Zygote

_BUFFER_BYTES = 1 << 20
Process = Union["subprocess.Popen[bytes]", Forked]


class ChildFailed(AgentError):
    """A child could not do what it was started for. The message is for a person."""


class ChildDied(ChildFailed):
    """It was killed by a signal, ended by itself, or took too long."""


class Child:
    """A child that is driven step by step: a trial, a race. Use as a context manager: it ends with it.

    ``what`` it is in a sentence: "the trial of ocr". ``lent``: descriptors that it is to have, too. ``started``: it is a process of
    the zygote (`forked`).
    """

    def __init__(
        self, verb: str, folder: Path, home: Path, *, what: str, lent: Sequence[int] = (), started: tuple[Process, socket.socket] | None = None
    ) -> None:
        self._what = what
        self._process, self._socket = started or spawn(verb, str(folder), *map(str, lent), home=home, lent=lent)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        self._socket.close()
        end(self._process)

    def cancel(self) -> None:
        """From another thread: the question under way fails."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.kill()

    def ask(self, question: dict[str, Any], *, timeout_s: float, stage: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Put one question; ``stage`` hears what the child says on the way. Raises ChildFailed where it refuses, ChildDied where it gives no answer."""
        self._socket.settimeout(timeout_s)
        try:
            frames.send(self._socket, question)
        except OSError as error:
            raise self._gone() from error
        return self.answer(timeout_s=timeout_s, stage=stage)

    def tell(self, message: dict[str, Any]) -> None:
        """From another thread, or after a question whose answer was not waited for. One that has ended by now hears nothing."""
        with contextlib.suppress(OSError):
            frames.send(self._socket, message)

    def answer(self, *, timeout_s: float, stage: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Wait for the answer to the last question. Raises as `ask` does."""
        self._socket.settimeout(timeout_s)
        try:
            head, _ = frames.receive(self._socket)
            while "stage" in head:
                stage(head["stage"])
                head, _ = frames.receive(self._socket)
        except socket.timeout as error:
            raise ChildDied(f"{self._what} did not end within {timeout_s:g} s", "see `edge-agent logs`") from error
        except (OSError, EOFError, ValueError) as error:
            raise self._gone() from error
        if "error" in head:
            raise ChildFailed(head["error"]["message"], head["error"]["hint"])
        result: dict[str, Any] = head["result"]
        return result

    def _gone(self) -> ChildDied:
        return ChildDied(f"{self._what} {ended(end(self._process))}", "see `edge-agent logs`; does the model run on the host?")


def spawn(verb: str, *arguments: str, home: Path, lent: Sequence[int] = ()) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child of ours, and our end of its socket. Raises OSError."""
    ours, theirs = _pair()
    with theirs:
        try:
            process = subprocess.Popen(
                **child(verb, *arguments, str(theirs.fileno()), home=home), pass_fds=(theirs.fileno(), *lent), stdin=subprocess.DEVNULL, stdout=2
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def forked(zygote: Zygote, name: str, folder: Path) -> tuple[Forked, socket.socket]:
    """A trial, and our end of its socket: it has imported all that it needs. Raises OSError."""
    ours, theirs = _pair()
    with theirs:
        try:
            return zygote.fork(name, folder, theirs), ours
        except BaseException:
            ours.close()
            raise


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return pair


def end(process: Process, patience_s: float = 2) -> int | None:
    """It has lost its socket, so it ends by itself; if not, it is killed. Its exit code, as `Forked.wait` has it."""
    try:
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def ended(code: int | None) -> str:
    """How a process ended, as the end of a sentence.

    >>> ended(-11)
    'was killed by SIGSEGV'
    """
    if code is None:
        return "died with the process that it was forked from"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
