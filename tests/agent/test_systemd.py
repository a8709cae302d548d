"""What the agent owes systemd, without one: a socket that it was handed stays as it is, and the word that it is well is sent."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toys import Agent

from edge_agent import service, systemd
from edge_agent.connection import Connection

# As systemd does it: the descriptor is 3, and the process that runs afterwards is the one that was meant.
HAND_OVER = """import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", WATCHDOG_USEC=sys.argv[2], WATCHDOG_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "edge_agent", "serve"])"""


@pytest.fixture
def lent(tmp_path: Path) -> Iterator[tuple[Path, socket.socket, socket.socket]]:
    """An agent's folder with a socket that somebody else listens at; and where the agent says how it is."""
    home = tmp_path / "home"
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        listener.bind(str(home / "agent.sock"))
        listener.listen()
        told.bind(str(tmp_path / "notify"))
        told.settimeout(30)
        yield home, listener, told


def run_on(home: Path, listener: socket.socket, *, watchdog_us: int = 0) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "EDGE_AGENT_HOME": str(home), "NOTIFY_SOCKET": str(home.parent / "notify")}
    argv = [sys.executable, "-c", HAND_OVER, str(listener.fileno()), str(watchdog_us)]
    return subprocess.Popen(argv, env=environment, pass_fds=(listener.fileno(),))


@pytest.mark.e2e
def test_a_socket_that_was_lent_outlives_the_agent(lent: tuple[Path, socket.socket, socket.socket]) -> None:
    home, listener, told = lent
    pids = []
    for _ in range(2):
        process = run_on(home, listener)
        try:
            # Asked before it is there: the question waits in the socket.
            with Connection(home=home) as connection:
                pids.append(connection.request("GET", "/edge/alive").json()["pid"])
            assert told.recv(100) == b"READY=1"
            process.terminate()
            assert process.wait(30) == 0
            assert told.recv(100) == b"STOPPING=1"
        finally:
            process.kill()
            process.wait()
        assert (home / "agent.sock").is_socket()
    assert pids[0] != pids[1] == process.pid


@pytest.mark.e2e
def test_the_watchdog_hears_from_it(lent: tuple[Path, socket.socket, socket.socket]) -> None:
    home, listener, told = lent
    process = run_on(home, listener, watchdog_us=300_000)
    try:
        assert [told.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    finally:
        process.terminate()
        process.wait(30)


def test_what_is_meant_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.inherited(tmp_path) is None
    assert systemd.watchdog_s() is None
    assert "LISTEN_FDS" not in os.environ  # nor does a child take it for its own


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One that was set up, on a path that a unit file has to quote."""
    folder = tmp_path / 'it\'s 50% "home"'
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "edge-agent").write_text("#!/bin/sh\n")
    (folder / "bin" / "edge-agent").chmod(0o755)
    return folder


def test_drivers_keep_what_they_need(home: Path) -> None:
    processor = service.plan(home, user="pi", providers=["CPUExecutionProvider"]).service
    for provider in ("CUDAExecutionProvider", "VitisAIExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider"):
        driven = service.plan(home, user="pi", providers=[provider, "CPUExecutionProvider"]).service
        for key in ("PrivateDevices", "MemoryDenyWriteExecute", "ProtectClock", "DevicePolicy"):
            assert f"\n{key}=" in processor
            assert f"\n{key}=" not in driven
    assert "ProcSubset" not in processor
    lines = processor.splitlines()
    assert lines.index("SystemCallFilter=sched_setaffinity") > lines.index("SystemCallFilter=~@privileged @resources")
    assert "OOMPolicy=continue" in lines


def test_a_users_unit_asks_for_nothing_that_only_the_system_can(home: Path) -> None:
    units = service.plan(home, user=None, providers=["CPUExecutionProvider"])
    for key in ("User=", "ProtectSystem=", "PrivateDevices=", "IPAddressDeny=", "SocketUser=", "CapabilityBoundingSet="):
        assert f"\n{key}" not in units.service + units.socket
    assert "\nNoNewPrivileges=yes" in units.service
    assert units.folder == Path("~/.config/systemd/user").expanduser()


def test_there_is_no_service_without_a_program(tmp_path: Path) -> None:
    with pytest.raises(service.ServiceError, match=r"there is no .*/bin/edge-agent"):
        service.plan(tmp_path, user=None, providers=[])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
@pytest.mark.parametrize("providers", [["CPUExecutionProvider"], ["CUDAExecutionProvider"]])
def test_systemd_understands_the_units_and_finds_little_exposed(home: Path, tmp_path: Path, providers: list[str]) -> None:
    units = service.plan(home, user="daemon", group="daemon", providers=providers)
    (tmp_path / "edge-agent.service").write_text(units.service)
    (tmp_path / "edge-agent.socket").write_text(units.socket)
    verified = subprocess.run(["systemd-analyze", "verify", tmp_path / "edge-agent.service"], capture_output=True, text=True, check=False, timeout=60)
    assert "edge-agent" not in verified.stderr, verified.stderr
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=24", tmp_path / "edge-agent.service"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert judged.returncode == 0, judged.stdout


@pytest.mark.e2e
def test_the_units_are_shown_before_they_are_installed(agent: Agent, home: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "edge_agent", "service", "--system", "--user", "pi"],
        env={**agent.environment(), "EDGE_AGENT_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.startswith("# /etc/systemd/system/edge-agent.service\n")
    assert "User=pi" in shown
