"""Take a trained model to a small computer and keep it running there.

    from pathlib import Path
    import edgesdk

    profile = edgesdk.find_profile("raspberry-pi-5")
    made = edgesdk.package(edgesdk.Request(model=Path("ocr.onnx"), profiles=(profile,), name="ocr", output=Path("bundles/ocr")))
    with edgesdk.connect("pi@192.168.1.20") as device:
        edgesdk.deploy(device, made[0].bundle)

A tour, in the order of the work: `profiles` says what hardware wants; `convert` makes ONNX of what a framework trained; `graph`
reads it; `passes` transform it, one file each; `recipe` chooses among them by evidence that `accuracy` and `benchmark` gather;
`constraints` proves that the result obeys its profile; `packaging` is that whole path, top to bottom, and ends in a bundle, whose
format `edge_agent.bundle` owns. `deploying` takes a bundle to a `device` over a `transport`, and that is asked there. `cli` is all of this typed.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgesdk.comparison import compare
    from edgesdk.deploying import deploy
    from edgesdk.device import connect
    from edgesdk.errors import EdgeSDKError
    from edgesdk.evaluation import Evaluated, evaluate
    from edgesdk.inspection import inspect
    from edgesdk.packaging import Packaged, Request, optimize, package, quantize
    from edgesdk.profiles import Profile
    from edgesdk.profiles import find as find_profile
    from edgesdk.pruning import Goal, prune
    from edgesdk.reporting import report
    from edgesdk.timing import bench
    from edgesdk.tuning import Tuned, tune
    from edgesdk.verification import verify

__all__ = [
    "EdgeSDKError",
    "Evaluated",
    "Goal",
    "Packaged",
    "Profile",
    "Request",
    "Tuned",
    "bench",
    "compare",
    "connect",
    "deploy",
    "evaluate",
    "find_profile",
    "inspect",
    "optimize",
    "package",
    "prune",
    "quantize",
    "report",
    "tune",
    "verify",
]

# Nothing phones home: onnxruntime would, from 1.32 on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "EdgeSDKError": "errors",
    "Evaluated": "evaluation",
    "Goal": "pruning",
    "Packaged": "packaging",
    "Profile": "profiles",
    "Request": "packaging",
    "Tuned": "tuning",
    "bench": "timing",
    "compare": "comparison",
    "connect": "device",
    "deploy": "deploying",
    "evaluate": "evaluation",
    "find_profile": "profiles",
    "inspect": "inspection",
    "optimize": "packaging",
    "package": "packaging",
    "prune": "pruning",
    "quantize": "packaging",
    "report": "reporting",
    "tune": "tuning",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: `edgesdk --help` must load neither onnx nor paramiko.
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"edgesdk.{_HOMES[name]}"), name.removesuffix("_profile"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
