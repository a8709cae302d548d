"""Disks that fill up, run out of files, turn read-only, forget, or rot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_agent import answered
from test_bootstrap import archive, ask, digest_of
from test_store import fill, flip, mount_works
from toys import Agent, linear, make, wait_until

from edge_agent import probe
from edge_agent.bundle import Layout
from edge_agent.client import ClientError
from edge_agent.scrub import Scrub
from edge_agent.store import Store

needs_mounts = pytest.mark.skipif(os.geteuid() != 0 or not mount_works(), reason="needs to mount a file system")


@contextmanager
def tmpfs(options: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="disk-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def running(home: Path) -> Iterator[Agent]:
    agent = Agent(home)
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()


def deployed(agent: Agent, folder: Path) -> Any:
    """The end of its job, or the error that came before."""
    try:
        return agent.activate(folder)
    except ClientError as error:
        return {"state": "failed", "error": {"message": str(error), "hint": error.hint}}


@needs_mounts
@pytest.mark.e2e
def test_a_disk_without_a_free_file_is_a_sentence_and_what_was_active_answers_on(tmp_path: Path) -> None:
    with tmpfs("size=64m,nr_inodes=120") as disk, running(disk / "home") as agent:
        assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
        taken = []
        with pytest.raises(OSError, match="No space left"):
            for number in range(200):
                taken.append(disk / str(number))
                taken[-1].touch()
        failed = deployed(agent, make(tmp_path / "2", linear(2), release=2))
        assert (failed["state"], "is full" in failed["error"]["message"]) == ("failed", True), failed
        assert answered(agent) == 4
        for path in taken:
            path.unlink(missing_ok=True)
        assert agent.activate(tmp_path / "2")["state"] == "done"
        assert answered(agent) == 8


@contextmanager
def failing_disk() -> Iterator[Path]:
    """ext4 on an image: at its first error the kernel mounts it read-only, whatever is open there."""
    with tempfile.TemporaryDirectory(prefix="disk-") as folder:
        image, disk = Path(folder, "image"), Path(folder, "disk")
        disk.mkdir()
        with image.open("wb") as stream:
            stream.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, disk], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


def fail(disk: Path) -> None:
    """What a worn-out card does."""
    device = subprocess.run(["findmnt", "-no", "SOURCE", disk], check=True, capture_output=True, text=True).stdout.strip()
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")
    with pytest.raises(OSError, match="Read-only"):
        (disk / "new").touch()


@needs_mounts
@pytest.mark.skipif(not Path("/sys/fs/ext4").is_dir() or not Path("/dev/loop-control").exists(), reason="needs loop devices and ext4")
@pytest.mark.e2e
def test_a_disk_that_turned_read_only_is_a_sentence_and_what_was_active_answers_on(tmp_path: Path) -> None:
    with failing_disk() as disk:
        with running(disk / "home") as agent:
            for release in (1, 2):
                assert agent.activate(make(tmp_path / str(release), linear(release), release=release))["state"] == "done"
            fail(disk)
            failed = deployed(agent, make(tmp_path / "3", linear(3), release=3))
            assert (failed["state"], "read-only" in failed["error"]["message"].lower()) == ("failed", True), failed
            assert len(failed["error"]["message"].splitlines()) == 1 and failed["error"]["hint"]
            failed = agent.rollback("toy")
            assert (failed["state"], "read-only" in failed["error"]["message"].lower()) == ("failed", True), failed
            assert answered(agent) == 8
            os.kill(worker := agent.worker("toy"), signal.SIGKILL)
            wait_until(lambda: (now := agent.model("toy"))["state"] == "active" and now["pid"] not in (None, worker))
            assert answered(agent) == 8
            assert agent.verb("status")["models"][0]["release"] == "2"
        subprocess.run(["umount", "-l", disk], check=True)
        subprocess.run(["fsck.ext4", "-fy", disk.with_name("image")], check=False, capture_output=True)
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", disk.with_name("image"), disk], check=True)
        with running(disk / "home") as agent:  # mended
            wait_until(lambda: agent.model("toy")["state"] == "active")
            assert answered(agent) == 8
            assert agent.activate(tmp_path / "3")["state"] == "done"
            assert answered(agent) == 12


@needs_mounts
def test_a_set_up_that_does_not_fit_leaves_room_again(tmp_path: Path) -> None:
    data = archive({"a": os.urandom(2 << 20)})
    with tmpfs("size=1m") as disk:
        failed = ask(disk / "home", "receive", digest_of(data), str(len(data)), "0", stdin=data)
        assert "is full" in failed["error"]["message"]
        assert [path.name for path in (disk / "home" / "setup").iterdir()] == ["lock"]


@needs_mounts
def test_a_folder_in_memory_is_known_as_one() -> None:
    with tmpfs("size=1m") as disk:
        assert probe.volatile(str(disk / "not" / "yet")) == "tmpfs"
        assert probe.facts(str(disk))["volatile"] == "tmpfs"
        for half in ("lower", "upper", "work", "whole"):
            (disk / half).mkdir()
        with tempfile.TemporaryDirectory(prefix="disk-") as whole:
            options = f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
            if subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", whole], check=False, capture_output=True).returncode == 0:
                assert probe.volatile(whole) == "tmpfs"
                subprocess.run(["umount", whole], check=True)
    assert probe.volatile("/proc/self") is None


def test_every_blob_has_its_turn(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    store.swap("toy", store.lay_out(*fill(store, make(tmp_path / "1"))).folder)
    rotten: list[Any] = []
    scrub = Scrub(store, lambda damage, users: rotten.append((str(damage), [user.name for user in users])))
    seen = []
    for _ in range(len(store.all()) + 1):
        scrub.one()
        seen.append((store.home / "scrubbed").read_text())
    assert seen == [*sorted(path.name for path in store.all()), min(seen)]
    assert rotten == []
    model = next(blob for blob in store.all() if blob.samefile(store.home / "active" / "toy" / "model.onnx"))
    flip(model)
    for _ in seen:
        Scrub(store, lambda damage, users: rotten.append((str(damage), [user.name for user in users]))).one()
    ((message, users),) = rotten
    assert "is damaged" in message
    assert users == ["toy"]
    assert not model.exists()


@pytest.mark.e2e
@pytest.mark.parametrize("versions", [1, 2])
def test_rot_under_a_version_that_runs_brings_the_one_before_back_and_the_next_deployment_mends(agent: Agent, tmp_path: Path, versions: int) -> None:
    folders = [make(tmp_path / str(release), linear(release), release=release) for release in range(1, versions + 1)]
    for folder in folders:
        assert agent.activate(folder)["state"] == "done"
    assert agent.stop() == 0
    quickly = "import edge_agent.scrub as s; s._FIRST_S = s._EVERY_S = 0; import edge_agent.supervisor as v; v.SAVE_EVERY_S = 0.1"
    code = f"{quickly}; import sys; from edge_agent.__main__ import main; sys.exit(main(['serve']))"
    agent.process = subprocess.Popen([sys.executable, "-c", code], env=agent.environment(), start_new_session=True)
    wait_until(lambda: agent._answers() and agent.model("toy")["state"] == "active")
    pid = agent.worker("toy")
    model = agent.home / "active" / "toy" / "model.onnx"
    stamp = model.stat()
    flip(model)
    os.utime(model, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    wait_until(lambda: any(line["event"] == "damaged" for line in agent.journal()))
    if versions == 2:
        wait_until(lambda: agent.model("toy")["release"] == "1" and agent.model("toy")["state"] == "active")
        assert answered(agent) == 4
    with Layout.open(folders[-1]) as layout:
        (manifest,) = layout.manifests().values()
        wanted = {"digests": [{"digest": blob.digest, "size": blob.size} for blob in manifest.blobs]}
    assert manifest.layer("model.onnx").digest in [entry["digest"] for entry in agent.ask("POST", "/edge/missing", wanted)["missing"]]
    assert agent.activate(folders[-1])["result"]["outcome"] == "active"
    assert answered(agent) == 4 * versions
    assert agent.worker("toy") != pid  # it had the damaged file


@pytest.mark.e2e
@pytest.mark.slow
def test_an_idle_agent_writes_nothing(tmp_path: Path) -> None:
    """Seen by the times of its files, over more than a minute: that is how often counts are saved."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder, running(Path(folder, "home")) as agent:
        assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
        time.sleep(65)  # what was counted is saved once
        before = {path: path.lstat().st_mtime_ns for path in agent.home.rglob("*")}
        time.sleep(65)
        assert {path: path.lstat().st_mtime_ns for path in agent.home.rglob("*")} == before
