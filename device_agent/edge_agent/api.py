"""The routes: what `inference` has for programs, /edge/… for the verbs. Standard library only.

    response = respond(agent, request)

/edge is answered on the Unix socket alone: whoever may open that may change what runs here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from edge_agent import answering, facts, inference, page, ring, staging
from edge_agent.blobs import DiskFull, StoreError
from edge_agent.bodies import HttpError
from edge_agent.bundle import BundleError, Descriptor, check_digest
from edge_agent.config import ConfigError
from edge_agent.home import code_digest
from edge_agent.inference import NAME, Handler, document_of
from edge_agent.jobs import Busy, Permissions, UnknownJob
from edge_agent.latency import Histogram
from edge_agent.models import UnknownModel
from edge_agent.races import UnknownRace
from edge_agent.server import Request, Response, error_response, json_response
from edge_agent.workers import WorkerUnavailable, descriptors_of

if TYPE_CHECKING:
    from edge_agent.supervisor import Agent

_MAX_BLOB_BYTES = 64 << 30
_LONGEST_WAIT_S = 30
_HAND_OVER_S = 5
_FURTHEST_S = 366 * 86400
_RACE = "(?:/races/([0-9a-f]{16}))?"


def respond(agent: Agent, request: Request) -> Response:
    """Find the handler, and translate what the agent raises into a status."""
    try:
        return _handler(request)(agent, request)
    except (UnknownModel, UnknownJob, UnknownRace) as error:
        return error_response(404, str(error), error.hint)
    except WorkerUnavailable as error:
        return error_response(503, str(error), error.hint)
    except Busy as error:
        return error_response(409, str(error), error.hint)
    except DiskFull as error:
        return error_response(507, str(error), error.hint)
    except (BundleError, StoreError) as error:
        return error_response(400, str(error), error.hint)


def _handler(request: Request) -> Callable[[Agent, Request], Response]:
    allowed = []
    for method, pattern, handler in _ROUTES:
        found = pattern.fullmatch(request.path)
        if found and (request.local or not request.path.startswith("/edge/")):
            if method == request.method or (method, request.method) == ("GET", "HEAD"):
                groups = tuple(found.groups(default=""))
                return lambda agent, asked: handler(agent, asked, groups)
            allowed.append(method)
    if allowed:
        raise HttpError(405, f"{request.method[:20]} is not possible here, {' and '.join(allowed)} is", headers={"Allow": ", ".join(allowed)})
    raise HttpError(404, f"there is nothing at {request.path[:80]}", "see the Open Inference Protocol v2: /v2/models/NAME/infer")


# for people


def _page(_agent: Agent, request: Request, _groups: tuple[str, ...]) -> Response:
    return page.html(asks=not request.local)


def _figures(agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    return page.figures(agent)


# the verbs


def _alive(_agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    return json_response({"pid": os.getpid(), "digest": code_digest()})


def _status(agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    return json_response(agent.status())


def _missing(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    entries, race = document_of(request).get("digests"), groups[0]
    try:
        wanted = [Descriptor(str(entry["digest"]), int(entry["size"])) for entry in entries or []]
    except (KeyError, TypeError, ValueError) as error:
        raise HttpError(400, "`digests` is a list of objects with digest and size") from error
    found = agent.races.missing(race, wanted) if race else agent.store.missing(wanted)
    return json_response({"missing": [{"digest": blob.digest, "offset": blob.offset} for blob in found]})


def _put(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    race, digest = groups[0], f"sha256:{groups[1]}"
    if "base" in request.query:
        return _patch(agent, request, digest)
    size, offset = _number(request, "size"), _number(request, "offset")
    if not 0 <= offset <= size <= _MAX_BLOB_BYTES or request.size != size - offset:
        raise HttpError(400, f"{request.size} bytes do not lead from offset {offset} to size {size}", close=True)
    blobs = agent.races.blobs(race) if race else agent.store
    if not race:
        with contextlib.suppress(OSError):  # a trial comes next, and the imports take as long as the transfer
            agent.models.zygote.start()
    blobs.receive(digest, size, offset, request.pieces())
    return json_response({"digest": digest, "size": size})


def _patch(agent: Agent, request: Request, digest: str) -> Response:
    size = _number(request, "size")
    if not 0 <= size <= _MAX_BLOB_BYTES:
        raise HttpError(400, f"{size} bytes are no blob's", close=True)
    agent.store.patch(digest, size, check_digest(f"sha256:{request.query['base']}"), request.pieces())
    return json_response({"digest": digest, "size": size})


def _race(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    return json_response({"job": agent.races.start(groups[0], document_of(request)).identity}, 202)


def _stream(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    """A model that was sent for a session is asked over this connection, by `edge-agent stream`."""
    if request.headers.get("upgrade") != answering.PROTOCOL:
        raise HttpError(426, f"the connection is to be upgraded to {answering.PROTOCOL}", headers={"Upgrade": answering.PROTOCOL})
    return Response(101, headers={"Upgrade": answering.PROTOCOL}, hand_over=agent.races.stream(groups[0], document_of(request)))


def _measure(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    return json_response({"job": agent.races.measure(groups[0], document_of(request)).identity}, 202)


def _stop_measuring(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    return json_response({"stopped": agent.races.stop(groups[0])})


def _end_race(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    return json_response({"freed_bytes": agent.races.end(groups[0])})


def _activate(agent: Agent, request: Request, _groups: tuple[str, ...]) -> Response:
    document = document_of(request)
    signature = document.get("signature")
    if signature is not None and not isinstance(signature, str):
        raise HttpError(400, "`signature` is the text of an SSH SIGNATURE")
    what, in_s, by = str(document.get("digest")), _seconds(document), _who(document)
    permissions = Permissions(**{entry.name: bool(document.get(entry.name)) for entry in fields(Permissions)})
    signed = signature.encode() if signature else None
    if document.get("stage"):
        job = agent.deployments.stage(what, signature=signed, permissions=permissions, due=staging.due(in_s) if in_s is not None else None, by=by)
    else:
        job = agent.deployments.activate(what, signature=signed, permissions=permissions, by=by)
    return json_response({"job": job.identity}, 202)


def _staged(agent: Agent, request: Request, _groups: tuple[str, ...]) -> Response:
    """Of what is staged: make it active at a time, or keep it no longer."""
    document, known = document_of(request), agent.deployments.staging
    in_s = _seconds(document)
    if bool(document.get("cancel")) == (in_s is not None):
        raise HttpError(400, "one of `in_s` and `cancel` is wanted")
    waiting = known.cancel(str(document.get("what"))) if in_s is None else known.schedule(str(document.get("what")), in_s)
    agent.journal.append("unstaged" if in_s is None else "scheduled", **{key: value for key, value in waiting.to_dict().items() if key != "error"})
    return json_response(waiting.to_dict())


def _seconds(document: dict[str, Any]) -> float | None:
    """From now on, until something is due."""
    in_s = document.get("in_s")
    if in_s is None:
        return None
    if isinstance(in_s, bool) or not isinstance(in_s, (int, float)) or not 0 <= in_s <= _FURTHEST_S:
        raise HttpError(400, f"`in_s` is a number of seconds, {_FURTHEST_S} at most")
    return float(in_s)


def _job(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    job = agent.deployments.job(groups[0])
    job.asked = time.monotonic()
    job.ended.wait(min(_number(request, "wait"), _LONGEST_WAIT_S))
    return json_response(job.to_dict())


def _rollback(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    by = _who(document_of(request, optional=True))
    return json_response({"job": agent.deployments.rollback(groups[0], by=by).identity}, 202)


def _who(document: dict[str, Any]) -> str:
    """For a sentence: what the caller says of itself, cut short."""
    return "".join(char for char in str(document.get("by") or "")[:80] if char.isprintable())


def _remove(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    return json_response({"removed": groups[0], "freed_bytes": agent.deployments.remove(groups[0])})


def _report(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    """``?histograms=1``: with all that is counted, so that a fleet's can be merged."""
    return json_response({"models": agent.models.report(groups[0] or None, histograms=bool(_number(request, "histograms"))), "device": facts.read()})


