"""HTTP to the agent, over its Unix socket or TCP on loopback. No numpy: the verbs use it too.

    with Connection(home=resolve()) as connection:
        reply = connection.request("GET", "/v2/models/ocr")
        reply.json()

What is wrong is a ClientError. A kept-alive connection that the agent closed meanwhile is reopened once, if nothing of an answer came.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge_agent import home as homes
from edge_agent.errors import AgentError
from edge_agent.frames import Bytes, receive_into, send_all

_MAX_REPLY_BYTES = 4 << 30
_BUFFER_BYTES = 1 << 20  # as far as the kernel gives them: the agent is woken less often within a large tensor
_MAX_HEAD_BYTES = 1 << 16
_READ_BYTES = 1 << 16
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t\x20-\x7e\x80-\xff]*?)[\t ]*")
_TARGET, _VALUE = re.compile(r"[\x21-\x7e]+"), re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class ClientError(AgentError):
    """Base of what a client raises. ``hint`` says what to try."""


class AgentNotRunning(ClientError):
    """Nobody answers at the agent's socket."""


class NoSuchModel(ClientError):
    """No model of that name is active."""


class BadRequest(ClientError):
    """The agent understood the question, and something is wrong with it."""


@dataclass(frozen=True)
class Reply:
    """An answer that is no failure. ``header_bytes``: how much of the body is JSON, None for all."""

    status: int
    header_bytes: int | None
    body: bytearray
    timing_ms: dict[str, float] = field(default_factory=dict)  # what the agent says of its phases

    def json(self) -> Any:
        """Raises ClientError if it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ClientError("the agent's answer is no JSON", "is it another program that listens there?") from error


class Connection:
    """One connection, opened when first needed. Threads may share it: they take turns."""

    def __init__(self, *, home: Path, url: str | None = None, token: str | None = None, timeout_s: float = 60) -> None:
        self._home, self._url, self._timeout_s = home, url, timeout_s
        self._headers = [("Host", _authority(url))] + ([("Authorization", f"Bearer {token}")] if token else [])
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. The next request opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, method: str, target: str, buffers: Sequence[Bytes] = (), *, header_bytes: int | None = None) -> Reply:
        """Ask and wait for the answer. Raises ClientError for a failure, of whatever kind."""
        with self._lock:
            fresh = self._socket is None
            try:
                return self._exchange(method, target, buffers, sum(memoryview(buffer).nbytes for buffer in buffers), header_bytes)
            except _Unanswered as error:
                if fresh:
                    raise ClientError("the agent closed the connection without an answer", "see `edge-agent logs`") from error
            try:
                return self._exchange(method, target, buffers, sum(memoryview(buffer).nbytes for buffer in buffers), header_bytes)
            except _Unanswered as error:
                raise ClientError("the agent closed the connection without an answer", "see `edge-agent logs`") from error

    def handed_over(self, target: str, protocol: str, body: bytes = b"") -> socket.socket:
        """A connection of its own, on which the agent speaks that protocol from now on. Raises ClientError."""
        with self._lock:
            self.close()
            try:
                reply = self._exchange("POST", target, [body], len(body), None, headers=[("Connection", "Upgrade"), ("Upgrade", protocol)])
            except _Unanswered as error:
                raise ClientError("the agent closed the connection without an answer", "see `edge-agent logs`") from error
            sock, self._socket = self._socket, None
            if reply.status != 101 or sock is None:
                raise ClientError(f"the agent answered with status {reply.status}, where it should speak {protocol}", "update the agent")
            return sock

    def upload(self, method: str, target: str, size: int, chunks: Iterable[Bytes]) -> Reply:
        """Send ``size`` bytes as they come. If there are fewer, the agent keeps what came, and its answer says so."""
        with self._lock:
            self.close()
            try:
                return self._exchange(method, target, chunks, size, None, half_close=True)
            except _Unanswered as error:
                raise ClientError("the agent closed the connection without an answer", "see `edge-agent logs`") from error

    def _exchange(
        self,
        method: str,
        target: str,
        buffers: Iterable[Bytes],
        size: int,
        header_bytes: int | None,
        *,
        half_close: bool = False,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Reply:
        headers = [*self._headers, *headers, ("Content-Length", str(size))]
        if header_bytes is not None:
            headers.append(("Inference-Header-Content-Length", str(header_bytes)))
        head = _head(method, target, headers)
        if self._socket is None:
            self._socket = self._opened()
        sock = self._socket
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a refusal may have been sent before the body was read
                _send(sock, head, buffers, half_close=half_close)
            reply, keep = _receive(sock)
        except (TimeoutError, socket.timeout) as error:
            self.close()
            raise ClientError(
                f"the agent did not answer within {self._timeout_s:g} s", "is the device busy? give a larger timeout_s, or see `edge-agent status`"
            ) from error
        except (OSError, EOFError) as error:
            self.close()
            if isinstance(error, _Cut):
                raise ClientError("the agent's answer was cut off", "did it stop? see `edge-agent logs`") from error
            raise _Unanswered from error
        except _NotHTTP as error:
            self.close()
            raise ClientError(f"what answered does not speak HTTP: {error}", "is it another program that listens there?") from error
        except BaseException:
            self.close()  # an interrupt between question and answer: the next question must not get this answer
            raise
        if not keep or half_close:
            self.close()
        if reply.status >= 400:
            raise _failure(reply)
        return reply

    def _opened(self) -> socket.socket:
        try:
            if self._url is not None:
                parts = urlsplit(self._url)
                sock = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), self._timeout_s)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(self._timeout_s)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                with homes.socket_address(homes.socket_path(self._home)) as address:
                    _connect(sock, address, self._timeout_s)
            except BaseException:
                sock.close()
                raise
            return sock
        except PermissionError as error:
            raise AgentNotRunning(f"this user may not ask the agent at {self._home}", "join the group that owns its socket") from error
        except OSError as error:
            where = self._url or str(homes.socket_path(self._home))
            raise AgentNotRunning(f"no agent answers at {where}", "start it with `edge-agent start`") from error


class _Unanswered(Exception):
    """The connection ended before the first byte of an answer."""


class _Cut(EOFError):
    """It ended within the answer."""


class _NotHTTP(Exception):
    """Nor the part of it that the agent speaks: a length, no chunks."""


def _connect(sock: socket.socket, address: str, timeout_s: float) -> None:
    """A Unix socket whose queue is full says so at once, whatever the time-out."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return sock.connect(address)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _send(sock: socket.socket, head: bytes, buffers: Iterable[Bytes], *, half_close: bool) -> None:
    if isinstance(buffers, Sequence):
        send_all(sock, [head, *buffers])
        return
    send_all(sock, [head])
    for chunk in buffers:
        send_all(sock, [chunk])
    if half_close:
        sock.shutdown(socket.SHUT_WR)


