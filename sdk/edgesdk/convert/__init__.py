"""Framework → ONNX, one module a framework; each conversion is checked against its source before it is written.

    converted = convert("iris.skops", Path("iris.onnx"), samples="calibration.npz")
    converted.outputs           # (Agreement(output="label", ...), Agreement(output="probabilities", difference=6e-08, tolerance=1e-04, ...))

Frameworks are imported when a source of theirs is converted, not before: this package itself needs the standard library only.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk.convert import sklearn, torch
from edgesdk.convert.agreement import Agreement, compare
from edgesdk.convert.exported import DEFAULT_OPSET, OLDEST_OPSET, Exported, Request, parse_input
from edgesdk.errors import ConversionError, ModelError
from edgesdk.progress import Progress, silent

if TYPE_CHECKING:
    from edgesdk.graph import Model
    from edgesdk.sampling import Samples

CHECKED_SAMPLES = 256  # of the user's, at most
GENERATED_SAMPLES = 32

EXPORTERS: dict[str, Callable[[Request], Exported]] = {
    ".skops": sklearn.export,
    ".pkl": sklearn.export,
    ".pickle": sklearn.export,
    ".joblib": sklearn.export,
    ".py": torch.export,
    ".pt": torch.export,
    ".pth": torch.export,
    ".pt2": torch.export,
}
_SKOPS = "save it with skops: `skops.io.dump(model, 'model.skops')`"
_BUILDER = "name the code that builds it: `module.py:function`"
CODE = {".pkl": _SKOPS, ".pickle": _SKOPS, ".joblib": _SKOPS, ".pt": _BUILDER, ".pth": _BUILDER, ".pt2": _BUILDER}  # what else one can do


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """An ONNX file that answers as its source does, and how that was found."""

    source: str
    target: Path
    framework: str
    model: str  # its class
    opset: int
    samples: int
    samples_source: str
    outputs: tuple[Agreement, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `convert --json` prints."""
        return asdict(self) | {"target": str(self.target), "outputs": [asdict(output) for output in self.outputs]}

    def to_text(self) -> str:
        """The same for people."""
        what = f"{self.target}: {self.model} from {self.framework}, opset {self.opset}"
        checked = f"answers as the source does on {self.samples} samples ({self.samples_source})"
        return "\n".join([what, checked, *(f"  {output.to_text()}" for output in self.outputs)])


def convert(
    source: str,
    target: Path,
    *,
    samples: str | None = None,
    trust: bool = False,
    opset: int | None = None,
    inputs: Sequence[str] = (),
    progress: Progress = silent,
) -> Converted:
    """Write ``target`` if it answers as the source does on the samples: the user's, else generated ones. Raises ConversionError or SampleError.

    ``inputs`` are shapes like `image=1,3,224,224` or `ids=int64:1,48`, for sources that do not know them.
    """
    exporter = _exporter_for(source, trust=trust)
    _check_target(target)
    if opset is not None and opset < OLDEST_OPSET:
        raise ConversionError(f"onnxruntime runs no opset {opset}", f"{OLDEST_OPSET} is the oldest; without --opset it is {DEFAULT_OPSET}")
    progress("export", 0, 0)
    exported = exporter(Request(source, trust=trust, opset=opset or DEFAULT_OPSET, samples=samples, inputs=tuple(map(parse_input, inputs))))
    progress("compare answers", 0, 0)
    with _written_beside(target, exported.onnx) as part:
        model = _load(part, source)
        feeds = _samples(samples, model)
        outputs = compare(exported.run, model, feeds)
    return Converted(
        source=source,
        target=target,
        framework=exported.framework,
        model=exported.model,
        opset=model.opset_imports.get("", 0),
        samples=feeds.count or 0,
        samples_source=samples or "generated",
        outputs=outputs,
    )


def _exporter_for(source: str, *, trust: bool) -> Callable[[Request], Exported]:
    """By the file's suffix. Raises ConversionError for what is not there, not known, or not trusted."""
    file, _, function = source.rpartition(":")
    path = Path(file if file.endswith(".py") and function.isidentifier() else source)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        raise ConversionError(f"`{source}` is ONNX already", "go on with `edgesdk package`")
    if suffix not in EXPORTERS:
        raise ConversionError(f"`{source}` is nothing that edgesdk converts: it knows {', '.join(EXPORTERS)}", "export it to ONNX with its own framework")
    if not path.is_file():
        raise ConversionError(f"there is no file `{path}`", "check the path")
    if suffix == ".py" and str(path) == source:
        raise ConversionError(f"`{source}` does not say which function builds the model", f"write `{source}:function`")
    if suffix in CODE and not trust:
        raise ConversionError(
            f"`{source}` holds a pickle, and loading a pickle runs the code in it", f"give --trust if you know who made it; or {CODE[suffix]}"
        )
    return EXPORTERS[suffix]


def _check_target(target: Path) -> None:
    """Before the long work."""
    if target.suffix != ".onnx":
        raise ConversionError(f"the result is an ONNX file, and `{target}` is not named like one", f"write to `{target.with_suffix('.onnx')}`")
    if not target.absolute().parent.is_dir():
        raise ConversionError(f"there is no folder `{target.parent}`", "make it first")
    if target.is_dir():
        raise ConversionError(f"`{target}` is a folder", "name a file")


@contextmanager
def _written_beside(target: Path, content: bytes) -> Iterator[Path]:
    """A file that takes the target's place if the block ends well, and is gone otherwise."""
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _load(part: Path, source: str) -> "Model":
    from edgesdk import graph

    try:
        return graph.load(part)
    except ModelError as error:
        raise ConversionError(f"the conversion of `{source}` is no valid model: {error}", error.hint) from error


def _samples(source: str | None, model: "Model") -> "Samples":
    """Those to check with, their count known."""
    from edgesdk import sampling

    if source is None:
        return sampling.generated(model, GENERATED_SAMPLES)
    given = sampling.load(source, model)
    return sampling.of(islice(given, CHECKED_SAMPLES), model, source=given.source)
