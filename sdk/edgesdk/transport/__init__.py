"""How commands reach a device: over SSH, or as children of this process where the device is `local`.

    with connect("pi@192.168.1.20") as pi:
        pi.run(["uname", "-m"]).stdout

Two operations are all that the rest of edgesdk needs: run a command to its end, fed and heard, or leave it running and talk with it. What a
command means is the device's business; that it arrives as it was written is ours. Only `ssh.py` knows paramiko.
"""

from __future__ import annotations

import os
import shlex
import string
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

MAX_REPLY_BYTES = 4 << 20
LOCAL = "local"

# How to ask a person for a password, None where nobody is there: for the one who starts the program to set. It may answer None.
ask_password: Callable[[str], str | None] | None = None

# What to do where a host is not reached at once, None for nothing: for the one who starts the program to set, too. Called from another thread.
tell_slow: Callable[[str], None] | None = None
_SLOW_S = 2.0

# What reaches a login shell as it is; everything else travels as an octal number.
_PLAIN = frozenset((string.ascii_letters + string.digits + " _./=:,+@%-").encode())
_MOST_LETTERS = 200  # of a word, each up to five


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. ``returncode`` is 127 where there is no such command, negative where a signal ended it."""

    returncode: int
    stdout: bytes
    stderr: str


class Pipe(Protocol):
    """A command under way, to talk with."""

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """All of it. Raises ConnectionFailed."""

    def receive(self, most_bytes: int) -> bytes:
        """What it says next, one byte at least; none when it has ended. Raises ConnectionFailed where nothing comes for too long."""

    def close(self) -> Completed:
        """Its standard input ends, and soon so should it; what it said that nobody received is not told. Twice does no harm."""


class Transport(Protocol):
    """A way to run commands on a device."""

    @property
    def host(self) -> str:
        """What the person typed."""

    @property
    def python(self) -> str:
        """What to call for Python there."""

    def run(self, argv: Sequence[str], *, stdin: Iterable[bytes] = (), silence_s: float = 60, most_bytes: int = MAX_REPLY_BYTES) -> Completed:
        """Run a command to its end.

        The next chunk of ``stdin`` is asked for when the one before was taken, so a generator knows how far it is. Raises
        ConnectionFailed where the connection breaks or nothing moves for ``silence_s``, and DeviceError where more than
        ``most_bytes`` come back.
        """

    def open(self, argv: Sequence[str], *, silence_s: float = 60) -> Pipe:
        """Start a command and leave it running. Raises ConnectionFailed."""

    def close(self) -> None:
        """Twice does no harm."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def connect(host: str) -> Transport:
    """The way to ``host``: a name of `~/.ssh/config`, `user@host[:port]`, or `local`. Raises ConnectionFailed.

    EDGESDK_SSH_CONFIG names another file than `~/.ssh/config`.
    """
    if host == LOCAL:
        from edgesdk.transport.local import LocalTransport

        return LocalTransport()
    from edgesdk.transport import settings, ssh

    config = os.environ.get("EDGESDK_SSH_CONFIG")
    with _told_if_slow(host):
        return ssh.connect(settings.resolve(host, Path(config) if config else None))


@contextmanager
def _told_if_slow(host: str) -> Iterator[None]:
    timer = threading.Timer(_SLOW_S, tell_slow, [host]) if tell_slow else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer:
            timer.cancel()


def command_line(argv: Sequence[str]) -> str:
    r"""The one place where arguments become text for a shell.

    >>> command_line(["echo", "it's"])
    'sh -c \'eval "$(printf %b "$@")"\' sh \'exec echo \\0047it\\0047\\0042\\0047\\0042\\0047s\\0047\''

    The login shell may be bash, dash, fish or csh, which agree on little more than single quotes around plain letters.
    So it only starts `sh`, and quotes, backslashes and line ends come out of printf there. No word is long: csh takes 1,024 letters.
    """
    script = f"exec {shlex.join(argv)}".encode()
    letters = [chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in script]
    words = ("".join(letters[start : start + _MOST_LETTERS]) for start in range(0, len(letters), _MOST_LETTERS))
    return f"""sh -c 'eval "$(printf %b "$@")"' sh {" ".join(f"'{word}'" for word in words)}"""
