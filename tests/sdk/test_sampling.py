"""Samples are read one at a time, and refused with what was expected."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from edgesdk import graph, sampling
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Model
from tests.sdk.small_models import DATA, build, node, numbers, proto

ANY = (None, None, None, None)


def one_input() -> Model:
    return build([node("Relu", ["x"], ["y"])], inputs={"x": ("n", 3, 4, 4)}, outputs={"y": ANY})


def two_inputs() -> Model:
    return build([node("Mul", ["x", "factor"], ["y"])], inputs={"x": ("n", 4), "factor": ()}, outputs={"y": (None, 4)})


def test_an_array_of_the_inputs_rank_is_cut_along_its_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=numbers(5, 3, 4, 4))
    samples = sampling.load(tmp_path / "c.npz", one_input())
    assert samples.count == 5
    assert [feeds["x"].shape for feeds in samples] == [(1, 3, 4, 4)] * 5
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in samples]), numbers(5, 3, 4, 4))
    assert samples.shapes() == {"x": [1, 3, 4, 4]}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_array_of_a_rank_more_holds_whole_feeds(tmp_path: Path, write: Callable[..., None]) -> None:
    write(tmp_path / "c.npz", x=numbers(3, 2, 4), factor=np.array([1, 2, 3], np.float32))
    samples = list(sampling.load(tmp_path / "c.npz", two_inputs()))
    assert [feeds["factor"].tolist() for feeds in samples] == [1, 2, 3]
    assert samples[1]["x"].tolist() == numbers(3, 2, 4)[1].tolist()


def test_arrays_in_either_order_and_of_any_float_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.asfortranarray(numbers(5, 3, 4, 4).astype(np.float64)))
    found = np.concatenate([feeds["x"] for feeds in sampling.load(tmp_path / "c.npy", one_input())])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, numbers(5, 3, 4, 4))


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for i, name in enumerate(("b.npz", "a.npz")):
        np.savez(tmp_path / name, x=np.full((2, 3, 4, 4), i, np.float32))
    np.save(tmp_path / "c.npy", np.full((1, 3, 4, 4), 7, np.float32))
    samples = sampling.load(tmp_path, one_input())
    assert samples.count == 5
    assert [feeds["x"].flat[0] for feeds in samples] == [1, 1, 0, 0, 7]


def test_a_function_yields_feeds_as_often_as_it_is_asked(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    good = "def feeds():\n    for i in range(3):\n        yield {'x': numpy.full((1, 3, 4, 4), i, 'f4')}\n"
    module.write_text(f"import numpy\n{good}def broken():\n    raise KeyError('k')\n")
    samples = sampling.load(f"{module}:feeds", one_input())
    assert samples.count is None
    assert samples.counted().count == 3
    assert len(list(samples)) == len(list(samples)) == 3
    with pytest.raises(SampleError, match="KeyError"):
        list(sampling.load(f"{module}:broken", one_input()))
    with pytest.raises(SampleError, match="no function `other`"):
        sampling.load(f"{module}:other", one_input())


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "name": ({"image": numbers(2, 3, 4, 4)}, r"no `x` and `image`, which is no input", r"`x` float32 \[n, 3, 4, 4\]"),
    "shape": ({"x": numbers(2, 1, 4, 4)}, r"shape \[2, 1, 4, 4\], the model wants \[n, 3, 4, 4\]", "one array"),
    "rank": ({"x": numbers(4, 4)}, r"shape \[4, 4\]", "one array"),
    "dtype": ({"x": np.zeros((2, 3, 4, 4), np.uint8)}, "is uint8, the model wants float32", "astype"),
    "objects": ({"x": np.array([{}], object)}, "Python objects", "plain arrays"),
    "empty": ({"x": numbers(0, 3, 4, 4)}, "holds no samples", "at least one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path: Path, case: str) -> None:
    arrays, said, hint = WRONG[case]
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(SampleError, match=said) as caught:
        sampling.load(tmp_path / "c.npz", one_input())
    assert np.all([part in caught.value.hint for part in [hint.replace("\\", "")]])


def test_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=numbers(3, 4), factor=np.array([1, 2], np.float32))
    with pytest.raises(SampleError, match="3 of `x`, 2 of `factor`"):
        sampling.load(tmp_path / "c.npz", two_inputs())


def test_nan_is_refused_with_the_samples_number(tmp_path: Path) -> None:
    pixels = numbers(3, 3, 4, 4)
    pixels[1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "c.npz", x=pixels)
    with pytest.raises(SampleError, match="sample 1: `x` holds NaN"):
        list(sampling.load(tmp_path / "c.npz", one_input()))


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    model = one_input()
    np.savez(tmp_path / "c.npz", x=numbers(9, 3, 4, 4))
    data = (tmp_path / "c.npz").read_bytes()
    for content in (data[: len(data) // 2], b"", b"text"):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(SampleError, match="not a file that numpy wrote"):
            sampling.load(tmp_path / "broken.npz", model)
    np.save(tmp_path / "short.npy", numbers(9, 3, 4, 4))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-10])
    with pytest.raises(SampleError, match="ends before its last sample"):
        list(sampling.load(tmp_path / "short.npy", model))
    with pytest.raises(SampleError, match="there are no samples at"):
        sampling.load(tmp_path / "none.npz", model)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(SampleError, match=r"no \.npz or \.npy") as caught:
        sampling.load(tmp_path / "images", model)
    assert "pre-processed" in caught.value.hint


def test_a_header_that_promises_the_world_allocates_nothing(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 4000000, 4000000), }"
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    model = build([node("Relu", ["x"], ["y"])], inputs={"x": ("n", 3, "h", "w")}, outputs={"y": ANY})
    with pytest.raises(SampleError, match="ends before its last sample"):
        list(sampling.load(tmp_path / "c.npy", model))


def test_the_split_is_the_same_each_time_and_shares_nothing() -> None:
    samples = sampling.of([{"x": np.full((1, 3, 4, 4), i, np.float32)} for i in range(10)], one_input())
    seen = [[int(feeds["x"].flat[0]) for feeds in part] for part in samples.split(held_back=0.3)]
    assert seen == [[int(feeds["x"].flat[0]) for feeds in part] for part in samples.split(held_back=0.3)]
    assert sorted(seen[0] + seen[1]) == list(range(10))
    assert len(seen[1]) == 3
    alone, none = samples.first(1).split()
    assert (alone.count, none.count) == (1, 0)


def test_the_digest_is_of_the_feeds_not_of_the_file(tmp_path: Path) -> None:
    model, pixels = one_input(), numbers(4, 3, 4, 4)
    np.savez(tmp_path / "a.npz", x=pixels)
    np.savez_compressed(tmp_path / "b.npz", x=pixels[:, None])
    first, second = (sampling.load(tmp_path / name, model).digest() for name in ("a.npz", "b.npz"))
    assert first == second
    np.savez(tmp_path / "a.npz", x=pixels[::-1])
    assert sampling.load(tmp_path / "a.npz", model).digest() != first


@pytest.mark.parametrize("file", ["resnet8_mnist.onnx", "bilstm_vowels.onnx"])
def test_generated_feeds_run_and_are_the_same_each_time(file: str) -> None:
    model = graph.load(DATA / file)
    first, second = (sampling.generated(model, 3, seed=5) for _ in range(2))
    assert first.digest() == second.digest()
    graph.run(graph.session(model), next(iter(first)))


@pytest.mark.parametrize("packed", [True, False])
def test_a_header_that_claims_more_than_there_is_costs_nothing(tmp_path: Path, packed: bool) -> None:
    model = build([node("Relu", ["x"], ["y"])], inputs={"x": ("n", 4)}, outputs={"y": ("n", 4)})
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 4), }".ljust(117) + b"\n"
    path = tmp_path / ("claim.npz" if packed else "claim.npy")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", header + bytes(64))
    else:
        path.write_bytes(header + bytes(64))
    with pytest.raises(SampleError, match="ends before its last sample"):
        sampling.load(str(path), model)


def test_an_input_beyond_all_bounds_is_not_drawn() -> None:
    vast = build([node("Relu", ["x"], ["y"])], inputs={"x": (10**9, 10**9)}, outputs={"y": (10**9, 10**9)})
    with pytest.raises(ModelError, match=r"`x` is float32 \[1000000000, 1000000000\]: one sample would be larger than 2 GB"):
        sampling.generated(vast, 1)


def test_generated_tokens_stay_within_a_small_vocabulary() -> None:
    made = proto([node("Gather", ["table", "ids"], ["y"])], inputs={"ids": ("n", "length")}, outputs={"y": (None, None, 8)}, weights={"table": numbers(30, 8)})
    made.graph.input[0].type.tensor_type.elem_type = 7
    model = onnx_ir.serde.deserialize_model(made)
    feeds = next(iter(sampling.generated(model, 1)))
    assert feeds["ids"].max() < 30


def test_labels_may_lie_beside_the_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=numbers(2, 3, 4, 4), labels=np.array([1, 2]))
    assert sampling.load(tmp_path / "c.npz", one_input()).count == 2
    with zipfile.ZipFile(tmp_path / "c.npz") as archive:
        assert sorted(archive.namelist()) == ["labels.npy", "x.npy"]
