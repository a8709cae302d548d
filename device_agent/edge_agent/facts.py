"""What a latency depends on besides the model: governor, frequencies, temperatures, throttling, power, memory.

    facts.read()["temperatures_c"]          # {"cpu-thermal": 61.3}
    facts.read(Path("/somewhere"))          # the same of another root folder

Only what a sensor or the kernel says: a key that is not there was not to be found. Standard library only; a reading takes a
millisecond or two.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

_MAX_BYTES = 1 << 16
SPARE_BYTES = 64 << 20  # of memory, that stays free beside what a model needs
_NO_LIMIT = 1 << 60  # cgroup v1 has no word for it, only a number near the largest
_COLDEST_C, _HOTTEST_C = -60.0, 250.0  # beyond lies what a sensor says that is not connected

# The Raspberry Pi's firmware, bits of get_throttled. The upper half: it happened since the start.
_PI_NOW = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_PI_SINCE = {16: "undervoltage", 17: "frequency capped", 18: "throttled", 19: "soft temperature limit"}


def read(root: Path = Path("/")) -> dict[str, Any]:
    """Everything that is known now. Never raises."""
    known = {
        "board": _board(root),
        "cpu": _cpu(root),
        "cores": _cores() if root == Path("/") else None,
        "architecture": platform.machine() if root == Path("/") else None,
        "governor": _governor(root),
        "frequency_mhz": _frequency(root),
        "accelerators": _accelerators(root),
        "temperatures_c": _temperatures(root),
        "throttling": _throttling(root),
        "power_w": _power(root),
        "memory": _memory(root),
    }
    return {key: value for key, value in known.items() if value not in (None, "", {}, [])}


def identity(root: Path = Path("/")) -> dict[str, Any]:
    """What code compiled for this machine is tied to: board, CPU, GPUs, their driver and TensorRT. The same until one of them changes."""
    gpus = [line for card in sorted(root.glob("proc/driver/nvidia/gpus/*/information")) for line in re.findall(r"(?m)^(?:Model|GPU UUID):.*", _text(card))]
    return {
        "board": _board(root),
        "cpu": _cpu(root),
        "driver": [_text(root / path) for path in ("proc/driver/nvidia/version", "sys/module/nvidia/version", "etc/nv_tegra_release")],
        "gpus": [" ".join(line.split()) for line in gpus],
        "tensorrt": sorted(path.name for path in root.glob("usr/lib/*/libnvinfer.so.*")),
    }


def in_words(known: dict[str, Any]) -> str:
    """One line for a person; empty where nothing is known.

    >>> in_words({"governor": "powersave", "temperatures_c": {"cpu": 81.04}, "throttling": {"now": ["undervoltage"], "events": {}}})
    'governor powersave, cpu 81.0 °C, held back: undervoltage'
    """
    words = [f"governor {known['governor']}"] if "governor" in known else []
    frequency = known.get("frequency_mhz", {})
    if "now" in frequency:
        words.append(f"{frequency['now']:.0f}" + (f" of {frequency['most']:.0f}" if "most" in frequency else "") + " MHz")
    for unit, readings in ((" °C", known.get("temperatures_c")), (" W", known.get("power_w"))):
        if readings:
            name = max(readings, key=lambda one: readings[one])
            words.append(f"{name} {readings[name]:.1f}{unit}")
    throttling = known.get("throttling")
    if throttling is not None:
        earlier = ", ".join(throttling["events"])
        words.append(f"held back: {', '.join(throttling['now'])}" if throttling["now"] else "not held back" + (f" now, earlier: {earlier}" if earlier else ""))
    memory = known.get("memory", {})
    if "total_bytes" in memory and "available_bytes" in memory:
        words.append(f"{memory['available_bytes'] / 1e6:.0f} of {memory['total_bytes'] / 1e6:.0f} MB memory free")
    if "limit_bytes" in memory and "limit_used_bytes" in memory:
        words.append(f"{memory['limit_used_bytes'] / 1e6:.0f} MB of a limit of {memory['limit_bytes'] / 1e6:.0f} MB used")
    return ", ".join(words)


def _board(root: Path) -> str:
    tree = _text(root / "sys/firmware/devicetree/base/model") or _text(root / "proc/device-tree/model")
    return tree.replace("\0", "").strip() or _text(root / "sys/class/dmi/id/product_name")


def _cpu(root: Path) -> Optional[str]:
    found = re.search(r"^(?:model name|Hardware|uarch)\s*:\s*(.*\S)", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else None


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _governor(root: Path) -> str:
    """Of all clusters of cores: mostly there is one answer."""
    found = {_text(policy / "scaling_governor") for policy in _policies(root)}
    return ", ".join(sorted(found - {""}))


def _frequency(root: Path) -> dict[str, float]:
    """The fastest core now, and what it may reach: the rest sleeps deeper and says nothing about the work."""
    now = [khz for policy in _policies(root) for khz in _number(policy / "scaling_cur_freq")]
    most = [khz for policy in _policies(root) for khz in _number(policy / "cpuinfo_max_freq")]
    allowed = [khz for policy in _policies(root) for khz in _number(policy / "scaling_max_freq")]
    return {name: max(values) / 1000 for name, values in (("now", now), ("allowed", allowed), ("most", most)) if values}


def _policies(root: Path) -> list[Path]:
    return _folders(root / "sys/devices/system/cpu/cpufreq", "policy") or [root / "sys/devices/system/cpu/cpu0/cpufreq"]


def _accelerators(root: Path) -> dict[str, dict[str, Any]]:
    """What the kernel scales besides the CPU: GPUs of Jetsons and others."""
    found = {}
    for device in _folders(root / "sys/class/devfreq", ""):
        now, most = list(_number(device / "cur_freq")), list(_number(device / "max_freq"))
        if now:
            entry: dict[str, Any] = {"now_mhz": now[0] / 1e6, "most_mhz": most[0] / 1e6 if most else None, "governor": _text(device / "governor") or None}
            found[device.name] = {key: value for key, value in entry.items() if value is not None}
    return found


def _temperatures(root: Path) -> dict[str, float]:
    """By thermal zone; where the kernel has none, by sensor."""
    found: dict[str, float] = {}
    for zone in _folders(root / "sys/class/thermal", "thermal_zone"):
        for millis in _number(zone / "temp"):
            found[_unused(_text(zone / "type") or zone.name, found)] = millis / 1000
    if not found:
        for sensor, channel, millis in _channels(root, "temp", "input"):
            found[_unused(_label(sensor, "temp", channel), found)] = millis / 1000
    return {name: celsius for name, celsius in found.items() if _COLDEST_C < celsius < _HOTTEST_C}


def _throttling(root: Path) -> dict[str, Any]:
    """``now``: what holds the processor back at this moment; ``events``: what did since the start. Nothing where nothing could tell."""
    now: list[str] = []
    events: dict[str, int] = {}
    known = False
    for value in _hexadecimal(root / "sys/devices/platform/soc/soc:firmware/get_throttled"):
        known = True
        now += [name for bit, name in _PI_NOW.items() if value >> bit & 1]
        events.update({name: 1 for bit, name in _PI_SINCE.items() if value >> bit & 1})
    for cooling in _folders(root / "sys/class/thermal", "cooling_device"):
        kind = _text(cooling / "type")
        if not re.match(r"(thermal-)?(cpufreq|devfreq)|Processor|cpu|gpu", kind):
            continue  # a fan that turns holds nothing back
        for state in _number(cooling / "cur_state"):
            known = True
            if state:
                now.append(f"{kind} at {state}" + "".join(f" of {most}" for most in _number(cooling / "max_state")))
    for sensor in _folders(root / "sys/class/hwmon", "hwmon"):
        for path in _files(sensor, r"oc[0-9]+_event_cnt"):  # Jetson Orin: over-current
            for count in _number(path):
                known = True
                events[f"over-current {path.name.split('_')[0]}"] = count
        for alarm in _number(sensor / "in0_lcrit_alarm") if _text(sensor / "name") == "rpi_volt" else ():
            known = True
            now += ["undervoltage"] if alarm and "undervoltage" not in now else []
    for core in _folders(root / "sys/devices/system/cpu", "cpu"):
        for count in _number(core / "thermal_throttle/core_throttle_count"):
            known = True
            events["thermal"] = events.get("thermal", 0) + count
    return {"now": now, "events": {name: count for name, count in events.items() if count}} if known else {}


def _power(root: Path) -> dict[str, float]:
    """By rail. INA3221, on Jetsons, gives volts and amperes; its channels from 4 on are no rails."""
    found: dict[str, float] = {}
    for sensor, channel, microwatts in _channels(root, "power", "(?:input|average)"):
        found[_unused(_label(sensor, "power", channel), found)] = microwatts / 1e6
    for sensor, channel, milliamperes in _channels(root, "curr", "input"):
        if _text(sensor / "name") == "ina3221" and channel in ("1", "2", "3"):
            for millivolts in _number(sensor / f"in{channel}_input"):
                found[_unused(_label(sensor, "in", channel), found)] = round(millivolts * milliamperes / 1e6, 6)
    return found


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """What a new process of ours may take, as far as the device and its control groups tell."""
    known = _memory(root)
    free = [known["available_bytes"]] if "available_bytes" in known else []
    free += [known["limit_bytes"] - known["limit_used_bytes"]] if "limit_bytes" in known else []
    return min(free, default=None)


def _memory(root: Path) -> dict[str, int]:
    """Of the device, and what the control group of this process may use of it."""
    told = {
        key: int(kilobytes) * 1024
        for key, kilobytes in re.findall(r"^(MemTotal|MemAvailable|SwapTotal|SwapFree):\s+([0-9]+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    }
    known = {"total_bytes": told.get("MemTotal"), "available_bytes": told.get("MemAvailable")}
    if told.get("SwapTotal"):
        known["swap_used_bytes"] = told["SwapTotal"] - told.get("SwapFree", 0)
    limits = [(limit, used) for limit, used in _limits(root) if limit < _NO_LIMIT]
    if limits:
        known["limit_bytes"], known["limit_used_bytes"] = min(limits, key=lambda one: one[0] - one[1])
    return {key: value for key, value in known.items() if value is not None}


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each control group that this process lies in, the outer ones too."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            mount, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = [part for part in group.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            for most in _number(folder / limit):
                for now in _number(folder / used):
                    yield most, now


def _channels(root: Path, kind: str, what: str) -> Iterator[tuple[Path, str, int]]:
    """Sensor, channel and value of all readings of a kind."""
    for sensor in _folders(root / "sys/class/hwmon", "hwmon"):
        for path in _files(sensor, f"{kind}[0-9]+_{what}"):
            for value in _number(path):
                yield sensor, re.sub("[^0-9]", "", path.name.split("_")[0]), value


def _label(sensor: Path, kind: str, channel: str) -> str:
    return _text(sensor / f"{kind}{channel}_label") or f"{_text(sensor / 'name') or sensor.name} {channel}"


def _unused(name: str, taken: dict[str, float]) -> str:
    number = 2
    unused = name
    while unused in taken:
        unused, number = f"{name} {number}", number + 1
    return unused


def _folders(folder: Path, prefix: str) -> list[Path]:
    """By their numbers: hwmon2 before hwmon10."""
    try:
        found = [path for path in folder.iterdir() if re.fullmatch(prefix + "[0-9]+", path.name) or not prefix]
    except OSError:
        return []
    return sorted(found, key=_by_number)


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted((path for path in folder.iterdir() if re.fullmatch(pattern, path.name)), key=_by_number)
    except OSError:
        return []


def _by_number(path: Path) -> tuple[int, str]:
    found = re.search("[0-9]+", path.name)
    return (int(found[0]) if found else 0, path.name)


def _number(path: Path) -> Iterator[int]:
    """The one that it holds, or none."""
    text = _text(path)
    if re.fullmatch("-?[0-9]{1,20}", text):
        yield int(text)


def _hexadecimal(path: Path) -> Iterator[int]:
    text = _text(path)
    if re.fullmatch("(0x)?[0-9a-fA-F]{1,8}", text):
        yield int(text, 16)


def _text(path: Path) -> str:
    """Empty where there is no such file, or its driver does not answer."""
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""
