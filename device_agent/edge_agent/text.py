"""The replies of the verbs as a person reads them.

    print(render("status", reply))

Scripts read the JSON; these lines may change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edge_agent import facts, log


def render(verb: str, reply: Any) -> str:
    """Lines for a terminal. Control characters, which a device's words may hold, are shown escaped."""
    lines: list[str] = _RENDERINGS.get(verb, _plain)(reply)
    return "\n".join("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) for line in lines)


def _status(reply: Any) -> list[str]:
    agent, store = reply["agent"], reply["store"]
    runtime = f"onnxruntime {agent['onnxruntime'] or 'missing'}, numpy {agent['numpy'] or 'missing'}, python {agent['python']}"
    lines = [f"edge-agent {agent['version']} (process {agent['pid']}) on {agent['home']} since {agent['since']}", f"  {runtime}"]
    lines += [f"  {agent['problem']}"] if agent.get("problem") else []
    for model in reply["models"]:
        lines.append(
            f"{model['name']} release {model['release']}: {model['state']}, {model['count']} answers, {model['nodes'] or model['provider'] or 'not running'}"
        )
        lines.append(f"  {(model['digest'] or '')[:19]}, profile {model['profile']}, previous {(model['previous'] or 'none')[:19]}")
        if model["error"]:
            lines.append(f"  {model['error']}")
    if not reply["models"]:
        lines.append("no models yet: `edgesdk deploy` brings one")
    for one in reply["staged"]:
        when = f"becomes active at {one['at']} by this device's clock" if one["at"] else f"waits for `edge-agent activate {one['name']}`"
        lines.append(f"{one['name']} release {one['release']} is staged ({one['digest'][:19]}): {one['error'] or when}")
    lines.append(f"store: {store['blobs']} blobs, {_bytes(store['bytes'])}; {_bytes(store['free_bytes'])} free")
    lines += [f"  kept: {one['name']} release {one['release'] or '?'}, {one['why']}, {_bytes(one['bytes'])}" for one in store["kept"]]
    if store["arriving_bytes"]:
        lines.append(f"  kept for an hour: {_bytes(store['arriving_bytes'])} of what has arrived and belongs to no bundle yet")
    return [*lines, *_device(reply)]


def _report(reply: Any) -> list[str]:
    lines = []
    for model in reply["models"]:
        lines.append(
            f"{model['name']} release {model['release']} on {model['provider']}: {model['count']} answers, {model['errors']} errors since {model['since']}"
        )
        if model["not_finite"]:
            lines.append(f"  {model['not_finite']} answers hold NaN or infinity")
        rows = {"in all": model["latency_ms"], **model["phases_ms"]}
        lines += [f"  {name:7} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()) + " ms" for name, row in rows.items()]
    return [*lines, *_device(reply)] if lines else ["no model is active"]


def _device(reply: Any) -> list[str]:
    words = facts.in_words(reply["device"])
    return [f"device: {words}"] if words else []


def _infer(reply: Any) -> list[str]:
    lines = [f"{name}: {output['dtype']} {output['shape']} {_shortened(output['data'])}" for name, output in reply["outputs"].items()]
    if "agrees" in reply:
        lines.append("agrees with the golden answer" if reply["agrees"] else f"DIFFERS: {reply['difference']}")
    return [*lines, f"{reply['latency_ms']:.3f} ms"]


def _bench(reply: Any) -> list[str]:
    rows = {"client": reply["client_ms"], "run": reply["run_ms"]}
    head = f"{reply['name']} release {reply['release']} on {reply['provider']}, {reply['threads']} threads: {reply['runs']} runs after {reply['warmup']}"
    return [head, *(f"  {name:7} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()) + " ms" for name, row in rows.items())]


def _logs(reply: Any) -> list[str]:
    return [row for line in reply["lines"] for row in log.in_words(line).split("\n")]


def _service(reply: Any) -> list[str]:
    boots = "and starts with the device" if reply["starts_at_boot"] else "while this user is logged in; for always: loginctl enable-linger, as root"
    return [f"systemd runs the agent (process {reply['pid']}) {boots}", *(f"  {unit}" for unit in reply["units"])]


def _install(reply: Any) -> list[str]:
    return [f"{reply['name']} release {reply['release']} is {reply['outcome']}, it answered correctly here ({reply['digest'][:19]})"]


def _teardown(reply: Any) -> list[str]:
    kept = [f"kept, since it is not the agent's: {path}" for path in reply["kept"]]
    word = "would be removed" if reply["dry_run"] else "removed"
    return [*[f"{word}: {path}" for path in reply["removed"]], *kept] or ["there is nothing to remove"]


def _plain(reply: Any) -> list[str]:
    return [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in reply.items()]


def _shortened(data: list[Any]) -> str:
    shown = ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in data[:8])
    return f"[{shown}{', …' if len(data) > 8 else ''}]"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


_RENDERINGS: dict[str, Callable[[Any], list[str]]] = {
    "status": _status,
    "report": _report,
    "infer": _infer,
    "install": _install,
    "bench": _bench,
    "logs": _logs,
    "service": _service,
    "teardown": _teardown,
}
