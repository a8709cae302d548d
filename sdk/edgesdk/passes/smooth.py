"""Activations whose channels are of unlike size share that with the weights that read them, so that one scale for the tensor wastes less."""

from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Model
from edgesdk.passes._channels import Source, scaled, source, write
from edgesdk.passes._linear import absorb_before, is_linear
from edgesdk.sampling import Samples

_AXES = {"Conv": (1,), "Gemm": (1, -1), "MatMul": (-1,)}  # where the channels lie that a reader's weights are for
_GREATEST = 2.0**20  # of a factor: float32 holds what comes of it


def smooth(model: Model, *, samples: Samples, alpha: float = 0.5) -> Model:
    """Each channel of what a Conv, Gemm or MatMul reads is divided by max|x|^alpha / max|w|^(1 - alpha), and its weights multiplied; the function stays.

    Xiao et al. 2022, "SmoothQuant" (arXiv:2211.10438), equation 4. Done where whatever makes the tensor can take up the factors: the scale of
    a LayerNormalization or BatchNormalization, a Conv, Gemm or MatMul with what is added to it, a Mul by a constant; and where all its
    readers have constant weights. The very same model where there is no such place. Raises ModelError, SampleError.
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha is {alpha:g}: it is the activations' share, from 0 to 1", "0.5 is usual")
    even = graph.clone(model)
    graph.infer_shapes(even)
    places = [place for value in _read_by_linear(even) if (place := _place(value)) is not None]
    if not places:
        return model
    for place, largest in zip(places, _largest(even, places, samples), strict=True):
        _smooth(place, largest, alpha)
    return even


@dataclass(frozen=True)
class _Place:
    """A tensor with channels along ``axis``, what makes it, and its readers."""

    value: onnx_ir.Value
    axis: int
    source: Source
    readers: tuple[onnx_ir.Node, ...]


def _read_by_linear(model: Model) -> list[onnx_ir.Value]:
    return list(dict.fromkeys(value for node in model.graph if _is_reader(node) and (value := node.inputs[0]) is not None))


def _is_reader(node: onnx_ir.Node) -> bool:
    if node.op_type == "MatMul" and not node.domain:
        weight = graph.constant(node.inputs[1])
        return weight is not None and weight.dtype == np.float32 and weight.ndim == 2
    return node.op_type in _AXES and is_linear(node) and not ("transA" in node.attributes and node.attributes["transA"].as_int())


def _place(value: onnx_ir.Value) -> _Place | None:
    uses = list(value.uses())
    if value.is_graph_output() or value.is_graph_input() or not all(use.idx == 0 and _is_reader(use.node) for use in uses):
        return None
    readers = tuple(use.node for use in uses)
    counts = {_by_input(node).shape[0] for node in readers}
    if len(counts) > 1 or any(node.graph is not readers[0].graph for node in readers):
        return None
    for axis in (1, -1):
        found = source(value, axis, next(iter(counts))) if all(axis in _AXES[node.op_type] for node in readers) else None
        if found is not None and found.node.graph is readers[0].graph:
            return _Place(value, axis, found, readers)
    return None


def _by_input(node: onnx_ir.Node) -> Array:
    """The largest weight of each input channel."""
    weight = graph.constant(node.inputs[1])
    assert weight is not None
    sizes = np.abs(weight.astype(np.float64))
    if node.op_type != "Conv":
        return np.asarray(sizes.max(axis=0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1, initial=0))
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return np.asarray(sizes.reshape(group, weight.shape[0] // group, weight.shape[1], -1).max(axis=(1, 3), initial=0).ravel())


def _largest(model: Model, places: list[_Place], samples: Samples) -> list[Array]:
    """The greatest magnitude of each channel over the samples."""
    names = [str(place.value.name) for place in places]
    session = graph.session(graph.answering(model, names))
    found = [np.zeros(_by_input(place.readers[0]).shape) for place in places]
    fed = False
    for feeds in samples:
        fed = True
        answers = graph.run(session, feeds)
        for index, (name, place) in enumerate(zip(names, places, strict=True)):
            by_channel = np.moveaxis(np.abs(answers[name]), place.axis, 0).reshape(len(found[index]), -1)
            found[index] = np.maximum(found[index], by_channel.max(axis=1, initial=0))
    if not fed:
        raise SampleError(f"{samples.source} holds no samples", "give at least one")
    return found


def _smooth(place: _Place, largest: Array, alpha: float) -> None:
    weights = np.max([_by_input(node) for node in place.readers], axis=0)
    alive = (largest > 0) & (weights > 0) & np.isfinite(largest) & np.isfinite(weights)
    factors = np.where(alive, largest, 1) ** alpha / np.where(alive, weights, 1) ** (1 - alpha)
    factors = np.where(alive, np.clip(factors, 1 / _GREATEST, _GREATEST), 1)
    products = [node for node in place.readers if node.op_type == "MatMul"]
    grown = [(node, scaled(node, 1, factors[:, None])) for node in products]
    if not all(np.isfinite(array).all() for _, array in grown) or not place.source.divide(factors):
        return
    if not absorb_before([node for node in place.readers if node.op_type != "MatMul"], factors, np.zeros(1)):
        place.source.divide(1 / factors)
        return
    for node, array in grown:
        write(node, 1, array)
