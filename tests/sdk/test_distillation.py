"""Pruned models that are trained to answer as the original does."""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from edgesdk import graph, sampling
from edgesdk.distillation import distil
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.sampling import Samples
from edgesdk.torch_twin import Twin, written
from tests.sdk.small_models import build, node, numbers

if not os.environ.get("CI") and not (find_spec("torch") and find_spec("onnx2torch")):
    pytest.skip("needs the extra `torch`: make test TORCH=1", allow_module_level=True)

pytestmark = pytest.mark.torch

IMAGE = ("n", 3, 16, 16)  # large enough to be moved


def shared_and_scaled() -> Model:
    """Conv weights read twice, a Gemm in either layout with factors, a constant in a node."""
    four = onnx.numpy_helper.from_array(numbers(4, 1, 1, seed=4))
    return build(
        [
            node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("Constant", [], ["by"], value=four),
            node("Mul", ["c", "by"], ["d"]),
            node("Add", ["a", "d"], ["e"]),
            node("GlobalAveragePool", ["e"], ["f"]),
            node("Flatten", ["f"], ["g"]),
            node("Gemm", ["g", "m", "t"], ["h"], alpha=0.5, beta=2.0),
            node("Gemm", ["h", "o", "u"], ["y"], transB=1),
        ],
        inputs={"x": IMAGE},
        outputs={"y": ("n", 5)},
        weights={
            "w": numbers(4, 3, 3, 3),
            "b": numbers(4, seed=1),
            "m": numbers(4, 6, seed=2),
            "t": numbers(6, seed=3),
            "o": numbers(5, 6, seed=5),
            "u": numbers(5, seed=6),
        },
    )


def normalized(opset: int) -> Model:
    """BatchNormalization, a transposed convolution with uneven strides, reductions and reshapings, as new an opset as one likes."""
    kept = {"axes": "axes"} if opset >= 18 else {}
    return build(
        [
            node("BatchNormalization", ["x", "s", "b", "mean", "var"], ["a"]),
            node("ConvTranspose", ["a", "w"], ["c"], strides=[2, 1]),
            node("HardSwish", ["c"], ["d"]),
            node("ReduceMean", ["d", *kept.values()], ["e"], keepdims=0, **({} if kept else {"axes": [2, 3]})),
            node("LayerNormalization", ["e", "ls", "lb"], ["f"], axis=-1),
            node("MatMul", ["f", "m"], ["g"]),
            node("Softmax", ["g"], ["y"], axis=-1),
        ],
        inputs={"x": IMAGE},
        outputs={"y": ("n", 4)},
        weights={
            "s": numbers(3, seed=1),
            "b": numbers(3, seed=2),
            "mean": numbers(3, seed=3),
            "var": np.abs(numbers(3, seed=4)) + 1,
            "w": numbers(3, 6, 2, 2, seed=5),
            "ls": numbers(6, seed=6),
            "lb": numbers(6, seed=7),
            "m": numbers(6, 4, seed=8),
            **({"axes": np.array([2, 3])} if kept else {}),
        },
        opset=opset,
    )


@pytest.mark.parametrize("model", [shared_and_scaled(), normalized(17), normalized(18), normalized(21)], ids=["shared", "17", "18", "21"])
def test_torch_computes_what_onnxruntime_does_and_its_weights_are_the_files(model: Model) -> None:
    feeds = {"x": numbers(5, *IMAGE[1:], seed=9)}
    twin = Twin(model, ["y"])
    (answer,) = twin.answered(feeds)
    np.testing.assert_allclose(answer, graph.run(graph.session(model), feeds)["y"], rtol=1e-4, atol=1e-5)
    assert set(twin.numbers) == {"w", "b", "m", "t", "o", "u", "by", "s", "ls", "lb"} & set(_constants(model)), "all weights, and no statistics"


def test_a_length_that_no_shape_tells_is_read_off_the_weights() -> None:
    model = build(
        [node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1)],
        inputs={"x": ("n", "m")},
        outputs={"y": ("n", "m")},
        weights={"s": numbers(6), "b": numbers(6, seed=1)},
    )
    feeds = {"x": numbers(4, 6, seed=2)}
    (answer,) = Twin(model, ["y"]).answered(feeds)
    np.testing.assert_allclose(answer, graph.run(graph.session(model), feeds)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [shared_and_scaled(), normalized(17), normalized(18)], ids=["shared", "17", "18"])
