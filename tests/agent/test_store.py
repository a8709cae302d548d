from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from toys import linear, make

from edge_agent.blobs import Damaged, DiskFull, StoreError
from edge_agent.bundle import Description, Descriptor, Layout, Manifest, digest_of
from edge_agent.delta import MAGIC
from edge_agent.journal import Journal
from edge_agent.log import newest
from edge_agent.store import Store, write_atomically

DATA = bytes(range(256)) * 100
DIGEST = digest_of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_a_blob_arrives_once_and_arriving_again_is_nothing_new(store: Store) -> None:
    assert offset_of(store) == 0
    store.receive(DIGEST, len(DATA), 0, [DATA[:1000], DATA[1000:]])
    store.receive(DIGEST, len(DATA), 0, never())
    assert store.path(DIGEST).read_bytes() == DATA
    assert offset_of(store) is None
    assert list((store.home / "incoming").iterdir()) == []


def test_a_cut_transfer_goes_on_where_it_stopped(store: Store) -> None:
    with pytest.raises(StoreError, match="ended after 7000 of 25600 bytes"):
        store.receive(DIGEST, len(DATA), 0, [DATA[:7000]])
    assert offset_of(store) == 7000
    store.receive(DIGEST, len(DATA), 7000, [DATA[7000:]])
    assert store.path(DIGEST).read_bytes() == DATA


def test_a_sender_may_go_back_but_not_ahead(store: Store) -> None:
    with pytest.raises(StoreError):
        store.receive(DIGEST, len(DATA), 0, [DATA[:7000]])
    with pytest.raises(StoreError, match="only 7000 bytes"):
        store.receive(DIGEST, len(DATA), 8000, [DATA[8000:]])
    store.receive(DIGEST, len(DATA), 3000, [DATA[3000:]])
    assert store.path(DIGEST).read_bytes() == DATA


@pytest.mark.parametrize("arriving", [DATA[:-1] + b"x", DATA + b"x"])
def test_wrong_content_leaves_nothing(store: Store, arriving: bytes) -> None:
    with pytest.raises(StoreError, match="another digest"):
        store.receive(DIGEST, len(DATA), 0, [arriving])
    assert offset_of(store) == 0
    assert list((store.home / "incoming").iterdir()) == []


def test_two_senders_of_one_blob_are_safe(store: Store) -> None:
    first_is_at_it = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield DATA[:100]
        first_is_at_it.set()
        other.join(0.2)
        yield DATA[100:]

    other = threading.Thread(target=lambda: (first_is_at_it.wait(), store.receive(DIGEST, len(DATA), 0, never())))
    other.start()
    store.receive(DIGEST, len(DATA), 0, slowly())
    other.join(10)
    assert not other.is_alive()
    assert store.path(DIGEST).read_bytes() == DATA


def test_a_link_in_place_of_the_part_is_not_followed(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (store.home / "incoming" / f"{DIGEST[7:]}.part").symlink_to(victim)
    with pytest.raises(StoreError, match="cannot write"):
        store.receive(DIGEST, len(DATA), 0, [DATA])
    assert victim.read_text() == "mine"


def test_too_little_room_is_said_before_the_first_byte(store: Store) -> None:
    with pytest.raises(DiskFull, match=r"is full: .* bytes wanted, .* free"):
        store.receive(DIGEST, 1 << 60, 0, never())


def test_a_disk_that_fills_up_on_the_way_leaves_room_again() -> None:
    """A real limit: a tmpfs where we may mount one, else the greatest size of a file."""
    if os.geteuid() == 0 and mount_works():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
            try:
                check_full(Path(folder), lambda: (Path(folder) / "filler").write_bytes(bytes(3 << 19)))
            finally:
                subprocess.run(["umount", "-l", folder], check=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            try:
                check_full(Path(folder), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard)))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_full(folder: Path, fill: object) -> None:
    store = Store(folder / "home")
    store.receive(DIGEST, len(DATA), 0, [DATA])
    large = os.urandom(5 << 19)

    def arriving() -> Iterator[bytes]:
        yield large[: 1 << 19]
        fill()  # type: ignore[operator]  # another program takes the room meanwhile
        yield large[1 << 19 :]

    with pytest.raises(DiskFull, match="is full"):
        store.receive(digest_of(large), len(large), 0, arriving())
    assert list((store.home / "incoming").iterdir()) == []
    assert store.path(DIGEST).read_bytes() == DATA


def mount_works() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)
        return done.returncode == 0


