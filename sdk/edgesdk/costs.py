"""What a model's parts cost: the shapes of one run, multiply-accumulates, and the time that each kernel takes here.

of_run = shapes(model, feeds)
macs(model, of_run)["conv_3"]            # 14745600
kernel_ms(model, feeds, threads=1)       # {"conv_3": 0.41, ...}, onnxruntime's own profile
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from edge_agent.look import kernels_of
from edgesdk import graph
from edgesdk.graph import Feeds, Model

# What multiplies, as which of ONNX's own operators, and where among its inputs the weights are; what is multiplied comes first.
_MULTIPLYING = {
    **{name: (name, 1) for name in ("Conv", "ConvTranspose", "Gemm", "MatMul")},
    "ConvInteger": ("Conv", 1),
    "QLinearConv": ("Conv", 3),
    "com.microsoft::FusedConv": ("Conv", 1),
    "com.microsoft::FusedGemm": ("Gemm", 1),
    "com.microsoft::QGemm": ("Gemm", 3),
    "MatMulInteger": ("MatMul", 1),
    "QLinearMatMul": ("MatMul", 3),
    **dict.fromkeys([f"com.microsoft::{name}" for name in ("MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedMatMul")], ("MatMul", 1)),
}
_GATES = ("LSTM", "GRU", "RNN", "com.microsoft::DynamicQuantizeLSTM")
_NOT_COUNTED = re.compile(r"Einsum|DeformConv|(\w+::)?\w*Attention")  # multiply, too
_RENAMED = re.compile(r"_token_\d+$|^fused |/\w+Fusion/?$")  # what onnxruntime hangs on the name of a node of which it makes another
_FUSED = ("BatchNormalization", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh", "Add")  # into the Conv before
PROFILED_RUNS = 12


def shapes(model: Model, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor outside subgraphs when the model runs on these feeds. Raises ModelError."""
    asking = graph.clone(model)
    inner = asking.graph
    asked: dict[str, onnx_ir.Value] = {}
    for value in (*inner.inputs, *(value for node in list(inner) for value in node.outputs if value.name)):
        if isinstance(value.type, onnx_ir.SequenceType | onnx_ir.OptionalType):
            continue
        node = onnx_ir.node("Shape", [value])
        node.outputs[0].name = graph.fresh(inner, f"{value.name}_shape")
        node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.INT64)
        node.outputs[0].shape = onnx_ir.Shape([None])
        inner.append(node)
        asked[str(value.name)] = node.outputs[0]
    inner.outputs.clear()
    inner.outputs.extend(asked.values())
    answers = graph.run(graph.session(asking, optimize=False), feeds)
    return {name: tuple(int(length) for length in answers[str(value.name)]) for name, value in asked.items()}


