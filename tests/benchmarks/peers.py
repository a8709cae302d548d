"""Each model of the suite against what else a user could do with it, in one run: `make bench`, or for some of them

    .venv-peers/bin/python -m tests.benchmarks.peers rec det

Needs `make suite-data` and .venv-peers, where OpenVINO and NNCF are installed. All run in this process, one thread each, in alternating
rounds; accuracy is that of the same evaluation. What took long to make (NNCF searches for minutes) is kept in .cache/suite/peers and made
again only by another version; what edgesdk makes, whenever edgesdk changes. Results go into docs/benchmarks.json and docs/benchmarks.md.
"""

import json
import logging
import math
import multiprocessing
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import probe
from edgesdk import users_code
from edgesdk.errors import EvaluationError
from tests.benchmarks import peers_table
from tests.benchmarks.contenders import EXPERT, GIVEN, INTEL, MAX_DROP, PACKAGED, QUICK, REWRITTEN, Contender, calibration
from tests.benchmarks.rounds import Times, ratio, rounds
from tests.suite import FETCHED, REPOSITORY, Entry, chosen, edgesdk_digest

KEPT = FETCHED / "peers"
RESULTS = REPOSITORY / "docs" / "benchmarks.json"
TOOLS = ("onnxruntime", "openvino", "nncf")
FEEDS = 8  # calibration samples that are timed
NOTE_LENGTH = 120
LIMIT_S = 600  # more than this nobody waits for a file


@dataclass(frozen=True, slots=True)
class Made:
    """A contender's file: what it took to make it, and what it scores. ``note`` says why there is none, or why it does not run."""

    label: str
    version: str
    file: str
    seconds: float
    scores: list[float]
    note: str

    @property
    def works(self) -> bool:
        return not self.note

    @property
    def score(self) -> float:
        return float(np.mean(self.scores))


def main(names: list[str]) -> None:
    """Measure model by model; each is written when it is done."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    here = results.setdefault(str(probe.facts()["cpu_model"]), {})  # what one processor does well, another does badly
    for entry in chosen(names):
        here[entry.name] = measured(entry)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        peers_table.write(results)
        print(peers_table.summary({entry.name: here[entry.name]}), flush=True)


def measured(entry: Entry) -> dict[str, Any]:
    """One model's comparison, fit for JSON."""
    folder = KEPT / entry.name
    everyone = (GIVEN, REWRITTEN, PACKAGED, QUICK, *EXPERT, *INTEL)
    made = {contender.label: _made(contender, entry, folder) for contender in everyone}
    runs = {contender.label: contender.open(folder / made[contender.label].file) for contender in everyone if made[contender.label].works}
    feeds = calibration(entry)[:FEEDS]
    rough = rounds(runs, feeds, least=10, most=60, limit_s=30)
    given = made[GIVEN.label]
    right = {label for label, one in made.items() if one.works and given.score - one.score <= MAX_DROP + 1e-9}
    best = _fastest([GIVEN.label, *(contender.label for contender in EXPERT)], right, rough)
    finalists = {GIVEN.label, REWRITTEN.label, PACKAGED.label, QUICK.label, best, *(contender.label for contender in INTEL)} & runs.keys()
    times = rounds({label: runs[label] for label in runs if label in finalists}, feeds, limit_s=60)
    within = {label for label, one in made.items() if one.works and given.score - one.score <= _standard_error(given) + 1e-9}
    intel = _fastest([contender.label for contender in INTEL], within, times)
    return {
        "machine": _machine(),
        "rounds": len(times[GIVEN.label]),
        "target": entry.least_speedup,
        "standard_error": _standard_error(given),
        "contenders": [_row(made[contender.label], given, times if contender.label in times else rough) for contender in everyone],
        "packaged": _told(folder),
        "quick": {"intel": _against(intel, times, QUICK.label) if intel else None},
        "against_float32": _against(REWRITTEN.label, times),
        "expert": {"label": best, "seconds": sum(made[contender.label].seconds for contender in EXPERT), "latency": _against(best, times)},
        "intel": {"label": intel, "seconds": _searched(made), "latency": _against(intel, times) if intel else None},
    }


