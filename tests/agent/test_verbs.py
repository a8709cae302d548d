"""`edge-agent` as a host runs it, and what it is without anything installed."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import h11
import numpy as np
import pytest
from toys import FRAME, Agent, linear, make, processes, wait_until

import edge_agent
from edge_agent import __main__ as entry
from edge_agent import home as homes
from edge_agent import probe, text
from edge_agent.bundle import Layout


@pytest.fixture
def idle() -> Agent:
    """An agent that nobody started."""
    folder = tempfile.mkdtemp(prefix="agent-")
    yield Agent(Path(folder, "home"))  # type: ignore[misc]
    subprocess.run([sys.executable, "-m", "edge_agent", "stop"], env={**os.environ, "EDGE_AGENT_HOME": f"{folder}/home"}, check=True, capture_output=True)
    shutil.rmtree(folder)


def test_help_is_quick_and_lists_what_people_use() -> None:
    loaded = "print(sorted(m for m in sys.modules if m in ('numpy', 'onnxruntime', 'h11')))"
    code = f"import sys; from edge_agent.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in ("probe", "status", "activate", "rollback", "infer", "bench", "logs"):
        assert f"    {verb} " in done.stdout
    assert "worker" not in done.stdout
    assert "trial" not in done.stdout


def test_the_supervisor_imports_neither_numpy_nor_onnxruntime() -> None:
    code = "import sys, edge_agent.supervisor; print([m for m in ('numpy', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.e2e
def test_the_whole_way_through_the_verbs(idle: Agent, tmp_path: Path) -> None:
    folder = make(tmp_path / "1", linear(2))
    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
        wanted = {"digests": [{"digest": blob.digest, "size": blob.size} for blob in manifest.blobs]}
        missing = idle.verb("missing", stdin=json.dumps(wanted).encode())["missing"]  # starts the agent
        assert missing == [{"digest": blob.digest, "offset": 0} for blob in manifest.blobs]
        for blob in manifest.blobs:
            data = layout.blob(blob.digest)
            half = len(data) // 2
            cut = idle.verb("put", blob.digest, str(blob.size), stdin=data[:half], code=1)
            assert f"ended after {half} of {blob.size} bytes" in cut["error"]["message"]
            ((offset),) = [entry["offset"] for entry in idle.verb("missing", stdin=json.dumps(wanted).encode())["missing"] if entry["digest"] == blob.digest]
            assert offset == half
            done = idle.verb("put", blob.digest, str(blob.size), "--offset", str(offset), stdin=data[half:])
            assert done == {"digest": blob.digest, "size": blob.size}
            assert idle.verb("put", blob.digest, str(blob.size), stdin=data) == done
        broken = idle.verb("put", "sha256:" + "0" * 64, "5", stdin=b"abcde", code=1)
        assert idle.verb("receive", code=1)["error"]["again"], "the host is gone, or busy: it comes again"
        assert "another digest" in broken["error"]["message"]
    assert idle.verb("missing", stdin=json.dumps(wanted).encode()) == {"missing": []}

    job = idle.verb("activate", manifest.digest)["job"]
    state = wait_until(lambda: (lambda s: s if s["state"] != "running" else None)(idle.verb("job", job)))
    assert state["state"] == "done", state
    assert set(state) == {"id", "state", "stage", "result", "error"}

    status = idle.verb("status")
    assert set(status) == {"agent", "models", "staged", "store", "device"}
    assert set(status["agent"]) == {"version", "digest", "pid", "python", "onnxruntime", "numpy", "home", "since", "problem"}
    assert status["agent"]["numpy"] == np.__version__
    assert set(status["models"][0]) == {"name", "release", "digest", "profile", "provider", "nodes", "state", "previous", "since", "error", "pid", "count"}
    assert idle.verb("start") == {"running": True, "pid": status["agent"]["pid"], "digest": None}

    packed = io.BytesIO()
    np.savez(packed, x=np.ones((1, 4), np.float32))
    answer = idle.verb("infer", "toy", stdin=packed.getvalue())
    assert answer["outputs"] == {"y": {"dtype": "float32", "shape": [1, 3], "data": [8.0] * 3}}
    assert answer["latency_ms"] > 0
    assert idle.verb("infer", "toy", "--golden")["agrees"] is True
    raw = subprocess.run(
        [sys.executable, "-m", "edge_agent", "infer", "toy", "--golden", "--npz"], env=idle.environment(), capture_output=True, check=True
    ).stdout
    assert np.load(io.BytesIO(raw))["y"].shape == (2, 3)
    assert "not an .npz of plain arrays" in idle.verb("infer", "toy", stdin=b"noise", code=1)["error"]["message"]

    bench = idle.verb("bench", "toy", "--runs", "30", "--warmup", "5")
    assert set(bench) == {"name", "release", "digest", "client_ms", "run_ms", "runs", "warmup", "provider", "threads", "device"}
    assert bench["run_ms"]["p50"] < bench["client_ms"]["p50"] <= bench["client_ms"]["p99"]
    assert bench["device"]["cores"] >= 1

    (report,) = idle.verb("report")["models"]
    assert report["count"] == 21 + 3 + 35  # the activation asks 21 times
    assert set(report["latency_ms"]) == {"p50", "p90", "p99", "p999", "max"}
    assert set(report["phases_ms"]) == {"queue", "input", "run", "output"}
    (version,) = idle.verb("report", "toy", "--histograms")["models"][0]["versions"]
    assert (version["release"], version["total"]["count"]) == ("1", report["count"])
    golden = subprocess.run([sys.executable, "-m", "edge_agent", "golden", "toy"], env=idle.environment(), capture_output=True, check=True).stdout
    assert set(np.load(io.BytesIO(golden))) == {"0.in.0", "0.out.0", "1.in.0", "1.out.0"}
    assert any('"activated"' in line for line in idle.verb("logs")["lines"])
    assert "no previous bundle" in wait_until(lambda: idle.verb("job", idle.verb("rollback", "toy")["job"])["error"])["message"]
    assert idle.verb("remove", "toy")["removed"] == "toy"
    assert idle.verb("stop") == {"running": False}
    assert idle.verb("stop") == {"running": False}


@pytest.mark.e2e
def test_a_bundle_from_a_stick_is_the_same_transaction(idle: Agent, tmp_path: Path) -> None:
    first, archive = make(tmp_path / "1", linear(2)), make(tmp_path / "2.tar", linear(3), release=2)
    assert idle.verb("install", str(first))["outcome"] == "active"
    assert idle.verb("install", str(first))["outcome"] == "unchanged"
    installed = idle.verb("install", str(archive))
    assert (installed["release"], installed["outcome"]) == ("2", "active")
    assert "release 1 of toy is older than 2" in idle.verb("install", str(first), code=1)["error"]["message"]
    assert idle.verb("install", str(first), "--allow-downgrade")["outcome"] == "active"
    wrong = make(tmp_path / "3", linear(4), release=3, answers=[{"y": np.zeros((2, 3), np.float32)}, {"y": np.zeros((1, 3), np.float32)}])
    assert "answers otherwise than the golden answers" in idle.verb("install", str(wrong), code=1)["error"]["message"]
    assert "only for x86-cpu" in idle.verb("install", str(first), "--profile", "jetson", code=1)["error"]["message"]
    assert "there is no bundle at" in idle.verb("install", str(tmp_path / "none"), code=1)["error"]["message"]
    assert idle.verb("infer", "toy", "--golden")["agrees"] is True


@pytest.mark.e2e
def test_a_silent_sender_is_given_up_and_what_came_is_kept(idle: Agent) -> None:
    """With the silence cut to a second: nobody waits thirty in a test."""
    idle.verb("start")
    code = "import edge_agent.standard_input as s, sys; s._SILENCE_S = 1\nfrom edge_agent.__main__ import main; sys.exit(main(sys.argv[1:]))"
    digest = "sha256:" + "1" * 64
    process = subprocess.Popen([sys.executable, "-c", code, "put", digest, "100"], env=idle.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(bytes(40))
    process.stdin.flush()
    begin = time.monotonic()
    assert process.wait(20) == 1
    assert time.monotonic() - begin < 15
    out, _ = process.communicate()
    assert b"ended after 40 of 100 bytes" in out
    asked = {"digests": [{"digest": digest, "size": 100}]}
    assert idle.verb("missing", stdin=json.dumps(asked).encode()) == {"missing": [{"digest": digest, "offset": 40}]}


@pytest.mark.e2e
def test_starting_twice_at_once_starts_one(idle: Agent) -> None:
    replies: list[object] = []
    threads = [threading.Thread(target=lambda: replies.append(idle.verb("start"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [replies[0]] * 3
    idle.verb("stop")
    time.sleep(1)  # a start that came too late would begin now
    assert idle.verb("stop") == {"running": False}
    wait_until(lambda: not [pid for pid in processes("edge_agent\0serve") if f"EDGE_AGENT_HOME={idle.home}\0" in environment(pid)])


def environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


@pytest.mark.e2e
def test_it_runs_from_an_unpacked_folder_with_the_wheels_that_the_host_sent(tmp_path: Path) -> None:
    """As on a bare device: a Python without our packages, `agent/current` a link, numpy and onnxruntime below `runtime`."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    unpacked = folder / "agent" / ("0123456789abcdef")
    for package in (edge_agent, h11):
        source = Path(package.__file__).parent
        shutil.copytree(source, unpacked / source.name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    (unpacked / "__main__.py").write_text("import sys\n\nfrom edge_agent.__main__ import main\n\nsys.exit(main())\n")
    (folder / "agent" / "current").symlink_to(unpacked.name)
    (folder / "runtime").mkdir()
    (folder / "runtime" / homes.runtime_tag()).symlink_to(Path(np.__file__).parents[1])
    python = os.path.realpath(sys.executable)
    bare = subprocess.run([python, "-I", "-c", "import onnxruntime"], capture_output=True, check=False, cwd="/")
    assert bare.returncode, "the base interpreter has an onnxruntime of its own"
    environment = {"EDGE_AGENT_HOME": str(folder), "PATH": "/usr/bin:/bin"}

    def verb(*argv: str, stdin: bytes = b"") -> dict[str, object]:
        done = subprocess.run([python, str(folder / "agent" / "current"), *argv], input=stdin, capture_output=True, env=environment, cwd="/", check=True)
        reply: dict[str, object] = json.loads(done.stdout.decode()[len(FRAME) :])
        return reply

    try:
        facts = verb("probe")
        assert facts["agent"] == {"digest": unpacked.name, "version": edge_agent.__version__, "running": False}
        assert facts["onnxruntime"]["where"] == "runtime"  # type: ignore[index]
        verb("start")
        agent = Agent(folder)
        assert agent.activate(make(tmp_path / "1", linear(3)))["state"] == "done"
        assert verb("infer", "toy", "--golden")["agrees"] is True
        assert verb("status")["agent"]["digest"] == unpacked.name  # type: ignore[index]
        assert verb("probe")["agent"]["running"] is True  # type: ignore[index]
    finally:
        verb("stop")
        shutil.rmtree(folder)


def test_the_probe_works_alone() -> None:
    source = Path(probe.__file__).read_text()
    with tempfile.TemporaryDirectory() as folder:
        environment = {"EDGE_AGENT_HOME": f"{folder}/not/there", "PATH": os.environ["PATH"]}
        done = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, text=True, env=environment, cwd=folder, check=True)
    assert done.stdout.startswith(FRAME)
    facts = json.loads(done.stdout[len(FRAME) :])
    assert set(facts) == {
        "format", "system", "architecture", "python", "executable", "abi", "libc", "board", "cpu_model", "cpu_features", "cores", "memory_bytes", "free_bytes",
        "mode", "systemd", "home", "writable", "missing_modules", "files", "governor", "temperature_c", "onnxruntime", "numpy", "agent", "trust", "releases",
        "user", "volatile", "held", "available_bytes",
    }  # fmt: skip
    assert facts["abi"] == f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert facts["writable"] is True
    assert facts["missing_modules"] == []
    assert facts["numpy"] == np.__version__
    assert facts["onnxruntime"]["where"] == "system"
    assert facts["agent"] is None
    assert facts["free_bytes"] > 0


