"""What a model is made of, what a run of it needs, and what a profile's hardware would say to it. The verb `inspect`.

    found = inspect(Path("model.onnx"), find("kria-kv260"))
    found.macs, found.memory.peak_bytes, found.violations
    inspect(path, on="jetson").placement.fell            # the nodes that its accelerator did not take
    model, feeds = alone(Path("model.onnx"), "Conv_3")   # one node as a model of its own, and what it is asked

Shapes are those of one run here, on samples or on random inputs. Memory is counted, not measured: every tensor between the one that
makes it and the last that reads it, as onnxruntime's allocator sees them when it neither fuses nor packs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir

from edge_agent import placement
from edgesdk import constraints, costs, graph, race, sampling, sparsity
from edgesdk.constraints import Violation
from edgesdk.errors import ModelError
from edgesdk.graph import Feeds, Model, Summary
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.replies import Facts, Looked, Timed
from edgesdk.source import model_files

COSTLIEST = 10
_PEAK_TENSORS = 8
_PROFILED_SAMPLES = 8
_UNKNOWN_BYTES = 4  # of a number whose type nothing tells: as a float32 has
# What onnxruntime gives its input's own memory, and what may write over an input that nobody else reads.
_SAME_MEMORY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
_IN_PLACE = (
    *("Abs", "Add", "Ceil", "Clip", "Div", "Elu", "Exp", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mul", "Neg", "Not", "Reciprocal", "Relu"),
    *("Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu"),
)


@dataclass(frozen=True, slots=True)
class Operator:
    """All nodes of one kind."""

    name: str
    count: int
    macs: int | None  # of one sample; None where no run could tell the shapes


@dataclass(frozen=True, slots=True)
class Live:
    """A tensor that has to be kept."""

    tensor: str
    node: str  # that makes it
    bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the tensors between the nodes, weights and the caller's inputs aside."""

    peak_bytes: int
    node: str  # while it runs
    tensors: tuple[Live, ...]  # the largest of the peak first
    by_node: tuple[int, ...]  # bytes while each node runs, in the order of the file


@dataclass(frozen=True, slots=True)
class Kernel:
    """What onnxruntime runs as one, and its median time.

    ``node`` is empty for what it added, or fused under a name of its own. ``fused``: further nodes that it computes, as far as the name tells; their
    time is in this one, and nobody knows how it parts.
    """

    node: str
    operator: str  # of the kernel: FusedMatMul, ReorderInput
    ms: float
    share: float
    fused: tuple[str, ...] = ()
    provider: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes one after the other, in onnxruntime's order, with one provider."""

    provider: str
    nodes: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Placed:
    """What ran where on a device. ``parts`` is empty, and ``share`` None, where its onnxruntime does not tell."""

    host: str
    device: str
    provider: str
    nodes: str  # in words: "412 of 412 nodes on TensorRT"
    share: float | None  # of the multiply-accumulates, elsewhere than on the CPU
    fell: tuple[str, ...]  # to the CPU although another provider was asked for, the costliest first
    parts: tuple[Part, ...]
    threads: int
    onnxruntime: str
    governor: str | None
    temperature_c: float | None


