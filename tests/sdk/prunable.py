"""Random networks as people prune them: known blocks, one after another, some with channels planted in them that make no difference.

    @given(network=networks())
    def test_dead_channels_go(network): assert smaller(remove_dead_channels(network.model), network.model) or not network.planted

A network is a chain of blocks on images, perhaps of blocks on sequences after them, and a classifier. Sizes of its input may be free.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir
from hypothesis import strategies as st

from edgesdk import graph
from edgesdk.graph import Array, Feeds, Model
from tests.sdk.generated import Growing
from tests.sdk.small_models import FLOAT, numbers

_SIDE = 8
_OPSETS = (11, 13, 17, 18, 21)


@dataclass
class Network(Growing):
    """A graph in the making. ``shapes`` of tensors on the way are [channels, height, width]; ``width`` is that of a sequence's vectors."""

    free: bool = False  # of batch, height and width, or number of steps
    plant: bool = False
    planted: int = 0
    width: int = 0
    batch: int = 2
    more: list[onnx.NodeProto] = field(default_factory=list)

    def some(self, *shape: int) -> Array:
        return numbers(*shape, seed=self.pick(1000), scale=0.5)

    def conv(self, count: int, side: int = 1, *, group: int = 1, dead: Array | None = None, unread: Array | None = None, **more: object) -> str:
        """A Conv with some of its channels always zero, or its inputs unread."""
        given = self.channels
        weight, bias = self.some(count, given // group, side, side), self.some(count)
        if dead is not None:
            weight[dead], bias[dead] = 0, 0
        if unread is not None:
            weight[:, unread] = 0
        shape = self.shapes[self.last]
        inputs = [self.last, self.constant(weight), *([self.constant(bias)] if dead is not None or self.pick(1) else [])]
        made = self.add("Conv", *inputs, group=group, pads=[side // 2] * 4, **more)
        self.shapes[made] = (count, *shape[1:])
        return made

    def dead(self, count: int) -> Array | None:
        """Which of so many channels are to make no difference; None where nothing is to be planted."""
        if not self.plant or count < 2:
            return None
        self.planted += 1
        return np.flatnonzero(np.random.default_rng(self.pick(1000)).permutation(count) < 1 + self.pick(count - 2))

    def activate(self) -> None:
        shape = self.shapes.get(self.last)
        self.add(("Relu", "LeakyRelu", "HardSwish" if self.opset >= 14 else "Tanh", "Elu")[self.pick(3)], self.last)
        if shape is not None:
            self.shapes[self.last] = shape

    def norm(self) -> None:
        count, shape = self.channels, self.shapes[self.last]
        parts = [self.constant(self.some(count)) for _ in range(3)]
        self.add("BatchNormalization", self.last, *parts, self.constant(np.abs(self.some(count)) + np.float32(0.5)))
        self.shapes[self.last] = shape

    def join(self, operator: str, one: str, other: str) -> None:
        shape = self.shapes[one]
        self.add(operator, *((one, other) if self.pick(1) else (other, one)))
        self.shapes[self.last] = shape

    def at(self, name: str) -> None:
        self.last = name


@dataclass(frozen=True)
class Prunable:
    """A model, what to feed it, and, where it takes other sizes too, what to feed it of such."""

    model: Model
    feeds: Feeds
    others: Feeds
    planted: int


def _residual(net: Network) -> None:
    x, count = net.last, net.channels
    inner = 4 + net.pick(8)
    dead = net.dead(inner)
    side = (1, 3)[net.pick(1)]
    if net.pick(1):
        net.conv(inner, side, dead=dead)
        net.activate()
        net.conv(count, 3)
    else:
        net.conv(inner, side)
        net.activate()
        net.conv(count, 3, unread=dead)
    if net.pick(1):
        net.norm()
    net.join("Add", net.last, x)
    if net.pick(1):
        net.activate()


def _projection(net: Network) -> None:
    """A residual sum of another width, dead channels in both of its branches."""
    x, count = net.last, 6 + 2 * net.pick(4)
    dead = net.dead(count)
    one = net.conv(count, dead=dead)
    net.at(x)
    net.conv(count, 3, dead=dead)
    net.join("Add", net.last, one)
    net.activate()
    net.conv(4 + net.pick(4))


def _dense(net: Network) -> None:
    for _ in range(1 + net.pick(1)):
        x, (count, *sides) = net.last, net.shapes[net.last]
        more = 3 + net.pick(4)
        net.conv(more, 3, dead=net.dead(more))
        net.activate()
        net.add("Concat", x, net.last, axis=1)
        net.shapes[net.last] = (count + more, *sides)  # type: ignore[assignment]
    normalized = net.pick(1)
    if normalized:
        net.norm()
        net.activate()
    net.conv(6, 1 if normalized else 3)  # what is padded beside a number that is not zero is not the same everywhere


def _inverted(net: Network) -> None:
    x, count = net.last, net.channels
    wide = 2 * count
    dead = net.dead(wide)
    first = net.pick(1)
    net.conv(wide, dead=dead if first else None)
    net.activate()
    net.conv(wide, 3, group=wide, dead=dead if first else None)
    if net.pick(1):
        net.activate()
    if first and net.pick(1):  # it would read the others, too
        _excite(net)
    net.conv(count, unread=None if first else dead)
    if net.pick(1):
        net.join("Add", net.last, x)


def _excite(net: Network) -> None:
    """The squeeze, two small layers, and the gate."""
    x, shape, few = net.last, net.shapes[net.last], 2 + net.pick(3)
    if net.pick(1):
        net.add("GlobalAveragePool", x)
        net.shapes[net.last] = (shape[0], 1, 1)
        net.conv(few, dead=net.dead(few))
        net.activate()
        net.conv(shape[0])
    else:
        net.add_axes("ReduceMean", x, [2, 3], 18, keepdims=0)
        net.add("Gemm", net.last, net.constant(net.some(shape[0], few)), net.constant(net.some(few)))
        net.add("Relu", net.last)
        net.add("Gemm", net.last, net.constant(net.some(shape[0], few)), net.constant(net.some(shape[0])), transB=1)
        net.add_axes("Unsqueeze", net.last, [2, 3], 13)
    gate = net.add(("Sigmoid", "HardSigmoid")[net.pick(1)], net.last)
    net.at(x)
    net.join("Mul", x, gate)
    net.shapes[net.last] = shape


def _gated(net: Network) -> None:
    net.conv(6)
    _excite(net)
    net.conv(4)


def _u_shape(net: Network) -> None:
    x, (count, *sides) = net.last, net.shapes[net.last]
    if not net.free and min(sides) < 2:
        return
    inner = 4 + net.pick(4)
    net.add(("MaxPool", "AveragePool")[net.pick(1)], x, kernel_shape=[2, 2], strides=[2, 2])
    net.shapes[net.last] = (count, sides[0] // 2, sides[1] // 2)
    net.conv(inner, 3, dead=net.dead(inner))
    net.activate()
    if net.pick(1):
        net.add("ConvTranspose", net.last, net.constant(net.some(inner, 5, 2, 2)), net.constant(net.some(5)), strides=[2, 2])
        inner = 5
    elif net.pick(1):
        net.add("Resize", net.last, net.constant(np.zeros(0, np.float32)), net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    else:  # as PyTorch writes it: two lengths of one tensor, two of another
        here, there = net.last, x
        lengths = [
            net.add("Slice", net.add("Shape", each), *(net.constant(np.array([number])) for number in part)) for each, part in ((here, (0, 2)), (there, (2, 4)))
        ]
        sizes = net.add("Concat", *lengths, axis=0)
        net.add("Resize", here, net.constant(np.zeros(0, np.float32)), net.constant(np.zeros(0, np.float32)), sizes, mode="nearest")
    net.add("Concat", net.last, x, axis=1)
    net.shapes[net.last] = (inner + count, *sides)  # type: ignore[assignment]
    net.conv(6, 3)


def _shared(net: Network) -> None:
    """One Conv's weights for two tensors, as in a siamese network or a detector's heads."""
    x, shape = net.last, net.shapes[net.last]
    count = 4 + net.pick(4)
    one = net.conv(count, 3)
    net.at(x)
    other = net.conv(count, 3)
    weight = net.some(5, count, 1, 1)
    if net.plant:
        weight[:, net.dead(count)] = 0
    shared = net.constant(weight)
    made = [net.add("Conv", each, shared) for each in (one, other)]
    for each in made:
        net.shapes[each] = (5, *shape[1:])
    net.join("Add", *made)


def _grouped(net: Network) -> None:
    group = 2 + net.pick(1)
    each, places = 2 + net.pick(3), 2 + net.pick(2)
    dead = net.dead(places)
    net.conv(group * each)
    net.activate()
    wide = None if dead is None else np.concatenate([dead + place * places for place in range(group)])
    net.conv(group * places, 3, group=group, dead=wide)
    net.activate()
    net.conv(6)


def _multiplied(net: Network) -> None:
    """A depthwise Conv that makes several channels of each."""
    count = net.channels
    net.conv(2 * count, 3, group=count)
    net.conv(5)


def _halves(net: Network) -> None:
    """Part of the channels goes on, part is computed with; a channel shuffle perhaps."""
    half = 4 + net.pick(2)
    net.conv(2 * half)
    sides = net.shapes[net.last][1:]
    if net.pick(1):
        sizes = ["", net.constant(np.array([half, half]))][net.pick(1)] if net.opset >= 13 else ""
        more = {"num_outputs": 2} if net.opset >= 18 and not sizes else {}
        parts = [net.name("part"), net.name("part")]
        net.nodes.append(onnx.helper.make_node("Split", [net.last, sizes] if sizes else [net.last], parts, name=net.name("split"), axis=1, **more))
    else:
        whole = net.last
        parts = [net.add("Slice", whole, *(net.constant(np.array([number])) for number in (start, end, 1))) for start, end in ((0, half), (half, 2**60))]
    for part in parts:
        net.shapes[part] = (half, *sides)
    net.at(parts[1])
    net.conv(5, 3, dead=net.dead(5))
    net.activate()
    net.conv(half)
    net.add("Concat", parts[0], net.last, axis=1)
    net.shapes[net.last] = (2 * half, *sides)
    if net.pick(1):
        _shuffle(net, 2)
    net.conv(6)


def _shuffle(net: Network, groups: int) -> None:
    shape = net.shapes[net.last]
    apart, back = np.array([0, groups, shape[0] // groups, -1]), np.array([0, shape[0], *shape[1:]])
    x = net.last
    target = net.add("Shape", x) if net.free or net.pick(1) else net.constant(back)
    net.add("Transpose", net.add("Reshape", x, net.constant(apart)), perm=[0, 2, 1, 3])
    net.add("Reshape", net.last, target)
    net.shapes[net.last] = shape


def _transposed(net: Network) -> None:
    sides, count = net.shapes[net.last][1:], 4 + 2 * net.pick(2)
    group = (1, 2, count)[net.pick(2)]
    each = 1 + net.pick(1) if group < count else 1
    dead = net.dead(count // group if group < count else count)
    if dead is not None and group == 2:
        dead = np.concatenate([dead, dead + count // 2])
    net.conv(count, dead=dead)
    net.activate()
    bias = [net.constant(net.some(group * each))] if net.pick(1) else []
    net.add("ConvTranspose", net.last, net.constant(net.some(count, each, 3, 3)), *bias, group=group, pads=[1] * 4)
    net.shapes[net.last] = (group * each, *sides)
    net.conv(5)


def _to_space(net: Network) -> None:
    sides = net.shapes[net.last][1:]
    if max(sides) > 8:
        return
    net.conv(4 * 3)
    net.add("DepthToSpace", net.last, blocksize=2, mode=("DCR", "CRD")[net.pick(1)])
    net.shapes[net.last] = (3, sides[0] * 2, sides[1] * 2)
    if net.pick(1):
        net.add("SpaceToDepth", net.last, blocksize=2)
        net.shapes[net.last] = (12, *sides)
    net.conv(4)


def _moved(net: Network) -> None:
    """Channels taken apart, put in another order, and filled up with zeros."""
    sides = net.shapes[net.last][1:]
    net.conv(9)
    net.add("Gather", net.last, net.constant(np.array([8, 0, 3, 1, 2, 7])), axis=1)
    if net.pick(1):
        net.add("Pad", net.last, net.constant(np.array([0, 1, 0, 0, 0, 2, 0, 0])))
        net.shapes[net.last] = (9, *sides)
        x = net.last
        net.conv(9, 3)
        net.join("Add", net.last, x)
        net.activate()
    else:
        net.shapes[net.last] = (6, *sides)
    net.conv(5)


def _normalized(net: Network) -> None:
    shape = net.shapes[net.last]
    net.conv(8)
    if net.pick(1):
        net.add("InstanceNormalization", net.last, net.constant(net.some(8)), net.constant(net.some(8)))
        net.add("PRelu", net.last, net.constant(np.abs(net.some(8, 1, 1))))
    else:  # GroupNorm, as PyTorch writes it
        x = net.last
        net.add("Reshape", x, net.constant(np.array([0, 2, -1])))
        net.add("InstanceNormalization", net.last, net.constant(np.ones(2, np.float32)), net.constant(np.zeros(2, np.float32)))
        net.add("Reshape", net.last, net.add("Shape", x))
        net.add("Mul", net.last, net.constant(net.some(8, 1, 1)))
    net.shapes[net.last] = (8, *shape[1:])
    net.conv(5)


IMAGE_BLOCKS: dict[str, Callable[[Network], None]] = {
    "residual": _residual,
    "projection": _projection,
    "dense": _dense,
    "inverted bottleneck": _inverted,
    "squeeze and excite": _gated,
    "u-net": _u_shape,
    "shared weights": _shared,
    "grouped": _grouped,
    "multiplied": _multiplied,
    "halves": _halves,
    "transposed": _transposed,
    "depth to space": _to_space,
    "moved": _moved,
    "normalized": _normalized,
}


def _dense_layer(net: Network, weight: Array, bias: Array | None = None) -> str:
    net.add("MatMul", net.last, net.constant(weight))
    return net.add("Add", net.last, net.constant(bias)) if bias is not None else net.last


def _feed_forward(net: Network) -> None:
    x, wide = net.last, 6 + net.pick(6)
    dead = net.dead(wide)
    first, bias, second = net.some(net.width, wide), net.some(wide), net.some(wide, net.width)
    if dead is not None and net.pick(1):
        second[dead] = 0
    elif dead is not None:
        first[:, dead], bias[dead] = 0, 0
    _layer_norm(net)
    _dense_layer(net, first, bias)
    if net.pick(1):
        net.add("Relu", net.last)
    else:
        y = net.last
        inner = net.add("Erf", net.add("Div", y, net.scalar(2**0.5)))
        net.add("Mul", net.add("Mul", y, net.add("Add", inner, net.scalar(1))), net.scalar(0.5))
    _dense_layer(net, second, net.some(net.width))
    net.add("Add", x, net.last)


def _layer_norm(net: Network) -> None:
    if net.opset >= 17:
        net.add("LayerNormalization", net.last, net.constant(net.some(net.width)), net.constant(net.some(net.width)), axis=-1)
    else:
        net.add("Mul", net.last, net.constant(net.some(net.width)))


def _attention(net: Network) -> None:
    """Of several heads: q, k and v of a layer each, or of one; shapes told as numbers, or computed from others."""
    x, heads, each = net.last, 2 + net.pick(2), 2 + net.pick(2)
    wide = heads * each
    dead = net.dead(heads)
    out = net.some(wide, net.width)
    if dead is not None:
        out.reshape(heads, each, -1)[dead] = 0
    _layer_norm(net)
    y = net.last
    shape = net.add("Shape", y)
    lengths = [net.add_axes("Unsqueeze", net.add("Gather", shape, net.constant(np.array(place))), [0], 13) for place in (0, 1)]
    computed = net.pick(1)

    def told(*numbers: int) -> str:
        if not computed:
            return net.constant(np.array([0, 0, *numbers]))
        return net.add("Concat", *lengths, *(net.constant(np.array([number])) for number in numbers), axis=0)

    if net.pick(1):
        net.at(y)
        _dense_layer(net, net.some(net.width, 3 * wide), net.some(3 * wide))
        net.add("Transpose", net.add("Reshape", net.last, told(3, heads, each)), perm=[2, 0, 3, 1, 4])
        q, k, v = (net.add("Gather", whole, net.constant(np.array(place))) for whole in [net.last] for place in range(3))
        k = net.add("Transpose", k, perm=[0, 1, 3, 2])
    else:
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            net.at(y)
            _dense_layer(net, net.some(net.width, wide), net.some(wide) if net.pick(1) else None)
            parts.append(net.add("Transpose", net.add("Reshape", net.last, told(heads, each)), perm=perm))
        q, k, v = parts
    net.add("Softmax", net.add("Div", net.add("MatMul", q, k), net.scalar(each**0.5)), axis=-1 if net.opset >= 13 else 3)
    net.add("Transpose", net.add("MatMul", net.last, v), perm=[0, 2, 1, 3])
    net.add("Reshape", net.last, told(wide))
    _dense_layer(net, out, net.some(net.width))
    net.add("Add", x, net.last)


def _recurrent(net: Network) -> None:
    """LSTM, GRU or RNN, of one direction or two, what it starts with computed perhaps."""
    kind, directions, hidden = ("LSTM", "GRU", "RNN")[net.pick(2)], 1 + net.pick(1), 4 + net.pick(4)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    weight, recurrent = net.some(directions, gates * hidden, net.width), net.some(directions, gates * hidden, hidden)
    bias = net.some(directions, 2 * gates * hidden)
    starts = net.pick(2) == 0
    dead = None if starts else net.dead(hidden)
    if dead is not None:
        for array in (
            weight.reshape(directions, gates, hidden, -1),
            recurrent.reshape(directions, gates, hidden, -1),
            bias.reshape(directions, 2, gates, hidden),
        ):
            if array.shape[1] == gates:
                array[:, -1, dead] = 0
            else:
                array[:, :, -1, dead] = 0
    x = net.add("Transpose", net.last, perm=[1, 0, 2])
    inputs = [x, *(net.constant(array) for array in (weight, recurrent, bias))]
    if starts:
        batch = net.add_axes("Unsqueeze", net.add("Gather", net.add("Shape", x), net.constant(np.array(1))), [0], 13)
        shape = net.add("Concat", net.constant(np.array([directions])), batch, net.constant(np.array([hidden])), axis=0)
        inputs += ["", net.add("ConstantOfShape", shape)]
    more = {"linear_before_reset": net.pick(1)} if kind == "GRU" else {}
    net.add(kind, *inputs, hidden_size=hidden, direction="bidirectional" if directions == 2 else "forward", **more)
    if directions == 1 and net.pick(1):
        net.add_axes("Squeeze", net.last, [1], 13)
        net.add("Transpose", net.last, perm=[1, 0, 2])
    else:
        net.add("Transpose", net.last, perm=[2, 0, 1, 3])
        net.add("Reshape", net.last, net.constant(np.array([0, 0, directions * hidden])))
    net.width = 6
    _dense_layer(net, net.some(directions * hidden, 6), net.some(6))


def _embedded(net: Network) -> None:
    """What a table says of the place in the sequence is added; the sequence is made one vector and spread again."""
    net.add("Add", net.last, net.constant(net.some(1, 1, net.width)))
    x = net.last
    net.add_axes("ReduceMean", x, [1], 18)
    _dense_layer(net, net.some(net.width, 5), net.some(5))
    pooled = net.last
    lengths = [net.add_axes("Unsqueeze", net.add("Gather", net.add("Shape", x), net.constant(np.array(place))), [0], 13) for place in (0, 1)]
    net.add("Expand", pooled, net.add("Concat", *lengths, net.constant(np.array([5])), axis=0))
    net.add("Concat", x, net.last, axis=-1)
    width, net.width = net.width + 5, 6
    _dense_layer(net, net.some(width, 6))


SEQUENCE_BLOCKS: dict[str, Callable[[Network], None]] = {
    "attention": _attention,
    "feed forward": _feed_forward,
    "recurrent": _recurrent,
    "embedded": _embedded,
}


@st.composite
def networks(draw: Callable[[st.SearchStrategy[int]], int], *, only: str | None = None) -> Prunable:
    """A network of any blocks, or of that one. ``planted`` says how often channels are in it that make no difference."""

    def pick(most: int) -> int:
        return draw(st.integers(0, most))

    net = Network(pick, _OPSETS[pick(len(_OPSETS) - 1)], in_nodes=pick(2) == 0, odd_names=pick(3) == 0, free=pick(1) == 1, plant=pick(4) > 0)
    images = [block for name, block in IMAGE_BLOCKS.items() if only in (None, name)]
    sequences = [block for name, block in SEQUENCE_BLOCKS.items() if only in (None, name)]
    start = (3, _SIDE, _SIDE)
    net.shapes["x"] = start
    net.conv(4 + 2 * net.pick(3), 3)
    net.activate()
    for _ in range(1 + pick(2) if images else 0):
        images[pick(len(images) - 1)](net)
    if sequences and (not images or pick(1)):
        _to_sequence(net)
        for _ in range(1 + pick(1)):
            sequences[pick(len(sequences) - 1)](net)
        net.add_axes("ReduceMean", net.last, [1], 18, keepdims=0)
        count = net.width
    else:
        count = net.channels
        net.add("Flatten", net.add("GlobalAveragePool", net.last))
    net.add("Gemm", net.last, net.constant(net.some(5, count)), net.constant(net.some(5)), transB=1)
    shape = ("n", 3, "h", "w") if net.free else (2, *start)
    made = onnx.helper.make_graph(
        net.nodes,
        "prunable",
        [onnx.helper.make_tensor_value_info("x", FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(net.last, FLOAT, ["n" if net.free else 2, 5])],
        [onnx.numpy_helper.from_array(array, name) for name, array in net.weights.items()],
    )
    proto = onnx.helper.make_model(made, ir_version=8 if net.opset <= 18 else 10, opset_imports=[onnx.helper.make_opsetid("", net.opset)])
    onnx.checker.check_model(proto)
    model = graph.clone(onnx_ir.serde.deserialize_model(proto))
    feeds = {"x": numbers(2, *start, seed=pick(100))}
    others = {"x": numbers(3, 3, 16, 12, seed=pick(100))} if net.free else feeds
    return Prunable(model, feeds, others, net.planted)


def _to_sequence(net: Network) -> None:
    """[n, channels, height, width] becomes [n, steps, channels]."""
    count = net.channels
    target = np.array([0, count, -1] if net.pick(1) else [0, 0, -1])
    net.add("Transpose", net.add("Reshape", net.last, net.constant(target)), perm=[0, 2, 1])
    net.width = 6
    _dense_layer(net, net.some(count, 6), net.some(6))
