"""`known_hosts`, read line by line: which keys a host may show.

    read([Path("~/.ssh/known_hosts").expanduser()], "[192.168.1.20]:2222").judge(key)

paramiko reads such a file as a whole and refuses all of it for one line that it does not know, such as `@cert-authority`.
Here a line that makes no sense is named where a key is missing, and the others count.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["known", "unknown", "changed", "revoked"]

_MOST_NAMED = 3  # lines that are passed over, in one message


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key: its type's name and its bytes as they travel."""

    type: str
    data: bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.data).digest()).decode().rstrip("=")

    @property
    def text(self) -> str:
        """As it stands in known_hosts."""
        return f"{self.type} {base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Known:
    """What the files say of one host. ``passed_over``: lines that might have said more, and why they do not."""

    accepted: tuple[HostKey, ...]
    revoked: tuple[HostKey, ...]
    passed_over: tuple[str, ...] = ()

    def judge(self, key: HostKey) -> Verdict:
        """A host that is known by other keys only has *changed*: we ask for the known types first."""
        if key in self.revoked:
            return "revoked"
        if key in self.accepted:
            return "known"
        return "changed" if self.accepted else "unknown"


def name_of(hostname: str, port: int) -> str:
    """How known_hosts calls a host at a port.

    >>> name_of("pi", 22), name_of("pi", 2222)
    ('pi', '[pi]:2222')
    """
    return hostname if port == 22 else f"[{hostname}]:{port}"


def read(files: Iterable[Path], name: str) -> Known:
    """The keys of ``name``. A file that is missing or cannot be read says nothing."""
    accepted: list[HostKey] = []
    revoked: list[HostKey] = []
    passed_over: list[str] = []
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if not words or words[0].startswith("#"):
                continue
            key = _key(words)
            if key is None or marker not in ("", "@revoked", "@cert-authority"):
                passed_over.append(f"{file}:{number} cannot be read")
            elif _matches(words[0], name.lower()):
                if marker == "@cert-authority":
                    passed_over.append(f"{file}:{number} names an authority: certificates of hosts are not read here")
                else:
                    (revoked if marker == "@revoked" else accepted).append(key)
    return Known(tuple(accepted), tuple(revoked), tuple(passed_over[:_MOST_NAMED]))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _key(words: list[str]) -> HostKey | None:
    try:
        return HostKey(words[1], base64.b64decode(words[2], validate=True))
    except (IndexError, binascii.Error):
        return None


def _matches(patterns: str, name: str) -> bool:
    """Comma-separated patterns; one that begins with `!` and matches excludes the host."""
    if patterns.startswith("|1|"):
        return _matches_hash(patterns, name)
    found = False
    for pattern in patterns.lower().split(","):
        # Only * and ? are special here, and [ belongs to a name with a port.
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _matches_hash(entry: str, name: str) -> bool:
    try:
        _, _, salt, digest = entry.split("|")
        expected = base64.b64decode(digest, validate=True)
        return hmac.compare_digest(hmac.digest(base64.b64decode(salt, validate=True), name.encode(), "sha1"), expected)
    except ValueError:
        return False
