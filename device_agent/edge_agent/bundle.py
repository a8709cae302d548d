"""The bundle format: read, verify, write. Standard library only.

A bundle is an OCI image layout, a folder or one ``.tar`` of it. Each profile's model in it is a CNCF ModelPack artifact
(https://github.com/modelpack/model-spec): a manifest that names its layers by digest. What was *measured* about that model,
the evidence, is a second artifact whose ``subject`` is the first. Who vouches for either is a third: an SSH signature of the manifest's bytes.

    oci-layout
    index.json                      one entry a profile, tagged with its name; one an evidence, tagged sha256-….evidence; one a
                                    signature of either, tagged sha256-….sig
    blobs/sha256/…                  manifests, configuration, layers: each named by the digest of its content

The device's reader defines the format and the host writes through it, since what runs on the device is hardest to update.
A reader refuses a larger ``format`` and ignores keys that it does not know.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edge_agent.errors import AgentError

if TYPE_CHECKING:
    import hashlib

FORMAT = 1

LAYOUT_VERSION = "1.0.0"
LAYOUT_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MODEL_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
EVIDENCE_ARTIFACT = "application/vnd.edgesdk.evidence.v1+json"
SIGNATURE_ARTIFACT = "application/vnd.edgesdk.signature.v1+json"
SIGNATURE_TYPE = "application/vnd.openssh.signature"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
FILEPATH = "org.cncf.model.filepath"
TAG = "org.opencontainers.image.ref.name"

# The files of a bundle and their ModelPack media types. A name that is not here is not laid out on a device.
LAYERS = {
    "model.onnx": "application/vnd.cncf.model.weight.v1.raw",
    "weights.bin": "application/vnd.cncf.model.weight.v1.raw",
    "bundle.json": "application/vnd.cncf.model.weight.config.v1.raw",
    "profile.json": "application/vnd.cncf.model.weight.config.v1.raw",
    "recipe.json": "application/vnd.cncf.model.weight.config.v1.raw",
    "golden.npz": "application/vnd.cncf.model.dataset.v1.raw",
    "labels.txt": "application/vnd.cncf.model.doc.v1.raw",
}

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_JSON_BYTES = 4 << 20
CHUNK_BYTES = 1 << 20


class BundleError(AgentError):
    """A bundle that cannot be read, or is not what its digests say."""


@dataclass(frozen=True)
class Descriptor:
    """A blob as a manifest names it. ``file`` is its name among the bundle's files, empty for a blob that is none."""

    digest: str
    size: int
    media_type: str = ""
    file: str = ""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: numpy's name of its dtype (``string`` for text), and its shape; None is any length."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Manifest:
    """One profile's model: its digest is the bundle's identity on every device."""

    digest: str
    size: int
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything that a device must have, the manifest itself last."""
        return (*self.layers, self.config, Descriptor(self.digest, self.size, MANIFEST_TYPE))

    def layer(self, file: str) -> Descriptor:
        """The layer of that name. Raises BundleError where there is none."""
        for layer in self.layers:
            if layer.file == file:
                return layer
        raise BundleError(f"the bundle {self.digest[:19]} holds no `{file}`", "package the model again")


@dataclass(frozen=True)
class Description:
    """``bundle.json``: what a device has to know before it touches the model."""

    name: str
    release: int
    profile: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    onnxruntime: str  # the oldest version that reads this model
    opset: int
    ir_version: int
    tolerance: dict[str, float]  # output -> greatest absolute difference from the golden answer
    top1: bool  # the golden answers' argmax over the last axis must agree too
    macs: Mapping[str, int] | None = None  # multiply-accumulates by node, where the profile wants them placed


def parse_manifest(raw: bytes) -> Manifest:
    """The manifest in ``raw``. Raises BundleError for anything that is not one."""
    document = parse_json(raw, "manifest")
    if document.get("artifactType") != MODEL_ARTIFACT:
        raise BundleError(f"a manifest's artifactType is {document.get('artifactType')!r}, not a ModelPack's", "is this a bundle of edgesdk?")
    try:
        config = _descriptor(document["config"])
        layers = tuple(_descriptor(layer) for layer in document["layers"])
    except (KeyError, TypeError) as error:
        raise BundleError(f"a manifest lacks {error}", "copy or package the bundle again") from error
    files = [layer.file for layer in layers if layer.file in LAYERS]
    if len(set(files)) != len(files):
        raise BundleError("a manifest names a file twice", "package the model again")
    return Manifest(digest_of(raw), len(raw), config, tuple(layer for layer in layers if layer.file in LAYERS))


def parse_description(raw: bytes) -> Description:
    """``bundle.json`` as a value. Raises BundleError if it is malformed or of a newer format."""
    document = parse_json(raw, "bundle.json")
    if document.get("format") != FORMAT:
        raise BundleError(
            f"the bundle's format is {document.get('format')!r}, this version reads {FORMAT}", "update edgesdk (and the agent: `edgesdk deploy` sends its own)"
        )
    try:
        model, golden = document["model"], document["golden"]
        description = Description(
            name=document["name"],
            release=int(document["release"]),
            profile=document["profile"],
            inputs=_tensors(model["inputs"]),
            outputs=_tensors(model["outputs"]),
            onnxruntime=str(document["needs"]["onnxruntime"]),
            opset=int(model["opset"]),
            ir_version=int(model["ir_version"]),
            tolerance={str(k): float(v) for k, v in golden["tolerance"].items()},
            top1=bool(golden["top1"]),
            macs={str(node): int(count) for node, count in model["macs"].items()} if "macs" in model else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle.json is malformed: {error!r}", "package the model again") from error
    for word in (description.name, description.profile):
        check_name(word)
    return description


def check_name(name: object) -> str:
    """The name, if it is one: it becomes a folder's name and a part of a URL. Raises BundleError otherwise."""
    if isinstance(name, str) and NAME.fullmatch(name):
        return name
    raise BundleError(f"{str(name)[:80]!r} is no name", "lower-case letters, digits, `.`, `_` and `-`, 63 at most, the first a letter or digit")


