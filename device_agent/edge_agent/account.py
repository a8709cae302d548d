"""Root's part of a set-up for the whole system. Sent as the source of `python3 -c`, and run as root; everything else is done as `edge-agent`.

    make [USER]                       the user edge-agent, the group edge, USER in it, and the agent's folder
    service DIGEST SIZE PROVIDERS     systemd's units, written by the agent that comes on standard input
    run COMMAND...                    as edge-agent, in its folder
    remove [--dry-run]                the user and the group, if `make` made them

Root runs nothing that lies in the agent's folder, and writes nothing there: whoever is edge-agent could have laid it. Standard library only, Python 3.9
on, alone in its process. Each verb but `run` prints one framed line.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FRAME = "edge-agent-reply: "
HOME, SOCKET = Path("/var/lib/edge-agent"), Path("/run/edge-agent")
USER, GROUP = "edge-agent", "edge"
MADE = "edge-agent: made by edgesdk"  # the user's comment: what has another is somebody's
MARK = HOME / "setup" / "group"
MOST_BYTES = 64 << 20


class AccountError(Exception):
    """A sentence for the person at the host, and what to try."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def main(argv: list[str]) -> int:
    verb, *rest = argv
    try:
        if os.geteuid() != 0:
            raise AccountError("a set-up for the whole system is root's", "log in as root, or as one whom sudo makes root")
        if verb == "run":
            run(rest)
        reply = make(*rest) if verb == "make" else service(*rest) if verb == "service" else remove(*rest)
    except AccountError as problem:
        reply = {"error": {"message": str(problem), "hint": problem.hint}}
    except OSError as error:
        reply = {"error": {"message": f"{error.filename or HOME}: {error.strerror}", "hint": "see `journalctl -b` there"}}
    print(FRAME + json.dumps(reply), flush=True)  # noqa: T201 - the reply
    return 1 if "error" in reply else 0


def make(login: str = "") -> dict[str, Any]:
    """Twice does no harm. The group is who may ask; the login user is put in it."""
    made = []
    if not Path("/run/systemd/system").is_dir():
        raise AccountError("this device runs no systemd, which the agent of a system needs", "set it up for one user: leave --system out")
    own_group = GROUP not in {one.gr_name for one in grp.getgrall()}
    if own_group:
        tool("groupadd", "--system", GROUP)
        made.append(f"group {GROUP}")
    if USER not in {one.pw_name for one in pwd.getpwall()}:
        shell = next((path for path in ("/usr/sbin/nologin", "/sbin/nologin") if os.path.exists(path)), "/bin/false")
        words = ("--system", "--gid", GROUP, "--home-dir", str(HOME), "--no-create-home", "--shell", shell, "--comment", MADE.replace(":", ","))
        tool("useradd", *words, USER)
        made.append(f"user {USER}")
    account = pwd.getpwnam(USER)
    if account.pw_dir != str(HOME):
        raise AccountError(f"this device has a user {USER} already, whose home is {account.pw_dir}", "it is another program's: remove or rename it first")
    if not HOME.is_dir():
        HOME.mkdir(mode=0o750)
        os.chown(HOME, account.pw_uid, grp.getgrnam(GROUP).gr_gid)
        made.append(f"folder {HOME}")
    if own_group:
        run_in_child(["sh", "-c", f"mkdir -p {MARK.parent} && touch {MARK}"])
    if login not in ("", "root") and login not in grp.getgrnam(GROUP).gr_mem:
        tool("usermod", "--append", "--groups", GROUP, login)
        made.append(f"{login} in group {GROUP}")
    return {"made": made}


def service(digest: str, size: str, providers: str) -> dict[str, Any]:
    """By the agent that was sent here, checked, from a folder of root's own."""
    with tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        archive = Path(folder, "agent.zip")
        data = sys.stdin.buffer.read(min(int(size), MOST_BYTES))
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise AccountError(f"what arrived is not {digest[:19]}: its content has another digest", "try again")
        archive.write_bytes(data)
        environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "EDGE_AGENT_HOME": str(HOME), "LC_ALL": "C"}
        words = ["service", "--system", "--user", USER, "--group", GROUP, "--providers", providers, "--install", "--json"]
        done = subprocess.run(
            [sys.executable, "-I", str(archive), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
        )
    for line in done.stdout.splitlines():
        if line.startswith(FRAME):
            reply: dict[str, Any] = json.loads(line[len(FRAME) :])
            return reply
    raise AccountError(f"systemd's units could not be written: {' '.join(done.stderr.split())[-300:]}", "see `journalctl -b` there")


def remove(*flags: str) -> dict[str, Any]:
    """Read what there is before the folder goes: call this first with --dry-run."""
    user = any(one.pw_name == USER and one.pw_gecos == MADE.replace(":", ",") and one.pw_dir == str(HOME) for one in pwd.getpwall())
    group = "--group" in flags or MARK.exists()
    removed = [f"user {USER}"] * user + [f"group {GROUP}"] * group
    if "--dry-run" in flags:
        return {"removed": removed}
    if user:
        tool("userdel", USER)
    if group and GROUP in {one.gr_name for one in grp.getgrall()}:
        tool("groupdel", GROUP)
    if SOCKET.is_dir() and not any(SOCKET.iterdir()):
        SOCKET.rmdir()
    return {"removed": removed}


def run(command: list[str]) -> None:
    """Instead of this process."""
    become()
    os.execvp(command[0], command)  # noqa: S606 - no shell takes part


def run_in_child(command: list[str]) -> None:
    subprocess.run(command, preexec_fn=become, stdin=subprocess.DEVNULL, check=True)


def become() -> None:
    """edge-agent, with nothing of root's."""
    account = pwd.getpwnam(USER)
    os.initgroups(USER, grp.getgrnam(GROUP).gr_gid)
    os.setgid(grp.getgrnam(GROUP).gr_gid)
    os.setuid(account.pw_uid)
    os.umask(0o027)
    os.environ.update(HOME=str(HOME), USER=USER, LOGNAME=USER, EDGE_AGENT_HOME=str(HOME))
    os.chdir("/")


def tool(*command: str) -> None:
    """Raises AccountError with what it says."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise AccountError(f"this device has no {command[0]}", "install the package `passwd` or `shadow` there") from None
    if done.returncode:
        raise AccountError(f"`{' '.join(command[:1])}` failed: {' '.join(done.stderr.split())[:300]}", "see `journalctl -b` there")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
