"""`import edgesdk`: every public name is there, and naming none loads nothing."""

import subprocess
import sys

import pytest

import edgesdk
from edge_agent.bundle import BundleError
from edgesdk.errors import ProjectError


@pytest.mark.parametrize("name", edgesdk.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(edgesdk, name).__name__ in (name, name.removesuffix("_profile"))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgesdk.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, edgesdk; sys.exit(any(heavy in sys.modules for heavy in ('numpy', 'onnx', 'paramiko', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_paths_may_be_text() -> None:
    profile, goal = edgesdk.find_profile("x86-cpu"), edgesdk.Goal("macs", 0.5)
    for verb in (
        lambda: edgesdk.inspect("nowhere.onnx"),
        lambda: edgesdk.quantize("nowhere.onnx", profile),
        lambda: edgesdk.prune("nowhere.onnx", profile, goal, samples="nowhere.npz"),
        lambda: edgesdk.optimize("nowhere.onnx", profile, "small.onnx"),
        lambda: edgesdk.compare("nowhere.onnx", "nowhere.onnx", profile),
        lambda: edgesdk.tune("nowhere.onnx", profile),
        lambda: edgesdk.verify("nowhere"),
    ):
        with pytest.raises((edgesdk.EdgeSDKError, BundleError), match="nowhere"):
            verb()


def test_a_goal_is_one_that_there_is() -> None:
    with pytest.raises(ProjectError, match="nobody prunes by 'flops'"):
        edgesdk.Goal("flops", 0.5).check(edgesdk.find_profile("x86-cpu"))  # type: ignore[arg-type]
