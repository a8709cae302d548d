"""Models are read without trust, written the same each time, and errors are sentences."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

from edgesdk import graph, passes
from edgesdk.errors import ModelError
from tests import digits
from tests.sdk.small_models import DATA, assert_same_function, build, node, numbers, proto

VECTOR = {"x": ("n", 4)}


def external(folder: Path, location: str, *, length: int = 64, size: int = 64) -> Path:
    """A model whose weights are said to lie at that location; `w.bin` is there, of that size."""
    made = proto([node("MatMul", ["x", "w"], ["y"])], inputs=VECTOR, outputs={"y": (None, 4)}, weights={"w": np.eye(4, dtype=np.float32)})
    tensor = made.graph.initializer[0]
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(tensor.raw_data.ljust(size, b"\0")[:size])
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_a_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    model = graph.load(DATA / "mobilenet_fashion.onnx")
    model.metadata_props["character"] = "é\nb"
    again = graph.load(graph.save(model, tmp_path))
    assert again.metadata_props["character"] == "é\nb"
    assert graph.to_bytes(again) == graph.to_bytes(model)
    assert_same_function(model, again)


def test_many_weights_lie_beside_the_model_each_at_a_page(tmp_path: Path) -> None:
    weights = {"w": numbers(4, 200_000), "v": numbers(200_000, 3, seed=1), "b": numbers(3)}
    model = build([node("MatMul", ["x", "w"], ["h"]), node("Gemm", ["h", "v", "b"], ["y"])], inputs=VECTOR, outputs={"y": (None, 3)}, weights=weights)
    path = graph.save(model, tmp_path)
    written = onnx.load(path, load_external_data=False)
    entries = {tensor.name: {each.key: each.value for each in tensor.external_data} for tensor in written.graph.initializer}
    assert all(int(entry["offset"]) % graph.PAGE_BYTES == 0 for entry in entries.values() if entry)
    assert {name: entry.get("location") for name, entry in entries.items()} == {"w": "weights.bin", "v": "weights.bin", "b": None}
    assert_same_function(model, graph.load(path))
    onnx.checker.check_model(str(path))


def test_a_file_is_as_old_as_its_operators_allow() -> None:
    model = build([node("Relu", ["x"], ["y"])], inputs=VECTOR, outputs={"y": (None, 4)}, opset=12)
    model.ir_version = 10
    proto_bytes, _ = graph.to_bytes(model)
    assert onnx.load_from_string(proto_bytes).ir_version == 7
    assert graph.needed_onnxruntime(12, 7) == "1.16.0"
    assert graph.needed_onnxruntime(20, 9) == "1.17.0"
    assert graph.needed_onnxruntime(19, 10) == "1.18.0"
    assert graph.needed_onnxruntime(22, 10) == "1.21.0"


@pytest.mark.parametrize(("bits", "release"), [(4, "1.17.0"), (8, "1.23.0")])
def test_weights_of_few_bits_want_a_younger_runtime(bits: Literal[4, 8], release: str) -> None:
    model = build([node("MatMul", ["x", "w"], ["y"])], inputs=VECTOR, outputs={"y": (None, 4)}, weights={"w": numbers(4, 4)})
    assert graph.oldest_onnxruntime(model) == "1.16.0"
    assert graph.oldest_onnxruntime(passes.quantize_weights(model, bits=bits)) == release


def test_a_model_is_described() -> None:
    found = graph.describe(graph.load(digits.MODEL))
    assert found.operators["Conv"] == 9
    assert next(iter(found.operators)) in ("Conv", "BatchNormalization")
    assert (found.inputs[0].name, found.inputs[0].dtype, found.inputs[0].shape) == ("image", "float32", (None, 1, 28, 28))
    assert found.parameters == found.weight_bytes // 4
    assert found.opset == 17


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not an ONNX file"), (b"hello, this is no model", "not an ONNX file"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "not an ONNX file")],
    ids=["empty", "text", "picture"],
)
def test_what_is_no_model_is_refused_in_a_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        graph.load(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused_wherever_it_ends(tmp_path: Path, kept: float) -> None:
    data = digits.MODEL.read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ModelError):
        graph.load(path)


def test_paths_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        graph.load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        graph.load(tmp_path)


def test_models_without_inputs_or_outputs_or_with_nodes_that_lack_theirs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    broken = {
        "no inputs": proto([node("Identity", ["k"], ["y"])], inputs={}, outputs={"y": (4,)}, weights={"k": numbers(4)}),
        "no outputs": proto([node("Relu", ["x"], ["y"])], inputs=VECTOR, outputs={}),
        "not a valid ONNX model": proto([node("Relu", ["nothing"], ["y"])], inputs=VECTOR, outputs={"y": (None, 4)}),
    }
    for said, made in broken.items():
        path.write_bytes(made.SerializeToString())
        with pytest.raises(ModelError, match=said):
            graph.load(path)


def test_answers_that_are_no_tensors_are_refused_with_what_to_do(tmp_path: Path) -> None:
    value = onnx.helper.make_value_info("y", onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(1, None)))
    made = proto([node("SequenceConstruct", ["x"], ["y"])], inputs=VECTOR, outputs={})
    made.graph.output.append(value)
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match="a sequence, not a tensor"):
        graph.load(path)


def test_weights_that_an_old_exporter_lists_as_inputs_are_constants(tmp_path: Path) -> None:
    made = proto([node("MatMul", ["x", "w"], ["y"])], inputs={**VECTOR, "w": (4, 4)}, outputs={"y": (None, 4)}, weights={"w": numbers(4, 4)})
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert [info.name for info in graph.inputs(graph.load(path))] == ["x"]


def test_external_data_in_the_models_folder_is_read(tmp_path: Path) -> None:
    model = graph.load(external(tmp_path / "m", "w.bin"))
    assert graph.run(graph.session(model), {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "link", "", "link/../../../etc/hostname"])
def test_external_data_elsewhere_is_not(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    path = external(tmp_path / "m", location)
    (tmp_path / "m" / "link").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match="outside its own folder"):
        graph.load(path)


def test_external_data_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"`none\.bin`, which cannot be read"):
        graph.load(external(tmp_path / "a", "none.bin"))
    with pytest.raises(ModelError, match="is 32 bytes, and tensor `w` needs 64"):
        graph.load(external(tmp_path / "b", "w.bin", size=32))


def test_nodes_that_share_a_name_or_have_none_get_one(tmp_path: Path) -> None:
    made = proto(
        [node("Relu", ["x"], ["a"], name="n"), node("Relu", ["a"], ["b"], name="n"), node("Relu", ["b"], ["y"])], inputs=VECTOR, outputs={"y": (None, 4)}
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert [each.name for each in graph.load(path).graph] == ["n", "n_1", "Relu_y"]


def test_what_onnxruntime_says_is_one_sentence() -> None:
    model = graph.load(digits.MODEL)
    with pytest.raises(ModelError, match="fails on these inputs"):
        graph.run(graph.session(model), {"image": np.zeros((1, 3, 28, 28), np.float32)})
    with pytest.raises(ModelError, match="cannot be converted from opset 17"):
        graph.with_opset(model, 1000)
