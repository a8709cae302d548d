"""Eight real models with labelled data: what quantizing is tried on.

    from tests.suite import SUITE, chosen
    for entry in chosen(["rec", "det"]):
        entry.model, entry.evaluate, entry.calibration

An entry's strings are what the command line takes: `edgesdk package MODEL --evaluate tests/suite/ocr_rec.py:evaluate --calibration
tests/suite/ocr_rec.py:calibration`. What is not in the repository `make suite-data` fetches. README.md says where each comes from.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FETCHED = REPOSITORY / ".cache" / "suite"
COMMITTED = REPOSITORY / "tests" / "data"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model and the module that feeds and scores it: ``calibration()`` yields feeds, ``evaluate(run)`` gives scores of others."""

    name: str
    title: str
    model: Path
    module: Path
    least_speedup: float = 0.98  # against the file as given; what `make bench` holds it to

    @property
    def evaluate(self) -> str:
        return f"{self.module}:evaluate"

    @property
    def calibration(self) -> str:
        return f"{self.module}:calibration"


def _entry(name: str, title: str, folder: Path, model: str, module: str, least_speedup: float = 0.98) -> Entry:
    return Entry(name, title, folder / f"{model}.onnx", Path(__file__).with_name(f"{module}.py"), least_speedup)


SUITE = (
    _entry("rec", "PP-OCRv4 recognition", FETCHED, "ch_PP-OCRv4_rec_infer", "ocr_rec", 1.75),
    _entry("det", "PP-OCRv4 detection", FETCHED, "ch_PP-OCRv4_det_infer", "ocr_det", 1.4),
    _entry("cls", "PP-OCR text direction", FETCHED, "ch_ppocr_mobile_v2.0_cls_infer", "ocr_cls", 1.5),
    _entry("resnet8", "ResNet-8, MNIST", COMMITTED, "resnet8_mnist", "digits"),
    _entry("resnet20", "ResNet-20, Fashion-MNIST", COMMITTED, "resnet20_fashion", "fashion"),
    _entry("mobilenet", "MobileNet, Fashion-MNIST", COMMITTED, "mobilenet_fashion", "fashion"),
    _entry("minilm", "MiniLM, sentences", FETCHED, "paraphrase-MiniLM-L3-v2", "sentences"),
    _entry("bilstm", "BiLSTM, Japanese vowels", COMMITTED, "bilstm_vowels", "vowels"),
)


def edgesdk_digest() -> str:
    """Of all that decides what `edgesdk package` makes: results of another digest are not taken for this one's."""
    state = hashlib.sha256()
    for path in sorted([*(REPOSITORY / "sdk").rglob("*.py"), *(REPOSITORY / "profiles").glob("*.toml")]):
        state.update(path.read_bytes())
    return state.hexdigest()[:12]


def chosen(names: Iterable[str]) -> list[Entry]:
    """The entries of these names, all for none. Exits, telling what there is, for a name that is none and where data is missing."""
    wanted = list(names) or [entry.name for entry in SUITE]
    known = {entry.name: entry for entry in SUITE}
    if strange := [name for name in wanted if name not in known]:
        raise SystemExit(f"no model of the suite is called {', '.join(strange)}: there are {', '.join(known)}")
    if not FETCHED.is_dir():
        raise SystemExit("the suite's models and data are not there: `make suite-data` fetches them")
    return [known[name] for name in wanted]
