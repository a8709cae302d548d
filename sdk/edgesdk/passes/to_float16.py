"""Half the bits, for hardware that computes in them: float16 inside, float32 at the inputs, the outputs and on islands.

An island is an operator that sums or compares much, or that has no float16 form. Casts lie at its shore only.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model

GREATEST = float(np.finfo(np.float16).max)  # 65504
LEAST = float(np.finfo(np.float16).smallest_subnormal)

_FLOAT, _HALF = onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16
_TYPED = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomNormalLike": "dtype", "RandomUniform": "dtype", "RandomUniformLike": "dtype"}


def to_float16(model: Model, *, keep_float32: Sequence[str] = ()) -> Model:
    """The model in float16, but for the operators named, what cannot be, and what subgraphs read.

    Constants that float16 does not hold are moved to the nearest that it does; `beyond_float16` names them.
    """
    half = graph.clone(model)
    graph.infer_shapes(half)
    casts = _Casts(half.graph)
    for node in list(half.graph):
        schema = _schema(node, graph.opset(half))
        stays = schema is None or node.op_type in keep_float32 or _has_subgraph(node)
        for place, value in enumerate(node.inputs):
            if value is not None:
                wanted = _FLOAT if stays or not _takes_half(schema, place, output=False) else _HALF
                node.replace_input_with(place, casts.of(value, wanted))
        for reader, place, value in list(_captured(node)):
            reader.replace_input_with(place, casts.of(value, _FLOAT))
        if not stays:
            _convert_attributes(node)
            for place, value in enumerate(node.outputs):
                if value.dtype == _FLOAT and _takes_half(schema, place, output=True):
                    value.type = onnx_ir.TensorType(_HALF)
    casts.restore_outputs()
    for value in [value for value in half.graph.initializers.values() if not value.uses() and not value.is_graph_output() and not value.is_graph_input()]:
        half.graph.initializers.pop(str(value.name))
    return half


def beyond_float16(model: Model) -> list[str]:
    """The float32 constants with finite numbers that float16 has not: too large, or so small that they would be nought."""
    constants = {str(value.name): value.const_value for value in model.graph.initializers.values() if value.dtype == _FLOAT and value.const_value is not None}
    for node in model.graph:
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
                constants[str(node.outputs[0].name)] = attribute.as_tensor()
    return sorted(name for name, tensor in constants.items() if _is_beyond(tensor.numpy()))


def _is_beyond(array: Array) -> bool:
    size = np.abs(array[np.isfinite(array)])
    return bool(((size > GREATEST) | ((size > 0) & (size < LEAST))).any())


def _halved(array: Array) -> Array:
    """The nearest in float16. Infinities stay, and nothing but nought becomes nought: it may be what keeps a division alive."""
    moved = np.where(np.isfinite(array), np.clip(array, -GREATEST, GREATEST), array)
    moved = np.where((moved != 0) & (np.abs(moved) < LEAST), np.copysign(LEAST, moved), moved)
    return moved.astype(np.float16)


class _Casts:
    """Every tensor in the type that its reader wants, cast once for all of them; a constant is converted, not cast."""

    def __init__(self, outer: onnx_ir.Graph) -> None:
        self._graph = outer
        self._made: dict[tuple[onnx_ir.Value, onnx_ir.DataType], onnx_ir.Value] = {}

    def of(self, value: onnx_ir.Value, wanted: onnx_ir.DataType) -> onnx_ir.Value:
        if value.dtype not in (_FLOAT, _HALF) or value.dtype == wanted or value.graph is not self._graph:
            return value
        made = self._made.get((value, wanted))
        if made is None:
            made = self._made[value, wanted] = self._converted(value, wanted)
        return made

    def restore_outputs(self) -> None:
        """An output that was float32 is float32 again, under its name."""
        for place, value in enumerate(self._graph.outputs):
            if value.dtype != _HALF:
                continue
            name, value.name = value.name, graph.fresh(self._graph, f"{value.name}_float16")
            kept = self._graph.outputs[place] = self.of(value, _FLOAT)
            kept.name = name

    def _converted(self, value: onnx_ir.Value, wanted: onnx_ir.DataType) -> onnx_ir.Value:
        array = graph.constant(value)
        if array is not None and value.is_initializer() and wanted == _HALF:
            return graph.add_constant(self._graph, f"{value.name}_float16", _halved(array))
        cast = onnx_ir.node("Cast", [value], attributes={"to": int(wanted)}, name=graph.fresh(self._graph, f"{value.name}_Cast"))
        made = cast.outputs[0]
        made.name = graph.fresh(self._graph, f"{value.name}_{'float32' if wanted == _FLOAT else 'float16'}")
        made.type, made.shape = onnx_ir.TensorType(wanted), value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, cast)
        elif len(self._graph):
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.append(cast)
        return made


def _schema(node: onnx_ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    """The operator's, or None for one of another domain."""
    if node.domain or not onnx.defs.has(node.op_type, opset):
        return None
    return onnx.defs.get_schema(node.op_type, opset)


def _takes_half(schema: onnx.defs.OpSchema | None, place: int, *, output: bool) -> bool:
    """Whether that input or output may be float16. The last one of a variadic operator stands for all that follow."""
    formal = (schema.outputs if output else schema.inputs) if schema is not None else []
    return bool(formal) and "tensor(float16)" in formal[min(place, len(formal) - 1)].types


def _has_subgraph(node: onnx_ir.Node) -> bool:
    return any(attribute.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) for attribute in node.attributes.values())


def _captured(node: onnx_ir.Node) -> Iterator[tuple[onnx_ir.Node, int, onnx_ir.Value]]:
    """Where a node's subgraphs read something of the graph around them."""
    if not _has_subgraph(node):
        return
    for attribute in node.attributes.values():
        for inner in [attribute.as_graph()] if attribute.type == onnx_ir.AttributeType.GRAPH else []:
            for each in onnx_ir.traversal.RecursiveGraphIterator(inner):
                for place, value in enumerate(each.inputs):
                    if value is not None and value.graph is node.graph:
                        yield each, place, value


def _convert_attributes(node: onnx_ir.Node) -> None:
    """What an attribute says of float32 is said of float16: the type to make, and constant tensors."""
    name = _TYPED.get(node.op_type, "")
    if name in node.attributes and node.attributes[name].as_int() == int(_FLOAT):
        node.attributes[name] = onnx_ir.AttrInt64(name, int(_HALF))
    for attribute in list(node.attributes.values()):
        if attribute.type == onnx_ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            node.attributes[attribute.name] = onnx_ir.AttrTensor(attribute.name, onnx_ir.tensor(_halved(attribute.as_tensor().numpy())))
