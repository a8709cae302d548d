"""What each verb does. A verb returns its reply (a value for JSON, or bytes), or raises Failure.

    status = get(resolve(), "/edge/status")

All but a few are questions to the agent over its socket, which is started when it does not run.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edge_agent import home as homes
from edge_agent import log
from edge_agent import probe as facts_of
from edge_agent.bundle import NAME, BundleError, Layout, Manifest, check_digest, check_name
from edge_agent.connection import AgentNotRunning, ClientError, Connection

if TYPE_CHECKING:
    from edge_agent.zygote import Begun

_START_S = 30
_KEEPER_S = 6
_SILENCE_S = 30
_JOB_WAIT_S = 20
_LOOK_S = 0.05
_LINGER_S = 0.3
_CHUNK_BYTES = 1 << 18
_SET_PIPE_SIZE, _PIPE_BYTES = 1031, 1 << 20  # fcntl.F_SETPIPE_SZ, which Python has from 3.10 on
_MAX_INPUT_BYTES = 64 << 20
_MAX_LINE_BYTES = 4 << 20
_FACTS = ("architecture", "board", "cpu_model", "cores", "memory_bytes", "python", "governor", "temperature_c", "onnxruntime", "numpy")


class Failure(Exception):
    """A verb did not work. The message is for a person. ``again``: the link is to blame, and what arrived is kept."""

    def __init__(self, message: str, hint: str = "", *, again: bool = False) -> None:
        super().__init__(message)
        self.hint, self.again = hint, again


def probe(home: Path) -> dict[str, Any]:
    return facts_of.facts(home)


def serve(home: Path, begun: Begun | None) -> None:
    """Returns when the agent has ended. ``begun`` is the zygote, if it runs already."""
    from edge_agent import lock, log
    from edge_agent.config import ConfigError
    from edge_agent.zygote import Zygote

    if sys.stderr.isatty():
        sys.stderr.write(f"the agent runs on {home}; it says what it does in {home / 'agent.log'}\n")
    os.umask(0o027)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o750)
        with lock.held(home), log.opened(home / "agent.log"):
            zygote = Zygote(home, begun)
            from edge_agent.supervisor import serve as run

            run(home, zygote)
    except (lock.AlreadyRunning, ConfigError) as error:
        raise Failure(str(error), error.hint) from error
    except OSError as error:
        raise Failure(f"the agent cannot use {error.filename or home}: {error.strerror}", "set EDGE_AGENT_HOME to a folder that this user may write") from error


def start(home: Path) -> dict[str, Any]:
    """Detached from this terminal. One that runs already is left alone."""
    running = _alive(home)
    if running is not None:
        return running
    if homes.is_systems(home):
        raise Failure("the agent of this system does not answer", "`systemctl status edge-agent.socket edge-agent.service` tells why; systemd runs it")
    _check_configuration(home)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o750)
        with open(home / "agent.log", "ab") as said:
            process = subprocess.Popen(**homes.serving(home), stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    except OSError as error:
        raise Failure(f"the agent cannot use {error.filename or home}: {error.strerror}", "set EDGE_AGENT_HOME to a folder that this user may write") from error
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        running = _alive(home)
        if running is not None:
            parent = _parent(running["pid"])
            if parent is not None and process.pid not in (running["pid"], parent):
                process.terminate()  # somebody else's was quicker: ours must not begin when that one ends
            return running
        if process.poll() is not None:
            with contextlib.suppress(Failure):
                return _outlived(home)  # somebody else started one at the same moment
            break
        time.sleep(0.02)
    last = " ".join(map(log.in_words, log.newest(home / "agent.log", 1)))
    raise Failure(
        f"the agent did not start within {_START_S} s" if process.poll() is None else f"the agent ended at once: {last[:300]}", f"see {home / 'agent.log'}"
    )


def _parent(pid: int) -> int | None:
    """None where it cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _check_configuration(home: Path) -> None:
    """Here, where a person reads it, rather than in the log."""
    from edge_agent import config

    try:
        config.read(home)
    except config.ConfigError as error:
        raise Failure(str(error), error.hint) from error


