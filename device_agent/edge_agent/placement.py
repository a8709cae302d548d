"""What ran where: onnxruntime's own account of a session, in words and against the profile's contract.

    nodes = nodes_of(handle)                            # None below onnxruntime 1.24, which does not tell
    in_words(nodes, ["TensorrtExecutionProvider"])      # "412 of 412 nodes on TensorRT"
    judge(nodes, macs, least=0.95).share                # 0.998

The contract counts multiply-accumulates, as bundle.json has them by node: what computes shapes has none and may run anywhere.
Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CPU = "CPUExecutionProvider"

_TITLES = {"Tensorrt": "TensorRT", "NvTensorRTRTX": "TensorRT RTX", "VitisAI": "Vitis AI"}
_MULTIPLIES = re.compile(r"Conv|Gemm|MatMul|LSTM|GRU|RNN")
_RENAMED = re.compile(r"_token_\d+$|/\w+Fusion$")  # what onnxruntime hangs on a node's name when it makes another of it
_NAMED = 5


@dataclass(frozen=True)
class Node:
    """One node as onnxruntime gave it to a provider: after its own rewriting, before fusions into kernels."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True)
class Placement:
    """How much of the model the accelerator computes. ``kept``: None where it is not known."""

    share: float | None
    least: float
    kept: bool | None
    said: str
    fell: tuple[str, ...] = ()  # to the CPU, the costliest first

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def nodes_of(handle: Any) -> tuple[Node, ...] | None:
    """Of an InferenceSession; None where this onnxruntime does not tell."""
    if not hasattr(handle, "get_provider_graph_assignment_info"):
        return None
    return tuple(Node(node.name, node.op_type, part.ep_name) for part in handle.get_provider_graph_assignment_info() for node in part.get_nodes())


def in_words(nodes: Sequence[Node] | None, taken: Sequence[str]) -> str:
    """One line; empty where it is not known. ``taken``: the session's providers."""
    if not nodes:
        return f"all nodes on {title(CPU)}" if list(taken) == [CPU] else ""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.provider] = counts.get(node.provider, 0) + 1
    return ", ".join(f"{count} of {len(nodes)} nodes on {title(provider)}" for provider, count in sorted(counts.items(), key=lambda item: -item[1]))


def title(provider: str) -> str:
    """As people call it."""
    stem = provider[: -len("ExecutionProvider")] if provider.endswith("ExecutionProvider") else provider
    return _TITLES.get(stem, stem)


def unchecked(least: float, why: str) -> Placement:
    """Nobody looked, or nobody can tell."""
    return Placement(None, least, None, why)


def judge(nodes: Sequence[Node] | None, macs: Mapping[str, int] | None, *, least: float) -> Placement:
    """Whether at least that share of the multiply-accumulates runs elsewhere than on the CPU. ``macs``: of the model's nodes, by name."""
    if nodes is None:
        return unchecked(least, "placement unknown: onnxruntime tells from 1.24 on what runs where")
    if macs is None:
        return unchecked(least, "placement unknown: the bundle does not say what its nodes cost")
    on_cpu, total = _costs_on_cpu(nodes, macs)
    if not total:
        return Placement(None, least, kept=True, said="the model multiplies nothing, so it has nothing to place")
    share = 1 - sum(on_cpu.values()) / total
    fell = tuple(sorted(on_cpu, key=lambda name: -on_cpu[name]))
    return Placement(share, least, share >= least, f"{percent(share)} of the multiply-accumulates on the accelerator, {percent(least)} wanted", fell)


def percent(share: float) -> str:
    """Rounded down: 94.99 % is not the 95 that was wanted."""
    return f"{int(share * 1000 + 1e-9) / 10:g} %"


def listed(fell: Sequence[str]) -> str:
    """The costliest, and how many more."""
    more = f" and {len(fell) - _NAMED} more" if len(fell) > _NAMED else ""
    return ", ".join(f"`{name[:80]}`" for name in fell[:_NAMED]) + more


def _costs_on_cpu(nodes: Sequence[Node], macs: Mapping[str, int]) -> tuple[dict[str, float], float]:
    """What each node on the CPU costs, and all nodes together.

    Multiplying nodes that bear no name of the model's share evenly what the named ones leave. What onnxruntime computed once and for
    all when it opened the model is no node any more, and counts for nothing.
    """
    named = [(node, _RENAMED.sub("", node.name)) for node in nodes]
    left = sum(macs.values()) - sum(macs[name] for name in {name for _, name in named if name in macs})
    strangers = [node for node, name in named if name not in macs and _MULTIPLIES.search(node.operator)]
    placed = [(node, float(macs[name])) for node, name in named if name in macs] + [(node, left / len(strangers)) for node in strangers]
    on_cpu: dict[str, float] = {}
    for node, cost in placed:
        if node.provider == CPU and cost:
            name = node.name or node.operator
            on_cpu[name] = on_cpu.get(name, 0) + cost
    return on_cpu, sum(cost for _, cost in placed)
