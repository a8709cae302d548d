"""Weights of matrix products become 8 or 4 bits in blocks; what they are multiplied with stays float32.

    quantize_weights(model, bits=4, block_size=32)

For models whose weights are the weight: a quarter or an eighth of the size, where the activations carry outliers that 8 bits do not hold.
The products become onnxruntime's `MatMulNBits`, which reads each block of a column with a scale, and perhaps a zero point, of its own.
Scales of 4 bits are those of least squared error among some that let the extremes saturate, each fitted to the integers that it gives
(the clipping grid of GPTQ's quantizer, Frantar et al. 2022; the fit is linear least squares).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir

from edgesdk import graph
from edgesdk.errors import ModelError
from edgesdk.graph import Array, Model
from edgesdk.passes._products import CONTRIB, Product, made, products, put, with_bias
from edgesdk.passes._tables import quantize_tables
from edgesdk.passes.remove_unused import remove_unused

OPERATORS = ("MatMul", "Gemm", "Gather")
LEAST_BLOCK, MOST_BLOCK = 16, 1 << 15

_SHARES = {8: np.ones(1), 4: np.linspace(1.0, 0.6, 17)}  # of a block's range that its scale holds


def quantize_weights(
    model: Model,
    *,
    bits: Literal[8, 4] = 8,
    block_size: int = 32,
    symmetric: bool = True,
    accuracy_level: Literal[0, 1, 4] = 4,
    operators: Sequence[str] = ("MatMul", "Gemm"),
    exclude: Sequence[str] = (),
) -> Model:
    """The model with block-wise weights; the very same model if it has none that are constant float32.

    ``block_size`` consecutive weights of a column, a power of two from 16 to 32768, share a scale; not ``symmetric``: a zero point too.
    ``accuracy_level`` is onnxruntime's: 4 lets it round activations to int8 by blocks within the product, 0 and 1 do not.
    ``operators`` may hold ``Gather``: tables of embeddings are kept in int8, a scale a row, whatever ``bits`` says. Nodes named in
    ``exclude`` stay as they are. Raises ModelError for settings that onnxruntime has no kernel for.
    """
    _check(bits, block_size, operators)
    work = graph.clone(model)
    found = products(work, operators, exclude)
    blocks: dict[tuple[object, ...], list[onnx_ir.Value]] = {}
    for product in found:
        if product.key not in blocks:
            blocks[product.key] = _constants(work.graph, product, bits, block_size, symmetric=symmetric)
        _replace(work.graph, product, blocks[product.key], {"bits": bits, "block_size": block_size, "accuracy_level": accuracy_level})
    looked_up = "Gather" in operators and quantize_tables(work, exclude)
    if not (found or looked_up):
        return model
    if found:
        work.opset_imports[CONTRIB] = 1
    return remove_unused(work)  # the float32 weights


def quantized_blocks(matrix: Array, bits: int, block_size: int, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Integers [outputs, blocks, block_size], scales [outputs, blocks] and zero points [outputs, blocks] of a matrix [inputs, outputs].

    A weight is (integer - zero point) · scale. The last block is filled up with weights of nought.
    """
    inputs, outputs = matrix.shape
    count = -(-inputs // block_size)
    blocks = np.zeros((outputs, count * block_size))
    blocks[:, :inputs] = matrix.T
    blocks = blocks.reshape(outputs, count, block_size)
    most = 2**bits - 1
    best: tuple[Array, Array, Array] | None = None
    least = np.full((outputs, count), np.inf)
    for scale, zero in _candidates(blocks, bits, symmetric=symmetric):
        integers = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, most)
        fitted = _fitted(blocks, integers - zero[..., None], scale)
        error = np.square(blocks - (integers - zero[..., None]) * fitted[..., None]).sum(-1)
        better = error < least
        if best is None:
            best = integers, fitted, zero
        best = np.where(better[..., None], integers, best[0]), np.where(better, fitted, best[1]), np.where(better, zero, best[2])
        least = np.minimum(error, least)
    assert best is not None
    integers, scale, zero = best
    scale = np.where(blocks.any(-1), scale, 0)  # kernels subtract the zero points' share apart, and round it: of a block of noughts, nothing is left
    return integers.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)


