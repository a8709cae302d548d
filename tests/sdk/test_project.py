"""edgesdk.toml: read strictly, found, written."""

import os
import tomllib
from pathlib import Path

import pytest

from edgesdk import project
from edgesdk.errors import ProjectError
from edgesdk.project import Project


def test_a_folder_without_a_file_has_an_empty_project(tmp_path: Path) -> None:
    assert project.load(tmp_path) == Project()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modell = 'x'", "modell: unknown key"),
        ("[budget]\nzzz = 1", r"budget.zzz: unknown key \(there are max_drop, max_latency_ms, max_size_bytes\)"),
        ("model = 3", "model: "),
        ("model =", "not TOML"),
        ("profiles = 'x86-cpu'", "profiles: wants a list"),
        ("[budget]\nmax_drop = 'much'", "budget.max_drop"),
        ("[budget]\nmax_drop = nan", "a finite number"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / project.FILE).write_text(text)
    with pytest.raises(ProjectError, match=words):
        project.load(tmp_path)


def test_the_only_model_of_a_folder_is_meant(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    assert project.find_model(tmp_path, Project()).name == "a.onnx"
    (tmp_path / "b.onnx").touch()
    with pytest.raises(ProjectError, match=r"2 \.onnx files"):
        project.find_model(tmp_path, Project())
    assert project.find_model(tmp_path, Project(model="b.onnx")).name == "b.onnx"


@pytest.mark.parametrize(("file", "name"), [("OCR v4.onnx", "ocr-v4"), ("ch_PP-OCRv4.onnx", "ch_pp-ocrv4"), ("_.onnx", "model"), ("é.onnx", "model")])
def test_a_files_name_is_made_fit_for_a_bundle(file: str, name: str) -> None:
    assert project.name_for(Path(file), Project()) == name


def test_what_init_writes_can_be_read_back(tmp_path: Path) -> None:
    text = project.template("m.onnx", calibration="c.npz", evaluate="e.py:evaluate", profiles=["x86-cpu", "jetson"])
    assert tomllib.loads(text)["profiles"] == ["x86-cpu", "jetson"]
    (tmp_path / project.FILE).write_text(text)
    read = project.load(tmp_path)
    assert (read.model, read.calibration, read.evaluate, read.budget.max_drop) == ("m.onnx", "c.npz", "e.py:evaluate", 0.01)
    (tmp_path / project.FILE).write_text(project.template("m.onnx", calibration=None, evaluate=None, profiles=[]))
    assert project.load(tmp_path).calibration is None


def test_the_newest_bundle_is_meant_unless_the_project_names_one(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="none was packaged"):
        project.newest_bundle(tmp_path, Project())
    for age, name in enumerate(("new", "old")):
        layout = tmp_path / "bundles" / name / "oci-layout"
        layout.parent.mkdir(parents=True)
        layout.touch()
        os.utime(layout, (1000 - age, 1000 - age))
    assert project.newest_bundle(tmp_path, Project()).name == "new"
    assert project.newest_bundle(tmp_path, Project(name="old")).name == "old"
    with pytest.raises(ProjectError, match="no bundle of `mine`"):
        project.newest_bundle(tmp_path, Project(name="mine"))


def test_a_model_with_a_quote_in_its_name_makes_a_file_that_can_be_read(tmp_path: Path) -> None:
    text = project.template("bob's.onnx", calibration=None, evaluate=None, profiles=["x86-cpu"])
    assert tomllib.loads(text)["model"] == "bob's.onnx"
