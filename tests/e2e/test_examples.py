"""The examples, by the commands that their READMEs give."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import answer, write_bundle

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent

pytestmark = pytest.mark.e2e


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An agent of its own; what was downloaded once is kept."""
    changed = {
        "EDGE_AGENT_HOME": str(tmp_path / "home"),
        "EDGESDK_CACHE": os.environ.get("EDGESDK_CACHE") or str(REPOSITORY / ".cache"),
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    }
    yield os.environ | changed
    subprocess.run([PROGRAMS / "edge-agent", "stop"], env=os.environ | changed, check=False, capture_output=True)


def story(example: str) -> list[str]:
    """The commands of a README's first block, without their comments."""
    block = (REPOSITORY / "examples" / example / "README.md").read_text().split("```sh\n")[1].split("```")[0]
    return [line.split(" #")[0].strip() for line in block.splitlines()]


def told(example: str, folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """What each command printed; in a copy, so that nothing of an earlier run helps."""
    source = REPOSITORY / "examples" / example
    tracked = [file for file in source.iterdir() if file.suffix in (".py", ".toml", ".c", ".h", ".mjs")]
    folder.mkdir()
    for file in tracked:
        shutil.copy(file, folder)
    printed = {}
    for command in story(example):
        done = subprocess.run(command.split(), cwd=folder, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout
    return printed


def test_iris_is_trained_converted_packaged_deployed_and_asked(tmp_path, environment):
    printed = told("iris", tmp_path / "iris", environment)
    species = [line.split(": ")[1].split(",")[0] for line in printed["python ask.py"].splitlines()]
    assert species == ["setosa", "versicolor", "virginica"]
    if shutil.which("cc"):
        (row,) = (line for command, line in told("c_client", tmp_path / "c", environment).items() if command.startswith("./ask"))
        assert float(row.split()[0]) > 0.9
    if shutil.which("node"):
        (row,) = told("node_client", tmp_path / "node", environment).values()
        assert row.startswith("label [1]: setosa\nprobabilities [1, 3]: 0.9")


@pytest.fixture
def toy(tmp_path, environment):
    """A model `toy` of four inputs on an agent of its own: how to ask it, and what it answers to 1 2 3 4."""
    bundle = write_bundle(tmp_path / "toy", width=4)
    subprocess.run([PROGRAMS / "edgesdk", "deploy", "local", bundle], env=environment, check=True, capture_output=True)
    return environment, answer(np.array([[1, 2, 3, 4]], np.float32), width=4)[0]


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here")
def test_the_c_client_is_clean_and_says_what_is_wrong(tmp_path, toy):
    environment, expected = toy
    strict = "-std=c11 -Wall -Wextra -Wconversion -Werror -g -fsanitize=address,undefined -fno-sanitize-recover"
    source = REPOSITORY / "examples" / "c_client"
    subprocess.run(["cc", *strict.split(), "-o", tmp_path / "ask", source / "ask.c", source / "edge.c"], check=True)

    def ask(*words, **others):
        return subprocess.run([tmp_path / "ask", *words], env={**environment, **others}, capture_output=True, text=True, check=False)

    done = ask("toy", "x", "y", "1", "2", "3", "4")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(value) for value in done.stdout.split()], expected, rtol=1e-4)
    for words, said in {
        ("toy", "x", "y", "1"): "the input `x` is float32",
        ("toy", "wrong", "y", "1"): "the model's inputs are `x`",
        ("toy", "x", "wrong", "1", "2", "3", "4"): "the model's outputs are `y`",
        ("other", "x", "y", "1"): "no model `other` is active",
        ("toy", 'a"b', "y", "1"): "cannot be described",
        ("../toy", "x", "y", "1"): "no name",
    }.items():
        done = ask(*words)
        assert done.returncode == 1
        assert said in done.stderr
    assert "no agent answers" in ask("toy", "x", "y", "1", EDGE_AGENT_HOME=str(tmp_path)).stderr
    assert "too long" in ask("toy", "x", "y", "1", EDGE_AGENT_HOME=f"/{'x' * 200}").stderr


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js here")
def test_the_node_client_says_what_is_wrong(tmp_path, toy):
    environment, expected = toy

    def ask(*words, **others):
        argv = ["node", REPOSITORY / "examples" / "node_client" / "ask.mjs", *words]
        return subprocess.run(argv, env={**environment, **others}, capture_output=True, text=True, check=False)

    done = ask("toy", "1", "2", "3", "4")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(value) for value in done.stdout.split(": ")[1].split()], expected, rtol=1e-4)
    assert "the input `x` is float32" in ask("toy", "1").stderr
    assert "no model `other` is active" in ask("other", "1").stderr
    assert ask("toy", "1", EDGE_AGENT_HOME=str(tmp_path)).returncode == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_line_reader_reads(tmp_path, environment):
    printed = told("line_reader", tmp_path / "line_reader", environment)
    assert printed["python read.py line.png"] == "Hello from the edge\n"
    assert "line-reader" in printed["edgesdk report local"]


def test_the_line_readers_demo_is_its_readme():
    script = (REPOSITORY / "examples" / "line_reader" / "demo.py").read_text()
    assert [command for command in story("line_reader") if f'"{command}"' not in script] == []
