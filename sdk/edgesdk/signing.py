"""Bundles are signed with one of the user's SSH keys, as git signs commits: ``ssh-keygen`` does it, and the key stays where it is.

    use(Path("~/.ssh/id_ed25519.pub"))      # from now on `package` signs
    signer = in_use()                       # a Signer, or None
    signer.sign(manifest)                   # what `ssh-keygen -Y verify` takes
    signer.line()                           # what a device's allowed_signers gets

Which key that is lies in the user's configuration folder; nothing secret does.
"""

import base64
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.store import write_atomically
from edge_agent.trust import NAMESPACE, fingerprint, parse_signature
from edgesdk.errors import SigningError

_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_EXPIRY = re.compile(r"\d{8}(\d{4}(\d{2})?)?Z?")
_AGENT_S = 10
_ALGORITHMS = (
    *("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"),
    *("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
)


@dataclass(frozen=True, slots=True)
class Signer:
    """A public key, and the name under which devices know it. ``file``: where it lies; its private half beside it, or in ssh-agent."""

    file: Path
    kind: str
    key: bytes
    principal: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)

    @property
    def _private(self) -> Path:
        """Where the private half lies, if it has a file."""
        return self.file.with_suffix("") if self.file.suffix == ".pub" else self.file

    def line(self, *, expires: str | None = None) -> str:
        """A line of allowed_signers, good for bundles only. ``expires``: ``YYYYMMDD`` or ``YYYYMMDDHHMMSSZ``. Raises SigningError."""
        if expires is not None and not _EXPIRY.fullmatch(expires):
            raise SigningError(f"{expires!r} is no day", "it is YYYYMMDD, such as 20271231, or YYYYMMDDHHMMSSZ")
        if expires is not None and expires[:8] < f"{datetime.now(UTC):%Y%m%d}":
            raise SigningError(f"{expires} is over: nothing that this key signed would be taken", "`edgesdk key revoke` is for that")
        until = f',valid-before="{expires}"' if expires else ""
        return f'{self.principal} namespaces="{NAMESPACE}"{until} {self.kind} {base64.b64encode(self.key).decode()}'

    def sign(self, manifest: bytes) -> bytes:
        """OpenSSH's signature of these bytes. It may ask for a passphrase, on the terminal. Raises SigningError."""
        key = self._private if self._private.is_file() else self.file
        done = _keygen("-Y", "sign", "-q", "-n", NAMESPACE, "-f", str(key), message=manifest)
        if done.returncode:
            raise SigningError(
                f"the key {self.fingerprint} ({self.file}) did not sign: {_last_line(done.stderr)}",
                "is it in ssh-agent (`ssh-add`)? `edgesdk key list` shows which can sign; or package with --unsigned",
            )
        return done.stdout

    def check(self) -> None:
        """Before an hour of work: that it is there to sign. Raises SigningError."""
        if not self._private.is_file() and self.key not in {one.key for one in _of_agent()}:
            raise SigningError(f"the private key of {self.file} is neither beside it nor in ssh-agent", "`ssh-add` it, or package with --unsigned")


def in_use() -> Signer | None:
    """The key that `use` has chosen; None where none was. Raises SigningError where it can no longer be read."""
    try:
        said = json.loads(_configuration().read_bytes())
        path, principal = Path(said["key"]), str(said["principal"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SigningError(f"`{_configuration()}` cannot be read", "`edgesdk key use` writes it anew") from error
    return read(path, principal)


def use(path: Path, principal: str | None = None) -> Signer:
    """Sign with this key from now on. Raises SigningError, and then nothing has changed."""
    signer = read(path.expanduser().absolute(), principal)
    signer.check()
    target = _configuration()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps({"key": str(signer.file), "principal": signer.principal}, indent=2).encode(), 0o600)
    return signer


def off() -> None:
    """No longer sign."""
    _configuration().unlink(missing_ok=True)


def read(path: Path, principal: str | None = None) -> Signer:
    """The public key in a file, or beside a private one. Raises SigningError."""
    public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
    try:
        text = public.read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError as error:
        raise SigningError(
            f"there is no public key at `{public}`: {error.strerror}", "`ssh-keygen -t ed25519` makes one; `edgesdk key list` shows yours"
        ) from error
    return _parsed(text.strip(), public, principal)


def found() -> list[Signer]:
    """The user's keys: those in ~/.ssh, then those that only ssh-agent has."""
    there = []
    for path in sorted(Path("~/.ssh").expanduser().glob("*.pub")):
        try:
            there.append(read(path))
        except SigningError:
            continue  # a certificate, a note: nothing to sign with
    return there + [one for one in _of_agent() if one.key not in {other.key for other in there}]


def verified(manifest: bytes, signature: bytes) -> str:
    """The fingerprint of the key that signed these bytes; whether anybody trusts it is not asked. Raises SigningError."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        file = Path(folder, "signature")
        file.write_bytes(signature)
        done = _keygen("-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(file), message=manifest)
    try:
        key, _ = parse_signature(signature)
    except ValueError as error:
        raise SigningError(f"the bundle's signature is none: {error}", "copy or package the bundle again") from error
    if done.returncode:
        raise SigningError("the bundle was changed after it was signed, or its signature is of another", "copy or package the bundle again")
    return fingerprint(key)


def _of_agent() -> Iterator[Signer]:
    """ssh-agent's keys; one that is there alone can sign once `ssh-add -L` has written its public half to a file."""
    program = shutil.which("ssh-add")
    if program is None or not os.environ.get("SSH_AUTH_SOCK"):
        return
    try:
        done = subprocess.run([program, "-L"], capture_output=True, timeout=_AGENT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.decode(errors="replace").splitlines() if not done.returncode else []:
        try:
            yield _parsed(line, Path("ssh-agent"), None)
        except SigningError:
            continue


def _parsed(text: str, file: Path, principal: str | None) -> Signer:
    kind, _, rest = text.partition(" ")
    encoded, _, comment = rest.partition(" ")
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if kind not in _ALGORITHMS or not key:
        raise SigningError(f"`{file}` holds no public SSH key", "`edgesdk key list` shows yours")
    name = principal or (comment if _PRINCIPAL.fullmatch(comment) else f"{getpass.getuser()}@{socket.gethostname()}")
    if not _PRINCIPAL.fullmatch(name):
        raise SigningError(f"{name!r} is no name for a signer", "such as ana@example.org: letters, digits and . _ @ + -")
    return Signer(file, kind, key, name)


def _configuration() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config", "edgesdk", "signing.json").expanduser()


def _keygen(*arguments: str, message: bytes) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise SigningError("there is no ssh-keygen here, which signs and checks", "install OpenSSH's client; or package with --unsigned")
    return subprocess.run([program, *arguments], input=message, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False)


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"
