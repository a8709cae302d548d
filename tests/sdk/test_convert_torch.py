"""`edgesdk convert` of PyTorch modules and programs."""

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgesdk.convert import convert
from edgesdk.convert.exported import parse_input
from edgesdk.errors import ConversionError

if os.environ.get("CI"):
    import torch
else:
    torch = pytest.importorskip("torch", reason="needs the extra `torch`: make test TORCH=1")

pytestmark = pytest.mark.torch

MODULE = """
import random

import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 3)

    def forward(self, image, scale=None):
        scores = self.head(self.body(image)).softmax(-1)
        return {"label": scores.argmax(-1), "scores": scores, "image": image, "more": (scores.sum(-1), None)}


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.memory = nn.LSTM(8, 8, batch_first=True, bidirectional=True)

    def forward(self, ids, mask):
        return self.memory(self.embedding(ids))[0].mean(1) * mask


class Moody(nn.Module):
    def forward(self, x):
        return x * random.random()


class Choosy(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 4)


def classifier():
    print("building")
    torch.manual_seed(0)
    return Classifier()


def broken():
    raise KeyError("weights.pt")


reader, moody, choosy, fixed = Reader, Moody, Choosy, Fixed
number = lambda: 3
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """The module above in the working folder, importable as pickles want it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("nets.py").write_text(MODULE)
    np.savez("images.npz", image=np.random.default_rng(0).normal(size=(6, 3, 8, 8)), labels=np.zeros(6))
    import nets

    yield nets
    del sys.modules["nets"]


