"""The device side of edgesdk: runs bundles for local programs and reports their latency.

    from edge_agent import connect

    with connect("ocr") as model:
        answer = model({"x": image})

Needs numpy and h11; onnxruntime only where a model runs. Imports nothing of `edgesdk`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.checks import under_check as under_check
    from edge_agent.client import Model as Model
    from edge_agent.client import connect as connect
    from edge_agent.runtime import Runtime as Runtime

__version__ = "0.1.0"
__all__ = ["Model", "Runtime", "connect", "under_check"]

# Nothing phones home: onnxruntime would, from 1.32 on, with a thread that it starts at import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # These need numpy; the supervisor imports this package too and must not.
    from edge_agent import home

    home.use_numpy()
    if name == "Runtime":
        from edge_agent import runtime

        return runtime.Runtime
    if name == "under_check":
        from edge_agent import checks

        return checks.under_check
    from edge_agent import client

    return getattr(client, name)
