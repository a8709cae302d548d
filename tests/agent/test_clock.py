"""A device whose clock is wrong: without a battery it says 1970 at each start, and jumps when somebody sets it."""

from __future__ import annotations

import calendar
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_agent import answered
from test_trust import Key, raw
from toys import Agent, linear, make, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (shutil.which("cc") and shutil.which("ssh-keygen")), reason="needs cc and ssh-keygen: apt-get install gcc libc6-dev openssh-client"),
]
NO_BATTERY, LATER = (1970, 1, 2, 0, 0, 0), (2037, 5, 1, 12, 0, 0)
# Between every process and its C library. Not libfaketime: 0.9.10 turns each sleep into EINVAL where the clock that measures is to go on as a kernel's does.
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long ahead(void) {
    char text[32] = {0};
    int file = open(getenv("CLOCK"), O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *kept) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (kept) *kept = found.tv_sec;
    return found.tv_sec;
}
"""


@dataclass
class Elsewhen(Agent):
    """All its processes see a clock that is so many seconds ahead as a file says; the one that measures is the kernel's."""

    folder: Path = field(default_factory=Path)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(self.folder / "clock.so"), "CLOCK": str(self.folder / "ahead"), "EDGE_AGENT_HOME": str(self.home)}

    def says(self, moment: tuple[int, ...]) -> None:
        fresh = self.folder / "ahead.new"
        fresh.write_text(str(round(calendar.timegm(moment) - time.time())))
        fresh.replace(self.folder / "ahead")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Elsewhen]:
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True)
    found = Elsewhen(tmp_path / "home", folder=tmp_path)
    found.says(NO_BATTERY)
    found.start()
    yield found
    found.stop()


def years(device: Elsewhen) -> list[str]:
    return [line["time"][:4] for line in device.journal() if line["event"] == "activated"]


def test_a_clock_that_jumps_orders_nothing_and_measures_nothing(device: Elsewhen, tmp_path: Path) -> None:
    for release, moment in ((1, NO_BATTERY), (2, LATER), (3, NO_BATTERY)):
        device.says(moment)
        assert device.activate(make(tmp_path / str(release), linear(release), release=release))["state"] == "done"
        assert answered(device) == 4 * release
    assert years(device) == ["1970", "2037", "1970"], "the clock was another one"
    for moment in (LATER, NO_BATTERY):  # whichever of the two was written later by the clock
        device.says(moment)
        older = device.activate(tmp_path / "2")
        assert (older["state"], "is older than 3" in older["error"]["message"]) == ("failed", True), older
    (told,) = device.ask("GET", "/edge/report/toy")["models"]
    assert 0 < told["latency_ms"]["max"] < 60_000, "no answer took 67 years, or less than nothing"
    device.stop()
    device.says(NO_BATTERY)
    device.start()
    wait_until(lambda: device.model("toy")["state"] == "active")
    assert (answered(device), device.model("toy")["release"]) == (12, "3")
    assert device.rollback("toy")["state"] == "done"
    assert answered(device) == 8


def test_what_waits_for_its_time_is_not_kept_waiting_by_a_jump(device: Elsewhen, tmp_path: Path) -> None:
    assert device.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    device.says(LATER)
    digest = device.send(make(tmp_path / "2", linear(2), release=2))
    assert device.job(device.ask("POST", "/edge/activate", {"digest": digest, "stage": True, "in_s": 4}))["state"] == "done"
    device.says(NO_BATTERY)  # by that clock it is due in 67 years
    assert answered(device) == 4
    wait_until(lambda: answered(device) == 8, 30)


def test_a_key_that_has_expired_is_no_good_in_1970_and_a_good_one_is(device: Elsewhen, tmp_path: Path) -> None:
    ana = Key(tmp_path, "ana")
    bundle = make(tmp_path / "1", linear(1))
    signature = ana.sign(raw(bundle)).decode()
    device.verb("trust", "--add", stdin=ana.line('valid-before="20200101Z"').encode())
    refused = device.activate(bundle, signature=signature)
    assert "expired on 2020-01-01" in refused["error"]["message"], refused
    (device.home / "trust" / "allowed_signers").unlink()
    device.verb("trust", "--add", stdin=ana.line('valid-after="20240101Z",valid-before="20900101Z"').encode())
    assert device.activate(bundle, signature=signature)["state"] == "done"
    assert answered(device) == 4
