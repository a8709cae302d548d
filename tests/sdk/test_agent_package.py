"""What a device is sent: the same agent from every host, and wheels that its Python can load."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgesdk import agent_package
from edgesdk.errors import DeviceError
from edgesdk.replies import Facts

BOARD = Facts(architecture="aarch64", python="3.11.2", abi="cp311", libc="glibc 2.36", home="/home/pi/.local/share/edge-agent")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path))
    return tmp_path


def test_the_agents_archive_is_a_pure_function_of_its_files() -> None:
    agent_package.build.cache_clear()
    first = agent_package.build()
    agent_package.build.cache_clear()
    assert agent_package.build() == first
    with zipfile.ZipFile(io.BytesIO(first.data)) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert names == sorted(names)
    assert {"__main__.py", "edge_agent/bundle.py", "edge_agent/py.typed", "h11/_connection.py", "h11/LICENSE.txt"} <= set(names)
    assert not [name for name in names if "test" in name or "pycache" in name]


def test_the_agent_needs_nothing_that_it_does_not_carry(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(agent_package.build().data)) as archive:
        archive.extractall(tmp_path)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import edge_agent.bundle, h11; print(edge_agent.bundle.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "edge_agent/bundle.py")


def test_platforms_run_from_the_devices_glibc_down_to_the_oldest() -> None:
    asked = agent_package._platforms(BOARD)
    assert asked[0] == "manylinux_2_36_aarch64" and "manylinux_2_17_aarch64" in asked and "manylinux2014_aarch64" in asked
    assert "manylinux1_aarch64" not in asked and "manylinux_2_37_aarch64" not in asked


@pytest.mark.parametrize("board", [{"libc": "musl 1.2.3"}, {"architecture": "armv7l"}, {"libc": None}])
def test_a_device_for_which_no_wheels_are_built_is_told_so(cache: Path, board: dict[str, str]) -> None:
    with pytest.raises(DeviceError, match=r"onnxruntime ships no wheels for Python 3\.11\.2 on"):
        agent_package.runtime_wheels(BOARD.model_copy(update=board), "1.16")
    assert not (cache / "wheels").exists()


def test_the_cache_answers_when_it_holds_what_is_needed(cache: Path) -> None:
    folder = cache / "wheels" / "cp311-aarch64-glibc"
    folder.mkdir(parents=True)
    tag = "cp311-cp311-manylinux_2_17_aarch64"
    (folder / "onnxruntime-1.30.0-cp311-cp311-manylinux_2_99_aarch64.whl").touch()  # fetched for a device with a newer glibc
    for name in (f"numpy-1.26.4-{tag}.whl", f"numpy-2.4.6-{tag}.whl", f"onnxruntime-1.9.0-{tag}.whl", f"onnxruntime-1.20.1-{tag}.whl"):
        (folder / name).touch()
    assert [wheel.name for wheel in agent_package.runtime_wheels(BOARD, "1.20")] == [f"numpy-2.4.6-{tag}.whl", f"onnxruntime-1.20.1-{tag}.whl"]


def test_a_wheelhouse_is_all_there_is(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what lies there the newest that fits the device's Python, ABI, architecture and libc; and nothing is asked elsewhere."""
    monkeypatch.setattr(agent_package.subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be fetched"))
    house = tmp_path / "wheels of ours"
    house.mkdir()
    for name in (
        "numpy-2.2.6-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
        "numpy-2.9.0-cp312-cp312-manylinux_2_17_aarch64.whl",  # another Python's
        "onnxruntime-1.23.2-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        "onnxruntime-1.30.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "onnxruntime-1.31.0-cp311-cp311t-manylinux_2_28_aarch64.whl",
        "onnxruntime-odd.whl",
    ):
        (house / name).touch()
    assert [wheel.name.split("-")[:2] for wheel in agent_package.runtime_wheels(BOARD, "1.16", house)] == [["numpy", "2.2.6"], ["onnxruntime", "1.23.2"]]
    with pytest.raises(DeviceError, match=r"holds no numpy and onnxruntime ≥ 1\.24 for Python 3\.11.* on aarch64 with glibc 2\.36: numpy-2") as caught:
        agent_package.runtime_wheels(BOARD, "1.24", house)
    assert f"--dest '{house}' --python-version 311" in caught.value.hint and "--platform manylinux_2_28_aarch64" in caught.value.hint
    assert not (cache / "wheels").exists()


def test_a_python_without_pip_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'x: No module named pip' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DeviceError, match="pip is needed here") as caught:
        agent_package.runtime_wheels(BOARD, "1.16")
    assert "ensurepip" in caught.value.hint
    assert list(cache.rglob("*.whl")) == []


def test_what_pip_does_not_find_is_said_in_one_sentence() -> None:
    stderr = "ERROR: Could not find a version of onnxruntime>=9 (from versions: 1.16.0, 1.17.0)\nERROR: No matching distribution found for onnxruntime>=9"
    assert agent_package._pip_failure(stderr, "Python 3.9")[0] == "there is no onnxruntime new enough for Python 3.9"
    assert "index" in agent_package._pip_failure("ERROR: Could not connect", "Python 3.9")[1]


def test_a_download_shows_that_it_is_at_work(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a minute where the network is slow."""
    monkeypatch.setattr(agent_package, "_fetch", lambda *_: [])
    stages: list[str] = []
    agent_package.runtime_wheels(BOARD, "1.16", progress=lambda stage, *_: stages.append(stage))
    assert stages == ["fetch numpy and onnxruntime"]


@pytest.mark.slow
def test_real_wheels_for_a_raspberry_pi(cache: Path) -> None:
    wheels = agent_package.runtime_wheels(BOARD, "1.16")
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["numpy", "onnxruntime"]
    assert all("aarch64" in wheel.name and "cp311" in wheel.name for wheel in wheels)
    assert agent_package.runtime_wheels(BOARD, "1.16") == wheels
