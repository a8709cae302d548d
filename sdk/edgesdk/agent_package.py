"""What a device has to be sent before it can run a model: the agent as one archive, and wheels that fit its Python.

    package = build()
    package.digest                         # sha256:..., the same for the same files on every host
    runtime_wheels(facts, "1.17.0")        # [numpy-….whl, onnxruntime-….whl], fetched once, then from the cache

The device needs neither pip nor the internet; this machine needs both, once for each kind of device.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import h11

import edge_agent
from edge_agent.bundle import digest_of, digest_of_file
from edgesdk.cache import cache_folder
from edgesdk.errors import DeviceError
from edgesdk.progress import Progress, silent
from edgesdk.replies import Facts
from edgesdk.runtimes import version_of

RUNTIME_PACKAGES = ("numpy", "onnxruntime")
OLDEST_ONNXRUNTIME = "1.16"

# What the launcher looks for: `main`.
_MAIN = b'import sys\n\nfrom edge_agent.__main__ import main\n\nif __name__ == "__main__":\n    sys.exit(main())\n'
_OLDEST_TIME = (1980, 1, 1, 0, 0, 0)
_PIP_TIMEOUT_S = 600
_fetching = threading.Lock()
# The oldest glibc that wheels for an architecture are built against (PEP 600), and the names from before that rule.
_OLDEST_GLIBC_MINOR = {"x86_64": 5, "aarch64": 17}
_OLD_NAMES = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


class TooNew(DeviceError):
    """There are wheels for that device, and none so new."""


@dataclass(frozen=True, slots=True)
class AgentPackage:
    """The agent as a zip archive that Python runs when it is unpacked."""

    digest: str
    data: bytes

    @property
    def name(self) -> str:
        """Its folder on a device."""
        return self.digest.removeprefix("sha256:")[:16]


@functools.cache
def build() -> AgentPackage:
    """edge_agent and h11 as they are installed here. No times, no order of a file system, no compression that could differ."""
    files = {"__main__.py": _MAIN, **_sources(Path(edge_agent.__file__).parent), **_sources(Path(h11.__file__).parent), **_license("h11")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _OLDEST_TIME)
            info.external_attr, info.create_system = 0o644 << 16, 3
            archive.writestr(info, files[name])
    return AgentPackage(digest_of(buffer.getvalue()), buffer.getvalue())


def source_of(module: str) -> str:
    """The source of one of the agent's modules that run alone, to send as `python3 -c`."""
    return Path(edge_agent.__file__).with_name(f"{module}.py").read_text(encoding="utf-8")


def runtime_tag(facts: Facts) -> str:
    """The folder of wheels that fit this device's Python."""
    return f"{facts.abi}-{facts.architecture}-{(facts.libc or 'unknown').split(' ')[0]}"


def runtime_wheels(facts: Facts, onnxruntime: str, wheelhouse: Path | None = None, progress: Progress = silent) -> list[Path]:
    """numpy and onnxruntime for the device, the latter at least of that version. Raises DeviceError where there are none.

    From ``wheelhouse``, a folder of wheels, and from nowhere else if it is given.
    """
    if wheelhouse is not None:
        return _newest(wheelhouse, facts, onnxruntime) or _refuse(wheelhouse, facts, onnxruntime)
    folder = cache_folder() / "wheels" / runtime_tag(facts)
    with _fetching:  # many devices of one kind are set up at once, and wait for one download
        wheels = _newest(folder, facts, onnxruntime)
        if not wheels:
            progress("fetch numpy and onnxruntime", 0, 0)
            wheels = _fetch(folder, facts, onnxruntime)
    for wheel in wheels:
        _check_pin(wheel)
    return wheels


def _refuse(wheelhouse: Path, facts: Facts, onnxruntime: str) -> NoReturn:
    held = sorted(path.name for package in RUNTIME_PACKAGES for path in wheelhouse.glob(f"{package}-*.whl"))
    usual = [f"--platform {one}" for one in _platforms(facts) if re.match("manylinux(_2_28|_2_27|_2_17|2014)_", one)]
    raise (TooNew if _newest(wheelhouse, facts, OLDEST_ONNXRUNTIME) else DeviceError)(
        f"`{wheelhouse}` holds no numpy and onnxruntime ≥ {onnxruntime} for {_what(facts)}: {', '.join(held[:6]) or 'no wheel of either'}",
        f"where there is internet: `pip download --only-binary :all: --no-deps --dest {shlex.quote(str(wheelhouse))} --python-version "
        f"{facts.abi.removeprefix('cp')} {' '.join(usual)} numpy onnxruntime`",
    )


@functools.cache
def _digest(wheel: Path, _size: int, _changed_ns: int) -> str:
    return digest_of_file(wheel)


def digest_of_wheel(wheel: Path) -> str:
    """Read once, however many devices are sent it."""
    found = wheel.stat()
    return _digest(wheel, found.st_size, found.st_mtime_ns)


def _pin(wheel: Path) -> Path:
    """Where its digest lies, as it was when pip had checked it against the index."""
    return wheel.with_name(f"{wheel.name}.sha256")


def _check_pin(wheel: Path) -> None:
    """Raises DeviceError for a wheel that has changed since it was fetched. One that somebody laid there has no pin."""
    pin = _pin(wheel)
    if pin.exists() and pin.read_text(encoding="ascii").strip() != digest_of_wheel(wheel):
        raise DeviceError(f"`{wheel.name}` in this machine's cache is not what was fetched", f"remove {wheel} and {pin.name} beside it: it is fetched again")


