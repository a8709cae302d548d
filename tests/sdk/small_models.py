"""Models of a few nodes, built in code; chains of random operators for property tests; and how to compare two models."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from hypothesis import strategies as st

from edgesdk import graph, sampling
from edgesdk.graph import Array, Feeds, Model

# How many random graphs the slow property tests try: GRAPHS=2000 for a thorough sweep, some minutes on two cores.
GRAPHS = int(os.environ.get("GRAPHS", "400"))
DATA = Path(__file__).parents[1] / "data"
FLOAT = onnx.TensorProto.FLOAT

Shape = Sequence[int | str | None]


def proto(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """As an exporter would have written it. Inputs and outputs are float32."""
    made = onnx.helper.make_graph(
        list(nodes),
        "small",
        [onnx.helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [onnx.helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    return onnx.helper.make_model(made, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", opset)])


def build(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
) -> Model:
    """The same, loaded."""
    made = onnx_ir.serde.deserialize_model(proto(nodes, inputs=inputs, outputs=outputs, weights=weights, opset=opset))
    graph.check(made)
    return made


node = onnx.helper.make_node


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def operators(model: Model) -> dict[str, int]:
    return graph.describe(model).operators


def answers(model: Model, feeds: Feeds) -> dict[str, Array]:
    """Without onnxruntime's own optimizations: what the file says."""
    return graph.run(graph.session(model, optimize=False), feeds)


def assert_same_function(before: Model, after: Model, *, rtol: float = 1e-4, count: int = 2) -> None:
    """Same inputs, same outputs, and on random feeds the same answers."""
    assert graph.inputs(after) == graph.inputs(before)
    assert [info.name for info in graph.outputs(after)] == [info.name for info in graph.outputs(before)]
    for feeds in sampling.generated(before, count):
        expected, found = answers(before, feeds), answers(after, feeds)
        for name, array in expected.items():
            size = max(float(np.abs(array[np.isfinite(array)]).max(initial=0.0)), 1e-3) if array.dtype.kind == "f" else 1.0
            np.testing.assert_allclose(found[name], array, rtol=rtol, atol=rtol * size, err_msg=name)


_CHANNELS = 4
_HARD_SWISHES = ("clip mul div", "clip div mul", "clip scaled", "relu6", "hard_sigmoid")


