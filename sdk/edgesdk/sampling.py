"""Sample feeds for a model: read from files or a function, checked against its inputs, or generated.

    samples = load("calibration.npz", model)
    calibration, held_back = samples.split()

Samples are read one at a time; how many there are makes no difference to the memory.
What can be known from a file's header (names, types, shapes) is refused before any data is read.
"""

import hashlib
import itertools
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from edge_agent.bundle import TensorInfo
from edgesdk import graph, users_code
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Feeds, Model

LABELS = "labels"  # a key that belongs to an evaluation set, not to the model
_MOST_NUMBERS = graph.MAX_BYTES // 8  # of a generated input, which is drawn as float64
_LENGTHS = (64, 48, 32, 224, 16, 128, 512, 8)  # tried in this order for free lengths, where nothing says better


@dataclass(frozen=True)
class Samples:
    """Feeds to be read as often as one likes, each time from the beginning and in the same order."""

    source: str
    read: Callable[[], Iterator[Feeds]] = field(repr=False)
    count: int | None = None  # None: not known before they were read

    def __iter__(self) -> Iterator[Feeds]:
        return self.read()

    def counted(self) -> "Samples":
        """The same, its count known."""
        return self if self.count is not None else replace(self, count=sum(1 for _ in self))

    def split(self, *, held_back: float = 0.25) -> tuple["Samples", "Samples"]:
        """Those to calibrate with and those that calibration must not see: evenly spread, since files are often sorted.

        A single sample is calibrated with, and nothing is held back.
        """
        count = self.counted().count or 0
        spared = 0 if count < 2 else min(max(round(count * held_back), 1), count - 1)
        seconds = frozenset((2 * i + 1) * count // (2 * spared) for i in range(spared))
        firsts = frozenset(range(count)) - seconds
        return self._only(firsts, "calibration part"), self._only(seconds, "held-back part")

    def first(self, count: int) -> "Samples":
        """The first few."""
        known = count if self.count is None else min(count, self.count)
        return Samples(self.source, lambda: itertools.islice(self.read(), count), None if self.count is None else known)

    def shapes(self) -> dict[str, list[int]]:
        """What the first feed's arrays measure: the shapes that a graph is fixed to."""
        for feeds in self:
            return {name: list(array.shape) for name, array in feeds.items()}
        raise SampleError(f"{self.source} holds no samples", "give at least one")

    def digest(self) -> str:
        """Of what is fed, whatever file it came in."""
        state = hashlib.sha256()
        for feeds in self:
            for name, array in sorted(feeds.items()):
                state.update(f"{name} {array.dtype.str} {array.shape};".encode())
                state.update(np.ascontiguousarray(array).tobytes())
        return "sha256:" + state.hexdigest()

    def _only(self, wanted: frozenset[int], part: str) -> "Samples":
        return Samples(f"{self.source} ({part})", lambda: (feeds for i, feeds in enumerate(self) if i in wanted), len(wanted))


def load(source: str | Path, model: Model) -> Samples:
    """The samples in a `.npz`, a `.npy`, a folder of these, or those that `module.py:function` yields. Raises SampleError.

    In a file, an array of its input's rank is cut along its first axis, one of a rank more holds whole feeds along it.
    """
    wanted = graph.inputs(model)
    text = str(source)
    if text.rpartition(":")[0].endswith(".py"):
        return _checked(Samples(f"`{text}`", _calling(text)), wanted)
    path = Path(source)
    if path.is_dir():
        files = sorted(child for child in path.iterdir() if child.suffix in (".npz", ".npy"))
        if not files:
            raise SampleError(f"the folder `{path}` holds no .npz or .npy files", "images have to be pre-processed: yield them from `module.py:function`")
    elif path.is_file():
        files = [path]
    else:
        raise SampleError(f"there are no samples at `{path}`", "give a .npz, a .npy, a folder of these, or `module.py:function`")
    parts = [_in_file(file, wanted) for file in files]
    return _checked(Samples(f"`{path}`", lambda: itertools.chain.from_iterable(parts), sum(part.count or 0 for part in parts)), wanted)


def of(feeds: Iterable[Feeds], model: Model, *, source: str = "the given samples") -> Samples:
    """Samples of arrays in memory, checked like any others. Raises SampleError."""
    kept = list(feeds)
    return _checked(Samples(source, lambda: iter(kept), len(kept)), graph.inputs(model))


def joined(feeds: Sequence[Feeds]) -> Feeds:
    """Several as one, along the first axes."""
    return feeds[0] if len(feeds) == 1 else {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}


def shapes_of(feeds: Feeds) -> list[tuple[str, tuple[int, ...]]]:
    """What can be joined has the same."""
    return sorted((name, array.shape) for name, array in feeds.items())


def generated(model: Model, n: int, *, seed: int = 0) -> Samples:
    """Random feeds that the model runs on, for want of real ones. Raises ModelError if it runs on none that were tried, or one would be beyond all bounds.

    A free batch is 1; other free lengths and the range of integers are the first of a few that the model accepts.
    """
    wanted = graph.inputs(model)
    for info in wanted:
        if math.prod(length or 1 for length in info.shape) > _MOST_NUMBERS:
            raise ModelError(
                f"the input `{info.name}` is {info.dtype} {_shape(info.shape)}: one sample would be larger than 2 GB", "export it with other lengths"
            )
    session = graph.session(model)
    free = any(length is None for info in wanted for length in info.shape[1:])
    refused: ModelError | None = None
    for length in _LENGTHS if free else _LENGTHS[:1]:
        for below in (100, 2):
            samples = Samples("generated samples", _drawing(wanted, n, seed, length, below), n)
            try:
                graph.run(session, next(iter(samples.first(1))))
            except ModelError as error:
                refused = error
            else:
                return samples
    raise ModelError("no random input was found that the model runs on", "give it some real ones: `--calibration`") from refused


def _checked(samples: Samples, wanted: tuple[TensorInfo, ...]) -> Samples:
    """The same, each feed compared with the model's inputs when it is read; none at all is an error at once, where that is known."""
    if samples.count == 0:
        raise SampleError(f"{samples.source} holds no samples", "give at least one")

    def read() -> Iterator[Feeds]:
        number = -1
        for number, feeds in enumerate(samples):
            yield _checked_feeds(feeds, wanted, f"{samples.source}, sample {number}")
        if number < 0:
            raise SampleError(f"{samples.source} holds no samples", "give at least one")

    return replace(samples, read=read)


def _checked_feeds(feeds: object, wanted: tuple[TensorInfo, ...], where: str) -> Feeds:
    if not isinstance(feeds, Mapping):
        raise SampleError(f"{where}: a {type(feeds).__name__}, not a dict from input names to arrays", f"the model's inputs: {_listed(wanted)}")
    _check_names(set(map(str, feeds)), wanted, where)
    checked = {}
    for info in wanted:
        array = np.asarray(feeds[info.name])
        _check_dtype(array.dtype, info, where)
        if not _fits(array.shape, info.shape):
            raise SampleError(f"{where}: `{info.name}` has shape {_shape(array.shape)}, the model wants {_shape(info.shape)}")
        if array.dtype.kind == "f":
            array = array.astype(info.dtype, copy=False)
            if np.isnan(array).any():
                raise SampleError(f"{where}: `{info.name}` holds NaN", "leave this sample out, or mend what made it")
        checked[info.name] = array
    return checked


def _in_file(path: Path, wanted: tuple[TensorInfo, ...]) -> Samples:
    """The samples in one file, as far as its headers tell."""
    with _streams(path, wanted) as streams:
        arrays = {name: _header(stream, f"`{path}`") for name, stream in streams.items()}
        sizes = {name: stream.seek(0, os.SEEK_END) for name, stream in streams.items()} if path.suffix == ".npy" else _sizes(path)
    _check_names(set(arrays), wanted, f"`{path}`")
    counts = {}
    for info in wanted:
        shape, dtype, _ = arrays[info.name]
        _check_dtype(dtype, info, f"`{path}`")
        counts[info.name] = _feeds_in(shape, info, f"`{path}`")
        if math.prod(shape) * dtype.itemsize > sizes[info.name]:
            raise SampleError(f"`{path}` ends before its last sample", "copy it again")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of `{name}`" for name, count in counts.items())
        raise SampleError(f"`{path}` holds different numbers of samples: {told}", "every input needs one array for each sample")

    def read() -> Iterator[Feeds]:
        with _streams(path, wanted) as streams:
            columns = [_feeds_of(streams[info.name], info, f"`{path}`") for info in wanted]
            for row in zip(*columns, strict=True):
                yield {info.name: array for info, array in zip(wanted, row, strict=True)}

    return Samples(f"`{path}`", read, next(iter(counts.values())))


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of each array, unpacked. A header may claim what it likes."""
    with zipfile.ZipFile(path) as archive:
        return {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}


@contextmanager
def _streams(path: Path, wanted: tuple[TensorInfo, ...]) -> Iterator[dict[str, BinaryIO]]:
    """The arrays in a file by name. A `.npy` has no names, so it serves a model with one input.

    What numpy, zipfile and the system say about a broken file becomes SampleError.
    """
    try:
        with ExitStack() as opened:
            if path.suffix != ".npy":
                archive = opened.enter_context(zipfile.ZipFile(path))
                members = {member.removesuffix(".npy"): member for member in archive.namelist()}
                yield {name: cast(BinaryIO, opened.enter_context(archive.open(member))) for name, member in members.items() if name != LABELS}
            elif len(wanted) == 1:
                yield {wanted[0].name: opened.enter_context(path.open("rb"))}
            else:
                raise SampleError(f"`{path}` is one array, and the model has {len(wanted)} inputs", f"write a .npz with the keys {_listed(wanted)}")
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise SampleError(f"`{path}` is not a file that numpy wrote, or a truncated one: {error}", "write it with `numpy.savez`") from error
    except OSError as error:
        raise SampleError(f"`{path}` cannot be read: {error.strerror or error}") from error


def _header(stream: BinaryIO, where: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type and whether the first axis varies fastest, of the array that begins here. Objects are refused: a pickle is code."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    if dtype.hasobject:
        raise SampleError(f"{where} holds Python objects", "write plain arrays; text as numpy's `str`")
    return shape, dtype, fortran


def _feeds_in(shape: tuple[int, ...], info: TensorInfo, where: str) -> int:
    """How many feeds an array of that shape holds."""
    batch = _batch(info)
    if len(shape) == len(info.shape) + 1 and _fits(shape[1:], info.shape):
        return shape[0]
    if len(shape) == len(info.shape) and shape and _fits((batch, *shape[1:]), info.shape) and shape[0] % batch == 0:
        return shape[0] // batch
    raise SampleError(
        f"{where}: `{info.name}` has shape {_shape(shape)}, the model wants {_shape(info.shape)}",
        f"many feeds are one array {_shape(('n', *info.shape[1:]) if info.shape else ('n',))}",
    )


def _feeds_of(stream: BinaryIO, info: TensorInfo, where: str) -> Iterator[Array]:
    """The feeds that an array holds, read one by one."""
    shape, dtype, fortran = _header(stream, where)
    count = _feeds_in(shape, info, where)
    each = shape[1:] if len(shape) == len(info.shape) + 1 else (_batch(info), *shape[1:])
    if fortran:
        whole = _taken(stream, dtype, int(np.prod(shape)), where).reshape(shape[::-1]).T
        yield from whole.reshape(count, *each)
        return
    for _ in range(count):
        yield _taken(stream, dtype, int(np.prod(each)), where).reshape(each)


def _taken(stream: BinaryIO, dtype: np.dtype, items: int, where: str) -> Array:
    if items * dtype.itemsize > graph.MAX_BYTES:
        raise SampleError(f"{where} holds samples of {items * dtype.itemsize:,} bytes each", "a model for a small computer takes less")
    data = stream.read(items * dtype.itemsize)
    if len(data) != items * dtype.itemsize:
        raise SampleError(f"{where} ends before its last sample", "copy it again")
    return np.frombuffer(data, dtype)


def _batch(info: TensorInfo) -> int:
    return 1 if not info.shape or info.shape[0] is None else info.shape[0]


def _check_names(given: set[str], wanted: tuple[TensorInfo, ...], where: str) -> None:
    names = {info.name for info in wanted}
    missing, strange = sorted(names - given), sorted(given - names - {LABELS})
    if missing or strange:
        told = [f"no {_quoted(missing)}"] if missing else []
        told += [f"{_quoted(strange)}, which is no input of the model"] if strange else []
        raise SampleError(f"{where} holds {' and '.join(told)}", f"the model's inputs: {_listed(wanted)}")


def _check_dtype(given: np.dtype, info: TensorInfo, where: str) -> None:
    """Floats of any width are taken for floats; anything else has to be what the model wants."""
    wants = "U" if info.dtype == "string" else np.dtype(info.dtype).kind if info.dtype != "bfloat16" else "f"
    if (given.kind == "f" and wants == "f") or (given.kind in "US" and wants == "U") or given == np.dtype("U" if wants == "U" else info.dtype):
        return
    raise SampleError(f"{where}: `{info.name}` is {given.name}, the model wants {info.dtype}", f"convert it: `.astype({info.dtype!r})`")


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, have) for have, want in zip(shape, wanted, strict=True))


def _calling(source: str) -> Callable[[], Iterator[Feeds]]:
    """Reading = calling the user's function, which takes no arguments and yields feeds."""
    path = Path(source.rpartition(":")[0])
    made = users_code.load(source, SampleError)

    def read() -> Iterator[Feeds]:
        with users_code.running(source, path.parent, SampleError):
            feeds = iter(made())
        while True:
            with users_code.running(source, path.parent, SampleError):
                feed = next(feeds, None)
            if feed is None:
                return
            yield feed

    return read


def _drawing(wanted: tuple[TensorInfo, ...], n: int, seed: int, length: int, below: int) -> Callable[[], Iterator[Feeds]]:
    def read() -> Iterator[Feeds]:
        random = np.random.default_rng(seed)
        for _ in range(n):
            yield {info.name: _drawn(info, random, length, below) for info in wanted}

    return read


def _drawn(info: TensorInfo, random: np.random.Generator, length: int, below: int) -> Array:
    shape = tuple(have if have is not None else 1 if axis == 0 else length for axis, have in enumerate(info.shape))
    if info.dtype == "string":
        return random.choice(np.array(["a", "b", "c"]), shape)
    kind = np.dtype(info.dtype).kind
    if kind in "iu":  # a mask of zeros asks the model to look at nothing
        return np.full(shape, 1, info.dtype) if "mask" in info.name.lower() else random.integers(0, below, shape).astype(info.dtype)
    if kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    return random.standard_normal(shape).astype(info.dtype)


def _listed(wanted: tuple[TensorInfo, ...]) -> str:
    return ", ".join(f"`{info.name}` {info.dtype} {_shape(info.shape)}" for info in wanted)


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shape(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("n" if length is None else str(length) for length in shape) + "]"
