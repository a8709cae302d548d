"""The bundles on one device: content-addressed blobs, deployments laid out from them, and which of them is active.

    store = Store(home)
    store.missing([Descriptor(digest, size)])            # what has to be sent, and from which byte on
    store.receive(digest, size, offset, chunks)
    folder = store.lay_out(manifest, description)        # deployments/NAME/HEX16, hard links to the blobs
    store.swap("ocr", folder)                            # active/NAME and previous/NAME

Power may fail between any two lines: a file is written beside, checked, synced, renamed, and its folder synced. What is active
is one symbolic link, replaced at once. Standard library only. Deciding *when* to change it is `deployments`'.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.blobs import FULL, Blobs, Damaged, StoreError, free_bytes, make_folder, size_of, sync_folder
from edge_agent.bundle import (
    BundleError,
    Description,
    Manifest,
    check_digest,
    check_name,
    digest_of,
    digest_of_file,
    parse_description,
    parse_manifest,
)

KEEP = 2  # of each model: what is active, and what was active before


@dataclass(frozen=True)
class Deployment:
    """One bundle laid out for its worker."""

    folder: Path
    digest: str
    description: Description

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def release(self) -> str:
        return str(self.description.release)


class Store(Blobs):
    """The folder of one agent: its blobs, and what is laid out from them."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._mended: set[Path] = set()
        for folder in (home / "deployments", home / "active", home / "previous"):
            make_folder(folder)

    def manifest(self, digest: str) -> Manifest:
        """The stored manifest of that digest. Raises StoreError or BundleError."""
        return parse_manifest(self.read(digest))

    def description(self, manifest: Manifest) -> Description:
        """Its bundle.json. Raises StoreError or BundleError."""
        return parse_description(self.read(manifest.layer("bundle.json").digest))

    def lay_out(self, manifest: Manifest, description: Description) -> Deployment:
        """Its files under their names in a folder of its own, or that folder if it is there. The blobs must have been verified."""
        folder = self.home / "deployments" / check_name(description.name) / manifest.digest[len("sha256:") :][:16]
        deployment = Deployment(folder, manifest.digest, description)
        if not self._is_laid_out(folder, manifest):
            self._link(folder, manifest)
        for blob in manifest.blobs:
            self._wanted.pop(blob.digest, None)
        return deployment

    def _link(self, folder: Path, manifest: Manifest) -> None:
        """The folder gets its name when it is whole. One that is there, since blobs of it were sent again, is mended: it may be the active one."""
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            if folder.is_dir():
                self._mend(folder, manifest)
                return
            make_folder(folder.parent)
            (scratch / "cache").mkdir(parents=True, mode=0o750)
            for file, digest in _files(manifest).items():
                os.link(self.path(digest), scratch / file)
            sync_folder(scratch)
            os.rename(scratch, folder)
            sync_folder(folder.parent)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if error.errno in FULL:
                raise self.full(0) from error
            raise StoreError(
                f"the bundle cannot be laid out in {folder}: {error.strerror}", "the store needs one file system with hard and symbolic links"
            ) from error

    def _mend(self, folder: Path, manifest: Manifest) -> None:
        """File by file: at every moment each of them is the old one or the new one."""
        self._mended.add(folder)
        (folder / "cache").mkdir(exist_ok=True, mode=0o750)
        for file, digest in _files(manifest).items():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samefile(folder / file, self.path(digest)):
                    continue
            fresh = _scratch(folder / file)
            os.link(self.path(digest), fresh)
            os.replace(fresh, folder / file)
        sync_folder(folder)

    def _is_laid_out(self, folder: Path, manifest: Manifest) -> bool:
        """Whether every file there is the store's blob itself."""
        try:
            return all(os.path.samefile(folder / file, self.path(digest)) for file, digest in _files(manifest).items())
        except FileNotFoundError:
            return False

    def was_mended(self, folder: Path) -> bool:
        """Whether files of it were replaced since it was made active: a worker that runs has the old ones."""
        return folder in self._mended

    def all(self) -> list[Path]:
        """Every blob."""
        return list(self._blobs.iterdir())

    def users(self, blob: Path) -> list[Deployment]:
        """The deployments that have this very file."""
        inode, found = blob.stat().st_ino, []
        for name in _folders(self.home / "deployments"):
            for folder in _folders(name):
                if any(path.stat().st_ino == inode for path in folder.iterdir()):
                    with contextlib.suppress(StoreError, BundleError):  # else its small files are damaged as well
                        found.append(self.opened(folder))
        return found

    def opened(self, folder: Path) -> Deployment:
        """What is laid out there; only its small files are read. Raises StoreError or BundleError."""
        try:
            manifest = parse_manifest((folder / "manifest.json").read_bytes())
            description = parse_description((folder / "bundle.json").read_bytes())
        except OSError as error:
            raise StoreError(f"the deployment {folder.name} is incomplete: {error.strerror}", "deploy the bundle again") from error
        return Deployment(folder, manifest.digest, description)

    def verify_deployment(self, folder: Path) -> None:
        """Every file of it against its manifest, and the manifest against the folder's name. Raises StoreError.

        What is damaged is removed from the store, so that the next deploy sends it again.
        """
        try:
            raw = (folder / "manifest.json").read_bytes()
            if not digest_of(raw).startswith("sha256:" + folder.name):
                raise Damaged(f"the manifest of the deployment {folder.name} is damaged", "deploy the bundle again")
            for layer in parse_manifest(raw).layers:
                file = folder / layer.file
                if size_of(file) != layer.size or digest_of_file(file) != layer.digest:
                    raise self.damaged(layer)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise StoreError(f"the deployment {folder.name} cannot be read just now: {error.strerror}", "it is tried again") from error
            raise Damaged(f"the deployment {folder.name} is incomplete: {error.strerror}", "deploy the bundle again") from error
        except BundleError as error:
            raise Damaged(f"the manifest of the deployment {folder.name} is damaged: {error}", "deploy the bundle again") from error

    # what is active

    def names(self) -> list[str]:
        """The models that have an active deployment."""
        return sorted(path.name for path in (self.home / "active").iterdir() if path.is_symlink() and _is_name(path.name))

    def active(self, name: str) -> Path | None:
        """The folder of the active deployment."""
        return _led_to(self.home / "active" / check_name(name))

    def previous(self, name: str) -> Path | None:
        """The folder of the one that was active before, if it is another one."""
        before = _led_to(self.home / "previous" / check_name(name))
        return None if before == self.active(name) else before

    def staged(self, name: str) -> Path | None:
        """The folder of the one that waits to be made active: see `staging`."""
        try:
            document = json.loads((self.home / "staged" / f"{check_name(name)}.json").read_bytes())
            return self.home / "deployments" / name / check_digest(document["digest"])[len("sha256:") :][:16]
        except (OSError, ValueError, KeyError, TypeError, BundleError):
            return None

    def swap(self, name: str, folder: Path) -> None:
        """Make it the active deployment, and what was active the previous one. Raises StoreError, and then nothing has changed."""
        active = self.active(name)
        try:
            if active is not None and active != folder:
                _point(self.home / "previous" / name, active)
            _point(self.home / "active" / name, folder)
            self._mended.discard(folder)
        except OSError as error:
            raise self.unwritable(error) from error

    def restore(self, name: str, active: Path | None, previous: Path | None) -> None:
        """Both links as they were."""
        for link, folder in ((self.home / "active" / name, active), (self.home / "previous" / name, previous)):
            if folder is not None:
                _point(link, folder)
            else:
                _unlink(link)

    def remove(self, name: str) -> int:
        """Forget a model: its links, its deployments, and the blobs that nothing else needs. The bytes freed."""
        for kind in ("active", "previous"):
            _unlink(self.home / kind / check_name(name))
        _unlink(self.home / "staged" / f"{name}.json")
        folder = self.home / "deployments" / name
        blobs = {file for deployment in _folders(folder) for file in deployment.iterdir() if file.is_file() and file.stat().st_nlink == 1}
        freed = sum(size_of(file) for file in blobs) + sum(_tree_bytes(deployment / "cache") for deployment in _folders(folder))
        shutil.rmtree(folder, ignore_errors=True)
        return freed + self.collect()

    def collect(self) -> int:
        """Remove deployments that are neither active nor previous nor staged, and blobs that no deployment needs. The bytes freed.

        What was asked for or sent within the hour stays: its deployment may be about to be activated.
        """
        freed = 0
        for folder in _folders(self.home / "deployments"):
            kept = set(self._kept(folder.name).values()) if _is_name(folder.name) else set()
            for deployment in _folders(folder):
                if deployment not in kept:
                    freed += _tree_bytes(deployment / "cache")
                    shutil.rmtree(deployment, ignore_errors=True)
        for blob in self._blobs.iterdir():
            if not self._is_wanted(blob.name) and blob.stat().st_nlink == 1:
                freed += size_of(blob)
                blob.unlink()
        for part in self._incoming.iterdir():
            if not self._is_wanted(part.name[: -len(".part")]):
                freed += size_of(part)
                part.unlink()
        sync_folder(self._blobs)
        return freed

    def _is_wanted(self, hexadecimal: str) -> bool:
        """Asked when the file has been seen: whoever sends one has said so before there is any."""
        return self._wanted.get(f"sha256:{hexadecimal}", 0) > time.monotonic()

    def _kept(self, name: str) -> dict[str, Path]:
        """Why a deployment stays, and which."""
        folders = {"active": self.active(name), "previous": self.previous(name), "staged": self.staged(name)}
        return {why: folder for why, folder in folders.items() if folder is not None}

    def usage(self) -> dict[str, Any]:
        """What the store takes, what is free, and what stays and why. ``arriving_bytes``: of what no deployment needs yet; it goes within the hour."""
        sizes, arriving = [], sum(size_of(part) for part in self._incoming.iterdir())
        for blob in self._blobs.iterdir():
            with contextlib.suppress(FileNotFoundError):  # collected meanwhile
                facts = blob.stat()
                sizes.append(facts.st_size)
                arriving += facts.st_size if facts.st_nlink == 1 else 0
        return {
            "bytes": sum(sizes),
            "free_bytes": free_bytes(self.home),
            "blobs": len(sizes),
            "keep": KEEP,
            "kept": [entry for folder in sorted(_folders(self.home / "deployments")) if _is_name(folder.name) for entry in self._told(folder.name)],
            "arriving_bytes": arriving,
        }

    def _told(self, name: str) -> Iterator[dict[str, Any]]:
        """One entry for each deployment that stays; of one that cannot be read, what is known."""
        for why, folder in self._kept(name).items():
            known: dict[str, Any] = {"name": name, "why": why, "release": None, "digest": None, "bytes": _tree_bytes(folder)}
            with contextlib.suppress(StoreError, BundleError):
                opened = self.opened(folder)
                known.update(release=opened.release, digest=opened.digest)
            yield known


