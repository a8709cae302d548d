"""The main path: what is packaged is judged, deterministic, and never half-written."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from edge_agent import golden as answers
from edge_agent import probe
from edge_agent.bundle import BundleError, Layout
from edgesdk import graph, packaging, profiles, recipe, sparsity, verification
from edgesdk.errors import BudgetMissed, EdgeSDKError, ProjectError, SampleError
from edgesdk.packaging import Packaged, Request
from tests import digits

pytestmark = pytest.mark.slow  # whole models, packaged for real


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    digits.write(made)
    return made


def request_for(folder: Path, *names: str, output: Path, max_drop: float = 0.01, **settings: object) -> Request:
    chosen = [profiles.find(name) for name in names or ("x86-cpu",)]
    budgeted = tuple(p.model_copy(update={"budget": p.budget.model_copy(update={"max_drop": max_drop})}) for p in chosen)
    made = Request(
        model=folder / "model.onnx",
        profiles=budgeted,
        name="digits",
        output=output,
        calibration=str(folder / "calibration.npz"),
        evaluate=str(folder / "evaluation.npz"),
    )
    return replace(made, **settings)  # type: ignore[arg-type]  # any field


def test_a_path_may_be_text() -> None:
    request = Request(model="a.onnx", profiles=(), name="a", output="b", labels="labels.txt")  # type: ignore[arg-type]  # what many write
    assert (request.model, request.output, request.labels) == (Path("a.onnx"), Path("b"), Path("labels.txt"))


@pytest.fixture(scope="module")
def packaged(folder: Path) -> Packaged:
    """For an ARM board: int8 is asked for and speed cannot be measured here, so the choice does not depend on this machine."""
    return packaging.package(request_for(folder, "raspberry-pi-5", output=folder / "bundles" / "digits"))[0]


def test_the_result_is_small_right_and_says_what_was_not_measured(packaged: Packaged) -> None:
    assert [step["pass"] for step in packaged.recipe][-1] == "quantize"
    assert packaged.size_bytes["after"] < 0.4 * packaged.size_bytes["before"]
    assert packaged.accuracy.metric == "top-1"
    assert packaged.accuracy.samples == 250
    assert packaged.accuracy.drop <= 0.01
    assert packaged.latency_ms == {"before": None, "after": None, "device": None}
    assert any("not measured" in note for note in packaged.notes)


def test_the_reported_accuracy_is_that_of_the_file_in_the_bundle(packaged: Packaged, tmp_path: Path) -> None:
    with Layout.open(packaged.bundle) as layout:
        manifest = layout.manifests()["raspberry-pi-5"]
        for layer in manifest.layers:
            (tmp_path / layer.file).write_bytes(layout.blob(layer.digest))
    session = graph.session(graph.load(tmp_path / "model.onnx"), optimize=False)
    pixels, labels = (array[digits.CALIBRATION :] for array in digits.images())
    judged = np.random.default_rng(0).permutation(500)[250:]
    right = [graph.run(session, {"image": pixels[i : i + 1]})["logits"].argmax() == labels[i] for i in judged]
    assert np.mean(right) == packaged.accuracy.after


def test_the_bundle_verifies_and_carries_its_evidence_apart(packaged: Packaged) -> None:
    assert verification.verify(packaged.bundle)[0]["golden"]["difference"] == 0
    with Layout.open(packaged.bundle) as layout:
        manifest = layout.manifests()["raspberry-pi-5"]
        evidence = layout.evidence(manifest)
        files = [layer.file for layer in manifest.layers]
    assert manifest.digest == packaged.digest
    assert evidence["accuracy"]["after"] == packaged.accuracy.after
    assert evidence["device"]["architecture"]
    assert "evidence.json" not in files


def test_inputs_and_outputs_stay_what_they_were(packaged: Packaged) -> None:
    before = graph.load(digits.MODEL)
    with Layout.open(packaged.bundle) as layout:
        description = layout.description(layout.manifests()["raspberry-pi-5"])
    assert [(t.name, t.dtype, t.shape) for t in description.inputs] == [(t.name, t.dtype, t.shape) for t in graph.inputs(before)]
    assert [(t.name, t.dtype) for t in description.outputs] == [(t.name, t.dtype) for t in graph.outputs(before)]


def test_a_bundle_for_an_accelerator_says_what_its_nodes_cost(folder: Path, tmp_path: Path, packaged: Packaged) -> None:
    made = packaging.package(request_for(folder, "jetson", output=tmp_path / "b", evaluate=None))[0]
    with Layout.open(made.bundle) as layout:
        manifest = layout.manifests()["jetson"]
        macs, model = layout.description(manifest).macs, onnx.load_from_string(layout.blob(manifest.layer("model.onnx").digest))
    assert macs
    assert set(macs) <= {node.name for node in model.graph.node}
    assert sum(macs.values()) > 0
    with Layout.open(packaged.bundle) as layout:
        assert layout.description(layout.manifests()["raspberry-pi-5"]).macs is None


def test_packaging_the_same_again_keeps_the_release_and_something_else_is_the_next(folder: Path, tmp_path: Path) -> None:
    request = request_for(folder, "jetson", output=tmp_path / "b", evaluate=None)
    first, again = packaging.package(request)[0], packaging.package(request)[0]
    assert (first.release, again.release) == (1, 1)
    assert first.digest == again.digest
    other = packaging.package(replace(request, profiles=(profiles.find("jetson-orin"),)))[0]
    assert other.release == 2
    assert packaging.package(replace(request, release=9))[0].release == 9


def test_a_replayed_recipe_gives_the_same_manifest_also_under_load(folder: Path, packaged: Packaged, tmp_path: Path) -> None:
    """Once here while other threads keep every core busy, once in another process."""
    stop = threading.Event()
    busy = [threading.Thread(target=_work_until, args=(stop,), daemon=True) for _ in range(4)]
    for thread in busy:
        thread.start()
    try:
        steps = recipe.read(packaged.bundle, "raspberry-pi-5")
        here = packaging.package(request_for(folder, "raspberry-pi-5", output=tmp_path / "here", steps=steps))[0]
    finally:
        stop.set()
    arguments = ["--calibration", str(folder / "calibration.npz"), "--evaluate", str(folder / "evaluation.npz"), "--name", "digits"]
    command = ["-p", "raspberry-pi-5", "--recipe", str(packaged.bundle), "-o", str(tmp_path / "there"), "--json", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", "from edgesdk.cli import main; main()", "package", str(folder / "model.onnx"), *command], check=True, capture_output=True
    )
    assert here.digest == json.loads(done.stdout)["digest"] == packaged.digest


def _work_until(stop: threading.Event) -> None:
    noise = np.random.default_rng(0).standard_normal((300, 300))
    while not stop.is_set():
        noise @ noise


def test_beyond_the_budget_nothing_is_written_and_the_reason_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetMissed, match="budget of -1 cannot be kept"):
        packaging.package(request_for(folder, output=tmp_path / "b", max_drop=-1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "words"), [({"max_size_bytes": 1000}, "bytes, more than"), ({"max_latency_ms": 1e-6}, "ms, more than")])
def test_size_and_latency_are_budgets_too(folder: Path, tmp_path: Path, limit: dict[str, float], words: str) -> None:
    profile = profiles.find("x86-cpu")
    small = profile.model_copy(update={"budget": profile.budget.model_copy(update=limit)})
    request = request_for(folder, output=tmp_path / "b", calibration=None, evaluate=None)
    with pytest.raises(BudgetMissed, match=words):
        packaging.package(replace(request, profiles=(small,)))
    assert list(tmp_path.iterdir()) == []


def test_one_bundle_holds_several_profiles(folder: Path, tmp_path: Path) -> None:
    made = packaging.package(request_for(folder, "jetson", "arm-cpu", output=tmp_path / "b.tar"))
    assert {one.release for one in made} == {1}
    with Layout.open(tmp_path / "b.tar") as layout:
        layout.verify()
        assert list(layout.manifests()) == ["jetson", "arm-cpu"]
    assert [one["profile"] for one in verification.verify(tmp_path / "b.tar")] == ["jetson", "arm-cpu"]


def test_a_damaged_blob_is_found(packaged: Packaged, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packaged.bundle, tmp_path / "copy"))
    with Layout.open(copy) as layout:
        digest = layout.manifests()["raspberry-pi-5"].layer("model.onnx").digest
    blob = copy / "blobs" / "sha256" / digest.removeprefix("sha256:")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BundleError, match=r"`model\.onnx` of `copy` differs"):
        verification.verify(copy)


@pytest.mark.parametrize("what", ["file", "other bundle"])
def test_what_is_not_an_older_bundle_of_this_name_is_not_replaced(folder: Path, packaged: Packaged, tmp_path: Path, what: str) -> None:
    target = tmp_path / "precious"
    if what == "file":
        target.write_text("thesis")
    request = request_for(folder, output=target if what == "file" else packaged.bundle, name="digits" if what == "file" else "other")
    with pytest.raises(ProjectError, match="is no bundle" if what == "file" else "holds `digits`, not `other`"):
        packaging.package(request)
    assert what != "file" or target.read_text() == "thesis"


def test_a_tree_ensemble_is_packaged_as_it_is_and_says_why(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    flowers, kinds = load_iris(return_X_y=True)
    flowers = flowers.astype(np.float32)
    forest = RandomForestClassifier(5, random_state=0).fit(flowers, kinds)
    (tmp_path / "trees.onnx").write_bytes(to_onnx(forest, flowers[:1], options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString())
    np.savez(tmp_path / "calibration.npz", X=flowers)
    for name in ("x86-cpu", "jetson-orin"):
        request = Request(
            model=tmp_path / "trees.onnx", profiles=(profiles.find(name),), name="trees", output=tmp_path / name, calibration=str(tmp_path / "calibration.npz")
        )
        made = packaging.package(request)[0]
        assert all(step["pass"] != "quantize" for step in made.recipe)
        assert any("nothing to quantize" in text for text in (*made.notes, *(str(one["label"]) for one in made.candidates))), name
        assert made.accuracy.drop == 0


def test_golden_answers_catch_lost_weights(packaged: Packaged, tmp_path: Path) -> None:
    """Each weight tensor zeroed in turn: of those whose loss moves accuracy by more than a point, at least 95 % are caught."""
    with Layout.open(packaged.bundle) as layout:
        manifest = layout.manifests()["raspberry-pi-5"]
        description = layout.description(manifest)
        for layer in manifest.layers:
            (tmp_path / layer.file).write_bytes(layout.blob(layer.digest))
    model = graph.load(tmp_path / "model.onnx")
    samples = answers.load(tmp_path / "golden.npz", description)
    pixels, labels = (array[digits.CALIBRATION :][:200] for array in digits.images())

    def accuracy(candidate: graph.Model) -> float:
        return float((graph.run(graph.session(candidate, optimize=False), {"image": pixels})["logits"].argmax(-1) == labels).mean())

    def is_caught(candidate: graph.Model) -> bool:
        session = graph.session(candidate, optimize=False)
        try:
            for sample in samples:
                answers.compare(sample.answers, graph.run(session, sample.feeds), description)
        except answers.Differs:
            return True
        return False

    whole = accuracy(model)
    assert not is_caught(model)
    moved, caught = 0, 0
    for name, value in model.graph.initializers.items():
        weights = value.const_value
        if weights is None or weights.size < 8:
            continue
        broken = graph.clone(model)
        broken.graph.initializers[name].const_value = onnx_ir.tensor(np.zeros_like(weights.numpy()), name=name)
        if abs(accuracy(broken) - whole) > 0.01:
            moved += 1
            caught += is_caught(broken)
    assert moved >= 8
    assert caught >= 0.95 * moved


def test_a_winner_that_does_not_hold_before_the_judge_gives_way_to_the_float_model(folder: Path, tmp_path: Path) -> None:
    """An evaluation that finds the int8 model perfect on the selection half and useless on the other."""
    (tmp_path / "luck.py").write_text(
        "import numpy as np\n"
        "from pathlib import Path\n"
        f"image = np.load({str(folder / 'calibration.npz')!r})['image'][:1]\n"
        "first = []\n"
        "def evaluate(run):\n"
        "    answer = run({'image': image})['logits']\n"
        "    first.append(answer)\n"
        "    scores = np.ones(100)\n"
        "    if not np.allclose(answer, first[0], atol=1e-4):\n"
        "        scores[np.random.default_rng(0).permutation(100)[50:]] = 0\n"
        "    return scores\n"
    )
    request = request_for(folder, "raspberry-pi-5", output=tmp_path / "b", evaluate=f"{tmp_path / 'luck.py'}:evaluate")
    made = packaging.package(request)[0]
    assert all(step["pass"] != "quantize" for step in made.recipe)
    assert made.accuracy.drop == 0
    assert "loses 1 on the judging samples" in str(made.candidates)


def shipped(made: Packaged, folder: Path) -> graph.Model:
    """The model in the bundle."""
    with Layout.open(made.bundle) as layout:
        for layer in layout.manifests()[made.profile].layers:
            (folder / layer.file).write_bytes(layout.blob(layer.digest))
    return graph.load(folder / "model.onnx")


def test_a_sparse_bundle_is_sparse_in_its_integers(folder: Path, tmp_path: Path) -> None:
    made = packaging.package(request_for(folder, "jetson-orin", output=tmp_path / "b", prune="2:4"))[0]
    model = shipped(made, tmp_path)
    assert [step["pass"] for step in made.recipe][-2:] == ["prune_two_of_four", "quantize"]
    assert "DequantizeLinear" in graph.describe(model).operators
    assert [weight.obeys for weight in sparsity.weights(model)] == [True] * 9
    assert made.accuracy.drop <= 0.01


def test_the_share_that_is_asked_for_goes_and_replays(folder: Path, tmp_path: Path) -> None:
    request = request_for(folder, "raspberry-pi-5", output=tmp_path / "b", prune=0.3)
    made = packaging.package(request)[0]
    assert [step["pass"] for step in made.recipe][-2:] == ["prune", "quantize"]
    assert all("30% of the MACs pruned" in candidate["label"] for candidate in made.candidates)
    assert any(note.endswith("of the multiply-accumulates are pruned away") for note in made.notes)
    assert graph.describe(shipped(made, tmp_path)).parameters < 0.7 * graph.describe(graph.load(digits.MODEL)).parameters
    again = packaging.package(replace(request, output=tmp_path / "again", steps=recipe.read(made.bundle, "raspberry-pi-5")))[0]
    assert again.digest == made.digest


@pytest.mark.parametrize(("settings", "tried"), [({}, True), ({"prune": "off"}, False), ({"quick": True}, False)])
def test_fewer_channels_are_tried_where_they_can_be_timed(folder: Path, tmp_path: Path, settings: dict[str, Any], tried: bool) -> None:
    here = profiles.recognise(probe.facts())[0].name
    made = packaging.package(request_for(folder, here, output=tmp_path / "b", **settings))[0]
    assert any("pruned" in candidate["label"] for candidate in made.candidates) == tried
    assert sum(candidate["selection_drop"] is not None for candidate in made.candidates) <= 30


@pytest.mark.parametrize(("prune", "told"), [("2:4", "no hardware for 2:4"), (1.5, "no share of the multiply-accumulates")])
def test_pruning_that_makes_no_sense_is_refused_before_the_work(folder: Path, tmp_path: Path, prune: Any, told: str) -> None:
    with pytest.raises(EdgeSDKError, match=told):
        packaging.package(request_for(folder, "x86-cpu", output=tmp_path / "b", prune=prune))
    assert list(tmp_path.iterdir()) == []


def test_what_is_pruned_and_misses_the_budget_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetMissed, match="cannot be kept"):
        packaging.package(request_for(folder, "raspberry-pi-5", output=tmp_path / "b", prune=0.9, quick=True))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_pruned_without_samples(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="measures on samples"):
        packaging.package(request_for(folder, "raspberry-pi-5", output=tmp_path / "b", prune=0.3, calibration=None))


def test_where_not_even_rounding_is_allowed_the_file_ships_as_it_was_given(folder: Path, tmp_path: Path) -> None:
    images = digits.images()[0][:20]
    session = graph.session(graph.load(digits.MODEL), threads=os.cpu_count() or 1)
    np.savez(tmp_path / "exact.npz", images=images, logits=np.concatenate([graph.run(session, {"image": image[None]})["logits"] for image in images]))
    (tmp_path / "evaluate.py").write_text(EXACTLY.format(path=str(tmp_path / "exact.npz")))
    request = request_for(folder, "arm-cpu", output=tmp_path / "b", max_drop=0.0, evaluate=f"{tmp_path}/evaluate.py:evaluate", calibration=None)
    made = packaging.package(request)[0]
    assert made.accuracy.drop == 0
    assert made.recipe == ()
    assert any("not even that" in note for note in made.notes)


EXACTLY = """
import numpy as np
archive = np.load("{path}")
def evaluate(run):
    return np.array([-abs(run({{"image": image[None]}})["logits"][0] - logits).sum() for image, logits in zip(archive["images"], archive["logits"])])
"""


def test_the_peak_of_memory_is_not_that_of_who_started_it() -> None:
    inner = "from edgesdk import packaging; print(packaging._peak_bytes())"
    outer = f"import subprocess, sys; kept = b'x' * (700 << 20); subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    assert 20 << 20 < int(done.stdout) < 600 << 20
