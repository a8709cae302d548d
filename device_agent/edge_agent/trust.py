"""Who may put a bundle on this device: signatures in OpenSSH's format, judged by ``ssh-keygen`` against the device's own list.

    trust = Trust(home)
    trust.check(manifest, signature, unsigned=False)     # who signed it; raises Untrusted
    trust.add("ana@example.org namespaces=\\"bundle@edgesdk\\" ssh-ed25519 AAAA…")

Signed are the manifest's bytes, so that the same is done by hand, in a bundle's folder, with what is in trust/:

    ssh-keygen -Y verify -f allowed_signers -I ana@example.org -n bundle@edgesdk -s SIGNATURE < blobs/sha256/DIGEST

A device without a list takes what it is given. The verdict is ``ssh-keygen``'s alone; why it is no, it does not tell, so the sentence for a
person comes from reading the list and the signature ourselves (ssh-keygen(1), ALLOWED SIGNERS; OpenSSH's PROTOCOL.sshsig). Standard library only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

from edge_agent.errors import AgentError
from edge_agent.store import write_atomically

NAMESPACE = "bundle@edgesdk"
MAX_SIGNATURE_BYTES = 1 << 14
MAX_LIST_BYTES = 1 << 20

_BUILT = 1764547200  # 2025-12-01: a device whose clock says less has no clock
_KEYGEN_S = 20
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_KEY_TYPE = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+")


class Untrusted(AgentError):
    """Nobody whom this device trusts signed this."""


@dataclass(frozen=True)
class Signer:
    """A line of allowed_signers. Times in seconds since 1970; ``namespaces``: patterns, none is any."""

    principals: str
    key: bytes  # as the line has it, out of base64
    kind: str
    namespaces: tuple[str, ...] = ()
    authority: bool = False
    after: Optional[float] = None
    before: Optional[float] = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)


class Trust:
    """The lists of one device: ``trust/allowed_signers`` and ``trust/revoked_keys`` in the agent's folder."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "trust"
        self.allowed = self.folder / "allowed_signers"
        self.revoked = self.folder / "revoked_keys"

    @property
    def demanded(self) -> bool:
        """Whether a bundle has to be signed: somebody has said whom this device trusts."""
        return self.allowed.is_file()

    def to_dict(self) -> dict[str, object]:
        """Fit for JSON. Raises Untrusted where a list cannot be read."""
        revoked = self._revoked()
        signers = [
            {"principals": one.principals, "kind": one.kind, "fingerprint": one.fingerprint, "expires": _day(one.before), "revoked": one.key in revoked}
            for one in self.signers()
        ]
        return {"demanded": self.demanded, "ssh_keygen": shutil.which("ssh-keygen"), "signers": signers}

    def signers(self) -> list[Signer]:
        """Of allowed_signers, in its order. Raises Untrusted at a line that is none: one that we cannot read may be the one that counts."""
        return [_parsed_signer(line, number) for number, line in _lines(self.allowed)]

    def check(self, manifest: bytes, signature: bytes | None, *, unsigned: bool) -> str | None:
        """Who signed a manifest, by the principal's name; None where nobody asks, or ``unsigned`` bundles are taken. Raises Untrusted."""
        if not self.demanded:
            return None
        if signature is None:
            if unsigned:
                return None
            raise Untrusted(
                "the bundle is not signed, and this device takes only what somebody signed whom it trusts",
                "`edgesdk key use`, then package it again; or allow unsigned bundles in the device's config.json",
            )
        now = self._now()
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise self._reason(signature, now)
        principal = self._verified(manifest, signature, now)
        if principal is None:
            raise self._reason(signature, now)
        write_atomically(self.folder / "latest.json", json.dumps({"latest": int(now)}).encode())
        return principal

    def add(self, line: str) -> Signer:
        """Trust one more key. A line for a key that is there is replaced; one that was revoked stays so. Raises Untrusted, OSError."""
        new = _parsed_signer(line.strip(), 1)
        if new.key in self._revoked():
            raise Untrusted(f"the key {new.fingerprint} was revoked on this device", "use another key")
        kept = [old for number, old in _lines(self.allowed) if _parsed_signer(old, number).key != new.key]
        self._write(self.allowed, [*kept, line.strip()])
        return new

    def revoke(self, print_of_key: str) -> Signer:
        """No longer trust the key of that fingerprint, ``SHA256:…``, whatever it signed and when. Raises Untrusted, OSError."""
        for signer in self.signers():
            if signer.fingerprint == print_of_key:
                if signer.key not in self._revoked():
                    public = f"{signer.kind} {base64.b64encode(signer.key).decode()}"
                    self._write(self.revoked, [*(line for _, line in _lines(self.revoked)), public])
                return signer
        raise Untrusted(f"this device trusts no key {print_of_key[:80]}", "`edgesdk key trusted HOST` lists those that it trusts")

    def _write(self, path: Path, lines: list[str]) -> None:
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        write_atomically(path, ("\n".join(lines) + "\n").encode())

    def _revoked(self) -> set[bytes]:
        return {_parsed_key(line.split()[:2], f"line {number} of revoked_keys")[1] for number, line in _lines(self.revoked)}

    def _now(self) -> float:
        """The latest of the clock, this program's age and the last bundle accepted: a clock that was set back makes no expired key good."""
        try:
            last = float(json.loads((self.folder / "latest.json").read_bytes())["latest"])
        except (OSError, ValueError, KeyError, TypeError):
            last = 0.0
        return max(time.time(), _BUILT, last)

    def _verified(self, manifest: bytes, signature: bytes, now: float) -> str | None:
        """The principal that ssh-keygen finds and confirms."""
        keygen = shutil.which("ssh-keygen")
        if keygen is None:
            raise Untrusted(
                "this device has no ssh-keygen, which checks signatures", "install openssh-client there, or allow unsigned bundles in its config.json"
            )
        moment = "-Overify-time=" + datetime.fromtimestamp(now, timezone.utc).strftime("%Y%m%d%H%M%SZ")
        with tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
            file = Path(folder, "signature")
            file.write_bytes(signature)
            common = ["-f", str(self.allowed), "-s", str(file), moment]
            found = _run([keygen, "-Y", "find-principals", *common], b"")
            revoked = ["-r", str(self.revoked)] if self.revoked.exists() else []
            for principal in found.stdout.decode(errors="replace").splitlines() if not found.returncode else []:
                asked = [keygen, "-Y", "verify", "-I", principal, "-n", NAMESPACE, *revoked, *common]
                if not _run(asked, manifest).returncode:
                    return principal
        return None

    def _reason(self, signature: bytes, now: float) -> Untrusted:
        """ssh-keygen said no. Which no it was."""
        try:
            key, namespace = parse_signature(signature)
        except ValueError as error:
            return Untrusted(f"the bundle's signature is none: {error}", "copy or package the bundle again")
        mine = fingerprint(key)
        if key in self._revoked():
            return Untrusted(f"the bundle is signed with the key {mine}, which was revoked on this device", "sign it with another key: `edgesdk key use`")
        signers = [one for one in self.signers() if one.key == key]
        if not signers:
            return Untrusted(f"the bundle is signed with the key {mine}, which this device does not know", "`edgesdk key trust HOST` makes it known there")
        who = signers[0]
        if namespace != NAMESPACE:
            return Untrusted(f"the signature was made for {namespace[:80]!r}, not for {NAMESPACE!r}", "package the bundle again")
        if who.before is not None and now >= who.before:
            return Untrusted(f"the key {mine} of {who.principals} expired on {_day(who.before)}", "sign the bundle with another key: `edgesdk key use`")
        if who.after is not None and now < who.after:
            return Untrusted(f"the key {mine} of {who.principals} holds only from {_day(who.after)} on", "is the device's clock right?")
        if who.namespaces and NAMESPACE not in who.namespaces:
            return Untrusted(f"the key {mine} of {who.principals} may sign for {', '.join(who.namespaces)} only", f"name {NAMESPACE} in its line there")
        return Untrusted("the bundle's signature is of something else: the bundle was changed after it was signed", "copy or package the bundle again")


