"""Facts about this device. Its source is also sent to a bare one, as `python3 -c SOURCE`, so it works alone.

    facts()["architecture"]

Standard library only, Python 3.6 syntax on purpose: an older Python has to be able to say that it is too old. Nothing raises:
what cannot be read is null. Printed as one framed line, so that a login banner around it does no harm.
"""

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from typing import Any, Dict, Optional, Tuple

FORMAT = 1
SYSTEM_HOME = "/var/lib/edge-agent"
FRAME = "edge-agent-reply: "

# What the agent imports of the standard library; Debian's python3-minimal and Yocto lack some.
_MODULES = (
    "argparse", "contextlib", "datetime", "fcntl", "functools", "hashlib", "hmac", "http", "importlib", "io", "json", "math", "platform", "random", "re",
    "secrets", "select", "shutil", "signal", "socket", "struct", "subprocess", "tempfile", "threading", "traceback", "urllib.parse", "zipfile", "zlib",
)  # fmt: skip
_MARKS = ("/etc/nv_tegra_release", "/usr/bin/xdputil")
_IMPORT_S = 60  # onnxruntime takes ten seconds on a slow card

# Runs in a child: a runtime that crashes at import, as with the wrong libc, is a null and not our end.
_IMPORTS = """
import json, sys
found = {"onnxruntime": None, "numpy": None, "where": None}
if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
try:
    import numpy
    found["numpy"] = numpy.__version__
    import onnxruntime
    found["onnxruntime"] = {"version": onnxruntime.__version__, "providers": list(onnxruntime.get_available_providers())}
except Exception:
    pass
print(json.dumps(found))
"""


def facts(home: object = None) -> Dict[str, Any]:
    """Everything that a host wants to know before it sends the first byte. ``home`` is the agent's folder."""
    usual = SYSTEM_HOME if os.path.isdir(SYSTEM_HOME) else "~/.local/share/edge-agent"
    folder = os.path.abspath(os.path.expanduser(str(home or os.environ.get("EDGE_AGENT_HOME") or usual)))
    known = {
        "format": FORMAT,
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "abi": "cp%d%d" % sys.version_info[:2],  # noqa: UP031
        "libc": libc(),
        "board": _read("/proc/device-tree/model").replace("\0", "").strip(),
        "cpu_model": _cpu("model name", "Hardware", "Processor", "uarch"),
        "cpu_features": sorted(set((_cpu("flags", "Features", "isa") or "").split())),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes("MemTotal"),
        "available_bytes": _available_bytes(),
        "free_bytes": _free_bytes(folder),
        "home": folder,
        "mode": "system" if folder == SYSTEM_HOME else "user",
        "systemd": os.path.isdir("/run/systemd/system"),
        "writable": _writable(folder),
        "volatile": volatile(folder),
        "missing_modules": [name for name in _MODULES if not _importable(name)],
        "files": [path for path in _MARKS if os.path.exists(path)],
        "agent": _agent(folder),
        "trust": _trust(folder),
        "releases": _releases(folder),
        "user": _user(),
        "held": _held(folder),
    }
    known.update(conditions())
    known.update(runtime(folder))
    return known


def _trust(folder):  # type: (str) -> Dict[str, Any]
    """Whether bundles have to be signed here, and with what that is checked. See edge_agent/trust.py."""
    signers = os.path.join(folder, "trust", "allowed_signers")
    try:
        unsigned = bool(json.loads(_read(os.path.join(folder, "config.json")))["trust"]["unsigned"])
    except (ValueError, KeyError, TypeError):
        unsigned = False
    return {
        "known": os.path.exists(signers),
        "demanded": os.path.exists(signers) and not unsigned,
        "ssh_keygen": bool(shutil.which("ssh-keygen")),
        "signers": _fingerprints(signers),
        "revoked": _fingerprints(os.path.join(folder, "trust", "revoked_keys")) or [],
    }


