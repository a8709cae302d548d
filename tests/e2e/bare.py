"""A bare Debian as a device: python3 and sshd, no pip, no numpy, no way out. Root's, since it gets namespaces of its own.

with bare_device("b") as device:                           # bare_device("c", "--arch", "arm64"): the same on aarch64, emulated
    device.ssh("python3 -V")
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("testbed") / "ssh-device"

needs_bare = [
    pytest.mark.bare,
    pytest.mark.e2e,
    pytest.mark.timeout(900),  # the first one on a machine installs a Debian
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mmdebstrap"), reason="needs root and mmdebstrap: make test BARE=1"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu"),
]


needs_arm64 = [
    pytest.mark.arm64,
    pytest.mark.e2e,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("qemu-aarch64-static"), reason="needs root and qemu-user-static: make test ARM64=1"),
]


@dataclass(frozen=True)
class BareDevice:
    name: str
    host: str
    config: Path
    state: str

    def ssh(self, command: str, *, user: str = "", check: bool = True) -> str:
        """What a command says, on both streams."""
        argv = ["ssh", "-F", self.config, *(["-l", user] if user else []), self.name, command]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def off(self) -> None:
        """No process is left, and nobody answers."""
        subprocess.run([TOOL, "off", self.name], check=True, env={**os.environ, "EDGE_TESTBED_STATE": self.state}, timeout=120)

    def reboot(self) -> None:
        """As if the plug were pulled."""
        subprocess.run([TOOL, "reboot", self.name], check=True, env={**os.environ, "EDGE_TESTBED_STATE": self.state}, stdout=subprocess.DEVNULL, timeout=120)


@contextmanager
def bare_device(name: str, *options: str) -> Iterator[BareDevice]:
    with bare_devices([name], *options) as (device,):
        yield device


@contextmanager
def bare_devices(names: Sequence[str], *options: str) -> Iterator[list[BareDevice]]:
    """Several at once, each with an address of its own."""
    with tempfile.TemporaryDirectory(prefix="bare-", ignore_cleanup_errors=True) as state:
        environment = {**os.environ, "EDGE_TESTBED_STATE": state}
        started = subprocess.run([TOOL, "start", *names, "--bare", "--json", *options], check=True, env=environment, stdout=subprocess.PIPE, timeout=800)
        try:
            found = [json.loads(line) for line in started.stdout.splitlines()]
            yield [BareDevice(one["name"], one["host"], Path(one["config"]), state) for one in found]
        finally:
            subprocess.run([TOOL, "stop", *names], check=True, env=environment, timeout=120)
