"""Random graphs, as odd as exporters and people make them, for properties that every pass has to have.

    @given(graph=graphs())
    def test_a_pass_keeps_the_function(graph): ...

Each is a chain of up to nine blocks on an image, with branches back, several outputs, and now and then what a careful exporter would not
write: shared, dead, NaN and empty weights, names with quotes in them, constants in nodes, weights in a file beside, operators of any opset
from 11 to 22, If and Loop.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from hypothesis import strategies as st

from edgesdk import graph
from edgesdk.graph import Array, Feeds, Model
from tests.sdk.small_models import FLOAT, numbers

OPSETS = range(11, 23)
_SIDE = 6
_ELEMENTWISE = {"Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Identity", "Dropout", "Neg", "Abs", "Exp", "Clip", "Min", "Max", "Pow", "Sqrt"}
_ELEMENTWISE |= {"Add", "Sub", "Mul", "Div", "BatchNormalization", "Softmax", "LogSoftmax", "LayerNormalization"}
_IR_VERSIONS = ((18, 8), (20, 9), (22, 10))  # newest opset, IR version that knows it


@dataclass
class Growing:
    """A graph in the making: its nodes and weights, the tensor that the next block reads, and the shape [channels, height, width] of all."""

    pick: Callable[[int], int]  # a number up to that one
    opset: int
    in_nodes: bool = False
    odd_names: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    last: str = "x"
    names: int = 0

    @property
    def channels(self) -> int:
        return self.shapes[self.last][0]

    def name(self, stem: str) -> str:
        self.names += 1
        return f'{stem}:{self.names}/Straße "{stem}" \\ 漢' if self.odd_names else f"{stem}{self.names}"

    def among(self, things: Sequence[object]) -> object:
        return things[self.pick(len(things) - 1)]

    def constant(self, array: Array) -> str:
        """A new one; or one that is there already and equal, as exporters share them."""
        array = np.asarray(array)
        for name, other in self.weights.items():
            if other.dtype == array.dtype and np.array_equal(other, array) and self.pick(1):
                return name
        name = self.name("c")
        if self.in_nodes:
            self.nodes.append(onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array)))
        else:
            self.weights[name] = array
        return name

    def scalar(self, number: float) -> str:
        return self.constant(np.asarray(number, np.float32))

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        """A node. Of what is not computed number by number the caller has to note the shape, if it is an image still."""
        output = self.name(operator)
        node_name = ("", "node", self.name("node"))[self.pick(2)]
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], name=node_name, **attributes))
        self.last = output
        known = [self.shapes[name] for name in inputs if name in self.shapes]
        if known and operator in _ELEMENTWISE:
            self.shapes[output] = max(known)
        return output

    def add_axes(self, operator: str, value: str, axes: list[int], since: int, **attributes: object) -> str:
        """A node whose axes became an input at that opset."""
        if self.opset >= since:
            return self.add(operator, value, self.constant(np.array(axes)), **attributes)
        return self.add(operator, value, axes=axes, **attributes)


@dataclass(frozen=True)
class Generated:
    """A model and what to feed it."""

    model: Model
    feeds: Feeds


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[int]], int]) -> Generated:
    """A model as `graph.load` gives it, with feeds."""

    def pick(most: int) -> int:
        return draw(st.integers(0, most))

    growing = Growing(pick, OPSETS[pick(len(OPSETS) - 1)], in_nodes=pick(2) == 0, odd_names=pick(3) == 0)
    start = (4, 8, 16, 3)[pick(3)], _SIDE, _SIDE
    growing.shapes["x"] = start
    blocks = list(BLOCKS.values())
    for _ in range(1 + pick(8)):
        if pick(6) == 0:
            growing.last = list(growing.shapes)[pick(len(growing.shapes) - 1)]
        blocks[pick(len(blocks) - 1)](growing)
    if pick(3) == 0:
        _classify(growing)
    outputs = {growing.last if growing.last != "x" else growing.add("Relu", "x"): 4 if growing.last in growing.shapes else 2}
    if pick(2) == 0:
        outputs.setdefault(list(growing.shapes)[pick(len(growing.shapes) - 1)], 4)
        outputs.pop("x", None)
    free = pick(1) == 1
    feeds = {"x": numbers(1 + pick(1) if free else 1, *start, seed=pick(1000))}
    shape = ("n", start[0], "h", "w") if free else (1, *start)
    made = onnx.helper.make_graph(
        growing.nodes,
        "generated",
        [onnx.helper.make_tensor_value_info("x", FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(name, FLOAT, [None] * rank) for name, rank in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in growing.weights.items()],
    )
    ir_version = next(version for newest, version in _IR_VERSIONS if growing.opset <= newest)
    proto = onnx.helper.make_model(made, ir_version=ir_version, opset_imports=[onnx.helper.make_opsetid("", growing.opset)])
    return Generated(_loaded(proto, apart=pick(3) == 0), feeds)


def _loaded(proto: onnx.ModelProto, *, apart: bool) -> Model:
    """Through a file, as users do; weights in a second one if they are to lie apart."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save_model(proto, path, save_as_external_data=apart, location="weights", size_threshold=0)
        return graph.load(path)


