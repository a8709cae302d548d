"""Accuracy where the model runs: the user's function here, the samples there. The verb `evaluate`.

    evaluate("bundles/ocr", evaluate="evaluate.py:evaluate", on="pi").score

A kernel of another instruction set, an accelerator or an older onnxruntime answers a little otherwise; what that does to the metric is measured, not
guessed. Nothing is selected by it, so every sample counts, unlike in `package`, which spends half of them on choosing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from edge_agent import bundle
from edge_agent.bundle import NAME
from edgesdk import comparison, graph, remote, sampling, source, tuning
from edgesdk.accuracy import Judge, Run, Scores, drop_interval, score_interval
from edgesdk.comparison import Contender
from edgesdk.errors import EvaluationError, ProjectError
from edgesdk.graph import Array, Feeds
from edgesdk.profiles import Profile
from edgesdk.progress import Progress, silent
from edgesdk.replies import Answering, Facts
from edgesdk.source import model_files

SCHEMA = 1
SAMPLES = 64  # that are generated, where the original is all that there is to judge by


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """The original, run here on the same samples. ``drop``: its score less this one's, and the 95 % interval of that."""

    name: str
    score: float
    drop: float
    interval: tuple[float, float] | None
    lost: int  # samples that score less than with the original
    gained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The score, of what, and where; its fields are the keys of `--json`.

    ``interval`` (95 %) is None where the function gives one number, and ``samples`` then, too; ``asked``: how often the model was.
    """

    name: str
    digest: str | None
    release: int | None
    metric: str
    source: str
    score: float
    interval: tuple[float, float] | None
    samples: int | None
    asked: int
    against: Against | None
    host: str | None
    device: str
    cpu: str | None
    provider: str | None
    nodes: str | None
    threads: int | None
    onnxruntime: str | None
    governor: str | None
    temperature_c: float | None
    settings: dict[str, Any] | None  # of the profile's `[runtime]`; None for a model that is active there
    started: str
    seconds: float
    kind: Literal["evaluate"] = "evaluate"
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict, as pandas.DataFrame takes it."""
        flat = {key: value for key, value in self.to_dict().items() if not isinstance(value, (dict, tuple, list))}
        low, high = self.interval or (None, None)
        return [{**flat, "low": low, "high": high, **({f"against_{key}": value for key, value in asdict(self.against).items()} if self.against else {})}]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the model answers."""

    run: Run
    facts: Facts
    told: Answering


def evaluate(
    what: str | Path,
    profile: Profile | None = None,
    *,
    evaluate: str | None = None,
    on: str | None = None,
    samples: str | None = None,
    against: Path | str | None = None,
    progress: Progress = silent,
) -> Evaluated:
    """An ONNX file, a bundle, or with ``on`` the name of a model that is active there; judged by ``evaluate`` as `package` takes it.

    ``against``: the original, which runs here; without ``evaluate`` the metric is agreement with it, on ``samples`` or generated ones. Raises an
    EdgeSDKError; EvaluationError where the user's function fails.
    """
    begin, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    name = _active(what, on)
    if evaluate is None and against is None:
        raise EvaluationError("there is nothing to judge the answers by", "give --evaluate, or the original they should agree with: --against")
    given = None if name else comparison.opened(Path(what))
    reference = graph.load(Path(against)) if against else None
    original = source.runner(reference) if reference is not None else None
    feeds: list[Feeds] = []
    if evaluate is None and reference is not None:
        drawn = sampling.load(samples, reference) if samples else sampling.generated(reference, SAMPLES)
        feeds, described = list(drawn), drawn.source
    judge = Judge.load(evaluate, original or _nothing, feeds, held_back_source=f"{len(feeds)} {described}" if feeds else "")
    target = tuning.profile_of(given.profile, profile, on) if given else None
    with _answering(name, given, target, on, progress) as place:
        asked = _Counted(place.run if given is None or reference is None else source.in_batches(place.run, reference, given.model), progress)
        scores = judge.scores(asked)
    return Evaluated(
        name=place.told.name or (given.name or given.title if given else str(what)),
        digest=place.told.digest or (bundle.digest_of(b"".join(model_files(given.model).values())) if given else None),
        release=place.told.release or (given.release if given else None),
        metric=judge.metric,
        source=judge.source,
        score=float(scores.mean()),
        interval=score_interval(scores),
        samples=len(scores) if len(scores) > 1 else None,
        asked=asked.count,
        against=_against(str(against), judge, scores, _Counted(original, progress, asked.count)) if original is not None else None,
        host=on,
        device=place.facts.board or place.facts.cpu_model or place.facts.architecture,
        cpu=place.facts.cpu_model,
        provider=place.told.provider,
        nodes=place.told.nodes,
        threads=place.told.threads,
        onnxruntime=place.told.onnxruntime,
        governor=place.told.governor,
        temperature_c=place.told.temperature_c,
        settings=target.runtime.model_dump(mode="json") if target else None,
        started=started,
        seconds=round(time.monotonic() - begin, 1),
    )


class _Counted:
    """Runs a model and tells how often it did."""

    def __init__(self, run: Run, progress: Progress, total: int = 0) -> None:
        self.count = 0
        self._run, self._progress, self._total = run, progress, total

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        self._progress("ask the original here" if self._total else "ask", self.count, self._total)
        answer = self._run(feeds)
        self.count += 1
        return answer


def _against(name: str, judge: Judge, scores: Scores, original: Run) -> Against:
    before = judge.scores(original)
    if before.shape != scores.shape:
        counts = f"{len(before)} scores for the original, {len(scores)} for the other"
        raise EvaluationError(f"`{judge.source}` returned {counts}", "score the same samples each time")
    return Against(
        name=name,
        score=float(before.mean()),
        drop=float(before.mean() - scores.mean()),
        interval=drop_interval(before, scores),
        lost=int((scores < before).sum()),
        gained=int((scores > before).sum()),
    )


@contextmanager
def _answering(name: str | None, given: Contender | None, profile: Profile | None, on: str | None, progress: Progress) -> Iterator[_Place]:
    if on is not None and name is not None:
        with remote.deployed(on, name) as there:
            yield _Place(there.run, there.facts, there.told)
        return
    assert given is not None and profile is not None  # what is not active is a file or a bundle
    files = model_files(given.model)
    if on is not None:
        with remote.opened(on, profile, files, progress) as there:
            yield _Place(there.run, there.facts, there.told)
        return
    with remote.here(profile, files) as here:
        yield _Place(here.run, here.facts, here.told)


def _active(what: str | Path, on: str | None) -> str | None:
    """The name, if it is one of a model on the device, and no file or bundle here. Raises ProjectError."""
    if Path(what).exists() or Path(what).suffix in (".onnx", ".tar"):
        return None
    if on is None or not NAME.fullmatch(str(what)):
        raise ProjectError(f"there is no file and no bundle `{what}`", "check the path; the name of a deployed model wants `--on HOST`")
    return str(what)


def _nothing(_: Feeds) -> dict[str, Array]:
    raise AssertionError("only agreement asks the original beforehand")
