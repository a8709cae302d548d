"""Which nodes of a graph can become 8-bit, and what is around them.

for site in sites(work, targets(model, operators=["Conv", "Add"]), outputs=True): site.node, site.data, site.output
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import dpu, graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.passes._linear import is_unscaled

MOVING = {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice"}  # answer some of what they are given, unchanged
WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}  # input 1 weights, input 2 bias
FLOAT_OUTPUT = {"Gemm", "MatMul"}  # have integer kernels that answer float32
_SINGULAR = {"Sqrt": 0, "Log": 0, "Reciprocal": 0, "Div": 1}  # at nought, of the input at that place: a small number must not be rounded to it
ENDLESS = 2.0**100  # what masks add to attention to forbid it: no 8 bits span that
_ABSORBED = {"Relu", "Clip"}  # a kernel's last step: the range of what follows does their work

# Which inputs carry data, of the operators that can be quantized; None: all of them.
_DATA: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (0,)),
    **dict.fromkeys(("MatMul", "Add", "Sub", "Mul", "Div"), (0, 1)),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "HardSwish", "Relu", "LeakyRelu", "Clip", "Softmax", "Tanh"), (0,)),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Pad"), (0,)),
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice"), (0,)),
    "Concat": None,
}


@dataclass(frozen=True)
class Site:
    """A node to be quantized, with the tensors around it."""

    node: onnx_ir.Node
    data: tuple[int, ...]  # which inputs are activations
    constants: tuple[int, ...]  # which are constant operands; not weights and bias
    output: onnx_ir.Value | None  # what is quantized of its answer, after what it absorbs; None: it answers float32

    def operands(self) -> Iterator[tuple[int, Array]]:
        """The constant operands, with their places."""
        for place in self.constants:
            array = graph.constant(self.node.inputs[place])
            if array is not None:
                yield place, array


@dataclass(frozen=True)
class Affine:
    """A node that answers ``factor · given + offset``, one positive factor and one offset for all: the same integers under another scale."""

    node: onnx_ir.Node
    given: str
    made: str
    factor: float
    offset: float


def quantized(model: Model) -> bool:
    """Whether somebody did that already."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type.startswith("QLinear") for node in graph.nodes(model))


def targets(model: Model, *, operators: Iterable[str], exclude: Iterable[str] = ()) -> list[str]:
    """The names of the nodes that `quantize` would quantize. None: it returns the model as it is."""
    known = graph.clone(model)
    graph.infer_shapes(known)
    wanted, left = set(operators), set(exclude)
    if quantized(known):
        return []
    if strange := sorted(wanted - set(_DATA)):
        raise ModelError(f"{', '.join(strange)} cannot be quantized", f"those that can: {', '.join(_DATA)}")
    absorbed = {id(after) for node in known.graph if node.op_type in wanted and node.name not in left and (after := absorbed_by(node)) is not None}
    return [
        str(node.name)
        for node in known.graph
        if not node.domain and node.op_type in wanted and node.name not in left and id(node) not in absorbed and _can_be_quantized(node)
    ]


def sites(work: Model, names: Iterable[str], *, outputs: bool, float_output: bool) -> list[Site]:
    """The nodes of these names. ``float_output``: a product that no other of them reads answers float32, if its kernel can."""
    nodes = {node.name: node for node in work.graph}
    chosen = [nodes[name] for name in names]
    read = {value for node in chosen for value in data_of(node)}
    return [_site(node, read, outputs=outputs, float_output=float_output) for node in chosen]


def tensors(found: Iterable[Site]) -> list[str]:
    """The activations that become 8-bit, each once."""
    names: dict[str, None] = {}
    for site in found:
        for value in (*(site.node.inputs[place] for place in site.data), site.output):
            if value is not None:
                names[str(value.name)] = None
    return list(names)


def near_nought(work: Model) -> set[str]:
    """The activations that some operator takes a root, a logarithm or a reciprocal of."""
    return {
        str(value.name)
        for node in work.graph
        if not node.domain and node.op_type in _SINGULAR and (value := node.inputs[_SINGULAR[node.op_type]]) is not None and graph.constant(value) is None
    }


def affines(found: Iterable[Site]) -> list[Affine]:
    """Those of the sites that only scale and shift."""
    made = []
    for site in found:
        value = site.node.inputs[site.data[0]] if len(site.data) == 1 else None
        numbers = _factor_and_offset(site.node, site.data[0]) if value is not None and site.output is site.node.outputs[0] else None
        if value is not None and numbers is not None and numbers[0] > 0 and np.isfinite(numbers).all():
            made.append(Affine(site.node, str(value.name), str(site.node.outputs[0].name), *numbers))
    return made