def macs(model: Model, of_run: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Multiply-accumulates of each Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and of what is one of these in 4 or 8 bits, by node name.

    ``of_run``: the shapes of a run. What is left out `uncounted` tells.
    """
    return {str(node.name): _macs(node, of_run) for node in model.graph if graph.qualified(node) in _MULTIPLYING or graph.qualified(node) in _GATES}


def uncounted(model: Model) -> Counter[str]:
    """What multiplies and is not in `macs`, by kind: what lies in subgraphs and functions, which run who knows how often, and kinds not known there."""
    outside = {id(node) for node in model.graph}
    found = Counter[str]()
    for node in graph.nodes(model):
        kind = graph.qualified(node)
        if _NOT_COUNTED.fullmatch(kind):
            found[kind] += 1
        elif id(node) not in outside and (kind in _MULTIPLYING or kind in _GATES):
            found[f"{kind} in a subgraph or function"] += 1
    return found


def kernel_ms(model: Model, feeds: Sequence[Feeds], *, threads: int) -> dict[str, float]:
    """The median time that onnxruntime's kernels take on this machine's CPU, in ms, by the node that they compute.

    Under "" is what belongs to no node of the model: changes of layout, and fusions that bear a name of onnxruntime's own.
    """
    of, found = computed(model), dict[str, float]()
    for kernel in kernels(model, feeds, threads=threads):
        node = (of(kernel["kernel"]) or ("",))[0]
        found[node] = found.get(node, 0.0) + kernel["us"] / 1000
    return found


def kernels(model: Model, feeds: Sequence[Feeds], *, threads: int) -> list[dict[str, Any]]:
    """What `edge_agent.look.kernels_of` tells of this machine's CPU."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        session = graph.session(model, threads=threads, profile=Path(folder, "profile"))
        for run in range(PROFILED_RUNS):
            graph.run(session, feeds[run % len(feeds)])
        return kernels_of(Path(session.end_profiling()).read_bytes())


def computed(model: Model) -> Callable[[str], tuple[str, ...]]:
    """Which of the model's nodes a kernel computes, by onnxruntime's name of it: the one that it is about, then those that are known to be fused into it.

    None where the name is onnxruntime's own: a change of layout, or what it made of several nodes.
    """
    named = {str(node.name): (str(node.name),) for node in model.graph}
    # A blocked kernel bears the name of what the last node fused into it answers.
    blocked = {f"{value.name}_nchwc": _chain(node) for node in model.graph for value in node.outputs}

    def of(kernel: str) -> tuple[str, ...]:
        name = _RENAMED.sub("", _RENAMED.sub("", kernel))
        return named.get(kernel) or named.get(name) or blocked.get(name) or ()

    return of


def _chain(node: onnx_ir.Node) -> tuple[str, ...]:
    """The layer that a blocked kernel is about which answers in the place of this node, and the nodes behind it up to this one."""
    names = [str(node.name)]
    while node.op_type in _FUSED:
        before = [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]
        if not before:
            break
        node = next((producer for producer in reversed(before) if producer.op_type == "Conv"), before[0])
        names.append(str(node.name))
    return tuple(reversed(names))


@cache
def conversion_ms_per_element() -> float:
    """What it takes one core here to make an integer of a float and a float of it again, in ms."""
    shape = [1, 32, 64, 64]
    value = onnx_ir.val("x", onnx_ir.DataType.FLOAT, shape)
    scale, zero_point = (onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name)) for name, array in (("s", np.float32(0.1)), ("z", np.uint8(8))))
    to_integers = onnx_ir.node("QuantizeLinear", [value, scale, zero_point], name="quantize")
    to_floats = onnx_ir.node("DequantizeLinear", [to_integers.outputs[0], scale, zero_point], name="dequantize")
    to_integers.outputs[0].name, to_floats.outputs[0].name = "q", "y"
    to_floats.outputs[0].type, to_floats.outputs[0].shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape(shape)
    inner = onnx_ir.Graph(
        [value], [to_floats.outputs[0]], nodes=[to_integers, to_floats], initializers=[scale, zero_point], opset_imports={"": 13}, name="conversion"
    )
    times = kernel_ms(onnx_ir.Model(inner, ir_version=8), [{"x": np.ones(shape, np.float32)}], threads=1)
    return sum(times.values()) / prod(shape)


def _macs(node: onnx_ir.Node, of_run: Mapping[str, tuple[int, ...]]) -> int:
    kind, place = _MULTIPLYING.get(graph.qualified(node), (node.op_type, 1))
    given, weight, made = (of_run.get(str(value.name), ()) if value is not None else () for value in (node.inputs[0], node.inputs[place], node.outputs[0]))
    constant = graph.constant(node.inputs[place])
    weight = constant.shape if constant is not None else weight
    if graph.qualified(node) in _GATES:
        steps, recurrent = (given[0] * given[1] if len(given) == 3 else 0), graph.constant(node.inputs[2])
        return steps * (prod(weight) + (recurrent.size if recurrent is not None else 0))  # of both directions, all gates
    if not weight or not made:
        return 0
    if kind == "Conv":
        return prod(made) * prod(weight[1:])
    if kind == "ConvTranspose":
        return prod(given) * prod(weight[1:])
    if kind == "Gemm":
        return prod(made) * prod(weight) // made[-1]
    turned = "transA" in node.attributes and node.attributes["transA"].as_int() != 0  # of com.microsoft::FusedMatMul
    return prod(made) * (given[-2 if turned and len(given) > 1 else -1] if given else 0)
