"""Two of four: which weights of a file are sparse as the hardware reads them."""

import numpy as np
import pytest

from edgesdk import graph, sparsity
from edgesdk.graph import Array, Model
from tests.sdk.small_models import build, node, numbers

TWO = np.array([0.0, 1.0, 0.0, 2.0], np.float32)
THREE = np.array([0.0, 1.0, 3.0, 2.0], np.float32)


def conv(weight: Array, group: int = 1) -> Model:
    channels = weight.shape[1] * group
    return build(
        [node("Conv", ["x", "w"], ["y"], name="conv", group=group)],
        inputs={"x": [1, channels, 5, 5]},
        outputs={"y": [1, None, None, None]},
        weights={"w": weight},
    )


def product(kind: str, weight: Array, **attributes: int) -> Model:
    length = weight.shape[1 if attributes.get("transB") else 0]
    return build([node(kind, ["x", "w"], ["y"], name="product", **attributes)], inputs={"x": [1, length]}, outputs={"y": [1, None]}, weights={"w": weight})


def along_channels(four: Array) -> Array:
    """A kernel of 3×3 whose input channels are these at every place."""
    return np.broadcast_to(four[None, :, None, None], (6, 4, 3, 3)).copy()


@pytest.mark.parametrize(
    ("model", "obeys"),
    [
        (conv(along_channels(TWO)), True),
        (conv(along_channels(THREE)), False),
        (conv(np.tile(along_channels(TWO), (2, 1, 1, 1)), group=2), True),
        (product("MatMul", np.tile(TWO[:, None], (2, 5))), True),
        (product("MatMul", np.tile(TWO, (8, 2))), False),  # two of four along the outputs
        (product("Gemm", np.tile(THREE[:, None], (2, 5))), False),
        (product("Gemm", np.tile(TWO, (5, 2)), transB=1), True),
    ],
)
def test_fours_lie_along_what_is_summed(model: Model, obeys: bool) -> None:
    assert [weight.obeys for weight in sparsity.weights(model)] == [obeys]


def test_one_place_of_one_kernel_is_enough_to_break_the_rule() -> None:
    weight = along_channels(TWO)
    weight[3, 0, 2, 1] = 1e-30
    assert [found.obeys for found in sparsity.weights(conv(weight))] == [False]


@pytest.mark.parametrize("model", [conv(numbers(4, 3, 3, 3)), conv(numbers(4, 1, 3, 3), group=4), product("MatMul", numbers(6, 8))])
def test_what_fours_do_not_fill_is_not_asked(model: Model) -> None:
    assert list(sparsity.weights(model)) == []


@pytest.mark.parametrize(("zero_point", "obeys"), [(np.zeros(6, np.int8), True), (np.arange(6, dtype=np.int8), False), (None, True)])
def test_integers_are_zero_at_their_zero_point(zero_point: Array | None, obeys: bool) -> None:
    weights = {"w": along_channels(TWO).astype(np.int8), "s": np.full(6, 0.1, np.float32)} | ({} if zero_point is None else {"z": zero_point})
    model = build(
        [node("DequantizeLinear", list(weights), ["d"], axis=0), node("Conv", ["x", "d"], ["y"])],
        inputs={"x": [1, 4, 5, 5]},
        outputs={"y": [1, 6, 3, 3]},
        weights=weights,
    )
    assert [found.obeys for found in sparsity.weights(model)] == [obeys]
    assert graph.opset(model) >= 13
