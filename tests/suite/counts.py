"""Part of `make suite`: what `inspect` counts, beside what two others count. For some models

    python -m tests.suite.counts rec det          # of all: writes docs/counts.md

Multiply-accumulates and parameters beside onnx-tool, operator by operator. Where onnx-tool counts something else on purpose or by mistake,
`EXPLAINED` says what, and takes exactly that off; what is left has to agree within 1 %. Memory beside the bytes of the tensors that a run of
onnxruntime gives out, each kept from its maker to its last reader: in-place or not makes the lower and the upper end.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx_ir
import onnx_tool

from edgesdk import costs, graph, inspection, sampling
from edgesdk.graph import Feeds, Model
from tests.suite import REPOSITORY, SUITE, Entry, chosen

PAGE = REPOSITORY / "docs" / "counts.md"
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "LSTM", "MatMul")
CLOSE = 0.01
_SIGMOID, _TANH, _BLEND = 32, 38, 4  # what onnx-tool takes these for, in multiply-accumulates

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one operator in one model."""

    operator: str
    ours: int
    theirs: int
    left: int  # of theirs, without what `EXPLAINED` takes off


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes of activations."""

    ours: int
    most: int  # each tensor in memory of its own

    @property
    def share(self) -> float:
        return self.ours / self.most


def main(names: Sequence[str]) -> None:
    """All in turn; what does not agree is an AssertionError."""
    lines = ["| model | operator | ours | onnx-tool | without what is explained | ours / that |", "| --- " * 6 + "|"]
    memory = ["| model | parameters, ours | onnx-tool | peak of activations | each tensor in memory of its own | share |", "| --- " * 6 + "|"]
    for entry in chosen(names):
        model = graph.load(entry.model)
        feeds = next(iter(sampling.load(entry.calibration, model).first(1)))
        other = profiled(entry, feeds)
        for each in macs(model, feeds, other):
            lines.append(f"| {entry.name} | {each.operator} | {each.ours:,} | {each.theirs:,} | {each.left:,} | {each.ours / each.left:.4f} |")
            assert abs(each.ours / each.left - 1) <= CLOSE, each
        ours, theirs, found = graph.describe(model).parameters, int(other.params), peak(model, feeds)
        memory.append(f"| {entry.name} | {ours:,} | {f'{theirs:,}' if theirs else '–'} | {found.ours:,} | {found.most:,} | {found.share:.3f} |")
        print(lines[-1], memory[-1], sep="\n", flush=True)
    if len(chosen(names)) == len(SUITE):
        PAGE.write_text("\n".join([_HEAD, *lines, "", *(f"- {name}: {said}" for name, (said, _) in EXPLAINED.items()), "", *memory, _FOOT]))


def profiled(entry: Entry, feeds: Feeds) -> Any:
    """onnx-tool's graph, counted."""
    other = onnx_tool.Model(str(entry.model))
    other.graph.shape_infer(dict(feeds))
    other.graph.profile()
    return other.graph


def macs(model: Model, feeds: Feeds, other: Any) -> list[Counted]:
    """By operator, those that multiply."""
    named = graph.clone(model)
    of_run = costs.shapes(named, feeds)
    spent = costs.macs(named, of_run)
    ours: Counter[str] = Counter()
    too_much: Counter[str] = Counter()
    for node in named.graph:
        if node.op_type in OPERATORS:
            ours[node.op_type] += spent[str(node.name)]
            too_much[node.op_type] += EXPLAINED[node.op_type][1](node, spent[str(node.name)], of_run) if node.op_type in EXPLAINED else 0
    theirs: Counter[str] = Counter()
    for node in other.nodemap.values():
        theirs[node.op_type] += int(node.macs[0])
    return [Counted(name, ours[name], theirs[name], theirs[name] - too_much[name]) for name in OPERATORS if name in ours]


def peak(model: Model, feeds: Feeds) -> Peak:
    """The most bytes at a time, by the arrays that a run really gives for every tensor."""
    named = graph.clone(model)
    counted = inspection.memory(named, costs.shapes(named, feeds))
    nodes = [node for node in named.graph if node.op_type != "Constant"]
    sizes = {name: array.nbytes for name, array in _all_of(named, feeds).items()}
    until = {name: place for place, node in enumerate(nodes) for name in (str(value.name) for value in node.inputs if value is not None)}
    until |= {str(value.name): len(nodes) for value in named.graph.outputs}
    made = {str(value.name): place for place, node in enumerate(nodes) for value in node.outputs if value.name}
    alive = [sum(sizes[name] for name, since in made.items() if since <= place <= until.get(name, since)) for place in range(len(nodes))]
    return Peak(counted.peak_bytes, max(alive))


def _all_of(model: Model, feeds: Feeds) -> Feeds:
    asked = graph.clone(model)
    graph.infer_shapes(asked)
    asked.graph.outputs.clear()
    asked.graph.outputs.extend(value for node in asked.graph if node.op_type != "Constant" for value in node.outputs if value.name)
    return graph.run(graph.session(asked, optimize=False), feeds)


def _bias(place: int) -> Callable[[onnx_ir.Node, int, Shapes], int]:
    def extra(node: onnx_ir.Node, _ours: int, of_run: Shapes) -> int:
        return prod(of_run[str(node.outputs[0].name)]) if len(node.inputs) > place and node.inputs[place] is not None else 0

    return extra


def _stretched(node: onnx_ir.Node, ours: int, of_run: Shapes) -> int:
    given, made = (prod(of_run[str(value.name)]) for value in (node.inputs[0], node.outputs[0]) if value is not None)
    return ours * made // given - ours


def _gates(node: onnx_ir.Node, _ours: int, of_run: Shapes) -> int:
    steps, batch, _ = of_run[str(node.inputs[0].name)]
    biases = prod(graph.constant(node.inputs[3]).shape)
    hidden = int(node.attributes["hidden_size"].as_int())
    return int(steps * batch * (biases + hidden * (4 + 3 * _SIGMOID + 2 * _TANH + _BLEND)))


EXPLAINED: Mapping[str, tuple[str, Callable[[onnx_ir.Node, int, Shapes], int]]] = {
    "Conv": ("onnx-tool counts the addition of a bias as well", _bias(2)),
    "Gemm": ("the same", _bias(2)),
    "ConvTranspose": ("onnx-tool multiplies each number that is made with the kernel, ours each that is given, which is what is computed", _stretched),
    "LSTM": ("onnx-tool counts biases, sigmoid, tanh and the products of the gates, of one direction, as well", _gates),
}

_HEAD = """# What `inspect` counts, beside others

`python -m tests.suite.counts`, a part of `make suite`, with one sample of each model's own data. What differs, and is taken off in the column
after it:
"""
_FOOT = """
onnx-tool counts no tensor of a Constant node as a parameter; where all are such (–) it finds none. The peak counts a Relu, an Add or a Reshape
that writes over its input once, as onnxruntime does; the column beside it does not, and takes its sizes from the arrays of a run.
"""

if __name__ == "__main__":
    main(sys.argv[1:])
