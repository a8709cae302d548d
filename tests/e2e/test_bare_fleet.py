"""A fleet of bare boards, two of them broken: the others are done, and a rollout that was killed goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import write_bundle
from tests.e2e.bare import BareDevice, bare_devices, needs_bare

pytestmark = needs_bare

BROKEN = {1: "has no python3", 4: "is it on, and in this network?"}


def fleet_of(boards: Sequence[BareDevice], folder: Path) -> None:
    """Their file and their ssh configuration. Two are broken: one lost its python3, one is off."""
    (folder / "fleet.toml").write_text("".join(f'[[devices]]\nhost = "{board.name}"\n' for board in boards))
    (folder / "config").write_text("".join(board.config.read_text() + "    ConnectTimeout 5\n" for board in boards))
    boards[1].ssh("chmod a-x /usr/bin/python3.*", user="root")
    boards[4].off()


def rollout(folder: Path, *options: str) -> list[str | Path]:
    return [sys.executable, "-m", "edgesdk.cli", "deploy", "--fleet", folder / "fleet.toml", folder / "bundle", *options, "--json"]


def killed_when(folder: Path, active: int, *options: str) -> None:
    """Run a rollout, and kill it as soon as so many devices are done."""
    with subprocess.Popen(rollout(folder, *options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            active -= ": active" in line
            if not active:
                process.send_signal(signal.SIGKILL)
                break
        process.stderr.read()


def activations(board: BareDevice) -> int:
    return board.ssh("cat .local/share/edge-agent/journal.jsonl").count('"activated"')


def assert_resumed(folder: Path, boards: Sequence[BareDevice], *options: str) -> list[Any]:
    """Kill it half-way and run it again: those that work are active, done once each, and the broken ones are named with their reasons."""
    killed_when(folder, (len(boards) - 2) // 2, *options)
    before = [entry["deployment"]["host"] for entry in json.loads((folder / "fleet.state.json").read_bytes())["devices"]]
    done = subprocess.run(rollout(folder, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    # One that was at it when its host was killed finished by itself: it is found to be so.
    worked = ["worked" if one["outcome"] in ("active", "unchanged") else one["outcome"] for one in found]
    assert worked == ["failed" if number in BROKEN else "worked" for number in range(len(boards))], [one["error"] for one in found]
    for number, reason in BROKEN.items():
        assert reason in " ".join(found[number]["error"].values())
        assert f"error: {boards[number].name}: failed:" in done.stderr
    assert "2 failed" in done.stderr
    assert ": probation" not in done.stderr, "a stage is no end"
    broken = {boards[number].name for number in BROKEN}
    assert f"{len(set(before) - broken)} of {len(boards)} were done by an earlier run" in done.stderr
    assert [activations(board) for number, board in enumerate(boards) if number not in BROKEN] == [1] * (len(boards) - 2), "nothing was done twice"
    return list(found)


def test_four_of_six_are_active_two_are_named_and_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "bundle")
    with bare_devices([f"board{number}" for number in range(6)]) as boards:
        fleet_of(boards, tmp_path)
        monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(tmp_path / "config"))
        assert_resumed(tmp_path, boards, "--parallel", "3")