def parse_signature(armoured: bytes) -> tuple[bytes, str]:
    """The public key's blob and the namespace of an ``SSH SIGNATURE``. Raises ValueError that says what is wrong with it."""
    if len(armoured) > MAX_SIGNATURE_BYTES:
        raise ValueError(f"it has more than {MAX_SIGNATURE_BYTES} bytes")
    text = armoured.decode("ascii", "replace").strip()
    if not (text.startswith(_BEGIN) and text.endswith(_END)):
        raise ValueError("it has no SSH SIGNATURE's first and last line")
    try:
        blob = base64.b64decode("".join(text[len(_BEGIN) : -len(_END)].split()), validate=True)
    except binascii.Error as error:
        raise ValueError("it is no base64") from error
    if blob[:6] != b"SSHSIG" or blob[6:10] != struct.pack(">I", 1):
        raise ValueError("it is no SSHSIG of version 1")
    key, rest = _string(blob[10:])
    namespace, _ = _string(rest)
    return key, namespace.decode("utf-8", "replace")


def fingerprint(key: bytes) -> str:
    """As OpenSSH prints it: ``SHA256:`` and base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def _parsed_signer(line: str, number: int) -> Signer:
    """``principals [options] keytype base64 [comment]``."""
    what = f"line {number} of allowed_signers"
    try:
        words = shlex.split(line, posix=False)
    except ValueError as error:
        raise Untrusted(f"{what} cannot be read: {error}", "correct it on the device") from error
    options = words[1:2] if len(words) > 1 and not _KEY_TYPE.fullmatch(words[1]) else []
    if not words:
        raise Untrusted(f"{what} is empty", "it is: PRINCIPAL [OPTIONS] KEYTYPE KEY")
    kind, key = _parsed_key(words[1 + len(options) : 3 + len(options)], what)
    said = dict(_options(options[0])) if options else {}
    unknown = set(said) - {"cert-authority", "namespaces", "valid-after", "valid-before"}
    if unknown:
        raise Untrusted(f"{what} has the option {min(unknown)[:40]!r}, which is none", "see ssh-keygen(1), ALLOWED SIGNERS")
    names = tuple(name for name in said.get("namespaces", "").split(",") if name)
    times = [_moment(said[option], what) if option in said else None for option in ("valid-after", "valid-before")]
    return Signer(words[0].strip('"'), key, kind, names, "cert-authority" in said, *times)


def _parsed_key(words: list[str], what: str) -> tuple[str, bytes]:
    try:
        kind, encoded = words
        key = base64.b64decode(encoded, validate=True)
        if not _KEY_TYPE.fullmatch(kind) or _string(key)[0].decode("ascii", "replace") != kind:
            raise ValueError
    except (ValueError, binascii.Error) as error:
        raise Untrusted(f"{what} holds no public key", "it is: PRINCIPAL [OPTIONS] KEYTYPE KEY, as `edgesdk key show` prints it") from error
    return kind, key


def _options(text: str) -> Iterator[tuple[str, str]]:
    for name, quoted in re.findall(r'([a-z-]+)(?:="([^"]*)")?(?:,|$)', text, re.IGNORECASE):
        yield name.lower(), quoted


def _moment(text: str, what: str) -> float:
    """``YYYYMMDD[HHMM[SS]]``, in UTC with a Z behind it, else in the device's own time."""
    digits, utc = text.rstrip("Zz"), text[-1:] in ("Z", "z")
    form = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits), "")
    try:
        found = datetime.strptime(digits, form)
    except ValueError as error:
        raise Untrusted(f"{what} has no time where it says {text[:40]!r}", "it is YYYYMMDD, or YYYYMMDDHHMMSSZ") from error
    return (found.replace(tzinfo=timezone.utc) if utc else found).timestamp()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """What is neither empty nor a comment, by its number. Raises Untrusted."""
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_LIST_BYTES + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Untrusted(f"{path.name} cannot be read: {error.strerror}", "may the agent read it?") from error
    if len(text) > MAX_LIST_BYTES:
        raise Untrusted(f"{path.name} has more than {MAX_LIST_BYTES} bytes", "keep only those who sign for this device")
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _string(blob: bytes) -> tuple[bytes, bytes]:
    """An SSH string, and what comes behind it. Raises ValueError."""
    if len(blob) < 4 or len(blob) < 4 + struct.unpack(">I", blob[:4])[0]:
        raise ValueError("it ends in the middle")
    end = 4 + struct.unpack(">I", blob[:4])[0]
    return blob[4:end], blob[end:]


def _run(command: list[str], message: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=message, capture_output=True, timeout=_KEYGEN_S, env={**os.environ, "LC_ALL": "C"}, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Untrusted(f"ssh-keygen did not check the signature: {error}", "does it run on the device?") from error


def _day(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
