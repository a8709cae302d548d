"""PP-OCRv4 recognition, 10 MB, dynamic shapes, opset 12, as it comes from its package: packaged for every profile that there is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgesdk import graph, passes, profiles, sampling
from edgesdk.source import runner
from tests.sdk.small_models import assert_same_function

REPOSITORY = Path(__file__).parents[2]
MODEL = "ch_PP-OCRv4_rec_infer.onnx"
ON_ITS_CORES = ("fpga-vitis", "kria-kv260")  # a quick search finds nothing for these, see docs/refused.md and `make suite`

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The line reader's folder with its model and samples."""
    folder = tmp_path_factory.mktemp("reader")
    for file in (REPOSITORY / "examples" / "line_reader").glob("*.py"):
        shutil.copy(file, folder)
    environment = {"EDGESDK_CACHE": str(REPOSITORY / ".cache")} | os.environ
    subprocess.run([sys.executable, "prepare.py"], cwd=folder, env=environment, check=True, capture_output=True)
    return folder


def test_simplifying_keeps_the_function(reader: Path) -> None:
    model = graph.load(reader / MODEL)
    slim = passes.apply([{"pass": name} for name in passes.SIMPLIFY], model)
    operators = graph.describe(slim).operators
    assert "BatchNormalization" not in operators
    assert operators["HardSwish"] == 28
    assert_same_function(model, slim, rtol=1e-3)
    expected, found = runner(model), runner(slim)
    for feeds in sampling.load(reader / "calibration.npz", model).first(4):
        (before,), (after,) = expected(feeds).values(), found(feeds).values()
        assert (before.argmax(-1) == after.argmax(-1)).all()


@pytest.mark.parametrize("profile", [name for name in profiles.names() if name not in ON_ITS_CORES])
def test_it_is_packaged_quickly_for_every_profile(reader: Path, tmp_path: Path, profile: str) -> None:
    settings = ["--calibration", "calibration.npz", "--evaluate", "evaluate.py:evaluate", "-o", str(tmp_path / "b"), "--name", "reader", "--quick", "--json"]
    command = [sys.executable, "-m", "edgesdk.cli", "package", MODEL, "-p", profile, *settings]
    done = subprocess.run(command, cwd=reader, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["violations"] == []
    assert told["accuracy"]["drop"] <= 0.01
    assert told["recipe"]


def test_what_keeps_no_budget_is_refused_and_leaves_nothing(reader: Path, tmp_path: Path) -> None:
    settings = ["--calibration", "calibration.npz", "--evaluate", "evaluate.py:evaluate", "-o", str(tmp_path / "b"), "--max-drop", "-1", "--quick", "--json"]
    command = [sys.executable, "-m", "edgesdk.cli", "package", MODEL, "-p", "x86-cpu", *settings]
    done = subprocess.run(command, cwd=reader, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be kept" in json.loads(done.stdout)["error"]["message"]
    assert list(tmp_path.iterdir()) == []