def test_an_old_python_can_say_so() -> None:
    import ast

    ast.parse(Path(probe.__file__).read_text(), feature_version=(3, 6))


def test_a_runtime_that_crashes_at_import_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe.runtime(str(tmp_path))
    assert found["onnxruntime"] is None


def test_versions_and_tags() -> None:
    assert homes.version_of("1.16.0") < homes.version_of("1.16.3") < (1, 17)
    assert homes.version_of("x") == ()
    assert homes.runtime_tag().split("-")[0] == f"cp{sys.version_info[0]}{sys.version_info[1]}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["put", "sha256:xyz", "5"], "is no SHA-256 digest"),
        (["put", "sha256:" + "0" * 64, "5", "--offset", "9"], "does not lie within"),
        (["activate", "; touch x"], "is neither a SHA-256 digest nor a model's name"),
        (["rollback", "../x"], "is no name"),
        (["remove", "A"], "is no name"),
    ],
)
def test_what_cannot_be_is_refused_before_an_agent_is_started(idle: Agent, argv: list[str], message: str) -> None:
    assert message in idle.verb(*argv, code=1)["error"]["message"]
    assert not (idle.home / "agent.sock").exists()


@pytest.mark.parametrize("argv", [[], ["unknown"], ["tcp", "x"], ["bench", "toy", "--runs", "0"], ["put", "x", "y"]])
def test_wrong_usage_is_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.main(argv)
    assert caught.value.code == 2
    assert "usage: edge-agent" in capsys.readouterr().err


