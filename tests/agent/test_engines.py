from __future__ import annotations

from pathlib import Path

import pytest
from toys import CPU_PROFILE, linear

from edge_agent import engines, facts
from edge_agent.worker import open_session

VERSION = "1.24.1"
GPU = "Model: \t\t Orin (nvgpu)\nIRQ:   \t\t 63\nGPU UUID: \t GPU-1\n"


def place(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place(tmp_path / "root", "proc/driver/nvidia/version", "NVRM version: 540.3.0\n")
    place(tmp_path / "root", "proc/driver/nvidia/gpus/0000/information", GPU)
    place(tmp_path / "root", "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0", "")
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path: Path, root: Path) -> Path:
    """With an engine of that machine."""
    assert not engines.keep(tmp_path / "cache", VERSION, root)
    (tmp_path / "cache" / "model.engine").write_bytes(b"engine")
    (tmp_path / "cache" / "timings").mkdir()
    return tmp_path / "cache"


def test_on_the_same_machine_it_is_kept(cache: Path, root: Path) -> None:
    place(root, "proc/driver/nvidia/gpus/0000/information", GPU.replace("63", "64"))  # interrupts move from start to start
    assert not engines.keep(cache, VERSION, root)
    assert (cache / "model.engine").exists()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proc/driver/nvidia/version", "NVRM version: 540.4.0\n"),
        ("proc/driver/nvidia/gpus/0000/information", GPU.replace("GPU-1", "GPU-2")),
        ("usr/lib/aarch64-linux-gnu/libnvinfer.so.10.7.0", ""),
        ("etc/nv_tegra_release", "# R36 (release), REVISION: 4.0\n"),
        ("proc/cpuinfo", "model name : another\n"),
    ],
)
def test_what_another_driver_gpu_or_board_left_is_dropped(cache: Path, root: Path, path: str, text: str) -> None:
    place(root, path, text)
    assert engines.keep(cache, VERSION, root)
    assert [entry.name for entry in cache.iterdir()] == ["machine.json"]
    (cache / "model.engine").write_bytes(b"engine")
    assert not engines.keep(cache, VERSION, root)


def test_another_onnxruntime_or_a_key_that_is_gone_drops_it_too(cache: Path, root: Path) -> None:
    assert engines.keep(cache, "1.25.0", root)
    (cache / "model.engine").write_bytes(b"engine")
    (cache / "machine.json").write_text("{")
    assert engines.keep(cache, "1.25.0", root)
    assert not engines.compiled(cache)


def test_a_link_in_it_is_removed_and_not_followed(cache: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (cache / "link").symlink_to(tmp_path / "elsewhere")
    engines.drop(cache)
    assert not list(cache.iterdir())
    assert (tmp_path / "elsewhere" / "file").exists()


def test_this_machine_is_the_same_twice() -> None:
    assert facts.identity() == facts.identity()


def test_a_model_without_a_provider_that_compiles_keeps_no_key(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear())
    open_session(tmp_path, CPU_PROFILE)
    assert not (tmp_path / "cache").exists()
