"""Golden answers: inputs with the outputs that a device must give before a bundle becomes active there.

They are answers of the shipped model, not of the original: what is asked is whether the device computes what was judged here.
How far it may be off comes from the original: half of the distance between its answers and the shipped model's, so that a device
that is as far from the shipped model as quantization was from float is found out.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.accuracy import Run
from edgesdk.errors import ModelError
from edgesdk.graph import Feeds

SAMPLES = 4
MAX_BYTES = 16 << 20
RELATIVE = 1e-5  # of an output's greatest magnitude: what the order of float32 sums may change


@dataclass(frozen=True, slots=True)
class Golden:
    """``archive`` is `golden.npz`; ``tolerance`` the greatest absolute difference allowed, by output."""

    archive: bytes
    samples: int
    tolerance: dict[str, float]


def record(original: Run, shipped: Run, feeds: Iterable[Feeds], inputs: Sequence[str], outputs: Sequence[str]) -> Golden:
    """Run both on the first few feeds. Raises ModelError if the shipped model answers with NaN or infinity where the original does not."""
    arrays: dict[str, NDArray[Any]] = {}
    tolerance = dict.fromkeys(outputs, 0.0)
    samples = 0
    for feed in feeds:
        expected, answer = original(feed), shipped(feed)
        for index, name in enumerate(inputs):
            arrays[f"{samples}.in.{index}"] = _plain(feed[name])
        for index, name in enumerate(outputs):
            arrays[f"{samples}.out.{index}"] = _plain(answer[name])
            tolerance[name] = max(tolerance[name], _allowed(name, expected[name], answer[name]))
        samples += 1
        if samples == SAMPLES or sum(array.nbytes for array in arrays.values()) * (samples + 1) / samples > MAX_BYTES:
            break
    if not samples:
        raise ModelError("there is no sample to record golden answers with", "give --calibration samples")
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own flags
    return Golden(packed.getvalue(), samples, tolerance)


def _allowed(name: str, expected: NDArray[Any], answer: NDArray[Any]) -> float:
    """max(1e-5 of the magnitude, half of the float-to-shipped error)."""
    if answer.dtype.kind not in "fc":
        return 0.0
    finite = np.isfinite(answer)
    if not finite.all() and np.isfinite(expected).all():
        raise ModelError(
            f"the shipped model answers with NaN or infinity in `{name}`, the original does not", "float16 ends at 65504: keep such operators in float32"
        )
    if not finite.any():
        return 0.0
    magnitude = float(np.abs(answer[finite].astype(np.float64)).max())
    error = float(np.abs(answer[finite].astype(np.float64) - expected[finite].astype(np.float64)).max()) if expected.shape == answer.shape else 0.0
    return max(RELATIVE * max(magnitude, 1.0), error / 2)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Text as numpy's unicode: an object array would be a pickle."""
    return array.astype(np.str_) if array.dtype.kind == "O" else np.ascontiguousarray(array)
