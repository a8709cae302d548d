"""What happens beside a measurement, from files laid out as devices have them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent import conditions
from edge_agent.conditions import Energy, Watch

TICKS = os.sysconf("SC_CLK_TCK")
POLICY = "sys/devices/system/cpu/cpufreq/policy0"


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_device_that_says_nothing_disturbs_nothing(tmp_path: Path) -> None:
    watch = Watch([1], tmp_path)
    watch.begin()
    seen = watch.end()
    assert seen.disturbed == []
    assert (seen.energy_j, seen.energy_unknown) == (None, "this device has no sensor for it: neither RAPL nor one of hwmon")
    assert watch.moment() == {"governor": None, "mhz": None, "temperature_c": None, "throttled": None, "load": None}


def test_what_others_take_is_told_and_what_belongs_to_it_is_not(tmp_path: Path) -> None:
    def processors(busy_s: float, stolen_s: float, ours_s: float) -> None:
        lay(
            tmp_path,
            {
                "proc/stat": f"cpu  {round(busy_s * TICKS)} 0 0 900 0 0 0 {round(stolen_s * TICKS)} 0 0\ncpu0 1 1\n",
                "proc/70/stat": "70 (agent) S 1 70 70 0 -1 0 0 0 0 0 0 0 0 0\n",
                "proc/71/stat": f"71 (a ) b) R 70 70 70 0 -1 0 0 0 0 0 {round(ours_s * TICKS)} 0 0 0\n",
                "proc/80/stat": "80 (other) R 1 80 80 0 -1 0 0 0 0 0 99999 0 0 0\n",
            },
        )

    processors(10, 1, 5)
    watch = Watch([70], tmp_path)
    watch.begin()
    time.sleep(0.1)
    processors(10.1, 1, 5.1)
    assert watch.end().disturbed == []
    watch.begin()
    time.sleep(0.1)
    processors(40.4, 9, 5.2)
    seen = watch.end()
    assert seen.during["load"] > 1
    assert [sentence.split("kept")[0].split("gave")[0] for sentence in seen.disturbed] == ["others ", "the hypervisor "]


@pytest.mark.parametrize(
    ("cgroup", "folder"), [("0::/system.slice/edge\n", "sys/fs/cgroup/system.slice/edge"), ("4:cpu,cpuacct:/box\n0::/\n", "sys/fs/cgroup/cpu/box")]
)
def test_a_quota_that_is_used_up_is_told(tmp_path: Path, cgroup: str, folder: str) -> None:
    lay(tmp_path, {"proc/self/cgroup": cgroup, f"{folder}/cpu.stat": "nr_periods 90\nnr_throttled 7\nthrottled_time 5\n"})
    watch = Watch([1], tmp_path)
    watch.begin()
    assert watch.end().disturbed == []
    lay(tmp_path, {f"{folder}/cpu.stat": "nr_periods 99\nnr_throttled 10\nthrottled_time 9\n"})
    assert watch.end().disturbed == ["the CPU quota of a control group was used up 3 times"]


def test_a_clock_that_moves_and_what_holds_it_back(tmp_path: Path) -> None:
    throttled = "sys/devices/platform/soc/soc:firmware/get_throttled"
    lay(tmp_path, {f"{POLICY}/scaling_cur_freq": "2400000\n", f"{POLICY}/scaling_governor": "ondemand\n", throttled: "0\n"})
    lay(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "61000", "sys/class/thermal/thermal_zone0/type": "cpu"})
    watch = Watch([1], tmp_path)
    watch.begin()
    assert watch.sample() == {"governor": "ondemand", "mhz": 2400.0, "temperature_c": 61.0, "throttled": [], "load": None}
    lay(tmp_path, {f"{POLICY}/scaling_cur_freq": "1500000\n", throttled: "80008\n", "sys/class/thermal/thermal_zone0/temp": "85000"})
    assert watch.sample()["mhz"] == 2400.0, "within a second it is not looked at again"
    seen = watch.end()
    assert seen.during == {"governor": "ondemand", "mhz": 1500.0, "temperature_c": 85.0, "throttled": ["soft temperature limit"], "load": None}
    assert seen.disturbed == ["held back: soft temperature limit", "the clock moved between 1500 and 2400 MHz"]


def test_an_event_that_came_and_went_is_told(tmp_path: Path) -> None:
    count = "sys/class/hwmon/hwmon0/oc3_event_cnt"
    lay(tmp_path, {count: "17"})
    watch = Watch([1], tmp_path)
    watch.begin()
    lay(tmp_path, {count: "18"})
    assert watch.end().disturbed == ["held back for a moment: over-current oc3"]


def test_energy_of_rapl_with_a_counter_that_turns_over(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    lay(tmp_path, {f"{zone}/energy_uj": "900000000", f"{zone}/max_energy_range_uj": "1000000000", "sys/class/powercap/intel-rapl:0:0/energy_uj": "1"})
    energy = Energy(tmp_path)
    energy.begin()
    lay(tmp_path, {f"{zone}/energy_uj": "990000000", "sys/class/powercap/intel-rapl:0:0/energy_uj": "9000000"})
    energy.sample()
    lay(tmp_path, {f"{zone}/energy_uj": "10000000"})
    assert energy.end() == (pytest.approx(110.0), None)


def test_the_platforms_counter_has_the_packages_in_it(tmp_path: Path) -> None:
    package, platform = "sys/class/powercap/intel-rapl:0", "sys/class/powercap/intel-rapl:1"

    def counted(**joules: float) -> float | None:
        zones = {"package": package, "psys": platform}
        energy = Energy(tmp_path)
        energy.begin()
        lay(tmp_path, {f"{zones[name]}/energy_uj": str(round(value * 1e6)) for name, value in joules.items()})
        return energy.end()[0]

    lay(tmp_path, {f"{platform}/name": "psys", f"{platform}/energy_uj": "0"})
    assert counted(psys=3) == pytest.approx(3.0)
    lay(tmp_path, {f"{package}/name": "package-0", f"{package}/energy_uj": "0"})
    assert counted(psys=6, package=2) == pytest.approx(2.0)


def test_what_a_sensor_says_before_the_work_is_no_part_of_it(tmp_path: Path) -> None:
    power = "sys/class/hwmon/hwmon1/power1_input"
    lay(tmp_path, {power: "2000000"})
    energy, began = Energy(tmp_path), time.monotonic()
    energy.begin()
    lay(tmp_path, {power: "6000000"})
    time.sleep(0.2)
    joules, _ = energy.end()
    assert joules is not None
    assert 6 * 0.2 <= joules <= 6 * (time.monotonic() - began)


def test_energy_of_a_counter_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir(parents=True)  # whoever runs this may be root, who reads any file
    energy = Energy(tmp_path)
    energy.begin()
    assert energy.end() == (None, "RAPL is there, and this user may not read it")


def test_energy_of_the_rail_that_feeds_the_others(tmp_path: Path) -> None:
    rails = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "2000", "in2_input": "5000", "curr2_input": "400"}
    lay(tmp_path, {f"sys/class/hwmon/hwmon1/{name}": text for name, text in rails.items()})
    energy, began = Energy(tmp_path), time.monotonic()
    energy.begin()
    time.sleep(0.2)
    joules, unknown = energy.end()
    assert unknown is None and joules is not None
    assert 10 * 0.2 <= joules <= 10 * (time.monotonic() - began)


def test_the_processor_time_of_a_tree_is_counted_and_so_is_its_memory() -> None:
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        mine = conditions.own_s([os.getpid()])
        assert conditions.own_s([os.getpid(), 1 << 22]) - mine >= 0.25
        peak = conditions.peak_bytes(child.pid)
        assert peak is not None and 1 << 20 < peak < 1 << 30
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()
        child.stdout.close()
    assert conditions.peak_bytes(1 << 22) is None


@pytest.mark.parametrize("alone", [True, False])
def test_the_time_of_a_child_that_has_ended_stays_counted(*, alone: bool) -> None:
    processes = [os.getpid()] if alone else [os.getpid(), 1 << 22]
    before = conditions.own_s(processes)
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert conditions.own_s(processes) - before >= 0.4
