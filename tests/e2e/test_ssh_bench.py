"""A model measured over a real OpenSSH server: a file that comes and goes, a deployed one, and Ctrl-C in the middle of a long run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgesdk import deploying, device, timing
from edgesdk.errors import DeviceError
from tests.bundles import write_bundle
from tests.e2e.conftest import Bench
from tests.sdk.small_models import DATA
from tests.sdk.test_interrupts import START

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu")]


def test_a_file_comes_and_goes_and_a_deployed_model_is_asked_there(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RESTART_S", 0.2)
    pi = bench.start()
    found = timing.bench("pi", DATA / "resnet8_mnist.onnx", limit_s=0.1)
    assert (found.host, found.via, len(found.restarts), found.provider) == ("pi", "session", 5, "CPUExecutionProvider")
    assert list((pi.agent_home / "races").iterdir()) == [], "what was sent is gone"
    with pytest.raises(DeviceError, match="no model `toy` is active on `pi`, and there is no file or bundle `toy` here"):
        timing.bench("pi", "toy", limit_s=0.1)
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).worked
    with pytest.raises(DeviceError, match="no model `top` is active") as caught:
        timing.bench("pi", "top", limit_s=0.1)
    assert caught.value.hint == "active there: toy"
    found = timing.bench("pi", "toy", limit_s=0.1)
    assert (found.name, found.release, found.via, found.inputs.source) == ("toy", 1, "agent", "golden")
    with device.connect("pi") as there:
        (model,) = there.report().models
        assert model.count >= sum(one.runs + one.warmup_runs for one in found.restarts)
        assert model.digest == found.digest
        assert [one.state for one in there.status().models] == ["active"]


@pytest.mark.slow
def test_ctrl_c_brings_what_the_device_has_by_then_and_leaves_nothing_there(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start()
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).worked
    argv = [sys.executable, "-c", START, "bench", "pi", "toy", "--sustained", "20m", "--json"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.read(1) == "!"
        with device.connect("pi") as there:
            before, until = there.report().models[0].count, time.monotonic() + 60
            while there.report().models[0].count < before + 20_000 and time.monotonic() < until:
                time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, said
    told = json.loads(out)
    assert (told["stopped"], told["via"], told["host"]) == ("interrupted", "agent", "pi")
    assert sum(window["runs"] for window in told["curve"]) == told["histogram"]["count"] > 0
    assert "Traceback" not in said
    assert list((pi.agent_home / "races").iterdir()) == []
