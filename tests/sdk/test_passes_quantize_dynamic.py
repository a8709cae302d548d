"""Dynamic 8-bit files answer within the error that rounding can make, are what onnxruntime fuses, and leave alone what they cannot say."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import graph, passes, sampling, saturation
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.passes._tables import rows
from tests.sdk.small_models import DATA, answers, build, chains, node, numbers, operators
from tests.sdk.transformers import ROWS, block, lstm

ALL = ("MatMul", "Gemm", "LSTM", "Gather")
FLOAT_NOISE = 1e-5  # of sums in float32, in units of the sum of magnitudes


def constants(model: Model) -> dict[str, Array]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None}


def fused(model: Model, folder: Path) -> Counter[str]:
    """The operators that are left when onnxruntime has optimized the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "optimized.onnx")
    graph.save_as(model, folder / "model.onnx")
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(each.op_type for each in onnx.load(folder / "optimized.onnx").graph.node)


def by_onnxruntime(model: Model, folder: Path, **how: Any) -> Model:
    """What onnxruntime's own tool makes of it."""
    from onnxruntime.quantization import quantize_dynamic

    graph.save_as(model, folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "quantized.onnx", **how)
    return graph.load(folder / "quantized.onnx")


def step_of(array: Array) -> float:
    """How far apart the integers of DynamicQuantizeLinear lie."""
    return float(max(array.max(initial=0), 0) - min(array.min(initial=0), 0)) / 255


@st.composite
def products(draw: Any) -> tuple[Model, Array, Array, Array]:
    """A MatMul or Gemm in one of its forms; what it is fed, its matrix and what it adds."""
    inputs, outputs, seed = draw(st.integers(1, 70)), draw(st.integers(1, 33)), draw(st.integers(0, 999))
    matrix = numbers(inputs, outputs, seed=seed, scale=draw(st.sampled_from([1e-3, 1.0, 50.0])))
    if draw(st.booleans()):
        matrix[:, 0] = 0
    if draw(st.booleans()):
        lead = draw(st.lists(st.integers(1, 3), max_size=2))
        model = build([node("MatMul", ["x", "w"], ["y"])], inputs={"x": [*lead, inputs]}, outputs={"y": [*lead, outputs]}, weights={"w": matrix})
        return model, numbers(*lead, inputs, seed=seed + 1), matrix, np.zeros(1, np.float32)
    alpha, beta, swap, count = draw(st.sampled_from([1.0, 0.5])), draw(st.sampled_from([1.0, -2.0])), draw(st.booleans()), draw(st.integers(1, 4))
    shape = draw(st.sampled_from([(), (1,), (outputs,), (1, outputs), (count, 1), (count, outputs)]))
    weights = {"w": matrix.T if swap else matrix, "c": numbers(*shape, seed=seed + 2)}
    gemm = node("Gemm", ["x", "w", "c"], ["y"], alpha=alpha, beta=beta, transB=int(swap))
    model = build([gemm], inputs={"x": (count, inputs)}, outputs={"y": (count, outputs)}, weights=weights)
    return model, numbers(count, inputs, seed=seed + 1), matrix * np.float32(alpha), weights["c"] * np.float32(beta)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=products(), per_channel=st.booleans(), reduce_range=st.booleans(), weights=st.sampled_from(["int8", "uint8"]))
def test_a_product_is_off_by_no_more_than_rounding_makes(made: Any, per_channel: bool, reduce_range: bool, weights: Any) -> None:
    model, x, matrix, addend = made
    before = graph.to_bytes(model)
    quantized = passes.quantize_dynamic(model, per_channel=per_channel, reduce_range=reduce_range, weights=weights)
    graph.check(quantized)
    assert graph.to_bytes(model) == before
    assert graph.to_bytes(passes.quantize_dynamic(model, per_channel=per_channel, reduce_range=reduce_range, weights=weights)) == graph.to_bytes(quantized)
    held = constants(quantized)
    integers = held["w_quantized"].astype(np.int64) - (128 if weights == "uint8" else 0)
    assert held["w_quantized"].dtype == np.dtype(weights)
    assert np.abs(integers).max() <= 127
    assert held["w_scale"].shape == ((matrix.shape[1],) if per_channel else ())
    rounded = integers * held["w_scale"].astype(np.float64)
    assert (np.abs(rounded - matrix) <= 0.5001 * held["w_scale"]).all()
    if weights == "int8" and reduce_range:
        assert not saturation.possible(integers, 1)
    elif weights == "int8" and saturation.possible(integers, 1):
        return  # what comes out is the machine's affair
    size = np.abs(x).astype(np.float64) @ np.abs(matrix)
    bound = np.abs(x).astype(np.float64) @ np.abs(rounded - matrix) + step_of(x) * np.abs(rounded).sum(0) + FLOAT_NOISE * (size + np.abs(addend)) + 1e-30
    exact = x.astype(np.float64) @ matrix + addend
    for optimize in (False, True):
        found = graph.run(graph.session(quantized, optimize=optimize), {"x": x})["y"]
        assert found.shape == exact.shape
        assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weights", ["int8", "uint8"])
