"""The agent as a service on a board with systemd: under its filters, over crashes and reboots, without a request lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgesdk import deploying, device
from tests.bundles import inputs, write_bundle
from tests.e2e.bare import BareDevice, bare_device, needs_bare

pytestmark = needs_bare

AGENT = "/home/pi/.local/share/edge-agent/bin/edge-agent"
STARTS = "/home/pi/.local/share/edge-agent/agent/starts"
WIDTH = 16
ASK = f"""
import time
from edge_agent import connect
from edge_agent.client import ClientError
import numpy
x = numpy.asarray({inputs(WIDTH)[0].tolist()!r}, numpy.float32)
end = time.monotonic() + 60
while True:
    try:
        with connect("toy") as model:
            print(model(x)["y"].shape, model.release)
            break
    except ClientError as error:
        if "try again soon" not in error.hint or time.monotonic() > end:  # the agent answers, the model is being loaded
            raise
        time.sleep(0.1)
"""


def reply(said: str) -> Any:
    """The framed line among what a command said."""
    (line,) = [line for line in said.splitlines() if line.startswith("edge-agent-reply: ")]
    return json.loads(line.partition(": ")[2])


def asked(board: BareDevice) -> str:
    return board.ssh(f"cd / && python3 -c '{ASK}'", user="pi").strip().rpartition(" ")[2]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with bare_device("board", "--systemd") as started:
        monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(started.config))
        with device.connect("board") as pi:
            assert deploying.deploy(pi, write_bundle(tmp_path / "one", width=WIDTH)).outcome == "active"
        yield started


def test_a_users_service_outlives_crash_and_reboot_and_answers_when_asked(board: BareDevice, tmp_path: Path) -> None:
    board.ssh("loginctl enable-linger pi", user="root")
    started = reply(board.ssh(f"{AGENT} service --install"))
    assert started["starts_at_boot"] is True
    board.ssh(f"kill -9 {started['pid']}")
    assert asked(board) == "1"
    for _ in range(7):  # systemd's own limit is five in ten seconds; the launcher's pauses are tried elsewhere
        board.ssh(f"rm -f {STARTS}; kill -9 $(systemctl --user show -P MainPID edge-agent); sleep 1.2")
    assert asked(board) == "1"
    board.ssh(f"{AGENT} stop")
    assert asked(board) == "1"  # the socket is systemd's: who asks has the agent started
    with device.connect("board") as pi:
        assert deploying.deploy(pi, write_bundle(tmp_path / "two", width=WIDTH, release=2, seed=1)).outcome == "active"
    board.reboot()
    assert asked(board) == "2"
    assert "active" in board.ssh("systemctl --user is-active edge-agent.service")
    gone = reply(board.ssh(f"{AGENT} teardown --yes"))
    assert [path for path in gone["removed"] if "systemd" in path]
    assert "edge-agent" not in board.ssh("systemctl --user list-units --all; find .config .local -name '*edge*'", check=False)


def test_a_service_of_the_system_works_under_its_filters(board: BareDevice, tmp_path: Path) -> None:
    started = reply(board.ssh(f"{AGENT} service --system --user pi --install", user="root"))
    assert asked(board) == "1"
    status = board.ssh(f"cat /proc/{started['pid']}/status", user="root")
    assert re.search(r"^Uid:\t1000", status, re.MULTILINE)
    for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"):
        assert line in status
    exposed = board.ssh("systemd-analyze security edge-agent.service | tail -1", user="root")
    assert float(re.findall(r"[0-9]+\.[0-9]", exposed)[0]) < 2.5, exposed
    with device.connect("board") as pi:  # load, trial, threads bound to cores, swap: all of it is allowed
        assert deploying.deploy(pi, write_bundle(tmp_path / "two", width=WIDTH, release=2, seed=1)).outcome == "active"
        assert asked(board) == "2"
        assert pi.rollback("toy").release == 1
        assert pi.status().models[0].state == "active"
    board.ssh("kill -9 $(systemctl show -P MainPID edge-agent)", user="root")
    assert asked(board) == "1"
    board.reboot()
    assert asked(board) == "1"
    # What the service may not do: write elsewhere, ask others, gain rights.
    denied = board.ssh("journalctl -b -u edge-agent --no-pager; tail -50 /home/pi/.local/share/edge-agent/agent.log", user="root")
    assert "Operation not permitted" not in denied, denied
    gone = reply(board.ssh(f"{AGENT} teardown --yes", user="root"))
    assert {"/etc/systemd/system/edge-agent.service", "/etc/systemd/system/edge-agent.socket"} <= set(gone["removed"])
    assert board.ssh("ls /home/pi/.local/share; systemctl list-units --all 'edge-agent*' --no-legend", user="root") == ""
