"""A fleet of real OpenSSH servers, one of them off, by the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import write_bundle
from tests.e2e.conftest import Bench

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu")]


def deploy(folder: Path, *arguments: str, code: int) -> tuple[list[Any], str]:
    command = [sys.executable, "-m", "edgesdk.cli", "deploy", "--fleet", "fleet.toml", "bundle", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == code, done
    return json.loads(done.stdout), done.stderr


def test_those_that_are_on_are_done_and_the_one_that_was_off_is_done_later(bench: Bench, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        bench.start(name)
    write_bundle(tmp_path / "bundle")
    (tmp_path / "fleet.toml").write_text("".join(f'[[devices]]\nhost = "{name}"\nlabels = ["hall-{len(name)}"]\n' for name in ("one", "off", "two", "three")))
    with bench.config.open("a") as config:
        config.write("Host off\n  HostName 127.0.0.1\n  Port 1\n")

    found, said = deploy(tmp_path, code=1)
    assert [(one["host"], one["outcome"]) for one in found] == [("one", "active"), ("off", "failed"), ("two", "active"), ("three", "active")]
    assert "error: off: failed:" in said
    assert "3 active, 1 failed" in said
    assert "one: active" in said

    command = [sys.executable, "-m", "edgesdk.cli", "report", "--fleet", "fleet.toml", "--html", "out.html", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout)
    (devices,) = (section for section in told["sections"] if section["key"] == "devices")
    assert {row["device"] for row in devices["rows"]} == {"one", "two", "three", "off"}
    assert devices["rows"][-1]["error"]
    assert "off told nothing" in (tmp_path / "out.html").read_text()

    bench.start("off")
    bench.config.write_text(bench.config.read_text().replace("Host off\n  HostName 127.0.0.1\n  Port 1\n", "", 1))
    found, said = deploy(tmp_path, code=0)
    assert [one["outcome"] for one in found] == ["active"] * 4
    assert "3 of 4 were done by an earlier run" in said
    assert not (tmp_path / "fleet.state.json").exists()

    found, _ = deploy(tmp_path, "--select", "hall-5", "--canary", "50%", code=0)
    assert [(one["host"], one["outcome"]) for one in found] == [("three", "unchanged")]
