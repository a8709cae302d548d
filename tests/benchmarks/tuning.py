"""Is what `tune` chose never slower than the profile, when both are run again later? A part of `make bench`.

    python -m tests.benchmarks.tuning                     # writes docs/tuning.md: about seven minutes a model
    python -m tests.benchmarks.tuning resnet8 --limit-s 20 --page /tmp/tuning.md

Of each model of the suite that is here. The later run knows nothing of the search: restarts of its own, judged as `compare` judges.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesdk import comparison, graph, knobs, profiles, race, sampling
from edgesdk.comparison import Verdict
from edgesdk.profiles import Profile
from edgesdk.source import model_files
from edgesdk.tuning import FEEDS, RESTART_S, Tuned, tune
from tests.benchmarks.asking import ROOT, machine
from tests.suite import SUITE, Entry

PAGE = ROOT / "docs" / "tuning.md"
LATER_S = 60.0
_HEAD = """# What tuning brings, and whether it holds

`python -m tests.benchmarks.tuning`, a part of `make bench`: `edgesdk tune` on each model of the suite with the profile x86-cpu, then what it chose
against the profile once more, in restarts of their own (99 %). Where nothing was faster for sure the profile stays, and there is nothing to run again.
The last column is of questions that come at once: how much sooner the mean of two, four, … is answered when they are run as one instead of as two halves.
What is chosen is for the machine as it was: beside other work, threads that wait busily cost more than on an idle one.
"""


@dataclass(frozen=True)
class Row:
    title: str
    tuned: Tuned
    later: comparison.Estimate | None
    limit_s: float

    @property
    def verdict(self) -> Verdict | None:
        return self.later.verdict if self.later else None

    @property
    def text(self) -> str:
        found, later = self.tuned, self.later
        again = f"{later.speedup:.3f} ({later.low:.3f} … {later.high:.3f}), {later.verdict}" if later else "–"
        search = f"{found.speedup:.3f} ({found.low:.3f} … {found.high:.3f})" if found.candidate else "–"
        best = f"{knobs.in_words(found.candidate)} looked best: {found.verdict}" if found.candidate else found.stopped
        chosen = knobs.in_words(found.settings) if found.settings else f"the profile stays ({best})"
        batches = ", ".join(f"{each.rows}: {each.speedup:.2f} {each.verdict}" for each in found.batches) or "–"
        tried = f"{len(found.tried)}, {found.measured} restarts"
        return f"| {self.title} | {chosen} | {search} | {again} | {tried} | {found.seconds:.0f} of {self.limit_s:.0f} | {batches} |"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*")
    arguments.add_argument("--limit-s", type=float, default=180)
    arguments.add_argument("--page", type=Path, default=PAGE)
    given = arguments.parse_args()
    profile = profiles.find("x86-cpu")
    rows = run([entry for entry in SUITE if entry.model.is_file() and (not given.names or entry.name in given.names)], profile, given.limit_s, LATER_S)
    slower = [row.title for row in rows if row.verdict == "slower"]
    table = ["| model | chosen | when confirmed | run again later | tried | seconds | at once |", "| --- |" + " --- |" * 6, *(row.text for row in rows)]
    told = f"Slower than the profile in the later run: {', '.join(slower) or 'none'}."
    given.page.write_text("\n".join([_HEAD, machine(), "", *table, "", told]) + "\n")
    print(told)


def run(entries: Sequence[Entry], profile: Profile, limit_s: float, later_s: float) -> list[Row]:
    """Each model tuned, and what was chosen run again."""
    rows = []
    for entry in entries:
        tuned = tune(entry.model, profile, limit_s=limit_s, afresh=True)
        alone = knobs.of_one(tuned.settings)
        later = _again(entry.model, profile, knobs.applied(profile, alone), later_s) if alone else None
        rows.append(Row(entry.name, tuned, later, limit_s))
        print(rows[-1].text, flush=True)
    return rows


def _again(path: Path, profile: Profile, tuned: Profile, limit_s: float) -> comparison.Estimate:
    model = graph.load(path)
    files, both = model_files(model), (profile, tuned)
    with race.racing_here(profile, list(sampling.generated(model, FEEDS).first(FEEDS))) as racer:

        def raced(first: int, second: int) -> race.Raced:
            return racer.race(files, files, limit_s=RESTART_S, profiles=(both[first], both[second]))

        return comparison.decided(raced, limit_s=limit_s)[1]


if __name__ == "__main__":
    main()
