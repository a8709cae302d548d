"""Every step of a device with a fault at each of its system calls in turn: afterwards it answers with the old version or the new one, wholly.

    found = fault_at_each("activate", "kill", every=3)          # Found(points=[…], tried=21, problems=[])

A fault is SIGKILL, the power cut (un-synced writes lost, or names kept and contents lost), or an errno. After each the agent is started again,
answers, and takes the next deployment. The agent is the real one, watched through `syscalls`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import bootstrap
from edge_agent.bundle import Layout, digest_of
from edge_agent.client import ClientError, NoSuchModel, connect
from edge_agent.connection import Connection
from edge_agent.store import Store
from edgesdk import agent_package
from tests.bundles import answer, inputs, write_bundle
from tests.e2e.syscalls import Call, Fail, Kill, Watched

POWER_CUT = Path(__file__).with_name("testbed") / "power-cut"
NAME, WIDTH = "toy", 8
PATIENCE_S = 60
Allowed = set[int | None]  # releases; None: no model


class Disk:
    """A folder like any other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def off(self, metadata: str) -> None:  # noqa: ARG002 - Ext4's
        raise AssertionError("its power cannot be cut")

    def on(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Ext4(Disk):
    """A file system of its own, whose power can be cut. Root's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._tool = runpy.run_path(str(POWER_CUT))
        self._is_on = True
        subprocess.run([POWER_CUT, "mount", folder, "--size", "96M"], check=True)

    def off(self, metadata: str) -> None:
        self._tool["off"](self.folder, metadata)
        self._is_on = False

    def on(self) -> None:
        """From a copy of the image: a mount name space of a bare device that was started meanwhile may hold the file system, shut down as it is."""
        if not self._is_on:
            image, fresh = (self.folder.with_name(f"{self.folder.name}.{suffix}") for suffix in ("img", "fresh"))
            for _ in range(100):
                if subprocess.run(["umount", self.folder], check=False, stderr=subprocess.DEVNULL).returncode == 0:
                    break
                time.sleep(0.05)
            subprocess.run(["cp", "--sparse=always", image, fresh], check=True)
            fresh.replace(image)
            subprocess.run(["mount", "-o", self._tool["OPTIONS"], image, self.folder], check=True)
            self._is_on = True

    def close(self) -> None:
        subprocess.run([POWER_CUT, "umount", self.folder], check=True)


@dataclass(frozen=True)
class Way:
    """How a fault shows itself."""

    name: str
    fault: Callable[[Disk], Kill | Fail]

    @property
    def ends(self) -> bool:
        """Whether the agent ends with it."""
        return self.name in ("kill", "lost", "kept")


WAYS = {
    "kill": Way("kill", lambda _: Kill()),
    "lost": Way("lost", lambda disk: Kill(lambda: disk.off("lost"))),
    "kept": Way("kept", lambda disk: Kill(lambda: disk.off("kept"))),
    "full": Way("full", lambda _: Fail(errno.ENOSPC, lasting=True)),
    "io": Way("io", lambda _: Fail(errno.EIO)),
    "read-only": Way("read-only", lambda _: Fail(errno.EROFS, lasting=True)),
}


@dataclass
class World:
    """One device, and the bundles for it: release N is the model of seed N."""

    disk: Disk
    bundles: Path
    newest: int = 0
    device: Watched | None = None

    @property
    def home(self) -> Path:
        return self.disk.folder / "home"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "EDGE_AGENT_HOME": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, armed: tuple[int, Kill | Fail] | None = None) -> Watched:
        """The agent, until it answers or is no more."""
        launcher = self.home / "bin" / "edge-agent"
        (self.home / "agent" / "starts").unlink(missing_ok=True)  # as if it had been well for a minute: the launcher is tried elsewhere
        argv = [str(launcher)] if launcher.is_file() else [sys.executable, "-m", "edge_agent"]
        self.device = Watched([*argv, "serve"], under=self.disk.folder, env=self.environment(), armed=armed).__enter__()
        until = time.monotonic() + PATIENCE_S
        while not self.device.hit and time.monotonic() < until:
            with contextlib.suppress(ClientError):
                self.request("GET", "/edge/alive")
                return self.device
            if self.device.process.poll() is not None and armed is None:
                raise AssertionError("the agent ended: " + "".join((self.home / "agent.log").read_text(errors="replace").splitlines()[-1:]))
            time.sleep(0.01)
        assert self.device.hit, "the agent does not answer"
        return self.device

    def end(self) -> None:
        """As a power cut ends it."""
        if self.device is not None:
            self.device.__exit__()
            self.device = None
        self.disk.on()

    def bundle(self) -> tuple[int, Path]:
        """A new release."""
        self.newest += 1
        return self.newest, write_bundle(self.bundles / str(self.newest), release=self.newest, seed=self.newest, width=WIDTH)

    def request(self, method: str, target: str, document: Any = None) -> Any:
        with Connection(home=self.home, timeout_s=PATIENCE_S) as connection:
            return connection.request(method, target, [] if document is None else [json.dumps(document).encode()]).json()

    def send(self, folder: Path) -> str:
        """What the store lacks of a bundle; its manifest's digest."""
        with Layout.open(folder) as layout, Connection(home=self.home, timeout_s=PATIENCE_S) as connection:
            (manifest,) = layout.manifests().values()
            wanted = {"digests": [{"digest": blob.digest, "size": blob.size} for blob in manifest.blobs]}
            for missing in self.request("POST", "/edge/missing", wanted)["missing"]:
                data = layout.blob(missing["digest"])
                target = f"/edge/blobs/{missing['digest'][len('sha256:') :]}?size={len(data)}&offset={missing['offset']}"
                connection.upload("PUT", target, len(data) - missing["offset"], iter([data[missing["offset"] :]]))
        return manifest.digest

    def job(self, started: Any) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            state = self.request("GET", f"/edge/jobs/{started['job']}?wait=5")
            if state["state"] != "running":
                assert state["state"] == "done", state["error"]
                return
        raise AssertionError("the job did not end")

    def deploy(self, folder: Path) -> None:
        self.job(self.request("POST", "/edge/activate", {"digest": self.send(folder)}))

    def answers(self) -> int | None:
        """Which release does; None where there is no model. It has to be that release's answer."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                x = inputs(WIDTH)[0]
                with connect(NAME, home=self.home) as model:
                    y, release = model(x)["y"], int(model.release)
                np.testing.assert_allclose(y, answer(x, seed=release, width=WIDTH), rtol=1e-4, atol=1e-4)
                return release
            except NoSuchModel:
                return None
            except ClientError as error:
                if time.monotonic() > until:
                    raise AssertionError(f"no answer: {error}") from error
                time.sleep(0.02)

    def previous(self) -> int | None:
        """The release that ran before."""
        for model in self.request("GET", "/edge/status")["models"]:
            if model["previous"]:
                store = Store(self.home)
                return int(store.description(store.manifest(model["previous"])).release)
        return None

    def worker(self) -> int:
        """The process of the model, once there is one."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for model in self.request("GET", "/edge/status")["models"]:
                if model["pid"]:
                    return int(model["pid"])
            time.sleep(0.02)
        raise AssertionError("no worker")

    def check(self, allowed: Allowed, *, tidy: bool = True) -> None:
        """One of these answers, and the next deployment works and leaves nothing behind. Raises AssertionError."""
        found = self.answers()
        assert found in allowed, f"release {found} answers, not one of {allowed}"
        release, folder = self.bundle()
        self.deploy(folder)
        assert self.answers() == release
        shutil.rmtree(folder)
        left = sorted(str(path.relative_to(self.home)) for path in leftovers(self.home))
        assert not (left and tidy), f"left behind: {left}"


def leftovers(home: Path) -> Iterator[Path]:
    """Files that no version needs, after a deployment has ended."""
    needed = {path.resolve() for kind in ("active", "previous") for path in (home / kind).iterdir()}
    for path in (home / "staged").glob("*.json"):
        needed.add(home.resolve() / "deployments" / path.stem / json.loads(path.read_bytes())["digest"][7:23])
    for path in home.rglob("*"):
        half_written = path.name.startswith(".") and path.parent.name != "__pycache__"
        replaced = path.parent.parent == home / "deployments" and path.resolve() not in needed
        unneeded = path.parent == home / "incoming" or (path.parent == home / "blobs" / "sha256" and path.stat().st_nlink == 1)
        if half_written or replaced or unneeded:
            yield path


# steps: each prepares, and says what is to be done then, and which releases may answer if that is cut short

Prepared = tuple[Callable[[], None], Allowed, Allowed]  # what to do; who may answer where it was cut short; who has to where it ended


def put(world: World) -> Prepared:
    """A bundle's blobs arrive."""
    _, folder = world.bundle()
    active = world.answers()
    return lambda: void(world.send(folder)), {active}, {active}


def activate(world: World) -> Prepared:
    """A version replaces another, and the one before that is collected."""
    release, folder = world.bundle()
    digest = world.send(folder)
    return lambda: world.job(world.request("POST", "/edge/activate", {"digest": digest})), {world.answers(), release}, {release}


def rollback(world: World) -> Prepared:
    active, previous = world.answers(), world.previous()
    if previous is None:  # the one that was cut short had to do without
        world.deploy(world.bundle()[1])
        active, previous = world.answers(), world.previous()
    assert previous is not None
    return lambda: world.job(world.request("POST", f"/edge/models/{NAME}/rollback")), {active, previous}, {previous}


def fall_back(world: World) -> Prepared:
    """The third crash within a probation."""
    if world.previous() is None:
        world.deploy(world.bundle()[1])
    active, previous = world.answers(), world.previous()

    def crash() -> None:
        for _ in range(3):
            pid = world.worker()
            os.kill(pid, signal.SIGSEGV)
            until = time.monotonic() + PATIENCE_S
            while world.worker() == pid and time.monotonic() < until:
                time.sleep(0.02)
        until = time.monotonic() + PATIENCE_S
        while world.answers() != previous and time.monotonic() < until:
            time.sleep(0.02)

    return crash, {active, previous}, {previous}


def remove(world: World) -> Prepared:
    return lambda: void(world.request("DELETE", f"/edge/models/{NAME}")), {world.answers(), None}, {None}


def install(world: World) -> Prepared:
    """`edge-agent install FILE`."""
    release, folder = world.bundle()
    argv = [sys.executable, "-m", "edge_agent", "install", str(folder)]
    return lambda: void(subprocess.run(argv, env=world.environment(), check=True, capture_output=True)), {world.answers(), release}, {release}


def stage(world: World) -> Prepared:
    """A version is tried, and waits."""
    _, folder = world.bundle()
    digest = world.send(folder)
    active = world.answers()
    return lambda: world.job(world.request("POST", "/edge/activate", {"digest": digest, "stage": True})), {active}, {active}


def switch(world: World) -> Prepared:
    """What waits becomes active."""
    release, folder = world.bundle()
    before = world.answers()
    world.job(world.request("POST", "/edge/activate", {"digest": world.send(folder), "stage": True}))
    return lambda: world.job(world.request("POST", "/edge/activate", {"digest": NAME})), {before, release}, {release}


def void(_: object) -> None:
    """What was said is not needed."""


STEPS: dict[str, Callable[[World], Prepared]] = {
    "put": put,
    "activate": activate,
    "stage": stage,
    "switch": switch,
    "rollback": rollback,
    "fall-back": fall_back,
    "remove": remove,
    "install": install,
}
START = ("start", "recover")
SET_UP = ("receive", "agent", "runtime", "launcher", "first", "teardown")


@dataclass
class Found:
    """``points``: the calls of the step; ``tried``: at so many of them, and after the last, there was a fault."""

    points: list[Call] = field(default_factory=list)
    tried: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in Counter(call.name for call in self.points).most_common())
        return f"{len(self.points)} points ({kinds}), {self.tried} tries, {len(self.problems)} failures"


