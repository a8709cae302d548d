"""What devices have been sent, kept on this machine so that the next version goes as what differs from it.

    keep(layout, manifest)              # after a deployment worked
    bases = bases_of("sha256:…")        # of a device's active manifest: file name -> Blob

A cache: whatever is missing here is sent whole. The least recently used goes first.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edge_agent.bundle import BundleError, Descriptor, Layout, Manifest, check_digest, digest_of, parse_manifest
from edgesdk.cache import cache_folder

MOST_BYTES = 4 << 30  # of all that is kept
LEAST = 64 << 10  # a smaller blob is sent whole
MOST = 1 << 30  # a larger one, too: both are held in memory


@dataclass(frozen=True, slots=True)
class Blob:
    """One that a device should have."""

    digest: str
    path: Path


def keep(layout: Layout, manifest: Manifest) -> None:
    """A disk that is full, or a cache that cannot be written, is no reason to fail a deployment."""
    with contextlib.suppress(OSError):
        for blob in manifest.blobs:
            if LEAST <= blob.size <= MOST or blob.digest == manifest.digest:
                _store(layout, blob)
        _tidy()


def anything() -> bool:
    """Whether there is any: without, no device need be asked what it runs."""
    return _folder().is_dir() and any(_folder().iterdir())


def bases_of(digest: str) -> dict[str, Blob]:
    """The blobs of that manifest that are here, by the name of their file. Nothing where it is not known here."""
    try:
        raw = _path(digest).read_bytes()
        manifest = parse_manifest(raw)
    except (OSError, BundleError):
        return {}
    if digest_of(raw) != digest:
        return {}
    return {layer.file: Blob(layer.digest, _path(layer.digest)) for layer in manifest.layers if _path(layer.digest).is_file()}


def _store(layout: Layout, blob: Descriptor) -> None:
    target = _path(blob.digest)
    if target.exists():
        os.utime(target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines(layout.pieces(blob))
        Path(scratch).replace(target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _tidy() -> None:
    kept = sorted(_folder().iterdir(), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in kept)
    for path in kept:
        if total <= MOST_BYTES:
            return
        total -= path.stat().st_size
        path.unlink()


def _folder() -> Path:
    return cache_folder() / "sent"


def _path(digest: str) -> Path:
    return _folder() / check_digest(digest)[len("sha256:") :]
