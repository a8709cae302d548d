"""`edgesdk convert` of scikit-learn models: what comes out answers as the source, or nothing comes out."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import onnx
import onnxruntime
import pytest
import skops.io
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from edgesdk.convert import convert
from edgesdk.errors import ConversionError, SampleError

FEATURES = 5


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def data(classes: int = 3, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    points = random.normal(size=(rows, FEATURES))
    return points, (points[:, 0] + 0.5 * points[:, 1] > np.linspace(-1, 1, classes + 1)[1:-1, None]).sum(axis=0)


def dumped(model: BaseEstimator, *, classes: int = 3, path: str = "model.skops") -> str:
    skops.io.dump(model.fit(*data(classes)), path)
    return path


def ask(path: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": rows.astype(np.float32)}), strict=True))


def nothing_left() -> bool:
    return not [file for file in Path().iterdir() if "model.onnx" in file.name]


def test_a_classifier_answers_with_labels_and_an_array_of_probabilities():
    model = RandomForestClassifier(20, random_state=0)
    stages = []
    converted = convert(dumped(model), Path("model.onnx"), trust=True, progress=lambda stage, *_: stages.append(stage))
    assert stages == ["export", "compare answers"]
    rows = data()[0][:7].astype(np.float32)
    answers = ask(Path("model.onnx"), rows)
    assert (answers["label"] == model.predict(rows)).all()
    assert np.abs(answers["probabilities"] - model.predict_proba(rows)).max() < 1e-6
    assert converted.model == "RandomForestClassifier"
    assert converted.framework.startswith("scikit-learn ")


def test_the_input_is_rows_of_float32_as_many_as_one_likes():
    convert(dumped(LogisticRegression()), Path("model.onnx"))
    (tensor,) = onnxruntime.InferenceSession("model.onnx").get_inputs()
    assert (tensor.name, tensor.type, tensor.shape) == ("input", "tensor(float)", [None, FEATURES])
    assert ask(Path("model.onnx"), data()[0])["label"].shape == (200,)


def test_a_regressor_answers_with_one_column():
    convert(dumped(RandomForestRegressor(10, random_state=0)), Path("model.onnx"), trust=True)
    assert list(ask(Path("model.onnx"), data()[0])) == ["variable"]


def test_labels_may_be_text():
    points, classes = data()
    skops.io.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(points, np.array(["low", "mid", "top"])[classes]), "model.skops")
    convert("model.skops", Path("model.onnx"))
    assert set(ask(Path("model.onnx"), points)["label"]) == {"low", "mid", "top"}


@pytest.mark.parametrize("model", [SVC(), LinearSVC(), make_pipeline(StandardScaler(), LinearSVC())], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("classes", [2, 3])
def test_without_probabilities_the_greatest_decision_value_is_the_label(model, classes):
    convert(dumped(model, classes=classes), Path("model.onnx"))
    answers = ask(Path("model.onnx"), data(classes)[0])
    assert answers["probabilities"].shape == (200, classes)
    assert (answers["probabilities"].argmax(axis=1) == answers["label"]).all()


def test_of_a_search_the_best_model_is_taken():
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}).fit(*data())
    Path("model.pkl").write_bytes(pickle.dumps(search))
    assert convert("model.pkl", Path("model.onnx"), trust=True).model == "Ridge"


def test_the_result_says_what_was_checked():
    np.savez("samples.npz", input=data()[0][:40].astype(np.float32), labels=data()[1][:40])
    converted = convert(dumped(LogisticRegression()), Path("model.onnx"), samples="samples.npz")
    told = converted.to_dict()
    assert json.loads(json.dumps(told)) == told | {"outputs": list(told["outputs"])}
    assert (told["samples"], told["samples_source"], told["target"]) == (40, "samples.npz", "model.onnx")
    assert [output["output"] for output in told["outputs"]] == ["label", "probabilities"]
    assert 0 < told["outputs"][1]["difference"] < told["outputs"][1]["tolerance"] == 1e-4
    assert "40 samples (samples.npz)" in converted.to_text()
    assert convert("model.skops", Path("model.onnx")).samples_source == "generated"


def test_the_same_model_gives_the_same_bytes():
    source = dumped(RandomForestClassifier(5, random_state=0))
    convert(source, Path("model.onnx"), trust=True)
    convert(source, Path("again.onnx"), trust=True)
    assert Path("model.onnx").read_bytes() == Path("again.onnx").read_bytes()


@pytest.mark.parametrize("opset", [-5, 0, 6])
def test_an_opset_that_nothing_runs_is_refused(opset):
    with pytest.raises(ConversionError, match=f"onnxruntime runs no opset {opset}"):
        convert(dumped(LogisticRegression()), Path("model.onnx"), opset=opset)
    assert nothing_left()


def test_an_old_opset_can_be_asked_for():
    assert convert(dumped(LogisticRegression()), Path("model.onnx"), opset=13).opset <= 13
    onnx.checker.check_model("model.onnx")


def test_what_answers_otherwise_is_not_written():
    # In float32 a mean of a hundred million leaves nothing of the digits that decide.
    points, classes = data(classes=2)
    far = (points + 1e8).astype(np.float32)
    np.savez("samples.npz", input=far)
    skops.io.dump(make_pipeline(StandardScaler(), LogisticRegression(C=1e4)).fit(points + 1e8, classes), "model.skops")
    Path("model.onnx").write_text("what was there")
    with pytest.raises(ConversionError, match=r"on sample \d+, output `(label|probabilities)` (differs|is) .*nothing was written"):
        convert("model.skops", Path("model.onnx"), samples="samples.npz")
    assert Path("model.onnx").read_text() == "what was there"
    assert not list(Path().glob(".model.onnx*"))


@pytest.mark.parametrize("path", ["model.pkl", "model.pickle", "model.joblib"])
def test_a_pickle_is_code_and_wants_trust(path):
    joblib.dump(LogisticRegression().fit(*data()), path) if path.endswith("joblib") else Path(path).write_bytes(pickle.dumps(LogisticRegression().fit(*data())))
    with pytest.raises(ConversionError, match="runs the code in it") as refused:
        convert(path, Path("model.onnx"))
    assert "--trust" in refused.value.hint
    assert "skops" in refused.value.hint
    assert convert(path, Path("model.onnx"), trust=True).model == "LogisticRegression"


def test_skops_wants_trust_for_trees():
    """Their nodes point at each other by number, and scikit-learn follows them unchecked."""
    with pytest.raises(ConversionError, match=r"does not vouch for: sklearn\.tree\._tree\.Tree"):
        convert(dumped(RandomForestClassifier(2)), Path("model.onnx"))


class Mine(LogisticRegression):
    """A type that skops does not know."""


def test_skops_names_the_types_that_it_does_not_vouch_for():
    dumped(Mine())
    with pytest.raises(ConversionError, match=r"does not vouch for: .*\.Mine"):
        convert("model.skops", Path("model.onnx"))
    with pytest.raises(ConversionError, match="skl2onnx cannot convert the Mine"):  # trusted, loaded, and still foreign to skl2onnx
        convert("model.skops", Path("model.onnx"), trust=True)
    assert nothing_left()


def broken(path: str) -> None:
    Path(path).write_bytes(b"neither zip nor pickle")


def strange(path: str) -> None:
    Path(path).write_bytes(pickle.dumps({"weights": 1}))


def unfitted(path: str) -> None:
    Path(path).write_bytes(pickle.dumps(LogisticRegression()))


def cluster(path: str) -> None:
    Path(path).write_bytes(pickle.dumps(KMeans(2, n_init=1).fit(data()[0])))


@pytest.mark.parametrize(
    ("path", "make", "message"),
    [
        ("model.skops", broken, "cannot be loaded"),
        ("model.pkl", broken, "cannot be loaded"),
        ("model.joblib", broken, "cannot be loaded"),
        ("model.pkl", strange, "holds a dict, not a scikit-learn model"),
        ("model.pkl", unfitted, "is not fitted"),
        ("model.pkl", cluster, "KMeans, which is neither a classifier nor a regressor"),
        ("model.h5", broken, "nothing that edgesdk converts: it knows .skops"),
        ("model.onnx", broken, "is ONNX already"),
        ("missing.skops", lambda _: None, "there is no file `missing.skops`"),
    ],
)
def test_each_thing_that_cannot_be_converted_is_one_sentence(path, make, message):
    make(path)
    with pytest.raises(ConversionError, match=message) as refused:
        convert(path, Path("out.onnx"), trust=True)
    assert refused.value.hint
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(("target", "message"), [("model.tflite", "not named like one"), ("nowhere/model.onnx", "there is no folder `nowhere`")])
def test_the_target_is_checked_first(target, message):
    with pytest.raises(ConversionError, match=message):
        convert(dumped(LogisticRegression()), Path(target))


def test_samples_of_another_shape_are_refused():
    np.savez("samples.npz", input=np.zeros((3, FEATURES + 1), np.float32))
    with pytest.raises(SampleError, match="the model wants"):
        convert(dumped(LogisticRegression()), Path("model.onnx"), samples="samples.npz")
    assert nothing_left()


def test_a_missing_extra_says_what_to_install(monkeypatch):
    source = dumped(LogisticRegression())
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ConversionError, match="needs `skl2onnx`, which is not installed") as refused:
        convert(source, Path("model.onnx"))
    assert refused.value.hint == "pip install 'edgesdk[sklearn]'"


def test_importing_the_package_imports_no_framework():
    script = "import sys, edgesdk.convert; print(*{'torch', 'sklearn', 'skl2onnx', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""
