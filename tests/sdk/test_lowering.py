"""What does not fit a device's onnxruntime and can be made to: the model in an older opset, under a digest of its own."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from edge_agent import bundle
from edge_agent.bundle import Contents, Layout
from edgesdk import deploying, device, preflight, setting_up, signing
from edgesdk.agent_package import TooNew
from edgesdk.errors import Refused
from edgesdk.lowering import lowered
from edgesdk.replies import Facts
from tests import bundles
from tests.sdk.test_device import CPU, PC, facts

OLD = facts(PC, onnxruntime=CPU | {"version": "1.17.3", "where": "system"})


def newer(target: Path, *, opset: int = 21, ir_version: int = 10, needs: str = "1.18.0", operator: str = "", **settings: Any) -> Path:
    """The toy bundle in a newer opset. ``operator``: one more node, of that kind."""
    made = bundles.contents(**settings)
    model = onnx.load_from_string(made.files["model.onnx"])
    model.opset_import[0].version, model.ir_version = opset, ir_version
    if operator:
        model.graph.node[1].output[0] = "before"
        model.graph.node.append(helper.make_node(operator, ["before"], ["y"]))
    described = json.loads(made.files["bundle.json"])
    described["model"].update(opset=opset, ir_version=ir_version)
    described["needs"].update(onnxruntime=needs)
    files = {**made.files, "model.onnx": model.SerializeToString(), "bundle.json": bundle.to_json(described)}
    bundle.write(target, [Contents(made.profile, made.config, files, made.evidence)])
    return target


def chosen(layout: Layout, found: Facts) -> preflight.Choice:
    choice = preflight.choose(layout, found, "pi")
    preflight.check(choice, found, "pi", as_it_is=False)
    return choice


@pytest.mark.parametrize("width", [8, 600])  # the weights inside and beside the model
def test_a_model_comes_down_to_the_devices_runtime_and_answers_the_same(tmp_path: Path, width: int) -> None:
    with Layout.open(newer(tmp_path / "b", width=width)) as layout:
        choice = chosen(layout, OLD)
        with lowered(layout, choice, "1.17.3", sign=None) as older:
            fits = preflight.choose(older, OLD, "pi")
            preflight.check(fits, OLD, "pi")
            said = fits.description
            assert (said.name, said.release, said.opset, said.ir_version, said.onnxruntime) == ("toy", 1, 20, 9, "1.17.0")
            older.verify()
            model = onnx.load_from_string(older.blob(fits.manifest.layer("model.onnx").digest))
            assert (model.opset_import[0].version, model.ir_version) == (20, 9)
            for file in ("golden.npz", "profile.json", "recipe.json"):
                assert fits.manifest.layer(file) == choice.manifest.layer(file)
            assert bundle.parse_json(older.blob(fits.manifest.layer("bundle.json").digest), "")["converted"] == {
                "from": choice.manifest.digest,
                "opset": [21, 20],
            }
            digest = fits.manifest.digest
        with lowered(layout, choice, "1.17.3", sign=None) as again:
            assert preflight.choose(again, OLD, "pi").manifest.digest == digest, "so that a second deploy sends nothing"


def test_what_cannot_be_converted_is_refused_with_both_versions_and_why(tmp_path: Path) -> None:
    with Layout.open(newer(tmp_path / "b", opset=20, needs="1.17.0", operator="Gelu")) as layout:
        choice = chosen(layout, facts(PC, onnxruntime=CPU | {"version": "1.16.3", "where": "system"}))
        with pytest.raises(Refused, match=r"needs onnxruntime 1\.17\.0 \(opset 20\), there it is 1\.16\.3 \(opset 19\), and it cannot be converted: .*Gelu"):
            lowered(layout, choice, "1.16.3", sign=None).__enter__()


def test_what_would_answer_otherwise_is_refused(tmp_path: Path) -> None:
    with Layout.open(newer(tmp_path / "b", wrong=True)) as layout:
        choice = chosen(layout, OLD)
        with pytest.raises(Refused, match=r"its answers would change: the output `y`"):
            lowered(layout, choice, "1.17.3", sign=None).__enter__()


def test_an_ir_version_that_none_reads_is_refused_with_both(tmp_path: Path) -> None:
    with Layout.open(newer(tmp_path / "b", opset=13, ir_version=99, needs="1.16.0")) as layout:
        assert layout.manifests()
        with pytest.raises(Refused, match=r"is of opset 13 and IR version 99, onnxruntime 1\.17\.3 on `pi` \(x86_64\) reads opset 20 and IR version 9"):
            chosen(layout, OLD)


def test_a_bundle_that_understates_its_needs_is_found_out(tmp_path: Path) -> None:
    with Layout.open(newer(tmp_path / "b", needs="1.16.0")) as layout:
        assert preflight.need(preflight.choose(layout, OLD, "pi"), "pi", OLD) == "1.18.0"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


def test_a_python_for_which_only_older_wheels_are_built_gets_these_and_the_model_to_fit(
    tmp_path: Path, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "onnxruntime-1.17.3-x.whl"

    def wheels(_: Facts, oldest: str, *_wheelhouse_and_progress: object) -> list[Path]:
        if oldest != "1.16":
            raise TooNew("there is no onnxruntime new enough")
        return [wheel]

    monkeypatch.setattr(device.agent_package, "runtime_wheels", wheels)
    monkeypatch.setattr(signing, "in_use", lambda: None)
    bare = facts(PC, onnxruntime=None, numpy=None)
    layout = stack.enter_context(Layout.open(newer(tmp_path / "b")))
    _, choice, plan = setting_up.fitted(stack, layout, chosen(layout, bare), bare, "pi", None, lambda *_: None)
    assert plan.wheels == (wheel,) and choice.description.opset == 20
    # What no conversion helps, says so as before.
    other = stack.enter_context(Layout.open(bundles.write_bundle(tmp_path / "c", needs="1.20.0")))
    with pytest.raises(TooNew):
        setting_up.fitted(stack, other, chosen(other, bare), bare, "pi", None, lambda *_: None)


def test_a_device_that_takes_signed_bundles_only_wants_the_converted_one_signed_too(
    tmp_path: Path, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "in_use", lambda: None)
    demanding = facts(OLD, trust={"known": True, "demanded": True, "ssh_keygen": True})
    layout = stack.enter_context(Layout.open(newer(tmp_path / "b")))
    with pytest.raises(Refused, match=r"needs onnxruntime 1\.18\.0, `pi` \(x86_64\) runs 1\.17\.3; converted it has to be signed anew"):
        setting_up.fitted(stack, layout, chosen(layout, demanding), demanding, "pi", None, lambda *_: None)


@pytest.mark.e2e
def test_the_converted_bundle_is_deployed_and_again_it_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_AGENT_HOME", str(tmp_path / "agent"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with device.connect("local") as here:
        if here.facts().architecture != "x86_64":
            pytest.skip("this machine takes another profile")
        said = here.facts
        old = {"version": "1.17.3", "where": "system"}
        monkeypatch.setattr(here, "glance", lambda *_: facts(said(), onnxruntime=(said().onnxruntime or CPU).to_dict() | old))
        try:
            first = deploying.deploy(here, newer(tmp_path / "b"))
            assert (first.outcome, first.converted) == ("active", "opset 21 to 20")
            again = deploying.deploy(here, tmp_path / "b")
            assert (again.outcome, again.digest, again.blobs_sent) == ("unchanged", first.digest, 0)
        finally:
            here.ask("stop")
