"""Each rule finds what breaks it, and nothing else does."""

from collections.abc import Callable

import numpy as np
import onnx_ir
import pytest

from edgesdk import constraints, graph, passes, profiles, sampling
from edgesdk.graph import Model
from edgesdk.passes.quantize import SETTINGS
from edgesdk.profiles import Profile
from tests import digits
from tests.sdk.small_models import build, node, numbers
from tests.sdk.transformers import block, lstm

IMAGE = {"x": (1, 4, 6, 6)}
ANY = (None, None, None, None)


def small(name: str, **settings: object) -> Model:
    """Two convolutions, an Add and a Mul, quantized for the profile but for these settings."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="first"), node("Relu", ["c"], ["r"]), node("Conv", ["r", "v", "b"], ["d"], name="second"),
        node("Add", ["d", "r"], ["s"], name="sum"), node("HardSigmoid", ["s"], ["h"], alpha=1 / 6), node("Mul", ["s", "h"], ["y"], name="swish"),
    ]  # fmt: skip
    weights = {"w": numbers(4, 4, 1, 1), "v": numbers(4, 4, 1, 1, seed=1), "b": numbers(4)}
    model = build(nodes, inputs=IMAGE, outputs={"y": (1, 4, 6, 6)}, weights=weights)
    quantization = profiles.find(name).quantization
    model = passes.rewrite_for_dpu(model) if quantization.power_of_two else model
    wanted = {key: value for key, value in quantization.model_dump(mode="json").items() if key in SETTINGS}
    return passes.quantize(model, samples=sampling.generated(model, 3), **wanted | settings)


def rules(model: Model, profile: Profile) -> set[str]:
    return {violation.rule for violation in constraints.check(model, profile)}


@pytest.mark.parametrize("name", profiles.names())
def test_a_float_model_breaks_nothing_but_fixed_shapes(name: str) -> None:
    profile = profiles.find(name)
    model = graph.load(digits.MODEL)
    assert rules(model, profile) == ({"static shapes"} if profile.graph.static_shapes else set())
    assert rules(passes.fix_shapes(model, shapes={"image": [1, 1, 28, 28]}), profile) == set()


@pytest.mark.parametrize("name", ["x86-cpu", "raspberry-pi-5", "jetson-orin", "kria-kv260"])
def test_a_model_quantized_for_a_profile_obeys_it(name: str) -> None:
    assert constraints.check(small(name), profiles.find(name)) == []


@pytest.mark.parametrize(
    ("name", "settings", "broken"),
    [
        ("x86-cpu", {"activations": "int8"}, {"activation type"}),
        ("x86-cpu", {"reduce_range": False}, {"saturation"}),
        ("x86-cpu", {"bias": "float32"}, {"bias type"}),
        ("jetson-orin", {"symmetric": False}, {"activation zero point"}),
        ("jetson-orin", {"bias": "int32"}, {"bias type"}),
        ("kria-kv260", {"per_channel": True, "power_of_two": False}, {"weight scale", "power of two", "bias type"}),
        ("kria-kv260", {"power_of_two": False, "bias": "int32"}, {"power of two", "bias type"}),
        ("jetson", {}, {"scheme"}),
    ],
)
def test_another_scheme_is_found_out(name: str, settings: dict[str, object], broken: set[str]) -> None:
    assert rules(small(name, **settings), profiles.find(name)) == broken


def with_constant(model: Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Model:
    copy = graph.clone(model)
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = onnx_ir.tensor(change(value.const_value.numpy()), name=name)
    return copy


@pytest.mark.parametrize(
    ("constant", "factor", "broken"),
    [
        ("w_scale", 2.0**-20, "shift_cut"),
        ("w_scale", 2.0**20, "shift_cut"),
        ("b_scale", 2.0**24, "shift_bias"),
        ("d_scale", 2.0**12, "shift_read"),
        ("s_scale", 2.0**-12, "shift_write"),
        ("y_scale", 2.0**16, "shift_write"),
        ("y_scale", 1.5, "power of two"),
    ],
)
def test_a_shift_beyond_its_register_is_found_out(constant: str, factor: float, broken: str) -> None:
    model = with_constant(small("kria-kv260"), constant, lambda scale: (scale * factor).astype(np.float32))
    assert broken in rules(model, profiles.find("kria-kv260"))


@pytest.mark.parametrize(
    ("constant", "change", "broken"),
    [
        ("w_quantized", lambda array: np.full_like(array, -128), "weight range"),
        ("w_zero_point", lambda array: np.full_like(array, 1), "weight zero point"),
        ("w_scale", lambda array: np.full_like(array, np.nan), "weight scale"),
        ("b_scale", lambda array: array * np.float32(2), "bias scale"),
        ("x_scale", lambda array: array * np.float32(0), "activation scale"),
    ],
)
def test_a_number_that_was_tampered_with_is_found_out(constant: str, change: Callable[[np.ndarray], np.ndarray], broken: str) -> None:
    assert broken in rules(with_constant(small("raspberry-pi-5"), constant, change), profiles.find("raspberry-pi-5"))


def test_scales_along_the_wrong_axis_are_found_out() -> None:
    model = small("x86-cpu")
    for each in model.graph:
        if each.name == "w_DequantizeLinear":
            each.attributes["axis"] = onnx_ir.AttrInt64("axis", 1)
    assert rules(model, profiles.find("x86-cpu")) == {"weight axis"}


def test_a_pool_that_changes_the_position_is_found_out() -> None:
    model = build(
        [node("Conv", ["x", "w"], ["c"]), node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2])],
        inputs=IMAGE,
        outputs={"y": (1, 4, 5, 5)},
        weights={"w": numbers(4, 4, 1, 1)},
    )
    profile = profiles.find("kria-kv260")
    wanted = {key: value for key, value in profile.quantization.model_dump(mode="json").items() if key in SETTINGS}
    made = passes.quantize(model, samples=sampling.generated(model, 2), **wanted)
    assert rules(made, profile) == set()
    assert rules(with_constant(made, "y_scale", lambda scale: scale * np.float32(2)), profile) == {"position"}


def test_a_file_newer_than_the_board_reads_is_found_out() -> None:
    model = build([node("Relu", ["x"], ["y"])], inputs=IMAGE, outputs={"y": (1, 4, 6, 6)}, opset=21)
    assert rules(model, profiles.find("kria-kv260")) == {"opset", "onnxruntime"}
    assert rules(model, profiles.find("x86-cpu")) == set()


def test_an_operator_that_nobody_has_is_named() -> None:
    model = build([node("Relu", ["x"], ["y"])], inputs=IMAGE, outputs={"y": (1, 4, 6, 6)})
    next(iter(model.graph)).domain = "com.example"
    (violation,) = constraints.check(model, profiles.find("x86-cpu"))
    assert (violation.rule, violation.found) == ("operator", "com.example::Relu")


def test_an_island_in_float16_is_found_out() -> None:
    model = build([node("Softmax", ["x"], ["y"])], inputs={"x": (1, 4)}, outputs={"y": (1, 4)})
    profile = profiles.find("jetson")
    assert rules(passes.to_float16(model), profile) == {"float32 island"}
    assert rules(passes.to_float16(model, keep_float32=profile.quantization.keep_float32), profile) == set()


@pytest.mark.parametrize(
    ("made", "formats"),
    [
        (passes.quantize_dynamic(block()), {"dynamic-int8"}),
        (passes.quantize_dynamic(block(), operators=["Gather"]), {"dynamic-int8", "weights-int8", "weights-int4"}),
        (passes.quantize_weights(block()), {"weights-int8"}),
        (passes.quantize_weights(block(), bits=4), {"weights-int4"}),
        (passes.quantize_dynamic(lstm(inputs=3, hidden=4, direction="bidirectional")), {"dynamic-int8"}),
    ],
)
def test_formats_that_a_profile_does_not_list_are_found_out(made: Model, formats: set[str]) -> None:
    for name in ("jetson-orin", "kria-kv260"):
        assert "scheme" in rules(made, profiles.find(name))
    for scheme in ("dynamic-int8", "weights-int8", "weights-int4"):
        assert rules(made, listing(scheme)) == (set() if scheme in formats else {"scheme"})


def listing(scheme: str) -> Profile:
    """The x86 profile with that scheme and float32."""
    profile = profiles.find("x86-cpu")
    return profile.model_copy(update={"quantization": profile.quantization.model_copy(update={"schemes": (scheme, "float32")})})


def test_dynamic_weights_that_saturate_are_found_out() -> None:
    recurrent = lstm(inputs=3, hidden=4, direction="bidirectional")
    for model in (block(), recurrent):
        assert rules(passes.quantize_dynamic(model, reduce_range=False), listing("dynamic-int8")) == {"saturation"}
        assert rules(passes.quantize_dynamic(model, weights="uint8"), listing("dynamic-int8")) == set()


def test_weights_that_the_boards_runtime_cannot_read_are_found_out() -> None:
    profile = listing("weights-int8")
    old = profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"onnxruntime": "1.22.0"})})
    assert rules(passes.quantize_weights(block()), old) == {"onnxruntime"}
