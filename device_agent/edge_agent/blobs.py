"""Content-addressed files in a folder, each named by its digest, received in pieces and checked while they are written.

    blobs = Blobs(folder)
    blobs.missing([Descriptor(digest, size)])            # what has to be sent, and from which byte on
    blobs.receive(digest, size, offset, chunks)

Power may fail between any two lines: a file is written beside, checked, synced, renamed, and its folder synced. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.bundle import CHUNK_BYTES, MAX_JSON_BYTES, Descriptor, check_digest, digest_of, digest_of_file
from edge_agent.delta import BadDelta, apply
from edge_agent.errors import AgentError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK_WAIT_S = 40  # longer than a sender may be silent: it has given up by then
_WANTED_S = 3600  # how long a blob that belongs to no deployment yet is kept for the one that will need it
_WRITE_OUT_BYTES = 8 << 20
_SPARE_BYTES = 1 << 20  # for the journal, links and latencies of an otherwise full disk


class StoreError(AgentError):
    """Something about the store that a person has to know, and what to try."""


class DiskFull(StoreError):
    """No room. What was active still is."""


class Damaged(StoreError):
    """A stored blob's content has changed; it was removed, so the next deploy sends it again."""


@dataclass(frozen=True)
class Missing:
    """A blob that is not here whole. The first ``offset`` bytes are."""

    digest: str
    offset: int


