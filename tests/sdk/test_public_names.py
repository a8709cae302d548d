"""`import edgesdk`: every public name is there, and naming none loads nothing."""

import subprocess
import sys

import pytest

import edgesdk


@pytest.mark.parametrize("name", edgesdk.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(edgesdk, name).__name__ in (name, name.removesuffix("_profile"))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgesdk.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, edgesdk; sys.exit(any(heavy in sys.modules for heavy in ('numpy', 'onnx', 'paramiko', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
