"""The user's evaluation here, the model on a device over a real OpenSSH server: bit for bit what onnxruntime answers there by hand."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk import deploying, device, evaluation, graph, profiles, remote, setting_up, tuning
from edgesdk.errors import DeviceError, EvaluationError, ModelError
from edgesdk.source import model_files
from tests import digits
from tests.bundles import answer, inputs, write_bundle
from tests.e2e.conftest import Bench
from tests.e2e.test_ssh_deploy import Cutter
from tests.sdk.small_models import DATA

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the profile is x86-cpu")]

X86 = profiles.find("x86-cpu")


def lean(profile: profiles.Profile) -> profiles.Profile:
    """As by hand."""
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"intra_op_threads": 1, "graph_optimization": "basic"})})


# No line of ours: what somebody would type on the device.
BY_HAND = """
import base64, io, sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = np.load(sys.argv[2])["image"]
answers = io.BytesIO()
np.savez(answers, *[session.run(None, {"image": feed[None]})[0] for feed in feeds])
print("answers:" + base64.b64encode(answers.getvalue()).decode())
"""


def by_hand(host: str, model: Path, images: Path, python: tuple[str, ...] = ("python3",)) -> list[bytes]:
    with device.connect(host) as there:
        for path in (model, images):
            assert there._transport.run(["sh", "-c", f"cat > by-hand-{path.name}"], stdin=[path.read_bytes()]).returncode == 0
        done = there._transport.run([*python, "-c", BY_HAND, *(f"by-hand-{path.name}" for path in (model, images))], most_bytes=64 << 20)
    assert done.returncode == 0, done.stderr
    with np.load(io.BytesIO(base64.b64decode(done.stdout.partition(b"answers:")[2]))) as archive:
        return [archive[f"arr_{index}"].tobytes() for index in range(len(archive.files))]


def test_the_score_is_that_of_the_devices_own_onnxruntime_by_hand_bit_for_bit(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start()
    model = DATA / "resnet20_fashion.onnx"
    with np.load(DATA / "fashion.npz") as archive:
        images = archive[archive.files[0]][:60].astype(np.float32).reshape(60, 1, 28, 28)
    np.savez(tmp_path / "images.npz", image=images)
    kept = tmp_path / "answers"
    (tmp_path / "judge.py").write_text(
        "import pathlib\nimport numpy as np\n\n\ndef judge(run):\n"
        f"    answers = [next(iter(run({{'image': image[None]}}).values())) for image in np.load({str(tmp_path / 'images.npz')!r})['image']]\n"
        f"    pathlib.Path({str(kept)!r}).write_bytes(b''.join(answer.tobytes() for answer in answers))\n"
        "    return [float(answer.max()) for answer in answers]\n"
    )
    found = evaluation.evaluate(model, lean(X86), evaluate=f"{tmp_path / 'judge.py'}:judge", on="pi", against=model)
    expected = by_hand("pi", model, tmp_path / "images.npz")
    assert len(expected) == 60
    assert kept.read_bytes() != b"".join(expected)  # the original's, which was asked last, and runs as this machine likes
    found = evaluation.evaluate(model, lean(X86), evaluate=f"{tmp_path / 'judge.py'}:judge", on="pi")
    assert kept.read_bytes() == b"".join(expected)
    scores = np.array([np.frombuffer(one, np.float32).max() for one in expected], np.float64)
    assert found.score == scores.mean()
    assert (found.samples, found.asked, found.host, found.provider, found.threads) == (60, 60, "pi", "CPUExecutionProvider", 1)
    assert list((pi.agent_home / "races").iterdir()) == []


def test_a_deployed_model_by_name_and_the_verb(bench: Bench, tmp_path: Path) -> None:
    bench.start()
    digits.write(tmp_path)
    assert deploying.attempt("pi", write_bundle(tmp_path / "b", release=2)).worked
    (tmp_path / "judge.py").write_text(
        "import numpy as np\nfrom tests.bundles import answer, inputs\n\n\ndef judge(run):\n"
        "    return [float(np.allclose(run({'x': x})['y'], answer(x), atol=1e-3)) for x in inputs(8)]\n\n\n"
        "def wrong(run):\n    return run({'x': np.ones(1)})\n\n\ndef broken(run):\n    return 1 / 0\n"
    )
    judge = f"{tmp_path / 'judge.py'}:"
    found = evaluation.evaluate("toy", evaluate=judge + "judge", on="pi")
    assert (found.name, found.release, found.score, found.settings) == ("toy", 2, 1.0, None)
    assert np.isfinite(answer(inputs(8)[0])).all()
    argv = ["evaluate", "model.onnx", "-p", "x86-cpu", "--on", "pi", "--evaluate", "evaluation.npz", "--against", "model.onnx", "--json"]
    done = subprocess.run([sys.executable, "-m", "edgesdk.cli", *argv], cwd=tmp_path, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert (told["host"], told["against"]["lost"]) == ("pi", 0)
    assert told["score"] > 0.9
    with pytest.raises(ModelError, match=r"`pi` answers: the input `x` is float32 \[any, 8\], float64 \[1\] came"):
        evaluation.evaluate("toy", evaluate=judge + "wrong", on="pi")
    with pytest.raises(EvaluationError, match=r"ZeroDivisionError: division by zero \(judge.py, line 14\)"):
        evaluation.evaluate("toy", evaluate=judge + "broken", on="pi")
    with pytest.raises(DeviceError, match="nobody"):
        evaluation.evaluate("nobody", evaluate=judge + "judge", on="pi")


def test_a_connection_that_is_cut_is_opened_again_and_the_question_asked_once_more(bench: Bench) -> None:
    pi = bench.start()
    with device.connect("pi") as there:
        setting_up.set_up(there, (facts := there.facts()), setting_up.plan_set_up(facts))
    model = graph.load(DATA / "resnet8_mnist.onnx")
    size = sum(map(len, model_files(model).values()))
    feeds = {"image": np.random.default_rng(0).random((500, 1, 28, 28), np.float32)}  # 1.6 MB
    with Cutter(pi.port, after_bytes=size + 1_000_000) as cutter:
        with bench.config.open("a") as config:
            config.write(
                f"Host cut\n  HostName 127.0.0.1\n  Port {cutter.port}\n  HostKeyAlias [127.0.0.1]:{pi.port}\n  IdentityFile {bench.key}\n"
                f"  UserKnownHostsFile {bench.known_hosts}\n"
            )
        with remote.opened("cut", X86, model_files(model)) as there:
            first, second = there.run(feeds), there.run(feeds)
    assert cutter.connections == 2
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert list((pi.agent_home / "races").iterdir()) == []


def test_a_host_that_is_killed_leaves_no_process(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start()
    (tmp_path / "judge.py").write_text(
        "import time, numpy as np\n\n\ndef judge(run):\n    run({'image': np.ones((1, 1, 28, 28), np.float32)})\n"
        f"    open({str(tmp_path / 'asked')!r}, 'w').close()\n    time.sleep(60)\n"
    )
    argv = ["evaluate", str(DATA / "resnet8_mnist.onnx"), "-p", "x86-cpu", "--on", "pi", "--evaluate", f"{tmp_path / 'judge.py'}:judge"]
    with subprocess.Popen([sys.executable, "-m", "edgesdk.cli", *argv], stderr=subprocess.DEVNULL) as host:
        eventually(lambda: (tmp_path / "asked").exists() or host.poll() is not None)
        assert host.poll() is None
        assert running(pi.agent_home)
        host.kill()
    eventually(lambda: not running(pi.agent_home))


def running(home: Path) -> list[bytes]:
    """What answers for a host there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"answerer\0" + str(home).encode() in words:
            found.append(words)
    return found


def eventually(condition: Any) -> None:
    until = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_bundle_is_tuned_on_the_device_that_it_is_for(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly for a second: what is measured there is real, what is best is left to chance."""
    pi = bench.start()
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    stages: list[str] = []
    found = tuning.tune(write_bundle(tmp_path / "b"), on="pi", limit_s=1, output=tmp_path / "new", progress=lambda stage, *_: stages.append(stage))
    assert (found.name, found.release, found.host, found.profile, found.provider) == ("toy", 1, "pi", "x86-cpu", "CPUExecutionProvider")
    assert found.measured >= 1 and found.remembered == 0
    assert (tmp_path / "new").exists() == bool(found.settings)
    assert "try each setting" in stages
    (kept,) = (tmp_path / "cache" / "tuning").glob("*.jsonl")
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(lines) == 1 + found.measured
    assert (lines[0]["about"]["device"]["host"], lines[0]["about"]["onnxruntime"]) == ("pi", found.onnxruntime)
    assert list((pi.agent_home / "races").iterdir()) == []
