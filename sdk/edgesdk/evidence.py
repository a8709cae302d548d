"""What the search is handed: how fast, how right and how costly a candidate is, measured on this machine or on the device.

tools = gather(source, profile, race_here(profile, source.held_back), here=True)
search.choose(plans, tools, max_drop=0.01, progress=silent)
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge_agent.worker import Session, open_session
from edgesdk import costs, recipe
from edgesdk.benchmark import Paired, compare
from edgesdk.graph import Feeds, Model
from edgesdk.profiles import Profile
from edgesdk.regions import Costs, Group, Link
from edgesdk.search import Tools
from edgesdk.source import Source, model_files

RACE_S = 3.0
FASTER_IN_8_BITS = 4  # multiply-accumulates of 8 bits in the time of one of float32, where nothing can be timed: lanes of a register
CROSSED = 4  # the same of an element that changes precision

Race = Callable[[Model, Model, float], Paired]  # before, after, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RacedHere(Paired):
    """With what onnxruntime took for the model after, which need not be the profile's first provider, and the threads that it had."""

    provider: str
    threads: int


def gather(source: Source, profile: Profile, race: Race | None, *, here: bool) -> Tools:
    """``race`` times two models where the profile's hardware is, if that is at hand; ``here``: this machine resembles it."""

    def against_float(candidate: Model) -> Paired:
        assert race is not None
        _, best_float = source.build(recipe.float_plan(profile, source.shapes))
        return race(best_float, candidate, RACE_S)

    def macs(base: Model) -> dict[str, int]:
        return costs.macs(base, costs.shapes(base, source.held_back[0]))

    return Tools(
        build=source.build,
        error=lambda model: source.error(model, optimize=here),
        loss=lambda plan: source.loss(plan, optimize=here),
        race=against_float if race is not None else None,
        costs=lambda base, whole, parts, links: (_timed if here else _counted)(base, whole, parts, links, source.held_back),
        macs=macs,
    )


def race_here(profile: Profile, feeds: Sequence[Feeds]) -> Race:
    """Times two models on this machine, as the agent would run them."""

    def race(before: Model, after: Model, limit_s: float) -> Paired:
        with _opened(before, profile) as first, _opened(after, profile) as second:
            found = compare(first.run, second.run, feeds, spinning=first.spins or second.spins, limit_s=limit_s)
            return RacedHere(**asdict(found), provider=second.providers[0], threads=second.threads)

    return race


@contextmanager
def _opened(model: Model, profile: Profile) -> Iterator[Session]:
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        for name, data in model_files(model).items():
            Path(folder, name).write_bytes(data)
        yield open_session(Path(folder), profile.to_dict())


def _timed(base: Model, whole: Model, parts: Sequence[Group], links: Sequence[Link], feeds: Sequence[Feeds]) -> Costs:
    """In milliseconds of one core: kernels' times from a profiled run of each model; a change of precision by the time of its two kernels."""
    in_float, in_8_bits = (costs.kernel_ms(model, feeds, threads=1) for model in (base, whole))
    crossing = 2 * costs.conversion_ms_per_element()  # layouts change, too
    return Costs(
        [sum(in_float.get(name, 0.0) for name in part.nodes) for part in parts],
        [sum(in_8_bits.get(name, 0.0) + in_8_bits.get(f"{name}_gate", 0.0) for name in part.nodes) for part in parts],
        [crossing * elements for elements in _elements(costs.shapes(base, feeds[0]), links)],
    )


def _counted(base: Model, _whole: Model, parts: Sequence[Group], links: Sequence[Link], feeds: Sequence[Feeds]) -> Costs:
    """In multiply-accumulates, for want of the hardware."""
    of_run = costs.shapes(base, feeds[0])
    counted = costs.macs(base, of_run)
    in_float = [float(sum(counted.get(name, 0) for name in part.nodes)) for part in parts]
    return Costs(in_float, [cost / FASTER_IN_8_BITS for cost in in_float], [float(CROSSED * elements) for elements in _elements(of_run, links)])


def _elements(of_run: Mapping[str, tuple[int, ...]], links: Sequence[Link]) -> list[int]:
    return [int(np.prod(of_run.get(link.tensor, (0,)))) for link in links]