def version_in(wheels: Iterable[Path]) -> str | None:
    """onnxruntime's among them."""
    return next((wheel.name.split("-")[1] for wheel in wheels if wheel.name.startswith("onnxruntime-")), None)


def unpacked_bytes(wheel: Path) -> int:
    """What it takes on the device's disk."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(info.file_size for info in archive.infolist())


def _sources(package: Path) -> dict[str, bytes]:
    return {
        str(Path(package.name, path.relative_to(package))): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and "tests" not in path.parts[len(package.parts) :] and (path.suffix in (".py", ".html") or path.name == "py.typed")
    }


def _license(distribution: str) -> dict[str, bytes]:
    """What its licence asks us to hand on."""
    files = importlib.metadata.files(distribution) or []
    return {f"{distribution}/LICENSE.txt": Path(str(file.locate())).read_bytes() for file in files if file.name.startswith("LICENSE")}


def _newest(folder: Path, facts: Facts, onnxruntime: str) -> list[Path]:
    """The wheels of a folder, if both are there, new enough, and fit the device's Python and libc."""
    found = []
    for package in RUNTIME_PACKAGES:
        wheels = sorted((wheel for wheel in folder.glob(f"{package}-*.whl") if _fits(wheel, facts)), key=_wheel_version)
        if not wheels:
            return []
        found.append(wheels[-1])
    return found if _wheel_version(found[RUNTIME_PACKAGES.index("onnxruntime")]) >= version_of(onnxruntime) else []


def _fits(wheel: Path, facts: Facts) -> bool:
    """By its name: tags of Python, ABI and platform, several of each joined by dots (PEP 425)."""
    tags = wheel.stem.split("-")[2:][-3:]
    if len(tags) != 3:
        return False
    pythons, abis, platforms = (set(tag.split(".")) for tag in tags)
    stable = {f"cp3{minor}" for minor in range(2, int(facts.abi.removeprefix("cp3") or 0) + 1)} if "abi3" in abis else set()
    own = facts.abi in pythons and facts.abi in abis
    return bool(own or stable & pythons or ("py3" in pythons and "none" in abis)) and bool({"any", *_platforms(facts)} & platforms)


def _wheel_version(wheel: Path) -> tuple[int, ...]:
    return version_of(wheel.name.split("-")[1])


def _fetch(folder: Path, facts: Facts, onnxruntime: str) -> list[Path]:
    """Through pip, whose index, proxy and certificates the user has configured. Whole, or not in the cache."""
    what = _what(facts)
    platforms = _platforms(facts)
    if not platforms:
        raise DeviceError(f"onnxruntime ships no wheels for {what}", "install onnxruntime on the device yourself; edgesdk then uses it")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching.") as scratch:
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:", "--no-deps"]
        argv += [
            "--dest",
            scratch,
            "--implementation",
            "cp",
            "--python-version",
            facts.abi.removeprefix("cp"),
            "--abi",
            facts.abi,
            "--abi",
            "abi3",
            "--abi",
            "none",
        ]
        argv += [word for platform in platforms for word in ("--platform", platform)]
        argv += ["numpy", f"onnxruntime>={max(onnxruntime, OLDEST_ONNXRUNTIME, key=version_of)}"]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_PIP_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"pip fetched no onnxruntime for {what} within {_PIP_TIMEOUT_S} s", "is the package index reachable from here?") from error
        if done.returncode:
            kind = TooNew if "No matching distribution" in done.stderr and "from versions: none" not in done.stderr else DeviceError
            raise kind(*_pip_failure(done.stderr, what))
        for wheel in Path(scratch).glob("*.whl"):
            _pin(folder / wheel.name).write_text(digest_of_file(wheel), encoding="ascii")
            wheel.replace(folder / wheel.name)
    return _newest(folder, facts, onnxruntime)


def _what(facts: Facts) -> str:
    return f"Python {facts.python} on {facts.architecture} with {facts.libc or 'an unknown libc'}"


def _pip_failure(stderr: str, what: str) -> tuple[str, str]:
    if "No module named pip" in stderr:
        return "pip is needed here to fetch onnxruntime for the device, and this Python has none", f"`{sys.executable} -m ensurepip`, or `uv pip install pip`"
    if "No matching distribution" in stderr and "from versions: none" not in stderr:
        return f"there is no onnxruntime new enough for {what}", "update the device's Python, or package the model for an older opset"
    lines = [line for line in stderr.strip().splitlines() if line.startswith("ERROR")] or stderr.strip().splitlines()[-1:]
    reason = lines[-1].removeprefix("ERROR: ")[:300] if lines else "no reason given"
    return f"pip finds no onnxruntime for {what}: {reason}", "is the package index reachable from here? the device itself needs no internet"


def _platforms(facts: Facts) -> list[str]:
    """All tags of wheels that run there, the newest first. Empty for what no wheel is built for."""
    glibc = re.fullmatch(r"glibc 2\.([0-9]+).*", facts.libc or "")
    oldest = _OLDEST_GLIBC_MINOR.get(facts.architecture)
    if not glibc or oldest is None:
        return []
    minors = range(int(glibc[1]), oldest - 1, -1)
    modern = [f"manylinux_2_{minor}_{facts.architecture}" for minor in minors]
    return modern + [f"{name}_{facts.architecture}" for minor, name in _OLD_NAMES.items() if minor in minors]
