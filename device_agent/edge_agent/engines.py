"""What providers compile for this very machine and keep in a deployment's cache folder: engines, timings, kernels.

    keep(folder / "cache")       # before a model is opened: what another driver, GPU or onnxruntime left is gone
    drop(folder / "cache")       # what was left does not open

TensorRT ties an engine to the GPU, the driver and its own version, and does not always notice that one of them changed.
Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Optional

from edge_agent import facts
from edge_agent.store import write_atomically

_KEY = "machine.json"


def keep(cache: Path, onnxruntime: str, root: Path = Path("/")) -> bool:
    """Make the folder ready for this machine; whether something of another had to go. Raises OSError."""
    cache.mkdir(exist_ok=True)
    machine = {"onnxruntime": onnxruntime, **facts.identity(root)}
    if _key(cache) == machine:
        return False
    dropped = compiled(cache)
    drop(cache)
    write_atomically(cache / _KEY, json.dumps(machine).encode())
    return dropped


def compiled(cache: Path) -> bool:
    """Whether anything is kept there."""
    return cache.is_dir() and any(entry.name != _KEY for entry in cache.iterdir())


def drop(cache: Path) -> None:
    """Everything but the folder, the key first: where power fails in between, the rest is dropped the next time. Raises OSError."""
    key = cache / _KEY
    if key.exists():
        key.unlink()
    for entry in list(cache.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            os.unlink(entry)


def _key(cache: Path) -> Optional[dict[str, Any]]:
    try:
        found: dict[str, Any] = json.loads((cache / _KEY).read_bytes())
        return found
    except (OSError, ValueError):
        return None
