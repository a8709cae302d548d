"""HTTP/1.1 on a Unix socket or on loopback: a thread a connection, heads parsed by h11, bodies read straight into their buffer.

    server = Server(listener, application, token=None)
    server.start()
    server.stop()

``application`` gets a Request and returns a Response; `api` is ours. What a client may take from us is bounded: connections,
bytes of a head and a body, seconds for sending them and for taking the answer. Every failure is JSON, {"error": …}.
Standard library and h11 only.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import h11

from edge_agent import log
from edge_agent.bodies import READ_BYTES, HttpError, Pace, Source
from edge_agent.config import Limits
from edge_agent.frames import Bytes, send_all
from edge_agent.peer import Peer

_MAX_HEAD_BYTES = 16 << 10
_LINGER_S = 2
_RETRY_S = 1
_WITHOUT_TOKEN = ("/",)  # the status page: a browser cannot send the token with its first request, and the page shows nothing by itself


@dataclass
class Request:
    """One request; its body has not been read yet."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    local: bool  # came over the Unix socket
    peer: Peer
    _source: Source
    _room: Room
    taken_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes of the body that are still to be read. Raises HttpError if it comes in chunks: then nobody knows."""
        if self._source.length is None:
            raise HttpError(411, "the body needs a Content-Length here: it is not taken in chunks", close=True)
        return self._source.length

    def body(self, limit: int | None = None) -> bytearray:
        """All of it. Raises HttpError: too large, too slow, cut off."""
        return self._source.body(self._room.limits.body_bytes if limit is None else limit, self.take)

    def pieces(self) -> Iterator[memoryview]:
        """As it comes, however slowly; a sender that falls silent ends it early."""
        return self._source.pieces()

    def take(self, size: int) -> None:
        """Memory for so many bytes, until there is an answer. Raises HttpError if others have it all."""
        self._room.take(size)
        self.taken_bytes += size

    def free(self) -> None:
        self._room.free(self.taken_bytes)
        self.taken_bytes = 0


class Room:
    """The memory that the bodies of all requests in flight share."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, size: int) -> None:
        with self._lock:
            most = max(self.limits.in_flight_bytes, self.limits.body_bytes)  # one alone always fits
            if self._taken + size > most:
                raise HttpError(503, f"requests of {self._taken} bytes are being answered, {size} more do not fit", "try again soon", headers=RETRY)
            self._taken += size

    def free(self, size: int) -> None:
        with self._lock:
            self._taken -= size


@dataclass(frozen=True)
class Response:
    """``header_bytes``: how much of the body is JSON, where binary tensors follow."""

    status: int
    body: Sequence[Bytes] = ()
    header_bytes: int | None = None
    content_type: str = "application/json"
    timing_ns: dict[str, int] = field(default_factory=dict)  # phase -> nanoseconds, told as Server-Timing
    headers: dict[str, str] = field(default_factory=dict)
    hand_over: Callable[[socket.socket], None] | None = None  # with status 101: who speaks another protocol on this connection


RETRY = {"Retry-After": str(_RETRY_S)}


