"""What the passes for transformers and recurrent models share: products of something with a constant matrix, and how a node is written anew."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from edgesdk.passes._rewiring import take_place

CONTRIB = "com.microsoft"  # onnxruntime's own operators, version 1


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm that answers ``given · matrix + bias``. ``key`` is the same where the same constant, ``weight``, is meant the same way."""

    node: onnx_ir.Node
    weight: str
    matrix: Array  # float32, [inputs, outputs], Gemm's alpha and transB within
    bias: Array | None  # float32, [outputs], or whatever else a Gemm adds; its beta within
    key: tuple[object, ...]

    @property
    def given(self) -> onnx_ir.Value:
        """As the graph is now: the product before this one may have been replaced."""
        value = self.node.inputs[0]
        assert value is not None
        return value


def products(model: Model, operators: Iterable[str], exclude: Iterable[str]) -> list[Product]:
    """Those of the outer graph with a finite float32 matrix, in the graph's order. Gemm with transA or a computed bias is none."""
    wanted, spared = set(operators), set(exclude)
    nodes = [node for node in model.graph if node.op_type in wanted and not node.domain and node.name not in spared]
    return [found for node in nodes if (found := _product(node)) is not None]


def _product(node: onnx_ir.Node) -> Product | None:
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    given, value = node.inputs[:2]
    matrix = graph.constant(value)
    if given is None or value is None or matrix is None or graph.constant(given) is not None:
        return None
    if matrix.dtype != np.float32 or matrix.ndim != 2 or not matrix.size:
        return None
    bias = None
    alpha, beta, transposed = (node.attributes.get(name) for name in ("alpha", "beta", "transB"))
    if node.op_type == "Gemm":
        if (trans_a := node.attributes.get("transA")) is not None and trans_a.as_int():
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            addend = graph.constant(node.inputs[2])
            if addend is None:
                return None
            bias = addend if beta is None else addend * np.float32(beta.as_float())
    swap = transposed is not None and bool(transposed.as_int())
    factor = 1.0 if alpha is None else alpha.as_float()
    matrix = (matrix.T if swap else matrix) * np.float32(factor)
    if not np.isfinite(matrix).all():
        return None
    if bias is not None and (bias.size == 1 or (bias.size == bias.shape[-1] == matrix.shape[1])):
        bias = np.broadcast_to(bias.reshape(-1), matrix.shape[1])  # the form in which onnxruntime takes it into its kernel
    return Product(node, str(value.name), matrix, bias, (value, swap, factor))


def with_bias(product: Product, last: onnx_ir.Node) -> list[onnx_ir.Node]:
    """The Add, where there is something to add to what the last node answers."""
    if product.bias is None:
        return []
    inside = _graph(product.node)
    bias = graph.add_constant(inside, f"{product.node.name}_bias", np.ascontiguousarray(product.bias))
    return [made(inside, "Add", [last.outputs[0], bias], f"{product.node.name}_bias_add")]


def made(inside: onnx_ir.Graph, operator: str, inputs: Sequence[onnx_ir.Value | None], name: str, *, outputs: int = 1, **attributes: object) -> onnx_ir.Node:
    """A node under that name, or one like it, whose outputs have names of their own. ``domain`` among the attributes is its domain."""
    domain = str(attributes.pop("domain", ""))
    node = onnx_ir.node(operator, inputs, attributes=attributes, domain=domain, num_outputs=outputs, name=name)
    for index, value in enumerate(node.outputs):
        value.name = graph.fresh(inside, f"{name}_{index}" if outputs > 1 else f"{name}_out")
    return node


def put(nodes: Sequence[onnx_ir.Node], old: onnx_ir.Node) -> None:
    """The nodes go where the old one was; the last of them answers in its place."""
    _graph(old).insert_before(old, nodes)
    take_place(nodes[-1], old)


def _graph(node: onnx_ir.Node) -> onnx_ir.Graph:
    assert isinstance(node.graph, onnx_ir.Graph)
    return node.graph
