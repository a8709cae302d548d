"""What depends on constants alone is computed once, here, by onnxruntime itself: the device would do the same at every start."""

import numpy as np
import onnx
import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model

GROWTH_BYTES = 1 << 20  # a result may be larger than what it is made of by this much
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
_COMPRESSED = {"DequantizeLinear", "QuantizeLinear"}  # folding these would undo what quantizing saved


def fold_constants(model: Model) -> Model:
    """Nodes of the main graph with constant inputs, and shapes that are known, become initializers.

    Nodes with subgraphs, random ones, other domains' and results that would make the file much larger are left alone.
    """
    folded = graph.clone(model)
    graph.infer_shapes(folded)
    while _fold_shapes(folded) or _fold_lengths(folded) or _fold_nodes(folded):
        graph.infer_shapes(folded)
    return folded


def _fold_shapes(model: Model) -> int:
    """Shape and Size of a tensor whose shape is known."""
    found = 0
    for node in list(model.graph):
        if node.domain or node.op_type not in ("Shape", "Size") or not node.inputs or node.inputs[0] is None:
            continue
        shape = node.inputs[0].shape
        if shape is None or not shape.is_static():
            continue
        lengths = np.array(shape.numpy(), np.int64)
        found += bool(node.outputs[0].uses())
        if node.op_type == "Size":
            _replace(model.graph, node.outputs[0], np.array(lengths.prod(), np.int64))
        else:
            start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
            _replace(model.graph, node.outputs[0], lengths[start:end])
    _remove(model.graph, [node for node in model.graph if node.op_type in ("Shape", "Size") and _unused(node)])
    return found


def _fold_lengths(model: Model) -> int:
    """A Gather of some lengths of a shape that are known, though others are not."""
    found = 0
    for node in list(model.graph):
        before = node.inputs[0].producer() if node.op_type == "Gather" and not node.domain and node.inputs[0] is not None else None
        if before is None or before.op_type != "Shape" or before.domain or before.attributes or before.inputs[0] is None:
            continue
        shape, indices = before.inputs[0].shape, graph.constant(node.inputs[1])
        if shape is None or indices is None or not node.outputs[0].uses():
            continue
        lengths = [shape[int(index)] for index in indices.reshape(-1)]
        if all(isinstance(length, int) for length in lengths):
            _replace(model.graph, node.outputs[0], np.array(lengths, np.int64).reshape(indices.shape))
            found += 1
    return found


def _fold_nodes(model: Model) -> int:
    """All that can be computed in one run; the part of the graph that is computed is taken out of it."""
    outer = model.graph
    constant: set[onnx_ir.Value] = {value for value in outer.initializers.values() if not value.is_graph_input()}
    computed = []
    for node in outer:
        if _can_fold(node, graph.opset(model)) and all(value is None or value in constant for value in node.inputs):
            computed.append(node)
            constant.update(node.outputs)
    inside = set(computed)
    wanted = [value for node in computed for value in node.outputs if any(use.node not in inside for use in value.uses())]
    try:
        results = _computed(model, computed, wanted) if wanted else {}
    except ModelError:  # onnxruntime has no kernel for one of them on this machine; the device may
        return 0
    folded = 0
    for value in wanted:
        made_of = sum(each.const_value.nbytes for each in _sources(value) if each.const_value is not None)
        result = results[str(value.name)]
        if result.nbytes <= made_of + GROWTH_BYTES:
            _replace(outer, value, result)
            folded += 1
    for node in reversed(computed):
        if _unused(node):
            _remove(outer, [node])
    return folded


def _can_fold(node: onnx_ir.Node, opset: int) -> bool:
    if node.domain or node.op_type in _RANDOM | _COMPRESSED or any(attribute.type.name.startswith("GRAPH") for attribute in node.attributes.values()):
        return False
    if node.op_type == "Constant" or not onnx.defs.has(node.op_type, opset):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    return all(kind.startswith("tensor(") and kind != "tensor(string)" for output in schema.outputs for kind in output.types) or _is_numeric(node)


def _is_numeric(node: onnx_ir.Node) -> bool:
    """Whether the outputs, of an operator that has other types as well, are numbers here."""
    return all(isinstance(value.type, onnx_ir.TensorType) and value.dtype != onnx_ir.DataType.STRING for value in node.outputs)


def _computed(model: Model, nodes: list[onnx_ir.Node], wanted: list[onnx_ir.Value]) -> dict[str, Array]:
    """What onnxruntime makes of these nodes."""
    needed = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
    view = onnx_ir.GraphView([], wanted, nodes=nodes, initializers=sorted(needed, key=lambda value: value.name or ""), opset_imports=model.opset_imports)
    part = onnx_ir.Model(view.clone(), ir_version=model.ir_version)
    return graph.run(graph.session(part, optimize=False), {})


def _sources(value: onnx_ir.Value) -> set[onnx_ir.Value]:
    """The initializers that a value is computed from."""
    found: set[onnx_ir.Value] = set()
    waiting = [value]
    while waiting:
        each = waiting.pop()
        producer = each.producer()
        if each in found or (producer is None and not each.is_initializer()):
            continue
        found.add(each)
        waiting += [] if producer is None else [value for value in producer.inputs if value is not None]
    return {each for each in found if each.is_initializer()}


def _replace(outer: onnx_ir.Graph, value: onnx_ir.Value, array: Array) -> None:
    """Users of the value read a new initializer instead. An output of the graph stays, since its name must."""
    if value.uses():
        value.replace_all_uses_with(graph.add_constant(outer, f"{value.name}_folded", array))


def _unused(node: onnx_ir.Node) -> bool:
    return not any(value.uses() or value.is_graph_output() for value in node.outputs)


def _remove(outer: onnx_ir.Graph, nodes: list[onnx_ir.Node]) -> None:
    for node in nodes:
        outer.remove(node, safe=True)
