"""Candidates timed on a device over a real OpenSSH server, with what can go wrong on the way."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk import deploying, device, profiles, setting_up
from edgesdk.errors import ConnectionFailed, DeviceError, ModelError
from edgesdk.inspection import inspect
from edgesdk.race import Files, racing
from tests.bundles import answer, inputs, write_bundle
from tests.e2e.conftest import Bench
from tests.e2e.test_ssh_deploy import Cutter
from tests.sdk.small_models import DATA

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the profile is x86-cpu")]

X86 = profiles.find("x86-cpu")
X = [{"x": np.ones((32, 400), np.float32)}]


def products(count: int, *, seed: int = 0) -> Files:
    """A model of so many matrix products, its weights in a file of their own where they are many."""
    matrices = np.random.default_rng(seed).standard_normal((count, 400, 400), np.float32) / 20
    nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", f"w{i}"], [f"x{i + 1}" if i + 1 < count else "y"]) for i in range(count)]
    weights = [numpy_helper.from_array(matrix, f"w{i}") for i, matrix in enumerate(matrices)]
    for i, weight in enumerate(weights):
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": i * matrices[0].nbytes, "length": matrices[0].nbytes}.items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, str(value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 400]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "products", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return {"model.onnx": model.SerializeToString(), "weights.bin": matrices.tobytes()}


def test_against_itself_a_bigger_one_and_broken_ones(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start()
    small, big = products(2), products(10)
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).worked
    with racing("pi", X86, X) as racer:
        same = racer.race(small, small, limit_s=1)
        assert same.low < 1.1 and same.high > 0.9
        assert same.runs >= 5 and same.providers == ("CPUExecutionProvider",) * 2
        slower = racer.race(small, big, limit_s=1)
        assert slower.high < 0.7
        faster = racer.race(big, small, limit_s=1)
        assert faster.faster and faster.speedup > 1.5
        lean = X86.model_copy(update={"runtime": X86.runtime.model_copy(update={"intra_op_threads": 1, "memory_arena": False})})
        itself = racer.race(big, big, limit_s=0.1, profiles=(X86, lean))  # the same files as two profiles want them
        assert itself.threads_after == 1 and itself.runs >= 5 and itself.onnxruntime == racer.onnxruntime
        for broken in ({"model.onnx": b"noise"}, {"model.onnx": small["model.onnx"]}):  # no protobuf; without its weights
            with pytest.raises(ModelError, match="`pi` cannot run the second of two models"):
                racer.race(small, broken, limit_s=1)
        with pytest.raises(DeviceError, match="`pi` cannot run the first of two models"):
            racer.race({"model.onnx": b"noise"}, small, limit_s=1)
        with device.connect("pi") as there:  # what is active answers all the while
            np.testing.assert_allclose(there.infer("toy", {"x": inputs(8)[0]}).arrays()["y"], answer(inputs(8)[0]), atol=1e-3)
    assert list((pi.agent_home / "races").iterdir()) == []
    with device.connect("pi") as there:
        assert [model.state for model in there.status().models] == ["active"]


def test_inspect_says_what_ran_where_on_a_device(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start()
    model = DATA / "mobilenet_fashion.onnx"
    found = inspect(model, on="pi", time_kernels=True)
    assert found.placement is not None
    assert (found.placement.host, found.placement.provider, found.placement.fell) == ("pi", "CPUExecutionProvider", ())
    assert "nodes on CPU" in found.placement.nodes
    assert 1 <= len(found.kernels) <= 10
    assert all(kernel.provider == "CPUExecutionProvider" for kernel in found.kernels)
    assert {kernel.operator for kernel in found.kernels} & {"Conv", "FusedConv", "ReorderInput"}
    assert list((pi.agent_home / "races").iterdir()) == []
    broken = tmp_path / "strange.onnx"
    node = helper.make_node("TopK", ["x", "k"], ["y", "z"])  # runs here, with what is asked here
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy")
    k = numpy_helper.from_array(np.array([3], np.int64), "k")
    broken.write_bytes(
        helper.make_model(helper.make_graph([node], "top", [x], [y], [k]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    with racing("pi", X86, [{"x": np.ones(2, np.float32)}]) as racer, pytest.raises(ModelError, match="`pi` cannot run the model"):
        racer.look({"model.onnx": broken.read_bytes()}, runs=1)


def test_a_bare_device_is_set_up_first(bench: Bench) -> None:
    bench.start()
    with racing("pi", X86, X) as racer:
        assert racer.facts.agent is None
        assert racer.race(products(2), products(3), limit_s=0.2).runs >= 5


def test_a_connection_that_is_cut_is_opened_again(bench: Bench) -> None:
    """Within the transfer of the second model."""
    pi = bench.start()
    with device.connect("pi") as there:
        setting_up.set_up(there, (found := there.facts()), setting_up.plan_set_up(found))
    first, second = products(2), products(4, seed=1)
    with Cutter(pi.port, after_bytes=len(first["weights.bin"]) + len(second["weights.bin"]) // 2) as cutter:
        with bench.config.open("a") as config:
            config.write(
                f"Host cut\n  HostName 127.0.0.1\n  Port {cutter.port}\n  HostKeyAlias [127.0.0.1]:{pi.port}\n  IdentityFile {bench.key}\n"
                f"  UserKnownHostsFile {bench.known_hosts}\n"
            )
        with racing("cut", X86, X) as racer:
            assert racer.race(first, second, limit_s=0.3).runs >= 5
    assert cutter.connections == 2
    assert list((pi.agent_home / "races").iterdir()) == []


def test_what_a_host_that_is_gone_for_good_left_goes_when_the_agent_starts(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi = bench.start()
    monkeypatch.setattr(device.Device, "end_race", lambda *_: (_ for _ in ()).throw(ConnectionFailed("gone")))
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).worked
    with racing("pi", X86, X) as racer:
        racer.race(products(2), products(2), limit_s=0.1)
    left = pi.agent_home / "races" / racer.session
    assert left.is_dir()
    with device.connect("pi") as there:
        os.kill(there.status().agent.pid or 0, signal.SIGKILL)
        until = time.monotonic() + 30
        while [model.state for model in there.status().models] != ["active"]:  # any verb starts it again
            assert time.monotonic() < until
            time.sleep(0.1)
    assert not left.exists()