def _candidates(blocks: Array, bits: int, *, symmetric: bool) -> list[tuple[Array, Array]]:
    """Scales and zero points to try, [outputs, blocks] each. A symmetric scale may be negative: the end with one integer more takes the extreme."""
    most, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    found = []
    for share in _SHARES[bits]:
        if symmetric:
            extreme = np.where(-low > high, low, high)
            found += [(_usable(share * extreme / -middle), middle), (_usable(share * extreme / (middle - 1)), middle)]
        else:
            scale = _usable(share * (high - low) / most)
            found.append((scale, np.clip(np.rint(-share * low / scale), 0, most)))
    return [(scale, np.broadcast_to(np.asarray(zero, float), scale.shape)) for scale, zero in found]


def _usable(scale: Array) -> Array:
    """Where all is nought, or nearly, any scale does."""
    return np.where(np.abs(scale) > np.finfo(np.float32).tiny, scale, 1.0)


def _fitted(blocks: Array, steps: Array, scale: Array) -> Array:
    """The scale of least squared error for these integers."""
    weight = np.square(steps).sum(-1)
    fitted = np.where(weight > 0, (blocks * steps).sum(-1) / np.maximum(weight, 1), scale)
    return np.where(np.abs(fitted) > np.finfo(np.float32).tiny, fitted, scale)


def _check(bits: int, block_size: int, operators: Sequence[str]) -> None:
    if unknown := [name for name in operators if name not in OPERATORS]:
        raise ModelError(f"`{unknown[0]}` has no form with block-wise weights", f"name some of {', '.join(OPERATORS)}")
    if bits not in _SHARES:
        raise ModelError(f"onnxruntime has no kernel for weights of {bits} bits", "take 8 or 4")
    if not LEAST_BLOCK <= block_size <= MOST_BLOCK or block_size & (block_size - 1):
        raise ModelError(f"a block of {block_size} weights is none that onnxruntime has a kernel for", "take 32 or 128: a power of two from 16 to 32768")


def _constants(inside: onnx_ir.Graph, product: Product, bits: int, block_size: int, *, symmetric: bool) -> list[onnx_ir.Value]:
    """Integers, scales and, unless they are the middle, zero points, packed as the operator's definition has it: the lower of two first."""
    integers, scales, zeros = quantized_blocks(product.matrix, bits, block_size, symmetric=symmetric)
    stem = product.weight
    packed = [(f"{stem}_quantized", _packed(integers, bits)), (f"{stem}_scale", scales.reshape(-1))]
    if not symmetric:
        packed.append((f"{stem}_zero_point", _packed(zeros, bits).reshape(-1)))
    return [graph.add_constant(inside, name, array) for name, array in packed]


def _packed(integers: Array, bits: int) -> Array:
    """Along the last axis, two integers of 4 bits in a byte; an odd one out is filled up with nought."""
    if bits == 8:
        return integers
    even = np.concatenate([integers, np.zeros((*integers.shape[:-1], integers.shape[-1] % 2), np.uint8)], axis=-1)
    return np.asarray(even[..., 0::2] | even[..., 1::2] << 4, np.uint8)


def _replace(inside: onnx_ir.Graph, product: Product, constants: list[onnx_ir.Value], settings: dict[str, int]) -> None:
    inputs, outputs = product.matrix.shape
    multiply = made(inside, "MatMulNBits", [product.given, *constants], str(product.node.name), domain=CONTRIB, K=inputs, N=outputs, **settings)
    multiply.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    multiply.outputs[0].shape = product.node.outputs[0].shape
    put([multiply, *with_bias(product, multiply)], product.node)
