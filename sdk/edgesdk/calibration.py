"""The ranges that a model's tensors take on samples.

    found = statistics(model, ["conv_3_out"], samples, histograms=True)["conv_3_out"]     # Range(low=-1.2, high=6.0)
    clipped(found, "percentile", symmetric=False)                                         # Range(low=-1.1, high=5.7)

One pass over the samples, each dropped when it is counted: what is held grows neither with their number nor with the model
beyond a bound. Cores share the work, and how many there are changes nothing: what they find is added up in the samples' order.
"""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime

from edgesdk import graph, range_cache
from edgesdk.cache import cache_folder
from edgesdk.clipping import METHODS, NEED_HISTOGRAMS, Method, clipped
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Feeds, Model
from edgesdk.histograms import Histogram, Range
from edgesdk.sampling import Samples, joined, shapes_of

__all__ = ["METHODS", "NEED_HISTOGRAMS", "Histogram", "Method", "Progress", "Range", "clipped", "ranges", "statistics"]

Progress = Callable[[int, int | None], None]  # samples done, of how many

# Answer sequences or optionals, whose types are not always inferred right.
_NO_TENSORS = ("SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceMap", "Optional")
AVERAGING = 0.01  # the least weight of the latest sample in the average of extremes (onnxruntime's `averaging_constant`)
RUN_BYTES = 256 << 20  # tensors fetched by one run, unless a single one is larger
HELD_BYTES = 1 << 30  # by all runs at once
BATCH_BYTES = 32 << 20  # samples are run together while their tensors are not larger: it halves the time of small models, more gains nothing
MOST_TOGETHER = 32
FORMAT = 1  # of what is kept and of how it is measured: raise it when either changes


def statistics(
    model: Model, tensors: Sequence[str], samples: Samples, *, histograms: bool, progress: Progress | None = None, cache: Path | None = None
) -> dict[str, Range]:
    """The range of each float32 tensor over the samples; its histogram too if asked for. Raises ModelError, SampleError.

    All of the graph's float32 tensors are measured at once and kept in the folder ``cache`` (none given: in this machine's cache),
    so that of a model and its samples there is one measurement, whatever is asked for next. Measured with their histograms
    they answer a question without, too.
    """
    names = _known(model, tensors)
    folder = cache or cache_folder() / "calibration"
    key = _key(model, samples)
    for extent in ("histograms", "extremes")[: 1 if histograms else 2]:
        found = range_cache.read(folder / f"{key}-{extent}.npz")
        if found is not None and found.keys() >= set(names):
            return {name: found[name] for name in names}
    found = ranges(model, list(dict.fromkeys((*_float_tensors(model), *names))), samples, histograms=histograms, progress=progress)
    range_cache.keep(folder / f"{key}-{'histograms' if histograms else 'extremes'}.npz", found)
    return {name: found[name] for name in names}