def stop(home: Path) -> dict[str, Any]:
    """Wait until it has ended, and what would start it again. None that runs is fine."""
    from edge_agent import keeping

    running = _alive(home)
    if running is not None:
        _ask(home, "POST", "/edge/stop")
        until = time.monotonic() + _START_S
        while os.path.exists(f"/proc/{running['pid']}") and not _is_zombie(running["pid"]):
            if time.monotonic() > until:
                raise Failure(f"the agent (process {running['pid']}) did not end within {_START_S} s", f"see {home / 'agent.log'}")
            time.sleep(0.02)
    if not keeping.end(home, _KEEPER_S):
        raise Failure("the process that starts the agent again and again does not end", f"see {home / 'agent.log'}")
    return {"running": False}


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
    return _ask(home, "POST", f"{_place(race)}/missing", _parsed(b"".join(_standard_input(None)), '{"digests": [{"digest": …, "size": …}]}'))


def put(home: Path, digest: str, size: int, offset: int, race: str | None) -> Any:
    """Bytes go to the agent as they come. What came before a cut is kept there."""
    target = f"{_place(race)}/blobs/{_digest(digest)[len('sha256:') :]}?size={size}&offset={offset}"
    if not 0 <= offset <= size:
        raise Failure(f"the offset {offset} does not lie within {size} bytes", "ask `missing` where to go on")
    return _passed_on(home, target, size - offset)


def receive(home: Path, race: str | None) -> Any:
    """Blobs one behind the other: their list as the first line of standard input, then what is left of each. What came before a cut is kept."""
    source = _Source()
    listed = _parsed(source.line(), '{"blobs": [{"digest": …, "size": …, "offset": …}]}, and the bytes behind it')
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
    signature = b"".join(_standard_input(None)).decode("ascii", "replace") if signed else None
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
                connection.upload("PUT", target, blob.size - offset, layout.pieces(blob, offset, _CHUNK_BYTES))
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
            known.add(b"".join(_standard_input(None)).decode("utf-8", "replace"))
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
    return _ask(home, "POST", _place(session), _parsed(b"".join(_standard_input(None)), '{"before": …, "after": …, "feeds": …, …}: docs/device.md'))


def measure(home: Path, session: str, *, stop: bool) -> Any:
    """Time one model, deployed or put there; `job` tells how it went. With ``stop``, end one under way with what there is."""
    if stop:
        return _ask(home, "POST", f"{_place(session)}/stop")
    return _ask(home, "POST", f"{_place(session)}/measure", _parsed(b"".join(_standard_input(None)), '{"name": …, "wanted": …, …}: docs/device.md'))


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
    import numpy as np

    from edge_agent import golden as answers
    from edge_agent.client import connect

    try:
        with connect(_name(name), home=home) as model:
            description = _description(home, name)
            sample = answers.parse(golden_answers(home, name), description)[0] if golden else None
            feeds = sample.feeds if sample else answers.read_arrays(b"".join(_standard_input(None)), "standard input")
            begin = time.perf_counter_ns()
            outputs = model(feeds)
            latency_ms = (time.perf_counter_ns() - begin) / 1e6
    except (ClientError, BundleError) as error:
        raise Failure(str(error), error.hint) from error
    if npz:
        packed = io.BytesIO()
        np.savez(packed, **{key: array.astype(np.str_) if array.dtype.kind == "O" else array for key, array in outputs.items()})  # type: ignore[arg-type]
        return packed.getvalue()
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


def racer(home: Path, folder: Path, descriptor: int) -> None:
    """A child of the supervisor: never started by hand."""
    homes.use_runtime(home)
    from edge_agent import race as races

    sys.exit(races.serve(folder, descriptor))


def looker(home: Path, folder: Path, descriptor: int) -> None:
    """Likewise."""
    homes.use_runtime(home)
    from edge_agent import look

    sys.exit(look.serve(folder, descriptor))


def answerer(home: Path, folder: Path, connection: int, descriptor: int) -> None:
    """Likewise."""
    homes.use_runtime(home)
    from edge_agent import answering

    sys.exit(answering.serve(folder, connection, descriptor))


def stream(home: Path, name: str | None, race: str | None) -> None:
    """The reply is the first line, when the model is open; then come answers, until standard input ends."""
    if (name is None) == (race is None):
        raise Failure("either a model's name or --race is wanted", "`edge-agent status` lists the models")
    homes.use_runtime(home)
    start(home)
    from edge_agent import answering

    source = _Source()
    document = _parsed(source.line(), "a line of JSON, and questions behind it")
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


