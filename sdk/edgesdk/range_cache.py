"""Measured ranges in files: written whole or not at all, believed only if undamaged, the longest unused removed beyond a bound.

keep(folder / "abc.npz", found)
read(folder / "abc.npz")        # the same; None if it is not there, or damaged
"""

import os
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.graph import Array
from edgesdk.histograms import BINS, Histogram, Range

MOST_BYTES = 256 << 20  # of all files in the folder

_DAMAGED = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def read(path: Path) -> dict[str, Range] | None:
    """The ranges by tensor. No code in a file is run."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            kept = {name: archive[name] for name in archive.files}
        histograms = [None] * len(kept["names"]) if "counts" not in kept else _parted(kept["exponents"], kept["firsts"], kept["sizes"], kept["counts"])
        rows = zip(kept["names"].tolist(), kept["extremes"].tolist(), kept["averages"].tolist(), histograms, strict=True)
        found = {name: Range(low, high, (average[0], average[1]), histogram) for name, (low, high), average, histogram in rows}
        os.utime(path)  # used just now
    except _DAMAGED:
        return None
    return found


def keep(path: Path, found: dict[str, Range]) -> None:
    """Write them, histograms too where all have one. A folder that cannot be written is none of the caller's troubles."""
    arrays: dict[str, Any] = {
        "names": np.array(list(found)),
        "extremes": np.array([(seen.low, seen.high) for seen in found.values()]),
        "averages": np.array([seen.average or (seen.low, seen.high) for seen in found.values()]),
    }
    histograms = [seen.histogram for seen in found.values() if seen.histogram is not None]
    if len(histograms) == len(found):
        arrays["exponents"] = np.array([each.exponent for each in histograms])
        arrays["firsts"] = np.array([each.first for each in histograms])
        arrays["sizes"] = np.array([each.counts.size for each in histograms])
        arrays["counts"] = np.concatenate([each.counts for each in histograms])
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez_compressed(stream, **arrays)
            Path(part).replace(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        _remove_oldest(path.parent)


def _parted(exponents: Array, firsts: Array, sizes: Array, counts: Array) -> list[Histogram]:
    if sizes.sum() != counts.size or (sizes < 0).any() or (sizes > BINS).any():
        raise ValueError
    each = np.split(counts, np.cumsum(sizes)[:-1])
    return [Histogram(*described) for described in zip(exponents.tolist(), firsts.tolist(), each, strict=True)]


def _remove_oldest(folder: Path) -> None:
    states = sorted(((file, file.stat()) for file in folder.iterdir() if file.is_file()), key=lambda kept: -kept[1].st_mtime_ns)
    total = 0
    for file, state in states:
        total += state.st_size
        if total > MOST_BYTES:
            file.unlink(missing_ok=True)
