"""Costs are counted as the definitions say, and measured on what really runs."""

import numpy as np
import onnx
import onnx_ir

from edgesdk import costs, graph, passes, sampling
from tests import digits
from tests.sdk.small_models import build, node, numbers


def test_multiply_accumulates_are_those_of_the_definitions() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv", group=2, strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("ConvTranspose", ["c", "t"], ["u"], name="up", strides=[2, 2]),
        node("GlobalAveragePool", ["u"], ["p"]), node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "g"], ["h"], name="dense", transB=1),
        node("MatMul", ["h", "m"], ["y"], name="product"),
    ]  # fmt: skip
    weights = {"w": numbers(6, 2, 3, 3), "t": numbers(6, 5, 2, 2), "g": numbers(7, 5), "m": numbers(7, 3)}
    model = build(nodes, inputs={"x": ("n", 4, 8, 8)}, outputs={"y": (None, 3)}, weights=weights)
    feeds = next(iter(sampling.generated(model, 1)))
    of_run = costs.shapes(model, feeds)
    assert of_run["c"] == (1, 6, 4, 4)
    assert costs.macs(model, of_run) == {"conv": 6 * 4 * 4 * 2 * 9, "up": 6 * 4 * 4 * 5 * 4, "dense": 7 * 5, "product": 7 * 3}


def test_what_is_the_same_in_few_bits_multiplies_as_often() -> None:
    product = build([node("MatMul", ["x", "w"], ["y"], name="product")], inputs={"x": ("n", 64)}, outputs={"y": (None, 32)}, weights={"w": numbers(64, 32)})
    samples = sampling.generated(product, 1)
    feeds = next(iter(samples))
    for steps in ([{"pass": "quantize_dynamic", "settings": {}}], [{"pass": "quantize_weights", "settings": {}}]):
        made = passes.apply(steps, product, samples)
        assert "MatMul" not in {each.op_type for each in made.graph}
        assert sum(costs.macs(made, costs.shapes(made, feeds)).values()) == 64 * 32, steps


def test_integer_convolutions_are_counted() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], name="to_integers"),
        node("QLinearConv", ["q", "s", "z", "w", "s", "wz", "s", "z"], ["c"], name="conv", pads=[1, 1, 1, 1], group=2),
        node("DequantizeLinear", ["c", "s", "z"], ["y"], name="to_floats"),
    ]
    weights = {"s": np.float32(0.1), "z": np.uint8(0), "wz": np.int8(0), "w": np.ones((8, 2, 3, 3), np.int8)}
    model = build(nodes, inputs={"x": (1, 4, 8, 8)}, outputs={"y": (1, 8, 8, 8)}, weights=weights)
    assert costs.macs(model, costs.shapes(model, next(iter(sampling.generated(model, 1))))) == {"conv": 8 * 8 * 8 * 2 * 9}


def test_what_is_not_counted_is_said() -> None:
    inside = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["c", "w"], ["d"]), onnx.helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [onnx.helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (("i", 7, []), ("go", 9, []), ("c", 1, [4, 16]))],
        [onnx.helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (("on", 9, []), ("d", 1, [4, 16]))],
    )
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in (("w", numbers(16, 16)), ("n", np.int64(5)), ("t", np.array(True)))]
    given, made = (onnx.helper.make_tensor_value_info(name, 1, [4, 16]) for name in "xz")
    nodes = [onnx.helper.make_node("Loop", ["n", "t", "x"], ["y"], body=inside), onnx.helper.make_node("Einsum", ["y", "w"], ["z"], equation="ab,bc->ac")]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [given], [made], weights), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert costs.uncounted(onnx_ir.from_proto(proto)) == {"MatMul in a subgraph or function": 1, "Einsum": 1}


def test_kernels_are_told_by_the_nodes_that_they_compute() -> None:
    model = passes.apply([{"pass": name} for name in passes.SIMPLIFY], graph.load(digits.MODEL))
    times = costs.kernel_ms(model, list(sampling.generated(model, 2)), threads=1)
    layers = {str(each.name) for each in model.graph if each.op_type == "Conv"}
    assert layers <= times.keys()
    assert all(time >= 0 for time in times.values())
    assert costs.conversion_ms_per_element() > 0
