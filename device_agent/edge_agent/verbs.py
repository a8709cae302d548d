"""What each verb does. A verb returns its reply (a value for JSON, or bytes), or raises Failure.

    status = get(resolve(), "/edge/status")

All but a few are questions to the agent over its socket, which is started when it does not run.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_agent import home as homes
from edge_agent import probe as facts_of
from edge_agent import standard_input
from edge_agent.bundle import NAME, BundleError, Layout, Manifest, check_digest, check_name
from edge_agent.connection import ClientError, Connection
from edge_agent.process import Failure as Failure
from edge_agent.process import explained
from edge_agent.process import serve as serve
from edge_agent.process import start as start
from edge_agent.process import stop as stop

_JOB_WAIT_S = 20
_LOOK_S = 0.05
_LINGER_S = 0.3
_FACTS = ("architecture", "board", "cpu_model", "cores", "memory_bytes", "python", "governor", "temperature_c", "onnxruntime", "numpy")


def probe(home: Path) -> dict[str, Any]:
    return facts_of.facts(home)


def service(home: Path, *, system: bool, user: str | None, group: str | None, providers: str | None, install: bool) -> Any:
    """The units as text, or put in place: then systemd runs the agent."""
    from edge_agent import service as units

    found = None if providers else facts_of.runtime(str(home))["onnxruntime"]
    known = providers.split(",") if providers else found["providers"] if found else ["CPUExecutionProvider"]
    try:
        planned = units.plan(home, user=user or "edge-agent" if system else None, group=group if system else None, providers=known)
        if not install:
            parts = ((units.NAME + ".service", planned.service), (units.NAME + ".socket", planned.socket))
            return "\n".join(f"# {planned.folder / name}\n{text}" for name, text in parts).encode()
        stop(home)
        boots = units.install(planned)
    except units.ServiceError as error:
        raise Failure(str(error), error.hint) from error
    except OSError as error:
        raise Failure(f"{error.filename or planned.folder}: {error.strerror}", "a service of the system is root's to install") from error
    running = start(home)
    return {**running, "units": [str(planned.folder / f"{units.NAME}.{kind}") for kind in ("service", "socket")], "starts_at_boot": boots}


def client_path(*, as_json: bool) -> Any:
    """What a virtual environment's .pth file has to name, so that its programs find the client."""
    folder = homes.code_folder()
    current = folder.with_name("current")  # stays when the agent is replaced
    path = str(current if current.is_symlink() else folder)
    return {"path": path} if as_json else f"{path}\n".encode()


