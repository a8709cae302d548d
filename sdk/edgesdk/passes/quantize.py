"""Float32 operators become 8-bit ones: QuantizeLinear and DequantizeLinear around them (QDQ), which runtimes fuse into integer kernels.

    quantize(model, samples=calibration, operators=["Conv"], activations="uint8", symmetric=False, reduce_range=True)

The settings are those of a profile's `quantization` table. Ranges are measured here, so a recipe need not hold them:
the same samples give the same file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import onnx_ir

from edgesdk import calibration, graph
from edgesdk.calibration import NEED_HISTOGRAMS, Method, Progress, clipped
from edgesdk.graph import Model
from edgesdk.passes._bias_correction import correct_bias
from edgesdk.passes._fixed_point import fixed_point
from edgesdk.passes._grids import Grid, Levels, by_magnitude
from edgesdk.passes._qdq import write
from edgesdk.passes._reconstruction import reconstruct
from edgesdk.passes._rewiring import take_place
from edgesdk.passes._sites import ENDLESS, affines, near_nought, sites, targets, tensors
from edgesdk.passes.remove_unused import remove_unused
from edgesdk.sampling import Samples

FIRST_OPSET = {8: 13, 16: 21}  # DequantizeLinear by channel; of 16 bits


@dataclass(frozen=True)
class Scheme:
    """What a quantized file looks like, and which part of it is quantized. The first fields mean what they mean in a profile."""

    operators: Sequence[str]
    activations: Literal["int8", "uint8", "int16", "uint16"] = "int8"
    symmetric: bool = True
    per_channel: bool = True
    reduce_range: bool = False
    power_of_two: bool = False
    bias: Literal["int32", "int8", "float32"] = "int32"
    outputs: bool = True  # what these operators answer is quantized too: onnxruntime's kernels want it, TensorRT does not
    method: Method = "minmax"  # how much of what was seen the integers span
    exclude: Sequence[str] = ()  # names of nodes that stay float32
    reconstruct: bool = False  # weights rounded so that layers answer what they answered
    correct_bias: bool = False  # biases moved so that channels answer what they answered on average

    @property
    def count(self) -> int:
        """Of the integers."""
        return int(2 ** np.iinfo(self.activations).bits)

    @property
    def first_opset(self) -> int:
        """The first that can say it."""
        return FIRST_OPSET[np.iinfo(self.activations).bits]

    @property
    def by_parts(self) -> bool:
        """Whether the kernels for which the file is written are onnxruntime's own; TensorRT and the DPU have others."""
        return self.outputs and not self.symmetric and not self.power_of_two

    @property
    def levels(self) -> Levels:
        """What concerns the integers."""
        return Levels(self.activations, self.symmetric, self.per_channel, self.reduce_range, self.bias)


SETTINGS = tuple(field.name for field in fields(Scheme))


def quantize(model: Model, *, samples: Samples, progress: Progress | None = None, **settings: Any) -> Model:
    """The model with 8-bit operators as ``Scheme(**settings)`` says; the very same model if it has none to quantize.

    Raises ModelError, and SampleError if the samples do not fit.
    """
    scheme = Scheme(**settings)
    work = graph.clone(graph.with_opset(model, scheme.first_opset))
    names = targets(work, operators=scheme.operators, exclude=scheme.exclude)
    if not names:
        return model
    graph.infer_shapes(work)
    around = sites(work, names, outputs=scheme.outputs, float_output=not scheme.power_of_two)
    counted = scheme.power_of_two or scheme.method in NEED_HISTOGRAMS
    found = calibration.statistics(work, tensors(around), samples, histograms=counted, progress=progress)
    endless = {name for name, seen in found.items() if not 0 < seen.bound < ENDLESS}  # nought alone: what it is otherwise is not known
    left = endless | near_nought(work)
    names = [str(site.node.name) for site in around if not left & set(tensors([site]))]
    if not names:
        return model
    fixed, gates = _in_parts(work, set(names), scheme) if scheme.by_parts else ({}, set())
    names = [str(node.name) for node in work.graph if node.name in gates.union(names)]
    around = sites(work, names, outputs=scheme.outputs, float_output=not scheme.power_of_two)
    seen = {name: found[name] for name in tensors(around) if name not in fixed}
    if scheme.power_of_two:
        grids = fixed_point(work, around, seen)
    else:
        spanned = {name: clipped(each, scheme.method, symmetric=scheme.symmetric, levels=scheme.count) for name, each in seen.items()}
        grids = by_magnitude(work, spanned, affines(site for site in around if site.node.name not in gates), scheme.levels)
        grids.activations.update({name: read for name, (_, read) in fixed.items()})
        grids.written.update({name: written for name, (written, _) in fixed.items()})
    write(work, around, grids, answers=scheme.outputs)
    quantized = remove_unused(work)  # the float32 weights
    original = graph.with_opset(model, scheme.first_opset)
    if scheme.reconstruct:
        quantized = reconstruct(original, quantized, samples, progress=progress)
    return correct_bias(original, quantized, samples, progress=progress) if scheme.correct_bias else quantized


def _in_parts(work: Model, names: set[str], scheme: Scheme) -> tuple[dict[str, tuple[Grid, Grid]], set[str]]:
    """HardSwish becomes x · HardSigmoid(x), and HardSigmoid an Add that saturates where it clips, in place.

    clip(αx + β, 0, 1) is α · clip(x + β/α, 0, 1/α): the sum is written under a scale that ends at 1/α, and read under one that ends at 1.
    Returns the two grids of each such sum, and the names of the nodes that make them.
    """
    fixed: dict[str, tuple[Grid, Grid]] = {}
    gates = set()
    for node in list(work.graph):
        if node.name not in names or node.op_type not in ("HardSwish", "HardSigmoid"):
            continue
        alpha, beta = (1 / 6, 0.5) if node.op_type == "HardSwish" else (_number(node, "alpha", 0.2), _number(node, "beta", 0.5))
        if alpha <= 0:
            continue
        gate = _gate(node, beta / alpha)
        gates.add(str(gate.name))
        fixed[str(gate.outputs[0].name)] = _ending_at(1 / alpha, scheme), _ending_at(1.0, scheme)
    return fixed, gates


def _gate(node: onnx_ir.Node, summand: float) -> onnx_ir.Node:
    """An Add in the place of a HardSigmoid, or with a Mul in that of a HardSwish. The one that answers keeps the node's name and output."""
    inside, value, old = node.graph, node.inputs[0], node.outputs[0]
    assert isinstance(inside, onnx_ir.Graph)
    number = graph.add_constant(inside, f"{node.name}_summand", np.array(summand, np.float32))
    add = onnx_ir.node("Add", [value, number], name=f"{node.name}_gate" if node.op_type == "HardSwish" else node.name)
    add.outputs[0].name, add.outputs[0].shape, add.outputs[0].type = graph.fresh(inside, f"{old.name}_gate"), old.shape, old.type
    made = [add] if node.op_type == "HardSigmoid" else [add, onnx_ir.node("Mul", [value, add.outputs[0]], name=node.name)]
    inside.insert_before(node, made)
    take_place(made[-1], node)
    return add


def _ending_at(greatest: float, scheme: Scheme) -> Grid:
    limits = np.iinfo(scheme.activations)
    return Grid(np.array(greatest / (limits.max - limits.min), np.float32), np.array(limits.min, scheme.activations))


def _number(node: onnx_ir.Node, name: str, usual: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else usual
