"""Puts the agent, and what it runs on, onto a device that has nothing but python3. Sent as the source of `python3 -c`.

    held DIGEST...                how many bytes of each archive have arrived here
    receive DIGEST SIZE OFFSET …  go on with each from standard input, one behind the other, and check it
    agent DIGEST[+DIGEST] [WANTED…]   unpack that agent, and what is compiled of it, and make it the current one
    launcher                      have the current one run by this very Python
    runtime TAG DIGEST...         unpack those wheels beside each other, for this Python
    clients                       let every Python here find the client; root's where the agent is the system's
    teardown [--dry-run]          stop the agent, and remove all that any of these put here

Several of the first five, with `then` between them, are done one after the other: each start of a Python costs.

After `agent` and `launcher` every Python of the device finds the client: a .pth file in its site folder names the current agent.

Standard library only, Python 3.9 on, alone in its process. Each verb prints one framed line. Power may fail at any moment:
what is unpacked gets its name when it is whole, and what runs is one symbolic link, replaced at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import py_compile
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FRAME = "edge-agent-reply: "
SILENCE_S = 30
LOCK_WAIT_S = 40  # longer than SILENCE_S: a receiver whose host is gone has given up by then
CHUNK_BYTES = 1 << 18
MAX_MEMBERS = 20_000
MAX_UNPACKED_BYTES = 2 << 30

USER_HOME, SYSTEM_HOME = "~/.local/share/edge-agent", "/var/lib/edge-agent"
PATH_FILE = "edge-agent.pth"
PATH_TEXT = "# Written by edgesdk when it set this device up; `edge-agent teardown` removes it.\n{folder}\n"
# What a Python says of itself: fit for the client, no virtual environment; the user's site folder; the system's.
ASK = """import json, site, sys
fit = sys.version_info >= (3, 9) and sys.prefix == sys.base_prefix
print(json.dumps([fit, site.getusersitepackages() if site.ENABLE_USER_SITE else None, site.getsitepackages()[0]]))"""

# All that the agent and its set-up put into its folder. What else lies there is somebody's, and stays.
OURS = (
    "active",
    "agent",
    "bin",
    "blobs",
    "cache",
    "config.json",
    "deployments",
    "incoming",
    "latency",
    "previous",
    "races",
    "releases.json",
    "runtime",
    "scrubbed",
    "secrets",
    "setup",
    "staged",
    "trust",
)
OURS_TOO = re.compile(r"agent\.(lock|sock|log(\.[0-9]+)?)|journal(\.[0-9]+)?\.jsonl|\.(agent|journal|config|releases|scrubbed)\..*")

LAUNCH = """\
#!/bin/sh
# Written by edgesdk when it set this device up. Another Python's settings must not reach the agent.
unset PYTHONPATH PYTHONHOME
EDGE_AGENT_HOME={home} && export EDGE_AGENT_HOME
python={python} && command -v "$python" > /dev/null || python=python3
exec "$python" {home}/bin/launcher.py "$@"
"""


class BootstrapError(Exception):
    """A sentence for the person at the host, and what to try."""

    def __init__(self, message: str, hint: str = "", *, again: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.again = again  # the link is to blame


def main(argv: list[str]) -> int:
    home = Path(os.environ.get("EDGE_AGENT_HOME") or (SYSTEM_HOME if os.path.isdir(SYSTEM_HOME) else USER_HOME)).expanduser().absolute()
    try:
        reply = run(home, argv)
    except BootstrapError as problem:
        reply = {"error": {"message": str(problem), "hint": problem.hint, **({"again": True} if problem.again else {})}}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = f"the disk below {home} is full" if full else f"{error.filename or home}: {error.strerror}"
        reply = {"error": {"message": message, "hint": "free some space there, then try again" if full else "may this user write there?"}}
    print(FRAME + json.dumps(reply), flush=True)  # noqa: T201 - the reply
    return 1 if "error" in reply else 0


def run(home: Path, argv: list[str]) -> dict[str, object]:
    verb, *rest = argv
    if verb == "teardown":
        return tear_down(home, dry_run="--dry-run" in rest)
    if verb == "clients":
        return {"clients": write_client_paths(home)}
    for folder in ("setup", "agent", "runtime", "bin"):
        make_folder(home / folder)
    with locked(home / "setup" / "lock"):
        sweep(home)
        reply: dict[str, object] = {}
        while verb:
            end = rest.index("then") if "then" in rest else len(rest)
            reply.update(done(home, verb, rest[:end]))
            verb, rest = (rest[end + 1], rest[end + 2 :]) if rest[end + 1 :] else ("", [])
        return reply


def done(home: Path, verb: str, rest: list[str]) -> dict[str, object]:
    """One of the verbs that take turns."""
    if verb == "held":
        return {"held": held(home, rest)}
    if verb == "receive":
        for digest, size, offset in zip(rest[::3], rest[1::3], rest[2::3]):
            receive(home, digest, int(size), int(offset))
        return {"received": len(rest) // 3}
    if verb == "agent":
        digest, _, compiled = rest[0].partition("+")
        return install_agent(home, digest, rest[1:], compiled)
    if verb == "launcher":
        changed = write_launcher(home)
        return {"changed": changed, "clients": write_client_paths(home) if changed else []}
    if verb == "runtime":
        return install_runtime(home, rest[0], rest[1:])
    raise BootstrapError(f"the verb {verb!r} is not known here", "update edgesdk")


def held(home: Path, digests: list[str]) -> dict[str, int]:
    """Bytes of each that need not be sent again: they arrived, or what they unpack to is here. An agent's comes first, then those of one runtime."""
    found = {}
    for at, digest in enumerate(digests):
        paths = [path for path in (archive(home, digest), part(home, digest)) if path.is_file()]
        found[digest] = paths[0].stat().st_size if paths else 0
        if (home / "agent" / short(digest)).is_dir():
            found[digest] = MAX_UNPACKED_BYTES
        if any((home / "runtime").glob(f"cp*.{together(digests[at:])}")):
            found.update(dict.fromkeys(digests[at:], MAX_UNPACKED_BYTES))
            break
    return found


