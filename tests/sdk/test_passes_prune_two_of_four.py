"""Two of four weights are zero, the others make up for them, and no later pass takes the zeros away."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from edgesdk import graph, passes, profiles, recipe, sampling, sparsity
from edgesdk.graph import Array, Model
from edgesdk.passes import SIMPLIFY, apply, prune_two_of_four
from edgesdk.sampling import Samples
from tests import digits
from tests.sdk.small_models import DATA, answers, build, chains, node, numbers

CNNS = {"resnet8_mnist": "digits", "resnet20_fashion": "fashion", "mobilenet_fashion": "fashion"}


def simplified(name: str = "resnet8_mnist") -> Model:
    return apply([{"pass": each} for each in SIMPLIFY], graph.load(DATA / f"{name}.onnx"))


def pictures(model: Model, name: str = "resnet8_mnist", count: int = 32) -> Samples:
    with np.load(DATA / f"{CNNS[name]}.npz") as archive:
        images = archive["image"].astype(np.float32) / 255
    return sampling.of([{"image": image[None]} for image in images[:count]], model)


def dense(model: Model) -> list[str]:
    return [str(weight.node.name) for weight in sparsity.weights(model) if not weight.obeys]


def by_magnitude(weight: Array) -> Array:
    """Two of four along axis 1, the largest, and nothing made good."""
    last = np.moveaxis(weight, 1, -1).copy()
    fours = last.reshape(-1, 4)
    np.put_along_axis(fours, np.argsort(np.abs(fours), axis=1)[:, :2], 0, axis=1)
    return np.moveaxis(fours.reshape(last.shape), -1, 1)


def with_largest(model: Model, *names: str) -> Model:
    """Of the weights of these Convs."""
    plain = graph.clone(model)
    for weight in sparsity.weights(plain):
        if weight.node.name in names:
            weight.node.replace_input_with(1, graph.add_constant(plain.graph, "plain", by_magnitude(weight.values)))
    return plain


def noise(before: Model, after: Model, samples: Samples) -> float:
    """In the answers, against their power."""
    pairs = [(answers(before, feeds), answers(after, feeds)) for feeds in samples]
    wanted, found = (np.array([[pair[place][name] for name in pair[0]] for pair in pairs]) for place in (0, 1))
    return float(((wanted - found) ** 2).sum() / (wanted**2).sum())


@settings(deadline=None, max_examples=40)
@given(model=chains())
def test_every_weight_that_can_be_is_sparse_and_all_else_stays(model: Model) -> None:
    samples = sampling.generated(model, 4)
    sparse = prune_two_of_four(model, samples=samples)
    assert dense(sparse) == []
    assert graph.inputs(sparse) == graph.inputs(model)
    assert [each.op_type for each in sparse.graph if each.op_type != "Constant"] == [each.op_type for each in model.graph if each.op_type != "Constant"]
    assert graph.to_bytes(sparse) == graph.to_bytes(prune_two_of_four(model, samples=samples))
    for feeds in samples:
        before, after = answers(model, feeds), answers(sparse, feeds)
        assert {name: array.shape for name, array in after.items()} == {name: array.shape for name, array in before.items()}
    assert prune_two_of_four(sparse, samples=samples) is sparse


def test_twins_make_good_for_each_other() -> None:
    single = numbers(4, 3, 3, 3)
    twins = np.repeat(single, 2, axis=0)  # eight channels, each there twice
    model = build(
        [
            node("Conv", ["x", "w", "b"], ["h"], name="first"),
            node("Relu", ["h"], ["r"]),
            node("Conv", ["r", "v", "c"], ["y"], name="second", pads=[1, 1, 1, 1]),
        ],
        inputs={"x": [1, 3, 12, 12]},
        outputs={"y": [1, 6, 10, 10]},
        weights={"w": twins, "b": np.repeat(numbers(4, seed=1), 2), "v": numbers(6, 8, 3, 3, seed=2), "c": numbers(6, seed=3)},
    )
    samples = sampling.generated(model, 64)
    plain = with_largest(model, "second")
    sparse = prune_two_of_four(model, samples=samples)
    assert dense(sparse) == []
    assert noise(model, sparse, samples) < 0.001 < 0.05 < noise(model, plain, samples)


def test_the_network_answers_far_nearer_to_the_original_than_with_the_largest_weights() -> None:
    model = simplified()
    sparse = prune_two_of_four(model, samples=pictures(model))
    plain = with_largest(model, *(name for name in dense(model) if "gemm" not in name.lower()))
    unseen = sampling.of([{"image": image[None]} for image in digits.images()[0][-32:]], model)
    assert noise(model, sparse, unseen) < 0.2 * noise(model, plain, unseen)


def test_what_is_excluded_stays_dense_and_the_others_do_not() -> None:
    model = simplified()
    names = dense(model)
    sparse = prune_two_of_four(model, samples=pictures(model, count=4), exclude=names[:2])
    assert dense(sparse) == names[:2]


def test_layers_that_share_weights_still_do() -> None:
    model = build(
        [node("Conv", ["x", "w"], ["h"], name="first", pads=[1] * 4), node("Relu", ["h"], ["r"]), node("Conv", ["r", "w"], ["y"], name="second", pads=[1] * 4)],
        inputs={"x": [1, 8, 6, 6]},
        outputs={"y": [1, 8, 6, 6]},
        weights={"w": numbers(8, 8, 3, 3)},
    )
    sparse = prune_two_of_four(model, samples=sampling.generated(model, 4))
    assert dense(sparse) == []
    assert graph.describe(sparse).parameters == 8 * 8 * 9


@pytest.mark.parametrize("extra", [{}, {"reconstruct": True}, {"reconstruct": True, "correct_bias": True}])
def test_the_zeros_are_there_in_eight_bits(extra: dict[str, Any]) -> None:
    model = simplified()
    samples = pictures(model, count=8)
    plan = next(plan for plan in recipe.plans(profiles.find("jetson-orin"), model, calibrated=True, shapes={}) if plan.scheme == "int8")
    sparse = prune_two_of_four(model, samples=samples)
    quantized = apply([{**plan.steps[-1], "settings": {**plan.steps[-1]["settings"], **extra}}], sparse, samples)
    assert "DequantizeLinear" in graph.describe(quantized).operators
    assert len(list(sparsity.weights(quantized))) == len(list(sparsity.weights(model)))
    assert dense(quantized) == []


@pytest.mark.parametrize("name", ["equalize", "smooth", "to_float16"])
def test_the_zeros_survive(name: str) -> None:
    model = simplified()
    samples = pictures(model, count=4)
    after = apply([{"pass": name}], prune_two_of_four(model, samples=samples), samples)
    assert len(list(sparsity.weights(after))) == len(list(sparsity.weights(model)))
    assert dense(after) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CNNS)
def test_a_trained_network_loses_at_most_a_point(name: str) -> None:
    model = simplified(name)
    samples = pictures(model, name, count=128)
    plan = next(plan for plan in recipe.plans(profiles.find("jetson-orin"), model, calibrated=True, shapes={}) if plan.scheme == "int8")
    sparse = passes.apply([{"pass": "prune_two_of_four"}, plan.steps[-1]], model, samples)
    assert dense(sparse) == []
    assert right(name, sparse) >= right(name, model) - 0.01


def right(name: str, model: Model) -> float:
    """The share of the 500 labelled images that it tells."""
    with np.load(DATA / f"{CNNS[name]}.npz") as archive:
        images, labels = archive["image"][128:].astype(np.float32) / 255, archive["label"][128:]
    session = graph.session(model, optimize=False)
    told = [next(iter(graph.run(session, {"image": image[None]}).values())).argmax() for image in images]
    return float((np.array(told) == labels).mean())