Told = Callable[[Found], None]  # after each try


def ready(world: World) -> None:
    """An agent with a version that answers and one that ran before."""
    world.start()
    for _ in range(2):
        world.deploy(world.bundle()[1])


def tried(world: World, step: Callable[[World], Prepared], way: Way, told: Told, *, first: int = 1, every: int = 1) -> Found:
    """One after the other, on the same store: what one leaves behind the next one finds."""
    found, at = Found(), first
    while True:
        work, allowed, promised = step(world)
        device = world.device
        assert device is not None
        device.arm(at, way.fault(world.disk))
        with contextlib.suppress(ClientError, subprocess.CalledProcessError, AssertionError):
            work()
        hit, calls = device.hit, device.disarm()
        _judged(world, found, way, at, hit, calls, allowed if hit else promised)
        told(found)
        if not hit:
            return found
        at += every


def tried_at_start(world: World, way: Way, told: Told, *, unfinished: bool, first: int = 1, every: int = 1) -> Found:
    """The agent's own start; ``unfinished``: it finds a swap that it has to undo."""
    found, at = Found(), first
    while True:
        allowed = {world.answers()}
        device = world.device
        assert device is not None
        if unfinished:
            work, _, _ = activate(world)
            device.arm(lambda call: call.name == "fsync" and call.path == f"{world.home.resolve()}/active", Kill())
            with contextlib.suppress(ClientError, AssertionError):
                work()
            assert device.hit
        world.end()
        device = world.start((at, way.fault(world.disk)))
        if not device.hit:
            with contextlib.suppress(ClientError, AssertionError):
                world.answers()
        hit, calls = device.hit, device.disarm()
        _judged(world, found, way, at, hit, calls, allowed)
        told(found)
        if not hit:
            return found
        at += every


