"""What a framework's module is asked, and what it hands over: the ONNX file, and the source to be asked the same questions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agent.bundle import TensorInfo
from edgesdk.errors import ConversionError

if TYPE_CHECKING:
    from edgesdk.graph import Feeds

# The opset that PyTorch's exporter writes natively (others are converted from it), old enough for every ONNX Runtime that the agent takes.
DEFAULT_OPSET = 18
OLDEST_OPSET = 7  # that onnxruntime promises to run
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class Request:
    """``inputs`` are those that the user described; a source that knows its own needs none."""

    source: str
    trust: bool
    opset: int
    samples: str | None
    inputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class Exported:
    """``run`` asks the source model and answers under the names of the file's outputs."""

    framework: str  # with its version
    model: str  # the source's class
    onnx: bytes
    run: "Callable[[Feeds], Feeds]"


def parse_input(text: str) -> TensorInfo:
    """`image=1,3,224,224`, or with a type other than float32 `ids=int64:1,48`. Raises ConversionError."""
    name, equals, described = text.partition("=")
    dtype, colon, lengths = described.rpartition(":")
    try:
        if not (equals and name.isidentifier()) or (colon and dtype not in DTYPES):
            raise ValueError(text)
        shape = tuple(int(length) for length in lengths.split(","))
        if min(shape) < 1:
            raise ValueError(text)
        return TensorInfo(name, dtype or "float32", shape)
    except ValueError as error:
        raise ConversionError(f"`{text}` is no input", "write its name and shape like `image=1,3,224,224`, or `ids=int64:1,48`") from error


@contextmanager
def needs(extra: str, framework: str) -> Iterator[None]:
    """Around the imports that an extra of edgesdk brings."""
    try:
        yield
    except ImportError as error:
        raise ConversionError(f"converting from {framework} needs `{error.name}`, which is not installed here", f"pip install 'edgesdk[{extra}]'") from error


def first_line(error: Exception) -> str:
    """The part of a framework's message that fits into a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
