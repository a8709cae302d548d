"""What is worth trying follows from the profile, and a recipe that was written is read as it was."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk import graph, passes, profiles, recipe
from edgesdk.errors import ProjectError
from tests.sdk.small_models import DATA


@pytest.mark.parametrize("name", profiles.names())
def test_each_scheme_of_a_profile_is_a_plan_in_its_order(name: str) -> None:
    profile = profiles.find(name)
    options = recipe.plans(profile, graph.load(DATA / "resnet8_mnist.onnx"), calibrated=True, shapes={})
    assert list(dict.fromkeys(option.scheme for option in options)) == list(profile.quantization.schemes)
    assert [recipe.scheme_of(option.steps) for option in options] == [option.scheme for option in options]
    assert len({option.label for option in options}) == len(options)
    assert all(step["pass"] in passes.PASSES for option in options for step in option.steps)


def test_without_samples_nothing_is_calibrated() -> None:
    schemes = [option.scheme for option in recipe.plans(profiles.find("x86-cpu"), graph.load(DATA / "resnet8_mnist.onnx"), calibrated=False, shapes={})]
    assert "int8" not in schemes
    assert "float32" in schemes


def test_dynamic_comes_first_for_what_has_no_convolution() -> None:
    kinds = []
    for file in ("resnet8_mnist.onnx", "bilstm_vowels.onnx"):
        schemes = [option.scheme for option in recipe.plans(profiles.find("raspberry-pi-5"), graph.load(DATA / file), calibrated=True, shapes={})]
        kinds.append(schemes.index("int8") < schemes.index("dynamic-int8"))
    assert kinds == [True, False]


def test_shapes_are_fixed_where_the_profile_wants_that() -> None:
    first = recipe.float_plan(profiles.find("fpga-vitis"), {"x": [1, 3]}).steps[0]
    assert first == {"pass": "fix_shapes", "settings": {"shapes": {"x": [1, 3]}}}
    assert all(step["pass"] != "fix_shapes" for step in recipe.float_plan(profiles.find("x86-cpu"), {"x": [1, 3]}).steps)


def test_pruning_comes_after_what_is_exact_and_before_the_number_format() -> None:
    step = recipe.pruning(profiles.find("kria-kv260"), 0.3)
    assert step == {"pass": "prune", "settings": {"macs": 0.7, "multiple": 16}}
    for plan in recipe.plans(profiles.find("kria-kv260"), graph.load(DATA / "resnet8_mnist.onnx"), calibrated=True, shapes={"x": [1, 3]}):
        pruned = plan.pruned(step)
        place = pruned.steps.index(step)
        assert {each["pass"] for each in pruned.steps[:place]} == {"fix_shapes", *passes.SIMPLIFY}
        assert (*pruned.steps[:place], *pruned.steps[place + 1 :]) == plan.steps
        assert pruned.prunes
        assert not pruned.exact
        assert pruned.label.endswith("30% of the MACs pruned")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 30.0])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ProjectError, match="no share"):
        recipe.pruning(profiles.find("x86-cpu"), share)


NAMES = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


STEPS = st.fixed_dictionaries({"pass": st.sampled_from(sorted(passes.PASSES)), "settings": st.dictionaries(NAMES, VALUES, max_size=4)})


@given(steps=st.lists(STEPS, max_size=5))
def test_a_recipe_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, steps: list[recipe.Step]) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.to_toml(steps, "for a test\nin two lines"), encoding="utf-8")
    assert list(recipe.read(path, "x86-cpu")) == steps


STEP = "[[steps]]\npass = 'quantize'\n"


@pytest.mark.parametrize(
    "text",
    ["steps = 3", "steps = [1]", "[[steps]]\npass = 'nonsense'", STEP + "settings = 3", STEP + "more = 1", "[[steps]]\npass = ['quantize']", "not toml", ""],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ProjectError, match="recipe"):
        recipe.read(tmp_path / "recipe.toml", "x86-cpu")


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ('[[steps]]\npass = "fold_constants"\n[[steps]]\npass = "quantise"\n', "step 2: there is no pass `quantise`", "did you mean `quantize`?"),
        ('[[steps]]\npass = "quantize"\nsetings = {}\n', "step 1: unknown key `setings`", "a step has pass and settings"),
    ],
)
def test_what_is_misspelt_in_a_recipe_is_named(tmp_path: Path, text: str, told: str, hint: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ProjectError) as refused:
        recipe.read(tmp_path / "recipe.toml", "x86-cpu")
    assert told in str(refused.value)
    assert refused.value.hint == hint
