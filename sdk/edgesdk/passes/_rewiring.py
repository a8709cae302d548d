"""How the passes put a node in another's place."""

from collections.abc import Iterable

import onnx_ir


def is_private(value: onnx_ir.Value) -> bool:
    """Whether one node alone reads it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def take_place(before: onnx_ir.Node, after: onnx_ir.Node) -> None:
    """``before`` answers in the place, and under the name, of ``after``, which goes."""
    old, new = after.outputs[0], before.outputs[0]
    inside = after.graph
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if inside is not None:
        inside.remove(after, safe=True)
    old.name = None
    new.name, new.shape, new.type = name, shape or new.shape, kind or new.type


def drop_unused(values: Iterable[onnx_ir.Value | None]) -> None:
    """The nodes of the main graph that made these and that nobody reads any more go, and then those before them."""
    waiting = [value for value in values if value is not None]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and isinstance(node.graph, onnx_ir.Graph) and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            waiting += [value for value in node.inputs if value is not None]
            node.graph.remove(node, safe=True)
