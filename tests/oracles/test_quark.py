"""AMD Quark, the DPU's own quantizer, finds nothing to move in our files, and its simulation gives the same integers: `make test-quark`."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgesdk import fixed_point, graph, sampling
from edgesdk.graph import Feeds, Model
from tests import digits
from tests.sdk.small_models import DATA
from tests.sdk.test_fixed_point import LAYERS, for_the_dpu

PYTHON = Path(__file__).parents[2] / ".venv-quark" / "bin" / "python"
TRAINED = ("resnet8_mnist", "resnet20_fashion", "mobilenet_fashion")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not PYTHON.exists(), reason="AMD Quark lives in an environment of its own: `make test-quark`")
def test_quark_agrees(tmp_path: Path) -> None:
    written = {}
    for number, (name, (model, feeds)) in enumerate(files().items()):
        path = tmp_path / f"{number}.onnx"
        graph.save_as(model, path)
        np.savez(path.with_suffix(".npz"), **feeds)
        written[path.stem] = name, model, feeds
    script = Path(__file__).with_name("quark") / "simulate.py"
    done = subprocess.run([PYTHON, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    moved = json.loads(done.stdout.splitlines()[-1])
    assert moved.keys() == written.keys()
    for stem, (name, model, feeds) in written.items():
        assert (name, moved[stem]) == (name, [])
        ours = fixed_point.evaluate(model, feeds)
        with np.load(tmp_path / f"{stem}.simulated.npz") as theirs:
            assert set(theirs.files) == ours.keys()
            for tensor, integers in ours.items():
                np.testing.assert_array_equal(integers, theirs[tensor], err_msg=f"{name}: {tensor}")


def files() -> dict[str, tuple[Model, Feeds]]:
    """Every layer of test_fixed_point and the trained models, with a feed each."""
    made = {}
    for name, model in LAYERS.items():
        samples = sampling.generated(model, 2)
        made[name] = for_the_dpu(model, samples), next(iter(samples))
    pixels, _ = digits.images()
    for name in TRAINED:
        model = graph.load(DATA / f"{name}.onnx")
        samples = sampling.of([{"image": pixel[None]} for pixel in pixels[:4]], model)
        made[name] = for_the_dpu(model, samples), next(iter(samples))
    return made
