"""What programs may ask: the Open Inference Protocol v2, Triton's index and statistics, Prometheus' page, /healthz.

    for method, pattern, handler in ROUTES: ...

Standard library only: tensors are the workers' business.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edge_agent import __version__, metrics
from edge_agent.bodies import HttpError
from edge_agent.counters import Counters
from edge_agent.latency import Histogram
from edge_agent.regions import fill
from edge_agent.server import Request, Response, error_response, json_response

if TYPE_CHECKING:
    from edge_agent.supervisor import Agent

NAME = "([a-z0-9][a-z0-9._-]{0,62})"
_VERSION = "(?:/versions/([A-Za-z0-9._-]{1,64}))?"
_REGION = "([A-Za-z0-9._~-]{1,128})"
_EXTENSIONS = ["binary_tensor_data", "model_repository(index)", "statistics", "system_shared_memory"]
_MAX_COMMAND_BYTES = 4 << 20

Handler = Callable[["Agent", Request, "tuple[str, ...]"], Response]


def infer(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    name, version = groups
    check_version(agent, name, version)
    header = request.headers.get("inference-header-content-length")
    if header is not None and not (header.isascii() and header.isdigit() and len(header) < 12):
        raise HttpError(400, "Inference-Header-Content-Length is a number of bytes")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HttpError(415, "a compressed body is not read")
    body, limit = request.body(), agent.config.limits.body_bytes
    filled = fill(agent.regions, lambda: _user(request), body, None if header is None else int(header), request.take, limit)
    answer = agent.models.infer(name, filled.header_bytes, filled.body)
    if answer.status != 200:
        return error_response(answer.status, answer.body.decode())
    buffers, header_bytes = filled.deliver(answer.body, answer.header_bytes)
    return Response(200, buffers, header_bytes, timing_ns=answer.phases)


def check_version(agent: Agent, name: str, version: str) -> None:
    release = agent.models.get(name).deployment.release
    if version and version != release:
        raise HttpError(404, f"the version of {name} on this device is {release}, not {version}")


def document_of(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object; an empty one is {} where it is optional."""
    body = request.body(_MAX_COMMAND_BYTES)
    if optional and not body:
        return {}
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(body)
        if isinstance(document, dict):
            return document
    raise HttpError(400, "the body is a JSON object")


# health and metadata


