"""Lengths that were free become fixed, for hardware that takes one shape."""

from collections.abc import Mapping, Sequence

import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Model


def fix_shapes(model: Model, *, shapes: Mapping[str, Sequence[int]]) -> Model:
    """The model for inputs of exactly these shapes; shapes within it follow. Raises ModelError where the input's own forbids it."""
    fixed = graph.clone(model)
    inputs = {value.name: value for value in fixed.graph.inputs}
    for name, lengths in shapes.items():
        value = inputs.get(name)
        if value is None:
            raise ModelError(f"there is no input `{name}` whose shape could be fixed", f"the model's inputs: {', '.join(map(str, inputs))}")
        if value.shape is not None and (len(value.shape) != len(lengths) or any(_differs(have, want) for have, want in zip(value.shape, lengths, strict=True))):
            raise ModelError(f"the input `{name}` is {value.shape}, it cannot be fixed to {list(lengths)}")
        value.shape = onnx_ir.Shape([int(length) for length in lengths])
    answers = [value.shape for value in fixed.graph.outputs]
    for value in fixed.graph.outputs:
        value.shape = None
    graph.infer_shapes(fixed)
    for value, shape in zip(fixed.graph.outputs, answers, strict=True):
        value.shape = shape if value.shape is None else value.shape
    return fixed


def _differs(have: int | onnx_ir.SymbolicDim, want: int) -> bool:
    return isinstance(have, int) and have >= 0 and have != want
