"""Scores of a model where it runs: here, and what a person is told."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgesdk import accuracy, evaluation, graph, profiles, results
from edgesdk.errors import EvaluationError, ModelError, ProjectError
from edgesdk.evaluation import evaluate
from tests import digits
from tests.bundles import answer, inputs, write_bundle
from tests.sdk.small_models import build, node

X86 = profiles.find("x86-cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    digits.write(tmp_path)
    return tmp_path


def test_the_labelled_file_of_package_does_here_too(folder: Path) -> None:
    found = evaluate(folder / "model.onnx", X86, evaluate=str(folder / "evaluation.npz"), against=folder / "model.onnx")
    judge = accuracy.Judge.load(str(folder / "evaluation.npz"), lambda _: {}, (), held_back_source="")
    session = graph.session(graph.load(folder / "model.onnx"))
    scores = judge.scores(lambda feeds: graph.run(session, feeds))
    assert (found.score, found.samples, found.asked) == (scores.mean(), len(scores), len(scores))
    assert found.interval is not None and found.interval[0] < found.score < found.interval[1]
    assert found.against is not None
    assert (found.against.score, found.against.lost, found.against.gained, found.against.drop) == (found.score, 0, 0, 0.0)
    assert (found.metric, found.host, found.provider, found.kind) == ("top-1", None, "CPUExecutionProvider", "evaluate")
    results.write(folder / "r.json", found.to_dict())
    assert results.read(folder / "r.json")["score"] == found.score
    (row,) = found.rows()
    assert row["against_lost"] == 0 and row["low"] == found.interval[0]


def test_a_bundle_runs_as_its_profile_says(tmp_path: Path) -> None:
    write_bundle(tmp_path / "toy", release=4)
    (tmp_path / "judge.py").write_text(
        "import numpy as np\nfrom tests.bundles import answer, inputs\n\n\ndef judge(run):\n"
        "    return [float(np.allclose(run({'x': x})['y'], answer(x), atol=1e-3)) for x in inputs(8)]\n"
    )
    found = evaluate(tmp_path / "toy", evaluate=f"{tmp_path / 'judge.py'}:judge")
    assert (found.name, found.release, found.score, found.samples) == ("toy", 4, 1.0, 4)
    assert found.settings == X86.runtime.model_dump(mode="json")
    assert np.isfinite(answer(inputs(8)[0])).all()


def test_without_labels_it_is_agreement_with_the_original(folder: Path) -> None:
    found = evaluate(folder / "model.onnx", X86, against=str(folder / "model.onnx"), samples=str(folder / "calibration.npz"))
    assert (found.metric, found.score) == (accuracy.AGREEMENT, 1.0)
    assert "calibration.npz" in found.source
    assert found.samples is not None and found.samples > 10


def test_a_function_that_raises_is_named_with_its_file_and_line(folder: Path) -> None:
    (folder / "judge.py").write_text("def judge(run):\n    wanted = {}\n    return wanted['label']\n\n\ndef one(run):\n    return 0.5\n")
    with pytest.raises(EvaluationError, match=r"judge.py:judge` failed: KeyError: 'label' \(judge.py, line 3\)"):
        evaluate(folder / "model.onnx", X86, evaluate=f"{folder / 'judge.py'}:judge")
    found = evaluate(folder / "model.onnx", X86, evaluate=f"{folder / 'judge.py'}:one", against=folder / "model.onnx")
    assert (found.score, found.samples, found.interval, found.asked) == (0.5, None, None, 0)
    assert "None" not in evaluation_text(found)


def test_a_question_that_the_model_refuses_says_what_it_takes(folder: Path) -> None:
    (folder / "judge.py").write_text("import numpy as np\n\n\ndef judge(run):\n    return run({'image': np.ones(3, np.float32)})\n")
    with pytest.raises(ModelError, match=r"refuses the question: the input `image` is float32 \[any, 1, \d+, \d+\], float32 \[3\] came") as refused:
        evaluate(folder / "model.onnx", X86, evaluate=f"{folder / 'judge.py'}:judge")
    assert refused.value.hint.endswith("judge.py:judge` (judge.py, line 5)")
    np.savez(folder / "other.npz", picture=np.ones((2, 1, 28, 28), np.float32), labels=np.zeros(2))
    with pytest.raises(EvaluationError, match=r"`other.npz`: the model refuses the question: the model's inputs are `image`; `image` is missing"):
        evaluate(folder / "model.onnx", X86, evaluate=str(folder / "other.npz"))


def test_what_there_is_not_is_said(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EvaluationError, match="nothing to judge the answers by"):
        evaluate(folder / "model.onnx", X86)
    with pytest.raises(ProjectError, match="no file and no bundle `ocr`"):
        evaluate("ocr", evaluate=str(folder / "evaluation.npz"))
    with pytest.raises(ModelError, match="there is no model at"):
        evaluate(tmp_path / "none.onnx", X86, evaluate=str(folder / "evaluation.npz"))


def test_lists_are_arrays_too(tmp_path: Path) -> None:
    model = build([node("Identity", ["x"], ["y"])], inputs={"x": ("n",)}, outputs={"y": ("n",)})
    graph.save_as(model, tmp_path / "same.onnx")
    (tmp_path / "judge.py").write_text("import numpy as np\n\n\ndef judge(run):\n    return run({'x': [np.float32(1), np.float32(0)]})['y']\n")
    assert evaluate(tmp_path / "same.onnx", X86, evaluate=f"{tmp_path / 'judge.py'}:judge").score == 0.5


def test_the_interval_of_a_score_stays_within_what_a_score_can_be() -> None:
    assert accuracy.score_interval(np.ones(10)) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert accuracy.score_interval(np.zeros(10)) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert accuracy.score_interval(np.array([0.5])) is None
    low, high = accuracy.score_interval(np.array([0.2, 0.4, 0.9])) or (0, 0)
    assert low < 0.5 < high


def test_the_verb(folder: Path) -> None:
    argv = ["evaluate", "model.onnx", "-p", "x86-cpu", "--evaluate", "evaluation.npz", "-o", "r.json"]
    done = subprocess.run([sys.executable, "-m", "edgesdk.cli", *argv, "--json"], cwd=folder, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told == json.loads((folder / "r.json").read_text())
    assert (told["schema"], told["kind"], told["metric"]) == (1, "evaluate", "top-1")


def evaluation_text(found: evaluation.Evaluated) -> str:
    from edgesdk.cli.tuning import _evaluated

    return _evaluated(found)
