"""The documentation names every profile key, verb, option and error; the examples in docstrings hold names that exist."""

import inspect
from pathlib import Path

import pytest
import typer.main

from edgesdk import errors, profiles
from edgesdk.cli import app
from edgesdk.project import Project

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs" / "guide.md").read_text() + (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("table", ["recognise", "runtime", "quantization", "graph", "pruning", "budget"])
def test_every_profile_key_is_in_the_guide(table: str) -> None:
    assert f"[{table}]" in GUIDE
    for key in type(getattr(profiles.find("x86-cpu"), table)).model_fields:
        assert f"`{key}`" in GUIDE


def test_every_project_key_is_in_the_guide() -> None:
    assert [key for key in Project.model_fields if f"{key} = " not in GUIDE and f"[{key}]" not in GUIDE] == []


def test_every_error_is_in_the_guide() -> None:
    kinds = [name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EdgeSDKError)]
    assert [name for name in kinds if f"`{name}`" not in GUIDE] == []


def test_every_verb_is_in_the_documentation() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group has them
    assert [verb for verb in commands if verb not in GUIDE] == []


def test_every_option_has_help() -> None:
    for verb, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]  # a group has them
        for parameter in command.params:
            if parameter.name not in ("runs", "warmup"):
                assert getattr(parameter, "help", None), f"{verb} {parameter.name}"
