"""Fewer channels, in the numbers that the hardware likes, and the network answers what it answered as nearly as it can."""

from itertools import pairwise

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import costs, graph, passes, sampling
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Array, Model
from edgesdk.passes import SIMPLIFY
from edgesdk.passes.prune import Criterion, carry_out, choose, prune, survey
from edgesdk.sampling import Samples
from tests import digits
from tests.sdk.generated import Generated, graphs
from tests.sdk.prunable import Prunable, networks
from tests.sdk.small_models import DATA, GRAPHS, answers, build, node, numbers, proto

QUICKLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
ALIKE = 1e-3  # least squares are damped: a few samples do not say everything
CRITERIA: tuple[Criterion, ...] = ("reconstruction", "activation", "l1", "l2")


def test_channels_that_others_can_stand_in_for_go_and_the_answers_stay() -> None:
    """Every second channel is a copy of the one before, so half of them are enough; the first half by size would not be."""
    model = two_convs(w=np.repeat(numbers(4, 3, 3, 3), 2, axis=0), b=np.repeat(numbers(4, seed=2), 2))
    half = prune(model, samples=feeds_for(model), macs=0.5)
    assert shapes(half) == {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 4, 3, 3), "c": (4,)}
    assert noise(model, half) < ALIKE


@pytest.mark.parametrize("criterion", CRITERIA)
def test_without_repair_the_others_keep_their_weights(criterion: Criterion) -> None:
    model = two_convs()
    kept = prune(model, samples=feeds_for(model), macs=0.5, criterion=criterion, repair=False)
    before, after = (weights(each) for each in (model, kept))
    assert {row.tobytes() for row in after["w"]} < {row.tobytes() for row in before["w"]}
    anew = prune(model, samples=feeds_for(model), macs=0.5, criterion=criterion)
    assert noise(model, anew) < noise(model, kept)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_smallest_filters_go_first(criterion: Criterion) -> None:
    sizes = np.array([3, 1, 4, 2, 8, 5, 7, 6], np.float32)
    model = two_convs(w=numbers(1, 3, 3, 3) * sizes.reshape(-1, 1, 1, 1))
    (group,) = survey(model, samples=feeds_for(model), criterion=criterion).prunable
    assert group.order[:4] == (1, 3, 0, 2)


def test_a_channel_that_is_small_but_read_strongly_stays() -> None:
    """By activation times weight, not by weight."""
    sizes = np.array([1, 1, 1, 1, 2, 2, 2, 2], np.float32)
    model = two_convs(w=numbers(8, 3, 3, 3) * sizes.reshape(-1, 1, 1, 1), v=numbers(4, 8, 3, 3, seed=1) * 9 ** (2 - sizes.reshape(1, -1, 1, 1)))
    expected: dict[Criterion, set[int]] = {"activation": {4, 5, 6, 7}, "l2": {0, 1, 2, 3}}
    for criterion, first in expected.items():
        (group,) = survey(model, samples=feeds_for(model), criterion=criterion).prunable
        assert set(group.order[:4]) == first


def test_what_a_residual_branch_has_lost_is_made_good_by_what_is_added_to_it() -> None:
    """The first Conv's channels are tied to nothing, and its copy in the second branch can answer for what went."""
    w = numbers(8, 3, 1, 1)
    model = build(
        [
            node("Conv", ["x", "w"], ["h"]),
            node("Conv", ["h", "v"], ["left"]),
            node("Conv", ["x", "u"], ["right"]),
            node("Add", ["left", "right"], ["z"]),
        ],
        inputs={"x": ("n", 3, 6, 6)},
        outputs={"z": ("n", 4, 6, 6)},
        weights={"w": w, "v": numbers(4, 8, 1, 1, seed=1), "u": numbers(4, 3, 1, 1, seed=2)},
    )
    pruned = prune(model, samples=feeds_for(model), macs=0.45)
    assert shapes(pruned)["w"][0] < 3, "too few for x's three channels"
    assert noise(model, pruned) < ALIKE


