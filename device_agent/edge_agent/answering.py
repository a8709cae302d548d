"""Questions answered one after the other for a host that judges the answers: the device's side of `edgesdk evaluate --on`.

    host ⇄ SSH ⇄ `edge-agent stream` ⇄ the agent's socket ⇄ a process with the model

Messages are those of `frames`, their bodies those of the Open Inference Protocol with binary tensors: every bit of an array arrives. One question
is in memory at a time. The end of any of these connections ends all behind it, and a host that says nothing for two minutes is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_agent import frames
from edge_agent.bundle import BundleError
from edge_agent.connection import ClientError, Connection

PROTOCOL = "edge-stream"
MOST_BYTES = 1 << 30  # of a question or an answer

_SILENCE_S = 120  # a host that thinks says so every twenty seconds
_CHUNK_BYTES = 1 << 18

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


# between the host and whoever answers


def of_session(home: Path, target: str, document: Any) -> tuple[socket.socket, dict[str, Any]]:
    """The connection to a process of the agent that has opened what was sent, and what it says of it. Raises ClientError."""
    with Connection(home=home) as connection:
        sock = connection.handed_over(target, PROTOCOL, json.dumps(document).encode())
    sock.settimeout(None)
    try:
        head, _ = frames.receive(sock)
    except (OSError, EOFError) as error:
        sock.close()
        raise ClientError("the agent ended before the model was open", "see `edge-agent logs`") from error
    if "error" in head:
        sock.close()
        raise ClientError(head["error"]["message"], head["error"]["hint"])
    ready: dict[str, Any] = head["ready"]
    return sock, ready


def of_model(home: Path, counted: Mapping[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
    """The same of a model that is active, as a local program asks it. Raises ClientError."""
    from edge_agent import probe
    from edge_agent.client import connect

    model = connect(counted["name"], home=home)
    ours, theirs = socket.socketpair()

    def work() -> None:
        with model, theirs:
            answer(theirs, model)

    threading.Thread(target=work, name="answers", daemon=True).start()
    told = {key: counted.get(key) for key in ("name", "release", "digest", "provider", "nodes", "threads")}
    return ours, {**told, "onnxruntime": (probe.facts(str(home))["onnxruntime"] or {}).get("version"), **probe.conditions()}


def bridge(sock: socket.socket, ahead: bytes) -> None:
    """Standard input goes to the socket and what comes from there to standard output, until either ends."""
    try:
        sock.sendall(ahead)
        waiting: list[Any] = [0, sock]
        while True:
            ready, _, _ = select.select(waiting, [], [], _SILENCE_S)
            if 0 in ready:
                chunk = os.read(0, _CHUNK_BYTES)
                if chunk:
                    sock.sendall(chunk)
                else:  # the host has no more questions
                    waiting.remove(0)
                    sock.shutdown(socket.SHUT_WR)
            if sock in ready:
                chunk = sock.recv(_CHUNK_BYTES)
                if not chunk:
                    return
                _write(memoryview(chunk))
            if not ready:
                return
    except OSError:  # one side is gone
        return


def _write(view: memoryview) -> None:
    while view:
        view = view[os.write(1, view) :]


# the process with the model


def serve(folder: Path, _home: Path, connection: int, descriptor: int) -> int:
    """Open what the supervisor says, then answer on the connection that it lent us, and end with either."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from edge_agent.worker import SessionError

    with socket.socket(fileno=descriptor) as sock, socket.socket(fileno=connection) as asker:
        asker.settimeout(None)
        try:
            question, _ = frames.receive(sock)
            session = opened(folder, **question["arguments"])
            frames.send(sock, {"result": told(session)})
            frames.receive(sock)
            frames.send(sock, {"result": {"asked": answer(asker, _running(session))}})
            frames.receive(sock)
        except (SessionError, BundleError) as error:
            frames.send(sock, {"error": {"message": str(error), "hint": error.hint}})
        except (EOFError, OSError):
            return 0
    return 0


def opened(folder: Path, *, model: str, profile: Mapping[str, Any]) -> Any:
    """Raises SessionError, BundleError."""
    from edge_agent import externals, worker

    externals.check((folder / model / "model.onnx").read_bytes())
    return worker.open_session(folder / model, profile)


def told(session: Any) -> dict[str, Any]:
    """What a result says of where it is from."""
    import onnxruntime

    from edge_agent import probe

    return {
        "provider": session.providers[0],
        "nodes": session.nodes,
        "threads": session.threads,
        "onnxruntime": onnxruntime.__version__,
        **probe.conditions(),
    }


def _running(session: Any) -> Run:
    from edge_agent import worker

    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        worker.conform(feeds, session.inputs)
        outputs: Mapping[str, Any] = session.run(feeds)
        return outputs

    return run


def answer(sock: socket.socket, run: Run) -> int:
    """Until the other side ends; how often. What a question does wrong is an answer, too."""
    from edge_agent import protocol
    from edge_agent.worker import SessionError

    count = 0
    while True:
        try:
            head, body = frames.receive(sock, MOST_BYTES)
            if head.get("op") == "alive":
                continue
            try:
                request = protocol.decode_request(body, head.get("header_bytes"))
                document, buffers = protocol.encode_response("model", "1", run(request.feeds), request)
            except (SessionError, ClientError, protocol.ProtocolError) as error:
                frames.send(sock, {"error": {"message": str(error), "hint": getattr(error, "hint", "")}})
                continue
            frames.send(sock, {"header_bytes": len(document)}, document, *buffers)
            count += 1
        except (OSError, EOFError):
            return count
