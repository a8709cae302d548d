"""`edgesdk prune`: one step alone, what it says of itself, and a look before it."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import edgesdk
from edge_agent import probe
from edgesdk import constraints, costs, evidence, graph, passes, profiles, pruning, sampling, sparsity
from edgesdk.benchmark import Paired
from edgesdk.cli import app
from edgesdk.errors import ProjectError
from tests import digits
from tests.sdk.small_models import build, node, numbers


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    pixels, _ = digits.images()
    path = tmp_path_factory.mktemp("samples") / "calibration.npz"
    np.savez(path, image=pixels[:32])
    return str(path)


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["prune", str(digits.MODEL), *arguments], catch_exceptions=True)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("of", ["macs", "parameters"])
def test_no_more_stays_than_was_said(tmp_path: Path, calibration: str, of: str) -> None:
    output = tmp_path / "half.onnx"
    code, told, _ = run("-p", "raspberry-pi-5", "--calibration", calibration, "-o", str(output), f"--{of}", "0.5", "--json")
    assert code == 0
    said = json.loads(told)
    assert 0.3 * said[of]["before"] < said[of]["after"] <= 0.5 * said[of]["before"]
    assert said["parameters"]["after"] == graph.describe(graph.load(output)).parameters
    assert all(each["stay"] % 8 == 0 for each in said["channels"])
    assert [each["name"] for each in said["whole"]] == ["logits"]
    assert said["latency_ms"] is None  # this machine is no Raspberry Pi


def test_the_recipe_makes_the_same_file(tmp_path: Path, calibration: str) -> None:
    made, said = edgesdk.prune(digits.MODEL, edgesdk.find_profile("raspberry-pi-5"), edgesdk.Goal("macs", 0.7), samples=calibration)
    model = graph.load(digits.MODEL)
    samples, _ = sampling.load(calibration, model).split()
    assert graph.to_bytes(passes.apply(said["recipe"], model, samples)) == graph.to_bytes(made)


def test_two_of_four_is_what_the_hardware_wants(tmp_path: Path, calibration: str) -> None:
    output = tmp_path / "sparse.onnx"
    code, told, _ = run("-p", "jetson-orin", "--calibration", calibration, "-o", str(output), "--two-four")
    assert code == 0
    assert "9 of 9 weights are 2:4 sparse" in told
    assert all(weight.obeys for weight in sparsity.weights(graph.load(output)))
    seen = json.loads(CliRunner().invoke(app, ["inspect", str(output), "--json"]).stdout)
    assert (seen["weights"], seen["sparse"]) == (9, 9)
    assert constraints.check(graph.load(output), profiles.find("jetson-orin")) == []


def test_a_dry_run_shows_groups_effects_and_what_stays_whole(tmp_path: Path, calibration: str) -> None:
    picture = tmp_path / "outlook.svg"
    code, told, _ = run("-p", "x86-cpu", "--calibration", calibration, "--dry-run", "--macs", "0.5", "--plot", str(picture))
    assert code == 0
    assert "/5/norm2" in told
    assert "whole: logits, 10 channels" in told
    assert "stay" in told
    assert "share of the model" in picture.read_text()
    assert list(tmp_path.iterdir()) == [picture]


def test_fewer_channels_do_not_less_to_the_answers(calibration: str) -> None:
    seen = pruning.outlook(digits.MODEL, profiles.find("x86-cpu"), None, samples=calibration)
    assert seen.macs_share is None
    for each in seen.channels:
        assert each.stay is None
        assert 0 < each.macs < 1
        assert [effect for _, effect in each.effects] == sorted(effect for _, effect in each.effects)
        assert each.effect(1.0) is None
        assert each.effect(0.0) == 0.0


def test_a_latency_is_searched_for(calibration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes by the work; `test_both_are_timed_where_the_profile_is_this_machine` has the real one."""
    monkeypatch.setattr(evidence, "race_here", lambda _, feeds: lambda before, after, _: by_work(before, after, feeds[0]))
    here = profiles.recognise(probe.facts())[0]
    _, said = pruning.prune(digits.MODEL, here, pruning.Goal("latency", 0.8), samples=calibration)
    assert 0.6 < said["macs"]["after"] / said["macs"]["before"] <= 0.8
    assert said["latency_ms"]["speedup"] >= 1 / 0.8
    with pytest.raises(edgesdk.EdgeSDKError, match=r"more than 0\.01 of the time"):
        pruning.prune(digits.MODEL, here, pruning.Goal("latency", 0.01), samples=calibration)


