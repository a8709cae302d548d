"""What of a wheel goes to a device: all that runs, and little else."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgesdk import agent_package, lean
from edgesdk.errors import DeviceError

CAPI = "onnxruntime/capi"
WHEEL = {
    "numpy/__init__.py": b"value = 1\n",
    "numpy/core/tests/test_a.py": b"",
    "numpy/_core/include/a.h": b"",
    "numpy/a.pyi": b"",
    "numpy/testing/__init__.py": b"",
    "numpy/f2py/a.py": b"",
    "onnxruntime/quantization/a.py": b"",
    "numpy-2.dist-info/licenses/LICENSE.txt": b"free",
    "numpy-2.dist-info/RECORD": b"",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel_of(folder: Path, files: dict[str, bytes], name: str = "numpy-2-x.whl") -> Path:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as opened:
        for member, data in files.items():
            opened.writestr(member, data)
    return folder / name


def contents(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def test_what_does_not_run_is_left_out_and_licences_stay(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, WHEEL)
    archive = lean.archive(wheel, "cp399")
    assert archive.name == wheel.name
    assert contents(archive) == {name: WHEEL[name] for name in ("numpy/__init__.py", "numpy/testing/__init__.py", "numpy-2.dist-info/licenses/LICENSE.txt")}
    before = archive.stat().st_mtime_ns
    assert lean.archive(wheel, "cp399") == archive and archive.stat().st_mtime_ns == before


def test_a_library_for_programs_in_c_stays_where_one_beside_it_wants_it(tmp_path: Path) -> None:
    library, python = f"{CAPI}/libonnxruntime.so.1.32.0", f"{CAPI}/onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so"
    alone = contents(lean.archive(wheel_of(tmp_path, {library: b"c", python: b"\0libdl.so.2\0"}, "a-1-x.whl"), "cp399"))
    assert set(alone) == {python}
    for needed in (b"\0libonnxruntime.so.1.32.0\0", b"\0libonnxruntime.so.1\0"):
        both = contents(lean.archive(wheel_of(tmp_path, {library: b"c", python: needed}, "b-1-x.whl"), "cp399"))
        assert set(both) == {library, python}


def test_modules_come_compiled_for_a_device_with_this_very_python(tmp_path: Path) -> None:
    archive = lean.archive(wheel_of(tmp_path, WHEEL), lean.own_abi())
    compiled = f"numpy/__pycache__/__init__.{sys.implementation.cache_tag}.pyc"
    assert compiled in contents(archive)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "site")
    # Python takes it although the file beside it has another time; a traceback names that file.
    ask = "import sys; sys.path.insert(0, sys.argv[1]); import numpy; print(numpy.value, numpy.__cached__, numpy.__spec__.loader.get_code('numpy').co_filename)"
    (tmp_path / "site" / "numpy" / "__init__.py").write_text("value = 2\n")
    done = subprocess.run([sys.executable, "-I", "-c", ask, tmp_path / "site"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", str(tmp_path / "site" / compiled), str(tmp_path / "site" / "numpy" / "__init__.py")]


def test_an_archive_in_the_cache_that_has_changed_is_made_anew(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, WHEEL)
    archive = lean.archive(wheel, "cp399")
    good = archive.read_bytes()
    archive.write_bytes(good[:50] + b"?" + good[51:])
    assert lean.archive(wheel, "cp399").read_bytes() == good


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: b"PX" + data[2:], lambda _: b""])
def test_what_is_no_wheel_is_one_sentence(tmp_path: Path, damage: object) -> None:
    wheel = wheel_of(tmp_path, WHEEL)
    wheel.write_bytes(damage(wheel.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DeviceError, match="is no wheel that can be read"):
        lean.archive(wheel, "cp399")


def test_the_agents_modules_come_compiled_too() -> None:
    with zipfile.ZipFile(io.BytesIO(lean.compiled(agent_package.build().data))) as opened:
        names = set(opened.namelist())
    assert (
        f"edge_agent/__pycache__/supervisor.{sys.implementation.cache_tag}.pyc" in names and f"__pycache__/__main__.{sys.implementation.cache_tag}.pyc" in names
    )
    assert all(name.endswith(".pyc") for name in names)
