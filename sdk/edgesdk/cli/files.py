"""The files that verbs write: what cannot be written is refused before the long work."""

import os
from collections.abc import Iterable
from pathlib import Path

from edgesdk.errors import ProjectError


def check(path: Path, *, makes_folders: bool = False, sources: Iterable[Path | str | None] = ()) -> None:
    """A file can be written there, the folders above it made on the way or not, and it is none of what is read. Raises ProjectError."""
    folder = path.absolute().parent
    while makes_folders and not folder.exists():
        folder = folder.parent
    if path.is_dir():
        raise ProjectError(f"`{path}` is a folder", "name the file that is to be written")
    if not folder.is_dir():
        raise ProjectError(f"there is no folder `{folder}`", "make it, or write elsewhere")
    if path.exists() and any(source and Path(source).exists() and path.samefile(source) for source in sources):
        raise ProjectError(f"`{path}` is what is read: it would be gone", "write to another file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ProjectError(f"`{path}` cannot be written", "write elsewhere, or see to its permissions")


def check_result(path: Path, *, sources: Iterable[Path | str | None] = ()) -> None:
    """The same of a result, under a name by which `compare` knows it from a model."""
    if path.suffix != ".json":
        raise ProjectError(f"`{path}` is no name of a result", "give one that ends in .json")
    check(path, sources=sources)


def check_recipe(path: Path) -> None:
    """The same of a recipe to be kept, under a name that `--recipe` reads."""
    if path.suffix != ".toml":
        raise ProjectError(f"`{path}` is no name of a recipe", "give one that ends in .toml")
    check(path)