def test_a_block_becomes_what_onnxruntime_fuses(tmp_path: Path, per_channel: bool, weights: Any) -> None:
    model = block()
    quantized = passes.quantize_dynamic(model, per_channel=per_channel, weights=weights)
    kinds = operators(quantized)
    assert (kinds["MatMulInteger"], kinds["MatMul"], kinds["DynamicQuantizeLinear"]) == (6, 2, 4)  # q, k and v share theirs
    left = fused(quantized, tmp_path)
    assert (left["MatMulIntegerToFloat"], left["DynamicQuantizeMatMul"], left["MatMulInteger"]) == (3, 3, 0)
    names = {each.name for each in quantized.graph}
    assert {"q_proj", "up_proj", "similar"} <= names


def test_a_block_is_what_onnxruntimes_tool_makes_of_it(tmp_path: Path) -> None:
    model = block()
    ours, theirs = passes.quantize_dynamic(model, reduce_range=False), by_onnxruntime(model, tmp_path, per_channel=True, op_types_to_quantize=["MatMul"])
    assert operators(ours) == operators(theirs)
    for feeds in sampling.generated(model, 3):
        np.testing.assert_allclose(answers(ours, feeds)["y"], answers(theirs, feeds)["y"], rtol=1e-4, atol=1e-4)


_STATE = {"initial_h": numbers(2, 3, 5, seed=7, scale=0.5), "initial_c": numbers(2, 3, 5, seed=8, scale=0.5)}
_BIAS = {"B": numbers(2, 40, seed=9, scale=0.2)}
LSTMS: dict[str, dict[str, Any]] = {
    "forward": {"direction": "forward"},
    "reverse": {"direction": "reverse", "extra": {"B": numbers(1, 40, seed=9)}},
    "bidirectional": {"direction": "bidirectional", "extra": _BIAS},
    "states": {"direction": "bidirectional", "extra": _STATE | _BIAS},
    "lengths": {"direction": "bidirectional", "extra": {"sequence_lens": np.array([6, 2, 4], np.int32)}},
    "peepholes": {"direction": "bidirectional", "extra": {"P": numbers(2, 15, seed=10)}},
    "clip": {"direction": "forward", "clip": 0.4},
    "input_forget": {"direction": "forward", "input_forget": 1},
    "activations": {"direction": "forward", "activations": ["HardSigmoid", "Relu", "Tanh"], "activation_alpha": [0.3], "activation_beta": [0.4]},
}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", LSTMS)
def test_an_lstm_is_what_onnxruntimes_tool_makes_of_it(tmp_path: Path, kind: str, per_channel: bool) -> None:
    model = lstm(inputs=7, hidden=5, scale=0.01, **LSTMS[kind])
    ours = passes.quantize_dynamic(model, per_channel=per_channel, reduce_range=False)
    graph.check(ours)
    theirs = by_onnxruntime(model, tmp_path, per_channel=per_channel)
    assert operators(ours) == operators(theirs) == {"com.microsoft::DynamicQuantizeLSTM": 1}
    feeds = {"x": numbers(6, 3, 7, seed=3)}
    np.testing.assert_allclose(answers(ours, feeds)["y"], answers(theirs, feeds)["y"], rtol=1e-5, atol=1e-6)