def teardown(home: Path, *, yes: bool, dry_run: bool) -> dict[str, Any]:
    """Everything that was put on this device is removed, this program too."""
    from edge_agent import bootstrap

    found = bootstrap.tear_down(home, dry_run=True)
    if dry_run or not found["removed"]:
        return found
    if not yes:
        if not sys.stdin.isatty():
            raise Failure(f"this would remove {', '.join(found['removed'])}", "say --yes if that is meant")
        sys.stderr.write("".join(f"  {path}\n" for path in found["removed"]) + "Stop the agent and remove all this? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Failure("nothing was removed")
    try:
        return bootstrap.tear_down(home, dry_run=False)
    except OSError as error:
        raise Failure(f"{error.filename or home} cannot be removed: {error.strerror}", "may this user write there?") from error


def get(home: Path, target: str) -> Any:
    return _ask(home, "GET", target)


def missing(home: Path, race: str | None) -> Any:
    return _ask(home, "POST", f"{_place(race)}/missing", standard_input.document('{"digests": [{"digest": …, "size": …}]}'))


def put(home: Path, digest: str, size: int, offset: int, race: str | None) -> Any:
    """Bytes go to the agent as they come. What came before a cut is kept there."""
    target = f"{_place(race)}/blobs/{_digest(digest)[len('sha256:') :]}?size={size}&offset={offset}"
    if not 0 <= offset <= size:
        raise Failure(f"the offset {offset} does not lie within {size} bytes", "ask `missing` where to go on")
    return _passed_on(home, target, size - offset)


def receive(home: Path, race: str | None) -> Any:
    """Blobs one behind the other: their list as the first line of standard input, then what is left of each. What came before a cut is kept."""
    source = standard_input.Source()
    line = source.line()
    if not line:
        raise Failure("nothing came on standard input", "try again", again=True)
    listed = standard_input.parsed(line, '{"blobs": [{"digest": …, "size": …, "offset": …}]}, and the bytes behind it')
    try:
        blobs = [(_digest(entry["digest"]), int(entry["size"]), int(entry["offset"])) for entry in listed["blobs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise Failure("`blobs` is a list of objects with digest, size and offset", "update edgesdk") from error
    for digest, size, offset in blobs:
        target = f"{_place(race)}/blobs/{digest[len('sha256:') :]}?size={size}&offset={offset}"
        body = source.pieces(size - offset)
        try:
            _upload(home, target, size - offset, body)
        except Failure as failure:
            raise Failure(str(failure), failure.hint, again=source.ended) from failure
        for _ in body:  # it was here already: somebody else was faster
            pass
    return {"received": len(blobs)}


def patch(home: Path, digest: str, size: int, base: str, length: int) -> Any:
    """A blob as what differs from another: a delta of ``length`` bytes on standard input."""
    if not 0 < length <= size:
        raise Failure(f"a delta of {length} bytes is worth nothing for a blob of {size}", "send the whole blob: `put`")
    target = f"/edge/blobs/{_digest(digest)[len('sha256:') :]}?size={size}&base={_digest(base)[len('sha256:') :]}"
    return _passed_on(home, target, length)


def current(home: Path, digest: str, *, signature: str | None, as_profile: bool) -> Any:
    """What `activate` would find: that this bundle is active, and answers correctly. A Failure where anything is left to do."""
    status = _ask(home, "GET", "/edge/status")
    active = [model["name"] for model in status["models"] if model["digest"] == digest and model["state"] == "active"]
    if not active or status["agent"]["digest"] != homes.code_folder().name or _was_assumed(home / "active" / active[0]) != as_profile:
        raise Failure("it is not what runs here", "activate it")
    identity = _ask(home, "POST", "/edge/activate", {"digest": _digest(digest), "signature": signature, "as_profile": as_profile})["job"]
    return _ended(home, identity)["result"]


def _was_assumed(deployment: Path) -> bool | None:
    """Whether it was activated for another device's profile; None where that is not known."""
    try:
        return bool(json.loads((deployment / "deployment.json").read_bytes())["as_profile"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def activate(home: Path, what: str, *, signed: bool, stage: bool, in_s: float | None, by: str | None, wait_s: int | None, permissions: dict[str, bool]) -> Any:
    """A digest, or what is staged under a name. With ``signed``, the signature comes on standard input; with ``stage``, all but the swap. With ``wait_s``
    the answer is how it goes, as `job` has it.

    ``permissions``: what `edge_agent.jobs.Permissions` has.
    """
    _check_what(what)
    if in_s is not None and not stage:
        return _ask(home, "POST", "/edge/staged", {"what": what, "in_s": in_s})
    signature = b"".join(standard_input.whole(None)).decode("ascii", "replace") if signed else None
    document = {"digest": what, "signature": signature, "stage": stage, "in_s": in_s, "by": by or _caller(), **permissions}
    started = _ask(home, "POST", "/edge/activate", document)
    return started if wait_s is None else {**job(home, started["job"], wait_s, "verify"), **started}


def unstage(home: Path, what: str) -> Any:
    """What waits is kept no longer."""
    _check_what(what)
    return _ask(home, "POST", "/edge/staged", {"what": what, "cancel": True})


def install(home: Path, path: Path, profile: str | None, *, permissions: dict[str, bool]) -> Any:
    """A bundle that lies here, folder or .tar, as from a USB stick: the same transaction as from a host. Waits for its end."""
    start(home)
    try:
        with Layout.open(path) as layout, Connection(home=home) as connection:
            manifest = _chosen(layout, profile)
            blobs = {blob.digest: blob for blob in manifest.blobs}
            asked = {"digests": [{"digest": blob.digest, "size": blob.size} for blob in blobs.values()]}
            for entry in _ask(home, "POST", "/edge/missing", asked)["missing"]:
                blob, offset = blobs[entry["digest"]], entry["offset"]
                target = f"/edge/blobs/{blob.digest[len('sha256:') :]}?size={blob.size}&offset={offset}"
                connection.upload("PUT", target, blob.size - offset, layout.pieces(blob, offset, standard_input.CHUNK_BYTES))
            signature = layout.signature(manifest.digest)
    except (ClientError, BundleError) as error:
        raise Failure(str(error), error.hint) from error
    text = signature.decode("ascii", "replace") if signature else None
    identity = _ask(home, "POST", "/edge/activate", {"digest": manifest.digest, "signature": text, **permissions})["job"]
    return _ended(home, identity)["result"]


def _ended(home: Path, identity: str) -> dict[str, Any]:
    """The job when it has ended well."""
    state: dict[str, Any] = {"state": "running"}
    while state["state"] == "running":
        state = job(home, identity, _JOB_WAIT_S)
    if state["state"] != "done":
        raise Failure(state["error"]["message"], state["error"]["hint"])
    return state


def _chosen(layout: Layout, profile: str | None) -> Manifest:
    manifests = layout.manifests()
    if profile is None and len(manifests) > 1:
        raise Failure(f"the bundle holds a model for each of {', '.join(manifests)}", "say which with --profile")
    if profile is not None and profile not in manifests:
        raise Failure(f"the bundle holds no model for {profile[:80]}, only for {', '.join(manifests)}", "say which with --profile")
    return manifests[profile or next(iter(manifests))]


def trust(home: Path, *, add: bool, revoke: str | None) -> Any:
    """The files themselves: whoever may write them decides whom this device trusts. Whoever may only ask the agent does not."""
    from edge_agent.trust import Trust, Untrusted

    known = Trust(home)
    try:
        if add:
            known.add(b"".join(standard_input.whole(None)).decode("utf-8", "replace"))
        if revoke:
            known.revoke(revoke)
        return known.to_dict()
    except Untrusted as error:
        raise Failure(str(error), error.hint) from error
    except OSError as error:
        raise Failure(f"{error.filename or known.folder}: {error.strerror}", "whom a device trusts decides the user whose folder that is") from error


def job(home: Path, identity: str, wait_s: int, stage: str | None = None) -> Any:
    """How it goes, when it has ended or after so long; with a stage, when it is at another one for a moment: a quick job costs one question."""
    target = f"/edge/jobs/{quote(identity, safe='')}?wait="
    state = _ask(home, "GET", f"{target}{0 if stage else wait_s}")
    until, moved = time.monotonic() + wait_s, None
    while stage and state["state"] == "running" and time.monotonic() < min(until, moved or until):
        time.sleep(_LOOK_S)
        state = _ask(home, "GET", f"{target}0")
        if state["stage"] != stage and moved is None:
            moved = time.monotonic() + _LINGER_S
    return state


def race(home: Path, session: str, *, end: bool) -> Any:
    """Time two models whose files were put there; `job` tells how it went. With ``end``, remove what the session left."""
    if end:
        return _ask(home, "DELETE", _place(session))
    return _ask(home, "POST", _place(session), standard_input.document('{"before": …, "after": …, "feeds": …, …}: docs/device.md'))


def measure(home: Path, session: str, *, stop: bool) -> Any:
    """Time one model, deployed or put there; `job` tells how it went. With ``stop``, end one under way with what there is."""
    if stop:
        return _ask(home, "POST", f"{_place(session)}/stop")
    return _ask(home, "POST", f"{_place(session)}/measure", standard_input.document('{"name": …, "wanted": …, …}: docs/device.md'))


def rollback(home: Path, name: str, *, by: str | None) -> Any:
    return _ask(home, "POST", f"/edge/models/{_name(name)}/rollback", {"by": by or _caller()})


def _caller() -> str:
    """Where whoever called this comes from."""
    return os.environ.get("SSH_CONNECTION", "").partition(" ")[0] or "somebody on this device"


def remove(home: Path, name: str) -> Any:
    return _ask(home, "DELETE", f"/edge/models/{_name(name)}")


def report(home: Path, name: str | None, *, histograms: bool = False) -> Any:
    return _ask(home, "GET", (f"/edge/report/{_name(name)}" if name else "/edge/report") + "?histograms=1" * histograms)


def tcp(home: Path, port: int | None, address: str) -> Any:
    return _ask(home, "POST", "/edge/tcp", {"port": port, "address": address})


def golden_answers(home: Path, name: str) -> bytes:
    return bytes(_request(home, "GET", f"/edge/models/{_name(name)}/golden"))


def infer(home: Path, name: str, *, golden: bool, npz: bool) -> Any:
    """Ask once, as any local program would."""
    homes.use_runtime(home)
    start(home)

    from edge_agent import golden as answers
    from edge_agent.client import connect

    try:
        with connect(_name(name), home=home) as model:
            description = _description(home, name)
            sample = answers.parse(golden_answers(home, name), description)[0] if golden else None
            feeds = sample.feeds if sample else answers.read_arrays(b"".join(standard_input.whole(None)), "standard input")
            begin = time.perf_counter_ns()
            outputs = model(feeds)
            latency_ms = (time.perf_counter_ns() - begin) / 1e6
    except (ClientError, BundleError) as error:
        raise Failure(str(error), error.hint) from error
    if npz:
        return answers.write_arrays(outputs)
    reply: dict[str, Any] = {"outputs": {key: _shown(array) for key, array in outputs.items()}, "latency_ms": round(latency_ms, 3)}
    if sample is not None:
        try:
            answers.compare(sample.answers, outputs, description)
            reply["agrees"] = True
        except answers.Differs as difference:
            reply.update(agrees=False, difference=str(difference))
    return reply


def bench(home: Path, name: str, *, runs: int, warmup: int) -> Any:
    """End to end with the golden questions in turn; ``run_ms`` is what onnxruntime took of it, of these runs alone."""
    homes.use_runtime(home)
    start(home)
    from edge_agent import golden as answers
    from edge_agent import latency
    from edge_agent.client import connect

    try:
        with connect(_name(name), home=home) as model:
            samples = answers.parse(golden_answers(home, name), _description(home, name))
            turn = iter(range(runs + warmup))
            run_ns: list[int] = []

            def ask() -> None:
                model(samples[next(turn) % len(samples)].feeds)
                run_ns.append(round(model.timing_ms["run"] * 1e6))

            times = latency.measure(ask, runs=runs, warmup=warmup)
            (counted,) = report(home, name)["models"]
    except (ClientError, BundleError) as error:
        raise Failure(str(error), error.hint) from error
    return {
        "name": name,
        "release": counted["release"],
        "digest": counted["digest"],
        "client_ms": {**latency.percentiles(times).to_dict(), "mean": round(sum(times) / len(times) / 1e6, 6)},
        "run_ms": latency.percentiles(run_ns[warmup:]).to_dict(),
        "runs": runs,
        "warmup": warmup,
        "provider": counted["provider"],
        "threads": counted["threads"],
        "device": {key: value for key, value in facts_of.facts(home).items() if key in _FACTS},
    }


def stream(home: Path, name: str | None, race: str | None) -> None:
    """The reply is the first line, when the model is open; then come answers, until standard input ends."""
    if (name is None) == (race is None):
        raise Failure("either a model's name or --race is wanted", "`edge-agent status` lists the models")
    homes.use_runtime(home)
    start(home)
    from edge_agent import answering

    source = standard_input.Source()
    document = standard_input.parsed(source.line(), "a line of JSON, and questions behind it")
    try:
        if race is not None:
            sock, ready = answering.of_session(home, f"{_place(race)}/stream", document)
        else:
            (counted,) = report(home, str(name))["models"]
            sock, ready = answering.of_model(home, counted)
    except (ClientError, BundleError) as error:
        raise Failure(str(error), error.hint) from error
    with sock:
        sys.stdout.write(f"{facts_of.FRAME}{json.dumps(ready)}\n")
        sys.stdout.flush()
        answering.bridge(sock, source.left())


def child(home: Path, module: str, folder: Path, *descriptors: int) -> None:
    """A child of the supervisor: never started by hand."""
    homes.use_runtime(home)
    sys.exit(importlib.import_module(f"edge_agent.{module}").serve(folder, home, *descriptors))


# asking the agent


def _ask(home: Path, method: str, target: str, document: Any = None) -> Any:
    body = _request(home, method, target, document)
    try:
        return json.loads(body)
    except ValueError as error:
        raise Failure("the agent's answer is no JSON", "see `edge-agent logs`") from error


def _request(home: Path, method: str, target: str, document: Any = None) -> bytearray:
    start(home)
    with explained(), Connection(home=home) as connection:
        return connection.request(method, target, [] if document is None else [json.dumps(document).encode()]).body


def _description(home: Path, name: str) -> Any:
    from edge_agent.bundle import parse_description

    return parse_description(bytes(_request(home, "GET", f"/edge/models/{name}/bundle")))


def _passed_on(home: Path, target: str, size: int) -> Any:
    """So many bytes of standard input go to the agent as they come."""
    return _upload(home, target, size, standard_input.whole(size))


def _upload(home: Path, target: str, size: int, chunks: Iterator[bytes]) -> Any:
    start(home)
    with explained(), Connection(home=home) as connection:
        return connection.upload("PUT", target, size, chunks).json()


def _place(race: str | None) -> str:
    """Where files go: into the store, or to a race."""
    if race is None:
        return "/edge"
    if not re.fullmatch("[0-9a-f]{16}", race):
        raise Failure(f"{race[:40]!r} names no race", "it is sixteen hexadecimal digits")
    return f"/edge/races/{race}"


def _name(name: str) -> str:
    try:
        return check_name(name)
    except BundleError as error:
        raise Failure(str(error), error.hint) from error


def _check_what(what: str) -> None:
    """A digest or the beginning of one, or a model's name. Raises Failure."""
    if not re.fullmatch("(sha256:)?[0-9a-f]{8,64}", what) and not NAME.fullmatch(what):
        raise Failure(f"{what[:80]!r} is neither a SHA-256 digest nor a model's name", "`edge-agent status` lists what is staged")


def _digest(digest: str) -> str:
    try:
        return check_digest(digest)
    except BundleError as error:
        raise Failure(str(error), error.hint) from error


def _shown(array: Any) -> dict[str, Any]:
    """An array as JSON. NaN and infinity, which JSON lacks, are null here: `--npz` has them."""
    values = [None if isinstance(value, float) and not math.isfinite(value) else value for value in array.ravel().tolist()]
    return {"dtype": "string" if array.dtype.kind == "O" else array.dtype.name, "shape": list(array.shape), "data": values}
