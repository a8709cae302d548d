"""This machine as a device: commands run as children of this process."""

from __future__ import annotations

import os
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

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
