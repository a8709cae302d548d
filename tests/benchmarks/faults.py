"""Every step of a device with a fault at each of its system calls: `make bench`, or some of it.

    python -m tests.benchmarks.faults                                  # three times each: hours
    python -m tests.benchmarks.faults activate rollback --ways kill lost --repeats 1 --every 5

Exit 1 if a device did not answer with the old version or the new one, or did not take the next deployment. Power cuts need root.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from tests.e2e.faults import SET_UP, START, STEPS, WAYS, Found, fault_at_each

LONG = ("agent", "first", "teardown")  # hundreds of files that are unpacked alike: the repeats share these calls


def main() -> int:
    options = parse()
    failures = points = tries = 0
    for step in options.steps:
        for way in options.ways:
            for repeat in range(options.repeats if WAYS[way].ends else 1):
                begin = time.monotonic()
                every = options.every * (options.repeats if step in LONG else 1)
                first = 1 + repeat % every  # thinned, each repeat begins at another call
                found = fault_at_each(step, way, _told(f"{step:9} {way:9} {repeat + 1}"), first=first, every=every)
                tries, failures = tries + found.tried, failures + len(found.problems)
                points += len(found.points) if (way, repeat) == (options.ways[0], 0) else 0
                print(f"{step:9} {way:9} {repeat + 1}: {found}, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{points} points in {len(options.steps)} steps, {tries} tries, {failures} failures")
    return 1 if failures else 0


def _told(label: str) -> Callable[[Found], None]:
    """A step of hundreds of calls takes an hour: each failure at once, and how far it is each minute."""
    begin, said, failures = time.monotonic(), 0, 0

    def told(found: Found) -> None:
        nonlocal said, failures
        for problem in found.problems[failures:]:
            print(f"    {problem}", flush=True)
        failures = len(found.problems)
        if (minutes := int((time.monotonic() - begin) / 60)) > said:
            said = minutes
            print(f"{label}: {found.tried} tries, {failures} failures, {minutes} min", file=sys.stderr, flush=True)

    return told


def parse() -> argparse.Namespace:
    steps, ways = [*SET_UP, *START, *STEPS], [way for way in WAYS if way not in ("lost", "kept") or not os.getuid()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(steps))
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    options.steps = options.steps or steps
    return options


if __name__ == "__main__":
    sys.exit(main())