class _Chain:
    """A graph in the making: the tensor that the next node reads, all that there were, and the weights."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int], *, in_nodes: bool, odd: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.draw, self.in_nodes, self.odd = draw, in_nodes, odd
        self.last, self.past = "x", ["x"]

    def pick(self, most: int) -> int:
        return self.draw(st.integers(0, most))

    def name(self, stem: str) -> str:
        return f'{stem}:{len(self.nodes)}/Straße "{stem}"' if self.odd else f"{stem}{len(self.nodes)}"

    def constant(self, array: Array) -> str:
        name = f"c{len(self.weights)}_{len(self.nodes)}"
        if self.in_nodes:
            self.nodes.append(node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(array))))
        else:
            self.weights[name] = np.asarray(array)
        return name

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        output = self.name(operator)
        self.nodes.append(node(operator, list(inputs), [output], name=self.name("node"), **attributes))
        self.last = output
        return output

    def grow(self, kind: str) -> None:
        x, seed = self.last, self.pick(1000)
        number = np.float32([0.5, -1.5, 1.0, 2.0][self.pick(3)])
        each = numbers(1, _CHANNELS, 1, 1, seed=seed) if self.pick(1) else np.asarray(number)
        if kind == "conv":
            group, wide, bias = (1, _CHANNELS)[self.pick(1)], (1, 3)[self.pick(1)], self.pick(1)
            weight = numbers(_CHANNELS, _CHANNELS // group, wide, wide, seed=seed, scale=0.5)
            if self.pick(4) == 0:
                weight[1] = 0  # a dead channel
            inputs = [x, self.constant(weight)] + ([self.constant(numbers(_CHANNELS, seed=seed + 1))] if bias else [])
            self.add("Conv", *inputs, group=group, pads=[wide // 2] * 4)
        elif kind == "deconv":
            group = (1, 2)[self.pick(1)]
            self.add("ConvTranspose", x, self.constant(numbers(_CHANNELS, _CHANNELS // group, 1, 1, seed=seed)), group=group)
        elif kind == "norm":
            scale, offset, mean = (self.constant(numbers(_CHANNELS, seed=seed + i)) for i in range(3))
            self.add("BatchNormalization", x, scale, offset, mean, self.constant(np.abs(numbers(_CHANNELS, seed=seed + 3)) + np.float32(0.1)))
        elif kind in ("Mul", "Add", "Sub"):
            pair = [x, self.constant(each)]
            self.add(kind, *(pair if self.pick(1) else pair[::-1]))
        elif kind == "Div":
            self.add("Div", x, self.constant(np.where(each == 0, np.float32(1), each).astype(np.float32)))
        elif kind == "swish":
            self.swish(x, _HARD_SWISHES[self.pick(len(_HARD_SWISHES) - 1)])
        elif kind == "residual":
            self.add("Add", x, self.past[self.pick(len(self.past) - 1)])
        elif kind == "twice":
            self.add("Add", self.add("Sigmoid", x), self.add("Sigmoid", x))
        elif kind == "Cast":
            self.add("Cast", x, to=FLOAT)
        elif kind == "transposes":
            self.add("Transpose", self.add("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
        elif kind == "reshape":
            shape = self.add("Shape", x)
            self.add("Reshape", x, shape)
        elif kind == "computed":
            exp = self.add("Exp", self.constant(np.asarray(number)))
            self.add("Mul", x, self.add("Neg", exp))
        else:
            self.add(kind, x)
        self.past.append(self.last)

    def swish(self, x: str, way: str) -> None:
        three, nought, six = (self.constant(np.asarray(number, np.float32)) for number in (3, 0, 6))
        if way == "hard_sigmoid":
            self.add("Mul", x, self.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))
            return
        shifted = self.add("Add", three, x)
        clipped = self.add("Min", self.add("Relu", shifted), six) if way == "relu6" else self.add("Clip", shifted, nought, six)
        if way == "clip div mul":
            self.add("Mul", self.add("Div", clipped, six), x)
        elif way == "clip scaled":
            self.add("Mul", x, self.add("Mul", clipped, self.constant(np.asarray(1 / 6, np.float32))))
        else:
            self.add("Div", self.add("Mul", x, clipped), six)


KINDS: tuple[str, ...] = ("conv", "deconv", "norm", "Mul", "Add", "Sub", "Div", "swish", "residual", "twice")
KINDS += ("Cast", "transposes", "reshape", "computed", "Relu", "Identity", "Dropout", "HardSigmoid", "LeakyRelu")


@st.composite
def chains(draw: Callable[[st.SearchStrategy[int]], int]) -> Model:
    """A chain of up to eight operators with branches back, on a [?, 4, 6, 6] image; sometimes with a second output from its middle."""
    chain = _Chain(draw, in_nodes=bool(draw(st.integers(0, 1))), odd=draw(st.integers(0, 3)) == 0)
    for _ in range(draw(st.integers(1, 8))):
        chain.grow(KINDS[draw(st.integers(0, len(KINDS) - 1))])
    free: Shape = ((1, _CHANNELS, 6, 6), ("n", _CHANNELS, "h", "w"))[draw(st.integers(0, 1))]
    outputs: dict[str, Shape] = {chain.last: [None, _CHANNELS, None, None]}
    if draw(st.integers(0, 2)) == 0:
        outputs.setdefault(chain.past[draw(st.integers(0, len(chain.past) - 1))], [None, _CHANNELS, None, None])
        outputs.pop("x", None)
    opset = (17, 13, 14, 19)[draw(st.integers(0, 3))]
    made = proto(chain.nodes, inputs={"x": free}, outputs=outputs, weights=chain.weights, opset=opset)
    return onnx_ir.serde.deserialize_model(made)