def ask(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession("net.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_a_function_that_returns_a_module_is_converted(capsys):
    converted = convert("nets.py:classifier", Path("net.onnx"), samples="images.npz")
    assert (converted.model, converted.opset, converted.samples) == ("Classifier", 18, 6)
    assert capsys.readouterr().out == ""


def test_names_come_from_the_signature_and_the_keys_of_the_result():
    convert("nets.py:classifier", Path("net.onnx"), samples="images.npz")
    graph = onnx.load("net.onnx").graph
    assert [tensor.name for tensor in graph.input] == ["image"]
    assert [tensor.name for tensor in graph.output] == ["label", "scores", "image_output", "more_0"]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_free(nets, batch):
    convert("nets.py:classifier", Path("net.onnx"), inputs=["image=1,3,8,8"])
    torch.manual_seed(0)
    image = torch.randn(batch, 3, 8, 8)
    torch.manual_seed(0)
    expected = nets.Classifier().eval()(image)["scores"].detach().numpy()
    assert np.abs(ask({"image": image.numpy()})["scores"] - expected).max() < 1e-6


def test_several_inputs_of_other_types():
    convert("nets.py:reader", Path("net.onnx"), inputs=["ids=int64:1,9", "mask=1,1"])
    answers = ask({"ids": np.zeros((3, 9), np.int64), "mask": np.ones((3, 1), np.float32)})
    assert {name: answer.shape for name, answer in answers.items()} == {"output": (3, 16)}


def test_no_line_of_the_source_code_is_in_the_file():
    convert("nets.py:classifier", Path("net.onnx"), samples="images.npz")
    assert b"nets.py" not in Path("net.onnx").read_bytes()


def test_a_file_is_no_newer_than_it_has_to_be():
    """onnxruntime 1.16 reads IR version 9; the exporter writes 10."""
    convert("nets.py:classifier", Path("net.onnx"), samples="images.npz")
    assert onnx.load("net.onnx").ir_version <= 9


@pytest.mark.parametrize("path", ["net.pt", "net.pth"])
def test_a_pickled_module_wants_trust(nets, path):
    torch.save(nets.classifier(), path)
    with pytest.raises(ConversionError, match="runs the code in it") as refused:
        convert(path, Path("net.onnx"), samples="images.npz")
    assert "--trust" in refused.value.hint
    assert convert(path, Path("net.onnx"), samples="images.npz", trust=True).model == "Classifier"


def program(nets) -> str:
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(nets.classifier().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes={"image": {0: batch}}), "net.pt2")
    return "net.pt2"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, while it saves
def test_a_program_needs_no_samples(nets):
    converted = convert(program(nets), Path("net.onnx"), trust=True)
    assert converted.samples_source == "generated"
    assert ask({"image": np.zeros((5, 3, 8, 8), np.float32)})["label"].shape == (5,)


class Intruder:
    def __reduce__(self):
        return (os.mkdir, ("intruded",))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_is_a_pickle_too(nets):
    """`torch.export.load` falls back to unpickling anything, and says itself that it is no place for untrusted files."""
    content = io.BytesIO()
    torch.save((Intruder(),), content)
    with zipfile.ZipFile(program(nets)) as sound, zipfile.ZipFile("evil.pt2", "w") as evil:
        for name in sound.namelist():
            evil.writestr(name, content.getvalue() if "sample_inputs" in name else sound.read(name))
    with pytest.raises(ConversionError, match="runs the code in it"):
        convert("evil.pt2", Path("net.onnx"))
    assert not Path("intruded").exists()


def test_what_answers_otherwise_is_not_written():
    with pytest.raises(ConversionError, match=r"on sample 0, output `output` differs from the source's by .* nothing was written"):
        convert("nets.py:moody", Path("net.onnx"), inputs=["x=1,8"])
    assert not [file for file in Path().iterdir() if "net.onnx" in file.name]


@pytest.mark.parametrize(
    ("source", "asked", "message"),
    [
        ("nets.py", {}, "does not say which function"),
        ("nets.py:nothing", {}, "has no function `nothing`"),
        ("nets.py:broken", {}, "`nets.py:broken` failed: KeyError"),
        ("nets.py:number", {}, "gives a int, not a torch.nn.Module"),
        ("gone.py:net", {}, "there is no file `gone.py`"),
        ("nets.py:classifier", {}, "does not say what shape its inputs have"),
        ("nets.py:classifier", {"samples": "gone.npz"}, "there are no samples at `gone.npz`"),
        ("nets.py:classifier", {"inputs": ["picture=1,3,8,8"]}, r"Classifier.forward\(image, scale\) lacks `image` and takes no `picture`"),
        ("nets.py:classifier", {"inputs": ["image"]}, "`image` is no input"),
        ("nets.py:classifier", {"inputs": ["image=1,3,8,8"], "opset": 9}, "does not write opset 9"),
        ("nets.py:classifier", {"inputs": ["image=1,3,8,8"], "opset": 17}, "cannot bring .* to opset 17, only to 18"),
        ("nets.py:choosy", {"inputs": ["x=1,8"]}, "PyTorch cannot export"),
        ("nets.py:fixed", {"inputs": ["x=2,4"]}, "PyTorch cannot export"),
    ],
)
def test_each_thing_that_cannot_be_converted_is_one_sentence(source, asked, message):
    with pytest.raises(ConversionError, match=message) as refused:
        convert(source, Path("net.onnx"), **asked)
    assert refused.value.hint
    assert "\n" not in str(refused.value)
    assert not Path("net.onnx").exists()


def test_weights_without_their_module_are_no_model(nets):
    torch.save(nets.classifier().state_dict(), "weights.pt")
    with pytest.raises(ConversionError, match="weights without their module"):
        convert("weights.pt", Path("net.onnx"), samples="images.npz", trust=True)


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConversionError, match="needs `onnxscript`, which is not installed") as refused:
        convert("nets.py:classifier", Path("net.onnx"), samples="images.npz")
    assert refused.value.hint == "pip install 'edgesdk[torch]'"


@pytest.mark.parametrize("text", ["x", "x=", "=1,2", "x=1,two", "x=0,3", "x=complex64:1,2", "2x=1"])
def test_an_input_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConversionError, match="is no input"):
        parse_input(text)
