"""Half of the weights become zero, two of every four along the input channels, and the rest are set anew so that each layer answers what it answered.

    sparse = prune_two_of_four(simplified, samples=calibration)

Layer by layer, on what the pruned network itself feeds it (`_least_squares`). Which two of four go is first decided column by column, and
what one loses is made good by those to come (SparseGPT: Frantar and Alistarh 2023, arXiv:2301.00774, section 3.4); then, four after four,
by the best of the six pairs beside all others, until none changes; what stays is solved for. Layers that stay dense are solved anew too.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import onnx_ir

from edgesdk import graph, sparsity
from edgesdk.graph import Array, Model
from edgesdk.passes._bias_correction import bias_of
from edgesdk.passes._layers import Pair, constant_at, pairs, write_constant
from edgesdk.passes._least_squares import Problem, measure, solve
from edgesdk.passes._linear import is_unscaled
from edgesdk.passes._patches import from_matrix, matrix
from edgesdk.passes.remove_unused import remove_unused
from edgesdk.sampling import Samples
from edgesdk.sparsity import KEPT, OF

SWEEPS = 12  # over all fours, at most
_PAIRS = np.array(list(combinations(range(OF), KEPT)))  # that may stay


def prune_two_of_four(model: Model, *, samples: Samples, exclude: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> Model:
    """The model with 2:4 sparse weights (`sparsity`) in each Conv, Gemm and MatMul that can have them; the very same model if all have, or none can.

    Shapes and names stay. ``exclude`` names nodes that stay dense. Raises ModelError, SampleError.
    """
    work, original = graph.clone(model), graph.clone(model)
    dense = {str(weight.node.name) for weight in sparsity.weights(work) if not weight.obeys and _is_layer(weight.node)} - set(exclude)
    if not dense:
        return model
    by_name = {node.name: node for node in original.graph}
    counterparts = [(node, by_name[node.name]) for node in work.graph if _is_layer(node)]
    first = next(place for place, (node, _) in enumerate(counterparts) if node.name in dense)
    for pair in pairs(original, work, counterparts[first:], samples, progress=progress):
        _prune(pair, sparse=pair.node.name in dense)
    return remove_unused(work)  # weights that several layers shared


def _is_layer(node: onnx_ir.Node) -> bool:
    weight = graph.constant(node.inputs[1]) if node.op_type in ("Conv", "Gemm", "MatMul") and not node.domain else None
    if weight is None or weight.dtype != np.float32 or not weight.size:
        return False
    return node.op_type == "Conv" or (weight.ndim == 2 and not ("transA" in node.attributes and node.attributes["transA"].as_int()))


def _prune(pair: Pair, *, sparse: bool) -> None:
    before, now = constant_at(pair.original, 1), constant_at(pair.node, 1)
    assert before is not None and now is not None
    if not np.array_equal(before, now, equal_nan=True):
        return  # a layer that reads the same weights has decided
    rows = matrix(pair.node, before)
    bias = bias_of(pair.node, rows.shape[0] * rows.shape[1]) if is_unscaled(pair.node) else None
    problem = measure(pair, before, centred=bias is not None)
    found = _found(problem, _fours(pair.node, before) if sparse else None)
    if found is None:
        if sparse:
            _write(pair.node, from_matrix(pair.node, _largest(rows, _fours(pair.node, before)), before.shape))
        return
    _write(pair.node, from_matrix(pair.node, found, before.shape))
    if bias is not None:
        old = constant_at(*bias)
        assert old is not None
        write_constant(*bias, old + problem.shift(found).reshape(old.shape))


def _found(problem: Problem, fours: Array | None) -> Array | None:
    """The weights, as sparse as they are, or with two of each of the fours; None where the numbers do not allow it."""
    if not problem.finite:
        return None
    damped = problem.damped()
    try:
        chosen = damped.weight if fours is None else _descended(damped, _column_by_column(damped, fours), fours)
    except np.linalg.LinAlgError:  # rounding left of the moments what no numbers have: means a thousand times the deviations from them
        return None
    found = solve(damped, chosen != 0, chosen)
    numbers = np.concatenate([found.ravel(), problem.shift(found)])
    return found if (np.abs(numbers) < np.finfo(np.float32).max).all() else None


def _write(node: onnx_ir.Node, weight: Array) -> None:
    """Of this node and of those that read the same weights in the same way."""
    old = node.inputs[1]
    assert old is not None
    alike = [use.node for use in old.uses() if use.idx == 1 and use.node is not node and use.node.op_type == node.op_type and _reads_alike(use.node, node)]
    write_constant(node, 1, weight)
    for other in alike:
        other.replace_input_with(1, node.inputs[1])


def _reads_alike(node: onnx_ir.Node, other: onnx_ir.Node) -> bool:
    return all(node.attributes.get(name) == other.attributes.get(name) for name in ("group", "transB"))


def _fours(node: onnx_ir.Node, weight: Array) -> Array:
    """Which columns each four is, [fours, 4]: consecutive input channels at one place of the kernel."""
    rows = matrix(node, weight)
    places = int(np.prod(weight.shape[2:])) if node.op_type == "Conv" else 1
    return np.arange(rows.shape[2]).reshape(-1, OF, places).swapaxes(1, 2).reshape(-1, OF)


def _largest(rows: Array, fours: Array) -> Array:
    """Two of each four, for want of anything better."""
    found = rows.copy()
    goes = np.argsort(np.abs(rows[:, :, fours]), axis=3, kind="stable")[:, :, :, : OF - KEPT]
    np.put_along_axis(found, np.take_along_axis(np.broadcast_to(fours, rows[:, :, fours].shape), goes, axis=3).reshape(*rows.shape[:2], -1), 0, axis=2)
    return found


def _column_by_column(problem: Problem, fours: Array) -> Array:
    """SparseGPT from the best dense weights, four after four: the two that cost least go, and the columns to come are changed for it."""
    order = fours.ravel()
    inverse = np.linalg.inv(problem.seen)
    rest = (problem.wanted @ inverse)[:, :, order]
    inverse = inverse[:, order[:, None], order]
    upper = np.swapaxes(np.linalg.cholesky((inverse + np.swapaxes(inverse, 1, 2)) / 2), 1, 2)
    diagonal = np.diagonal(upper, axis1=1, axis2=2)[:, None]
    for start in range(0, len(order), OF):
        costs = (rest[:, :, start : start + OF] / diagonal[:, :, start : start + OF]) ** 2
        goes = np.argsort(np.argsort(costs, axis=2, kind="stable"), axis=2, kind="stable") < OF - KEPT
        for place in range(OF):
            column = start + place
            lost = np.where(goes[:, :, place], rest[:, :, column], 0.0) / upper[:, None, column, column]
            rest[:, :, column:] -= lost[:, :, None] * upper[:, None, column, column:]
            rest[:, :, column] = np.where(goes[:, :, place], 0.0, rest[:, :, column])
    found = np.empty_like(rest)
    found[:, :, order] = rest
    return found


def _descended(problem: Problem, weights: Array, fours: Array) -> Array:
    """Each four in turn set to the best pair beside all others, until none chooses another."""
    weights = weights.copy()
    slope = weights @ problem.seen - problem.wanted
    for _ in range(SWEEPS):
        moved = False
        for four in fours:
            own = problem.seen[:, four[:, None], four]
            wanted = weights[:, :, four] @ own - slope[:, :, four]
            best = _best_pairs(own, wanted)
            moved |= bool(((best != 0) != (weights[:, :, four] != 0)).any())
            slope += (best - weights[:, :, four]) @ problem.seen[:, four]
            weights[:, :, four] = best
        if not moved:
            break
    return weights


def _best_pairs(seen: Array, wanted: Array) -> Array:
    """Of four weights the two for which w·seen·wᵀ - 2·w·wanted is least, [groups, outputs, 4]."""
    inverse = np.linalg.inv(seen[:, _PAIRS[:, :, None], _PAIRS[:, None, :]])  # [groups, pairs, 2, 2]
    asked = wanted[:, :, _PAIRS]  # [groups, outputs, pairs, 2]
    answers = np.einsum("gpab,gopb->gopa", inverse, asked)
    best = (answers * asked).sum(axis=3).argmax(axis=2)
    found = np.zeros_like(wanted)
    np.put_along_axis(found, _PAIRS[best], np.take_along_axis(answers, best[:, :, None, None], axis=2)[:, :, 0], axis=2)
    return found
