"""Arrays in a file: `.npz` with plain numbers and text. An object array would be a pickle, which is code."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from edge_agent.bundle import BundleError
from edge_agent.golden import check_sizes
from edgesdk.errors import SampleError
from edgesdk.graph import MAX_BYTES, Array


def read(path: Path) -> dict[str, Array]:
    """Everything in an `.npz`, 2 GB at most. Raises SampleError for a file that is missing, no `.npz`, unpacks to more, or holds pickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_sizes(archive, f"`{path}`", MAX_BYTES)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except BundleError as error:
        raise SampleError(str(error), error.hint) from error
    except OSError as error:
        raise SampleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except (ValueError, AttributeError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        hint = "object arrays are pickles, which are code" if path.suffix == ".npz" else "an .npz says which input an array is for"
        raise SampleError(f"`{path}` is no .npz of plain arrays", f"save numbers with np.savez: {hint}") from error
