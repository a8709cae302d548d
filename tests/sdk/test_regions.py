"""Regions are the cheapest cut, and groups are layers with what follows them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk import graph, regions
from edgesdk.passes import SIMPLIFY, apply
from edgesdk.passes.quantize import targets
from edgesdk.regions import Costs, Group, Link
from tests import digits
from tests.sdk.small_models import DATA

OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Mul", "HardSwish", "GlobalAveragePool", "MaxPool"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 7))
def test_no_other_choice_of_regions_is_cheaper(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    ends = [None, *range(count)]
    between = [Link(f"t{i}", *(ends[int(end)] for end in random.choice(len(ends), 2, replace=False))) for i in range(2 * count)]
    costs = Costs(list(random.random(count) * 3), list(random.random(count) * 3), list(random.random(len(between))))

    def total(chosen: set[int]) -> float:
        own = sum(costs.int8[place] if place in chosen else costs.float_[place] for place in range(count))
        return own + sum(cost for link, cost in zip(between, costs.links, strict=True) if (link.before in chosen) != (link.after in chosen))

    best = min(total(set(chosen)) for size in range(count + 1) for chosen in itertools.combinations(range(count), size))
    found = regions.cheapest([Group((str(place),)) for place in range(count)], between, costs)
    assert total(set(found)) == pytest.approx(best)


@pytest.mark.parametrize("file", ["resnet8_mnist.onnx", "mobilenet_fashion.onnx"])
def test_groups_hold_each_target_once_and_begin_with_a_layer(file: str) -> None:
    model = apply([{"pass": name} for name in SIMPLIFY], graph.load(DATA / file))
    names = targets(model, operators=OPERATORS)
    parts = regions.groups(model, names, most=1000)
    assert sorted(name for part in parts for name in part.nodes) == sorted(names)
    kinds = {str(node.name): node.op_type for node in model.graph}
    assert sum(kinds[part.nodes[0]] in regions.LAYERS for part in parts) == sum(kinds[name] in regions.LAYERS for name in names)
    few = regions.groups(model, names, most=4)
    assert len(few) == 4
    assert sorted(name for part in few for name in part.nodes) == sorted(names)


def test_links_join_what_reads_to_what_writes() -> None:
    model = apply([{"pass": name} for name in SIMPLIFY], graph.load(digits.MODEL))
    parts = regions.groups(model, targets(model, operators=OPERATORS), most=1000)
    between = regions.links(model, parts)
    assert any(link.before is None for link in between)  # the input
    assert any(link.after is None for link in between)  # the output
    assert all(link.before != link.after for link in between)