def receive(home: Path, digest: str, size: int, offset: int) -> None:
    target, incoming = archive(home, digest), part(home, digest)
    if target.is_file():
        for _ in standard_input(size - offset):  # it was here already: what comes behind it is wanted
            pass
    else:
        with room_again(incoming), incoming.open("r+b" if incoming.exists() else "w+b") as stream:
            if stream.seek(0, os.SEEK_END) < offset:
                raise BootstrapError(f"there are fewer than {offset} bytes of {digest[:19]} here", "try again")
            stream.truncate(offset)
            stream.seek(offset)
            for chunk in standard_input(size - offset):
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
            state = hashlib.sha256()
            stream.seek(0)
            for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
                state.update(chunk)
        if "sha256:" + state.hexdigest() != digest:
            incoming.unlink()
            # What was there before this attempt may be to blame: bytes that a power cut left empty.
            raise BootstrapError(f"what arrived is not {digest[:19]}: its content has another digest", "try again", again=offset > 0)
        os.replace(incoming, target)
        sync(target.parent)


@contextlib.contextmanager
def room_again(incoming: Path) -> Iterator[None]:
    """What cannot be finished must not take what room there is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            incoming.unlink()
        raise


def install_agent(home: Path, digest: str, wanted: list[str], compiled: str = "") -> dict[str, object]:
    """Beside the one that runs now, which is kept as the previous one: the launcher goes back to it where this one does not start.

    Another archive may hold what of it was ``compiled`` for this Python.
    """
    agents, name, before = home / "agent", short(digest), preferred(home)
    unpack([archive(home, one) for one in (digest, compiled) if one], agents / name, compiled=True)
    if before and before != name:
        point(agents / "previous", before)
    point(agents / "current", name)
    write_launcher(home)
    kept = {name, *(os.path.basename(os.readlink(link)) for link in (agents / "current", agents / "previous") if link.is_symlink())}
    clean(agents, keep=kept, prefix="")
    forget_archives(home, wanted)
    return {"agent": name, "clients": write_client_paths(home)}


def preferred(home: Path) -> str:
    """The agent that the launcher starts: the current one, unless that failed and the one before it took over. Empty where there is none."""
    current = was = name = ""
    with contextlib.suppress(OSError, ValueError):
        current = os.readlink(home / "agent" / "current")
        was, name, _ = (home / "agent" / "starts").read_text(encoding="ascii").split()
    return name if name and was == current and (home / "agent" / name).is_dir() else current


def write_launcher(home: Path) -> bool:
    """Whether the Python that it named was another one: that may be gone. The launcher itself is written once, and never again."""
    folder, launcher = home / "bin", home / "agent" / "current" / "edge_agent" / "launcher.py"
    if not (folder / "launcher.py").is_file():
        replace(folder / "launcher.py", launcher.read_bytes(), 0o644)
    text = LAUNCH.format(python=shlex.quote(sys.executable), home=shlex.quote(str(home))).encode()
    if (folder / "edge-agent").is_file() and (folder / "edge-agent").read_bytes() == text:
        return False
    replace(folder / "edge-agent", text, 0o755)
    return True


def replace(target: Path, data: bytes, mode: int) -> None:
    """The old content or the new one, whenever the power fails."""
    fresh = target.with_name(f".{target.name}.new")
    fresh.write_bytes(data)
    fresh.chmod(mode)
    sync(fresh)
    os.replace(fresh, target)
    sync(target.parent)


def write_client_paths(home: Path) -> list[str]:
    """Let every Python here import the client; the files that now say so. For the usual folders alone: a second agent would shadow the first."""
    if home not in (Path(USER_HOME).expanduser().absolute(), Path(SYSTEM_HOME)):
        return []
    text, written = PATH_TEXT.format(folder=home / "agent" / "current").encode(), []
    for folder in client_folders(home):
        target = folder / PATH_FILE
        try:
            if not target.is_file() or target.read_bytes() != text:
                folder.mkdir(parents=True, exist_ok=True)
                replace(target, text, 0o644)
        except OSError:
            continue  # a site folder that cannot be written to is no reason to do without the agent
        written.append(str(target))
    return written


def client_folders(home: Path) -> list[Path]:
    """The site folders of the Pythons here: the user's own, or the system's where the agent is the system's."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = []
    for python in pythons():
        try:
            done = subprocess.run([python, "-c", ASK], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, cwd="/", env=clean, check=True)
            fit, users, systems = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            continue  # whatever it is, it is no Python that works
        folder = systems if home == Path(SYSTEM_HOME) else users
        if fit and folder and Path(folder) not in found:
            found.append(Path(folder))
    return found


