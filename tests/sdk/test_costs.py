"""Costs are counted as the definitions say, and measured on what really runs."""

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


def test_kernels_are_told_by_the_nodes_that_they_compute() -> None:
    model = passes.apply([{"pass": name} for name in passes.SIMPLIFY], graph.load(digits.MODEL))
    times = costs.kernel_ms(model, list(sampling.generated(model, 2)), threads=1)
    layers = {str(each.name) for each in model.graph if each.op_type == "Conv"}
    assert layers <= times.keys()
    assert all(time >= 0 for time in times.values())
    assert costs.conversion_ms_per_element() > 0