@dataclass(frozen=True, slots=True)
class Cut:
    """What of the model the profile's hardware can take as the file is."""

    nodes: int
    of: int
    macs_share: float | None
    parts: int  # runs of nodes in the file's order that stay on the accelerator
    fell: tuple[str, ...]  # nodes that do not, in the file's order


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` tells. ``macs`` and ``memory`` are None, and ``unknown`` says why, where the model does not run here."""

    summary: Summary
    assumed: dict[str, list[int]]  # the inputs' shapes in the run
    macs: int | None
    memory: Memory | None
    unknown: str
    operators: tuple[Operator, ...]  # the costliest first
    sparse: int  # weights that are 2:4 sparse
    weights: int  # that could be
    profile: str | None
    violations: tuple[Violation, ...]
    cut: Cut | None
    kernels: tuple[Kernel, ...]  # the slowest first; empty unless they were asked for
    placement: Placed | None = None  # where a device was asked
    uncounted: dict[str, int] = field(default_factory=dict)  # what multiplies and is not in `macs`, by kind

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict an operator, as pandas.DataFrame takes them."""
        return [{"operator": each.name, "count": each.count, "macs": each.macs} for each in self.operators]


def inspect(
    path: Path | str,
    profile: Profile | None = None,
    *,
    samples: str | None = None,
    time_kernels: bool = False,
    on: str | None = None,
    progress: Progress = silent,
) -> Inspection:
    """Everything above. ``samples`` are those of `--calibration`; ``time_kernels`` runs the model some times, here or ``on`` a device.

    Raises an EdgeSDKError.
    """
    model = graph.load(Path(path))
    named = graph.clone(model)
    summary, weights = graph.describe(model), [weight.obeys for weight in sparsity.weights(model)]
    feeds, of_run, unknown = _run(named, samples, _PROFILED_SAMPLES if time_kernels or on else 1)
    placed, kernels = _seen(named, feeds, profile, on, progress) if on or time_kernels else (None, ())
    macs = costs.macs(named, of_run) if of_run is not None else None
    violations = tuple(constraints.check(model, profile)) if profile is not None else ()
    return Inspection(
        summary=summary,
        assumed={name: list(array.shape) for name, array in feeds[0].items()} if feeds else {},
        macs=sum(macs.values()) if macs is not None else None,
        memory=memory(named, of_run) if of_run is not None else None,
        unknown=unknown,
        operators=_operators(named, summary, macs),
        sparse=sum(weights),
        weights=len(weights),
        profile=profile.name if profile is not None else None,
        violations=violations,
        cut=_cut(named, violations, macs) if profile is not None else None,
        kernels=kernels if time_kernels else (),
        placement=placed,
        uncounted=dict(costs.uncounted(model)),
    )


def memory(model: Model, of_run: Mapping[str, tuple[int, ...]]) -> Memory:
    """Tensors that live at the same time, given the shapes of a run. Subgraphs count as the nodes that they belong to."""
    typed = graph.clone(model)
    graph.infer_shapes(typed)
    nodes = [node for node in typed.graph if node.op_type != "Constant"]
    sizes = {str(value.name): _bytes(value, of_run) for node in nodes for value in node.outputs if value.name}
    end = len(nodes)
    until = {str(value.name): end for value in typed.graph.outputs}
    for place, node in enumerate(nodes):
        for name in _read(node):
            until[name] = max(until.get(name, place), place)
    live: dict[str, Live] = {}
    last: dict[str, int] = {}  # of the memory that bears this name
    lies_in: dict[str, str] = {}  # tensor -> the one whose memory it has
    by_node: list[int] = []
    peak, at = 0, ""
    tensors: tuple[Live, ...] = ()
    for place, node in enumerate(nodes):
        for name in [name for name, ends in last.items() if ends < place]:
            del live[name], last[name]
        for number, value in enumerate(node.outputs):
            name = str(value.name)
            if name not in sizes:
                continue
            home = _shared(node, name, sizes, last, lies_in, place) if number == 0 else None
            lies_in[name] = home or name
            if home is None:
                live[name] = Live(name, str(node.name), sizes[name])
            last[lies_in[name]] = max(last.get(lies_in[name], place), until.get(name, place))
        by_node.append(sum(each.bytes for each in live.values()))
        if by_node[-1] > peak:
            peak, at, tensors = by_node[-1], str(node.name), tuple(sorted(live.values(), key=lambda each: -each.bytes)[:_PEAK_TENSORS])
    return Memory(peak, at, tensors, tuple(by_node))


def alone(path: Path, name: str, *, samples: str | None = None) -> tuple[Model, Feeds]:
    """One node as a model of its own, its constants inside, and what it is asked in a run of the whole. Raises an EdgeSDKError."""
    model = graph.clone(graph.load(path))
    node = next((each for each in model.graph if each.name == name), None)
    if node is None:
        known = ", ".join(f"`{each.name}`" for each in list(model.graph)[:5])
        raise ModelError(f"no node of `{path.name}` is called `{name}`", f"it begins with {known}; `edgesdk inspect` names those that matter")
    if any(attribute.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) for attribute in node.attributes.values()):
        raise ModelError(f"`{name}` has a subgraph, which may read tensors from outside of it", "take a node inside it, or one without")
    asked = [value for value in node.inputs if value is not None and graph.constant(value) is None]
    feeds = sampling.load(samples, model) if samples else sampling.generated(model, 1)
    given = next(iter(feeds.first(1)))
    arrays = {str(value.name): given[str(value.name)] for value in asked if value.is_graph_input()}
    made = [str(value.name) for value in asked if not value.is_graph_input()]
    if made:
        arrays |= graph.run(graph.session(_asked(model, made), optimize=False), given)
    inputs = {
        name: onnx_ir.Value(name=name, shape=onnx_ir.Shape(array.shape), type=onnx_ir.TensorType(onnx_ir.DataType.from_numpy(array.dtype)))
        for name, array in arrays.items()
    }
    constants = {str(value.name): _constant(value) for value in node.inputs if value is not None and value not in asked}
    copied = onnx_ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else inputs.get(str(value.name)) or constants[str(value.name)] for value in node.inputs],
        list(node.attributes.values()),
        overload=node.overload,
        outputs=[onnx_ir.Value(name=value.name, type=value.type) for value in node.outputs],
        name=name,
    )
    outputs = [value for value in copied.outputs if value.name]
    inner = onnx_ir.Graph(
        list(inputs.values()), outputs, nodes=[copied], initializers=list(constants.values()), opset_imports=dict(model.opset_imports), name=name
    )
    whole = onnx_ir.Model(inner, ir_version=model.ir_version, functions=list(model.functions.values()))
    graph.infer_shapes(whole)
    graph.session(whole, optimize=False)
    return whole, arrays


def _run(model: Model, samples: str | None, count: int) -> tuple[list[Feeds], dict[str, tuple[int, ...]] | None, str]:
    """So many feeds, the shapes of a run on the first, and else why there is none."""
    try:
        feeds = list((sampling.load(samples, model) if samples else sampling.generated(model, count)).first(count))
        return feeds, costs.shapes(model, feeds[0]), ""
    except ModelError as error:
        if samples:
            raise
        return [], None, str(error)


def _operators(model: Model, summary: Summary, macs: Mapping[str, int] | None) -> tuple[Operator, ...]:
    spent: Counter[str] = Counter()
    for node in model.graph:
        spent[graph.qualified(node)] += (macs or {}).get(str(node.name), 0)
    found = [Operator(name, count, spent[name] if macs is not None else None) for name, count in summary.operators.items()]
    return tuple(sorted(found, key=lambda each: (-(each.macs or 0), -each.count, each.name)))


def _cut(model: Model, violations: Sequence[Violation], macs: Mapping[str, int] | None) -> Cut:
    forbidden, names = {violation.node for violation in violations}, [str(node.name) for node in model.graph if node.op_type != "Constant"]
    stays = [name not in forbidden for name in names]
    total = sum(macs.values()) if macs is not None else 0
    return Cut(
        nodes=sum(stays),
        of=len(names),
        macs_share=1 - sum((macs or {}).get(name, 0) for name in names if name in forbidden) / total if total else None,
        parts=sum(stay and (place == 0 or not stays[place - 1]) for place, stay in enumerate(stays)),
        fell=tuple(name for name in names if name in forbidden),
    )


def _seen(model: Model, feeds: Sequence[Feeds], profile: Profile | None, on: str | None, progress: Progress) -> tuple[Placed | None, tuple[Kernel, ...]]:
    """What ran where, and how long it took: on a device, or here on one thread of the CPU."""
    if not feeds:
        raise ModelError("the model does not run here, so nothing of it can be timed", "give it real inputs: `--calibration`")
    if on is None:
        return None, _kernels(model, [Timed.model_validate(kernel) for kernel in costs.kernels(model, feeds, threads=1)])
    with race.racing(on, profile, feeds, progress) as device:
        looked = device.look(model_files(model), runs=costs.PROFILED_RUNS)
        return _placed(looked, device.facts, on, costs.macs(model, costs.shapes(model, feeds[0]))), _kernels(model, looked.kernels)


def _kernels(model: Model, timed: Sequence[Timed]) -> tuple[Kernel, ...]:
    """The slowest. What has no node's name is put together by its operator."""
    of, total = costs.computed(model), sum(kernel.us for kernel in timed)
    found: dict[tuple[tuple[str, ...], str, str], float] = {}
    for kernel in timed:
        key = of(kernel.kernel), kernel.operator, kernel.provider
        found[key] = found.get(key, 0.0) + kernel.us
    slowest = sorted(found.items(), key=lambda item: -item[1])[:COSTLIEST]
    return tuple(
        Kernel(nodes[0] if nodes else "", operator, us / 1000, us / total if total else 0.0, nodes[1:], provider) for (nodes, operator, provider), us in slowest
    )


def _placed(looked: Looked, facts: Facts, host: str, macs: Mapping[str, int]) -> Placed:
    nodes = None if looked.placed is None else [placement.Node(node.name, node.operator, node.provider) for node in looked.placed]
    judged = placement.judge(nodes, macs, least=0.0) if looked.provider != placement.CPU else None
    parts = [
        Part(provider, len(run), run[0].name, run[-1].name) for provider, group in groupby(nodes or (), key=lambda node: node.provider) for run in [list(group)]
    ]
    return Placed(
        host=host,
        device=facts.board or facts.cpu_model or facts.architecture,
        provider=looked.provider,
        nodes=looked.nodes,
        share=judged.share if judged else None,
        fell=judged.fell if judged else (),
        parts=tuple(parts),
        threads=looked.threads,
        onnxruntime=looked.onnxruntime,
        governor=looked.governor,
        temperature_c=looked.temperature_c,
    )


def _bytes(value: onnx_ir.Value, of_run: Mapping[str, tuple[int, ...]]) -> int:
    width = value.dtype.itemsize if value.dtype is not None and value.dtype != onnx_ir.DataType.STRING else _UNKNOWN_BYTES
    return int(prod(of_run.get(str(value.name), ())) * width)


def _read(node: onnx_ir.Node) -> set[str]:
    """The tensors that it reads, those of the nodes inside it too."""
    names = {str(value.name) for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == onnx_ir.AttributeType.GRAPH else []
        graphs += list(attribute.as_graphs()) if attribute.type == onnx_ir.AttributeType.GRAPHS else []
        for inner in graphs:
            names |= {name for each in inner for name in _read(each)} | {str(value.name) for value in inner.outputs}
    return names


def _shared(node: onnx_ir.Node, name: str, sizes: Mapping[str, int], last: Mapping[str, int], lies_in: Mapping[str, str], place: int) -> str | None:
    """The memory that its answer takes over, if any."""
    if node.domain or node.op_type not in (*_SAME_MEMORY, *_IN_PLACE):
        return None
    candidates = node.inputs[:1] if node.op_type in _SAME_MEMORY else node.inputs[:2]
    for value in candidates:
        home = lies_in.get(str(value.name)) if value is not None else None
        if home is None or home not in last:
            continue
        if node.op_type in _SAME_MEMORY or (last[home] <= place and sizes[home] == sizes[name]):
            return home
    return None


def _asked(model: Model, names: Sequence[str]) -> Model:
    """The model with these tensors as its outputs."""
    known = graph.clone(model)
    graph.infer_shapes(known)
    values = onnx_ir.convenience.create_value_mapping(known.graph)
    for name in names:
        if values[name].type is None:
            raise ModelError(f"the type of `{name}` is not known, so it cannot be asked for", "export the model with shapes and types")
    return graph.answering(known, names)


def _constant(value: onnx_ir.Value) -> onnx_ir.Value:
    array = graph.constant(value)
    assert array is not None
    tensor = onnx_ir.tensor(array, name=value.name)
    return onnx_ir.Value(name=value.name, shape=onnx_ir.Shape(array.shape), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
