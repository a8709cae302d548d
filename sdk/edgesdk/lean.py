"""What of a wheel runs on a device, as an archive of the same name: no tests, no headers, nothing that trains, converts or builds.

    archive(wheel, "cp311")        # once for each wheel, then from the cache; 29 MB instead of 45 for numpy and onnxruntime on x86-64

What is kept is kept as it is compressed in the wheel. Where the device's Python is this one's, its modules come compiled, so that no board spends its first
seconds on that; by hash and unchecked (PEP 552), since the archive's digest vouches for both. Licences stay.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import marshal
import re
import struct
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edge_agent.bundle import digest_of
from edge_agent.store import write_atomically
from edgesdk.agent_package import digest_of_wheel
from edgesdk.cache import cache_folder
from edgesdk.errors import DeviceError

FORMAT = 1  # of what is left out: another number, other archives

_UNUSED = re.compile(
    r"""(^|/)tests?/ | \.(pyi|pxd|pyx|h|hpp|a|lib|c|cpp)$ | /py\.typed$ | (^|/)conftest\.py$
    | ^numpy/(f2py|distutils|_pyinstaller|_core/include|core/include|doc)/ | \.dist-info/RECORD$
    | ^onnxruntime/(transformers|quantization|tools|datasets)/ | \.data/scripts/""",
    re.VERBOSE,
)
# For programs in C: Python's own extension has all of it inside. Kept where one of the libraries beside it names it.
_LIBRARY = re.compile(r"onnxruntime/capi/libonnxruntime\.so[.0-9]*")
_MOST_BYTES = 0xFFFFFFFF  # beyond, a zip archive needs other headers
_UNCHECKED_HASH = 1
_building = threading.Lock()


@dataclass(frozen=True)
class _Member:
    name: str
    method: int
    crc: int
    size: int
    data: bytes  # as it is compressed
    mode: int


def archive(wheel: Path, abi: str) -> Path:
    """The lean one, for a Python of that ABI. Raises DeviceError where the wheel is none."""
    compiled = abi == own_abi()
    with _building:
        folder = cache_folder() / "lean" / f"{digest_of_wheel(wheel)[7:23]}.{FORMAT}{'.' + abi if compiled else ''}"
        target, pin = folder / wheel.name, folder / f"{wheel.name}.sha256"
        if pin.is_file() and target.is_file() and pin.read_text(encoding="ascii").strip() == digest_of_wheel(target):
            return target
        try:
            data = made(wheel, compiled=compiled)
        except (zipfile.BadZipFile, zlib.error, OSError) as error:
            raise DeviceError(f"`{wheel.name}` is no wheel that can be read: {error}", f"remove {wheel}: it is fetched again, or copy it anew") from error
        if data is None:
            return wheel
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
        write_atomically(pin, digest_of(data).encode())
        return target


@functools.cache
def compiled(data: bytes) -> bytes:
    """The modules of an archive, compiled for this Python: another archive, to be unpacked over it."""
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        found = [_compiled(name, opened.read(name)) for name in opened.namelist() if name.endswith(".py")]
    return _zipped([member for member in found if member is not None])


def own_abi() -> str:
    """As the probe names it, of what compiles here."""
    return f"cp{sys.version_info[0]}{sys.version_info[1]}" if sys.implementation.name == "cpython" else ""


def made(wheel: Path, *, compiled: bool) -> bytes | None:
    """The lean archive. None for a wheel too large for it. Raises zipfile.BadZipFile, OSError."""
    with zipfile.ZipFile(wheel) as opened, wheel.open("rb") as raw:
        infos = [info for info in opened.infolist() if not info.is_dir()]
        if sum(info.compress_size for info in infos) * 2 > _MOST_BYTES or any(info.file_size >= _MOST_BYTES for info in infos):
            return None
        kept = [info for info in infos if not _UNUSED.search(info.filename)]
        unneeded = _standing_alone(opened, kept)
        members: list[_Member | None] = [_as_it_is(raw, info) for info in kept if info.filename not in unneeded]
        if compiled:
            members += [_compiled(info.filename, opened.read(info)) for info in kept if info.filename.endswith(".py")]
    return _zipped([member for member in members if member is not None])


def _standing_alone(opened: zipfile.ZipFile, kept: Collection[zipfile.ZipInfo]) -> set[str]:
    """onnxruntime's library for programs in C, if nothing beside it wants it."""
    found = {info.filename for info in kept if _LIBRARY.fullmatch(info.filename)}
    others = [info for info in kept if info.filename.startswith("onnxruntime/capi/") and info.filename.endswith(".so") and info.filename not in found]
    if not any(re.search(r"/onnxruntime_pybind11_state\.[^/]*so$", info.filename) for info in others):
        return set()
    named = any(re.search(rb"\0libonnxruntime\.so[.0-9]*\0", opened.read(info)) for info in others) if found else True
    return set() if named else found


def _as_it_is(raw: io.BufferedReader, info: zipfile.ZipInfo) -> _Member:
    raw.seek(info.header_offset)
    header = raw.read(30)
    if len(header) != 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"{info.filename[:80]} has no header")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    raw.seek(name_length + extra_length, io.SEEK_CUR)
    data = raw.read(info.compress_size)
    if len(data) != info.compress_size:
        raise zipfile.BadZipFile(f"{info.filename[:80]} is cut short")
    return _Member(info.filename, info.compress_type, info.CRC, info.file_size, data, 0o644)


def _compiled(name: str, source: bytes) -> _Member | None:
    """What Python would write beside it; None for what it does not compile."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    content = importlib.util.MAGIC_NUMBER + struct.pack("<L", _UNCHECKED_HASH) + importlib.util.source_hash(source) + marshal.dumps(code)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    folder, _, file = name.rpartition("/")
    path = f"{folder}/__pycache__/{file.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
    return _Member(path.lstrip("/"), zipfile.ZIP_DEFLATED, zlib.crc32(content), len(content), packer.compress(content) + packer.flush(), 0o644)


def _zipped(members: Collection[_Member]) -> bytes:
    """Plain headers, no times."""
    body, directory = bytearray(), bytearray()
    for member in members:
        name = member.name.encode()
        shared = struct.pack("<HHHHHLLLHH", 20, 0x800, member.method, 0, 0x21, member.crc, len(member.data), member.size, len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 3 << 8 | 20) + shared + struct.pack("<HHHLL", 0, 0, 0, member.mode << 16, len(body)) + name
        body += b"PK\3\4" + shared + name + member.data
    end = struct.pack("<HHHHLLH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return bytes(body + directory + b"PK\5\6" + end)