@pytest.mark.parametrize(
    "operators",
    [
        pytest.param([node("Conv", ["h", "deep"], ["d"], group=8, pads=[1] * 4), node("Relu", ["d"], ["y"])], id="depthwise"),
        pytest.param([node("BatchNormalization", ["h", "one", "two", "three", "four"], ["n"]), node("Relu", ["n"], ["y"])], id="BatchNormalization"),
        pytest.param(
            [node("Relu", ["h"], ["r"]), node("ConvTranspose", ["r", "up"], ["t"]), node("Slice", ["t", "from", "to", "along"], ["y"])], id="ConvTranspose"
        ),
    ],
)
def test_twin_channels_go_through_other_operators(operators: list[onnx.NodeProto]) -> None:
    def twins(*shape: int, seed: int) -> Array:
        return np.repeat(numbers(*shape, seed=seed), 2, axis=0)

    more = {"deep": twins(4, 1, 3, 3, seed=3), "up": np.repeat(twins(4, 4, 2, 2, seed=4), 2, axis=1)}
    more |= {"one": twins(4, seed=5), "two": twins(4, seed=6), "three": twins(4, seed=7), "four": np.abs(twins(4, seed=8)) + 1}
    more |= {"from": np.array([0, 0]), "to": np.array([6, 6]), "along": np.array([2, 3])}
    read = {name for each in operators for name in each.input}
    model = two_convs(operators, w=twins(4, 3, 3, 3, seed=0), b=twins(4, seed=2), **{name: array for name, array in more.items() if name in read})
    half = prune(model, samples=feeds_for(model), macs=0.55)
    assert noise(model, half) < ALIKE


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_twin_states_of_a_recurrent_network_go(kind: str) -> None:
    gates, hidden = {"LSTM": 4, "GRU": 3}[kind], 4

    def twins(array: Array, axis: int) -> Array:
        """Each state twice, gate by gate."""
        return np.repeat(array, 2, axis=axis)

    recurrent = twins(twins(numbers(1, gates * hidden, hidden, seed=1) * np.float32(0.5), 1), 2) / 2
    model = build(
        [
            node(kind, ["x", "w", "r", "b"], ["y", "last"], name="gates", hidden_size=2 * hidden),
            node("Squeeze", ["y", "one"], ["s"]),
            node("MatMul", ["s", "v"], ["z"]),
        ],
        inputs={"x": (7, 3, 5)},
        outputs={"z": (7, 3, 6)},
        weights={
            "w": twins(numbers(1, gates * hidden, 5), 1),
            "r": recurrent,
            "b": twins(numbers(1, 2 * gates * hidden, seed=3), 1),
            "v": numbers(2 * hidden, 6, seed=2),
            "one": np.array([1]),
        },
    )
    half = prune(model, samples=feeds_for(model), parameters=0.5)
    assert shapes(half)["r"] == (1, gates * hidden, hidden)
    assert noise(model, half) < ALIKE


def test_channels_come_in_multiples_and_a_group_of_one_multiple_stays_whole() -> None:
    model = chain(24, 8, 20)
    found = survey(model, samples=feeds_for(model), multiple=8)
    assert {each.group.count: each.counts for each in found.prunable} == {24: (24, 16, 8), 20: (20, 16, 8)}
    assert ("there is no more than one multiple of 8", 8) in {(whole.reason, whole.count) for whole in found.whole}
    assert ("`z` is an output of the model", 4) in {(whole.reason, whole.count) for whole in found.whole}


def test_of_many_multiples_two_go_at_a_time() -> None:
    """onnxruntime's blocks are 16 channels where the registers are wide: 88 of 96 would be as slow as 96."""
    model = chain(96, 88, 20)
    found = survey(model, samples=feeds_for(model), multiple=8)
    assert {each.group.count: each.counts for each in found.prunable} == {96: (96, 80, 64, 48, 32, 16), 88: (88, *range(80, 0, -8)), 20: (20, 16, 8)}


def test_what_is_left_is_the_share_that_was_asked_for() -> None:
    model = chain(24, 16, 24)
    found = survey(model, samples=feeds_for(model))
    for share in (0.9, 0.5, 0.2):
        by_macs, by_parameters = choose(found, macs=share), choose(found, parameters=share)
        pruned = carry_out(found, by_macs)
        assert share - 0.1 < found.share("macs", by_macs) <= share
        assert found.share("macs", by_macs) == pytest.approx(macs(pruned) / macs(model))
        assert found.share("parameters", by_macs) == pytest.approx(graph.describe(pruned).parameters / graph.describe(model).parameters)
        assert share - 0.1 < found.share("parameters", by_parameters) <= share