def _head(method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """Raises BadRequest for what would be read as another request."""
    if _TARGET.fullmatch(target) is None or not all(_VALUE.fullmatch(value) for _, value in headers):
        raise BadRequest(
            f"`{target[:80]}` cannot be asked for, or the token holds what no header can", "names are lower-case letters, digits, `.`, `_` and `-`"
        )
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _receive(sock: socket.socket) -> tuple[Reply, bool]:
    """The reply, and whether the connection stays open. The body goes straight into its buffer."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > _MAX_HEAD_BYTES:
            raise _NotHTTP(f"a head of more than {_MAX_HEAD_BYTES} bytes")
        more = sock.recv(_READ_BYTES)
        if not more:
            raise _Cut if data else EOFError
        data += more
    first, *lines = data[:end].split(b"\r\n")
    status, fields = _STATUS.fullmatch(first), [_FIELD.fullmatch(line) for line in lines]
    if status is None or None in fields:
        raise _NotHTTP(f"{first[:80]!r}")
    headers = {found[1].lower(): found[2] for found in fields if found}
    size = _count(headers.get(b"content-length", b"0"))
    if size > _MAX_REPLY_BYTES:
        raise _NotHTTP(f"an answer of {size} bytes")
    body, begun = bytearray(size), data[end + 4 :]
    body[: len(begun)] = begun[:size]
    try:
        receive_into(sock, memoryview(body)[len(begun) :])
    except (EOFError, ConnectionError) as error:
        raise _Cut from error
    header = headers.get(b"inference-header-content-length")
    timing = _timing(headers.get(b"server-timing", b""))
    keep = status[1] == b"1" and headers.get(b"connection", b"").lower() != b"close"
    return Reply(int(status[2]), None if header is None else _count(header), body, timing), keep


def _count(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise _NotHTTP(f"{value[:40]!r} is no length")
    return int(value)


def _timing(value: bytes) -> dict[str, float]:
    return {phase: float(ms) for phase, ms in re.findall(r"(\w+);dur=([0-9.]{1,20})(?![0-9.])", value.decode("latin-1")) if ms.count(".") < 2 and ms != "."}


def _failure(reply: Reply) -> ClientError:
    try:
        document = json.loads(reply.body)
        message, hint = str(document["error"]), str(document.get("hint", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, hint = f"the agent answered with status {reply.status}", "see `edge-agent logs`"
    if reply.status == 404:
        return NoSuchModel(message, hint)
    return BadRequest(message, hint) if reply.status < 500 else ClientError(message, hint)


def _authority(url: str | None) -> str:
    return "localhost" if url is None else urlsplit(url).netloc