def pythons() -> list[str]:
    """The one that runs this, and those where a system has them."""
    found = {os.path.realpath(sys.executable): sys.executable}
    for folder in (Path("/usr/bin"), Path("/usr/local/bin")):
        for path in sorted(folder.glob("python3*")):
            if re.fullmatch(r"python3(\.[0-9]+)?", path.name):
                found.setdefault(os.path.realpath(path), str(path))
    return list(found.values())


def tear_down(home: Path, *, dry_run: bool) -> dict[str, Any]:
    """Leave nothing behind: services, the agent's process, .pth files, the folder. ``dry_run``: only say what there is."""
    units, paths, ours, others = unit_files(home), path_files(home), our_files(home), []
    if home.is_dir():
        others = [str(path) for path in sorted(home.iterdir()) if path not in ours]
    reply = {
        "home": str(home),
        "dry_run": dry_run,
        "removed": [str(path) for path in (*units, *paths, *([home] if not others and home.is_dir() else ours))],
        "kept": others,
    }
    if dry_run:
        return reply
    remove_units(units)
    # The launcher goes first: nobody starts the agent anew while the rest is removed.
    shutil.rmtree(home / "bin", ignore_errors=True)
    stop_agent(home)
    for path in paths:
        path.unlink()
        for folder in (path.parent, path.parent.parent):  # made by us if nothing else is there
            with contextlib.suppress(OSError):
                folder.rmdir()
    for path in our_files(home):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with contextlib.suppress(OSError):
        home.rmdir()
    return reply