def test_a_deployment_is_hard_links_and_a_cache(store: Store, tmp_path: Path) -> None:
    manifest, description = fill(store, make(tmp_path / "bundle"))
    deployment = store.lay_out(manifest, description)
    assert deployment.folder == store.home / "deployments" / "toy" / manifest.digest[7:23]
    names = {path.name for path in deployment.folder.iterdir()}
    assert names == {"model.onnx", "bundle.json", "profile.json", "golden.npz", "config.json", "manifest.json", "cache"}
    assert (deployment.folder / "model.onnx").samefile(store.path(manifest.layer("model.onnx").digest))
    assert store.lay_out(manifest, description) == deployment
    assert store.opened(deployment.folder) == deployment
    store.verify_deployment(deployment.folder)


def test_swapping_keeps_what_ran_before(store: Store, tmp_path: Path) -> None:
    folders = [store.lay_out(*fill(store, make(tmp_path / str(release), release=release))).folder for release in (1, 2)]
    assert store.active("toy") is None
    store.swap("toy", folders[0])
    assert (store.active("toy"), store.previous("toy")) == (folders[0], None)
    store.swap("toy", folders[1])
    assert (store.active("toy"), store.previous("toy")) == (folders[1], folders[0])
    store.swap("toy", folders[0])
    assert (store.active("toy"), store.previous("toy")) == (folders[0], folders[1])
    assert (store.home / "active" / "toy").readlink() == Path("..", "deployments", "toy", folders[0].name)
    assert store.names() == ["toy"]


def test_what_nothing_needs_is_collected_and_what_may_be_needed_soon_is_not(store: Store, tmp_path: Path) -> None:
    folders = [store.lay_out(*fill(store, make(tmp_path / str(n), linear(n), release=n))).folder for n in (1, 2, 3)]
    for folder in folders:
        store.swap("toy", folder)
    store.receive(DIGEST, len(DATA), 0, [DATA])  # for a deployment that is still to come
    assert store.collect() > 0
    assert not folders[0].exists()
    for folder in folders[1:]:
        store.verify_deployment(folder)
    assert store.path(DIGEST).exists()
    assert Store(store.home).collect() == len(DATA)  # nobody remembers that it was asked for
    assert not store.path(DIGEST).exists()


def test_what_arrives_meanwhile_is_not_collected(store: Store) -> None:
    ended = threading.Event()

    def collect() -> None:
        while not ended.is_set():
            store.collect()

    collecting = threading.Thread(target=collect)
    collecting.start()
    try:
        for number in range(500):
            data = number.to_bytes(4, "big") * 10
            store.receive(digest_of(data), len(data), 0, [data[:7], data[7:]])
            assert store.path(digest_of(data)).read_bytes() == data
    finally:
        ended.set()
        collecting.join()


def test_removing_frees_everything(store: Store, tmp_path: Path) -> None:
    for release in (1, 2):
        store.swap("toy", store.lay_out(*fill(store, make(tmp_path / str(release), release=release))).folder)
    before = store.usage()["bytes"]
    assert store.remove("toy") == before
    assert store.usage()["blobs"] == 0
    assert store.names() == []
    assert not (store.home / "deployments" / "toy").exists()