def _server(_agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    return json_response({"name": "edge-agent", "version": __version__, "extensions": _EXTENSIONS})


def _live(_agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    return json_response({"live": True})


def _ready(agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    waiting = _waiting(agent)
    return json_response({"ready": True}) if not waiting else error_response(503, f"not ready: {', '.join(waiting)}")


def _health(agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    """For a watchdog: whether all that should answer does."""
    waiting, problem = _waiting(agent), agent.problem()
    told = [*([f"these models do not answer: {', '.join(waiting)}"] if waiting else []), *([problem] if problem else [])]
    if waiting:
        return error_response(503, "; ".join(told))
    return json_response({"status": "ok", **({"problem": problem} if problem else {})})


def _waiting(agent: Agent) -> list[str]:
    return [name for name in agent.models.names() if not agent.models.ready(name)]


def _model_ready(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    name, version = groups
    check_version(agent, name, version)
    if agent.models.ready(name):
        return json_response({"name": name, "ready": True})
    return error_response(503, f"{name} is not ready: {_why_not(agent, name)}")


def _model(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    name, version = groups
    check_version(agent, name, version)
    return json_response(agent.models.described(name)["metadata"])


def _why_not(agent: Agent, name: str) -> str:
    return agent.models.get(name).worker.error or "it is being loaded"


# Triton's extensions


def _index(agent: Agent, request: Request, _groups: tuple[str, ...]) -> Response:
    """Every model; only those that answer where the body says {"ready": true}."""
    ready_only = document_of(request, optional=True).get("ready", False)
    if not isinstance(ready_only, bool):
        raise HttpError(400, "`ready` is true or false")
    entries = [_indexed(agent, name) for name in agent.models.names()]
    return json_response([entry for entry in entries if entry["state"] == "READY" or not ready_only])


def _indexed(agent: Agent, name: str) -> dict[str, str]:
    model = agent.models.find(name)
    if model is None:
        return {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "it cannot be read from the disk"}
    ready = model.worker.ready is not None
    reason = "" if ready else model.worker.error or "it is being loaded"
    return {"name": name, "version": model.deployment.release, "state": "READY" if ready else "UNAVAILABLE", "reason": reason}


def _load(_agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    return error_response(400, "models are not loaded or unloaded by request", "deploy one with `edgesdk deploy`, remove it with `edge-agent remove`")


def _statistics(agent: Agent, _request: Request, groups: tuple[str, ...]) -> Response:
    name, version = groups or ("", "")
    names = [name] if name else [known for known in agent.models.names() if agent.models.find(known)]
    found = [(known, counters) for known in names for counters in agent.models.versions(known) if version in ("", counters.release)]
    if version and not found:
        raise HttpError(404, f"nothing is known of version {version} of {name}", f"ask /v2/models/{name}/stats for all that is")
    return json_response({"model_stats": [_counted(known, counters) for known, counters in found]})


def _counted(name: str, counters: Counters) -> dict[str, Any]:
    """As Triton has it. Nothing is cached; how large each batch was is not kept."""
    with counters.lock:
        return {
            "name": name,
            "version": counters.release,
            "last_inference": counters.last_ms,
            "inference_count": counters.total.count,
            "execution_count": max(counters.total.count - counters.joined, 0),
            "inference_stats": {
                "success": _duration(counters.total),
                "fail": {"count": counters.errors, "ns": counters.failed_total.sum_ns},
                "queue": _duration(counters.phases["queue"]),
                "compute_input": _duration(counters.phases["input"]),
                "compute_infer": _duration(counters.phases["run"]),
                "compute_output": _duration(counters.phases["output"]),
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "response_stats": {},
            "batch_stats": [],
            "memory_usage": [],
        }


def _duration(histogram: Histogram) -> dict[str, int]:
    return {"count": histogram.count, "ns": histogram.sum_ns}


def _register(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    document = document_of(request)
    key, offset, size = document.get("key"), document.get("offset", 0), document.get("byte_size", -1)
    if not isinstance(key, str) or not all(type(number) is int and 0 <= number < 1 << 48 for number in (offset, size)):
        raise HttpError(400, "a region has a `key`, the name of its shared memory, a `byte_size` and perhaps an `offset`")
    agent.regions.register(_user(request), groups[0], key, offset, size)
    return json_response({})


def _unregister(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    agent.regions.unregister(_user(request), groups[0] if groups else None)
    return json_response({})


def _regions(agent: Agent, request: Request, groups: tuple[str, ...]) -> Response:
    uid = _user(request)
    found = [agent.regions.get(uid, groups[0])] if groups else agent.regions.of(uid)
    return json_response([region.describe() for region in found])


def _user(request: Request) -> int:
    """Whose memory may be used: a region belongs to who asks. Raises HttpError."""
    if request.peer.uid is None:
        raise HttpError(403, "shared memory is for programs on this device alone", "send the tensors in the body")
    return request.peer.uid


def _metrics(agent: Agent, _request: Request, _groups: tuple[str, ...]) -> Response:
    return Response(200, [metrics.render(agent)], content_type=metrics.CONTENT_TYPE)


def _not_offered(_agent: Agent, request: Request, _groups: tuple[str, ...]) -> Response:
    return error_response(404, f"{request.path[:80]} is an extension that is not offered here", f"GET /v2 lists those that are: {', '.join(_EXTENSIONS)}")


ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", f"/v2/models/{NAME}{_VERSION}/infer", infer),
    ("GET", f"/v2/models/{NAME}{_VERSION}/ready", _model_ready),
    ("GET", "/v2/models/stats", _statistics),
    ("GET", f"/v2/models/{NAME}{_VERSION}/stats", _statistics),
    ("GET", f"/v2/models/{NAME}{_VERSION}/config", _not_offered),
    ("GET", f"/v2/models/{NAME}{_VERSION}", _model),
    ("POST", "/v2/repository/index", _index),
    ("POST", f"/v2/repository/models/{NAME}/(?:load|unload)", _load),
    ("POST", f"/v2/systemsharedmemory/region/{_REGION}/register", _register),
    ("POST", f"/v2/systemsharedmemory/region/{_REGION}/unregister", _unregister),
    ("POST", "/v2/systemsharedmemory/unregister", _unregister),
    ("GET", f"/v2/systemsharedmemory/region/{_REGION}/status", _regions),
    ("GET", "/v2/systemsharedmemory/status", _regions),
    ("GET", "/v2/cudasharedmemory(?:/region/[^/]+)?/status", _not_offered),
    ("POST", "/v2/cudasharedmemory(?:/region/[^/]+)?/(?:register|unregister)", _not_offered),
    ("GET", "/v2/health/live", _live),
    ("GET", "/v2/health/ready", _ready),
    ("GET", "/v2/?", _server),
    ("GET", "/metrics", _metrics),
    ("GET", "/healthz", _health),
]