def our_files(home: Path) -> list[Path]:
    return [path for path in sorted(home.iterdir()) if path.name in OURS or OURS_TOO.fullmatch(path.name)] if home.is_dir() else []


def path_files(home: Path) -> list[Path]:
    """Those that name this agent, of Pythons that are gone too."""
    line = str(home / "agent" / "current")
    found = {folder / PATH_FILE for folder in client_folders(home)} | set(Path("~/.local/lib").expanduser().glob(f"python3.*/site-packages/{PATH_FILE}"))
    return sorted(path for path in found if path.is_file() and line in path.read_text(encoding="utf-8", errors="replace").splitlines())


def unit_files(home: Path) -> list[Path]:
    """systemd's, if they are of this agent."""
    line = f"EDGE_AGENT_HOME={home}"
    folders = (Path("~/.config/systemd/user").expanduser(), Path("/etc/systemd/system"))
    found = [folder / f"edge-agent.{kind}" for folder in folders for kind in ("socket", "service")]
    return [path for path in found if path.is_file() and line in path.read_text(encoding="utf-8", errors="replace")]


def remove_units(units: list[Path]) -> None:
    """Stop and disable them first; a systemd that does not answer has none of them running."""
    for path in units:
        systemctl = ["systemctl", *(["--user"] if path.parent.name == "user" else [])]
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60, "check": False}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*systemctl, "disable", "--now", path.name], **quiet)
        path.unlink()
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*systemctl, "daemon-reload"], **quiet)


