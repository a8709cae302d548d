"""The command line: data on stdout, talk on stderr, one clear sentence an error, nothing half-written."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edgesdk import graph
from edgesdk.cli import app
from edgesdk.errors import ModelError
from tests import digits
from tests.sdk.small_models import build, node

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy", "paramiko", "pydantic", "edgesdk.packaging")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a model with its samples; everything is run in it."""
    digits.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_AGENT_HOME", str(tmp_path / "agent"))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("heavy", HEAVY)
def test_help_loads_nothing_heavy(heavy: str) -> None:
    code = (
        f"import sys; sys.argv = ['edgesdk', '--help']; from edgesdk.cli import main\ntry: main()\nexcept SystemExit: pass\nsys.exit({heavy!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_verb_has_help() -> None:
    verbs = run("--help").stdout
    for verb in (
        "init",
        "convert",
        "inspect",
        "check",
        "optimize",
        "package",
        "verify",
        "deploy",
        "status",
        "infer",
        "bench",
        "report",
        "rollback",
        "logs",
        "remove",
    ):
        assert verb in verbs
        assert run(verb, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("package", "model.onnx", "-p", "x86"), "there is no profile `x86`"),
        (("package", "nowhere.onnx", "-p", "jetson"), "there is no model at `nowhere.onnx`"),
        (("package", "cut.onnx", "-p", "jetson"), "`cut.onnx` is not an ONNX file, or a truncated one"),
        (("package", "model.onnx", "-p", "arm-cpu", "--calibration", "wrong.npz"), "`image` has shape [3, 1, 14, 14], the model wants [n, 1, 28, 28]"),
        (("package", "model.onnx", "-p", "arm-cpu", "--calibration", "nowhere.npz"), "nowhere.npz"),
        (("package", "model.onnx", "-p", "jetson", "--evaluate", "nowhere.npz"), "`nowhere.npz` cannot be read"),
        (("package", "model.onnx", "-p", "jetson", "--evaluate", "pickle.npz"), "no .npz of plain arrays"),
        (("package", "model.onnx", "-p", "jetson", "--max-drop", "-1"), "budget of -1 cannot be kept"),
        (("package", "model.onnx", "-p", "jetson", "--recipe", "wrong.npz"), "wrong.npz"),
        (("package", "model.onnx", "-p", "jetson", "--recipe", "recipe.json"), "`recipe.json` is no recipe"),
        (("package", "model.onnx", "-p", "jetson", "--save-recipe", "nowhere/recipe.toml"), "there is no folder"),
        (("package", "model.onnx", "-p", "jetson", "--save-recipe", "folder.toml"), "`folder.toml` is a folder"),
        (("package", "model.onnx", "-p", "jetson", "--save-recipe", "kept.json"), "`kept.json` is no name of a recipe"),
        (("optimize", "model.onnx", "-p", "jetson", "-o", "."), "`.` is a folder"),
        (("package", "model.onnx", "-p", "jetson", "--name", "../up"), "is no name"),
        (("package", "model.onnx", "-p", "jetson", "-o", "model.onnx/bundle"), "model.onnx` is no folder that can be written"),
        (("package", "model.onnx", "-p", "jetson", "-o", ".", "--force"), "`.` is a folder with other things in it"),
        (("package", "model.onnx", "-p", "jetson", "-o", "model.onnx", "--force"), "`model.onnx` is what is read"),
        (("report", "./model.onnx", "--html", "model.onnx"), "`model.onnx` is what is read"),
        (("package", "model.onnx", "-p", "jetson", "--labels", "nowhere.txt"), "nowhere.txt"),
        (("package", "model.onnx"), "no profile was named"),
        (("package", "model.onnx", "-p", "jetson", "--max-latency-ms", "-5"), "budget.max_latency_ms"),
        (("package", "model.onnx", "-p", "jetson", "--max-size-bytes", "0"), "budget.max_size_bytes"),
        (("package", "model.onnx", "-p", "jetson", "--max-drop", "nan"), "budget.max_drop: input should be a finite number"),
        (("package", "model.onnx", "-p", "jetson", "--max-latency-ms", "inf"), "budget.max_latency_ms: input should be a finite number"),
        (("init", "nowhere.onnx"), "there is no model at `nowhere.onnx`"),
        (("deploy", "local"), "none was packaged here"),
        (("deploy", "local", "nowhere"), "there is no bundle at `nowhere`"),
        (("deploy",), "no device was named"),
        (("verify", "model.onnx"), "neither a bundle's folder nor an uncompressed tar"),
        (("profile", "show", "x86"), "there is no profile `x86`"),
        (("check", "cut.onnx", "-p", "jetson"), "truncated"),
        (("infer", "local", "digits", "--input", "nowhere.npz"), "`nowhere.npz` cannot be read"),
        (("infer", "local", "digits", "-o", "nowhere/y.npz"), "there is no folder"),
        (("infer", "local", "digits", "--input", "plain.npy"), "an .npz says which input an array is for"),
        (("inspect", "model.onnx", "-o", "told.json"), "--output is where --save-node writes"),
        (("inspect", "model.onnx", "--save-node", "/0/Conv", "--on", "pi"), "--save-node writes one node"),
        (("inspect", "bundle"), "`bundle` is a bundle, and no ONNX file"),
        (("infer", "local", "digits", "--input", "wrong.npz", "-o", "wrong.npz"), "`wrong.npz` is what is read"),
        (("optimize", "model.onnx", "-p", "jetson", "-o", "model.onnx"), "`model.onnx` is what is read"),
        (("quantize", "model.onnx", "-p", "jetson", "--calibration", "wrong.npz", "-o", "wrong.npz"), "`wrong.npz` is what is read"),
        (("prune", "model.onnx", "-p", "jetson", "--calibration", "wrong.npz", "--macs", "0.5", "-o", "./model.onnx"), "`model.onnx` is what is read"),
        (("inspect", "model.onnx", "--save-node", "/0/Conv", "-o", "model.onnx"), "`model.onnx` is what is read"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_leaves_nothing(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    (folder / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:100_000])
    np.savez(folder / "wrong.npz", image=np.zeros((3, 1, 14, 14), np.float32))
    np.savez(folder / "pickle.npz", image=np.array([{}], object))
    (folder / "recipe.json").write_text('[{"pass": ["quantize"]}]')
    (folder / "folder.toml").mkdir()
    (folder / "bundle").mkdir()
    (folder / "bundle" / "oci-layout").touch()
    np.save(folder / "plain.npy", np.zeros(3, np.float32))
    before = left(folder)
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert left(folder) == before


def test_one_device_is_not_taken_for_the_whole_fleet(folder: Path) -> None:
    (folder / "fleet.toml").write_text('[[devices]]\nhost = "pi"\n')
    done = run("deploy", "pi", "bundles/digits", "--fleet", "fleet.toml")
    assert done.exit_code == 2
    assert "not 'pi'" in done.stderr


def test_a_fleet_whose_state_cannot_be_kept_is_not_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "fleet.toml").write_text('[[devices]]\nhost = "pi"\nbundle = "nowhere"\n')
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    assert "`fleet.state.json` cannot be written" in run("deploy", "--fleet", "fleet.toml").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("package", "--profil"),
        ("nothing",),
        ("package", "model.onnx", "-p", "jetson", "--release", "0"),
        ("package", "model.onnx", "-p", "jetson", "--release", "9" * 30),
    ],
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_nothing_half_written(folder: Path) -> None:
    """The file size that this process may write is limited, which ends a write as a full disk does."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import sys; sys.argv = ['edgesdk', 'package', 'model.onnx', '-p', 'raspberry-pi-4']; from edgesdk.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in (folder / "bundles").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device", "small.onnx"), ModelError("small.onnx: No space left on device")])
def test_every_error_is_json_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    def fails(path: Path) -> None:
        raise raised

    monkeypatch.setattr("edgesdk.graph.load", fails)
    monkeypatch.setattr("sys.argv", ["edgesdk", "inspect", "model.onnx", "--json"])
    result = run("inspect", "model.onnx", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"error": {"message": "small.onnx: No space left on device", "hint": ""}}


def test_the_recipe_of_an_untouched_model_is_replayed(folder: Path) -> None:
    pool = build([node("MaxPool", ["image"], ["y"], kernel_shape=[2, 2])], inputs={"image": (1, 1, 28, 28)}, outputs={"y": (1, 1, 27, 27)})
    graph.save_as(pool, folder / "pool.onnx")
    arguments = ("package", "pool.onnx", "-p", "x86-cpu", "--name", "pool", "--json")
    first = json.loads(run(*arguments, "-o", "first", "--save-recipe", "recipe.toml").stdout)
    again = json.loads(run(*arguments, "-o", "again", "--recipe", "recipe.toml").stdout)
    assert first["recipe"] == again["recipe"] == []
    assert first["digest"] == again["digest"]


def test_package_json_keeps_its_contract(folder: Path) -> None:
    result = run("package", "model.onnx", "-p", "jetson", "--evaluate", "evaluation.npz", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {
        "bundle",
        "digest",
        "name",
        "release",
        "profile",
        "recipe",
        "size_bytes",
        "accuracy",
        "latency_ms",
        "violations",
        "peak_rss_bytes",
        "seconds",
    } <= set(told)
    assert set(told["accuracy"]) == {"metric", "before", "after", "drop", "samples", "lost", "gained", "interval", "candidates", "source"}
    assert told["violations"] == []
    assert Path(told["bundle"]) == Path("bundles/model")
    assert told["peak_rss_bytes"] > 1e7


@pytest.mark.slow
def test_the_project_file_is_obeyed_and_the_command_line_wins(folder: Path) -> None:
    (folder / "edgesdk.toml").write_text('model = "model.onnx"\nname = "digits"\nprofiles = ["jetson", "raspberry-pi-4"]\nevaluate = "evaluation.npz"\n')
    both = json.loads(run("package", "--json").stdout)
    assert [(one["profile"], one["name"], one["accuracy"]["metric"]) for one in both] == [("jetson", "digits", "top-1"), ("raspberry-pi-4", "digits", "top-1")]
    assert json.loads(run("package", "--json", "-p", "jetson-nano", "--name", "other").stdout)["name"] == "other"


def test_init_writes_what_package_then_obeys(folder: Path) -> None:
    assert run("init").exit_code == 0
    text = (folder / "edgesdk.toml").read_text()
    assert 'calibration = "calibration.npz"' in text
    assert 'evaluate = "evaluation.npz"' in text
    assert run("init").exit_code == 1


def test_init_leaves_nothing_half_written(folder: Path) -> None:
    odd = folder / os.fsdecode(b"odd\xff.onnx")
    odd.write_bytes((folder / "model.onnx").read_bytes())
    done = run("init", odd.name)
    assert done.exit_code == 1
    assert "no UTF-8" in done.stderr
    assert not (folder / "edgesdk.toml").exists()


def test_inspect_and_check_and_profiles_have_two_renderings() -> None:
    assert "Conv" in run("inspect", "model.onnx").stdout
    told = json.loads(run("inspect", "model.onnx", "-p", "kria-kv260", "--profile-ops", "--json").stdout)
    assert told["summary"]["operators"]["Conv"] == 9
    assert told["macs"] == 9_345_920
    assert told["kernels"]
    shown = run("inspect", "model.onnx", "-p", "kria-kv260", "--profile-ops").stdout
    assert all(words in shown for words in ("peak of activations", "`kria-kv260` takes", "static shapes", "ms on one thread here"))
    assert "obeys `jetson`" in run("check", "model.onnx", "-p", "jetson").stdout
    broken = run("check", "model.onnx", "-p", "kria-kv260")
    assert broken.exit_code == 1
    assert "static shapes" in broken.stdout
    assert "raspberry-pi-5" in run("profile", "list").stdout
    assert json.loads(run("profile", "show", "jetson-orin", "--json").stdout)["name"] == "jetson-orin"
    assert "float16" in run("profile", "show", "jetson").stdout


def test_a_node_is_saved_with_its_inputs(folder: Path) -> None:
    told = json.loads(run("inspect", "model.onnx", "--save-node", "/3/norm1/BatchNormalization", "--json").stdout)
    assert told == {"model": "3_norm1_BatchNormalization.onnx", "inputs": "3_norm1_BatchNormalization.npz"}
    single = json.loads(run("inspect", told["model"], "--calibration", told["inputs"], "--json").stdout)
    assert list(single["summary"]["operators"]) == ["BatchNormalization"]
    assert run("inspect", "model.onnx", "--save-node", "nowhere").exit_code == 1
    assert not (folder / "nowhere.onnx").exists()


def test_an_input_may_be_called_as_numpy_calls_its_own(folder: Path) -> None:
    graph.save_as(build([node("Relu", ["file"], ["y"], name="r")], inputs={"file": (1, 2)}, outputs={"y": (1, 2)}), folder / "odd.onnx")
    done = run("inspect", "odd.onnx", "--save-node", "r", "-o", "r.onnx")
    assert done.exit_code == 0, done.output
    assert np.load(folder / "r.npz")["file"].shape == (1, 2)


def test_no_name_in_a_model_reaches_the_terminal_as_a_command(folder: Path) -> None:
    odd = "\x1b[31mred\x9b2J"
    graph.save_as(build([node("Relu", ["x"], [odd], name=odd)], inputs={"x": (1, 2)}, outputs={odd: (1, 2)}), folder / "odd.onnx")
    shown, refused = run("inspect", "odd.onnx"), run("inspect", "odd.onnx", "--save-node", odd + "?")
    assert (shown.exit_code, refused.exit_code) == (0, 1)
    assert r"\x1b[31mred\x9b2J" in shown.stdout
    assert r"\x1b[31mred" in refused.stderr
    assert not set(shown.stdout + refused.stderr) & {"\x1b", "\x9b"}


@pytest.mark.slow
def test_optimize_writes_one_file(folder: Path) -> None:
    told = json.loads(run("optimize", "model.onnx", "-p", "raspberry-pi-5", "--calibration", "calibration.npz", "-o", "small.onnx", "--json").stdout)
    assert told["recipe"][-1]["pass"] == "quantize"
    assert (folder / "small.onnx").stat().st_size < 0.5 * (folder / "model.onnx").stat().st_size


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(f"{sys.executable} -m edgesdk.cli profile list --json | head -1", shell=True, capture_output=True, text=True, check=False)  # noqa: S602  # the pipe is what is tested
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", "2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_bug(closed: str) -> None:
    """As cron and services may leave them."""
    done = subprocess.run(f"{sys.executable} -m edgesdk.cli inspect model.onnx {closed}", shell=True, capture_output=True, text=True, check=False)  # noqa: S602  # the shell closes them
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_what_the_terminal_cannot_show_is_no_traceback(folder: Path, encoding: str) -> None:
    model = folder / os.fsdecode(b"m\xff \xe6\xa8\xa1.onnx")  # not UTF-8
    model.write_bytes((folder / "model.onnx").read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    inspect = [sys.executable, "-m", "edgesdk.cli", "inspect", str(model)]
    shown = subprocess.run(inspect, env=environment, capture_output=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert b"parameters" in shown.stdout
    told = subprocess.run([*inspect, "--json"], env=environment, capture_output=True, check=False)
    assert os.fsencode(json.loads(told.stdout.decode("utf-8"))["model"]) == bytes(model)


def test_a_flag_is_shown_without_a_type() -> None:
    for verb in (("deploy",), ("key", "list"), ("profile", "show"), ()):
        assert "bool" not in run(*verb, "--help").stdout


@pytest.mark.parametrize(("wish", "coloured"), [("", True), ("1", False)])
def test_a_terminal_has_colours_unless_they_are_not_wanted(wish: str, coloured: bool) -> None:
    here, there = pty.openpty()
    environment = {**os.environ, "NO_COLOR": wish, "TERM": "xterm"}
    subprocess.run([sys.executable, "-m", "edgesdk.cli", "inspect", "nowhere.onnx"], stderr=there, env=environment, check=False)
    os.close(there)
    assert (b"\x1b" in os.read(here, 4096)) == coloured
    os.close(here)


def test_the_version_is_said() -> None:
    assert run("--version").stdout.startswith("edgesdk 0.1.0, Python 3.")


def test_no_option_is_cut_in_the_help_of_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "--allow-signature-change" in run("deploy", "--help").stdout


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_130(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\ndef evaluate(run):\n    print('here', flush=True)\n    time.sleep(60)\n")
    # A job that a shell put into the background ignores SIGINT, and so would what it starts.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edgesdk.cli import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "package", "model.onnx", "-p", "jetson", "--evaluate", "slow.py:evaluate"], stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    assert child.stderr.readline() == "here\n"
    child.send_signal(2)
    assert child.wait(timeout=10) == 130
    assert child.stderr.read() == "interrupted\n"
    child.stderr.close()
    assert not (folder / "bundles").exists()


def test_onnxruntime_is_told_to_phone_nobody() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    told = [sys.executable, "-c", "import os, edgesdk; print(os.environ['ORT_DISABLE_TELEMETRY'])"]
    assert subprocess.run(told, env=environment, capture_output=True, text=True, check=True).stdout == "1\n"