def _convolution(growing: Growing) -> None:
    count, height, width = growing.shapes[growing.last]
    depthwise, wide, stride = growing.pick(2) == 0, (1, 3, 1)[growing.pick(2)], 1 + (growing.pick(3) == 0)
    wide = min(wide, height, width)
    group, out = (count, count) if depthwise else (1, (count, 4, 8, 12, 16, 18)[growing.pick(5)])
    weight = numbers(out, count // group, wide, wide, seed=growing.pick(50), scale=0.5)
    spoil = growing.pick(20)
    if spoil < 3:
        weight[0] = (0, 1e-30, np.nan)[spoil]  # a dead channel, one next to dead, and what a training run gone wrong leaves
    inputs = [growing.last, growing.constant(weight)]
    if growing.pick(1):
        inputs.append(growing.constant(numbers(out, seed=growing.pick(50))))
    padding = {"pads": [wide // 2] * 4} if growing.pick(3) else {"auto_pad": ("SAME_UPPER", "VALID")[growing.pick(1)]}
    around = {"SAME_UPPER": wide - 1, "VALID": 0}.get(padding.get("auto_pad", ""), 2 * (wide // 2))
    growing.add("Conv", *inputs, group=group, strides=[stride] * 2, **padding)
    sides = (-(-side // stride) if around == wide - 1 else (side + around - wide) // stride + 1 for side in (height, width))
    growing.shapes[growing.last] = (out, *sides)  # type: ignore[assignment]
    for block in (_batch_norm, _affine):
        if growing.pick(3) == 0:
            block(growing)


def _transposed_convolution(growing: Growing) -> None:
    count, height, width = growing.shapes[growing.last]
    if height > _SIDE:
        return
    wide, group = 1 + growing.pick(1), 2 if count % 2 == 0 and growing.pick(1) else 1
    growing.add("ConvTranspose", growing.last, growing.constant(numbers(count, 4 // group, wide, wide, seed=growing.pick(50))), group=group, strides=[wide] * 2)
    growing.shapes[growing.last] = (4, height * wide, width * wide)


def _batch_norm(growing: Growing) -> None:
    count, seed = growing.channels, growing.pick(50)
    parts = [growing.constant(numbers(count, seed=seed + i)) for i in range(3)]
    growing.add("BatchNormalization", growing.last, *parts, growing.constant(np.abs(numbers(count, seed=seed + 3)) + np.float32(0.1)))


def _affine(growing: Growing) -> None:
    for _ in range(1 + growing.pick(2)):
        count, _height, width = growing.shapes[growing.last]
        shape = ((), (1,), (1, 1, 1), (count, 1, 1), (1, count, 1, 1), (width,))[growing.pick(5)]
        array = np.asarray(numbers(*shape, seed=growing.pick(50)) if growing.pick(2) else np.full(shape, (0, 1, 2, 1e-20, -0.5)[growing.pick(4)]), np.float32)
        operator = ("Mul", "Add", "Sub", "Div")[growing.pick(3)]
        if operator == "Div":
            array = np.where(np.abs(array) < 1e-3, np.float32(1), array).astype(np.float32)
        pair = [growing.last, growing.constant(array)]
        before = growing.shapes[growing.last]
        growing.add(operator, *(pair if operator == "Div" or growing.pick(1) else pair[::-1]))
        growing.shapes[growing.last] = before


def _activation(growing: Growing) -> None:
    growing.add(("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Identity", "Dropout", "Neg", "Abs")[growing.pick(9)], growing.last)


def _softmax(growing: Growing) -> None:
    growing.add(("Softmax", "LogSoftmax")[growing.pick(1)], growing.last, axis=(1, 3, -1)[growing.pick(2)])


def _clip(growing: Growing) -> None:
    """Hard-swish, hard-sigmoid and other clips, in some of their spellings."""
    x, top = growing.last, (6.0, 1.0, 4.0)[growing.pick(2)]
    if growing.pick(3):
        _affine_scalar(growing, (3.0, 0.5, 1.0)[growing.pick(2)])
    if growing.pick(1):
        growing.add("Clip", growing.last, growing.scalar(0), growing.scalar(top))
    else:
        growing.add("Min", growing.add("Relu", growing.last), growing.scalar(top))
    order = growing.pick(3)
    if order in (1, 2):
        growing.add(*(("Div", growing.last, growing.scalar(top)) if growing.pick(1) else ("Mul", growing.last, growing.scalar(1 / top))))
    if order in (2, 3):
        growing.add("Mul", x, growing.last)
    if order == 3:
        growing.add("Div", growing.last, growing.scalar(top))


def _affine_scalar(growing: Growing, shift: float) -> None:
    if growing.pick(1):
        growing.add("Mul", growing.last, growing.scalar(0.7))
    growing.add("Add", growing.last, growing.scalar(shift))


def _gate(growing: Growing) -> None:
    """x · sigmoid(x), and GELU as it is exported."""
    x = growing.last
    if growing.pick(1):
        growing.add("Mul", x, growing.add("Sigmoid", x))
        return
    inner = growing.add("Erf", growing.add("Div", x, growing.scalar(2**0.5)))
    growing.add("Mul", growing.add("Mul", x, growing.add("Add", inner, growing.scalar(1))), growing.scalar(0.5))


def _squeeze_and_excite(growing: Growing) -> None:
    x, (count, height, width) = growing.last, growing.shapes[growing.last]
    growing.add("GlobalAveragePool", x) if growing.pick(1) else growing.add_axes("ReduceMean", x, [2, -1], 18)
    growing.shapes[growing.last] = (count, 1, 1)
    growing.add("Conv", growing.last, growing.constant(numbers(2, count, 1, 1, seed=growing.pick(9))), growing.constant(numbers(2)))
    growing.add("Relu", growing.last)
    growing.add("Conv", growing.last, growing.constant(numbers(count, 2, 1, 1, seed=growing.pick(9))))
    gate = growing.add(("HardSigmoid", "Sigmoid")[growing.pick(1)], growing.last)
    growing.add("Mul", *((x, gate) if growing.pick(1) else (gate, x)))
    growing.shapes[growing.last] = (count, height, width)
    if growing.pick(1):
        growing.add("Add", x, growing.last)


def _pool(growing: Growing) -> None:
    count, height, width = growing.shapes[growing.last]
    if min(height, width) < 2:
        return
    operator, padded = ("MaxPool", "AveragePool")[growing.pick(1)], growing.pick(1)
    more = {"count_include_pad": growing.pick(1)} if operator == "AveragePool" else {}
    growing.add(operator, growing.last, kernel_shape=[2, 2], strides=[2, 2], pads=[padded] * 4, **more)
    growing.shapes[growing.last] = (count, (height - 2 + 2 * padded) // 2 + 1, (width - 2 + 2 * padded) // 2 + 1)


def _layer_norm(growing: Growing) -> None:
    x, width = growing.last, growing.shapes[growing.last][2]
    if growing.opset >= 17 and growing.pick(2) == 0:
        growing.add("LayerNormalization", x, growing.constant(numbers(width)), axis=-1)
        return
    apart = growing.add("Sub", x, growing.add_axes("ReduceMean", x, [-1], 18))
    square = growing.add("Pow", apart, growing.scalar(2)) if growing.pick(1) else growing.add("Mul", apart, apart)
    variance = growing.add_axes("ReduceMean", square, [3], 18)
    root = growing.add("Sqrt", growing.add("Add", variance, growing.scalar(1e-5)))
    growing.add("Div", apart, root)
    if growing.pick(1):
        growing.add("Mul", growing.last, growing.constant(numbers(*((width,) if growing.pick(3) else ()))))
    if growing.pick(1):
        growing.add("Add", growing.last, growing.constant(numbers(width, seed=1)))


def _residual(growing: Growing) -> None:
    alike = [name for name, shape in growing.shapes.items() if shape == growing.shapes[growing.last]]
    growing.add(("Add", "Mul", "Sub", "Max")[growing.pick(3)], growing.last, alike[growing.pick(len(alike) - 1)])


def _twice(growing: Growing) -> None:
    """The same computed twice, and put together."""
    x, operator = growing.last, ("Sigmoid", "Exp", "Relu")[growing.pick(2)]
    clipped = growing.add("Clip", x, growing.scalar(-3), growing.scalar(3))
    count, height, width = growing.shapes[x]
    first, second = growing.add(operator, clipped), growing.add(operator, clipped)
    if growing.pick(1) or count > 16:
        growing.add("Add", first, second)
    else:
        growing.add("Concat", first, second, axis=1)
        growing.shapes[growing.last] = (2 * count, height, width)


def _undone(growing: Growing) -> None:
    """Pairs that come to nothing, or to one."""
    x, way = growing.last, growing.pick(6)
    if way == 0:
        growing.add("Transpose", growing.add("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    elif way == 1:
        growing.add_axes("Squeeze", growing.add_axes("Unsqueeze", x, [0], 13), [0], 13)
    elif way == 2:
        growing.add("Cast", growing.add("Cast", x, to=onnx.TensorProto.DOUBLE), to=FLOAT)
    elif way == 3:
        growing.add("Reshape", growing.add("Flatten", x, axis=(1, 3)[growing.pick(1)]), growing.add("Shape", x))
    elif way == 4:
        growing.add("Reshape", growing.add("Reshape", x, growing.constant(np.array([0, -1]))), growing.constant(np.array([-1, *growing.shapes[x]])))
    elif way == 5:
        growing.add("Reshape", x, growing.constant(np.array([0, 0, -1, growing.shapes[x][2]])))
    else:
        growing.add("Identity", growing.add("Cast", x, to=FLOAT))
    growing.shapes[growing.last] = growing.shapes[x]


def _computed(growing: Growing) -> None:
    """A constant that has to be computed, and one number that the input decides."""
    x = growing.last
    constant = growing.add("Neg", growing.add("Exp", growing.scalar(0.3)))
    growing.add("Mul", x, constant)
    if growing.pick(1):
        scaled = growing.last
        growing.add("Add", scaled, growing.add("ReduceMean", x, keepdims=0))


def _empty(growing: Growing) -> None:
    """A tensor of no channels, put beside the whole one."""
    x = growing.last
    nothing = growing.add("Slice", x, *(growing.constant(np.array([number])) for number in (0, 0, 1)))
    growing.add("Concat", *((nothing, x) if growing.pick(1) else (x, nothing)), axis=1)
    growing.shapes[growing.last] = growing.shapes[x]


def _resize(growing: Growing) -> None:
    count, height, width = growing.shapes[growing.last]
    if height > _SIDE:
        return
    scales = growing.constant(np.array([1, 1, 2, 2], np.float32))
    roi = growing.constant(np.zeros(0, np.float32)) if growing.opset < 13 or growing.pick(1) else ""
    growing.add("Resize", growing.last, roi, scales, mode=("nearest", "linear")[growing.pick(1)], coordinate_transformation_mode="asymmetric")
    growing.shapes[growing.last] = (count, height * 2, width * 2)


def _if(growing: Growing) -> None:
    """Which branch is taken depends on the input, but not on its last digit."""
    x = growing.last
    total = growing.add("ReduceMean", growing.add("Clip", x, growing.scalar(-1), growing.scalar(1)), keepdims=0)
    condition = growing.add("Less", total, growing.scalar((-9, 9)[growing.pick(1)]))
    branches = {branch: _branch(growing, x, branch) for branch in ("then_branch", "else_branch")}
    growing.add("If", condition, **branches)
    growing.shapes[growing.last] = growing.shapes[x]


def _branch(growing: Growing, x: str, branch: str) -> onnx.GraphProto:
    inner, output, constant = growing.name("inner"), growing.name(branch), growing.name("k")
    nodes = [
        onnx.helper.make_node("Identity", [x], [inner]),
        onnx.helper.make_node(("Mul", "Add")[branch == "then_branch"], [inner, constant], [output]),
    ]
    value = onnx.helper.make_tensor_value_info(output, FLOAT, None)
    return onnx.helper.make_graph(nodes, branch, [], [value], [onnx.numpy_helper.from_array(np.asarray((1, 0.5)[growing.pick(1)], np.float32), constant)])


def _loop(growing: Growing) -> None:
    x = growing.last
    step, condition, value, output, goes_on, outer = (growing.name(stem) for stem in ("i", "c", "v", "o", "g", "k"))
    outer = growing.scalar(0.5)
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [condition], [goes_on]), onnx.helper.make_node("Mul", [value, outer], [output])],
        "body",
        [onnx.helper.make_tensor_value_info(step, onnx.TensorProto.INT64, []), onnx.helper.make_tensor_value_info(condition, onnx.TensorProto.BOOL, []),
         onnx.helper.make_tensor_value_info(value, FLOAT, None)],
        [onnx.helper.make_tensor_value_info(goes_on, onnx.TensorProto.BOOL, []), onnx.helper.make_tensor_value_info(output, FLOAT, None)],
    )  # fmt: skip
    growing.add("Loop", growing.constant(np.array(2)), growing.constant(np.array(True)), x, body=body)
    growing.shapes[growing.last] = growing.shapes[x]


def _classify(growing: Growing) -> None:
    """The end of most classifiers: pooled, flattened, a Gemm or MatMul, with constants beside it."""
    count = growing.channels
    growing.add("Flatten", growing.add("GlobalAveragePool", growing.last))
    if growing.pick(1):
        growing.add("Mul", growing.last, growing.constant(numbers(count, seed=3)))
    if growing.pick(1):
        transposed = growing.pick(1)
        weight = numbers(5, count) if transposed else numbers(count, 5)
        growing.add("Gemm", growing.last, growing.constant(weight), growing.constant(numbers(1, 5)), alpha=0.5, beta=2.0, transB=transposed)
    else:
        growing.add("Add", growing.add("MatMul", growing.last, growing.constant(numbers(count, 5))), growing.constant(numbers(5)))
    if growing.pick(1):
        growing.add("Div", growing.last, growing.constant(np.abs(numbers(5)) + np.float32(0.5)))


BLOCKS: dict[str, Callable[[Growing], None]] = {
    "convolution": _convolution,
    "convolution again": _convolution,
    "transposed convolution": _transposed_convolution,
    "batch norm": _batch_norm,
    "affine": _affine,
    "affine again": _affine,
    "activation": _activation,
    "softmax": _softmax,
    "clip": _clip,
    "gate": _gate,
    "squeeze and excite": _squeeze_and_excite,
    "pool": _pool,
    "layer norm": _layer_norm,
    "residual": _residual,
    "twice": _twice,
    "undone": _undone,
    "computed": _computed,
    "empty": _empty,
    "resize": _resize,
    "if": _if,
    "loop": _loop,
}
