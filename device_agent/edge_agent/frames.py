"""Messages between the supervisor and its children: a JSON head and a body of bytes, over a socket pair. Standard library only.

    send(sock, {"op": "infer"}, body)
    head, body = receive(sock)          # EOFError when the other side is gone

`send_all` and `receive_into` serve the HTTP side too.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, Union

Bytes = Union[bytes, bytearray, memoryview]

_PREFIX = struct.Struct("<IQ")
_MAX_HEAD_BYTES = 4 << 20
_MAX_BODY_BYTES = 4 << 30
_MAX_BUFFERS = 256  # below every system's IOV_MAX


def send(sock: socket.socket, head: dict[str, Any], *buffers: Bytes) -> None:
    """One message. Raises OSError."""
    send_all(sock, message(head, *buffers))


def receive(sock: socket.socket, most_bytes: int = _MAX_BODY_BYTES) -> tuple[dict[str, Any], bytearray]:
    """One message. Raises EOFError or OSError."""
    return read(lambda view: receive_into(sock, view), most_bytes)


def message(head: dict[str, Any], *buffers: Bytes) -> list[Bytes]:
    """What to send, piece by piece, whatever carries it."""
    encoded = json.dumps(head).encode()
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    return [_PREFIX.pack(len(encoded), sum(len(view) for view in views)) + encoded, *views]


def read(fill: Callable[[memoryview], None], most_bytes: int = _MAX_BODY_BYTES) -> tuple[dict[str, Any], bytearray]:
    """The other way: ``fill`` fills a view with what comes next. Raises what that raises, and EOFError for what is no message."""
    prefix = bytearray(_PREFIX.size)
    fill(memoryview(prefix))
    head_bytes, body_bytes = _PREFIX.unpack(prefix)
    if head_bytes > _MAX_HEAD_BYTES or body_bytes > most_bytes:
        raise EOFError("the other side sent what is no message")
    head, body = bytearray(head_bytes), bytearray(body_bytes)
    fill(memoryview(head))
    fill(memoryview(body))
    return json.loads(bytes(head)), body


def send_all(sock: socket.socket, buffers: Iterable[Bytes], *, deadline: float | None = None) -> None:
    """All of it, without joining the buffers first. Raises OSError; a time-out where it is not through by ``deadline`` (monotonic)."""
    left = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if len(view)]
    while left:
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        sent = sock.sendmsg(left[:_MAX_BUFFERS])
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fill the view. Raises EOFError if the other side ends earlier, or OSError."""
    while len(view):
        count = sock.recv_into(view)
        if not count:
            raise EOFError("the other side closed the connection")
        view = view[count:]
