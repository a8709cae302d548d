"""Any units of any group can go, the rest answers as if nobody had read them; and channels that make no difference go by themselves."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk import graph
from edgesdk.graph import Array, Feeds, Model
from edgesdk.passes._dimensions import Dimensions, analyse, shrink
from edgesdk.passes.remove_dead_channels import remove_dead_channels
from tests.sdk.generated import Generated, graphs
from tests.sdk.prunable import IMAGE_BLOCKS, SEQUENCE_BLOCKS, Prunable, networks
from tests.sdk.small_models import GRAPHS, answers
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


@settings(QUICKLY, max_examples=5)
@given(data=st.data())
@pytest.mark.parametrize("block", BLOCKS)
def test_any_units_of_each_block_go(block: str, data: st.DataObject) -> None:
    some_units_go(data.draw(networks(only=block)), seed=0)


@settings(QUICKLY, max_examples=5)
@given(data=st.data())
@pytest.mark.parametrize("block", BLOCKS)
def test_dead_channels_of_each_block_go(block: str, data: st.DataObject) -> None:
    dead_channels_go(data.draw(networks(only=block)))


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
