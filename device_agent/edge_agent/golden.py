"""Golden answers on the device: read what came with the bundle, and say how far an answer is from it.

    samples = load(folder / "golden.npz", description)
    worst = compare(samples[0].answers, session.run(samples[0].feeds), description)      # raises Differs

Plain arrays only: no pickle is read, and sizes are known before anything is unpacked.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.bundle import BundleError, Description

Array = NDArray[Any]

_MAX_BYTES = 256 << 20
_MAX_SAMPLES = 64
_MEMBER = re.compile(r"([0-9]{1,4})\.(in|out)\.([0-9]{1,4})")


class Differs(Exception):
    """An answer that is not the golden one: which tensor, where, expected, got, allowed."""


@dataclass(frozen=True)
class Sample:
    """Inputs with the outputs that belong to them, by name."""

    feeds: dict[str, Array]
    answers: dict[str, Array]


@dataclass(frozen=True)
class Worst:
    """The output that came closest to its tolerance, or went farthest beyond it."""

    output: str
    difference: float
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load(path: Path, description: Description) -> list[Sample]:
    """All samples. Raises BundleError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"the golden answers cannot be read: {error.strerror}", "deploy the bundle again") from error
    return parse(data, description)


def parse(data: bytes, description: Description) -> list[Sample]:
    """The same of the file's content."""
    arrays = read_arrays(data, "golden.npz")
    inputs, outputs = [i.name for i in description.inputs], [o.name for o in description.outputs]
    found: dict[int, Sample] = {}
    for member, array in arrays.items():
        parts = _MEMBER.fullmatch(member)
        names = inputs if parts and parts[2] == "in" else outputs
        if not parts or int(parts[3]) >= len(names):
            raise BundleError(f"golden.npz has a member {member[:40]!r} that belongs to no tensor", "package the model again")
        sample = found.setdefault(int(parts[1]), Sample({}, {}))
        (sample.feeds if parts[2] == "in" else sample.answers)[names[int(parts[3])]] = array.astype(object) if array.dtype.kind == "U" else array
    whole = [found[index] for index in sorted(found)]
    if not whole or not all(set(s.feeds) == set(inputs) and set(s.answers) == set(outputs) for s in whole) or len(whole) > _MAX_SAMPLES:
        raise BundleError("golden.npz lacks a tensor of a sample, or holds none", "package the model again")
    return whole


def read_arrays(data: bytes, what: str) -> dict[str, Array]:
    """The arrays of an .npz. Raises BundleError for anything else, a pickle or a bomb."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_sizes(archive, what, _MAX_BYTES)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError, NotImplementedError, SyntaxError) as error:
        raise BundleError(f"{what} is not an .npz of plain arrays: {error}", "write it with numpy.savez, without object arrays") from error


def write_arrays(arrays: Mapping[str, Array]) -> bytes:
    """An .npz of them. Not np.savez: a tensor may be called `file`, which that takes for its own argument."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, value in arrays.items():
            array = np.asarray(value)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array.astype(str) if array.dtype == object else array, allow_pickle=False)
    return packed.getvalue()


def check_sizes(archive: zipfile.ZipFile, what: str, most_bytes: int) -> None:
    """Before anything is unpacked: all together is no larger than that, and no array claims to be larger than its file. Raises BundleError, ValueError."""
    if sum(info.file_size for info in archive.infolist()) > most_bytes:
        raise BundleError(f"{what} unpacks to more than {most_bytes} bytes", "give fewer or smaller samples")
    for info in archive.infolist():
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(stream)
        if not dtype.hasobject and (min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > info.file_size):
            raise ValueError(f"{info.filename[:80]} claims to have the shape {shape}")


def compare(expected: Mapping[str, Array], got: Mapping[str, Array], description: Description) -> Worst:
    """How far off the worst output is. Raises Differs, which names it, if that is too far."""
    found = [_distance(name, expected[name], got.get(name), description) for name in expected]
    worst, sentence = max(found, key=lambda one: (bool(one[1]), _excess(one[0])))
    if sentence:
        raise Differs(sentence)
    return worst


def worst_of(candidates: Sequence[Worst]) -> Worst:
    """The one that is farthest, measured by its tolerance."""
    return max(candidates, key=_excess)


def _excess(worst: Worst) -> float:
    return worst.difference / worst.tolerance if worst.tolerance else worst.difference


def _distance(name: str, expected: Array, got: Array | None, description: Description) -> tuple[Worst, str]:
    """How far off, and the sentence about it where that is too far."""
    tolerance = description.tolerance.get(name, 0.0)
    if got is None or got.shape != expected.shape or got.dtype.kind != expected.dtype.kind:
        came = "nothing" if got is None else f"{got.dtype.name} {list(got.shape)}"
        return Worst(name, np.inf, tolerance), f"the output `{name}` is {came}, expected {expected.dtype.name} {list(expected.shape)}"
    if not expected.size:
        return Worst(name, 0.0, tolerance), ""
    if expected.dtype.kind != "f":
        unequal = np.flatnonzero(np.asarray(expected != got).ravel())
        return Worst(name, float(unequal.size), 0.0), _at(name, int(unequal[0]), expected, got, "they must be equal") if unequal.size else ""
    # Infinite in the same place is equal; inf - inf would be NaN.
    same = (expected == got) | (np.isnan(expected) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(expected.astype(np.float64) - got.astype(np.float64))).ravel()
    difference[np.isnan(difference)] = np.inf  # NaN in one of them only
    place = int(difference.argmax())
    worst = Worst(name, float(difference[place]), tolerance)
    if worst.difference > tolerance:
        return worst, _at(name, place, expected, got, f"that is {worst.difference:.3g} off, tolerated is {tolerance:.3g}")
    return worst, _other_class(name, expected, got) if description.top1 and expected.ndim >= 2 else ""


def _at(name: str, place: int, expected: Array, got: Array, how: str) -> str:
    index = tuple(int(i) for i in np.unravel_index(place, expected.shape))
    return f"the output `{name}` at {list(index)}: expected {expected[index]}, got {got[index]}; {how}"


def _other_class(name: str, expected: Array, got: Array) -> str:
    first, second = expected.argmax(-1).ravel(), got.argmax(-1).ravel()
    moved = np.flatnonzero(first != second)
    return f"the output `{name}` chooses another class in row {moved[0]}: expected {first[moved[0]]}, got {second[moved[0]]}" if moved.size else ""
