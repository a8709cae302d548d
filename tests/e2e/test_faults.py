"""A device that is killed, or loses its power or its disk, at a system call of a step: it answers with the old version or the new one, wholly.

Thinned; `make bench` tries every call, three times (tests/benchmarks/faults.py).
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.client import ClientError
from tests.e2e.faults import Disk, Ext4, World, fault_at_each, ready
from tests.e2e.syscalls import Fail, Kill, Watched

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are x86-64's"),
]
needs_disk = pytest.mark.skipif(os.getuid() != 0 or not Path("/dev/loop-control").exists(), reason="a disk whose power can be cut needs root")

REPLACE = """
import os, sys
with open("fresh", "w") as stream:
    stream.write("new")
    stream.flush()
    if sys.argv[1] != "hasty":
        os.fsync(stream.fileno())
os.rename("fresh", "file")
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
"""
MANY = """
import os, threading
def write(name):
    for number in range(25):
        with open(f"{name}.{number}", "w"): pass
threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
for thread in threads: thread.start()
if not os.fork():
    write("child"); os._exit(0)
for thread in threads: thread.join()
os.wait()
"""


def at(step: str, way: str, every: int) -> object:
    return pytest.param(step, way, every, id=f"{step}-{way}", marks=[needs_disk] if way in ("lost", "kept") else [])


@pytest.mark.parametrize(
    ("step", "way", "every"),
    [
        at("put", "kill", 11),
        at("activate", "kill", 12),
        at("activate", "lost", 15),
        at("activate", "kept", 12),
        at("activate", "full", 11),
        at("rollback", "kill", 7),
        at("rollback", "io", 9),
        at("remove", "kept", 11),
        at("install", "read-only", 23),
        at("stage", "kill", 14),
        at("fall-back", "kill", 13),
        at("switch", "kept", 16),
        at("start", "lost", 4),
        at("recover", "kill", 6),
        at("receive", "kept", 9),
        at("agent", "kill", 230),
        at("first", "lost", 270),
        at("runtime", "kept", 8),
        at("launcher", "kill", 4),
        at("teardown", "kill", 120),
    ],
)
def test_the_old_version_answers_or_the_new_one_and_the_next_deployment_works(step: str, way: str, every: int) -> None:
    found = fault_at_each(step, way, first=every // 2, every=every)
    print(f"{step} {way}: {found}")  # noqa: T201 - the number of points is wanted
    assert found.problems == []
    assert found.tried > 2


def test_calls_of_all_threads_and_children_are_one_order(tmp_path: Path) -> None:
    with Watched([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})" + MANY], under=tmp_path, armed=(0, Kill())) as watched:
        watched.process.wait()
        assert [call.name for call in watched.disarm()] == ["openat"] * 100
    for path in tmp_path.iterdir():
        path.unlink()
    with Watched([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})" + MANY], under=tmp_path, armed=(60, Kill())) as watched:
        watched.process.wait()
    assert watched.hit
    assert len(list(tmp_path.iterdir())) == 59


def test_a_call_that_is_to_fail_fails(tmp_path: Path) -> None:
    code = f"try: open({str(tmp_path / 'file')!r}, 'w')\nexcept OSError as error: raise SystemExit(error.errno)"
    with Watched([sys.executable, "-c", code], under=tmp_path, armed=(1, Fail(errno.ENOSPC))) as watched:
        assert watched.process.wait() == errno.ENOSPC


def test_a_disk_that_turned_read_only_is_a_sentence_and_the_agent_answers_from_memory(tmp_path: Path) -> None:
    world = World(Disk(tmp_path / "disk"), tmp_path / "bundles")
    world.disk.folder.mkdir()
    try:
        ready(world)
        before = world.answers()
        assert world.device is not None
        world.device.arm(1, Fail(errno.EROFS, lasting=True))
        for _ in range(2):
            with pytest.raises((AssertionError, ClientError), match="Read-only file system"):
                world.deploy(world.bundle()[1])
        (model,) = world.request("GET", "/edge/status")["models"]
        os.kill(model["pid"], signal.SIGKILL)
        assert world.answers() == before
        world.device.disarm()
        world.check({before}, tidy=False)
    finally:
        world.end()


@needs_disk
@pytest.mark.parametrize(("way", "metadata", "content"), [("careful", "lost", "new"), ("careful", "kept", "new"), ("hasty", "kept", "")])
def test_a_power_cut_costs_what_was_not_synced(tmp_path: Path, way: str, metadata: str, content: str) -> None:
    disk = Ext4(tmp_path / "disk")
    try:
        (disk.folder / "file").write_text("old")
        os.sync()
        subprocess.run([sys.executable, "-c", REPLACE, way], cwd=disk.folder, check=True)
        disk.off(metadata)
        disk.on()
        assert (disk.folder / "file").read_text() == content
    finally:
        disk.close()
