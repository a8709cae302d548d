"""Where this machine keeps what can be fetched or computed again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """EDGESDK_CACHE, else where caches belong."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("EDGESDK_CACHE") or Path(base, "edgesdk")).expanduser()
