"""Measurements of one model, which a host asks for: a deployed one as a program sees it, or files that it sent. Standard library only.

    wanted = parse(document)                       # checked
    result = run(job, session, wanted, home, deployments)

The files lie in a session of `Races`, and go with it. What is measured runs in a child of its own, one a restart. While it runs no deployment begins,
so it ends, with what there is by then, when nobody has asked about it for two minutes: its host is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from edge_agent.bundle import BundleError, Descriptor, check_name
from edge_agent.child import Child, ChildDied
from edge_agent.jobs import Job

if TYPE_CHECKING:
    from edge_agent.deployments import Deployments
    from edge_agent.races import Session

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
LONGEST_S = 24 * 3600.0
MOST_PER_QUERY = 256

_FORSAKEN_S = 120.0  # a host asks every twenty seconds
_LOOK_S = 1.0
_OPEN_S = 1800  # an engine build takes ten minutes
_SLOWEST_S = 600  # beyond its limit, for the five queries that there have to be


@dataclass(frozen=True)
class Measurement:
    """What a host asks for, checked. Without a ``name``, of a deployed model, there is a ``model``: its files."""

    name: Optional[str]
    model: Dict[str, Descriptor]
    feeds: Optional[Descriptor]  # as a race has them; without, the bundle's golden inputs
    inputs: Tuple[str, ...]
    profile: Dict[str, Any]
    wanted: Dict[str, Any]  # as `measure.Wanted` has it

    @property
    def files(self) -> tuple[Descriptor, ...]:
        return (*self.model.values(), *([self.feeds] if self.feeds else []))


def run(job: Job, session: Session, measurement: Measurement, home: Path, deployments: Deployments) -> dict[str, Any]:
    """A model that does not run here is a result. Raises StoreError, or ChildFailed where the device is to blame."""
    from edge_agent.races import laid_out

    blobs = session.blobs
    question: dict[str, Any] = {"wanted": measurement.wanted, "via": "agent" if measurement.name else "session"}
    if measurement.feeds:
        question.update(feeds=str(blobs.path(measurement.feeds.digest).relative_to(blobs.home)), inputs=measurement.inputs)
    question.update(
        {"name": measurement.name} if measurement.name else {"model": laid_out(blobs, measurement.model, measurement.profile), "profile": measurement.profile}
    )

    def enter(stage: str) -> None:
        job.stage = stage
        if session.stopping:  # said before there was a process to hear it
            child.tell({"stop": True})

    what = f"the program that asked {measurement.name}" if measurement.name else "the process that ran the model"
    with deployments.driving(Child("measurer", blobs.home, home, what=what)) as child:
        session.child = child
        threading.Thread(target=_end_when_forsaken, args=(job, child), name="measurement", daemon=True).start()
        try:
            return child.ask({"arguments": question}, timeout_s=_OPEN_S + measurement.wanted["limit_s"] + _SLOWEST_S, stage=enter)
        except ChildDied as error:
            return {"failed": {"message": str(error), "hint": error.hint}}
        finally:
            session.child, session.used = None, time.monotonic()


def _end_when_forsaken(job: Job, child: Child) -> None:
    while not job.ended.wait(_LOOK_S):
        if time.monotonic() - max(job.asked, job.begin) > _FORSAKEN_S:
            child.tell({"stop": True})
            return


def parse(document: Mapping[str, Any]) -> Measurement:
    """What a host sent. Raises BundleError for anything that is no measurement."""
    from edge_agent import races

    try:
        name = check_name(document["name"]) if document.get("name") is not None else None
        feeds = races.parse_descriptor(document["feeds"]) if document.get("feeds") is not None else None
        inputs = tuple(document.get("inputs", ()))
        if not all(isinstance(one, str) for one in inputs) or len(inputs) > races.MOST_INPUTS or (name is None and feeds is None):
            raise ValueError("inputs")
        model = {} if name else races.parse_files(document["model"])
        return Measurement(name, model, feeds, inputs, {} if name else races.parse_profile(document["profile"]), _wanted(document["wanted"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"what came is no measurement: {error}"[:200], "is this host's edgesdk of another version?") from error


def _wanted(document: Mapping[str, Any]) -> dict[str, Any]:
    scenario, target = document["scenario"], document.get("target_qps")
    limit_s, window_s, per_query = float(document["limit_s"]), float(document["window_s"]), document.get("per_query", 1)
    if scenario not in SCENARIOS:
        raise ValueError("scenario")
    if not 0 < limit_s <= LONGEST_S or not 1e-3 <= window_s <= 3600:
        raise ValueError("limit_s or window_s")
    if type(per_query) is not int or not 1 <= per_query <= MOST_PER_QUERY or (scenario == "server" and per_query > 1):
        raise ValueError("per_query")
    if (scenario == "server") != (target is not None) or (target is not None and not 0 < float(target) <= 1e6):
        raise ValueError("target_qps")
    return {
        "scenario": scenario,
        "limit_s": limit_s,
        "window_s": window_s,
        "per_query": per_query,
        "target_qps": None if target is None else float(target),
        "curve": bool(document.get("curve")),
    }
