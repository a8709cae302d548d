"""HTTP/1.1 on a Unix socket or on loopback: a thread a connection, heads parsed by h11, bodies read straight into their buffer.

    server = Server(listener, application, token=None)
    server.start()
    server.stop()

``application`` gets a Request and returns a Response; `api` is ours. What a client may take from us is bounded: connections,
bytes of a head and a body, seconds for sending them. Every failure is JSON, {"error": …}. Standard library and h11 only.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import h11

from edge_agent.frames import Bytes, send_all

MAX_BODY_BYTES = 64 << 20
_MAX_HEAD_BYTES = 16 << 10
_IDLE_S = 30.0  # without a byte: between requests, within a head or a body, or of an answer nobody reads
_SLOWEST_BYTES_A_SECOND = 64 << 10  # a body that comes slower, over _IDLE_S and more, is cut off
_LINGER_S = 2
_READ_BYTES = 1 << 16
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class HttpError(Exception):
    """A failure with its status. ``close``: what follows on this connection cannot be understood."""

    def __init__(self, status: int, message: str, hint: str = "", *, close: bool = False) -> None:
        super().__init__(message)
        self.status, self.hint, self.close = status, hint, close


@dataclass
class Request:
    """One request; its body has not been read yet."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    local: bool  # came over the Unix socket
    size: int
    _source: _Source

    def body(self, limit: int = MAX_BODY_BYTES) -> bytearray:
        """All of it. Raises HttpError: too large, too slow, cut off."""
        if self.size > limit:
            raise HttpError(413, f"the body has {self.size} bytes, at most {limit} are taken", close=True)
        body = bytearray(self.size)
        self._source.read_into(memoryview(body))
        return body

    def chunks(self) -> Iterator[memoryview]:
        """As it comes, however slowly; a sender that falls silent ends it early."""
        return self._source.chunks()


@dataclass(frozen=True)
class Response:
    """``header_bytes``: how much of the body is JSON, where binary tensors follow."""

    status: int
    body: Sequence[Bytes] = ()
    header_bytes: int | None = None
    content_type: str = "application/json"
    timing_ns: dict[str, int] = field(default_factory=dict)  # phase -> nanoseconds, told as Server-Timing


def json_response(document: object, status: int = 200) -> Response:
    return Response(status, [json.dumps(document).encode()])


def error_response(status: int, message: str, hint: str = "") -> Response:
    return json_response({"error": message, **({"hint": hint} if hint else {})}, status)