def test_an_lstm_is_off_by_no_more_than_rounding_makes() -> None:
    model = lstm(inputs=7, hidden=5, direction="forward", extra={"B": numbers(1, 40, seed=9, scale=0.2)}, scale=0.3)
    x = numbers(4, 2, 7, seed=3)
    expected = answers(model, {"x": x})["y"][:, 0]
    exact = constants(model)
    for weights in ("int8", "uint8"):
        quantized = passes.quantize_dynamic(model, weights=weights)  # type: ignore[arg-type]
        found = graph.run(graph.session(quantized, optimize=True), {"x": x})["y"][:, 0]
        held = constants(quantized)
        rounded = [
            (held[f"{name}_quantized"][0].astype(np.int64) - (128 if weights == "uint8" else 0)) * held[f"{name}_scale"][0].astype(float) for name in "WR"
        ]
        bound = lstm_bound(x, exact["W"][0].T, exact["R"][0].T, exact["B"][0], rounded)
        assert bound.max() < 0.5 * np.abs(expected).max()  # it says something
        assert (np.abs(found - expected) <= bound).all()


def lstm_bound(x: Array, w: Array, r: Array, b: Array, rounded: list[Array]) -> Array:
    """How far hidden states [steps, batch, hidden] can be off, by the slopes of sigmoid (¼) and tanh (1), step after step."""
    batch, hidden = x.shape[1], r.shape[0]
    h, c = np.zeros((batch, hidden)), np.zeros((batch, hidden))
    off_h, off_c = np.zeros((batch, hidden)), np.zeros((batch, hidden))
    bounds = []
    for now in x.astype(float):
        sums = now @ w + h @ r + b[: 4 * hidden] + b[4 * hidden :]
        step = 2 * (np.abs(h) + off_h).max() / 255
        off = np.abs(now) @ np.abs(rounded[0] - w) + step_of(x) * np.abs(rounded[0]).sum(0)
        off = off + np.abs(h) @ np.abs(rounded[1] - r) + (off_h + step) @ np.abs(rounded[1]) + 1e-5
        (i, o, f, g), (off_i, off_o, off_f, off_g) = np.split(sums, 4, axis=1), np.split(off, 4, axis=1)
        i, o, f, g = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-o)), 1 / (1 + np.exp(-f)), np.tanh(g)
        off_c = np.abs(c) * off_f / 4 + (f + off_f / 4) * off_c + np.abs(g) * off_i / 4 + (i + off_i / 4) * off_g
        c = f * c + i * g
        off_h = np.abs(np.tanh(c)) * off_o / 4 + (o + off_o / 4) * off_c
        h = o * np.tanh(c)
        bounds.append(off_h)
    return np.stack(bounds)


def test_rows_of_a_table_are_off_by_half_a_step() -> None:
    model = block()
    held = constants(model)["table"]
    integers, scales = rows(held * np.logspace(-3, 3, ROWS, dtype=np.float32)[:, None])
    assert (np.abs(integers * scales - held * np.logspace(-3, 3, ROWS, dtype=np.float32)[:, None]) <= 0.5001 * scales).all()
    lookup = build_lookup(held)
    quantized = passes.quantize_dynamic(lookup, operators=["Gather"])
    graph.check(quantized)
    assert graph.describe(quantized).weight_bytes < 0.4 * graph.describe(lookup).weight_bytes
    feeds = {"x": np.array([[0, 5], [-1, 99]], np.float32)}
    np.testing.assert_array_less(np.abs(answers(lookup, feeds)["y"] - answers(quantized, feeds)["y"]), 0.0051 * np.abs(held).max())


def build_lookup(table: Array, **attributes: Any) -> Model:
    nodes = [node("Cast", ["x"], ["i"], to=onnx.TensorProto.INT64), node("Gather", ["t", "i"], ["y"], name="lookup", **attributes)]
    return build(nodes, inputs={"x": ("n", "m")}, outputs={"y": (None, None, None)}, weights={"t": table})


def test_a_table_that_has_other_readers_or_another_axis_stays() -> None:
    table = numbers(ROWS, 32)
    other = build(
        [
            node("Cast", ["x"], ["i"], to=onnx.TensorProto.INT64), node("Gather", ["t", "i"], ["g"]),
            node("Transpose", ["t"], ["tt"]), node("MatMul", ["g", "tt"], ["y"]),
        ],
        inputs={"x": ("n", "m")}, outputs={"y": (None, None, None)}, weights={"t": table},
    )  # fmt: skip
    small = build_lookup(table[:8])
    for model in (other, small, build_lookup(table, axis=1), build_lookup(np.where(table > 2, np.nan, table).astype(np.float32))):
        assert passes.quantize_dynamic(model, operators=["Gather"]) is model
    assert passes.quantize_dynamic(build_lookup(table), operators=["Gather"], exclude=["lookup"]).graph is not None


