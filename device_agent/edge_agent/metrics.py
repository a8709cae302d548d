"""Prometheus' text format 0.0.4: what is counted of each model, version and phase, and how the agent itself does.

    render(agent)

Bounds of the histograms are powers of two nanoseconds and half-way between them, where our buckets end, so that every count is exact.
Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge_agent import __version__
from edge_agent.counters import PHASES, Counters
from edge_agent.latency import Histogram

if TYPE_CHECKING:
    from edge_agent.supervisor import Agent

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From 8 microseconds to 34 seconds.
_BOUNDS_NS = [bound for octave in range(13, 36) for bound in (1 << octave, 3 << octave >> 1)][:-1]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def render(agent: Agent) -> bytes:
    """The whole page."""
    return ("\n".join(_lines(agent)) + "\n").encode()


def _lines(agent: Agent) -> Iterator[str]:
    names = agent.models.names()
    counted = [(name, counters) for name in names if agent.models.find(name) for counters in agent.models.versions(name)]
    yield from _family("edge_agent_info", "gauge", "The agent's version.")
    yield _sample("edge_agent_info", {"version": __version__}, 1)
    yield from _family("edge_agent_resident_memory_bytes", "gauge", "Resident memory of the agent's own process.")
    yield _sample("edge_agent_resident_memory_bytes", {}, _resident_bytes())
    yield from _family("edge_agent_model_ready", "gauge", "Whether the model answers now.")
    for name in names:
        yield _sample("edge_agent_model_ready", {"model": name}, int(agent.models.ready(name)))
    yield from _family("edge_agent_requests_total", "counter", "Requests by how they ended.")
    for name, counters in counted:
        labels = {"model": name, "version": counters.release}
        yield _sample("edge_agent_requests_total", {**labels, "outcome": "success"}, counters.total.count)
        yield _sample("edge_agent_requests_total", {**labels, "outcome": "failure"}, counters.errors)
    yield from _family("edge_agent_not_finite_total", "counter", "Answers that hold NaN or infinity, of those that succeeded.")
    for name, counters in counted:
        yield _sample("edge_agent_not_finite_total", {"model": name, "version": counters.release}, counters.not_finite)
    yield from _family("edge_agent_request_seconds", "histogram", "Answered requests, from the last byte in to the first byte out.")
    for name, counters in counted:
        yield from _histogram("edge_agent_request_seconds", {"model": name, "version": counters.release}, counters, counters.total)
    yield from _family("edge_agent_failure_seconds", "histogram", "Requests that were refused or failed.")
    for name, counters in counted:
        yield from _histogram("edge_agent_failure_seconds", {"model": name, "version": counters.release}, counters, counters.failed_total)
    yield from _family("edge_agent_phase_seconds", "histogram", "Answered requests by phase: queue, input, run, output.")
    for name, counters in counted:
        for phase in PHASES:
            labels = {"model": name, "version": counters.release, "phase": phase}
            yield from _histogram("edge_agent_phase_seconds", labels, counters, counters.phases[phase])


def _family(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _histogram(name: str, labels: dict[str, str], counters: Counters, histogram: Histogram) -> Iterator[str]:
    with counters.lock:
        below, count, sum_ns = histogram.below(_BOUNDS_NS), histogram.count, histogram.sum_ns
    for bound, so_many in zip(_BOUNDS_NS, below):
        yield _sample(f"{name}_bucket", {**labels, "le": _seconds(bound - 1)}, so_many)  # whole nanoseconds below it are those up to one less
    yield _sample(f"{name}_bucket", {**labels, "le": "+Inf"}, count)
    yield f"{name}_sum{_labelled(labels)} {_seconds(sum_ns)}"
    yield _sample(f"{name}_count", labels, count)


def _sample(name: str, labels: dict[str, str], value: int) -> str:
    return f"{name}{_labelled(labels)} {value}"


def _labelled(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
