"""Does this ONNX file obey this profile? A list of what does not, node by node; empty if all does.

    for violation in check(model, find("kria-kv260")):
        violation.node, violation.rule, violation.found, violation.wanted, violation.hint

Only the file is looked at, so a board need not be at hand. Each rule is a function in ``_RULES``; where the hardware's
demands come from is said in its profile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir

from edgesdk import dpu, graph, positions, saturation
from edgesdk.graph import Array, Model
from edgesdk.profiles import Profile

_KNOWN_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")  # what onnxruntime's own builds come with
_PER_CHANNEL_OPSET = 13
_LINEAR = ("Conv", "ConvTranspose", "Gemm")
_ALIKE = ("MaxPool", *dpu.POOLS, "Concat", "Pad", "Slice", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")  # the DPU keeps their position
_UNKNOWN_TO_DPU = ("Sigmoid", "HardSwish", "ReduceMean", "BatchNormalization")
# Operators that round activations by their range at the moment, and which of their inputs are weights, [inputs, outputs] or a stack of such.
_DYNAMIC: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("DynamicQuantizeLinear", "ConvInteger"), ()),
    **dict.fromkeys(("MatMulInteger", "com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat"), (1,)),
    "com.microsoft::DynamicQuantizeLSTM": (1, 2),
}


@dataclass(frozen=True)
class Violation:
    """One thing that the profile forbids. ``node`` is empty where it is the file as a whole."""

    node: str
    rule: str
    found: str
    wanted: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.node or 'the file'}: {self.rule}: {self.found}, wanted {self.wanted}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True)
class _Quantized:
    """A QuantizeLinear or DequantizeLinear with constant scale, and what it is about."""

    node: onnx_ir.Node
    scale: Array
    zero_point: Array
    integers: Array | None  # of a DequantizeLinear with a constant input
    axis: int

    @property
    def name(self) -> str:
        return str(self.node.name)


_Rule = Callable[[Model, Profile], Iterator[Violation]]


def check(model: Model, profile: Profile) -> list[Violation]:
    """What in the model the profile forbids, in the order of the rules and then of the graph."""
    known = graph.clone(model)
    graph.infer_shapes(known)
    return [violation for rule in _RULES for violation in rule(known, profile)]


def _versions(model: Model, profile: Profile) -> Iterator[Violation]:
    opset, newest = graph.opset(model), profile.graph.max_opset
    if newest and opset > newest:
        yield Violation("", "opset", str(opset), f"at most {newest}", "export the model with an older opset")
    needed, installed = graph.oldest_onnxruntime(model), profile.runtime.onnxruntime
    if installed and _version(needed) > _version(installed):
        yield Violation("", "onnxruntime", f"needs {needed}", f"the board has {installed}", "export the model with an older opset")
    for each in _quantized(model):
        if each.scale.ndim and opset < _PER_CHANNEL_OPSET:
            yield Violation(each.name, "opset", f"a scale for each channel in opset {opset}", f"at least {_PER_CHANNEL_OPSET}", "use the pass `raise_opset`")


def _operators(model: Model, _profile: Profile) -> Iterator[Violation]:
    own = {(domain, name) for domain, name, *_ in model.functions}
    for node in graph.nodes(model):
        known = node.domain in _KNOWN_DOMAINS and (node.domain == "com.microsoft" or onnx.defs.has(node.op_type, node.domain))
        if not known and (node.domain, node.op_type) not in own:
            yield Violation(str(node.name), "operator", graph.qualified(node), "an operator that onnxruntime has", "custom operators cannot be deployed yet")


def _static_shapes(model: Model, profile: Profile) -> Iterator[Violation]:
    if not profile.graph.static_shapes:
        return
    hint = "fix the inputs' shapes with the pass `fix_shapes`"
    for info in graph.inputs(model):
        if None in info.shape:
            yield Violation("", "static shapes", f"input `{info.name}` {_shape(info.shape)}", "every length known", hint)
    for node in model.graph:
        for value in node.outputs:
            if value.name and (value.shape is None or not value.shape.is_static()):
                found = "of unknown rank" if value.shape is None else str(value.shape)
                yield Violation(str(node.name), "static shapes", f"`{value.name}` {found}", "every length known", hint)


def _number_formats(model: Model, profile: Profile) -> Iterator[Violation]:
    schemes = profile.quantization.schemes
    if "int8" not in schemes and (first := next(_quantized(model), None)):
        yield Violation(first.name, "scheme", "8-bit operators", " or ".join(schemes), "this hardware is no faster with 8 bits, or has none")
    told: set[tuple[str, ...]] = set()
    for node in graph.nodes(model):
        formats = _formats_with(node)
        if formats and formats not in told and not set(formats) & set(schemes):
            told.add(formats)
            yield Violation(
                str(node.name), "scheme", f"{graph.qualified(node)} of {formats[0]}", " or ".join(schemes), "quantize with one of this profile's schemes"
            )
    for info in (*graph.inputs(model), *graph.outputs(model)):
        if info.dtype == "float16" and "float16" not in schemes:
            yield Violation("", "scheme", f"`{info.name}` is float16", " or ".join(schemes), "export the model in float32")
    for node in graph.nodes(model):
        if node.op_type in profile.quantization.keep_float32 and not node.domain and any(value.dtype == onnx_ir.DataType.FLOAT16 for value in node.outputs):
            yield Violation(
                str(node.name), "float32 island", f"{node.op_type} in float16", "float32", "use the pass `to_float16` with the profile's `keep_float32`"
            )


def _formats_with(node: onnx_ir.Node) -> tuple[str, ...]:
    """The schemes whose files hold such an operator; none where every file may."""
    if graph.qualified(node) in _DYNAMIC:
        return ("dynamic-int8",)
    if graph.qualified(node) == "com.microsoft::MatMulNBits":
        return (f"weights-int{node.attributes['bits'].as_int() if 'bits' in node.attributes else 4}",)
    table = graph.constant(node.inputs[0]) if node.op_type == "Gather" and not node.domain else None
    return ("dynamic-int8", "weights-int8", "weights-int4") if table is not None and table.dtype == np.int8 else ()


def _activations(model: Model, profile: Profile) -> Iterator[Violation]:
    wanted = profile.quantization
    middle = 0 if wanted.activations == "int8" else 128
    for each in _quantized(model):
        if each.integers is not None and not _is_operand(each):
            continue
        if each.zero_point.dtype != np.dtype(wanted.activations):
            yield Violation(each.name, "activation type", each.zero_point.dtype.name, wanted.activations, "quantize with this profile's scheme")
        elif wanted.symmetric and (each.zero_point != middle).any():
            yield Violation(each.name, "activation zero point", _told(each.zero_point), str(middle), "quantize with `symmetric = true`")
        if each.scale.ndim:
            yield Violation(
                each.name, "activation scale", f"an array {list(each.scale.shape)}", "one number of rank 0", "kernels for one scale a tensor take no array"
            )
        if not (np.isfinite(each.scale).all() and (each.scale > 0).all()):
            yield Violation(each.name, "activation scale", _told(each.scale), "a positive number", "")


def _weights(model: Model, profile: Profile) -> Iterator[Violation]:
    wanted = profile.quantization
    for each, user in _constants(model, place=1):
        name = each.name
        if each.integers is None or each.zero_point.dtype != np.int8:
            yield Violation(name, "weight type", each.zero_point.dtype.name, "int8", "quantize with this profile's scheme")
            continue
        if each.zero_point.any():
            yield Violation(name, "weight zero point", _told(each.zero_point), "0", "weights are symmetric")
        if int(each.integers.min(initial=0)) < -127:
            yield Violation(name, "weight range", "-128", "-127 … 127", "weights are symmetric")
        if wanted.reduce_range and saturation.possible(each.integers, _output_axis(user, each.integers.ndim)):
            found = "two weights of a channel that come to more than 128"
            yield Violation(name, "saturation", found, "16-bit sums that hold", "quantize with this profile's `reduce_range`")
        if each.scale.ndim and not wanted.per_channel:
            yield Violation(name, "weight scale", f"{each.scale.size} scales", "one for the tensor", "quantize with `per_channel = false`")
        if each.scale.ndim and each.axis % each.integers.ndim != _output_axis(user, each.integers.ndim):
            yield Violation(name, "weight axis", str(each.axis), str(_output_axis(user, each.integers.ndim)), "one scale for each output channel")
        if not (np.isfinite(each.scale).all() and (each.scale > 0).all()):
            yield Violation(name, "weight scale", _told(each.scale), "positive numbers", "")


def _dynamic_weights(model: Model, profile: Profile) -> Iterator[Violation]:
    if not profile.quantization.reduce_range:
        return
    for node in graph.nodes(model):
        stacks = [graph.constant(node.inputs[place]) for place in _DYNAMIC.get(graph.qualified(node), ())]
        matrices = [matrix for stack in stacks if stack is not None and stack.dtype == np.int8 for matrix in stack.reshape(-1, *stack.shape[-2:])]
        if any(saturation.possible(matrix, 1) for matrix in matrices):
            found = "two weights of a channel that come to more than 128"
            yield Violation(str(node.name), "saturation", found, "16-bit sums that hold", 'quantize with `reduce_range`, or `weights = "uint8"`')


def _biases(model: Model, profile: Profile) -> Iterator[Violation]:
    wanted = profile.quantization.bias
    for node in model.graph:
        if node.op_type not in _LINEAR or node.domain or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        given, weight, bias = (_read_through(node, place) for place in range(3))
        if given is None or weight is None:
            continue
        found = "float32" if bias is None else bias.zero_point.dtype.name
        if found != wanted:
            yield Violation(str(node.name), "bias type", found, wanted, "quantize with this profile's `bias`")
        elif bias is not None and wanted == "int32":
            product = np.asarray(given.scale, np.float64) * np.asarray(weight.scale, np.float64)
            if bias.scale.size % product.size or not np.allclose(bias.scale.reshape(-1, product.size), product.reshape(1, -1), rtol=1e-5, atol=0):
                yield Violation(str(node.name), "bias scale", _told(bias.scale), "input scale × weight scale", "the sum of products has no other")


def _powers_of_two(model: Model, profile: Profile) -> Iterator[Violation]:
    if not profile.quantization.power_of_two:
        return
    for each in _quantized(model):
        if any(positions.of_scale(float(scale)) is None for scale in each.scale.ravel()):
            yield Violation(each.name, "power of two", _told(each.scale), "2 to a whole power", "quantize with `power_of_two = true`")


def _as_the_dpu_computes(model: Model, profile: Profile) -> Iterator[Violation]:
    """What is 8-bit on both sides answers what the DPU answers."""
    if not profile.quantization.power_of_two:
        return
    for node in model.graph:
        if node.domain or _read_through(node, 0) is None or _written_to(node) is None:
            continue
        for what, found, wanted in _unlike_the_dpu(node):
            yield Violation(str(node.name), what, found, wanted, "use the pass `rewrite_for_dpu` before quantizing")


def _unlike_the_dpu(node: onnx_ir.Node) -> Iterator[tuple[str, str, str]]:
    if node.op_type in _UNKNOWN_TO_DPU:
        yield "operator", node.op_type, "what the DPU has"
    elif node.op_type == "HardSigmoid" and not dpu.is_hard_sigmoid(node):
        yield "slope", "another", "clip(x / 6 + 1/2, 0, 1)"
    elif (factor := dpu.correction(node)) is not None and dpu.correcting(node) is None:
        yield "fixed-point reciprocal", "none", f"a Mul by {factor:.7g}"
    elif node.op_type == "LeakyRelu" and not float(dpu.LEAKY_UNIT * dpu.slope(node)).is_integer():
        yield "slope", f"{dpu.slope(node):.6g}", f"a whole number of 1/{dpu.LEAKY_UNIT}"
    elif (kernel := dpu.pooled(node)) is not None and kernel[0] * kernel[1] > dpu.LARGEST_POOL:
        yield "kernel", f"{kernel[0]}×{kernel[1]}", f"at most {dpu.LARGEST_POOL} places"


def _shifts(model: Model, profile: Profile) -> Iterator[Violation]:
    """What the DPU's shift registers hold."""
    if not profile.quantization.power_of_two:
        return
    for node in model.graph:
        read = [_position(_read_through(node, place)) for place in range(len(node.inputs))]
        written = _position(_written_to(node))
        if node.domain or written is None or not read or read[0] is None:
            continue
        for what, found, (low, high) in _shifts_of(node, read, written):
            if not low <= found <= high:
                yield Violation(str(node.name), what, str(found), f"{low} … {high}", "quantize with `power_of_two = true`, which keeps shifts in bounds")