def axis_of(node: onnx_ir.Node) -> int:
    """The weights' axis of output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1


def data_of(node: onnx_ir.Node) -> list[onnx_ir.Value | None]:
    """The inputs that carry data, constant ones included."""
    places = _DATA[node.op_type]
    return list(node.inputs) if places is None else [node.inputs[place] for place in places]


def absorbed_by(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The Relu or Clip that alone reads what the node answers; of what the DPU has to correct, the correction."""
    if (correcting := dpu.correcting(node)) is not None:
        return correcting
    value = node.outputs[0]
    if node.op_type in _ABSORBED or len(value.uses()) != 1 or value.is_graph_output() or value.dtype not in (None, onnx_ir.DataType.FLOAT):
        return None
    after = next(iter(value.uses())).node
    if after.op_type not in _ABSORBED or after.domain or after.graph is not node.graph:
        return None
    return after if all(graph.constant(bound) is not None for bound in after.inputs[1:] if bound is not None) else None


def _site(node: onnx_ir.Node, read: set[onnx_ir.Value | None], *, outputs: bool, float_output: bool) -> Site:
    places = _DATA[node.op_type] or range(len(node.inputs))
    constants = tuple(place for place in places if graph.constant(node.inputs[place]) is not None)
    after = absorbed_by(node)
    output = node.outputs[0] if after is None else after.outputs[0]
    answers_float = float_output and node.op_type in FLOAT_OUTPUT and output not in read
    return Site(node, tuple(place for place in places if place not in constants), constants, output if outputs and not answers_float else None)


def _can_be_quantized(node: onnx_ir.Node) -> bool:
    weighted = node.op_type in WEIGHTED
    data = data_of(node)
    if any(value is None or not (value.dtype == onnx_ir.DataType.FLOAT or (weighted and value.dtype is None)) for value in data):
        return False
    if all(graph.constant(value) is not None for value in data):
        return False
    if any((array := graph.constant(value)) is not None and (array.size == 0 or not (np.abs(array) < ENDLESS).all()) for value in data):
        return False
    return not weighted or _has_plain_weights(node)


def _has_plain_weights(node: onnx_ir.Node) -> bool:
    """Constant finite float32 weights, and a constant bias of one number a channel or none."""
    weight, given = graph.constant(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    bias = graph.constant(given)
    if weight is None or weight.dtype != np.float32 or weight.size == 0 or not np.isfinite(weight).all() or (given is not None and bias is None):
        return False
    if bias is not None and not np.isfinite(bias).all():
        return False
    if node.op_type != "Gemm":
        return True
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int() != 0
    return is_unscaled(node) and not transposed and (bias is None or bias.shape == (weight.shape[axis_of(node)],))


def _factor_and_offset(node: onnx_ir.Node, place: int) -> tuple[float, float] | None:
    if node.op_type == "Conv":
        return _of_convolution(node)
    number = graph.constant(node.inputs[1 - place]) if node.op_type in ("Mul", "Div", "Add", "Sub") else None
    value = node.inputs[place]
    if number is None or number.size != 1 or value is None or value.shape is None or number.ndim > len(value.shape):
        return None
    one = float(number.reshape(()))
    if node.op_type == "Mul":
        return one, 0.0
    if node.op_type == "Div":
        return (1 / one, 0.0) if one and place == 0 else None
    if node.op_type == "Add":
        return 1.0, one
    return (1.0, -one) if place == 0 else None


def _of_convolution(node: onnx_ir.Node) -> tuple[float, float] | None:
    """Of a depthwise one over single pixels, the same for every channel: how an offset that cannot be folded is written."""
    weight = graph.constant(node.inputs[1])
    bias = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.float32)
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    if weight is None or bias is None or weight.size != weight.shape[0] or group != weight.shape[0]:
        return None
    moved = [*node.attributes["strides"].as_ints()] if "strides" in node.attributes else []
    padded = [*node.attributes["pads"].as_ints()] if "pads" in node.attributes else []
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if any(step != 1 for step in moved) or any(padded) or automatic not in ("NOTSET", "VALID") or np.ptp(weight) or np.ptp(bias):
        return None
    return float(weight.ravel()[0]), float(bias.ravel()[0])