def _fingerprints(path):  # type: (str) -> Any
    """Of the keys in a list of OpenSSH's; null where that does not tell whose signature counts."""
    found = []
    for line in _read(path).splitlines():
        if "cert-authority" in line:
            return None
        for word in line.split() if not line.lstrip().startswith("#") else ():
            if word.startswith("AAAA"):
                try:
                    found.append("SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(word)).digest()).decode().rstrip("="))
                except ValueError:
                    return None
    return found if os.access(path, os.R_OK) else None


def _releases(folder):  # type: (str) -> Dict[str, Any]
    """What this device has accepted of each model, and what it rolled back. See edge_agent/releases.py."""
    try:
        document = json.loads(_read(os.path.join(folder, "releases.json")))
        return {str(name): dict(known) for name, known in document.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _held(folder):  # type: (str) -> Dict[str, int]
    """Bytes of archives that a set-up which was cut short has left. See edge_agent/bootstrap.py."""
    found = {}
    try:
        for name in os.listdir(os.path.join(folder, "setup")):
            if re.match("[0-9a-f]{64}", name):
                found["sha256:" + name[:64]] = os.path.getsize(os.path.join(folder, "setup", name))
    except OSError:
        pass
    return found


def conditions() -> Dict[str, Any]:
    """What a speed depends on, besides the device, and may be otherwise a minute later."""
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    return {"governor": governor or None, "temperature_c": _temperature_c()}


def runtime(home: str) -> Dict[str, Any]:
    """onnxruntime and numpy: this Python's own if its onnxruntime will do, else those that the host sent."""
    own = _imported("")
    sent = os.path.join(home, "runtime", runtime_tag())
    if own["onnxruntime"] is not None and _at_least(str(own["onnxruntime"]["version"]), (1, 16)):
        return _placed(own, "system")
    if os.path.isdir(sent):
        found = _imported(sent)
        if found["onnxruntime"] is not None:
            return _placed(found, "runtime")
    return _placed(own, "system")


def runtime_tag() -> str:
    """The folder of wheels that fit this Python."""
    return "cp%d%d-%s-%s" % (sys.version_info[0], sys.version_info[1], platform.machine(), (libc() or "unknown").split(" ")[0])  # noqa: UP031


def libc() -> Optional[str]:
    """`glibc 2.36`, `musl 1.2`; null where neither is known."""
    try:
        name, version = platform.libc_ver()
        if name:
            return (name + " " + version).strip()
        loaders = [file for file in os.listdir("/lib") if file.startswith("ld-musl-")]
        if not loaders:
            return None
        said = subprocess.run(["/lib/" + loaders[0]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=5, check=False).stdout
        found = re.search(rb"Version ([0-9.]+)", said)
        return "musl " + found.group(1).decode() if found else "musl"
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _imported(folder: str) -> Dict[str, Any]:
    nothing: Dict[str, Any] = {"onnxruntime": None, "numpy": None}
    if not folder and not _may_have_own():
        return nothing
    try:
        argv = [sys.executable, "-c", _IMPORTS, folder]
        environment = dict(os.environ, ORT_DISABLE_TELEMETRY="1")  # else onnxruntime ≥ 1.32 leaves a file about this user in his home
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_IMPORT_S, check=False, env=environment
        )
        found = json.loads(done.stdout.decode().strip().splitlines()[-1])
        return {"onnxruntime": found["onnxruntime"], "numpy": found["numpy"]}
    except (OSError, ValueError, IndexError, KeyError, TypeError, subprocess.SubprocessError):
        return nothing


def _may_have_own() -> bool:
    """Whether this Python could have numpy or onnxruntime: trying it starts another one. Sent as `-I` we do not see what its user has installed."""
    try:
        import importlib.util
        import site

        return os.path.isdir(site.getusersitepackages()) or any(importlib.util.find_spec(name) for name in ("numpy", "onnxruntime"))
    except Exception:  # noqa: BLE001 - then it has to be tried
        return True


def _placed(found: Dict[str, Any], where: str) -> Dict[str, Any]:
    placed = dict(found)
    if found["onnxruntime"] is not None:
        placed["onnxruntime"] = dict(found["onnxruntime"], where=where)
    return placed


def _at_least(version: str, oldest: Tuple[int, ...]) -> bool:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:2]) >= oldest


def _agent(folder: str) -> object:
    """The agent that was put there, and whether one answers. It may also run from a virtual environment, with no digest."""
    current = os.path.join(folder, "agent", "current")
    found = re.search(r'^__version__ = "([^"]+)"', _read(os.path.join(current, "edge_agent", "__init__.py")), re.MULTILINE)
    running = _answers(folder)
    if found is None and not running:
        return None
    return {"digest": os.path.basename(os.path.realpath(current)) if found else None, "version": found.group(1) if found else None, "running": running}


def _answers(folder: str) -> bool:
    if folder == SYSTEM_HOME:  # systemd holds the socket, and starts the agent for whoever asks
        return os.path.exists("/run/edge-agent/agent.sock")
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            sock.connect("/proc/self/fd/%d/agent.sock" % descriptor)  # noqa: UP031
            return True
    except BlockingIOError:  # so many ask that one more has to wait
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return ""


def _cpu(*keys: str) -> Optional[str]:
    """The first of these in /proc/cpuinfo; each architecture has its own words."""
    text = _read("/proc/cpuinfo")
    for key in keys:
        found = re.search("^" + re.escape(key) + r"\s*:\s*(.*\S)", text, re.MULTILINE)
        if found:
            return found.group(1)
    return None


def _memory_bytes(name: str) -> Optional[int]:
    found = re.search(r"^" + name + r":\s+([0-9]+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _available_bytes() -> Optional[int]:
    """What another process may have before one is ended; null where the kernel does not say."""
    free = _memory_bytes("MemAvailable")
    return None if free is None else free + (_memory_bytes("SwapFree") or 0)


def _temperature_c() -> object:
    try:
        return int(_read("/sys/class/thermal/thermal_zone0/temp").strip()) / 1000
    except ValueError:
        return None


def _existing(folder: str) -> str:
    """The nearest folder above that exists: where the first byte would go."""
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder


def _free_bytes(folder: str) -> object:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None


def volatile(folder: str) -> Optional[str]:
    """The kind of file system below it, if that forgets everything with the power: tmpfs, or an overlay whose upper half is one."""
    mounts = {}  # mount point: kind and options; where several lie on each other, the last
    for line in _read("/proc/self/mounts").splitlines():
        words = [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), word) for word in line.split(" ")]
        if len(words) > 3:
            mounts[words[1]] = (words[2], words[3])
    kind, options = _mounted(mounts, os.path.realpath(_existing(folder)))
    upper = re.search("(?:^|,)upperdir=([^,]+)", options) if kind == "overlay" else None
    if upper:
        kind, _ = _mounted(mounts, upper.group(1))
    return kind if kind in ("tmpfs", "ramfs") else None


def _mounted(mounts: Dict[str, Tuple[str, str]], path: str) -> Tuple[str, str]:
    while path not in mounts and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return mounts.get(path, ("", ""))


def _writable(folder: str) -> bool:
    return os.access(_existing(folder), os.W_OK | os.X_OK)


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except Exception:  # noqa: BLE001 - a module that breaks at import is as good as missing
        return False
    return True


def _user() -> object:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return str(os.getuid())


if __name__ == "__main__":
    print(FRAME + json.dumps(facts()), flush=True)  # noqa: T201 - the reply