def _shifts_of(node: onnx_ir.Node, read: list[int | None], written: int) -> Iterator[tuple[str, int, tuple[int, int]]]:
    inputs = [position for position in read if position is not None]
    if node.op_type in _LINEAR and len(inputs) > 1:
        cut = inputs[0] + inputs[1] - written
        yield "shift_cut", cut, positions.CUT
        if len(inputs) > 2:
            yield "shift_bias", inputs[0] + inputs[1] - inputs[2], positions.bias_bounds(cut)
    elif node.op_type in ("Add", "Sub") and len(inputs) == 2:
        reading, writing = positions.add_shifts(inputs, written)
        yield "shift_read", reading, positions.READ
        yield "shift_write", writing, positions.ADD_WRITE
    elif node.op_type == "Mul" and len(inputs) == 2:
        yield "shift_write", positions.mul_shift(inputs, written), positions.SWISH_WRITE if dpu.is_swish(node) else positions.MUL_WRITE
    elif node.op_type == "HardSigmoid" and inputs:
        yield "position read", inputs[0], positions.SIGMOID_READ
        yield "position written", written, (positions.SIGMOID_WRITTEN, dpu.HARD_SIGMOID[1] + inputs[0])
    elif node.op_type in _ALIKE:
        for position in inputs:
            yield "position", position, (written, written)


