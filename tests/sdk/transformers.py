"""A transformer's block and a recurrent layer as exporters write them, small enough to be built in code."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir

from edgesdk import graph
from edgesdk.graph import Array, Model
from tests.sdk.small_models import FLOAT, build, node, numbers

ROWS, WIDTH, HEADS = 100, 32, 2


def block(*, layer_norm: bool = True) -> Model:
    """Token ids int64 [?, ?] to float32 [?, ?, WIDTH]: an embedding, attention of two heads, a residual, LayerNormalization, Gelu between two MatMuls."""
    weights: dict[str, Array] = {name: numbers(WIDTH, WIDTH, seed=seed, scale=0.2) for seed, name in enumerate(("q", "k", "v", "o"))}
    weights |= {f"{name}_bias": numbers(WIDTH, seed=seed, scale=0.1) for seed, name in enumerate(("q", "k", "v", "o", "down"))}
    weights |= {"table": numbers(ROWS, WIDTH), "up": numbers(WIDTH, 4 * WIDTH, scale=0.2), "down": numbers(4 * WIDTH, WIDTH, scale=0.2)}
    weights |= {"up_bias": numbers(4 * WIDTH, scale=0.1), "gain": np.ones(WIDTH, np.float32), "shift": np.zeros(WIDTH, np.float32)}
    weights |= {"heads": np.array([0, 0, HEADS, WIDTH // HEADS]), "whole": np.array([0, 0, WIDTH]), "root": np.float32(4), "two": np.float32(np.sqrt(2))}
    weights |= {"one": np.float32(1), "half": np.float32(0.5)}
    nodes = [node("Gather", ["ids", "table"][::-1], ["x"], name="embedding")]
    for name in ("q", "k", "v"):
        nodes += [
            node("MatMul", ["x", name], [f"{name}_product"], name=f"{name}_proj"),
            node("Add", [f"{name}_bias", f"{name}_product"], [f"{name}_sum"]),
            node("Reshape", [f"{name}_sum", "heads"], [f"{name}_heads"]),
            node("Transpose", [f"{name}_heads"], [f"{name}_t"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q_t", "k_t"], ["similar"], name="similar"), node("Div", ["similar", "root"], ["scaled"]),
        node("Softmax", ["scaled"], ["share"], axis=-1),
        node("MatMul", ["share", "v_t"], ["mixed"], name="mixed"), node("Transpose", ["mixed"], ["mixed_t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["mixed_t", "whole"], ["joined"]), node("MatMul", ["joined", "o"], ["o_product"], name="o_proj"),
        node("Add", ["o_bias", "o_product"], ["o_sum"]), node("Add", ["o_sum", "x"], ["residual"]),
        node("LayerNormalization", ["residual", "gain", "shift"], ["normal"], axis=-1) if layer_norm else node("Identity", ["residual"], ["normal"]),
        node("MatMul", ["normal", "up"], ["up_product"], name="up_proj"), node("Add", ["up_bias", "up_product"], ["wide"]),
        node("Div", ["wide", "two"], ["e0"]), node("Erf", ["e0"], ["e1"]), node("Add", ["e1", "one"], ["e2"]),
        node("Mul", ["wide", "e2"], ["e3"]), node("Mul", ["e3", "half"], ["gelu"]),
        node("MatMul", ["gelu", "down"], ["down_product"], name="down_proj"), node("Add", ["down_bias", "down_product"], ["y"]),
    ]  # fmt: skip
    made = onnx.helper.make_graph(
        nodes, "block",
        [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, ["batch", "length", WIDTH])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    model = onnx_ir.serde.deserialize_model(onnx.helper.make_model(made, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    graph.check(model)
    return model


def lstm(*, inputs: int, hidden: int, direction: str, extra: Mapping[str, Array] | None = None, scale: float = 0.5, **attributes: Any) -> Model:
    """float32 [?, ?, inputs] (steps first) to all hidden states [?, directions, ?, hidden]. ``extra``: more of the operator's inputs, by name."""
    directions = 2 if direction == "bidirectional" else 1
    weights = {
        "W": numbers(directions, 4 * hidden, inputs, scale=scale),
        "R": numbers(directions, 4 * hidden, hidden, seed=1, scale=scale),
        **(extra or {}),
    }
    names = [name if name in weights else "" for name in ("B", "sequence_lens", "initial_h", "initial_c", "P")]
    layer = node("LSTM", ["x", "W", "R", *names], ["y"], name="lstm", hidden_size=hidden, direction=direction, **attributes)
    return build([layer], inputs={"x": ("steps", "batch", inputs)}, outputs={"y": (None, directions, None, hidden)}, weights=weights)
