"""The examples, by the commands that their READMEs give."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    tracked = [file for file in source.iterdir() if file.suffix in (".py", ".toml")]
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_line_reader_reads(tmp_path, environment):
    printed = told("line_reader", tmp_path / "line_reader", environment)
    assert printed["python read.py line.png"] == "Hello from the edge\n"
    assert "line-reader" in printed["edgesdk report local"]


def test_the_line_readers_demo_is_its_readme():
    script = (REPOSITORY / "examples" / "line_reader" / "demo.py").read_text()
    assert [command for command in story("line_reader") if f'"{command}"' not in script] == []
