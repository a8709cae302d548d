"""A newer operator set, where a pass needs an operator or an attribute that the old one lacks."""

from edgesdk import graph
from edgesdk.graph import Model

# HardSwish is in 14, per-channel DequantizeLinear in 13, LayerNormalization in 17; every runtime from 1.16 on reads 19.
MINIMUM = 17


def raise_opset(model: Model, *, minimum: int = MINIMUM) -> Model:
    """The model at opset ``minimum`` or above. Raises ModelError if onnx cannot convert it."""
    return graph.with_opset(model, minimum)