def measurer(home: Path, folder: Path, descriptor: int) -> None:
    """Likewise."""
    homes.use_runtime(home)
    from edge_agent import measure as measuring

    sys.exit(measuring.serve(folder, home, descriptor))


# asking the agent


def _ask(home: Path, method: str, target: str, document: Any = None) -> Any:
    body = _request(home, method, target, document)
    try:
        return json.loads(body)
    except ValueError as error:
        raise Failure("the agent's answer is no JSON", "see `edge-agent logs`") from error


def _request(home: Path, method: str, target: str, document: Any = None) -> bytearray:
    start(home)
    try:
        with Connection(home=home) as connection:
            return connection.request(method, target, [] if document is None else [json.dumps(document).encode()]).body
    except ClientError as error:
        raise Failure(str(error), error.hint) from error


def _alive(home: Path) -> dict[str, Any] | None:
    """The running agent's process, None where none answers."""
    try:
        with Connection(home=home, timeout_s=_START_S) as connection:
            found = connection.request("GET", "/edge/alive").json()
            return {"running": True, "pid": int(found["pid"]), "digest": found.get("digest")}
    except AgentNotRunning:
        return None
    except ClientError as error:
        raise Failure(str(error), error.hint) from error


def _outlived(home: Path) -> dict[str, Any]:
    for _ in range(100):
        running = _alive(home)
        if running is not None:
            return running
        time.sleep(0.02)
    raise Failure("no agent answers")


def _is_zombie(pid: int) -> bool:
    """Ended, and its parent has not looked yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def _description(home: Path, name: str) -> Any:
    from edge_agent.bundle import parse_description

    return parse_description(bytes(_request(home, "GET", f"/edge/models/{name}/bundle")))


def _passed_on(home: Path, target: str, size: int) -> Any:
    """So many bytes of standard input go to the agent as they come."""
    return _upload(home, target, size, _standard_input(size))


def _upload(home: Path, target: str, size: int, chunks: Iterator[bytes]) -> Any:
    start(home)
    try:
        with Connection(home=home) as connection:
            return connection.upload("PUT", target, size, chunks).json()
    except ClientError as error:
        raise Failure(str(error), error.hint) from error


class _Source:
    """Standard input as a line, then pieces of known length. It ends early where the host fell silent, which is gone then."""

    def __init__(self) -> None:
        self._ahead = b""
        self.ended = False  # before all was here
        with contextlib.suppress(OSError):  # sshd's pipe holds 64 kB, and waits for us as often; elsewhere it is no pipe
            fcntl.fcntl(0, _SET_PIPE_SIZE, _PIPE_BYTES)

    def line(self) -> bytes:
        while b"\n" not in self._ahead and len(self._ahead) < _MAX_LINE_BYTES:
            chunk = _read(_CHUNK_BYTES)
            if not chunk:
                break
            self._ahead += chunk
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line

    def left(self) -> bytes:
        """What was read already, and not asked for."""
        ahead, self._ahead = self._ahead, b""
        return ahead

    def pieces(self, left: int) -> Iterator[bytes]:
        while left:
            piece, self._ahead = self._ahead[:left] or _read(min(left, _CHUNK_BYTES)), self._ahead[left:]
            if not piece:
                self.ended = True
                return
            left -= len(piece)
            yield piece


def _read(most: int) -> bytes:
    """Empty at the end, and where nothing came for so long that nobody is there."""
    return os.read(0, most) if select.select([0], [], [], _SILENCE_S)[0] else b""


def _standard_input(size: int | None) -> Iterator[bytes]:
    """So many bytes, or all up to the end. A host that fell silent is gone."""
    left = _MAX_INPUT_BYTES if size is None else size
    while left:
        if not select.select([0], [], [], _SILENCE_S)[0]:
            if size is None:
                raise Failure(f"nothing came on standard input for {_SILENCE_S} s", "send the input, then close it")
            return
        chunk = os.read(0, min(left, _CHUNK_BYTES))
        if not chunk:
            return
        left -= len(chunk)
        yield chunk
    if size is None:
        raise Failure(f"standard input has more than {_MAX_INPUT_BYTES} bytes", "send fewer or smaller samples")


def _parsed(raw: bytes, expected: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Failure("standard input is no JSON", f"it is {expected}") from error


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