def test_a_group_that_matters_more_keeps_more() -> None:
    """The same weights twice, one behind the other; what the second answers hardly counts beside what comes straight from the first."""
    model = build(
        [
            node("Conv", ["x", "w"], ["h"]),
            node("Conv", ["h", "v"], ["left"]),
            node("Conv", ["x", "w2"], ["k"]),
            node("Conv", ["k", "v2"], ["right"]),
            node("Add", ["left", "right"], ["z"]),
        ],
        inputs={"x": ("n", 9, 6, 6)},
        outputs={"z": ("n", 9, 6, 6)},
        weights={"w": numbers(9, 9, 1, 1), "v": numbers(9, 9, 1, 1, seed=1), "w2": numbers(9, 9, 1, 1, seed=2), "v2": numbers(9, 9, 1, 1, seed=3, scale=0.1)},
    )
    strong, weak = choose(survey(model, samples=feeds_for(model)), macs=0.6).values()
    assert strong > weak


def test_nodes_that_are_left_out_keep_their_channels() -> None:
    model = chain(24, 16, 24)
    kept = survey(model, samples=feeds_for(model), exclude=["conv0"])
    assert "`conv0` is to keep its channels" in {whole.reason for whole in kept.whole}
    assert shapes(carry_out(kept, choose(kept, macs=0.4)))["w0"] == shapes(model)["w0"]


def test_nothing_to_prune_is_the_very_same_model() -> None:
    model = chain(24, 16, 24)
    assert prune(model, samples=feeds_for(model), macs=0.5, multiple=64) is model


