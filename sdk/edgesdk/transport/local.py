"""This machine as a device: commands run as children of this process."""

from __future__ import annotations

import os
import select
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Self, cast

from edgesdk.errors import ConnectionFailed, DeviceError
from edgesdk.transport import LOCAL, MAX_REPLY_BYTES, Completed

# A daemon that a command left behind may hold our pipes open; so long we go on reading after the command's own end.
_GRACE_S = 0.5
_ENDS_WITHIN_S = 5


class LocalTransport:
    """Runs commands here, with this process's own Python and environment."""

    host = LOCAL
    python = sys.executable

    def run(self, argv: Sequence[str], *, stdin: Iterable[bytes] = (), silence_s: float = 60, most_bytes: int = MAX_REPLY_BYTES) -> Completed:
        try:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")
        except OSError as error:
            return Completed(127, b"", f"{argv[0]}: {error.strerror}")
        with process:
            try:
                stdout, stderr = _exchange(process, iter(stdin), silence_s, most_bytes)
            except BaseException:
                process.kill()
                raise
        return Completed(process.returncode, stdout, stderr.decode(errors="replace"))

    def open(self, argv: Sequence[str], *, silence_s: float = 60) -> LocalPipe:
        try:
            return LocalPipe(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", bufsize=0), silence_s)
        except OSError as error:
            raise ConnectionFailed(f"`{argv[0]}` cannot be started: {error.strerror}", "is it installed?", final=True) from error

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalPipe:
    """A child of this process."""

    def __init__(self, process: subprocess.Popen[bytes], silence_s: float) -> None:
        self._process, self._silence_s = process, silence_s
        self._stdin, self._stdout = cast("tuple[IO[bytes], IO[bytes]]", (process.stdin, process.stdout))

    def send(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[os.write(self._stdin.fileno(), view) :]
        except (OSError, ValueError) as error:
            raise ConnectionFailed("the command ended before it had read everything", "try again") from error

    def receive(self, most_bytes: int) -> bytes:
        if not select.select([self._stdout], [], [], self._silence_s)[0]:
            raise ConnectionFailed(f"nothing moved for {self._silence_s:.0f} s", "is this machine very busy? try again")
        return os.read(self._stdout.fileno(), most_bytes)

    def close(self) -> Completed:
        self._stdin.close()
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
        return Completed(self._process.returncode, b"", "")


def _exchange(process: subprocess.Popen[bytes], chunks: Iterator[bytes], silence_s: float, most_bytes: int) -> tuple[bytes, bytes]:
    """Feed and read at the same time, since either side may be the one that waits."""
    stdin, stdout, stderr = cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", (process.stdin, process.stdout, process.stderr))
    said = {stdout.fileno(): bytearray(), stderr.fileno(): bytearray()}
    reading = set(said)
    pending = memoryview(b"")
    moved, ended = time.monotonic(), 0.0
    with selectors.DefaultSelector() as selector:
        os.set_blocking(stdin.fileno(), False)
        selector.register(stdin, selectors.EVENT_WRITE)
        for pipe in said:
            selector.register(pipe, selectors.EVENT_READ)
        while reading:
            events = selector.select(timeout=0.1)
            if events:
                moved = time.monotonic()
            elif process.poll() is not None:  # what it said at its very end may have come since we looked
                ended = ended or time.monotonic()
                if time.monotonic() - max(moved, ended) > _GRACE_S:
                    break
            elif time.monotonic() - moved > silence_s:
                raise ConnectionFailed(f"nothing moved for {silence_s:.0f} s", "is this machine very busy? try again")
            for key, _ in events:
                if key.fileobj is stdin:
                    try:
                        pending = pending or memoryview(next(chunks))
                        pending = pending[os.write(stdin.fileno(), pending) :]
                    except (StopIteration, BrokenPipeError):  # all is written, or the command ended without reading all
                        selector.unregister(stdin)
                        stdin.close()
                    continue
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                    reading.remove(key.fd)
                said[key.fd] += data
                if len(said[key.fd]) > most_bytes:
                    raise DeviceError(f"the answer is longer than {most_bytes} bytes", "ask for less at a time")
    return bytes(said[stdout.fileno()]), bytes(said[stderr.fileno()])