def _sha256(data: bytes = b"") -> hashlib._Hash:
    import hashlib

    return hashlib.sha256(data)


def digest_of(data: bytes) -> str:
    """``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + _sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """The same of a file's content, read in chunks."""
    state = _sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            state.update(chunk)
    return "sha256:" + state.hexdigest()


def check_digest(digest: object) -> str:
    """The digest, if it is one of SHA-256. Raises BundleError otherwise."""
    if isinstance(digest, str) and DIGEST.fullmatch(digest):
        return digest
    raise BundleError(f"{str(digest)[:80]!r} is no SHA-256 digest", "copy or package the bundle again")


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object of bounded size. Raises BundleError."""
    if len(raw) > MAX_JSON_BYTES:
        raise BundleError(f"{what} is larger than {MAX_JSON_BYTES} bytes", "is this a bundle of edgesdk?")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not JSON", "copy or package the bundle again") from error
    if not isinstance(document, dict):
        raise BundleError(f"{what} is not a JSON object", "copy or package the bundle again")
    return document


def to_json(document: object) -> bytes:
    """The one way that this format writes JSON: sorted keys, no spaces, UTF-8, a newline at the end. What is no UTF-8 in a file's name becomes `?`."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n"


class Layout:
    """An opened bundle, folder or ``.tar``; nothing is unpacked.

    with Layout.open(Path("bundles/ocr")) as layout:
        manifest = layout.manifests()["x86-cpu"]
        description = layout.description(manifest)
    """

    def __init__(self, name: str, members: Mapping[str, tuple[Path, int, int]]) -> None:
        self.name = name
        self._members = members  # path inside the layout -> file, offset, size

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Layout]:
        """Raises BundleError if there is nothing that looks like a bundle."""
        if path.is_dir():
            members = {
                str(file.relative_to(path)): (file, 0, file.stat().st_size) for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()
            }
        elif path.is_file():
            from edge_agent import archive

            members = archive.members(path)
        else:
            raise BundleError(f"there is no bundle at `{path}`", "`edgesdk package` writes one")
        if "oci-layout" not in members or "index.json" not in members:
            raise BundleError(f"`{path}` is not a bundle: it has no oci-layout and index.json", "`edgesdk package` writes one")
        layout = cls(path.name, members)
        layout._check_version()
        yield layout

    def manifests(self) -> dict[str, Manifest]:
        """Profile name -> its model's manifest, in the index's order."""
        found = {}
        for entry in self._index():
            if entry.get("artifactType") == MODEL_ARTIFACT:
                profile = check_name(entry.get("annotations", {}).get(TAG))
                found[profile] = parse_manifest(self.blob(_descriptor(entry).digest, MAX_JSON_BYTES))
        if not found:
            raise BundleError(f"`{self.name}` holds no model", "`edgesdk package` writes one")
        return found

    def description(self, manifest: Manifest) -> Description:
        """``bundle.json`` of that manifest. The tag in the index, which nobody signs, has to say the same profile."""
        description = parse_description(self.blob(manifest.layer("bundle.json").digest, MAX_JSON_BYTES))
        tags = [profile for profile, tagged in self.manifests().items() if tagged.digest == manifest.digest]
        if tags and description.profile not in tags:
            raise BundleError(f"`{self.name}` calls {description.profile}'s model that of {tags[0]}", "copy or package the bundle again")
        return description

    def evidence(self, manifest: Manifest) -> dict[str, Any]:
        """What was measured of it; empty where nothing is attached."""
        found = self._attached(EVIDENCE_ARTIFACT, manifest.digest)
        return parse_json(found[1], "evidence") if found else {}

    def signature(self, digest: str) -> bytes | None:
        """Of the manifest of that digest, as OpenSSH writes it; None where it is not signed. What it is worth only a device can say."""
        found = self._attached(SIGNATURE_ARTIFACT, digest)
        return found[1] if found else None

    def manifests_of(self, manifest: Manifest) -> tuple[str, ...]:
        """The digests of what is signed: the model's manifest, and its evidence's where there is one."""
        found = self._attached(EVIDENCE_ARTIFACT, manifest.digest)
        return (manifest.digest, found[0]) if found else (manifest.digest,)

    def _attached(self, kind: str, subject: str) -> tuple[str, bytes] | None:
        """The artifact of that kind whose subject is that manifest: its own manifest's digest, and its one layer."""
        for entry in self._index():
            if entry.get("artifactType") == kind:
                digest = _descriptor(entry).digest
                document = parse_json(self.blob(digest, MAX_JSON_BYTES), "manifest of an attachment")
                try:
                    if document["subject"]["digest"] == subject:
                        return digest, self.blob(_descriptor(document["layers"][0]).digest, MAX_JSON_BYTES)
                except (KeyError, TypeError, IndexError) as error:
                    raise BundleError(f"an attachment of `{self.name}` lacks {error}", "copy or package the bundle again") from error
        return None

    def blob(self, digest: str, limit: int | None = None) -> bytes:
        """A blob's content, its digest checked. Raises BundleError if it is missing, damaged or larger than ``limit``."""
        size = self.size(digest)
        if limit is not None and size > limit:
            raise BundleError(f"the blob {digest[:19]} of `{self.name}` has {size} bytes, more than the {limit} it may have", "package the model again")
        with self.open_blob(digest) as stream:
            data = stream.read(size)
        if digest_of(data) != digest:
            raise BundleError(f"the blob {digest[:19]} of `{self.name}` is damaged: its content has another digest", "copy or package the bundle again")
        return data

    def size(self, digest: str) -> int:
        """Bytes of a blob."""
        return self._member(digest)[2]

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[BinaryIO]:
        """The blob as a stream at its first byte. Of a ``.tar`` it does not end where the blob ends: read ``size`` bytes."""
        path, offset, _ = self._member(digest)
        with path.open("rb") as stream:
            stream.seek(offset)
            yield stream

    def pieces(self, blob: Descriptor, offset: int = 0, most: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The blob from ``offset`` on, at most ``most`` bytes at a time; fewer in all where the file is shorter than the blob says."""
        left = blob.size - offset
        with self.open_blob(blob.digest) as stream:
            stream.seek(offset, os.SEEK_CUR)
            while left and (piece := stream.read(min(most, left))):
                left -= len(piece)
                yield piece

    def verify(self) -> None:
        """Check every blob that the index leads to against its digest and size. Raises BundleError at the first that differs."""
        for manifest in self.manifests().values():
            for blob in manifest.blobs:
                if self.size(blob.digest) != blob.size:
                    raise BundleError(
                        f"`{blob.file or blob.digest[:19]}` of `{self.name}` has {self.size(blob.digest)} bytes, its manifest says {blob.size}",
                        "copy or package the bundle again",
                    )
                self._check(blob)
            for signed in self.manifests_of(manifest):
                self.signature(signed)
            self.evidence(manifest)

    def _check(self, blob: Descriptor) -> None:
        state = _sha256()
        for piece in self.pieces(blob):
            state.update(piece)
        if "sha256:" + state.hexdigest() != blob.digest:
            raise BundleError(f"`{blob.file or blob.digest[:19]}` of `{self.name}` differs from its manifest", "copy or package the bundle again")

    def _check_version(self) -> None:
        version = self._json("oci-layout").get("imageLayoutVersion")
        if version != LAYOUT_VERSION:
            raise BundleError(f"`{self.name}` is an image layout of version {str(version)[:20]!r}, not {LAYOUT_VERSION}", "copy or package the bundle again")

    def _json(self, member: str) -> dict[str, Any]:
        """One of the two files that are not blobs."""
        path, offset, size = self._members[member]
        if size > MAX_JSON_BYTES:
            raise BundleError(f"{member} of `{self.name}` is larger than {MAX_JSON_BYTES} bytes", "is this a bundle of edgesdk?")
        with path.open("rb") as stream:
            stream.seek(offset)
            return parse_json(stream.read(size), member)

    def _index(self) -> list[dict[str, Any]]:
        entries = self._json("index.json").get("manifests")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and isinstance(entry.get("annotations", {}), dict) for entry in entries):
            raise BundleError(f"index.json of `{self.name}` lists no manifests", "copy or package the bundle again")
        return entries

    def _member(self, digest: str) -> tuple[Path, int, int]:
        member = "blobs/sha256/" + check_digest(digest)[len("sha256:") :]
        if member not in self._members:
            raise BundleError(f"`{self.name}` lacks the blob {digest[:19]}", "copy or package the bundle again")
        return self._members[member]


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle for one profile. ``files`` are those of LAYERS that it has."""

    profile: str
    config: dict[str, Any]
    files: dict[str, bytes]
    evidence: dict[str, Any]


def manifest_of(contents: Contents) -> bytes:
    """The manifest's bytes: a pure function of the files and the configuration."""
    return to_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": MODEL_ARTIFACT,
            "config": _entry(MODEL_CONFIG, to_json(contents.config)),
            "layers": [{**_entry(LAYERS[file], contents.files[file]), "annotations": {FILEPATH: file}} for file in LAYERS if file in contents.files],
        }
    )


