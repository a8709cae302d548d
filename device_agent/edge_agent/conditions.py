"""What happens beside a measurement: what others take of the processors, what holds them back, and how much energy goes.

    watch = Watch(own=[os.getpid()])
    before = watch.moment()                  # {"governor": …, "mhz": …, "temperature_c": …, "throttled": …, "load": …}
    watch.begin()
    ...                                      # the work; watch.sample() now and then
    seen = watch.end()
    seen.disturbed                           # ["others kept 0.9 cores busy"]

``load`` is the cores that others keep busy: what /proc/stat counts, minus the own processes and their children. Standard library only.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from edge_agent import facts

SAMPLE_S = 1.0

_GLANCE_S = 0.1  # for the load before: as long as that is looked
_LOUD_CORES = 0.25
_STOLEN_SHARE = 0.02
_CLOCK_SHARE = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Counts:
    """Since the start of the device, in seconds of one processor."""

    at: float  # monotonic
    busy_s: Optional[float]  # all that was done; None where /proc/stat may not be read
    stolen_s: float  # by other virtual machines
    own_s: float
    held_back: int  # times that a control group's quota was used up
    events: Dict[str, int]  # of throttling, as `facts` names them


@dataclass(frozen=True)
class Seen:
    """A measurement's surroundings. ``energy_j`` of the whole time; where it is None, ``energy_unknown`` says why."""

    during: Dict[str, Any]
    disturbed: List[str]
    energy_j: Optional[float]
    energy_unknown: Optional[str]


class Watch:
    """Over one measurement. ``own``: processes that belong to it, each with its children."""

    def __init__(self, own: Sequence[int], root: Path = Path("/")) -> None:
        self._own, self._root = list(own), root
        self._energy = Energy(root)
        self._moments: List[Dict[str, Any]] = []
        self._sampled = 0.0
        self._begin = self._last = self._counts()

    def moment(self, load: float | None = None) -> Dict[str, Any]:
        """The device now; what others take is looked at for a tenth of a second, unless it is given."""
        if load is None:
            before = self._counts()
            time.sleep(_GLANCE_S)
            load = _load(before, self._counts())
        return {**_now(self._root), "load": load}

    def begin(self) -> None:
        self._energy.begin()
        self._moments = []
        self._begin = self._last = self._counts()
        self._sampled = self._begin.at

    def sample(self) -> Dict[str, Any]:
        """Between two windows; the same as before where that was less than a second ago. Half a millisecond."""
        now = time.monotonic()
        if self._moments and now - self._sampled < SAMPLE_S * 0.9:
            return self._moments[-1]
        self._energy.sample()
        counts = self._counts()
        self._moments.append({**_now(self._root), "load": _load(self._last, counts)})
        self._last, self._sampled = counts, now
        return self._moments[-1]

    def end(self) -> Seen:
        counts = self._counts()
        joules, unknown = self._energy.end()
        self._moments.append(_now(self._root))
        load = _load(self._begin, counts)
        clocks = [moment["mhz"] for moment in self._moments if moment["mhz"] is not None]
        during = {
            "governor": self._moments[-1]["governor"],
            "mhz": min(clocks, default=None),
            "temperature_c": max((moment["temperature_c"] for moment in self._moments if moment["temperature_c"] is not None), default=None),
            "throttled": _all_words(self._moments),
            "load": load,
        }
        return Seen(during, self._told(counts, load, clocks, during["throttled"]), joules, unknown)

    def _told(self, counts: Counts, load: Optional[float], clocks: Sequence[float], throttled: Sequence[str] | None) -> List[str]:
        seconds = max(counts.at - self._begin.at, 1e-3)
        sentences = []
        if load is not None and load >= _LOUD_CORES:
            sentences.append(f"others kept {load:.1f} cores busy")
        stolen = (counts.stolen_s - self._begin.stolen_s) / seconds
        if stolen >= _STOLEN_SHARE:
            sentences.append(f"the hypervisor gave {stolen:.0%} of a core to others")
        times = counts.held_back - self._begin.held_back
        if times:
            sentences.append(f"the CPU quota of a control group was used up {times} time{'s' if times > 1 else ''}")
        if throttled:
            sentences.append(f"held back: {', '.join(throttled)}")
        events = [name for name, count in counts.events.items() if count > self._begin.events.get(name, 0) and name not in (throttled or ())]
        if events:
            sentences.append(f"held back for a moment: {', '.join(events)}")
        if clocks and max(clocks) - min(clocks) > _CLOCK_SHARE * max(clocks):
            sentences.append(f"the clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
        return sentences

    def _counts(self) -> Counts:
        busy, stolen = _processors(self._root)
        return Counts(time.monotonic(), busy, stolen, own_s(self._own, self._root), _held_back(self._root), _events(self._root))


class Energy:
    """Joules from begin to end: RAPL's counters, or the watts of the rail that carries most, sampled.

    Watts count for the time before them. When it begins the device has just been idle, and a sensor tells what it saw in the last tenths of a second: a
    mean of both ends would take that for a part of the work.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._zones = _zones(root)
        self._readings: Dict[str, int] = {}
        self._joules = 0.0
        self._watts: Optional[float] = None
        self._at = 0.0

    def begin(self) -> None:
        self._joules, self._at = 0.0, time.monotonic()
        self._readings, self._watts = self._counters(), self._power()

    def sample(self) -> None:
        """At least once a minute: a counter of RAPL turns over."""
        now, counters, watts = time.monotonic(), self._counters(), self._power()
        if counters:
            for name, value in counters.items():
                moved = value - self._readings.get(name, value)
                if moved < 0:
                    moved += next(_numbers(self._root / "sys/class/powercap" / name / "max_energy_range_uj"), -moved)
                self._joules += moved / 1e6
        elif watts is not None:
            self._joules += watts * (now - self._at)
        self._readings, self._watts, self._at = counters, watts, now

    def end(self) -> tuple[Optional[float], Optional[str]]:
        """The joules, or why they are not known."""
        self.sample()
        if self._readings or self._watts is not None:
            return self._joules, None
        if self._zones:
            return None, "RAPL is there, and this user may not read it"
        return None, "this device has no sensor for it: neither RAPL nor one of hwmon"

    def _counters(self) -> Dict[str, int]:
        return {zone.name: value for zone in self._zones for value in _numbers(zone / "energy_uj")}

    def _power(self) -> Optional[float]:
        rails = {} if self._zones and self._readings else facts.read(self._root).get("power_w", {})
        return max(rails.values(), default=None)  # the one that feeds the others


def _zones(root: Path) -> List[Path]:
    """RAPL's packages; where there are none, the whole platform, which has the packages in it and would count them twice."""
    found = [zone for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*")) if re.fullmatch(r"intel-rapl:[0-9]+", zone.name)]
    return [zone for zone in found if _text(zone / "name") != "psys"] or found


def own_s(processes: Sequence[int], root: Path = Path("/")) -> float:
    """What these processes and all below them have used, those too that have ended meanwhile: else their time would be taken back, and be others'."""
    if list(processes) == [os.getpid()]:
        return sum(os.times()[:4])
    parents, used = {}, {}
    for stat in root.glob("proc/[0-9]*/stat"):
        fields = _text(stat).rpartition(")")[2].split()
        if len(fields) > 14:
            pid = int(stat.parent.name)
            parents[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:15])) / _TICKS
    ours = set(processes)
    while True:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not more:
            return sum(used.get(pid, 0.0) for pid in ours)
        ours |= more