def test_a_home_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    agent = Agent(tmp_path / "file" / "home")
    for verb in ("serve", "start", "status"):
        assert agent.verb(verb, code=1)["error"]["hint"] == "set EDGE_AGENT_HOME to a folder that this user may write"


@pytest.mark.e2e
def test_on_a_terminal_people_get_text(shared: Agent) -> None:
    for argv, words in {
        ("status",): ["linear release 1: active", "onnxruntime", "free", "MB memory free"],
        ("report", "linear"): ["linear release 1 on CPUExecutionProvider", "in all", "device: "],
        ("infer", "linear", "--golden"): ["agrees with the golden answer"],
        ("bench", "linear", "--runs", "5", "--warmup", "1"): ["client", "5 runs after 1"],
        ("logs", "--lines", "100000"): ["activated"],
        ("rollback", "../x"): ["error: '../x' is no name", "try: "],
        ("status", "--json"): [FRAME],
    }.items():
        shown = on_terminal(shared, *argv)
        for word in words:
            assert word in shown, shown


def test_a_devices_words_cannot_steer_the_terminal() -> None:
    assert text.render("logs", {"lines": ["\x1b[2Jharmless"]}) == "\\x1b[2Jharmless"


def on_terminal(agent: Agent, *argv: str) -> str:
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "edge_agent", *argv], env=agent.environment(), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:
        pass  # Linux says so at the end
    os.close(master)
    process.wait()
    return shown.decode()


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_traceback(tmp_path: Path, closed: str) -> None:
    """As what starts a service may leave them."""
    command = ["sh", "-c", f"exec {sys.executable} -m edge_agent client-path {closed}"]
    done = subprocess.run(command, env={**os.environ, "EDGE_AGENT_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
