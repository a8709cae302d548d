from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import everything, everything_feeds, make

from edge_agent import golden
from edge_agent.bundle import BundleError, Description, TensorInfo, parse_description
from edge_agent.golden import Differs, compare

F32 = np.float32


def description(tolerance: float = 0.1, *, top1: bool = False) -> Description:
    info = TensorInfo("y", "float32", (None, None))
    return Description("toy", 1, "x86-cpu", (TensorInfo("x", "float32", (None,)),), (info,), "1.16.0", 17, 8, {"y": tolerance}, top1)


def told(expected: Any, got: Any, **options: Any) -> str:
    with pytest.raises(Differs) as caught:
        compare({"y": expected}, {"y": got}, description(**options))
    return str(caught.value)


def test_the_worst_tensor_index_expected_got_and_tolerance_are_named() -> None:
    expected = {"a": np.zeros((2, 2), F32), "y": np.zeros((2, 3), F32)}
    got = {"a": np.full((2, 2), 0.5, F32), "y": np.zeros((2, 3), F32)}
    got["y"][1, 2] = 7
    both = Description("toy", 1, "x86-cpu", (), (), "1.16.0", 17, 8, {"a": 0.1, "y": 0.1}, top1=False)
    with pytest.raises(Differs, match=r"the output `y` at \[1, 2\]: expected 0.0, got 7.0; that is 7 off, tolerated is 0.1"):
        compare(expected, got, both)


def test_within_its_tolerance_the_distance_is_told() -> None:
    worst = compare({"y": np.ones((1, 2), F32)}, {"y": np.array([[1.0, 1.0625]], F32)}, description())
    assert (worst.output, worst.difference, worst.tolerance) == ("y", 0.0625, 0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_must_be_in_the_same_places(value: float) -> None:
    odd, plain = np.array([1, value], F32), np.array([1, 2], F32)
    assert compare({"y": odd}, {"y": odd.copy()}, description()).difference == 0
    assert "expected 2.0" in told(plain, odd)
    assert "got 2.0" in told(odd, plain)
    assert told(np.array([np.inf], F32), np.array([-np.inf], F32))


def test_integers_and_strings_must_be_equal() -> None:
    assert "must be equal" in told(np.array([1, 2]), np.array([1, 3]), tolerance=5)
    assert "expected b, got c" in told(np.array(["a", "b"], object), np.array(["a", "c"], object))
    assert "True" in told(np.array([True]), np.array([False]))


def test_shapes_and_dtypes_must_be_equal() -> None:
    assert "is float32 [2], expected float32 [1]" in told(np.zeros(1, F32), np.zeros(2, F32))
    assert "is int64 [1], expected float32 [1]" in told(np.zeros(1, F32), np.zeros(1, np.int64))
    with pytest.raises(Differs, match="is nothing"):
        compare({"y": np.zeros(1, F32)}, {}, description())


def test_the_chosen_class_must_be_the_same_where_that_matters() -> None:
    expected, got = np.array([[0.1, 0.5, 0.45]], F32), np.array([[0.1, 0.45, 0.5]], F32)
    assert "another class in row 0: expected 1, got 2" in told(expected, got, top1=True)
    assert compare({"y": expected}, {"y": got}, description()).difference == pytest.approx(0.05)


def test_text_comes_back_as_onnxruntime_wants_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "bundle", everything(), feeds=[everything_feeds()])
    from edge_agent.bundle import Layout

    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
        said = parse_description(layout.blob(manifest.layer("bundle.json").digest))
        (sample,) = golden.parse(layout.blob(manifest.layer("golden.npz").digest), said)
    assert sample.feeds["in_string"].dtype == object
    assert sample.answers["out_float16"].dtype == np.float16


def test_a_tensor_may_have_a_name_that_numpy_takes_for_its_own() -> None:
    arrays = {"file": np.ones(2, F32), "allow_pickle": np.array(["a", "bc"], object)}
    back = golden.read_arrays(golden.write_arrays(arrays), "it")
    assert back["file"].tolist() == [1, 1] and back["allow_pickle"].tolist() == ["a", "bc"]


@pytest.mark.parametrize("what", ["pickle", "bomb", "noise", "empty", "cut", "stranger", "half"])
def test_a_file_that_is_no_golden_answers_is_refused(what: str) -> None:
    with pytest.raises(BundleError):
        golden.parse(bad(what), description())


def bad(what: str) -> bytes:
    packed = io.BytesIO()
    if what == "pickle":
        np.savez(packed, **{"0.in.0": np.array([{}], object), "0.out.0": np.zeros(1)})
    elif what == "bomb":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0.in.0.npy", "w") as member:
            for _ in range(257):
                member.write(bytes(1 << 20))
    elif what == "stranger":
        np.savez(packed, **{"0.in.0": np.zeros(1), "0.out.0": np.zeros(1), "0.out.1": np.zeros(1)})
    elif what == "half":
        np.savez(packed, **{"0.in.0": np.zeros(1)})
    elif what in ("empty", "cut"):
        np.savez(packed, **({} if what == "empty" else {"0.in.0": np.zeros(1000), "0.out.0": np.zeros(1)}))
    return {"noise": b"noise", "cut": packed.getvalue()[:900]}.get(what, packed.getvalue())