def test_a_shaken_model_is_brought_back_and_keeps_everything_but_its_numbers(model: Model) -> None:
    shaken, samples = _shaken(model), _images(model)
    taught = distil(model, shaken, samples, epochs=150)
    assert _error(model, taught, samples) < 0.2 * _error(model, shaken, samples)
    assert [(each.name, each.op_type, [value.name for value in (*each.inputs, *each.outputs) if value]) for each in taught.graph] == [
        (each.name, each.op_type, [value.name for value in (*each.inputs, *each.outputs) if value]) for each in shaken.graph
    ]
    assert {name: array.shape for name, array in _constants(taught).items()} == {name: array.shape for name, array in _constants(shaken).items()}
    graph.check(taught)


def test_the_same_samples_teach_the_same_numbers_on_any_number_of_cores() -> None:
    import torch

    model = shared_and_scaled()
    before, taught = torch.get_num_threads(), []
    for threads in (1, 1, 3):
        torch.set_num_threads(threads)
        taught.append(graph.to_bytes(distil(model, _shaken(model), _images(model), epochs=2)))
        assert torch.get_num_threads() == threads, "others find torch as they left it"
    torch.set_num_threads(before)
    assert taught[0] == taught[1] == taught[2]


def test_zeros_stay_zeros_only_where_they_should() -> None:
    model = shared_and_scaled()
    sparse = _changed(model, "w", lambda array: np.where(np.abs(array) < 0.5, 0, array))
    zeros = _constants(sparse)["w"] == 0
    kept, moved = (_constants(distil(model, sparse, _images(model), epochs=60, keep_zeros=keep))["w"] for keep in (True, False))
    assert zeros.any() and (kept[zeros] == 0).all() and (kept[~zeros] != _constants(sparse)["w"][~zeros]).any()
    assert (moved[zeros] != 0).any()


def test_what_cannot_be_bettered_is_left_alone() -> None:
    model = shared_and_scaled()
    equal = graph.clone(model)
    assert distil(model, equal, _images(model), epochs=2) is equal


def test_a_fixed_batch_and_samples_of_many_sizes_are_shown_one_by_one() -> None:
    model = build(
        [node("Conv", ["x", "w"], ["a"]), node("GlobalAveragePool", ["a"], ["b"]), node("Reshape", ["b", "to"], ["y"])],
        inputs={"x": (1, 3, "h", "w")},
        outputs={"y": (1, 4)},
        weights={"w": numbers(4, 3, 3, 3), "to": np.array([1, 4])},
    )
    shaken = _shaken(model)
    samples = sampling.of([{"x": numbers(1, 3, 5 + i % 3, 6, seed=i)} for i in range(40)], model)
    assert _error(model, distil(model, shaken, samples, epochs=80), samples) < 0.5 * _error(model, shaken, samples)


def test_operators_without_a_torch_module_are_named() -> None:
    model = build(
        [node("GRU", ["x", "w", "r"], ["", "h"], hidden_size=2), node("Squeeze", ["h", "axes"], ["y"])],
        inputs={"x": (4, "n", 3)},
        outputs={"y": ("n", 2)},
        weights={"w": numbers(1, 6, 3), "r": numbers(1, 6, 2), "axes": np.array([0])},
    )
    with pytest.raises(ModelError, match="GRU"):
        distil(model, graph.clone(model), sampling.generated(model, 4), epochs=1)


def test_without_onnx2torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    model = shared_and_scaled()
    with pytest.raises(ModelError, match="onnx2torch") as caught:
        distil(model, graph.clone(model), _images(model), epochs=1)
    assert "edgesdk[torch]" in caught.value.hint


def _images(model: Model) -> Samples:
    return sampling.of([{"x": numbers(1, *IMAGE[1:], seed=i)} for i in range(64)], model)


def _constants(model: Model) -> dict[str, Array]:
    values = [*model.graph.initializers.values(), *(output for each in model.graph if each.op_type == "Constant" for output in each.outputs)]
    return {value.name or "": array for value in values if (array := graph.constant(value)) is not None}


def _shaken(model: Model) -> Model:
    """Every weight of the matrix in the middle a third smaller or larger."""
    name = "m" if "m" in _constants(model) else "w"
    return _changed(model, name, lambda array: array * np.where(numbers(*array.shape, seed=11) > 0, 0.6, 1.4).astype(np.float32))


def _changed(model: Model, name: str, change: Callable[[Array], Array]) -> Model:
    return written(model, {name: change(_constants(model)[name])})


def _error(original: Model, other: Model, samples: Samples) -> float:
    ours, theirs = graph.session(original), graph.session(other)
    return float(np.mean([np.square(graph.run(ours, feeds)["y"] - graph.run(theirs, feeds)["y"]).mean() for feeds in samples]))
