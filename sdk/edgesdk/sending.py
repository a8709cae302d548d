"""What goes to a device, and no byte of it twice: archives for its set-up, a bundle's blobs, and what differs from what it has.

    archives(device, package, wheels)             # the agent, numpy, onnxruntime
    blobs_sent, bytes_sent = push(device, layout, manifest, facts)

Before anything is sent the device says how much of it has arrived earlier. What it lacks goes in one stream, so that many small files
cost no round trip each.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.bundle import Descriptor, Layout, Manifest
from edgesdk import agent_package, delta, preflight, sent
from edgesdk.agent_package import AgentPackage
from edgesdk.progress import Progress, silent
from edgesdk.replies import Facts, Held, parse

if TYPE_CHECKING:
    from edgesdk.device import Device

CHUNK_BYTES = 1 << 17
Blobs = Sequence[tuple[Descriptor, int]]  # each from an offset on

_LARGE_BYTES = 8 << 20  # of a bundle, from which on its receiver is started early


def archives(
    device: Device,
    agent: Sequence[AgentPackage],
    wheels: Sequence[Path],
    *,
    held: Mapping[str, int],
    then: Sequence[str],
    progress: Progress = silent,
) -> None:
    """Send what the set-up unpacks, and have it do that, in one command. ``held``: what the device said that it has of them; ``then``: the set-up's verbs.

    Each archive is a stage of its own, by the name of its package.
    """
    stages: list[tuple[str, str, int, bytes | Path]] = [("agent", part.digest, len(part.data), part.data) for part in agent]
    stages += [(wheel.name.split("-")[0], agent_package.digest_of_wheel(wheel), wheel.stat().st_size, wheel) for wheel in wheels]
    if not stages:
        return
    known: Mapping[str, int] | None = held

    def send() -> None:
        nonlocal known
        here = known if known is not None else parse(Held, device.bootstrap("held", *(digest for _, digest, _, _ in stages)), device.host).held
        known = None  # after a cut it has to be asked
        offsets = {digest: here.get(digest, 0) for _, digest, _, _ in stages}  # above its size: it is unpacked there
        left = [(stage, digest, size, source, min(offsets[digest], size)) for stage, digest, size, source in stages]
        device.arrived = sum(offset for *_, offset in left)
        # One that is all there is asked for nonetheless: it may have died before it checked that.
        asked = [word for _, digest, size, _, offset in left if offsets[digest] <= size for word in (digest, str(size), str(offset))]
        device.bootstrap("receive", *asked, "then", *then, stdin=stream(left))

    def stream(left: list[tuple[str, str, int, bytes | Path, int]]) -> Iterator[bytes]:
        for stage, _, size, source, offset in left:
            for chunk in pieces(source, offset) if offset < size else ():
                yield chunk
                offset += len(chunk)
                progress(stage, offset, size)

    device.persistently(send)


class _Ahead:
    """The command that receives, started before it is known what it will be sent: its start takes as long as that question."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._work: queue.SimpleQueue[tuple[Blobs, Iterable[bytes]] | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="receive", daemon=True).start()

    def put(self, blobs: Blobs, chunks: Iterable[bytes]) -> None:
        """As `Device.put`."""
        if not self._ended.empty():  # it was waited for too long: what differs from another blob takes its time to find
            self._work.put(None)
            self._device.put(blobs, chunks)
            return
        self._work.put((blobs, chunks))
        error = self._ended.get()
        if error:
            raise error

    def close(self) -> None:
        """If it was not needed it ends without a word. Twice does no harm."""
        self._work.put(None)

    def _run(self) -> None:
        try:
            self._device.receive(self._chunks())
            self._ended.put(None)
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
            self._ended.put(error)

    def _chunks(self) -> Iterator[bytes]:
        work = self._work.get()
        if work:
            yield listed(work[0])
            yield from work[1]