def left_alone() -> dict[str, tuple[Model, dict[str, Any]]]:
    w = numbers(6, 6)
    square = {"inputs": {"x": (6, 6)}, "outputs": {"y": (6, 6)}}
    gru = node("GRU", ["x", "W", "R"], ["y"], hidden_size=5)
    recurrent = {"W": numbers(1, 15, 7), "R": numbers(1, 15, 5)}
    turned = node("LSTM", ["x", "W", "R"], ["y"], hidden_size=5, layout=1)
    return {
        "two activations": (build([node("MatMul", ["x", "x"], ["y"])], **square), {}),
        "constant first": (build([node("MatMul", ["w", "x"], ["y"])], weights={"w": w}, **square), {}),
        "transA": (build([node("Gemm", ["x", "w"], ["y"], transA=1)], weights={"w": w}, **square), {}),
        "computed bias": (build([node("Gemm", ["x", "w", "x"], ["y"])], weights={"w": w}, **square), {}),
        "NaN": (build([node("MatMul", ["x", "w"], ["y"])], weights={"w": np.full_like(w, np.nan)}, **square), {}),
        "stacked": (build([node("MatMul", ["x", "w"], ["y"])], inputs={"x": (6, 6)}, outputs={"y": (2, 6, 6)}, weights={"w": numbers(2, 6, 6)}), {}),
        "excluded": (build([node("MatMul", ["x", "w"], ["y"], name="it")], weights={"w": w}, **square), {"exclude": ["it"]}),
        "not asked for": (build([node("MatMul", ["x", "w"], ["y"])], weights={"w": w}, **square), {"operators": ["Gemm"]}),
        "GRU": (build([gru], inputs={"x": ("s", "b", 7)}, outputs={"y": (None, 1, None, 5)}, weights=recurrent), {}),
        "layout": (graph.clone(_unchecked(turned)), {}),
    }


def _unchecked(layer: onnx.NodeProto) -> Model:
    """onnxruntime has no kernel for it, so `build` would refuse it."""
    import onnx_ir

    from tests.sdk.small_models import proto

    weights = {"W": numbers(1, 20, 7), "R": numbers(1, 20, 5)}
    return onnx_ir.serde.deserialize_model(proto([layer], inputs={"x": ("b", "s", 7)}, outputs={"y": (None, None, 1, 5)}, weights=weights))


@pytest.mark.parametrize("kind", left_alone())
def test_what_it_cannot_say_is_left_alone(kind: str) -> None:
    model, how = left_alone()[kind]
    assert passes.quantize_dynamic(model, **how) is model


def test_a_convolution_has_no_dynamic_form() -> None:
    with pytest.raises(ModelError, match="`Conv` has no dynamic"):
        passes.quantize_dynamic(block(), operators=["Conv"])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_graphs_without_products_come_back_themselves(model: Model) -> None:
    assert passes.quantize_dynamic(model, operators=ALL) is model


def test_the_real_recurrent_model_is_a_third_as_large_and_answers_nearly_the_same() -> None:
    model = graph.load(DATA / "bilstm_vowels.onnx")
    quantized = passes.apply([*({"pass": name} for name in passes.SIMPLIFY), {"pass": "quantize_dynamic", "settings": {"per_channel": False}}], model)
    assert graph.describe(quantized).weight_bytes < 0.3 * graph.describe(model).weight_bytes
    assert operators(quantized)["com.microsoft::DynamicQuantizeLSTM"] == 1
    for feeds in sampling.generated(model, 4):
        expected, found = answers(model, feeds)["logits"], answers(quantized, feeds)["logits"]
        assert expected.argmax() == found.argmax()
        assert np.linalg.norm(expected - found) < 0.1 * np.linalg.norm(expected)


def test_products_that_follow_one_another() -> None:
    weights = {"w0": numbers(32, 32, scale=0.2), "w1": numbers(32, 32, seed=1, scale=0.2)}
    chain = [node("MatMul", [f"h{i}" if i else "x", f"w{i % 2}"], [f"h{i + 1}" if i < 3 else "y"]) for i in range(4)]
    model = build(chain, inputs={"x": (2, 32)}, outputs={"y": (2, 32)}, weights=weights)
    x = numbers(2, 32, seed=5)
    expected = answers(model, {"x": x})["y"]
    for name in ("quantize_dynamic", "quantize_weights"):
        made = passes.PASSES[name](model)
        assert operators(made) != operators(model)
        np.testing.assert_allclose(answers(made, {"x": x})["y"], expected, atol=0.1 * float(np.abs(expected).max()))
