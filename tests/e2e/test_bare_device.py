"""A board with python3 and sshd only: every Python there finds the client, and a teardown leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesdk import deploying, device
from edgesdk.cli import app
from tests.bundles import inputs, write_bundle
from tests.e2e.bare import bare_device, needs_bare

pytestmark = needs_bare

WIDTH = 16
ASK = f"""
import sys
from edge_agent import Runtime, connect
import numpy
x = numpy.asarray({inputs(WIDTH)[0].tolist()!r}, numpy.float32)
with connect("toy") as there, Runtime("toy") as here:
    numpy.testing.assert_allclose(there(x)["y"], here(x)["y"], rtol=1e-5)
print(numpy.__file__, sys.path[0] or ".")
"""


def test_every_program_finds_the_client_and_a_teardown_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "toy", width=WIDTH)
    with bare_device("bare") as bare:
        monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(bare.config))
        before = bare.ssh("find . -type f | sort")
        with device.connect("bare") as pi:
            assert deploying.deploy(pi, bundle).outcome == "active"
            # No numpy on the device but the agent's; a numpy of the program's own would come first.
            assert bare.ssh(f"cd / && python3 -c '{ASK}'").startswith("/home/pi/.local/share/edge-agent/runtime/")
            own = "mkdir -p own/numpy && echo __version__=0 > own/numpy/__init__.py && PYTHONPATH=own python3 -c"
            assert "own/numpy" in bare.ssh(f"{own} 'import edge_agent.home as h; h.use_numpy(); import numpy; print(numpy.__file__)'; rm -r own")
            environment = bare.ssh(
                "python3 -m venv --without-pip env && .local/share/edge-agent/bin/edge-agent client-path > env/lib/python3.11/site-packages/a.pth"
            )
            assert environment == ""
            assert bare.ssh(f"env/bin/python -c '{ASK}'").startswith("/home/pi/.local/share/edge-agent/runtime/")
            bare.ssh("rm -r env")
            asked = bare.ssh(".local/share/edge-agent/bin/edge-agent teardown", check=False)
            assert "say --yes if that is meant" in asked
            gone = pi.tear_down()
        assert gone.removed == ("/home/pi/.local/lib/python3.11/site-packages/edge-agent.pth", "/home/pi/.local/share/edge-agent")
        assert bare.ssh("find . -type f | sort") == before
        assert "edge_agent" not in bare.ssh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert "No module named" in bare.ssh("python3 -c 'import edge_agent'", check=False)
        with pytest.raises(SystemExit) as ended:
            app(["teardown", "bare", "--json"])
        assert ended.value.code == 0