def test_bit_rot_is_found_and_the_blob_asked_for_again(store: Store, tmp_path: Path) -> None:
    manifest, description = fill(store, make(tmp_path / "bundle"))
    folder = store.lay_out(manifest, description).folder
    model = folder / "model.onnx"
    stamp = model.stat()
    flip(model)
    os.utime(model, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(Damaged, match=r"`model\.onnx` .* is damaged"):
        store.verify_deployment(folder)
    assert [blob.digest for blob in store.missing(manifest.blobs)] == [manifest.layer("model.onnx").digest]
    fill(store, tmp_path / "bundle")
    store.verify_deployment(store.lay_out(manifest, description).folder)


@pytest.mark.parametrize("damage", ["manifest.json", "bundle.json", "gone"])
def test_every_kind_of_damage_is_a_sentence(store: Store, tmp_path: Path, damage: str) -> None:
    folder = store.lay_out(*fill(store, make(tmp_path / "bundle"))).folder
    if damage == "gone":
        (folder / "golden.npz").unlink()
    else:
        flip(folder / damage)
    with pytest.raises(StoreError, match=r"damaged|incomplete"):
        store.verify_deployment(folder)


def test_a_manifest_that_is_not_here_is_a_sentence(store: Store) -> None:
    with pytest.raises(StoreError, match="lacks the blob"):
        store.manifest(DIGEST)


def test_leftovers_of_a_power_cut_are_no_models(store: Store) -> None:
    (store.home / "active" / ".toy").symlink_to("../deployments/toy/x")
    assert store.names() == []


def test_replacing_a_file_leaves_the_old_one_where_it_cannot_be_done(tmp_path: Path) -> None:
    target = tmp_path / "config.json"
    write_atomically(target, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(target, bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_journal_is_appended_and_read_from_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        journal.append("happened", number=number)
    assert ['"number": 1' in line for line in newest(journal.path, 2)] == [True, False]
    assert len(newest(journal.path, 10)) == 3
    assert newest(tmp_path / "none", 10) == []
    assert capsys.readouterr().err.count("happened") == 3


def test_a_full_disk_costs_the_line_and_not_the_deed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "gone")
    journal.append("happened")
    assert "the journal lost a line" in capsys.readouterr().err


@pytest.mark.e2e
def test_power_may_fail_at_any_rename_link_or_sync(tmp_path: Path) -> None:
    """The process is killed at each of its writes to the file system in turn: old or new, wholly, and doing it again finishes."""
    for release in (1, 2):
        make(tmp_path / str(release), linear(release), release=release)
    killed = 0
    for step in range(200):
        home = tmp_path / f"home{step}"
        first = Store(home)
        first.swap("toy", first.lay_out(*fill(first, tmp_path / "1")).folder)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(home), str(tmp_path / "2"), str(step), str(Path(__file__).parent)], capture_output=True, check=False
        )
        assert done.returncode in (0, -9), done.stderr
        after = Store(home)
        active = after.active("toy")
        assert active is not None
        after.verify_deployment(active)
        assert after.opened(active).release in ("1", "2")
        again = after.lay_out(*fill(after, tmp_path / "2")).folder
        after.swap("toy", again)
        after.verify_deployment(again)
        if done.returncode == 0:
            break
        killed += 1
    assert killed > 10


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
left = int(sys.argv[3])
def deadly(call):
    def wrapped(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **options)
    return wrapped
for name in ("rename", "replace", "link", "symlink", "unlink", "fsync", "mkdir", "rmdir"):
    setattr(os, name, deadly(getattr(os, name)))
from edge_agent.store import Store
from test_store import fill
store = Store(Path(sys.argv[1]))
store.swap("toy", store.lay_out(*fill(store, Path(sys.argv[2]))).folder)
store.collect()
"""


def fill(store: Store, folder: Path) -> tuple[Manifest, Description]:
    """All blobs of a bundle that the store lacks, received."""
    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
        sizes = {blob.digest: blob.size for blob in manifest.blobs}
        for missing in store.missing(manifest.blobs):
            store.receive(missing.digest, sizes[missing.digest], missing.offset, [layout.blob(missing.digest)[missing.offset :]])
    return store.manifest(manifest.digest), store.description(manifest)


def offset_of(store: Store) -> int | None:
    found = store.missing([Descriptor(DIGEST, len(DATA))])
    return found[0].offset if found else None


def never() -> Iterator[bytes]:
    raise AssertionError("the blob was read again")
    yield b""


def flip(path: Path) -> None:
    path.chmod(0o640)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_delta_of_a_blob_that_is_here(store: Store) -> None:
    new = DATA + b"more"
    packed = MAGIC + b"\1" + zlib.compress(leb(len(DATA)) + leb(4) + leb(0) + b"more")
    store.receive(DIGEST, len(DATA), 0, [DATA])
    store.patch(digest_of(new), len(new), DIGEST, [packed[:9], packed[9:]])
    assert store.path(digest_of(new)).read_bytes() == new


@pytest.mark.parametrize("packed", [b"", b"nonsense", MAGIC + b"\1" + zlib.compress(b"\x05\x00\x00"), MAGIC + b"\1" + zlib.compress(b"\x00\x00\x01" * 3)])
def test_of_a_delta_that_is_none_nothing_is_left(store: Store, packed: bytes) -> None:
    new = DATA + b"more"
    store.receive(DIGEST, len(DATA), 0, [DATA])
    with pytest.raises(StoreError) as caught:
        store.patch(digest_of(new), len(new), DIGEST, [packed])
    assert caught.value.hint
    assert list((store.home / "incoming").iterdir()) == []
    with pytest.raises(StoreError, match="lacks the blob"):
        store.patch(digest_of(new), len(new), "sha256:" + "0" * 64, [packed])


def leb(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + leb(value >> 7) if value >= 0x80 else bytes([value])
