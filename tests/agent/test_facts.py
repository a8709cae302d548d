"""Device facts from files laid out as boards have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent import facts

JETSON = {
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "1344000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "49500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",  # not connected
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1200\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "4990\n",
    "sys/class/hwmon/hwmon1/curr2_input": "400\n",
    "sys/class/hwmon/hwmon1/in4_input": "2400\n",  # a shunt's, and a sum: no rail
    "sys/class/hwmon/hwmon1/curr4_input": "1600\n",
    "sys/class/hwmon/hwmon2/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon2/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon2/oc3_event_cnt": "17\n",
}


def laid_out(root: Path, files: dict[str, str]) -> dict[str, Any]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return facts.read(root)


def test_a_device_that_says_nothing_has_no_facts(tmp_path: Path) -> None:
    assert facts.read(tmp_path) == {}


def test_a_jetson(tmp_path: Path) -> None:
    assert laid_out(tmp_path, JETSON) == {
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "governor": "performance, schedutil",
        "frequency_mhz": {"now": 1344.0, "allowed": 1510.4, "most": 1510.4},
        "accelerators": {"17000000.gpu": {"now_mhz": 306.0, "most_mhz": 624.75, "governor": "nvhost_podgov"}},
        "temperatures_c": {"cpu-thermal": 51.25, "gpu-thermal": 49.5},
        "throttling": {"now": [], "events": {"over-current oc3": 17}},
        "power_w": {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.996},
    }


@pytest.mark.parametrize(
    ("word", "now", "events"),
    [
        ("0", [], {}),
        ("50005", ["undervoltage", "throttled"], {"undervoltage": 1, "throttled": 1}),
        ("0x80008", ["soft temperature limit"], {"soft temperature limit": 1}),
    ],
)
def test_a_raspberry_pi_says_why_it_is_slow(tmp_path: Path, word: str, now: list[str], events: dict[str, int]) -> None:
    found = laid_out(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": f"{word}\n"})
    assert found == {"throttling": {"now": now, "events": events}}


def test_a_low_voltage_alarm_of_a_pi_without_that_file(tmp_path: Path) -> None:
    found = laid_out(tmp_path, {"sys/class/hwmon/hwmon3/name": "rpi_volt\n", "sys/class/hwmon/hwmon3/in0_lcrit_alarm": "1\n"})
    assert found == {"throttling": {"now": ["undervoltage"], "events": {}}}


def test_a_hot_pc(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    found = laid_out(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "4\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/class/thermal/cooling_device3/type": "Processor\n",
            "sys/class/thermal/cooling_device3/cur_state": "2\n",
            "sys/class/thermal/cooling_device3/max_state": "10\n",
            "sys/class/hwmon/hwmon10/name": "coretemp\n",
            "sys/class/hwmon/hwmon10/temp1_label": "Package id 0\n",
            "sys/class/hwmon/hwmon10/temp1_input": "97000\n",
            "sys/class/hwmon/hwmon2/name": "nvme\n",
            "sys/class/hwmon/hwmon2/temp1_input": "40000\n",
            "sys/class/hwmon/hwmon2/temp2_input": "rubbish\n",
            "sys/class/hwmon/hwmon4/name": "ina260\n",
            "sys/class/hwmon/hwmon4/power1_input": "7250000\n",
        },
    )
    assert found == {
        "cpu": "Some CPU @ 2 GHz",
        "governor": "powersave",
        "temperatures_c": {"nvme 1": 40.0, "Package id 0": 97.0},
        "throttling": {"now": ["Processor at 2 of 10"], "events": {"thermal": 7}},
        "power_w": {"ina260 1": 7.25},
    }


MEMINFO = "MemTotal:        1000 kB\nMemFree:  100 kB\nMemAvailable:    400 kB\nSwapTotal:  200 kB\nSwapFree:  50 kB\n"


def test_memory_and_its_narrowest_control_group(tmp_path: Path) -> None:
    found = laid_out(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/system.slice/edge-agent.service\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/memory.max": "500000\n",
            "sys/fs/cgroup/system.slice/memory.current": "450000\n",
            "sys/fs/cgroup/system.slice/edge-agent.service/memory.max": "300000\n",
            "sys/fs/cgroup/system.slice/edge-agent.service/memory.current": "100000\n",
        },
    )
    assert found["memory"] == {
        "total_bytes": 1_024_000,
        "available_bytes": 409_600,
        "swap_used_bytes": 153_600,
        "limit_bytes": 500_000,
        "limit_used_bytes": 450_000,
    }


def test_a_control_group_of_the_first_kind(tmp_path: Path) -> None:
    memory = "sys/fs/cgroup/memory"
    found = laid_out(
        tmp_path,
        {
            "proc/self/cgroup": "7:memory:/box\n3:cpu,cpuacct:/box\n",
            f"{memory}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{memory}/memory.usage_in_bytes": "5\n",
            f"{memory}/box/memory.limit_in_bytes": "536870912\n",
            f"{memory}/box/memory.usage_in_bytes": "1000\n",
        },
    )
    assert found["memory"] == {"limit_bytes": 536_870_912, "limit_used_bytes": 1000}


def test_one_line_tells_the_worst(tmp_path: Path) -> None:
    words = facts.in_words(laid_out(tmp_path, {**JETSON, "proc/meminfo": MEMINFO}))
    assert words == (
        "governor performance, schedutil, 1344 of 1510 MHz, cpu-thermal 51.2 °C, VDD_IN 6.0 W, not held back now, earlier: over-current oc3, "
        "0 of 1 MB memory free"
    )
    assert facts.in_words({}) == ""
    assert facts.in_words({"memory": {"limit_bytes": 512_000_000, "limit_used_bytes": 1_000_000}}) == "1 MB of a limit of 512 MB used"


def test_this_machine_has_some() -> None:
    found = facts.read()
    assert found["cores"] > 0
    assert found["memory"]["total_bytes"] > 1 << 20
