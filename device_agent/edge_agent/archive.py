"""A bundle's folder as one `.tar`: written the same way each time, and read without believing it. Standard library only.

write(Path("ocr.tar"), folder)
members(Path("ocr.tar"))["index.json"]      # the file, and where in it the bytes lie
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from edge_agent.bundle import BundleError

_MAX_HEADER_BYTES = 1 << 16


def write(archive: Path, folder: Path) -> None:
    """One after the other by name, no owner, no time: the same content gives the same bytes."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                info = tarfile.TarInfo(str(file.relative_to(folder)))
                info.size, info.mode = file.stat().st_size, 0o644
                with file.open("rb") as stream:
                    tar.addfile(info, stream)


class _Member(tarfile.TarInfo):
    """Looked at before tarfile reads what belongs to it: of a header it would read any number of bytes, and follow a size below zero in a circle."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)
        if self.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and not extended:
            raise BundleError(f"a bundle's archive has a member that is neither file nor folder: {self.name[:80]!r}", "do not use this file")
        if self.size < 0 or (extended and self.size > _MAX_HEADER_BYTES):
            raise BundleError(f"a bundle's archive has a member of {self.size} bytes: {self.name[:80]!r}", "do not use this file")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]  # tarfile's own name for it since Python 2.5
        return member


def members(path: Path) -> dict[str, tuple[Path, int, int]]:
    """Where each plain member's bytes lie. Links, devices, doubles and paths that lead out are refused, not skipped."""
    found: dict[str, tuple[Path, int, int]] = {}
    try:
        with tarfile.open(path, "r:", tarinfo=_Member) as tar:
            for count, info in enumerate(tar):
                if count >= 10_000:
                    raise BundleError(f"`{path.name}` has more than 10,000 members", "do not use this file")
                name = info.name[2:] if info.name.startswith("./") else info.name
                if info.isdir():
                    continue
                plain = info.isreg() and not info.issparse() and info.size >= 0
                if not plain or name in found or not re.fullmatch(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}", name):
                    raise BundleError(f"`{path.name}` has a member that no bundle has: {name[:80]!r}", "do not use this file")
                found[name] = (path, info.offset_data, info.size)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise BundleError(f"`{path.name}` is neither a bundle's folder nor an uncompressed tar of one", "`edgesdk package -o NAME.tar` writes one") from error
    return found