def write_atomically(path: Path, data: bytes, mode: int = 0o640) -> None:
    """The old content or the new one, whenever power fails. Raises OSError, and then nothing of the new one is left."""
    scratch = _scratch(path)
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    sync_folder(path.parent)


def _scratch(path: Path) -> Path:
    """A name beside it that `recovery` knows as a leftover."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")


def _files(manifest: Manifest) -> dict[str, str]:
    """What a deployment's folder holds: file -> digest. All blobs of the bundle, or `collect` would take one for unneeded."""
    layers = {layer.file: layer.digest for layer in manifest.layers}
    return {**layers, "config.json": manifest.config.digest, "manifest.json": manifest.digest}


def _led_to(link: Path) -> Path | None:
    """Where it leads: always ../deployments/NAME/HEX16, so only the last part is believed."""
    try:
        target = Path(os.readlink(link))
    except OSError:
        return None
    return link.parent.parent / "deployments" / link.name / target.name


def _point(link: Path, folder: Path) -> None:
    fresh = link.with_name(f".{link.name}")
    _unlink(fresh)
    os.symlink(Path("..", "deployments", folder.parent.name, folder.name), fresh)
    os.replace(fresh, link)
    sync_folder(link.parent)


def _unlink(link: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
        sync_folder(link.parent)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()] if folder.is_dir() else []


def _tree_bytes(folder: Path) -> int:
    return sum(size_of(path) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except BundleError:
        return False