def stop_agent(home: Path) -> None:
    """The process that holds the agent's lock: asked to end, and killed if it does not."""
    for number, patience_s in ((signal.SIGTERM, 30), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience_s
        pid = holder(home)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        while holder(home) is not None and time.monotonic() < deadline:
            time.sleep(0.05)


def holder(home: Path) -> int | None:
    """Who holds the lock; a lock file alone holds nothing."""
    try:
        with (home / "agent.lock").open("r+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                return int(stream.read(20))
    except (OSError, ValueError):
        return None


def install_runtime(home: Path, tag: str, digests: list[str]) -> dict[str, object]:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", tag) or not digests:
        raise BootstrapError(f"{tag!r} is no runtime's name", "update edgesdk")
    name = f"{tag}.{together(digests)}"
    unpack([archive(home, digest) for digest in digests], home / "runtime" / name)
    point(home / "runtime" / tag, name)
    clean(home / "runtime", keep={name}, prefix=f"{tag}.")
    forget_archives(home, [])
    return {"runtime": name}


def together(digests: list[str]) -> str:
    """What several archives unpack to goes by."""
    return short("sha256:" + hashlib.sha256(" ".join(digests).encode()).hexdigest())


def forget_archives(home: Path, wanted: list[str]) -> None:
    """They are unpacked; what else lies there, nobody came back to. Of the ``wanted`` ones somebody is about to."""
    for path in (home / "setup").iterdir():
        if path.name not in ("lock", "group") and path not in [archive(home, digest) for digest in wanted]:  # `group` is account.py's
            path.unlink()


def make_folder(folder: Path) -> None:
    """It, and those above it, if they are not there; their names have reached the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o750)
        with contextlib.suppress(PermissionError):  # a folder of others, which holds ours and cannot be read
            sync(folder.parent)


def sweep(home: Path) -> None:
    """What was half written when the power failed. We hold the lock, so nobody is at it."""
    for folder in (home / "bin", home / "agent", home / "runtime"):
        for path in folder.iterdir():
            if path.name.startswith(".") and path.name != ".starts":  # that one is the launcher's
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def unpack(archives: list[Path], target: Path, *, compiled: bool = False) -> None:
    """All archives into one new folder, which has its name only when it is whole. ``compiled``: nothing is to be written there later."""
    if target.is_dir():
        return
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        members, size = 0, 0
        for path in archives:
            with zipfile.ZipFile(path) as opened:
                for info in opened.infolist():
                    members, size = members + 1, size + info.file_size
                    if members > MAX_MEMBERS or size > MAX_UNPACKED_BYTES:
                        raise BootstrapError(f"{path.name[:16]} unpacks to more than it may", "do not use this file")
                    if not info.is_dir():
                        extract(opened, info, scratch)
        if compiled:
            compile_all(scratch, target)
        # One system call for thousands of files: the rename below must not reach the disk before they do.
        os.sync()
        os.rename(scratch, target)
        sync(target.parent)
    except zipfile.BadZipFile as error:
        raise BootstrapError(f"an archive is damaged: {error}", "remove edgesdk's cache on the host, then try again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def compile_all(scratch: Path, target: Path) -> None:
    """As Python itself would at the first import, but on the disk when the folder has its name."""
    for path in scratch.rglob("*.py"):
        if os.path.exists(importlib.util.cache_from_source(str(path))):
            continue  # it came so
        with contextlib.suppress(py_compile.PyCompileError, OSError):
            py_compile.compile(str(path), dfile=str(target / path.relative_to(scratch)), doraise=True)


def extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> None:
    """Plain files below the folder; anything else is an attack. zipfile itself checks length and CRC."""
    parts = info.filename.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
        raise BootstrapError(f"an archive has a member that leads out of it: {info.filename[:80]!r}", "do not use this file")
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opened.open(info) as source, path.open("xb") as stream:
            shutil.copyfileobj(source, stream, CHUNK_BYTES)
    except FileExistsError as error:
        raise BootstrapError(f"an archive has a member twice: {info.filename[:80]!r}", "do not use this file") from error


def point(link: Path, name: str) -> None:
    """Make ``link`` lead to ``name`` beside it: the old or the new one, at any moment."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(name)
    os.replace(fresh, link)
    sync(link.parent)


def clean(folder: Path, keep: set[str], prefix: str) -> None:
    """Remove what was unpacked earlier, or was left half unpacked. We hold the lock, so nobody is at it."""
    for path in folder.iterdir():
        if not path.is_symlink() and path.is_dir() and path.name not in keep and path.name.lstrip(".").startswith(prefix):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One set-up at a time. The kernel frees the lock of a process that died."""
    with path.open("a+") as stream:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    stream.seek(0)
                    raise BootstrapError(f"another set-up is under way here ({stream.read(80).strip()})", "wait for it to end") from None
                time.sleep(0.2)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        stream.flush()
        yield


def standard_input(size: int) -> Iterator[bytes]:
    """So many bytes. What came before a cut was written by then, and is kept."""
    while size:
        if not select.select([0], [], [], SILENCE_S)[0]:
            raise BootstrapError(f"nothing came for {SILENCE_S} s", "try again: what arrived is kept", again=True)
        chunk = os.read(0, min(size, CHUNK_BYTES))
        if not chunk:
            raise BootstrapError(f"the transfer ended {size} bytes early", "try again: what arrived is kept", again=True)
        size -= len(chunk)
        yield chunk


def archive(home: Path, digest: str) -> Path:
    return home / "setup" / hexadecimal(digest)


def part(home: Path, digest: str) -> Path:
    return home / "setup" / f"{hexadecimal(digest)}.part"


def short(digest: str) -> str:
    return hexadecimal(digest)[:16]


def hexadecimal(digest: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise BootstrapError(f"{digest[:80]!r} is no SHA-256 digest", "update edgesdk")
    return digest[len("sha256:") :]


def sync(path: Path) -> None:
    """A file's content, or a folder's names, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
