"""systemd's units for the agent: text, and putting it where systemd reads it.

    units = plan(home, user=None, providers=["CPUExecutionProvider"])      # a user's own
    units = plan(home, user="edge-agent", providers=...)                   # the system's, run as that user
    install(units)

The socket is systemd's, so that no request is lost while the agent is started or replaced. What a processor alone does not need is taken
away from the service; a GPU's or an FPGA's driver needs its devices, and memory that is written and then run. Standard library only.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from edge_agent.errors import AgentError
from edge_agent.home import ENVIRONMENT, socket_path

NAME = "edge-agent"
_PROCESSOR_ALONE = {"CPUExecutionProvider", "XnnpackExecutionProvider", "AzureExecutionProvider"}
_PRIVATE = ("/home/", "/root/", "/run/user/")  # what ProtectHome= hides


class ServiceError(AgentError):
    """systemd is not there, or does not take the units."""


@dataclass(frozen=True)
class Units:
    """``folder``: where systemd looks for them."""

    folder: Path
    service: str
    socket: str
    system: bool


# Seccomp and process attributes: these hold in a user's units too.
_FOR_ALL = """\
NoNewPrivileges=yes
UMask=0027
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# onnxruntime binds its threads to cores when a model is loaded.
SystemCallFilter=sched_setaffinity
"""

# Mounts and capabilities: of system units only; a user's would need a name space of users. /proc stays readable: device facts come from it.
_FOR_SYSTEM = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={protect_home}
ReadWritePaths={home}
PrivateTmp=yes
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
KeyringMode=private
IPAddressDeny=any
IPAddressAllow=localhost
"""

# Drivers of GPUs and FPGAs need what these take away. ProtectClock= would close all devices but a few.
_FOR_PROCESSORS = """\
MemoryDenyWriteExecute=yes
"""
_FOR_PROCESSORS_OF_A_SYSTEM = """\
PrivateDevices=yes
ProtectClock=yes
DevicePolicy=closed
"""

_SERVICE = """\
# Written by `edge-agent service`; `edge-agent teardown` removes it.
[Unit]
Description=edge-agent: runs models for local programs
Requires={name}.socket
After={name}.socket
# A crash loop slows down by itself: never give up.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/bin/sh {launcher} serve
Environment={environment}
{identity}Restart=on-failure
RestartSec=1
TimeoutStopSec=60
WatchdogSec=60
# Where memory runs out the kernel ends one model's worker, and the agent starts it again.
OOMPolicy=continue
KillMode=mixed
{hardening}
[Install]
Also={name}.socket
WantedBy={target}
"""

_SOCKET = """\
# Written by `edge-agent service`; `edge-agent teardown` removes it.
# EDGE_AGENT_HOME={home}
[Unit]
Description=edge-agent: where local programs ask

[Socket]
ListenStream={path}
SocketMode=0660
{owner}RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def plan(home: Path, *, user: Optional[str], group: Optional[str] = None, providers: Sequence[str]) -> Units:
    """For a user's own systemd, or with ``user`` for the system's. Raises ServiceError."""
    launcher = home / "bin" / "edge-agent"
    if not launcher.is_file():
        raise ServiceError(f"there is no {launcher}, which a service would start", "set the device up first: `edgesdk setup HOST`")
    if any(character in str(home) for character in "\n\r"):
        raise ServiceError("the agent's folder has a line break in its name", "set EDGE_AGENT_HOME to another one")
    hardening = _FOR_ALL
    if user is not None:
        # ReadWritePaths= opens what lies below a read-only home; below a hidden one there is nothing to open.
        protect_home = "read-only" if str(home).startswith(_PRIVATE) else "yes"
        hardening += _FOR_SYSTEM.format(protect_home=protect_home, home=_quoted(str(home)))
    if set(providers) <= _PROCESSOR_ALONE:
        hardening += _FOR_PROCESSORS + (_FOR_PROCESSORS_OF_A_SYSTEM if user is not None else "")
    identity = "" if user is None else f"User={user}\n" + (f"Group={group}\n" if group else "")
    owner = "" if user is None else f"SocketUser={user}\n" + (f"SocketGroup={group}\n" if group else "") + "DirectoryMode=0755\n"
    return Units(
        Path("/etc/systemd/system") if user is not None else Path("~/.config/systemd/user").expanduser(),
        _SERVICE.format(
            name=NAME,
            launcher=_quoted(str(launcher)),
            environment=" ".join(_quoted(f"{key}={value}") for key, value in {"EDGE_AGENT_HOME": home, **ENVIRONMENT}.items()),
            identity=identity,
            hardening=hardening,
            target="multi-user.target" if user is not None else "default.target",
        ),
        _SOCKET.format(home=home, path=str(socket_path(home)).replace("%", "%%"), owner=owner),
        user is not None,
    )


def install(units: Units) -> bool:
    """Write them, and have systemd run the agent, now and after each start of the device. Whether the latter holds. Raises ServiceError."""
    units.folder.mkdir(parents=True, exist_ok=True)
    (units.folder / f"{NAME}.service").write_text(units.service, encoding="utf-8")
    (units.folder / f"{NAME}.socket").write_text(units.socket, encoding="utf-8")
    for arguments in (["daemon-reload"], ["enable", f"{NAME}.socket", f"{NAME}.service"], ["restart", f"{NAME}.socket"], ["restart", f"{NAME}.service"]):
        _systemctl(units, *arguments)
    return units.system or _lingers()


def _systemctl(units: Units, *arguments: str) -> None:
    command = ["systemctl", *([] if units.system else ["--user"]), *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"systemd does not answer: {error}", "without it, `edge-agent start` runs the agent") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        raise ServiceError(
            f"`{' '.join(command)}` failed: {said}", "`journalctl -u edge-agent` may tell more" if units.system else "is this a login with systemd?"
        )


def _lingers() -> bool:
    """Whether this user's services run while nobody is logged in. Asked for, where the device lets a user do so."""
    try:
        subprocess.run(["loginctl", "enable-linger"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return Path("/var/lib/systemd/linger", pwd.getpwuid(os.getuid()).pw_name).exists()


def _quoted(text: str) -> str:
    """For a unit file: one word, nothing of it a specifier or a variable."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") + '"'
