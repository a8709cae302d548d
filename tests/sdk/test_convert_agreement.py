"""What counts as the same answer."""

import numpy as np
import onnx_ir
import pytest
from onnx import parser

from edgesdk.convert.agreement import compare
from edgesdk.errors import ConversionError

MODEL = """
<ir_version: 8, opset_import: ["": 18]>
classifier (float[n, 3] x) => (int64[n] label, float[n, 3] scores) {
    scores = Identity(x)
    label = ArgMax<axis = 1, keepdims = 0>(x)
}
"""


def compared(rows, **source):
    """The model above against a source that answers as it does, but for what is given here."""
    model = onnx_ir.serde.deserialize_model(parser.parse_model(MODEL))
    feeds = [{"x": np.array([row], np.float32)} for row in rows]

    def ask(feeds):
        own = {"label": feeds["x"].argmax(axis=1), "scores": feeds["x"].astype(np.float64)}
        return own | {name: change(own[name]) for name, change in source.items()}

    return {found.output: found for found in compare(ask, model, feeds)}


CLEAR, TIED = [0.1, 0.7, 0.2], [0.4, 0.4, 0.2]


def test_equal_answers_agree():
    found = compared([CLEAR, TIED])
    assert (found["label"].difference, found["label"].tolerance, found["label"].ties) == (0, 0, 0)
    assert found["scores"].tolerance == 1e-4


def test_the_worst_sample_is_reported():
    found = compared([CLEAR, [0, 500, 0]], scores=lambda scores: scores * (1 + 2e-5))
    assert found["scores"].difference == pytest.approx(0.01, rel=0.01)
    assert found["scores"].tolerance == pytest.approx(0.05, rel=0.01)


def test_numbers_beyond_the_tolerance_differ():
    with pytest.raises(ConversionError, match=r"on sample 1, output `scores` differs from the source's by 0\.000[23].*, more than the 0\.0001 allowed"):
        compared([[0, 0, 0], CLEAR], scores=lambda scores: scores * 1.0004)


def test_another_label_differs():
    with pytest.raises(ConversionError, match="on sample 1, output `label` is 1, the source's is 2"):
        compared([TIED, CLEAR], label=lambda labels: np.where(labels == 1, 2, labels))


def test_another_label_where_two_classes_are_equally_likely_is_a_tie():
    found = compared([TIED, [0.2, 0.2, 0.6]], label=lambda labels: np.where(labels == 0, 1, labels))
    assert found["label"].ties == 2  # once alone, once in the batch
    assert found["label"].to_text() == "label: equal, but for 2 ties"


def test_nan_in_other_places_differs():
    with pytest.raises(ConversionError, match="NaN or infinite in other places"):
        compared([CLEAR], scores=lambda scores: np.where(scores > 0.5, np.nan, scores))


def test_another_shape_differs():
    with pytest.raises(ConversionError, match=r"has shape \[1, 3\], the source's has \[3\]"):
        compared([CLEAR], scores=lambda scores: scores[0])


def test_samples_are_asked_for_one_by_one_and_as_a_batch():
    with pytest.raises(ConversionError, match="on a batch of the first 2 samples, output `scores`"):
        compared([CLEAR, TIED], scores=lambda scores: scores if len(scores) == 1 else scores[::-1])