def listed(blobs: Blobs) -> bytes:
    """What goes before the bytes of blobs, each with the offset that they begin at."""
    entries = [{"digest": blob.digest, "size": blob.size, "offset": offset} for blob, offset in blobs]
    return json.dumps({"blobs": entries}).encode() + b"\n"


def push(device: Device, layout: Layout, manifest: Manifest, facts: Facts, progress: Progress = silent, *, fresh: bool = False) -> tuple[int, int]:
    """Send the blobs that the device lacks, each from where an earlier attempt was cut, or as what differs from the version that it runs. A ``fresh`` one,
    which had no agent a moment ago, lacks all of them and is not asked.

    Returns how many, and how many bytes.
    """
    blobs = unique(manifest.blobs)
    wanted: set[str] = set()
    packed: dict[str, bytes | None] = {}
    total = bytes_sent = 0

    def send() -> None:
        ahead = _Ahead(device) if sum(blob.size for blob in blobs) >= _LARGE_BYTES else None
        try:
            lack(ahead.put if ahead else device.put)
        finally:
            if ahead:
                ahead.close()

    def lack(put: Callable[[Blobs, Iterable[bytes]], None]) -> None:
        nonlocal total, bytes_sent, fresh
        missing = dict.fromkeys((blob.digest for blob in blobs), 0) if fresh else {entry.digest: entry.offset for entry in device.missing(blobs)}
        lacking = [(blob, min(missing[blob.digest], blob.size)) for blob in blobs if blob.digest in missing]
        left = sum(blob.size - offset for blob, offset in lacking)
        preflight.check_space(left, facts, device.host)
        total = max(total, left)
        bytes_sent = device.arrived = total - left  # after a cut: what the device has, not what was on its way
        wanted.update(blob.digest for blob, _ in lacking)
        bases = {} if fresh else _bases(device, layout, manifest, lacking)
        fresh = False  # after a cut it has to be asked
        for blob, offset in lacking[:]:
            base = bases.get(blob.file) if not offset else None
            if base and blob.digest not in packed:
                packed[blob.digest] = delta.between(base.path.read_bytes(), layout.blob(blob.digest))
            difference = packed.get(blob.digest)
            if base and difference is not None and device.patch(blob, base.digest, difference):
                total -= blob.size - len(difference)
                bytes_sent += len(difference)
                progress("push", bytes_sent, total)
                lacking.remove((blob, offset))
        if lacking:
            put(lacking, counted(chunk for blob, offset in lacking for chunk in layout.pieces(blob, offset, CHUNK_BYTES)))

    def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal bytes_sent
        for chunk in chunks:
            yield chunk
            bytes_sent += len(chunk)
            progress("push", bytes_sent, total)

    device.persistently(send)
    return len(wanted), bytes_sent


def unique(blobs: Iterable[Descriptor]) -> list[Descriptor]:
    """Two files of the same content are one blob."""
    return list({blob.digest: blob for blob in blobs}.values())


def pieces(source: bytes | Path, offset: int = 0) -> Iterator[bytes]:
    """What lies in memory, or in a file, from ``offset`` on."""
    if isinstance(source, bytes):
        yield from (source[at : at + CHUNK_BYTES] for at in range(offset, len(source), CHUNK_BYTES))
        return
    with source.open("rb") as stream:
        stream.seek(offset)
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _bases(device: Device, layout: Layout, manifest: Manifest, lacking: list[tuple[Descriptor, int]]) -> dict[str, sent.Blob]:
    """What of the version that the device runs is here too, by file. Nothing where all that it lacks is small, or begun."""
    large = {blob.file for blob, offset in lacking if sent.LEAST <= blob.size <= sent.MOST and not offset}
    if not large or not sent.anything():
        return {}
    name = layout.description(manifest).name
    bases = [sent.bases_of(model.digest) for model in device.status().models if model.name == name and model.digest]
    return {file: base for file, base in bases[0].items() if file in large} if bases else {}
