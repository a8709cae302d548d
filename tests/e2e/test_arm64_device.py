"""An aarch64 board with python3 and sshd only, emulated: bare to first answer in one command, and without any network but the cable to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_agent.bundle import Layout
from edgesdk import agent_package, device, graph, profiles, remote
from edgesdk.source import model_files, runner
from tests import digits
from tests.e2e.bare import BareDevice, bare_device, needs_arm64
from tests.e2e.test_ssh_evaluate import by_hand, lean

pytestmark = needs_arm64

EDGESDK = (sys.executable, "-m", "edgesdk.cli")


@pytest.fixture(scope="module")
def board() -> Iterator[BareDevice]:
    """With the cores of a Raspberry Pi 5: they have the dot product that int8 is made for."""
    with bare_device("arm", "--arch", "arm64", "--core", "cortex-a76") as bare:
        yield bare


@pytest.fixture
def folder(tmp_path: Path, board: BareDevice, monkeypatch: pytest.MonkeyPatch) -> Path:
    digits.write(tmp_path)
    monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(board.config))
    return tmp_path


def told(folder: Path, *argv: str | Path, before: tuple[str | Path, ...] = ()) -> dict[str, object] | list[dict[str, object]]:
    """What a command says as JSON."""
    done = subprocess.run([*before, *EDGESDK, *argv, "--json"], cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def package(folder: Path, profile: str, *options: str, before: tuple[str | Path, ...] = ()) -> None:
    settings = ("--calibration", "calibration.npz", "--evaluate", "evaluation.npz", "--name", profile, "-o", f"bundles/{profile}", "--quick", *options)
    told(folder, "package", "model.onnx", "--profile", profile, *settings, before=before)


def assert_agrees(folder: Path, profile: str) -> None:
    """On images that nobody calibrated with: the board's answers are this machine's within the tolerance that the bundle states."""
    with Layout.open(folder / "bundles" / profile) as layout:
        manifest = layout.manifests()[profile]
        description = layout.description(manifest)
        (folder / "shipped.onnx").write_bytes(layout.blob(manifest.layer("model.onnx").digest))
    here = runner(graph.load(folder / "shipped.onnx"))
    pixels, _ = digits.images()
    (name,) = description.outputs
    with device.connect("arm") as pi:
        assert pi.infer(profile).agrees, "the golden answer"
        for at in (200, 400, 600):
            feeds = {"image": pixels[at : at + 1]}
            difference = np.abs(pi.infer(profile, feeds).arrays()[name.name] - here(feeds)[name.name]).max()
            assert difference <= description.tolerance[name.name]


def assert_evaluated_there(folder: Path, board: BareDevice) -> None:
    """What the board answers to an evaluation is, bit for bit, what its onnxruntime answers by hand."""
    images = digits.images()[0][:8]
    np.savez(folder / "images.npz", image=images)
    runtime = board.ssh("echo $HOME/.local/share/edge-agent/runtime/*-glibc").strip()
    expected = by_hand("arm", folder / "model.onnx", folder / "images.npz", ("env", f"PYTHONPATH={runtime}", "python3"))
    model = graph.load(folder / "model.onnx")
    with remote.opened("arm", lean(profiles.find("arm-cpu")), model_files(model)) as there:
        assert [next(iter(there.run({"image": image[None]}).values())).tobytes() for image in images] == expected


def assert_measured(folder: Path, board: BareDevice) -> None:
    """As long as it takes under emulation: the figures are of no use, that they come and what they are of is what counts."""
    bench = told(folder, "bench", "arm", "arm-cpu", "--limit-s", "1")
    assert isinstance(bench, dict)
    assert (bench["host"], bench["via"], bench["provider"], len(bench["restarts"])) == ("arm", "agent", "CPUExecutionProvider", 5)
    looked = told(folder, "inspect", "model.onnx", "--on", "arm", "--profile-ops")
    assert isinstance(looked, dict)
    assert board.ssh("ls .local/share/edge-agent/races") == "", "what was sent is gone"


def test_one_command_takes_a_bare_board_to_its_first_answer(folder: Path, board: BareDevice) -> None:
    assert board.ssh("uname -m; ls .local/share/edge-agent 2>/dev/null", check=False) == "aarch64\n"
    package(folder, "arm-cpu")
    (deployed,) = told(folder, "deploy", "arm", "bundles/arm-cpu")
    assert deployed["outcome"] == "active" and deployed["first_answer_ms"]
    assert_agrees(folder, "arm-cpu")
    assert_evaluated_there(folder, board)
    assert_measured(folder, board)

    package(folder, "raspberry-pi-5")  # int8: its answers differ between instruction sets, and not by more than it says
    (deployed,) = told(folder, "deploy", "arm", "bundles/raspberry-pi-5", "--as-profile", "raspberry-pi-5")
    assert deployed["outcome"] == "active"
    assert_agrees(folder, "raspberry-pi-5")

    (again,) = told(folder, "deploy", "arm", "bundles/arm-cpu")
    assert (again["outcome"], again["bytes_sent"]) == ("unchanged", 0)
    told(folder, "teardown", "arm", "--yes")


def test_nothing_but_the_cable_to_the_board_is_needed(folder: Path, board: BareDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Package and deploy in a network namespace that reaches the board and nothing else; strace shows that nothing else is tried."""
    with device.connect("arm") as pi:
        wheels = agent_package.runtime_wheels(pi.facts(), agent_package.OLDEST_ONNXRUNTIME)
    house = folder / "wheelhouse"
    house.mkdir()
    for wheel in wheels:
        shutil.copy(wheel, house)
    monkeypatch.setenv("EDGESDK_CACHE", str(folder / "empty"))
    with cable(board) as (space, address):
        config = folder / "config"
        known = board.config.read_text()
        config.write_text(re.sub(r"HostName .*", f"HostName {address}\n    HostKeyAlias {board.host}", known))
        monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(config))

        def traced(name: str) -> tuple[str | Path, ...]:
            return ("ip", "netns", "exec", space, "strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", folder / name)

        package(folder, "arm-cpu", before=traced("package.trace"))
        (deployed,) = told(folder, "deploy", "arm", "bundles/arm-cpu", "--wheelhouse", str(house), before=traced("deploy.trace"))
        assert deployed["outcome"] == "active"
        assert reached(folder / "package.trace") == set()
        assert reached(folder / "deploy.trace") == {(address, 22)}
        told(folder, "teardown", "arm", "--yes", before=("ip", "netns", "exec", space))


def reached(trace: Path) -> set[tuple[str, int]]:
    """Every address of the internet that a program wanted to talk to, datagrams included."""
    text = trace.read_text(errors="replace")
    assert "AF_INET6" not in text
    return {(address, int(port)) for port, address in re.findall(r'sa_family=AF_INET, sin_port=htons\((\d+)\), sin_addr=inet_addr\("([^"]+)"\)', text)}


@contextmanager
def cable(board: BareDevice) -> Iterator[tuple[str, str]]:
    """A network namespace with one wire, to the board: its name, and the board's address there."""
    number = board.host.split(".")[2]
    space, inside, here, there = f"gap{number}", f"edge{number}", f"10.213.{number}.1", f"10.213.{number}.2"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", space)
    try:
        ip("link", "add", "wire", "netns", space, "type", "veth", "peer", "name", "wire", "netns", inside)
        for name, address in ((space, here), (inside, there)):
            ip("-n", name, "address", "add", f"{address}/30", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield space, there
    finally:
        ip("netns", "del", space)
