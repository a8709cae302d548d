"""`edgesdk quantize`: one step alone, and what it says of itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import edgesdk
from edgesdk import constraints, graph, profiles
from edgesdk.cli import app
from edgesdk.errors import ModelError, SampleError
from tests import digits
from tests.sdk.small_models import DATA, build, node, numbers


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    pixels, _ = digits.images()
    np.savez(tmp_path / "calibration.npz", image=pixels[:64])
    return str(tmp_path / "calibration.npz")


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["quantize", *arguments], catch_exceptions=True)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("scheme", ["int8", "float16"])
def test_the_file_is_written_and_obeys_the_profile(tmp_path: Path, calibration: str, scheme: str) -> None:
    profile = "jetson-orin"
    output = tmp_path / "small.onnx"
    code, told, _ = run(str(digits.MODEL), "-p", profile, "-o", str(output), "--scheme", scheme, "--calibration", calibration, "--json")
    assert code == 0
    said = json.loads(told)
    assert said["violations"] == []
    assert said["snr_db"] > 20
    assert constraints.check(graph.load(output), profiles.find(profile)) == []


def test_the_python_function_is_the_same_step(tmp_path: Path, calibration: str) -> None:
    profile = edgesdk.find_profile("x86-cpu")
    made, said = edgesdk.quantize(digits.MODEL, profile, samples=calibration, method="percentile", exclude=["/0/Conv"])
    (first,) = [node for node in made.graph if node.name == "/0/Conv"]
    assert graph.constant(first.inputs[1]) is not None
    assert said["recipe"][-1]["settings"]["method"] == "percentile"


def test_recurrent_models_need_no_samples() -> None:
    made, said = edgesdk.quantize(DATA / "bilstm_vowels.onnx", edgesdk.find_profile("x86-cpu"), scheme="dynamic-int8")
    assert "com.microsoft::DynamicQuantizeLSTM" in graph.describe(made).operators
    assert said["violations"] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scheme", "int3"], "there is no scheme `int3`"),
        (["--method", "guess"], "there is no method `guess`"),
        ([], "int8 measures ranges on samples"),
        (["--scheme", "weights-int8", "--method", "mse"], "weights-int8 measures no ranges"),
        (["--scheme", "dynamic-int8", "--method", "mse"], "dynamic-int8 measures no ranges"),
        (["-p", "kria-kv260", "--method", "mse"], "`--method` does not choose"),
        (["--scheme", "float16", "--exclude", "/0/Conv"], "float16 leaves out operators, not nodes"),
        (["--scheme", "dynamic-int8", "--exclude", "/0/Con"], "did you mean `/0/Conv`?"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(tmp_path: Path, arguments: list[str], told: str) -> None:
    output = tmp_path / "small.onnx"
    code, _, error = run(str(digits.MODEL), "-p", "x86-cpu", "-o", str(output), *arguments)
    assert code != 0
    assert told in error
    assert not output.exists()


def test_samples_of_nought_tell_no_ranges(tmp_path: Path) -> None:
    model = build([node("MatMul", ["x", "w"], ["y"], name="fc")], inputs={"x": ("n", 4)}, outputs={"y": ("n", 3)}, weights={"w": numbers(4, 3)})
    graph.save_as(model, tmp_path / "fc.onnx")
    np.savez(tmp_path / "dummy.npz", x=np.zeros((8, 4), np.float32))
    with pytest.raises(SampleError, match="the samples tell no ranges"):
        edgesdk.quantize(tmp_path / "fc.onnx", edgesdk.find_profile("x86-cpu"), samples=str(tmp_path / "dummy.npz"))


def test_what_is_quantized_is_called_so(tmp_path: Path, calibration: str) -> None:
    run(str(digits.MODEL), "-p", "x86-cpu", "-o", str(tmp_path / "small.onnx"), "--calibration", calibration)
    with pytest.raises(ModelError) as again:
        edgesdk.quantize(tmp_path / "small.onnx", edgesdk.find_profile("x86-cpu"), samples=calibration)
    with pytest.raises(ModelError) as pruned:
        edgesdk.prune(tmp_path / "small.onnx", edgesdk.find_profile("x86-cpu"), edgesdk.Goal("macs", 0.5), samples=calibration)
    assert "is quantized already" in again.value.hint
    assert "prune the float model" in pruned.value.hint


@pytest.mark.parametrize(("target", "told"), [(".", "is a folder"), ("model.onnx/small.onnx", "no folder")])
def test_where_nothing_can_be_written_no_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, told: str) -> None:
    (tmp_path / "model.onnx").write_bytes(digits.MODEL.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgesdk.packaging.quantize", pytest.fail)
    code, _, error = run("model.onnx", "-p", "x86-cpu", "-o", target, "--scheme", "dynamic-int8")
    assert code == 1
    assert told in error


def test_folders_above_the_output_are_made(tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "small.onnx"
    code, _, error = run(str(DATA / "bilstm_vowels.onnx"), "-p", "x86-cpu", "-o", str(output), "--scheme", "dynamic-int8")
    assert (code, output.is_file()) == (0, True), error