def ranges(model: Model, tensors: Sequence[str], samples: Samples, *, histograms: bool = False, progress: Progress | None = None) -> dict[str, Range]:
    """The same of these tensors alone, measured now and not kept. Raises ModelError, SampleError.

    Tensors of more than RUN_BYTES in the first sample are measured in parts, each in a pass of its own.
    """
    names = _known(model, tensors)
    first = next(iter(samples.first(1)), None)
    if first is None:
        raise SampleError(f"{samples.source} holds no samples", "give at least one")
    bytes_of = _bytes(model, names, first)
    groups = _grouped(names, bytes_of)
    found: dict[str, Range] = {}
    for part, group in enumerate(groups):
        session = graph.session(graph.answering(model, group))
        held = max(1, sum(bytes_of[name] for name in group))
        batching = _batching(session, model, group, samples, held)
        run = partial(_seen, session, batching.axes, histograms=histograms)
        workers = max(1, min(_cores(), HELD_BYTES // (held * batching.together)))
        told = partial(_told, progress, part, samples.count, len(groups))
        found |= _added_up(group, _shared(run, _batches(samples, batching.together), workers), told)
    return {name: found[name] for name in names}


def _known(model: Model, tensors: Sequence[str]) -> list[str]:
    """Each once. Raises ModelError if one is not in the model."""
    names = list(dict.fromkeys(tensors))
    values = onnx_ir.convenience.create_value_mapping(model.graph)
    if unknown := [name for name in names if name not in values]:
        raise ModelError(f"the model has no tensor {', '.join(f'`{name}`' for name in unknown)}", "the recipe was made for another model")
    return names


def _float_tensors(model: Model) -> list[str]:
    """All that depend on the inputs, subgraphs' aside."""
    known = graph.clone(model)
    graph.infer_shapes(known)
    values = (*known.graph.inputs, *(value for node in known.graph if node.op_type not in _NO_TENSORS for value in node.outputs))
    return [value.name for value in values if value.name and value.type == onnx_ir.TensorType(onnx_ir.DataType.FLOAT) and graph.constant(value) is None]


def _key(model: Model, samples: Samples) -> str:
    """Of everything that decides what is measured."""
    state = hashlib.sha256(f"{FORMAT} {onnxruntime.__version__} {samples.digest()};".encode())
    for part in graph.to_bytes(model):
        state.update(hashlib.sha256(part or b"").digest())
    return state.hexdigest()


def _bytes(model: Model, names: list[str], feeds: Feeds) -> dict[str, int]:
    """What each tensor takes."""
    measuring = graph.clone(model)
    values = onnx_ir.convenience.create_value_mapping(measuring.graph)
    sizes = []
    for name in names:
        node = onnx_ir.node("Size", [values[name]])
        node.outputs[0].name = graph.fresh(measuring.graph, f"{name}_size")
        node.outputs[0].type, node.outputs[0].shape = onnx_ir.TensorType(onnx_ir.DataType.INT64), onnx_ir.Shape([])
        measuring.graph.append(node)
        sizes.append(node.outputs[0])
    measuring.graph.outputs.clear()
    measuring.graph.outputs.extend(sizes)
    answers = graph.run(graph.session(measuring), feeds)
    return {name: 4 * int(answer) for name, answer in zip(names, answers.values(), strict=True)}


def _grouped(names: list[str], bytes_of: Mapping[str, int]) -> list[list[str]]:
    """Parted so that no group takes more than may be fetched at once, unless it is a single tensor."""
    groups: list[list[str]] = []
    held = RUN_BYTES + 1
    for name in names:
        held += bytes_of[name]
        if held > RUN_BYTES:
            groups.append([])
            held = bytes_of[name]
        groups[-1].append(name)
    return groups


@dataclass(frozen=True)
class _Batching:
    """How many samples one run takes, and along which axis each tensor then holds them; None: it is the same for all."""

    together: int
    axes: Mapping[str, int | None]


def _batching(session: onnxruntime.InferenceSession, model: Model, names: list[str], samples: Samples, held: int) -> _Batching:
    """More than one only where the first two samples, run together, answer what each answers alone."""
    single = _Batching(1, dict.fromkeys(names, 0))
    most = min(MOST_TOGETHER, BATCH_BYTES // held)
    pair = list(samples.first(2))
    bound = any(not info.shape or info.shape[0] is not None for info in graph.inputs(model))
    if most < 2 or len(pair) < 2 or bound or shapes_of(pair[0]) != shapes_of(pair[1]):
        return single
    if all(np.array_equal(pair[0][name], pair[1][name]) for name in pair[0]):
        return single  # such a pair would tell nothing
    alone = [graph.run(session, feeds) for feeds in pair]
    try:
        both = graph.run(session, joined(pair))
        return _Batching(most, {name: _axis(both[name], [each[name] for each in alone]) for name in names})
    except (ModelError, _NoAxis):
        return single


class _NoAxis(Exception):
    """A tensor of two samples is not the tensors of each, side by side."""


def _axis(both: Array, parts: list[Array]) -> int | None:
    """Where the parts lie side by side, up to rounding: kernels may add in another order."""
    bound = max(float(np.abs(part[np.isfinite(part)]).max(initial=0.0)) for part in parts)
    alike = partial(np.allclose, both, rtol=1e-4, atol=1e-4 * bound, equal_nan=True)
    if all(part.shape == both.shape and alike(part) for part in parts):
        return None
    if parts[0].shape == parts[1].shape:
        for axis in range(both.ndim):
            side_by_side = np.concatenate(parts, axis)
            if side_by_side.shape == both.shape and alike(side_by_side):
                return axis
    raise _NoAxis


def _batches(samples: Samples, together: int) -> Iterator[list[Feeds]]:
    """In order, only what is of the same shapes together."""
    for _, alike in itertools.groupby(samples, shapes_of):
        while batch := list(itertools.islice(alike, together)):
            yield batch


@dataclass(frozen=True)
class _Seen:
    """What one run found."""

    low: Array  # [samples, tensors]
    high: Array
    histograms: list[Histogram]  # of the tensors, all samples together


def _seen(session: onnxruntime.InferenceSession, axes: Mapping[str, int | None], batch: list[Feeds], *, histograms: bool) -> _Seen:
    answers = graph.run(session, joined(batch))
    arrays = [_rows(answers[name], axis, len(batch)) for name, axis in axes.items()]
    return _Seen(
        np.stack([array.min(axis=1, initial=np.inf) for array in arrays], axis=1),
        np.stack([array.max(axis=1, initial=-np.inf) for array in arrays], axis=1),
        [Histogram.of(array) for array in arrays] if histograms else [],
    )


def _rows(array: Array, axis: int | None, count: int) -> Array:
    """One a sample."""
    if count == 1 or axis is None:
        return np.broadcast_to(array.reshape(1, -1), (count, array.size))
    return np.moveaxis(array, axis, 0).reshape(count, -1)


def _shared(run: Callable[[list[Feeds]], _Seen], batches: Iterable[list[Feeds]], workers: int) -> Iterator[_Seen]:
    """What each run finds, in the order of the batches, no more of them under way than there are workers."""
    pending: deque[Future[_Seen]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in batches:
            pending.append(pool.submit(run, batch))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _added_up(names: list[str], parts: Iterable[_Seen], told: Callable[[int], None]) -> dict[str, Range]:
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    average, number = np.zeros((2, len(names))), np.zeros(len(names))
    histograms: list[Histogram] = []
    done = 0
    for part in parts:
        low, high = np.minimum(low, part.low.min(axis=0)), np.maximum(high, part.high.max(axis=0))
        histograms = [one.joined(other) for one, other in zip(histograms, part.histograms, strict=True)] if histograms else part.histograms
        for row in zip(part.low.astype(np.float64), part.high.astype(np.float64), strict=True):
            _average(average, number, np.stack(row))
        done += len(part.low)
        told(done)
    never = low > high
    low[never] = high[never] = 0.0
    return {
        name: Range(float(low[i]), float(high[i]), (float(average[0, i]), float(average[1, i])), histograms[i] if histograms else None)
        for i, name in enumerate(names)
    }


def _average(average: Array, number: Array, extremes: Array) -> None:
    """Take one sample in: the first hundred weigh alike, the latest 1 % from then on. What has no values in this sample is left out."""
    present = ~(extremes[0] > extremes[1])
    number += present
    weight = np.maximum(1 / np.maximum(number, 1), AVERAGING)
    with np.errstate(invalid="ignore"):  # infinities: such a tensor keeps its whole range anyway
        average[:] = np.where(present, average + weight * (extremes - average), average)


def _told(progress: Progress | None, part: int, count: int | None, parts: int, done: int) -> None:
    if progress:
        progress(part * (count or 0) + done, None if count is None else parts * count)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