_RULES: tuple[_Rule, ...] = (
    _versions,
    _operators,
    _static_shapes,
    _number_formats,
    _activations,
    _weights,
    _dynamic_weights,
    _biases,
    _powers_of_two,
    _as_the_dpu_computes,
    _shifts,
)


def _quantized(model: Model) -> Iterator[_Quantized]:
    for node in graph.nodes(model):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and (found := _parsed(node)) is not None:
            yield found


def _parsed(node: onnx_ir.Node | None) -> _Quantized | None:
    if node is None or node.domain or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    scale = graph.constant(node.inputs[1])
    zero_point = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    integers = graph.constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
    if scale is None:
        return None
    if zero_point is None:  # without one it is 0, of the integers' type
        given = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        kind = given.dtype.numpy() if given is not None and given.dtype is not None else np.dtype(np.uint8)
        zero_point = np.zeros(scale.shape, kind)
    return _Quantized(node, scale, zero_point, integers, node.attributes["axis"].as_int() if "axis" in node.attributes else 1)


def _constants(model: Model, *, place: int) -> Iterator[tuple[_Quantized, onnx_ir.Node]]:
    """Weights behind a DequantizeLinear, with who uses them."""
    for node in model.graph:
        if node.domain or node.op_type not in (*_LINEAR, "MatMul") or len(node.inputs) <= place:
            continue
        found = _read_through(node, place)
        if found is not None and (node.op_type in _LINEAR or (found.integers is not None and found.integers.ndim == 2)):
            yield found, node