def peak_bytes(process: int | str = "self", root: Path = Path("/")) -> Optional[int]:
    """The most memory that it ever had."""
    found = re.search(r"^VmHWM:\s+([0-9]+) kB", _text(root / f"proc/{process}/status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _now(root: Path) -> Dict[str, Any]:
    known = facts.read(root)
    throttling = known.get("throttling")
    return {
        "governor": known.get("governor"),
        "mhz": known.get("frequency_mhz", {}).get("now"),
        "temperature_c": max(known.get("temperatures_c", {}).values(), default=None),
        "throttled": None if throttling is None else throttling["now"],
    }


def _all_words(moments: Sequence[Dict[str, Any]]) -> Optional[List[str]]:
    told = [moment["throttled"] for moment in moments if moment["throttled"] is not None]
    return sorted({word for words in told for word in words}) if told else None


def _load(before: Counts, after: Counts) -> Optional[float]:
    """Not below 0: clocks that tick a hundred times a second are off by one each."""
    if before.busy_s is None or after.busy_s is None:
        return None
    seconds = max(after.at - before.at, 1e-3)
    return round(max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s)) / seconds, 2)


def _processors(root: Path) -> tuple[Optional[float], float]:
    """Busy and stolen, of all of them."""
    for line in _text(root / "proc/stat").splitlines():
        if line.startswith("cpu "):
            user, nice, system, _idle, _wait, irq, softirq, stolen = [int(word) / _TICKS for word in (*line.split()[1:], *["0"] * 8)[:8]]
            return user + nice + system + irq + softirq, stolen
    return None, 0.0


def _held_back(root: Path) -> int:
    """How often a quota was used up: of each control group that this process lies in, the outer ones too."""
    most = 0
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        parts = [part for part in group.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            found = re.search(r"^nr_throttled ([0-9]+)", _text(mount.joinpath(*parts[:depth]) / "cpu.stat"), re.MULTILINE)
            most += int(found[1]) if found else 0
    return most


def _events(root: Path) -> Dict[str, int]:
    return dict(facts.read(root).get("throttling", {}).get("events", {}))


def _numbers(path: Path) -> Any:
    text = _text(path)
    if re.fullmatch("[0-9]{1,20}", text):
        yield int(text)


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