def json_response(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(status, [json.dumps(document).encode()], headers=headers or {})


def error_response(status: int, message: str, hint: str = "", headers: dict[str, str] | None = None) -> Response:
    """A 429 or 503 always says when to come again."""
    retry = RETRY if status in (429, 503) else {}
    return json_response({"error": message, **({"hint": hint} if hint else {})}, status, {**retry, **(headers or {})})


@dataclass
class Server:
    """Accepts until it is stopped. ``token``: where it is given, each request must bear it, and be addressed to us: by the
    connection's own address, as localhost, or as one of ``hosts``. A listener may be lent, by systemd: it is left as it is,
    and who still waits there is served by whoever accepts next."""

    listener: socket.socket
    application: Callable[[Request], Response]
    token: str | None = None
    hosts: Sequence[str] = ()
    most_connections: int = 64
    room: Room = field(default_factory=lambda: Room(Limits()))
    _open: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: bool = False
    _wake: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)
    _accepting: threading.Thread | None = None

    def start(self) -> None:
        """Returns at once."""
        self._accepting = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._accepting.start()

    def stop(self, patience_s: float = 5) -> None:
        """No new connections; those at work may finish."""
        self._stopping = True
        self._wake[1].close()
        if self._accepting is not None:
            self._accepting.join()
        self.listener.close()
        self._wake[0].close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)  # wakes those that wait for a request
        until = time.monotonic() + patience_s
        while self._open and time.monotonic() < until:
            time.sleep(0.01)

    def _accept(self) -> None:
        self.listener.settimeout(0)  # who asked to connect may be gone again
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self._wake[0], selectors.EVENT_READ)
            while True:
                selector.select()
                if self._stopping:
                    return
                self._accept_one()

    def _accept_one(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.event("warning", "no connection could be accepted", cause=error.strerror)
            time.sleep(0.1)  # out of file descriptors: others will be closed
            return
        with self._lock:
            full = len(self._open) >= self.most_connections
            if not full:
                self._open.add(sock)
        if full:
            _refuse(sock, self.most_connections)
            return
        try:
            threading.Thread(target=self._serve, args=(sock,), name="connection", daemon=True).start()
        except RuntimeError:  # no thread to be had
            self._close(sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                leftover, peer, heads = b"", Peer(sock), _Heads()
                while not self._stopping:
                    source = Source(sock, leftover, self._pace)
                    keep = self._one(sock, source, peer, heads)
                    if not keep:
                        _linger(sock)
                        return
                    leftover = source.rest()
        finally:
            self._close(sock)

    def _one(self, sock: socket.socket, source: Source, peer: Peer, heads: _Heads) -> bool:
        """Answer one request; whether the connection can carry another. EOFError when the client is done."""
        request: Request | None = None
        most = self.room.limits.body_bytes
        try:
            head = heads.next(source, self._pace)
            source.begin(head.length)
            source.expects_continue = head.headers.get("expect", "").lower() == "100-continue" and _is_awaited(source)
            keep = head.keep
            request = Request(head.method, head.path, head.query, head.headers, sock.family == socket.AF_UNIX, peer, source, self.room)
            self._check_caller(request, sock)
            response = self.application(request)
            keep = keep and source.drain(most)
        except HttpError as error:
            response = error_response(error.status, str(error), error.hint, error.headers)
            keep = not error.close and source.drain(most)
        except (OSError, EOFError):
            raise  # the client is gone
        except Exception:  # noqa: BLE001 - a bug of ours: the client gets an answer, the log its traceback, the others are served on
            log.event("error", "bug", traceback=traceback.format_exc())
            response, keep = error_response(500, "the agent failed; its log says more", "see `edge-agent logs`"), False
        finally:
            if request is not None:
                request.free()
        keep = keep and not self._stopping
        if response.hand_over is not None:
            send_all(sock, [_switching(response)], deadline=self._pace.deadline(0))
            response.hand_over(sock)
            return False
        said = _head(response, keep=keep)
        body = () if request is not None and request.method == "HEAD" else response.body
        send_all(sock, [said, *body], deadline=self._pace.deadline(sum(memoryview(buffer).nbytes for buffer in body)))
        return keep

    @property
    def _pace(self) -> Pace:
        return Pace(self.room.limits.idle_s, self.room.limits.bytes_a_second)

    def _check_caller(self, request: Request, sock: socket.socket) -> None:
        """No browser that was talked into asking; over TCP, the token. Raises HttpError."""
        host = request.headers.get("host", "").lower()
        name = (host if host.endswith("]") else host.rpartition(":")[0] or host).strip("[]")
        # A browser reaches a Unix socket, too, where somebody forwarded it to a port: `ssh -L 8000:….sock`. Other programs call us as they like.
        if self.token is not None or "origin" in request.headers:
            address = "127.0.0.1" if request.local else sock.getsockname()[0]
            if name not in {"localhost", address, *(known.lower() for known in self.hosts)}:  # else a page rebinds its own name to our address
                raise HttpError(403, f"this address does not answer as `{name[:80]}`", "list the name under `hosts` in config.json", close=True)
        origin = request.headers.get("origin", f"http://{host}").lower()
        open_to_all = request.path in _WITHOUT_TOKEN and request.method in ("GET", "HEAD")  # a link may lead there
        if origin != f"http://{host}" or (request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not open_to_all):
            raise HttpError(403, "requests from other web pages are not answered", close=True)
        if self.token is None or open_to_all:
            return
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise HttpError(
                401, "this address wants the header `Authorization: Bearer TOKEN`", "the token lies in secrets/token of the agent's folder", close=True
            )

    def _close(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)
        sock.close()


@dataclass(frozen=True)
class _Head:
    """What a request's head says."""

    raw: bytes
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    length: int | None  # of the body; None: in chunks
    keep: bool  # whether the client wants to go on after it


class _Heads:
    """Of one connection. A head that is byte for byte the one before goes through no parser: programs ask the same again and again."""

    def __init__(self) -> None:
        self._last: _Head | None = None

    def next(self, source: Source, pace: Pace) -> _Head:
        """Raises HttpError, EOFError at the end."""
        deadline, last = pace.deadline(0), self._last
        try:
            data = source.receive(deadline)
        except HttpError:
            raise EOFError from None  # an idle connection is closed without a word
        if last is None or not data.startswith(last.raw):
            self._last = _parsed(source, deadline, data)
            return self._last
        source.buffered = memoryview(data)[len(last.raw) :]
        return last


def _parsed(source: Source, deadline: float, data: bytes) -> _Head:
    """The head that begins with these bytes. Raises HttpError, EOFError at the end."""
    parser, received = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES), b""
    while True:
        if not data:
            raise EOFError
        received += data
        parser.receive_data(data)
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint if error.error_status_hint < 500 else 400  # 501: a transfer coding other than chunks
            raise HttpError(status, f"this is no HTTP request: {str(error)[:200]}", close=True) from error
        if isinstance(event, h11.Request):
            break
        if event is not h11.NEED_DATA:
            raise EOFError
        data = source.receive(deadline)
    source.buffered = memoryview(parser.trailing_data[0])
    raw = received[: len(received) - len(source.buffered)]
    if len(raw) > _MAX_HEAD_BYTES:  # h11 looks only at heads that are incomplete
        raise HttpError(431, f"the head has more than {_MAX_HEAD_BYTES} bytes", close=True)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    path, _, query = event.target.decode("latin-1").partition("?")
    keep = event.http_version == b"1.1" and "close" not in [token.strip() for token in headers.get("connection", "").lower().split(",")]
    return _Head(raw, event.method.decode("latin-1"), path, dict(_pairs(query)), headers, _body_length(headers, event.http_version), keep)


def _body_length(headers: dict[str, str], version: bytes) -> int | None:
    """None for a body in chunks. Raises HttpError where two readers could come to different ends."""
    if "transfer-encoding" not in headers:
        return int(headers.get("content-length", "0"))
    if "content-length" in headers or version != b"1.1":
        raise HttpError(400, "a body has a Content-Length or comes in chunks of HTTP/1.1, not both", close=True)
    return None


def _is_awaited(source: Source) -> bool:
    """The body, or some of it, has not come along with the head."""
    return len(source.buffered) == 0 if source.length is None else source.length > len(source.buffered)


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
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if not keep:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _switching(response: Response) -> bytes:
    lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", *(f"{name}: {value}" for name, value in response.headers.items())]
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
    while time.monotonic() < until and sock.recv(READ_BYTES):
        pass
