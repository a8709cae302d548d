"""Block-wise weights: packed as onnxruntime reads them, off by no more than rounding makes, better than round-to-nearest; and what is left alone."""

from typing import Any, Literal

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk import graph, passes, sampling
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.passes.quantize_weights import quantized_blocks
from tests.sdk.small_models import DATA, answers, build, chains, node, numbers, operators
from tests.sdk.transformers import block


def values(integers: Array, scales: Array, zeros: Array, inputs: int) -> Array:
    """What the blocks stand for, [inputs, outputs]."""
    numbers = (integers.astype(np.float64) - zeros[..., None]) * scales[..., None]
    return np.asarray(numbers.reshape(len(integers), -1)[:, :inputs].T)


def rounded_to_nearest(matrix: Array, bits: int, block_size: int, *, symmetric: bool) -> Array:
    """As onnxruntime's own tool does it: each block's range is its extremes."""
    from onnxruntime.capi import _pybind_state as native

    inputs, outputs = matrix.shape
    count = -(-inputs // block_size)
    packed = np.zeros((outputs, count, block_size * bits // 8), np.uint8)
    scales, zeros = np.zeros(outputs * count, np.float32), np.zeros((outputs, -(-count * bits // 8)), np.uint8)
    getattr(native, f"quantize_matmul_{bits}bits")(packed, np.ascontiguousarray(matrix), scales, zeros.reshape(-1), block_size, outputs, inputs, symmetric)
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(outputs, count, block_size)
        zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(outputs, -1)[:, :count]
    zeros = np.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    return values(packed, scales.reshape(outputs, count), zeros, inputs)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    inputs=st.integers(1, 150), outputs=st.integers(1, 20), bits=st.sampled_from([4, 8]), block_size=st.sampled_from([16, 32, 128]),
    symmetric=st.booleans(), exact=st.booleans(), lead=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    kind=st.sampled_from(["MatMul", "Gemm", "Gemm transB"]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]), seed=st.integers(0, 999),
)  # fmt: skip
def test_a_product_is_off_by_no_more_than_rounding_makes(
    inputs: int, outputs: int, bits: Any, block_size: int, symmetric: bool, exact: bool, lead: list[int], kind: str, scale: float, seed: int
) -> None:
    matrix = numbers(inputs, outputs, seed=seed, scale=scale)
    matrix[: inputs // 2, 0] = 0
    lead = lead[:1] if kind != "MatMul" else lead
    weights = {"w": matrix.T if kind == "Gemm transB" else matrix, "c": numbers(outputs, seed=seed + 2)}
    operator = node("MatMul", ["x", "w"], ["y"]) if kind == "MatMul" else node("Gemm", ["x", "w", "c"], ["y"], transB=int(kind == "Gemm transB"))
    bias = 0 if kind == "MatMul" else weights["c"].astype(float)
    model = build([operator], inputs={"x": [*lead, inputs]}, outputs={"y": [*lead, outputs]}, weights=weights)
    before = graph.to_bytes(model)
    quantized = passes.quantize_weights(model, bits=bits, block_size=block_size, symmetric=symmetric, accuracy_level=0 if exact else 4)
    graph.check(quantized)
    assert graph.to_bytes(model) == before
    blocks = quantized_blocks(matrix, bits, block_size, symmetric=symmetric)
    held = values(*blocks, inputs)
    x = numbers(*lead, inputs, seed=seed + 1)
    # What float32 sums of: integers and, apart from them, their zero points.
    size = np.abs(x).astype(float) @ (np.abs(held) + (blocks[2].astype(float) * np.abs(blocks[1])).repeat(block_size, axis=1)[:, :inputs].T)
    # At level 4 onnxruntime may round each block of the activations to int8 by its greatest.
    steps = [
        np.abs(x[..., at : at + block_size]).max(-1, keepdims=True) / 127 * np.abs(held[at : at + block_size]).sum(0) for at in range(0, inputs, block_size)
    ]
    bound = 2e-6 * (size + np.abs(bias)) + (0 if exact else 0.55 * np.sum(steps, axis=0)) + 1e-30
    for optimize in (False, True):
        found = graph.run(graph.session(quantized, optimize=optimize), {"x": x})["y"]
        assert found.shape == (*lead, outputs)
        assert (np.abs(found - (x.astype(float) @ held + bias)) <= bound).all()


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 100), outputs=st.integers(1, 9), bits=st.sampled_from([4, 8]), block_size=st.sampled_from([16, 64]), symmetric=st.booleans(),
    seed=st.integers(0, 999), shift=st.sampled_from([0.0, 3.0]), tail=st.booleans(),
)  # fmt: skip
def test_blocks_are_no_worse_than_rounding_to_nearest(
    inputs: int, outputs: int, bits: Literal[4, 8], block_size: int, symmetric: bool, seed: int, shift: float, tail: bool
) -> None:
    matrix = numbers(inputs, outputs, seed=seed) + np.float32(shift)
    matrix = np.asarray(matrix**3 if tail else matrix, np.float32)
    integers, scales, zeros = quantized_blocks(matrix, bits, block_size, symmetric=symmetric)
    assert integers.max() < 2**bits
    assert not symmetric or (zeros == 2 ** (bits - 1)).all()
    ours = np.square(values(integers, scales, zeros, inputs) - matrix).sum()
    theirs = np.square(rounded_to_nearest(matrix, bits, block_size, symmetric=symmetric) - matrix).sum()
    assert ours <= 1.001 * theirs + 1e-12


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_block_keeps_its_attention_and_its_names(bits: Any, symmetric: bool) -> None:
    model = block()
    quantized = passes.quantize_weights(model, bits=bits, symmetric=symmetric, operators=["MatMul", "Gather"])
    kinds = operators(quantized)
    assert (kinds["com.microsoft::MatMulNBits"], kinds["MatMul"]) == (6, 2)
    assert {"q_proj", "up_proj", "similar"} <= {each.name for each in quantized.graph}
    assert graph.describe(quantized).weight_bytes < (0.26 if bits == 4 else 0.36) * graph.describe(model).weight_bytes
    assert graph.to_bytes(passes.quantize_weights(model, bits=bits, symmetric=symmetric, operators=["MatMul", "Gather"])) == graph.to_bytes(quantized)
    for feeds in sampling.generated(model, 3):
        expected, found = answers(model, feeds)["y"], answers(quantized, feeds)["y"]
        assert np.linalg.norm(expected - found) < (0.15 if bits == 4 else 0.02) * np.linalg.norm(expected)


def test_one_constant_read_twice_is_kept_once() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    model = build(nodes, inputs={"x": ("n", 6)}, outputs={"y": (None, 6)}, weights={"w": numbers(6, 6)})
    assert sorted(passes.quantize_weights(model).graph.initializers) == ["w_quantized", "w_scale"]
    assert sorted(passes.quantize_dynamic(model).graph.initializers) == ["w_quantized", "w_scale"]


def test_weights_in_nodes_of_an_old_file_are_gone_and_odd_names_stay() -> None:
    held = node("Constant", [], ["Gewicht: ü"], value=onnx.numpy_helper.from_array(numbers(6, 6)))
    model = build([held, node("MatMul", ["x", "Gewicht: ü"], ["y"], name='a "b"/c')], inputs={"x": ("n", 6)}, outputs={"y": (None, 6)}, opset=9)
    for quantized in (passes.quantize_weights(model), passes.quantize_dynamic(model)):
        graph.check(quantized)
        assert "Constant" not in operators(quantized)
        assert 'a "b"/c' in {each.name for each in quantized.graph}
        assert "Gewicht: ü_quantized" in quantized.graph.initializers


def test_nothing_to_quantize_is_the_model_itself() -> None:
    model = build([node("MatMul", ["x", "x"], ["y"])], inputs={"x": (6, 6)}, outputs={"y": (6, 6)})
    assert passes.quantize_weights(model) is model
    one = build([node("MatMul", ["x", "w"], ["y"], name="it")], inputs={"x": (6, 6)}, outputs={"y": (6, 6)}, weights={"w": numbers(6, 6)})
    assert passes.quantize_weights(one, exclude=["it"]) is one
    assert passes.quantize_weights(one, operators=["Gemm"]) is one


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=chains())
def test_graphs_without_products_come_back_themselves(model: Model) -> None:
    assert passes.quantize_weights(model, operators=["MatMul", "Gemm", "Gather"]) is model


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"bits": 3}, "3 bits"),
        ({"block_size": 48}, "block of 48"),
        ({"block_size": 8}, "block of 8"),
        ({"block_size": 2**70}, "none that onnxruntime"),
        ({"operators": ["Conv"]}, "`Conv` has no form"),
    ],
)
def test_what_onnxruntime_has_no_kernel_for_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        passes.quantize_weights(block(), **how)


def test_the_real_recurrent_models_products_are_an_eighth_as_large() -> None:
    model = graph.load(DATA / "bilstm_vowels.onnx")
    quantized = passes.apply([*({"pass": name} for name in passes.SIMPLIFY), {"pass": "quantize_weights", "settings": {"bits": 4}}], model)
    assert operators(quantized)["com.microsoft::MatMulNBits"] == 2
    for feeds in sampling.generated(model, 4):
        assert answers(model, feeds)["logits"].argmax() == answers(quantized, feeds)["logits"].argmax()