def _judged(world: World, found: Found, way: Way, at: int, hit: bool, calls: list[Call], allowed: Allowed) -> None:
    """The device afterwards; where that is not as it should be, another one for the next."""
    found.tried += 1
    where = f"{calls[at - 1].name} {calls[at - 1].path}" if hit else "the end"
    if not hit:
        found.points = calls
        if way.name in ("lost", "kept"):
            world.disk.off(way.name)
    try:
        if way.ends:
            world.end()
            world.start()
        world.check(allowed, tidy=way.ends)
    except (AssertionError, ClientError, OSError) as error:
        found.problems.append(f"{way.name} at {at}, {where}: {str(error)[:500]}")
        world.end()
        shutil.rmtree(world.home, ignore_errors=True)
        ready(world)


# set-up: programs of their own, which no agent watches

SOURCE = Path(bootstrap.__file__).read_text(encoding="utf-8")
TAG = "cp399-x86_64-glibc"  # of no Python here: what is unpacked there is not used


def packed(*extra: tuple[str, bytes]) -> bytes:
    """An agent as edgesdk sends it, different in that it has these files too."""
    buffer = io.BytesIO(agent_package.build().data)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, data in extra:
            archive.writestr(name, data)
    return buffer.getvalue()


class SetUp:
    """The verbs of the set-up, each on a device where the ones before it have been done. What it sends is another agent each time."""

    def __init__(self, world: World, way: Way) -> None:
        self.world, self.way, self.count = world, way, 0

    def ask(self, *verb: str, stdin: bytes = b"", armed: tuple[int, Kill | Fail] | None = None) -> tuple[bool, list[Call], dict[str, Any]]:
        """Whether the fault happened, the calls, the reply."""
        argv = [sys.executable, "-I", "-c", SOURCE, *verb]
        with Watched(argv, self.world.disk.folder, self.world.environment(), subprocess.PIPE, subprocess.PIPE, armed or (0, Kill())) as watched:
            process = watched.process
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(stdin)
                process.stdin.close()
            said = process.stdout.read().decode()
            process.wait()
        _, _, text = said.partition(bootstrap.FRAME)
        return watched.hit, watched.disarm(), json.loads(text) if text else {}

    def receive(self, data: bytes, armed: tuple[int, Kill | Fail] | None = None) -> tuple[bool, list[Call], dict[str, Any]]:
        """As the host does: from where an earlier attempt was cut."""
        digest = digest_of(data)
        _, _, reply = self.ask("held", digest)
        assert "held" in reply, reply
        held = reply["held"][digest]
        if held > len(data):  # it is unpacked already
            return False, [], {}
        return self.ask("receive", digest, str(len(data)), str(held), stdin=data[held:], armed=armed)

    def agent(self) -> bytes:
        self.count += 1
        return packed((f"edge_agent/other{self.count}.py", b"# another one\n"))

    def installed(self, data: bytes) -> None:
        for _, _, reply in (self.receive(data), self.ask("agent", digest_of(data))):
            assert "error" not in reply, reply

    def tried(self, verb: str, told: Told, *, first: int = 1, every: int = 1) -> Found:
        """``verb``: receive, agent, runtime, launcher, first, teardown."""
        found, at = Found(), first
        while True:
            armed = (at, self.way.fault(self.world.disk))
            hit, calls, again = getattr(self, f"_{verb}")(armed)
            found.tried += 1
            if not hit:
                found.points = calls
                if self.way.name in ("lost", "kept"):
                    self.world.disk.off(self.way.name)
            if self.way.name in ("lost", "kept"):
                self.world.end()
            try:
                again()
            except (AssertionError, ClientError, OSError) as error:
                where = f"{calls[at - 1].name} {calls[at - 1].path}" if hit else "the end"
                found.problems.append(f"{self.way.name} at {at}, {where}: {str(error)[:500]}")
                self.world.end()
                shutil.rmtree(self.world.home, ignore_errors=True)
                self.begin()
            told(found)
            if not hit:
                return found
            at += every

    def begin(self) -> None:
        """A device that was set up, and has two versions."""
        self.installed(self.agent())
        ready(self.world)

    def _answers(self, data: bytes, *finish: tuple[str, ...]) -> Callable[[], None]:
        """It does as before, by the old agent or the new one; the set-up done again is done, and then the new one does."""

        def check() -> None:
            self._runs()
            self.installed(data)
            for verb in finish:
                assert "error" not in self.ask(*verb)[2]
            self._runs()
            assert self.world.request("GET", "/edge/status")["agent"]["digest"] == digest_of(data)[7:23]
            left = [str(path) for kind in ("setup", "bin", "agent", "runtime") for path in (self.world.home / kind).glob("*")]
            left = [path for path in left if Path(path).name.startswith(".") or ("/setup/" in path and not path.endswith("/lock"))]
            assert not left, f"left behind: {left}"

        return check

    def _runs(self) -> None:
        self.world.end()
        self.world.start()
        assert self.world.answers() == self.world.newest

    def _receive(self, armed: Any) -> Any:
        data = self.agent()
        hit, calls, _ = self.receive(data, armed)
        return hit, calls, self._answers(data)

    def _agent(self, armed: Any) -> Any:
        data = self.agent()
        self.receive(data)
        hit, calls, _ = self.ask("agent", digest_of(data), armed=armed)
        return hit, calls, self._answers(data)

    def _launcher(self, armed: Any) -> Any:
        script = self.world.home / "bin" / "edge-agent"
        script.write_text(script.read_text().replace(sys.executable, "/usr/bin/python3.0"))
        os.sync()
        hit, calls, _ = self.ask("launcher", armed=armed)

        def again() -> None:
            self.ask("launcher")
            self._runs()

        return hit, calls, again

    def _runtime(self, armed: Any) -> Any:
        self.count += 1
        wheels = []
        for name in ("numpy", "onnxruntime"):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(f"{name}/__init__.py", f"count = {self.count}")
            wheels.append(buffer.getvalue())
            self.receive(wheels[-1])
        verb = ("runtime", TAG, *map(digest_of, wheels))
        hit, calls, _ = self.ask(*verb, armed=armed)

        def again() -> None:
            for wheel in wheels:
                self.receive(wheel)
            assert "error" not in self.ask(*verb)[2]
            for name in ("numpy", "onnxruntime"):
                assert (self.world.home / "runtime" / TAG / name / "__init__.py").read_text() == f"count = {self.count}"
            self._runs()

        return hit, calls, again

    def _first(self, armed: Any) -> Any:
        """On a device that has nothing yet."""
        self.world.end()
        shutil.rmtree(self.world.home, ignore_errors=True)
        data = self.agent()
        self.receive(data)
        hit, calls, _ = self.ask("agent", digest_of(data), armed=armed)

        def again() -> None:
            self.installed(data)
            ready(self.world)
            self._answers(data)()

        return hit, calls, again

    def _teardown(self, armed: Any) -> Any:
        self.world.end()
        hit, calls, _ = self.ask("teardown", armed=armed)

        def again() -> None:
            assert "error" not in self.ask("teardown")[2]
            assert not self.world.home.exists()
            self.begin()

        return hit, calls, again


def fault_at_each(step: str, way: str, told: Told = void, *, first: int = 1, every: int = 1) -> Found:
    """On a device of its own: the fault at the ``first`` call of the step, and at each ``every``-th after it; ``told`` of each try."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        disk = Ext4(Path(folder, "disk")) if way in ("lost", "kept") else Disk(Path(folder, "disk"))
        disk.folder.mkdir(exist_ok=True)
        world = World(disk, Path(folder, "bundles"))
        try:
            if step in SET_UP:
                set_up = SetUp(world, WAYS[way])
                set_up.begin()
                return set_up.tried(step, told, first=first, every=every)
            ready(world)
            if step in START:
                return tried_at_start(world, WAYS[way], told, unfinished=step == "recover", first=first, every=every)
            return tried(world, STEPS[step], WAYS[way], told, first=first, every=every)
        finally:
            world.end()
            disk.close()
