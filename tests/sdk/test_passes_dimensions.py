"""Any units of any group can go, the rest answers as if nobody had read them; and channels that make no difference go by themselves."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes._dimensions import Dimensions, analyse, shrink
from edgesdk.passes.remove_dead_channels import remove_dead_channels
from tests.sdk import transformers
from tests.sdk.generated import Generated, graphs
from tests.sdk.prunable import IMAGE_BLOCKS, SEQUENCE_BLOCKS, Prunable, networks
from tests.sdk.small_models import GRAPHS, answers, assert_same_function, build, node, numbers, operators
from tests.sdk.test_passes_generated import QUICKLY

BLOCKS = [*IMAGE_BLOCKS, *SEQUENCE_BLOCKS]


@pytest.mark.slow
@settings(QUICKLY, max_examples=GRAPHS)
@given(network=networks(), seed=st.integers(0, 1000))
def test_any_units_of_any_network_go(network: Prunable, seed: int) -> None:
    some_units_go(network, seed)


@pytest.mark.slow
@settings(QUICKLY, max_examples=GRAPHS)
@given(network=networks())
def test_dead_channels_of_any_network_go(network: Prunable) -> None:
    dead_channels_go(network)


@pytest.mark.slow
@settings(QUICKLY, max_examples=GRAPHS)
@given(generated=graphs(), seed=st.integers(0, 1000))
def test_any_units_of_any_odd_graph_go(generated: Generated, seed: int) -> None:
    some_units_go(Prunable(generated.model, generated.feeds, generated.feeds, planted=0), seed)


@settings(QUICKLY, max_examples=3)
@given(data=st.data())
@pytest.mark.parametrize("block", BLOCKS)
def test_any_units_of_each_block_go(block: str, data: st.DataObject) -> None:
    some_units_go(data.draw(networks(only=block)), seed=0)


@settings(QUICKLY, max_examples=3)
@given(data=st.data())
@pytest.mark.parametrize("block", BLOCKS)
def test_dead_channels_of_each_block_go(block: str, data: st.DataObject) -> None:
    dead_channels_go(data.draw(networks(only=block)))


def test_a_head_of_an_attention_is_a_unit() -> None:
    dimensions = analyse(transformers.block())
    heads = next(group for group in dimensions.groups if group.width > 1)
    assert (heads.count, heads.width, heads.mixes) == (transformers.HEADS, transformers.WIDTH // transformers.HEADS, ())
    assert {maker.node for maker in heads.makers} == {"q_proj", "k_proj", "v_proj"}
    assert [reader.node for reader in heads.readers] == ["o_proj"]
    assert heads.readers[0].units == (0,) * heads.width + (1,) * heads.width
    stream = next(group for group in dimensions.groups if group.count == transformers.WIDTH)
    assert [maker.node for maker in stream.makers] == ["embedding", "o_proj"]
    assert len(stream.mixes) == 1, "LayerNormalization divides by what all channels have"


def test_what_is_not_understood_stays_whole_and_is_named() -> None:
    model = two_convs(node("Trilu", ["h"], ["y"], name="odd"))
    dimensions = analyse(model)
    assert not dimensions.groups
    assert [(whole.name, whole.count, whole.reason) for whole in dimensions.whole] == [
        ("h", 8, "Trilu `odd` is not understood"),
        ("z", 4, "`z` is an output of the model"),
    ]


def test_a_group_keeps_one_unit() -> None:
    model = two_convs(node("Relu", ["h"], ["y"]))
    dimensions = analyse(model)
    assert [(group.name, group.axis, group.count, group.width) for group in dimensions.groups] == [("h", 1, 8, 1)]
    assert shapes_of(shrink(model, dimensions, {"h": range(7)})) == {"w": (1, 3, 3, 3), "v": (4, 1, 3, 3)}
    with pytest.raises(ModelError, match="all channels of `h` would go"):
        shrink(model, dimensions, {"h": range(8)})


def test_a_channel_shuffle_becomes_a_gather_of_what_is_left() -> None:
    shuffle = [
        node("Reshape", ["h", "apart"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["b", "whole"], ["y"], name="shuffle"),
    ]
    model = two_convs(*shuffle, apart=np.array([1, 2, 4, 6, 6]), whole=np.array([1, 8, 6, 6]))
    dimensions = analyse(model)
    smaller = shrink(model, dimensions, {"h": [0, 5]})
    assert operators(smaller) == {"Conv": 2, "Gather": 1}
    gather = next(each for each in smaller.graph if each.op_type == "Gather")
    assert gather.name == "shuffle"
    order = graph.constant(gather.inputs[1])
    assert order is not None
    assert order.tolist() == [3, 0, 1, 4, 2, 5]  # of 0 4 1 5 2 6 3 7 those that stay, counted anew


def test_what_a_dead_channel_always_is_goes_into_the_bias_behind_it() -> None:
    weight, bias = numbers(8, 3, 3, 3), numbers(8, seed=1)
    weight[2:5] = 0
    model = build(
        [node("Conv", ["x", "w", "b"], ["h"], name="first"), node("Sigmoid", ["h"], ["s"]), node("Conv", ["s", "v"], ["z"], name="second")],
        inputs={"x": (1, 3, 6, 6)},
        outputs={"z": (1, 4, 4, 4)},
        weights={"w": weight, "b": bias, "v": numbers(4, 8, 1, 1, seed=2)},
    )
    slim = remove_dead_channels(model)
    assert shapes_of(slim) == {"w": (5, 3, 3, 3), "v": (4, 5, 1, 1)}
    assert_same_function(model, slim)
    assert remove_dead_channels(slim) is slim


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    """Of the weights, by name."""
    arrays = {name: graph.constant(value) for name, value in model.graph.initializers.items()}
    return {name: array.shape for name, array in arrays.items() if array is not None and array.ndim > 1}


def two_convs(*between: onnx.NodeProto, **more: Array) -> Model:
    """Eight channels `h`, what is done to them until they are `y`, and a second Conv."""
    return build(
        [node("Conv", ["x", "w"], ["h"], name="first", pads=[1] * 4), *between, node("Conv", ["y", "v"], ["z"], name="second", pads=[1] * 4)],
        inputs={"x": (1, 3, 6, 6)},
        outputs={"z": (1, 4, 6, 6)},
        weights={"w": numbers(8, 3, 3, 3), "v": numbers(4, 8, 3, 3, seed=1), **more},
    )


def some_units_go(network: Prunable, seed: int) -> None:
    model, before = network.model, graph.to_bytes(network.model)
    dimensions, numbers = analyse(model), np.random.default_rng(seed)
    removed = {group.name: numbers.choice(group.count, numbers.integers(0, group.count), replace=False) for group in dimensions.groups}
    smaller = shrink(model, dimensions, {name: units.tolist() for name, units in removed.items()})
    assert graph.to_bytes(model) == before, "the model given was changed"
    graph.check(smaller)
    assert any(len(units) for units in removed.values()) == (numbers_read(smaller) < numbers_read(model))
    exact = not any(group.mixes and len(removed[group.name]) for group in dimensions.groups)
    unread = without_readers(model, dimensions, removed)
    for feeds in (network.feeds, network.others):
        assert_alike(smaller, unread, feeds, numbers=exact)


def dead_channels_go(network: Prunable) -> None:
    slim = remove_dead_channels(network.model)
    graph.check(slim)
    if network.planted:
        assert numbers_read(slim) < numbers_read(network.model)
    for feeds in (network.feeds, network.others):
        assert_alike(slim, network.model, feeds)


def numbers_read(model: Model) -> int:
    """By all nodes, of constants: what two of them share counts twice, since it may not be shared any more."""
    return sum(array.size for node in model.graph for value in node.inputs if (array := graph.constant(value)) is not None)


def without_readers(model: Model, dimensions: Dimensions, removed: Mapping[str, Array]) -> Model:
    """Nobody gives those units any weight."""
    unread = graph.clone(model)
    nodes = {str(node.name): node for node in unread.graph}
    for group in dimensions.groups:
        for reader in group.readers:
            node = nodes[reader.node]
            weight = graph.constant(node.inputs[reader.place])
            assert weight is not None
            stays = np.isin(reader.units, removed[group.name], invert=True)
            masked = np.where(stays.reshape([-1 if axis == reader.axis else 1 for axis in range(weight.ndim)]), weight, weight.dtype.type(0))
            node.replace_input_with(reader.place, graph.add_constant(unread.graph, "masked", masked))
    return unread


def assert_alike(model: Model, other: Model, feeds: Feeds, *, numbers: bool = True) -> None:
    found, expected = answers(model, feeds), answers(other, feeds)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        finite = np.isfinite(array)  # what is not may come of what has gone
        if numbers and finite.any():
            np.testing.assert_allclose(found[name][finite], array[finite], rtol=1e-3, atol=1e-4 * max(float(np.abs(array[finite]).max()), 1e-3), err_msg=name)