def _ring(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    """Shared memory: a memfd and a bell come over the connection, and go on to the worker."""
    agent.models.get(groups[0])
    if request.headers.get("upgrade") != ring.PROTOCOL or request.size:
        raise HttpError(426, f"the connection is to be upgraded to {ring.PROTOCOL}, without a body", headers={"Upgrade": ring.PROTOCOL})
    return Response(101, headers={"Upgrade": ring.PROTOCOL}, hand_over=lambda sock: _adopt(agent, groups[0], sock))


def _adopt(agent: Agent, name: str, sock: socket.socket) -> None:
    sock.settimeout(_HAND_OVER_S)
    told = {"status": 200, "error": "", "hint": ""}
    try:
        region, bell = descriptors_of(sock)
        try:
            agent.models.adopt(name, region, bell)
        finally:
            os.close(region)
            os.close(bell)
    except ring.NotARegion as error:
        told = {"status": 400, "error": str(error), "hint": "pass a memfd sealed with F_SEAL_SHRINK, and a SOCK_SEQPACKET socket"}
    except UnknownModel as error:
        told = {"status": 404, "error": str(error), "hint": error.hint}
    except WorkerUnavailable as error:
        told = {"status": 503, "error": str(error), "hint": error.hint}
    sock.sendall(json.dumps(told).encode())


def _counts(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    document = document_of(request)
    try:
        digest, errors, run = str(document["digest"]), int(document["errors"]), Histogram.from_dict(document["run"])
    except (KeyError, TypeError, ValueError) as error:
        raise HttpError(400, "counts are `digest`, `errors` and the histogram `run`") from error
    return json_response({"counted": agent.models.count(groups[0], digest, run, max(errors, 0))})


def _golden(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    return _file(agent, groups[0], "golden.npz", "application/octet-stream")


def _bundle(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    return _file(agent, groups[0], "bundle.json", "application/json")


def _file(agent: Agent, name: str, file: str, content_type: str) -> Response:
    folder = agent.models.get(name).deployment.folder
    try:
        return Response(200, [(folder / file).read_bytes()], content_type=content_type)
    except OSError as error:
        raise HttpError(404, f"{name} has no {file}: {error.strerror}", "deploy the bundle again") from error


def _logs(agent: Agent, request: Request, _groups: tuple[str, ...]) -> Response:
    return json_response({"lines": agent.logs(min(_number(request, "lines", 100), 10_000))})


def _tcp(agent: Agent, request: Request, _groups: tuple[str, ...]) -> Response:
    document = document_of(request)
    port, address = document.get("port"), document.get("address", "127.0.0.1")
    if port is not None and (type(port) is not int or not 0 <= port < 1 << 16):
        raise HttpError(400, "`port` is a number below 65536, or null")
    if not _is_address(address):
        raise HttpError(400, "`address` is an IP address in digits")
    try:
        return json_response(agent.listen(port, address))
    except OSError as error:
        raise HttpError(409, f"port {port} cannot be opened: {error.strerror}", "choose another port") from error
    except ConfigError as error:
        raise HttpError(409, str(error), error.hint) from error


def _is_address(text: object) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError, TypeError):
            socket.inet_pton(family, text)  # type: ignore[arg-type]
            return True
    return False


def _stop(agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    agent.stop()
    return json_response({"running": False})


def _number(request: Request, key: str, default: int = 0) -> int:
    value = request.query.get(key, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise HttpError(400, f"{key} is a number")
    return int(value)


_ROUTES: list[tuple[str, re.Pattern[str], Handler]] = [
    (method, re.compile(pattern), handler)
    for method, pattern, handler in (
        *inference.ROUTES,
        ("GET", "/", _page),
        ("GET", "/status.json", _figures),
        ("GET", "/edge/alive", _alive),
        ("GET", "/edge/status", _status),
        ("POST", f"/edge{_RACE}/missing", _missing),
        ("PUT", f"/edge{_RACE}/blobs/([0-9a-f]{{64}})", _put),
        ("POST", "/edge/races/([0-9a-f]{16})", _race),
        ("POST", "/edge/races/([0-9a-f]{16})/stream", _stream),
        ("POST", "/edge/races/([0-9a-f]{16})/measure", _measure),
        ("POST", "/edge/races/([0-9a-f]{16})/stop", _stop_measuring),
        ("DELETE", "/edge/races/([0-9a-f]{16})", _end_race),
        ("POST", "/edge/activate", _activate),
        ("POST", "/edge/staged", _staged),
        ("GET", "/edge/jobs/([0-9a-f]{1,32})", _job),
        ("POST", f"/edge/models/{NAME}/rollback", _rollback),
        ("DELETE", f"/edge/models/{NAME}", _remove),
        ("POST", f"/edge/models/{NAME}/ring", _ring),
        ("POST", f"/edge/models/{NAME}/counts", _counts),
        ("GET", f"/edge/models/{NAME}/golden", _golden),
        ("GET", f"/edge/models/{NAME}/bundle", _bundle),
        ("GET", f"/edge/report(?:/{NAME})?", _report),
        ("GET", "/edge/logs", _logs),
        ("POST", "/edge/tcp", _tcp),
        ("POST", "/edge/stop", _stop),
    )
]