class Blobs:
    """The blobs below one folder. One process uses it, from any thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._blobs = home / "blobs" / "sha256"
        self._incoming = home / "incoming"
        self._wanted: dict[str, float] = {}  # digest -> until when, on the monotonic clock
        for folder in (self._blobs, self._incoming):
            make_folder(folder)

    def missing(self, blobs: Iterable[Descriptor]) -> list[Missing]:
        """Which of these are not here whole. What is here is kept for the deployment that asks."""
        found = []
        for blob in blobs:
            self._wanted[check_digest(blob.digest)] = time.monotonic() + _WANTED_S
            if not self.has(blob):
                arrived = size_of(self._part(blob.digest))
                found.append(Missing(blob.digest, arrived if arrived <= blob.size else 0))
        return found

    def has(self, blob: Descriptor) -> bool:
        """Whether it is here with its size; `verify` reads its content."""
        return self.path(blob.digest).is_file() and size_of(self.path(blob.digest)) == blob.size

    def path(self, digest: str) -> Path:
        """Where a blob lies, or would."""
        return self._blobs / check_digest(digest)[len("sha256:") :]

    def read(self, digest: str) -> bytes:
        """A small blob's content, checked. Raises StoreError if it is missing or damaged."""
        try:
            with open(self.path(digest), "rb") as stream:
                data = stream.read(MAX_JSON_BYTES + 1)
        except FileNotFoundError as error:
            raise StoreError(f"the store lacks the blob {digest[:19]}", "deploy the bundle again: what is missing is sent") from error
        if digest_of(data) != digest:
            raise self.damaged(Descriptor(digest, len(data)))
        return data

    def verify(self, blob: Descriptor) -> None:
        """Read it all. Raises StoreError if it is missing, Damaged (and removes it) if its content is not its digest's."""
        if not self.path(blob.digest).is_file():
            raise StoreError(f"the store lacks {_named(blob)}", "deploy the bundle again: what is missing is sent")
        if size_of(self.path(blob.digest)) != blob.size or digest_of_file(self.path(blob.digest)) != blob.digest:
            raise self.damaged(blob)

    def keep(self, digests: Iterable[str]) -> None:
        """Remove what is none of these."""
        kept = {check_digest(digest)[len("sha256:") :] for digest in digests}
        for file in (*self._blobs.iterdir(), *self._incoming.iterdir()):
            if file.name.partition(".")[0] not in kept:
                file.unlink()

    def receive(self, digest: str, size: int, offset: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write what arrives from ``offset`` on, check it, and give it its name. A blob that is here already is not read again.

        Raises StoreError; what arrived before a cut is kept, what is useless (wrong content, no room for the rest) is not.
        """
        self._wanted[check_digest(digest)] = time.monotonic() + _WANTED_S
        with self._receiving(digest) as part:
            if self.has(Descriptor(digest, size)):
                return
            self._check_room(size - offset)
            try:
                self._receive(part, digest, size, offset, chunks)
            except OSError as error:
                if error.errno not in FULL:
                    raise self.unwritable(error) from error
                # It cannot be finished, and would take the journal's room.
                part.unlink()
                raise self.full(size) from error
            except BadDelta as error:  # what it made so far may be wrong
                part.unlink()
                raise StoreError(f"the delta to {digest[:19]} is none: {error}", "send the whole blob") from error

    def patch(self, digest: str, size: int, base: str, delta: Iterable[bytes | memoryview]) -> None:
        """Receive a blob as what differs from another that is here. Raises StoreError, and then nothing of it is left."""
        try:
            stream = open(self.path(base), "rb")  # noqa: SIM115 - what it is read for outlives no exception
        except FileNotFoundError as error:
            raise StoreError(f"the store lacks the blob {base[:19]}", "send the whole blob") from error
        with stream:
            self.receive(digest, size, 0, apply(stream, size, delta))

    def _receive(self, part: Path, digest: str, size: int, offset: int, chunks: Iterable[bytes | memoryview]) -> None:
        with open(part, "r+b") as stream:
            state, arrived = hashlib.sha256(), 0
            while arrived < offset and (chunk := stream.read(min(CHUNK_BYTES, offset - arrived))):
                state.update(chunk)
                arrived += len(chunk)
            if arrived < offset:
                raise StoreError(f"only {arrived} bytes of {digest[:19]} are here, not {offset}", "ask `missing` again: it says where to go on")
            stream.seek(offset)
            stream.truncate()
            written = offset
            for piece in chunks:
                arrived += len(piece)
                if arrived > size:
                    break
                stream.write(piece)
                state.update(piece)
                if arrived - written > _WRITE_OUT_BYTES:  # the disk begins now, and the sync at the end has less to wait for
                    os.posix_fadvise(stream.fileno(), written, arrived - written, os.POSIX_FADV_DONTNEED)
                    written = arrived
            stream.flush()
            os.fsync(stream.fileno())
        if arrived < size:
            raise StoreError(f"the transfer of {digest[:19]} ended after {arrived} of {size} bytes", "send it again: it goes on where it stopped")
        if arrived > size or "sha256:" + state.hexdigest() != digest:
            part.unlink()
            raise StoreError(f"what arrived is not {digest[:19]}: its content has another digest", "send it again; package the bundle again if this repeats")
        os.replace(part, self.path(digest))
        sync_folder(self._blobs)

    @contextlib.contextmanager
    def _receiving(self, digest: str) -> Iterator[Path]:
        """One receiver a blob: a second one waits, and then finds it done or goes on with it."""
        part, until = self._part(digest), time.monotonic() + _LOCK_WAIT_S
        while True:
            descriptor = _open_part(part, self.full)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
                    break
            except FileNotFoundError:
                pass  # the other one finished between our two looks
            except BlockingIOError:
                if time.monotonic() > until:
                    os.close(descriptor)
                    raise StoreError(f"another transfer of {digest[:19]} is under way", "wait for it to end, then try again") from None
                time.sleep(0.05)
            os.close(descriptor)
        try:
            yield part
        finally:
            with contextlib.suppress(FileNotFoundError):
                if not size_of(part) or self.path(digest).exists():
                    part.unlink()
            os.close(descriptor)

    def _part(self, digest: str) -> Path:
        return self._incoming / (check_digest(digest)[len("sha256:") :] + ".part")

    def _check_room(self, wanted: int) -> None:
        if wanted + _SPARE_BYTES > free_bytes(self.home):
            raise self.full(wanted)

    def full(self, wanted: int) -> DiskFull:
        return DiskFull(
            f"the disk below {self.home} is full: {wanted} bytes wanted, {free_bytes(self.home)} free",
            "remove a model (`edge-agent remove NAME`) or free some space, then deploy again; what was active still is",
        )

    def unwritable(self, error: OSError) -> StoreError:
        """What a disk said that took no more, as a sentence."""
        if error.errno in FULL:
            return self.full(0)
        return StoreError(f"the store cannot write below {self.home}: {error.strerror}", "is the disk mounted read-only?")

    def damaged(self, blob: Descriptor) -> Damaged:
        with contextlib.suppress(FileNotFoundError):
            self.path(blob.digest).unlink()
        return Damaged(f"{_named(blob)} in the store is damaged: its content has changed", "deploy the bundle again: the damaged file is sent again")


def make_folder(folder: Path) -> None:
    """It, and those above it, if they are not there; their names have reached the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o750)
        with contextlib.suppress(PermissionError):  # a folder of others, which holds ours and cannot be read
            sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Renames and links in it have reached the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _open_part(part: Path, full: Any) -> int:
    try:
        return os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        if error.errno in FULL:
            raise full(0) from error
        raise StoreError(f"the store cannot write to {part.parent}: {error.strerror}", "may the agent's user write there?") from error


def _named(blob: Descriptor) -> str:
    return f"`{blob.file}` ({blob.digest[:19]})" if blob.file else f"the blob {blob.digest[:19]}"