def _made(contender: Contender, entry: Entry, folder: Path) -> Made:
    """As it was kept, or made now and scored."""
    own = folder / "".join(letter if letter.isalnum() else "-" for letter in contender.label)
    note = own / "made.json"
    wanted = edgesdk_digest() if contender in (REWRITTEN, PACKAGED, QUICK) else " ".join(f"{tool} {version(tool)}" for tool in TOOLS)
    if note.exists() and (kept := Made(**json.loads(note.read_text()))).version == wanted:
        return kept
    own.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        path, seconds = _apart(contender, entry, own)
        scores = np.atleast_1d(users_code.load(entry.evaluate, EvaluationError)(contender.open(path)))
        made = Made(contender.label, wanted, str(path.relative_to(folder)), seconds, [float(score) for score in scores], "")
    except Exception as error:  # noqa: BLE001 - that another's tool fails on a model is a result
        made = Made(contender.label, wanted, "", time.monotonic() - began, [], " ".join(str(error).split())[:NOTE_LENGTH])
    print(f"{entry.name}: {contender.label}: {made.note or f'{made.score:.4f}'} after {made.seconds:.0f} s", file=sys.stderr, flush=True)
    note.write_text(json.dumps(asdict(made)))
    return made


def _apart(contender: Contender, entry: Entry, folder: Path) -> tuple[Path, float]:
    """Made in a process of its own, which may crash, take all the memory or never end; and the seconds that it took."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_make, args=(sender, contender, entry, folder))
    child.start()
    sender.close()
    try:
        if not receiver.poll(LIMIT_S):
            raise TimeoutError(f"stopped after {LIMIT_S} s")
        answer, seconds = receiver.recv()
    except EOFError as error:
        raise RuntimeError("its process crashed") from error
    finally:
        child.kill()
        child.join()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer, seconds


def _make(sender: Connection, contender: Contender, entry: Entry, folder: Path) -> None:
    """In the child: the file's path, or what went wrong in words, since not every exception can be sent."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    began = time.monotonic()
    try:
        answer: Path | str = contender.make(entry, folder)
    except Exception as error:  # noqa: BLE001 - told where it is waited for
        traceback.print_exc()
        answer = f"{type(error).__name__}: {error}"
    sender.send((answer, time.monotonic() - began))


def _fastest(labels: list[str], allowed: set[str], times: dict[str, Times]) -> str:
    """Of those that are allowed; the empty string where none is."""
    return min((label for label in labels if label in allowed), key=lambda label: float(np.median(times[label] / times[GIVEN.label])), default="")


def _standard_error(made: Made) -> float:
    """Of the mean score; where the evaluation gives one number only, the budget stands in."""
    count = len(made.scores)
    return float(np.std(made.scores, ddof=1)) / math.sqrt(count) if count > 1 else MAX_DROP


def _row(made: Made, given: Made, times: dict[str, Times]) -> dict[str, Any]:
    if not made.works:
        return {"label": made.label, "seconds": made.seconds, "note": made.note}
    return {
        "label": made.label,
        "seconds": made.seconds,
        "score": made.score,
        "drop": given.score - made.score,
        "latency_ms": float(np.median(times[made.label])) / 1e6,
        "speedup": asdict(ratio(times[GIVEN.label], times[made.label])),
    }


def _against(label: str, times: dict[str, Times], ours: str = PACKAGED.label) -> dict[str, float] | None:
    """Our latency over theirs."""
    return asdict(ratio(times[ours], times[label])) if ours in times and label in times else None


def _searched(made: dict[str, Made]) -> float:
    """What NNCF's own search took, whether it found something or was stopped."""
    return next(one.seconds for label, one in made.items() if "accuracy_control" in label)


def _told(folder: Path) -> dict[str, Any] | None:
    """What `edgesdk package` said of its choice."""
    path = folder / "edgesdk-package" / "told.json"
    return json.loads(path.read_text()) if path.exists() else None


def _machine() -> dict[str, Any]:
    facts = probe.facts()
    interesting = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
    return {
        "cpu": facts["cpu_model"],
        "cores": facts["cores"],
        "features": [feature for feature in interesting if feature in facts["cpu_features"]],
        "edgesdk": edgesdk_digest(),
        **{tool: version(tool) for tool in TOOLS},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
