"""The ranges that a model's tensors take on samples.

found = ranges(model, ["conv_3_out"], samples)["conv_3_out"]     # Range(low=-1.2, high=6.0)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Model
from edgesdk.sampling import Samples

Progress = Callable[[int, int | None], None]  # samples done, of how many

HISTOGRAM_BINS = 2048
FETCHED_BYTES = 256 << 20  # tensors held at once while histograms are counted


@dataclass(frozen=True)
class Range:
    """What values a tensor took. ``counts`` is their histogram over -bound … bound where one was asked for."""

    low: float
    high: float
    counts: Array | None = field(default=None, repr=False, compare=False)

    @property
    def bound(self) -> float:
        """The greatest magnitude."""
        return max(abs(self.low), abs(self.high))

    def joined(self, other: "Range") -> "Range":
        """Of both together; their histograms are dropped, unless they are the same."""
        counts = self.counts if (self.low, self.high) == (other.low, other.high) else None
        return Range(min(self.low, other.low), max(self.high, other.high), counts)


def ranges(model: Model, tensors: Sequence[str], samples: Samples, *, histograms: bool = False, progress: Progress | None = None) -> dict[str, Range]:
    """The range of each tensor over the samples, by one pass; its histogram too, by a second. Raises ModelError, SampleError.

    Extremes are computed inside the graph, so what is held does not grow with the samples; one thread, so that the sums do not vary.
    """
    names = list(dict.fromkeys(tensors))
    total = samples.count
    found, bytes_of = _extremes(model, names, samples, progress, None if total is None else total * (1 + histograms))
    if not histograms:
        return found
    counts = {name: np.zeros(HISTOGRAM_BINS, np.int64) for name in names}
    groups = _grouped(names, bytes_of)
    sessions = [graph.session(_answering(model, group)) for group in groups]
    done = 0
    for done, feeds in enumerate(samples, 1):
        for session in sessions:
            for name, values in graph.run(session, feeds).items():
                _count(counts[name], values, found[name].bound)
        if progress and total:
            progress(total + done, 2 * total)
    return {name: replace(found[name], counts=counts[name]) for name in names}


def _extremes(model: Model, names: list[str], samples: Samples, progress: Progress | None, total: int | None) -> tuple[dict[str, Range], dict[str, int]]:
    """Range of each tensor, and the most bytes that it took in one sample."""
    measuring = graph.clone(model)
    inner = measuring.graph
    values = onnx_ir.convenience.create_value_mapping(inner)
    if unknown := [name for name in names if name not in values]:
        raise ModelError(f"the model has no tensor {', '.join(f'`{name}`' for name in unknown)}", "the recipe was made for another model")
    asked = []
    for name in names:
        for operator in ("ReduceMin", "ReduceMax", "Size"):
            node = onnx_ir.node(operator, [values[name]], attributes={} if operator == "Size" else {"keepdims": 0})
            node.outputs[0].name = graph.fresh(inner, f"{name}_{operator}")
            node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.INT64 if operator == "Size" else onnx_ir.DataType.FLOAT)
            node.outputs[0].shape = onnx_ir.Shape([])
            inner.append(node)
            asked.append(node.outputs[0])
    inner.outputs.clear()
    inner.outputs.extend(asked)
    session = graph.session(measuring)
    low, high, size = np.full(len(names), np.inf), np.full(len(names), -np.inf), np.zeros(len(names))
    done = 0
    for done, feeds in enumerate(samples, 1):
        answers = np.array([float(answer) for answer in graph.run(session, feeds).values()]).reshape(-1, 3)
        low, high, size = np.minimum(low, answers[:, 0]), np.maximum(high, answers[:, 1]), np.maximum(size, answers[:, 2])
        if progress:
            progress(done, total)
    if not done:
        raise SampleError(f"{samples.source} holds no samples", "give at least one")
    found = {name: Range(float(low[i]), float(high[i])) for i, name in enumerate(names)}
    return found, {name: 4 * int(size[i]) for i, name in enumerate(names)}


def _answering(model: Model, names: list[str]) -> Model:
    """The model with these tensors as its outputs."""
    measuring = graph.clone(model)
    values = onnx_ir.convenience.create_value_mapping(measuring.graph)
    measuring.graph.outputs.clear()
    for name in names:
        values[name].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        measuring.graph.outputs.append(values[name])
    return measuring


def _grouped(names: list[str], bytes_of: Mapping[str, int]) -> list[list[str]]:
    """Parted so that no group takes more than may be held at once, unless it is a single tensor."""
    groups: list[list[str]] = []
    held = FETCHED_BYTES + 1
    for name in names:
        held += bytes_of[name]
        if held > FETCHED_BYTES:
            groups.append([])
            held = bytes_of[name]
        groups[-1].append(name)
    return groups


def _count(counts: Array, values: Array, bound: float) -> None:
    """Add the values to a histogram over -bound … bound."""
    if bound == 0 or not np.isfinite(bound):
        return
    places = ((values.ravel() + bound) * (HISTOGRAM_BINS / (2 * bound))).astype(np.int64)
    counts += np.bincount(np.clip(places, 0, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