def _is_operand(each: _Quantized) -> bool:
    """Whether a constant is neither weights nor a bias: an activation that never changes."""
    return not any(
        (use.node.op_type in _LINEAR and use.idx > 0)
        or (use.node.op_type == "MatMul" and use.idx == 1 and each.integers is not None and each.integers.ndim == 2)
        for use in each.node.outputs[0].uses()
    )


def _read_through(node: onnx_ir.Node, place: int) -> _Quantized | None:
    """The DequantizeLinear that the node reads through."""
    value = node.inputs[place] if place < len(node.inputs) else None
    return _parsed(value.producer()) if value is not None else None


def _written_to(node: onnx_ir.Node) -> _Quantized | None:
    """The QuantizeLinear that the node's answer goes through, perhaps after a Relu, a Clip or what makes it the DPU's."""
    node = dpu.correcting(node) or node
    for _ in range(2):
        users = [use.node for use in node.outputs[0].uses()]
        for user in users:
            if user.op_type == "QuantizeLinear":
                return _parsed(user)
        if len(users) != 1 or users[0].op_type not in ("Relu", "Clip"):
            return None
        node = users[0]
    return None


def _position(each: _Quantized | None) -> int | None:
    return positions.of_scale(float(each.scale)) if each is not None and each.scale.ndim == 0 else None


def _output_axis(node: onnx_ir.Node, rank: int) -> int:
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _told(array: Array) -> str:
    """A few of the numbers, for a person."""
    return ", ".join(f"{number:.6g}" for number in np.asarray(array, np.float64).ravel()[:4]) + (" …" if array.size > 4 else "")


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if length is None else str(length) for length in shape) + "]"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())
