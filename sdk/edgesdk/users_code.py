"""Code of the user's, named as `module.py:function`: an evaluation, samples, what builds a model.

    evaluate = load("evaluate.py:evaluate", EvaluationError)
    scores = evaluate(run)

While it runs its folder is importable, what it prints goes to stderr, since stdout is for data, and what it raises becomes one
error of the caller's kind that carries its traceback as the hint.
"""

import contextlib
import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from edgesdk.errors import EdgeSDKError

TRACEBACK_LINES = 12


def load(source: str, kind: type[EdgeSDKError]) -> Callable[..., Any]:
    """The function, which raises only ``kind``. Raises ``kind`` where there is no such file or function."""
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not name.isidentifier():
        raise kind(f"`{source}` names no function", "give module.py:function")
    if not path.is_file():
        raise kind(f"there is no file `{path}`", "give module.py:function")
    spec = importlib.util.spec_from_file_location(f"edgesdk_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with running(str(path), path.parent, kind):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise kind(f"`{path}` has no function `{name}`", "give module.py:function")

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with running(source, path.parent, kind):
            return function(*arguments)

    return call


@contextlib.contextmanager
def running(source: str, folder: Path, kind: type[EdgeSDKError]) -> Iterator[None]:
    """The user's code runs inside. What edgesdk itself raises in there stays what it is."""
    importable = str(folder.resolve())
    sys.path.insert(0, importable)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except EdgeSDKError as error:
        error.hint = error.hint or f"asked by `{source}`{_place(error, folder)}"
        raise
    except (Exception, SystemExit) as error:
        lines = [line for line in "".join(traceback.format_exception(type(error), error, _theirs(error))).splitlines() if line.strip()]
        raise kind(f"`{source}` failed: {type(error).__name__}: {error}{_place(error, folder)}", "\n".join(lines[-TRACEBACK_LINES:])) from error
    finally:
        sys.path.remove(importable)


def _theirs(error: BaseException) -> TracebackType | None:
    """Where it was raised, from the first line that is not this module's."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


def _place(error: BaseException, folder: Path) -> str:
    """Where the user's own code was at it: ` (evaluate.py, line 12)`; nothing where none of it was."""
    frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(path, line) for path, line in frames if path.is_relative_to(folder.resolve()) and "site-packages" not in path.parts]
    return f" ({own[-1][0].name}, line {own[-1][1]})" if own else ""