def test_labels_that_are_words_are_no_obstacle() -> None:
    """As a classifier from scikit-learn answers; its batch is free, so that samples may be run together."""
    classifier = proto(
        [
            node("Gemm", ["x", "w", "b"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("Gemm", ["r", "v", "c"], ["score"]),
            node("ArgMax", ["score"], ["best"], axis=1, keepdims=0),
            node("Gather", ["names", "best"], ["label"]),
        ],
        inputs={"x": ("n", 4)},
        outputs={"score": ("n", 3), "label": ("n",)},
        weights={"w": numbers(4, 8), "b": numbers(8), "v": numbers(8, 3, seed=1), "c": numbers(3, seed=2), "names": np.array(["a", "b", "c"], object)},
    )
    classifier.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.STRING
    model, feeds = onnx_ir.serde.deserialize_model(classifier), [{"x": numbers(1, 4, seed=seed)} for seed in range(4)]
    found = survey(model, samples=Samples("four", lambda: iter(feeds), 4))
    made = carry_out(found, choose(found, macs=0.5))
    assert graph.describe(made).parameters < graph.describe(model).parameters
    assert set(answers(made, feeds[0])["label"]) <= {"a", "b", "c"}


def test_the_same_twice_and_the_model_given_stays() -> None:
    model = chain(24, 16, 24)
    before = graph.to_bytes(model)
    steps = [{"pass": "prune", "settings": {"macs": 0.5, "multiple": 4}}]
    once, again = (passes.apply(steps, model, feeds_for(model)) for _ in range(2))
    assert graph.to_bytes(once) == graph.to_bytes(again) != graph.to_bytes(model) == before


@pytest.mark.parametrize("wrong", [{}, {"macs": 0.5, "parameters": 0.5}, {"macs": 0.0}, {"parameters": 1.0}, {"macs": 0.5, "multiple": 0}])
def test_what_cannot_be_meant_is_refused(wrong: dict[str, float]) -> None:
    model = chain(8, 8, 8)
    with pytest.raises(ModelError):
        prune(model, samples=feeds_for(model), **wrong)  # type: ignore[arg-type]


def test_without_samples_there_is_nothing_to_go_by() -> None:
    model = chain(8, 8, 8)
    with pytest.raises(SampleError, match="holds no samples"):
        prune(model, samples=Samples("an empty folder", lambda: iter(())), macs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "most"), [(0.5, 0.012), (0.3, 0.03)])
def test_half_of_a_trained_network_tells_digits_as_well(share: float, most: float) -> None:
    """On 128 images without labels; 85 points are lost without repair (docs/pruning.md)."""
    model = passes.apply([{"pass": name} for name in SIMPLIFY], graph.load(DATA / "resnet8_mnist.onnx"))
    images, labels = digits.images()
    samples = sampling.of([{"image": image[None]} for image in images[: digits.CALIBRATION]], model)
    pruned = prune(model, samples=samples, macs=share, multiple=8)
    assert macs(pruned) <= share * macs(model)
    before, after = (answers(each, {"image": images[digits.CALIBRATION :]})["logits"].argmax(1) == labels[digits.CALIBRATION :] for each in (model, pruned))
    assert before.mean() - after.mean() <= most


@pytest.mark.slow
@settings(QUICKLY, max_examples=GRAPHS // 4)
@given(network=networks(), criterion=st.sampled_from(CRITERIA), repair=st.booleans(), multiple=st.sampled_from([1, 2]))
def test_any_network_is_pruned_and_answers_in_the_same_shapes(network: Prunable, criterion: Criterion, repair: bool, multiple: int) -> None:
    is_pruned(network.model, [network.feeds, network.others], criterion, repair=repair, multiple=multiple)


@pytest.mark.slow
@settings(QUICKLY, max_examples=GRAPHS // 4)
@given(generated=graphs(), criterion=st.sampled_from(CRITERIA), repair=st.booleans())
def test_any_odd_graph_is_pruned_and_answers_in_the_same_shapes(generated: Generated, criterion: Criterion, repair: bool) -> None:
    is_pruned(generated.model, [generated.feeds], criterion, repair=repair, multiple=1)


def is_pruned(model: Model, feeds: list[graph.Feeds], criterion: Criterion, *, repair: bool, multiple: int) -> None:
    before = graph.to_bytes(model)
    found = survey(model, samples=Samples("one", lambda: iter(feeds[:1]), 1), criterion=criterion, repair=repair, multiple=multiple)
    kept = choose(found, macs=0.5)
    made = carry_out(found, kept)
    graph.check(made)
    assert graph.to_bytes(model) == before, "the model given was changed"
    assert all(count * each.group.width % multiple == 0 for each in found.prunable if (count := kept[each.group.name]) < each.group.count)
    for each in feeds:
        expected, answered = answers(model, each), answers(made, each)
        assert {name: (array.shape, array.dtype) for name, array in answered.items()} == {name: (array.shape, array.dtype) for name, array in expected.items()}
        assert all(np.isfinite(answered[name][np.isfinite(array)]).all() for name, array in expected.items() if array.dtype.kind == "f")


def two_convs(between: list[onnx.NodeProto] | None = None, **more: Array) -> Model:
    """Eight channels `h`, what is done to them until they are `y`, and a second Conv."""
    arrays = {"w": numbers(8, 3, 3, 3), "b": numbers(8, seed=2), "v": numbers(4, 8, 3, 3, seed=1), "c": numbers(4, seed=3), **more}
    return build(
        [
            node("Conv", ["x", "w", "b"], ["h"], name="first", pads=[1] * 4),
            *(between or [node("Relu", ["h"], ["y"])]),
            node("Conv", ["y", "v", "c"], ["z"], name="second", pads=[1] * 4),
        ],
        inputs={"x": ("n", 3, 6, 6)},
        outputs={"z": ("n", 4, 6, 6)},
        weights=arrays,
    )


def chain(*widths: int) -> Model:
    """Convs `conv0`, `conv1` … with a Relu between each two, and four channels at the end."""
    every = (3, *widths, 4)
    nodes, last = [], "x"
    for place in range(len(every) - 1):
        made = "z" if place == len(every) - 2 else f"h{place}"
        nodes.append(node("Conv", [last, f"w{place}"], [made], name=f"conv{place}", pads=[1] * 4))
        last = made
        if made != "z":
            last = f"r{place}"
            nodes.append(node("Relu", [made], [last]))
    weights = {f"w{place}": numbers(after, before, 3, 3, seed=place, scale=0.2) for place, (before, after) in enumerate(pairwise(every))}
    return build(nodes, inputs={"x": ("n", 3, 6, 6)}, outputs={"z": ("n", 4, 6, 6)}, weights=weights)


def feeds_for(model: Model) -> Samples:
    return sampling.generated(model, 24)


def weights(model: Model) -> dict[str, Array]:
    arrays = {name: graph.constant(value) for name, value in model.graph.initializers.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Of the weights, by name."""
    return {name: array.shape for name, array in weights(model).items() if array.dtype == np.float32}


def macs(model: Model) -> int:
    return sum(costs.macs(model, costs.shapes(model, next(iter(sampling.generated(model, 1))))).values())


def noise(before: Model, after: Model) -> float:
    """In the answers to what pruning did not see, against their power."""
    samples = list(sampling.generated(before, 8, seed=1))
    pairs = [(answers(before, feeds)["z"], answers(after, feeds)["z"]) for feeds in samples]
    return float(sum(((wanted - found) ** 2).sum() for wanted, found in pairs) / sum((wanted**2).sum() for wanted, _ in pairs))