def by_work(before: graph.Model, after: graph.Model, feeds: graph.Feeds) -> Paired:
    one, other = (float(sum(costs.macs(model, costs.shapes(model, feeds)).values())) for model in (before, after))
    return Paired(one, other, one / other, one / other, one / other, runs=1, warmup=0)


def test_both_are_timed_where_the_profile_is_this_machine(calibration: str) -> None:
    here = profiles.recognise(probe.facts())[0]
    _, said = pruning.prune(digits.MODEL, here, pruning.Goal("macs", 0.5), samples=calibration)
    timed = said["latency_ms"]
    assert timed["runs"] >= 5
    assert 0 < timed["low"] <= timed["speedup"] <= timed["high"]


def test_a_dry_run_knows_what_it_leaves_out(calibration: str) -> None:
    seen = pruning.outlook(digits.MODEL, profiles.find("x86-cpu"), None, samples=calibration, exclude=["/0/Conv"])
    assert [each.reason for each in seen.whole if "/0/Conv" in each.reason] == ["`/0/Conv` is to keep its channels"]
    with pytest.raises(edgesdk.EdgeSDKError, match="`nobody`, which is not there"):
        pruning.outlook(digits.MODEL, profiles.find("x86-cpu"), None, samples=calibration, exclude=["nobody"])


@pytest.mark.torch
@pytest.mark.skipif(not os.environ.get("CI") and find_spec("onnx2torch") is None, reason="needs the extra `torch`: make test TORCH=1")
def test_a_distilled_model_keeps_its_operators_and_its_zeros(calibration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.find("jetson-orin")
    monkeypatch.setattr(pruning, "TAUGHT_S", 5.0)
    made, said = pruning.prune(digits.MODEL, profile, pruning.Goal("2:4"), samples=calibration, distil=True)
    plain, _ = pruning.prune(digits.MODEL, profile, pruning.Goal("2:4"), samples=calibration)
    assert [node.name for node in made.graph] == [node.name for node in plain.graph]
    assert all(weight.obeys for weight in sparsity.weights(made))
    assert said["distilled"] == (graph.to_bytes(made) != graph.to_bytes(plain))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-o", "out.onnx"], "goes by one of"),
        (["-o", "out.onnx", "--macs", "0.5", "--parameters", "0.5"], "goes by one of"),
        (["-o", "out.onnx", "--macs", "1.5"], "between 0 and 1"),
        (["--macs", "0.5"], "either a model is written"),
        (["-o", "out.onnx", "--macs", "0.5", "--dry-run"], "either a model is written"),
        (["-o", "out.onnx", "--macs", "0.5", "--plot", "x.png"], "either a model is written"),
        (["-o", "out.onnx", "--two-four"], "no hardware for 2:4"),
        (["-o", "out.onnx", "--two-four", "--criterion", "l1"], "nothing to look at or to choose"),
        (["-o", "out.onnx", "--macs", "0.5", "--criterion", "best"], "there is no criterion `best`"),
        (["-o", "out.onnx", "--macs", "0.5", "--exclude", "nobody"], "`nobody`, which is not there"),
        (["-o", "out.onnx", "--latency", "0.5"], "this machine is no Raspberry Pi"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(
    tmp_path: Path, calibration: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("-p", "raspberry-pi-5", "--calibration", calibration, *arguments)
    assert code == 1
    assert told in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_go_that_is_said_and_why(tmp_path: Path) -> None:
    model = build([node("Relu", ["x"], ["h"]), node("MatMul", ["h", "w"], ["y"])], inputs={"x": [1, 4]}, outputs={"y": [1, 3]}, weights={"w": numbers(4, 3)})
    graph.save_as(model, tmp_path / "model.onnx")
    np.save(tmp_path / "samples.npy", numbers(16, 4))
    profile, samples = profiles.find("x86-cpu"), str(tmp_path / "samples.npy")
    with pytest.raises(edgesdk.EdgeSDKError, match=r"nothing in `model.onnx` can be pruned"):
        pruning.prune(tmp_path / "model.onnx", profile, pruning.Goal("macs", 0.5), samples=samples)
    seen = pruning.outlook(tmp_path / "model.onnx", profile, pruning.Goal("macs", 0.5), samples=samples)
    assert seen.channels == ()
    assert seen.macs_share == 1
    assert [each.name for each in seen.whole] == ["y"]


def test_distilling_without_pytorch_says_so_before_the_work(calibration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "find_spec", lambda _name: None)
    with pytest.raises(ProjectError, match="PyTorch"):
        pruning.prune(digits.MODEL, profiles.find("x86-cpu"), pruning.Goal("macs", 0.5), samples=calibration, distil=True)
