"""Does `bench --sustained` notice a throttled device? A real quota is cut in half, the truth is counted by the agent itself. A part of `make bench`.

    python -m tests.benchmarks.sustained                 # writes docs/sustained.md: ten minutes; for root
    python -m tests.benchmarks.sustained --runs 1 --seconds 60

Exit code 1 where the moment is more than five seconds off, or a level more than 5 %.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.asking import ROOT, machine
from tests.e2e.quota import Cut, measured_across_a_cut, possible

PAGE = ROOT / "docs" / "sustained.md"
LATE_S, APART = 5.0, 0.05

_HEAD = """# Whether a throttled device is noticed

`python -m tests.benchmarks.sustained`, a part of `make bench`: `edgesdk bench local NAME --sustained`, while the agent's control group loses half of the
processor time that it used, at a random moment about the middle. The truth is the agent's own counter, asked from outside before and after the cut. Held to
5 s and 5 %. The group comes before all other work of the machine; so what is seen is the quota, not a neighbour.

Half a quota is a process that runs as fast as before and stands still for half of each tenth of a second: the median stays, the rate halves, p99 is many
times as long.
"""


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=120)
    given = arguments.parse_args()
    if not possible():
        print("no quota can be cut here: that wants root, and control groups that it may make")
        return 0
    lines = [
        "| cut at s | said s | late s | answers a second before: counted, said | after: counted, said | p50 ms | p99 ms | levels | held |",
        "| ---: | ---: | ---: | --- | --- | --- | --- | ---: | --- |",
    ]
    about, all_held = machine(), True
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory(prefix="sustained-") as folder:
            cut = measured_across_a_cut(Path(folder), given.seconds, given.seconds * random.uniform(0.4, 0.6))
        held = cut.late_s is not None and abs(cut.late_s) <= LATE_S and all(abs(apart) <= APART for apart in cut.apart)
        all_held &= held
        lines.append(_row(cut, held=held))
        print(lines[-1], flush=True)
    PAGE.write_text("\n".join([_HEAD, f"{given.runs} runs of {given.seconds:g} s. {about}", "", *lines, ""]), encoding="utf-8")
    return int(not all_held)


def _row(cut: Cut, *, held: bool) -> str:
    first, last = cut.found.levels[0], cut.found.levels[-1]
    said = "–" if cut.found.throttled_at_s is None else f"{cut.found.throttled_at_s:.1f}"
    late = "–" if cut.late_s is None else f"{cut.late_s:+.1f}"
    (before, after), rates = cut.apart, cut.said
    return (
        f"| {cut.at_s:.1f} | {said} | {late} | {cut.before:.0f}, {rates[0]:.0f} ({before:+.1%}) "
        f"| {cut.after:.0f}, {rates[1]:.0f} ({after:+.1%}) "
        f"| {first.p50_ms:.3f} → {last.p50_ms:.3f} | {first.p99_ms:.2f} → {last.p99_ms:.2f} | {len(cut.found.levels)} | {'yes' if held else '**no**'} |"
    )


if __name__ == "__main__":
    sys.exit(main())
