"""Class names that are shipped beside a model."""

from pathlib import Path

import pytest

from edge_agent.bundle import TensorInfo
from edgesdk.errors import SampleError
from edgesdk.source import mislabelled, read_labels


@pytest.mark.parametrize(("content", "told"), [(b"\xff\xfe\n", "it is no UTF-8"), (b" \n", "names no class")])
def test_a_file_that_names_nothing_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(SampleError, match=told):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("shapes", "odd"),
    [([(None, 10)], True), ([(None, 3)], False), ([(None,), (None, 3)], False), ([(None, None)], False), ([(1, 3, 8, 8)], False), ([(1,)], False)],
)
def test_another_models_labels_are_noticed(shapes: list[tuple[int | None, ...]], odd: bool) -> None:
    outputs = [TensorInfo(f"y{place}", "float32", shape) for place, shape in enumerate(shapes)]
    assert bool(mislabelled(b"cat\ndog\ncow\n", outputs)) == odd
