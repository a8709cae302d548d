"""The passes: one transformation a file, ``(model, settings) -> model``. The model given is never changed.

    slim = apply([{"pass": name} for name in SIMPLIFY], model)
    small = apply([{"pass": "quantize", "settings": {"operators": ["Conv"]}}], slim, samples)

A recipe is a list of such steps. It is JSON, and the same recipe, model and samples give the same bytes.
Each pass is also a function of its own: ``fold_batch_norm(model)``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgesdk import graph
from edgesdk.errors import ModelError, SampleError
from edgesdk.graph import Model
from edgesdk.passes._settings import check, check_excluded
from edgesdk.passes.affine_to_conv import affine_to_conv
from edgesdk.passes.equalize import equalize
from edgesdk.passes.factor_sums import factor_sums
from edgesdk.passes.fix_shapes import fix_shapes
from edgesdk.passes.fold_affine import fold_affine
from edgesdk.passes.fold_batch_norm import fold_batch_norm
from edgesdk.passes.fold_constants import fold_constants
from edgesdk.passes.lift_constants import lift_constants
from edgesdk.passes.merge_convolutions import merge_convolutions
from edgesdk.passes.merge_duplicates import merge_duplicates
from edgesdk.passes.pad_channels import pad_channels
from edgesdk.passes.prune import prune
from edgesdk.passes.prune_two_of_four import prune_two_of_four
from edgesdk.passes.quantize import Scheme, quantize
from edgesdk.passes.quantize_dynamic import quantize_dynamic
from edgesdk.passes.quantize_weights import quantize_weights
from edgesdk.passes.raise_opset import raise_opset
from edgesdk.passes.recognise_global_pool import recognise_global_pool
from edgesdk.passes.recognise_hard_sigmoid import recognise_hard_sigmoid
from edgesdk.passes.recognise_hard_swish import recognise_hard_swish
from edgesdk.passes.recognise_layer_norm import recognise_layer_norm
from edgesdk.passes.recognise_softmax import recognise_softmax
from edgesdk.passes.remove_dead_channels import remove_dead_channels
from edgesdk.passes.remove_identities import remove_identities
from edgesdk.passes.remove_unused import remove_unused
from edgesdk.passes.rewrite_for_dpu import rewrite_for_dpu
from edgesdk.passes.smooth import smooth
from edgesdk.passes.to_float16 import to_float16
from edgesdk.sampling import Samples

__all__ = [
    "NEEDS_SAMPLES",
    "PASSES",
    "SIMPLIFY",
    "Step",
    "affine_to_conv",
    "apply",
    "equalize",
    "factor_sums",
    "fix_shapes",
    "fold_affine",
    "fold_batch_norm",
    "fold_constants",
    "lift_constants",
    "merge_convolutions",
    "merge_duplicates",
    "pad_channels",
    "prune",
    "prune_two_of_four",
    "quantize",
    "quantize_dynamic",
    "quantize_weights",
    "raise_opset",
    "recognise_global_pool",
    "recognise_hard_sigmoid",
    "recognise_hard_swish",
    "recognise_layer_norm",
    "recognise_softmax",
    "remove_dead_channels",
    "remove_identities",
    "remove_unused",
    "rewrite_for_dpu",
    "smooth",
    "to_float16",
]

Step = Mapping[str, Any]  # {"pass": name, "settings": {...}}; no settings: the pass's own

PASSES: dict[str, Callable[..., Model]] = {
    "raise_opset": raise_opset,
    "lift_constants": lift_constants,
    "fix_shapes": fix_shapes,
    "fold_constants": fold_constants,
    "remove_identities": remove_identities,
    "fold_batch_norm": fold_batch_norm,
    "recognise_softmax": recognise_softmax,
    "recognise_layer_norm": recognise_layer_norm,
    "recognise_hard_sigmoid": recognise_hard_sigmoid,
    "recognise_global_pool": recognise_global_pool,
    "recognise_hard_swish": recognise_hard_swish,
    "fold_affine": fold_affine,
    "factor_sums": factor_sums,
    "merge_convolutions": merge_convolutions,
    "affine_to_conv": affine_to_conv,
    "remove_dead_channels": remove_dead_channels,
    "pad_channels": pad_channels,
    "merge_duplicates": merge_duplicates,
    "remove_unused": remove_unused,
    "rewrite_for_dpu": rewrite_for_dpu,
    "prune": prune,
    "prune_two_of_four": prune_two_of_four,
    "equalize": equalize,
    "smooth": smooth,
    "quantize": quantize,
    "quantize_dynamic": quantize_dynamic,
    "quantize_weights": quantize_weights,
    "to_float16": to_float16,
}

NEEDS_SAMPLES = frozenset({"prune", "prune_two_of_four", "quantize", "smooth"})

_SETTINGS: dict[str, Callable[..., Any]] = {**PASSES, "quantize": Scheme}  # whose keywords a step may set

# Exact: the function stays what it was, up to rounding.
SIMPLIFY = (
    "raise_opset",
    "lift_constants",
    "fold_constants",
    "remove_identities",
    "recognise_softmax",
    "recognise_layer_norm",
    "recognise_global_pool",
    "recognise_hard_swish",
    "recognise_hard_sigmoid",
    "fold_batch_norm",
    "fold_affine",
    "factor_sums",
    "merge_convolutions",
    "affine_to_conv",
    "remove_dead_channels",
    "pad_channels",
    "merge_duplicates",
    "remove_unused",
)


def apply(recipe: Iterable[Step], model: Model, samples: Samples | None = None) -> Model:
    """Each step in turn; what it makes has to be valid before the next. Raises ModelError, which names the step, and SampleError."""
    for step in recipe:
        validate(step, model)
        name, settings = step["pass"], step.get("settings", {})
        if name not in NEEDS_SAMPLES:
            made = PASSES[name](model, **settings)
        elif samples is None:
            raise SampleError(f"the pass `{name}` measures on samples, and there are none", "give some: `--calibration`")
        else:
            made = PASSES[name](model, samples=samples, **settings)
        if made is model:
            continue
        try:
            graph.check(made)
        except ModelError as error:
            raise ModelError(f"the pass `{name}` made an invalid model: {error}", "leave it out of the recipe, and report the model to us") from error
        model = made
    return model


def validate(step: Step, model: Model) -> None:
    """Whether there is such a pass, and it can be called so on this model. Raises ModelError."""
    name, settings = step["pass"], step.get("settings", {})
    if name not in PASSES:
        raise ModelError(f"the recipe names a pass `{name}`, which there is not", f"there are {', '.join(PASSES)}")
    check(name, _SETTINGS[name], settings)
    if settings.get("exclude"):
        check_excluded(name, settings["exclude"], model)