def write(target: Path, bundle: list[Contents], sign: Callable[[bytes], bytes] | None = None) -> None:
    """Write a bundle: a ``.tar`` where ``target`` ends so, else a folder. It replaces what was there in one step, or nothing changes.

    ``sign`` makes the signature of a manifest's bytes; without, the bundle is unsigned.
    """
    import tempfile  # late, as tarfile and hashlib: a worker starts without them

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        folder = Path(scratch, "new")
        _write_folder(folder, bundle, sign)
        if target.suffix == ".tar":
            from edge_agent import archive

            archive.write(Path(scratch, "new.tar"), folder)
            os.replace(Path(scratch, "new.tar"), target)
            return
        if target.exists():
            os.replace(target, Path(scratch, "old"))
        try:
            os.replace(folder, target)
        except BaseException:  # also Ctrl-C: what was there must not go with the scratch folder
            if Path(scratch, "old").exists() and not target.exists():
                os.replace(Path(scratch, "old"), target)
            raise


def _write_folder(folder: Path, bundle: list[Contents], sign: Callable[[bytes], bytes] | None) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entries: list[dict[str, Any]] = []

    def put(data: bytes) -> None:
        path = blobs / digest_of(data)[len("sha256:") :]
        if not path.exists():
            path.write_bytes(data)

    def attach(kind: str, layer: bytes, media_type: str, title: str, subject: bytes, suffix: str) -> bytes:
        """The artifact's own manifest."""
        attached = to_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": kind,
                "config": _entry(EMPTY_CONFIG, b"{}"),
                "layers": [{**_entry(media_type, layer), "annotations": {"org.opencontainers.image.title": title}}],
                "subject": _entry(MANIFEST_TYPE, subject),
            }
        )
        for data in (layer, b"{}", attached):
            put(data)
        tag = digest_of(subject).replace(":", "-") + suffix
        entries.append({**_entry(MANIFEST_TYPE, attached), "artifactType": kind, "annotations": {TAG: tag}})
        return attached

    for contents in bundle:
        manifest, evidence = manifest_of(contents), to_json(contents.evidence)
        for data in (*contents.files.values(), to_json(contents.config), manifest):
            put(data)
        entries.append({**_entry(MANIFEST_TYPE, manifest), "artifactType": MODEL_ARTIFACT, "annotations": {TAG: contents.profile}})
        measured = attach(EVIDENCE_ARTIFACT, evidence, "application/json", "evidence.json", manifest, ".evidence")
        if sign:
            for signed in (manifest, measured):
                attach(SIGNATURE_ARTIFACT, sign(signed), SIGNATURE_TYPE, "manifest.sig", signed, ".sig")
    (folder / "oci-layout").write_bytes(to_json({"imageLayoutVersion": LAYOUT_VERSION}))
    (folder / "index.json").write_bytes(to_json({"schemaVersion": 2, "mediaType": LAYOUT_TYPE, "manifests": entries}))


def _entry(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _descriptor(entry: Mapping[str, Any]) -> Descriptor:
    if not {"size", "digest"} <= set(entry):
        raise BundleError("an entry of the bundle lacks its size or digest", "copy or package the bundle again")
    size = entry["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BundleError(f"a manifest gives {size!r} as a size", "copy or package the bundle again")
    return Descriptor(check_digest(entry["digest"]), size, str(entry.get("mediaType", "")), str(entry.get("annotations", {}).get(FILEPATH, "")))


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(str(e["name"]), str(e["dtype"]), tuple(None if d is None else int(d) for d in e["shape"])) for e in entries)