@dataclass
class Server:
    """Accepts until it is stopped. ``token``: where it is given, each request must bear it."""

    listener: socket.socket
    application: Callable[[Request], Response]
    token: str | None = None
    most_connections: int = 64
    _open: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: bool = False

    def start(self) -> None:
        """Returns at once."""
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def stop(self, patience_s: float = 5) -> None:
        """No new connections; those at work may finish."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self.listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)  # wakes those that wait for a request
        until = time.monotonic() + patience_s
        while self._open and time.monotonic() < until:
            time.sleep(0.01)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self.listener.accept()
            except OSError as error:
                if self._stopping:
                    return
                sys.stderr.write(f"no connection could be accepted: {error.strerror}\n")
                time.sleep(0.1)  # out of file descriptors: others will be closed
                continue
            with self._lock:
                full = len(self._open) >= self.most_connections
                if not full:
                    self._open.add(sock)
            if full:
                _refuse(sock, self.most_connections)
                continue
            try:
                threading.Thread(target=self._serve, args=(sock,), name="connection", daemon=True).start()
            except RuntimeError:  # no thread to be had
                self._close(sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                sock.settimeout(_IDLE_S)
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                leftover = b""
                while not self._stopping:
                    source = _Source(sock, leftover)
                    keep = self._one(sock, source)
                    if not keep:
                        _linger(sock)
                        return
                    leftover = source.rest()
        finally:
            self._close(sock)

    def _one(self, sock: socket.socket, source: _Source) -> bool:
        """Answer one request; whether the connection can carry another. EOFError when the client is done."""
        head = False
        try:
            request, keep = _read_request(source, local=sock.family == socket.AF_UNIX)
            head = request.method == "HEAD"
            self._check_caller(request)
            response = self.application(request)
            keep = keep and source.drain(MAX_BODY_BYTES)
        except HttpError as error:
            response, keep = error_response(error.status, str(error), error.hint), not error.close and source.drain(MAX_BODY_BYTES)
        except (OSError, EOFError):
            raise  # the client is gone
        except Exception:  # noqa: BLE001 - a bug of ours: the client gets an answer, the log its traceback, the others are served on
            traceback.print_exc()
            response, keep = error_response(500, "the agent failed; its log says more", "see `edge-agent logs`"), False
        keep = keep and not self._stopping
        send_all(sock, [_head(response, keep=keep), *(() if head else response.body)])
        return keep

    def _check_caller(self, request: Request) -> None:
        """Over TCP: the token, and no browser that was talked into asking. Raises HttpError."""
        if self.token is None:
            return
        if "origin" in request.headers:
            raise HttpError(403, "requests from web pages are not answered", close=True)
        if request.headers.get("host", "").rsplit(":", 1)[0] not in _LOOPBACK_HOSTS and request.headers.get("host") not in _LOOPBACK_HOSTS:
            raise HttpError(403, "this address answers as localhost only", close=True)
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise HttpError(
                401, "this address wants the header `Authorization: Bearer TOKEN`", "the token lies in secrets/token of the agent's folder", close=True
            )

    def _close(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)
        sock.close()


class _Source:
    """The bytes of one connection, from one request's first on."""

    def __init__(self, sock: socket.socket, leftover: bytes) -> None:
        self._socket = sock
        self.buffered = memoryview(leftover)
        self.left = 0  # of the current body
        self.expects_continue = False

    def receive(self, deadline: float) -> bytes:
        """Some bytes of a head; empty at the end. Raises HttpError when the time is over."""
        if len(self.buffered):
            data, self.buffered = bytes(self.buffered), memoryview(b"")
            return data
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            return self._socket.recv(_READ_BYTES)
        except socket.timeout as error:
            raise HttpError(408, f"no whole request came within {_IDLE_S:g} s", close=True) from error

    def read_into(self, view: memoryview) -> None:
        deadline = time.monotonic() + _IDLE_S + len(view) / _SLOWEST_BYTES_A_SECOND
        self._invite()
        while len(view):
            self._socket.settimeout(max(0.001, min(_IDLE_S, deadline - time.monotonic())))
            try:
                count = self._take(view)
            except socket.timeout as error:
                raise HttpError(408, "the body came too slowly", close=True) from error
            if not count:
                raise HttpError(400, f"the connection ended {self.left} bytes before the end of the body", close=True)
            view = view[count:]

    def chunks(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(1 << 18))
        self._invite()
        self._socket.settimeout(_IDLE_S + 10)  # the verb in front of us gives up after 30 s
        while self.left:
            try:
                count = self._take(buffer[: self.left])
            except (socket.timeout, ConnectionError):
                return
            if not count:
                return
            yield buffer[:count]

    def drain(self, limit: int) -> bool:
        """Read what is left of a body that nobody wanted; whether that went well."""
        if not self.left:
            return True
        if self.left > limit or self.expects_continue:
            return False
        try:
            self.read_into(memoryview(bytearray(self.left)))
        except HttpError:
            return False
        return True

    def rest(self) -> bytes:
        """What came behind the body: the next request's first bytes."""
        return bytes(self.buffered)

    def _take(self, view: memoryview) -> int:
        if len(self.buffered):
            count = min(len(self.buffered), len(view))
            view[:count] = self.buffered[:count]
            self.buffered = self.buffered[count:]
        else:
            count = self._socket.recv_into(view)
        self.left -= count
        return count

    def _invite(self) -> None:
        """The client waits to hear that the body is wanted."""
        if self.expects_continue:
            self.expects_continue = False
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def _read_request(source: _Source, *, local: bool) -> tuple[Request, bool]:
    """The head of the next request, and whether the client wants to go on after it. Raises HttpError, EOFError at the end."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
    received, deadline = 0, time.monotonic() + _IDLE_S
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise HttpError(error.error_status_hint, f"this is no HTTP request: {str(error)[:200]}", close=True) from error
        if isinstance(event, h11.Request):
            break
        if event is h11.NEED_DATA:
            try:
                data = source.receive(deadline)
            except HttpError:
                if received:
                    raise
                raise EOFError from None  # an idle connection is closed without a word
            if not data:
                raise EOFError
            received += len(data)
            parser.receive_data(data)
            continue
        raise EOFError
    source.buffered = memoryview(parser.trailing_data[0])
    if received - len(source.buffered) > _MAX_HEAD_BYTES:  # h11 looks only at heads that are incomplete
        raise HttpError(431, f"the head has more than {_MAX_HEAD_BYTES} bytes", close=True)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    if "transfer-encoding" in headers:
        raise HttpError(411, "the body needs a Content-Length: it is not read in chunks", close=True)
    source.left = int(headers.get("content-length", "0"))
    source.expects_continue = headers.get("expect", "").lower() == "100-continue" and source.left > len(source.buffered)
    method, target = event.method.decode("latin-1"), event.target.decode("latin-1")
    path, _, query = target.partition("?")
    keep = event.http_version == b"1.1" and headers.get("connection", "").lower() != "close"
    return Request(method, path, dict(_pairs(query)), headers, local, source.left, source), keep


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key:
            yield key, value


def _head(response: Response, *, keep: bool) -> bytes:
    size = sum(memoryview(buffer).nbytes for buffer in response.body)
    lines = [
        f"HTTP/1.1 {response.status} {_reason(response.status)}",
        f"Content-Type: {response.content_type if response.header_bytes is None else 'application/octet-stream'}",
        f"Content-Length: {size}",
        "X-Content-Type-Options: nosniff",
    ]
    if response.header_bytes is not None:
        lines.append(f"Inference-Header-Content-Length: {response.header_bytes}")
    if response.timing_ns:
        lines.append("Server-Timing: " + ", ".join(f"{phase};dur={ns / 1e6:.6f}" for phase, ns in response.timing_ns.items()))
    if response.status == 401:
        lines.append("WWW-Authenticate: Bearer")
    if not keep:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase


def _refuse(sock: socket.socket, most: int) -> None:
    response = error_response(503, f"{most} connections are open, more are not served", "close some, or keep one open for many requests")
    with sock, contextlib.suppress(OSError):
        sock.settimeout(0)  # the listener waits for nobody
        send_all(sock, [_head(response, keep=False), *response.body])


def _linger(sock: socket.socket) -> None:
    """A client that still sends would lose our answer if we closed at once."""
    sock.shutdown(socket.SHUT_WR)
    until = time.monotonic() + _LINGER_S
    sock.settimeout(_LINGER_S)
    while time.monotonic() < until and sock.recv(_READ_BYTES):
        pass
