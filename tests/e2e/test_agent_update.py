"""A new agent that does not run, sent over a real OpenSSH server: the device goes on with the one before, and the host says so."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from edge_agent.bundle import digest_of
from edgesdk import agent_package, deploying, device
from edgesdk.agent_package import AgentPackage
from edgesdk.errors import DeviceError
from tests.bundles import write_bundle
from tests.e2e.conftest import Bench

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu")]

REAL = agent_package.build()


def other(name: str, more: bytes) -> AgentPackage:
    """The agent with something added to one of its modules."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(REAL.data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(info, old.read(info) + (more if info.filename == f"edge_agent/{name}.py" else b""))
    return AgentPackage(digest_of(buffer.getvalue()), buffer.getvalue())


@pytest.mark.parametrize("module", ["__main__", "supervisor"])
def test_an_agent_that_cannot_be_imported_is_given_up_and_the_next_one_taken(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    bench.start()
    first, second = write_bundle(tmp_path / "1"), write_bundle(tmp_path / "2", release=2, seed=1)
    with device.connect("pi") as pi:
        assert deploying.deploy(pi, first).outcome == "active"
        monkeypatch.setattr(agent_package, "build", lambda: other(module, b"\nimport a_module_that_nobody_has\n"))
        with pytest.raises(DeviceError, match="the new agent does not run on `pi`: the one before it does, and answers"):
            deploying.deploy(pi, second)
        assert pi.infer("toy").agrees
        status = pi.status()
        assert status.agent.digest == REAL.name
        assert "did not start, or died" in (status.agent.problem or "")
        mended = other(module, b"\n# mended\n")
        monkeypatch.setattr(agent_package, "build", lambda: mended)
        assert deploying.deploy(pi, second).outcome == "active"
        assert (pi.status().agent.digest, pi.status().agent.problem) == (mended.name, None)
        pi.ask("stop")
