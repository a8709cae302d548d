"""Where a host is and how to get in: what `ssh` would use for the same name.

    resolve("pi").hostname

`ssh -G` answers that: it knows Include, Match and ProxyJump. Where there is no `ssh`, paramiko's parser reads the file, which
does less, and we say so.
"""

from __future__ import annotations

import getpass
import logging
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgesdk.errors import ConnectionFailed

CONNECT_TIMEOUT_S = 10.0

_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.+-]*)@)?"
    r"(?:(?P<host>[A-Za-z0-9_.][A-Za-z0-9_.+-]*)|\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*))"
    r"(?(bare)|(?::(?P<port>[0-9]{1,5}))?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that is needed to connect. ``host`` is what the person typed."""

    host: str
    alias: str  # without user and port, as `ssh` calls the original name
    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    identity_agent: str  # a socket's path; empty: SSH_AUTH_SOCK's; "none"
    proxy_jump: tuple[str, ...]
    proxy_command: str
    known_hosts: tuple[Path, ...]
    host_key_alias: str
    timeout_s: float
    config: Path | None

    @property
    def address(self) -> str:
        """For messages: what was typed, and where that led."""
        where = f"{self.hostname}:{self.port}"
        return f"`{self.host}`" if where in {f"{self.alias}:22", self.host.rpartition("@")[2]} else f"`{self.host}` ({where})"

    @property
    def ssh_arguments(self) -> str:
        """What to write behind `ssh` to reach the same host."""
        parts = (f"-F {shlex.quote(str(self.config))}" if self.config else "", f"-p {self.port}" if self.host.endswith(f":{self.port}") else "")
        user = self.host.rpartition("@")[0]
        return " ".join([part for part in parts if part] + [f"{user}@{self.alias}" if user else self.alias])


def resolve(host: str, config: Path | None = None) -> Settings:
    """The settings for what a person typed. Raises ConnectionFailed for what is no host."""
    target = _TARGET.fullmatch(host)
    port = int(target["port"]) if target and target["port"] else None
    if not target or (port is not None and not 0 < port < 65536):
        raise ConnectionFailed(f"{host!r} is no host", "give a name of ~/.ssh/config, user@host[:port], or `local`")
    alias = target["host"] or target["bracketed"] or target["bare"]
    found = _from_ssh(alias, target["user"], port, config) if shutil.which("ssh") else _from_paramiko(alias, target["user"], port, config)
    return _parsed(host, alias, found, config)


def _from_ssh(alias: str, user: str | None, port: int | None, config: Path | None) -> dict[str, list[str]]:
    """`ssh -G`: it prints what it would use and connects to nothing."""
    argv = ["ssh", "-G", *(["-F", str(config)] if config else []), *(["-l", user] if user else []), *(["-p", str(port)] if port else []), "--", alias]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=CONNECT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConnectionFailed(f"`ssh -G {alias}` does not answer", "is there a `Match exec` in ~/.ssh/config that waits?") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConnectionFailed(f"ssh cannot read its settings for `{alias}`: {reason}", f"mend that file: `{shlex.join(argv)}` reads it")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def _from_paramiko(alias: str, user: str | None, port: int | None, config: Path | None) -> dict[str, list[str]]:
    import paramiko

    path = config or Path("~/.ssh/config").expanduser()
    if not path.is_file():
        values: Mapping[str, object] = {}
    else:
        logging.getLogger(__name__).warning("there is no `ssh` here, so %s is read without Include, and Match only in part", path)
        try:
            values = paramiko.SSHConfig.from_path(str(path)).lookup(alias)
        except (paramiko.SSHException, OSError) as error:
            raise ConnectionFailed(f"{path} cannot be read: {error}", "install openssh-client, or correct the file") from error
    found = {key: [str(item) for item in value] if isinstance(value, list) else [str(value)] for key, value in values.items()}
    if user:
        found["user"] = [user]
    if port:
        found["port"] = [str(port)]
    return found


def _parsed(host: str, alias: str, found: Mapping[str, list[str]], config: Path | None) -> Settings:
    def first(key: str, default: str = "") -> str:
        value = found.get(key, [default])[0]
        return "" if value == "none" and key != "identityagent" else value

    hostname, user, port = first("hostname", alias), first("user", getpass.getuser()), first("port", "22")
    tokens = {"%": "%", "h": hostname, "n": alias, "p": port, "r": user, "u": getpass.getuser(), "d": str(Path.home()), "L": socket.gethostname().split(".")[0]}

    def path(text: str) -> Path:
        return Path(_expanded(text, tokens)).expanduser()

    known_hosts = " ".join((first("userknownhostsfile", "~/.ssh/known_hosts"), first("globalknownhostsfile", "/etc/ssh/ssh_known_hosts")))
    timeout = first("connecttimeout")
    jump = tuple(hop.strip() for hop in first("proxyjump").split(",") if hop.strip())
    if jump and re.fullmatch(rf"(?:ssh://)?(?:.*@)?{re.escape(alias)}(?::[0-9]+)?", jump[-1]):
        jump = ()  # `Host *` with `ProxyJump door` means everything but the door; ssh reads it so, too
    return Settings(
        host=host,
        alias=alias,
        hostname=hostname,
        port=int(port),
        user=user,
        identity_files=tuple(path(file) for file in found.get("identityfile", ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"])),
        identities_only=first("identitiesonly") == "yes",
        identity_agent=_expanded(first("identityagent"), tokens).replace("SSH_AUTH_SOCK", ""),
        proxy_jump=jump,
        proxy_command=_expanded(first("proxycommand"), tokens),
        known_hosts=tuple(path(file) for file in known_hosts.split()),
        host_key_alias=first("hostkeyalias"),
        timeout_s=float(timeout) if timeout.isdigit() and int(timeout) else CONNECT_TIMEOUT_S,
        config=config,
    )


def _expanded(text: str, tokens: Mapping[str, str]) -> str:
    """`%h` and the like; a token that we do not know stays as it is."""
    return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)
