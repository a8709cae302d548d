"""Triton's system shared memory: named regions that a client registers, and tensors that lie in them instead of in a body.

    regions = Regions(limits)
    regions.register(uid, "in0", "/input", offset=0, byte_size=64)
    filled = fill(regions, uid, body, header_bytes, request.take, limit)     # inputs are read out of their regions
    body, header_bytes = filled.deliver(answer, answer_header_bytes)         # outputs are written into theirs

Regions lie below /dev/shm, are read and written as files and never mapped: a client that shrinks one gets an error, and we
no SIGBUS. Each belongs to the user who registered it; nobody else sees or names it. Standard library only: the workers know
nothing of all this, they get and give binary tensors.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Union

from edge_agent.bodies import HttpError
from edge_agent.config import Limits
from edge_agent.frames import Bytes

_FOLDER = "/dev/shm"  # noqa: S108 - where the system keeps shared memory, each region the file of its owner
_KEY = re.compile(r"/?(?!\.{1,2}$)([A-Za-z0-9._-]{1,200})")
_MAX_JSON_BYTES = 1 << 20  # with tensors elsewhere a request is short
_ENDLESS_NUMBER = re.compile(rb"[0-9]{400}")
_MARK = b"shared_memory_region"
_ALIGNMENT = 64
_PARAMETERS = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass
class Region:
    """One registered region. Its descriptor is used under the lock only: it may be closed at any time."""

    name: str
    key: str
    offset: int
    byte_size: int
    file_bytes: int
    descriptor: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, offset: int, view: memoryview) -> None:
        """Raises HttpError where the region does not have so much."""
        self.check(offset, len(view))
        with self._lock:
            self._check_open()
            at = self.offset + offset
            while len(view):
                count = os.preadv(self.descriptor, [view], at)
                if not count:
                    raise HttpError(400, f"the shared memory `{self.name}` has been shortened", "register it again")
                view, at = view[count:], at + count

    def write(self, offset: int, data: memoryview) -> None:
        """Raises HttpError. A region that was shortened does not grow again by this."""
        self.check(offset, len(data))
        with self._lock:
            self._check_open()
            at = self.offset + offset
            if os.fstat(self.descriptor).st_size < at + len(data):
                raise HttpError(400, f"the shared memory `{self.name}` has been shortened", "register it again")
            while len(data):
                try:
                    count = os.pwritev(self.descriptor, [data], at)
                except OSError as error:
                    raise HttpError(400, f"the shared memory `{self.name}` cannot be written: {error.strerror}", "is /dev/shm full?") from error
                data, at = data[count:], at + count

    def close(self) -> None:
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = -1

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}

    def check(self, offset: int, size: int) -> None:
        if offset + size > self.byte_size:
            raise HttpError(400, f"the shared memory `{self.name}` has {self.byte_size} bytes; {size} at {offset} do not lie within")

    def _check_open(self) -> None:
        if self.descriptor < 0:
            raise HttpError(400, f"the shared memory `{self.name}` has been unregistered meanwhile")


class Regions:
    """All registered regions, by the user who registered them. Any thread may ask."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._regions: dict[tuple[int, str], Region] = {}

    def register(self, uid: int, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises HttpError. A name can be registered once."""
        descriptor, file_bytes = _opened(uid, key)
        region = Region(name, key, offset, byte_size, file_bytes, descriptor)
        try:
            if offset + byte_size > file_bytes:
                raise HttpError(400, f"the shared memory {key} has {file_bytes} bytes; {byte_size} at {offset} do not lie within")
            with self._lock:
                self._admit(uid, region)
        except BaseException:
            region.close()
            raise

    def unregister(self, uid: int, name: str | None) -> None:
        """That one, or all of this user. One that nobody registered is gone already."""
        with self._lock:
            names = [name] if name is not None else [known for owner, known in self._regions if owner == uid]
            gone = [self._regions.pop((uid, one)) for one in names if (uid, one) in self._regions]
        for region in gone:
            region.close()

    def get(self, uid: int, name: str) -> Region:
        """Raises HttpError."""
        with self._lock:
            region = self._regions.get((uid, name))
        if region is None:
            raise HttpError(404, f"no shared memory `{name[:80]}` is registered", "register it first; who registered it is who may use it")
        return region

    def of(self, uid: int) -> list[Region]:
        with self._lock:
            return [region for (owner, _), region in self._regions.items() if owner == uid]

    def close(self) -> None:
        with self._lock:
            regions, self._regions = list(self._regions.values()), {}
        for region in regions:
            region.close()

    def _admit(self, uid: int, region: Region) -> None:
        own = [known for (owner, _), known in self._regions.items() if owner == uid]
        if any(known.name == region.name for known in own):
            raise HttpError(409, f"the shared memory `{region.name}` is registered already", "unregister it first")
        if len(own) >= self._limits.named_regions:
            raise HttpError(429, f"{len(own)} regions of shared memory are registered, more are not taken", "unregister some")
        total = sum(known.file_bytes for known in own) + region.file_bytes
        most = self._limits.named_region_bytes
        if total > most:
            raise HttpError(413, f"the regions of shared memory would take {total} bytes, at most {most} are taken", "unregister some")
        self._regions[uid, region.name] = region


@dataclass(frozen=True)
class _Place:
    """Where an output goes."""

    region: Region
    offset: int
    byte_size: int


@dataclass(frozen=True)
class Filled:
    """A request as a worker takes it, and where the outputs go that are not sent back."""

    body: bytearray
    header_bytes: int | None
    places: dict[str, _Place]

    def deliver(self, answer: Bytes, header_bytes: int | None) -> tuple[list[Bytes], int | None]:
        """Write what belongs into regions; what is left as the answer's body, and its header_bytes. Raises HttpError before anything is written."""
        if not self.places:
            return [answer], header_bytes
        end = len(answer) if header_bytes is None else header_bytes
        document, binary = json.loads(bytes(answer[:end])), memoryview(answer)[end:]
        written: list[tuple[_Place, memoryview]] = []
        sent: list[Bytes] = []
        for output in document["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                continue
            data, binary = binary[:size], binary[size:]
            place = self.places.get(output["name"])
            if place is None:
                sent.append(data)
                continue
            if size > place.byte_size:
                raise HttpError(400, f"the output `{output['name']}` has {size} bytes, its place in shared memory {place.byte_size}")
            written.append((place, data))
            output["parameters"] = dict(zip(_PARAMETERS, (place.region.name, size, place.offset)))
        for place, data in written:
            place.region.write(place.offset, data)
        head = _padded(document)
        return [head, *sent], len(head) if sent else None


def fill(regions: Regions, uid: Callable[[], int], body: bytearray, header_bytes: int | None, take: Callable[[int], None], limit: int) -> Filled:
    """The request with its inputs out of their regions. One that names none, or that a worker will refuse anyhow, stays as it is.

    ``take`` is asked before memory is used; ``limit``: of the whole request. Raises HttpError.
    """
    end = len(body) if header_bytes is None else header_bytes
    if end > len(body) or body.find(_MARK, 0, end) < 0:
        return Filled(body, header_bytes, {})
    if end > _MAX_JSON_BYTES:
        raise HttpError(413, f"the JSON of a request with shared memory has {end} bytes, at most {_MAX_JSON_BYTES} are read")
    document = _parsed(bytes(body[:end]))
    if document is None:
        return Filled(body, header_bytes, {})
    places = {}
    for output in _entries(document, "outputs"):
        region, offset, size = _moved(regions, uid, output, {"binary_data": True})
        if region is not None:
            places[str(output.get("name"))] = _Place(region, offset, size)
            region.check(offset, size)
    parts: list[Union[memoryview, tuple[Region, int, int]]] = []
    left = memoryview(body)[end:]
    for entry in _entries(document, "inputs"):
        region, offset, size = _moved(regions, uid, entry, None)
        if region is not None:
            if "data" in entry:
                raise HttpError(400, f"`{str(entry.get('name'))[:80]}` has both data and a place in shared memory")
            region.check(offset, size)
            entry["parameters"]["binary_data_size"] = size
            parts.append((region, offset, size))
        else:
            parameters = entry.get("parameters")
            own = parameters.get("binary_data_size", 0) if isinstance(parameters, dict) else 0
            own = own if type(own) is int and 0 <= own <= len(left) else 0  # else the worker refuses it
            parts.append(left[:own])
            left = left[own:]
    parts.append(left)
    return _joined(document, parts, take, limit, places)


def _joined(document: dict[str, Any], parts: list[Any], take: Callable[[int], None], limit: int, places: dict[str, _Place]) -> Filled:
    head = _padded(document)
    size = len(head) + sum(len(part) if isinstance(part, memoryview) else part[2] for part in parts)
    if size > limit:
        raise HttpError(413, f"the request has {size} bytes with its shared memory, at most {limit} are taken")
    take(size)
    body = bytearray(size)
    body[: len(head)] = head
    at, view = len(head), memoryview(body)
    for part in parts:
        if isinstance(part, memoryview):
            view[at : at + len(part)] = part
            at += len(part)
        else:
            region, offset, count = part
            region.read(offset, view[at : at + count])
            at += count
    return Filled(body, len(head), places)


def _moved(regions: Regions, uid: Callable[[], int], entry: dict[str, Any], instead: dict[str, Any] | None) -> tuple[Region | None, int, int]:
    """Take the place in shared memory out of a tensor's parameters. No region: it has none."""
    parameters = entry.get("parameters")
    if not isinstance(parameters, dict) or "shared_memory_region" not in parameters:
        return None, 0, 0
    name, size, offset = (parameters.pop(key, default) for key, default in zip(_PARAMETERS, (None, None, 0)))
    tensor = str(entry.get("name"))[:80]
    if not isinstance(name, str):
        raise HttpError(400, f"`{tensor}`: shared_memory_region is a string")
    for value, what in ((size, "byte_size"), (offset, "offset")):
        if type(value) is not int or not 0 <= value < 1 << 48:
            raise HttpError(400, f"`{tensor}`: shared_memory_{what} is a number of bytes")
    if "binary_data_size" in parameters:
        raise HttpError(400, f"`{tensor}` has both binary_data_size and a place in shared memory")
    parameters.update(instead or {})
    return regions.get(uid(), name), offset, size


def _opened(uid: int, key: str) -> tuple[int, int]:
    """The file of that key, if it is this user's and nobody else can write it; and its size. Raises HttpError."""
    found = _KEY.fullmatch(key)
    if not found:
        raise HttpError(400, f"`{key[:80]}` is no name of shared memory: one word, perhaps after a slash")
    folder = os.open(_FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = os.open(found[1], os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except PermissionError as error:
        raise HttpError(403, f"the agent's user may not open the shared memory {key}", "run the program as the same user, or send binary tensors") from error
    except OSError as error:
        raise HttpError(400, f"there is no shared memory {key}: {error.strerror}", "create it before it is registered") from error
    finally:
        os.close(folder)
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != uid or about.st_mode & stat.S_IWOTH:
        os.close(descriptor)
        raise HttpError(403, f"the shared memory {key} is not this user's alone", "create it as the user who asks, with mode 0600")
    return descriptor, about.st_size


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """None for what is no request: the worker says why."""
    if _ENDLESS_NUMBER.search(raw):
        return None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _entries(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = document.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _padded(document: dict[str, Any]) -> bytes:
    try:
        raw = json.dumps(document, separators=(",", ":")).encode()
    except RecursionError as error:
        raise HttpError(400, "the JSON is nested too deeply") from error
    return raw + b" " * (-len(raw) % _ALIGNMENT)
