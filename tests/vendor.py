"""What others wrote in JavaScript, out of npm's packages: `make vendor` writes what the report draws with into the SDK, where it is kept.

Versions are pinned, the packages are checked against npm's own integrity, the files against their SHA-256. `python -m tests.vendor axe` fetches
the judge of accessibility that the tests ask, into `.cache`. Needs npm. To take a newer version: change it here, run this, look at a report.
"""

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "sdk" / "edgesdk" / "reporting" / "vendor"
LICENSES = FOLDER / "LICENSES.txt"
AXE = ROOT / ".cache" / "axe.min.js"


@dataclass(frozen=True, slots=True)
class Package:
    """``member`` of it becomes ``file``; None where only its licence is wanted, since another one's file holds it."""

    name: str
    version: str
    integrity: str
    member: str | None = None
    sha256: str = ""

    @property
    def file(self) -> str:
        return (self.member or "").rpartition("/")[2]


DRAWING = (
    Package(
        "d3",
        "7.9.2",
        "sha512-ZKb/mONPVKzaO5UlcWcwN8bS4ezvQaYu+bsou+XgNABdGC800kwH651ADTbbTxMPHW13UlvbQafdmJQDk1w7Mg==",
        "dist/d3.min.js",
        "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1",
    ),
    Package(
        "@observablehq/plot",
        "0.6.17",
        "sha512-/qaXP/7mc4MUS0s4cPPFASDRjtsWp85/TbfsciqDgU1HwYixbSbbytNuInD8AcTYC3xaxACgVX06agdfQy9W+g==",
        "dist/plot.umd.min.js",
        "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
    ),
    Package("interval-tree-1d", "1.0.4", "sha512-wY8QJH+6wNI0uh4pDQzMvl+478Qh7Rl4qLmqiluxALlNvl+I+o5x38Pw3/z7mDPTPS1dQalZJXsmbvxx5gclhQ=="),
    Package("binary-search-bounds", "2.0.5", "sha512-H0ea4Fd3lS1+sTEB2TgcLoK21lLhwEJzlQv3IN47pJS976Gx4zoWe0ak3q+uYh60ppQxg9F16Ri4tS1sfD4+jA=="),
    Package("isoformat", "0.2.1", "sha512-tFLRAygk9NqrRPhJSnNGh7g7oaVWDwR0wKh/GM2LgmPa50Eg4UfyaCO4I8k6EqJHl1/uh2RAD6g06n5ygEnrjQ=="),
)
JUDGE = Package(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    "axe.min.js",
    "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c",
)


def vendor() -> None:
    """What the report draws with, and under which licences."""
    terms = []
    FOLDER.mkdir(exist_ok=True)
    for package in DRAWING:
        members = fetched(package, "LICENSE", *([package.member] if package.member else []))
        if package.member:
            (FOLDER / package.file).write_bytes(members[package.member])
        terms.append(f"{package.name} {package.version}\n\n{members['LICENSE'].decode().strip()}\n")
    LICENSES.write_text("\n".join(terms), encoding="utf-8")


def axe() -> None:
    """The judge, unless it is there."""
    if not AXE.exists() or hashlib.sha256(AXE.read_bytes()).hexdigest() != JUDGE.sha256:
        AXE.parent.mkdir(exist_ok=True)
        AXE.write_bytes(fetched(JUDGE, "axe.min.js")["axe.min.js"])


def fetched(package: Package, *members: str) -> dict[str, bytes]:
    """Files out of a package. Ends the program where a digest is another."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if integrity != package.integrity:
            sys.exit(f"{package.name} {package.version} is another package than the one that was pinned: {integrity}")
        with tarfile.open(archive) as opened:
            found = {member: opened.extractfile(f"package/{member}").read() for member in members}  # type: ignore[union-attr]  # they are files
    if package.member and (digest := hashlib.sha256(found[package.member]).hexdigest()) != package.sha256:
        sys.exit(f"{package.member} of {package.name} {package.version} is another file than the one that was pinned: {digest}")
    return found


if __name__ == "__main__":
    axe() if sys.argv[1:] == ["axe"] else vendor()
