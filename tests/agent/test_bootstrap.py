"""Setting up an empty device: what arrives is checked, unpacked whole, and switched to at once."""

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edge_agent import bootstrap

SOURCE = Path(bootstrap.__file__).read_text(encoding="utf-8")
LAUNCHER = Path(bootstrap.__file__).with_name("launcher.py").read_bytes()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return buffer.getvalue()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def ask(home: Path, *verb: str, stdin: bytes = b"") -> dict[str, Any]:
    """As the host does: the source as an argument, no package, nothing of the environment."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", SOURCE, *verb], input=stdin, capture_output=True, check=False, env={"EDGE_AGENT_HOME": str(home)}, timeout=60
    )
    assert done.stderr == b""
    reply: dict[str, Any] = json.loads(done.stdout.decode().removeprefix(bootstrap.FRAME))
    assert (done.returncode != 0) is ("error" in reply)
    return reply


def send(home: Path, data: bytes, offset: int = 0) -> dict[str, Any]:
    return ask(home, "receive", digest_of(data), str(len(data)), str(offset), stdin=data[offset:])


def install(home: Path, files: dict[str, bytes]) -> dict[str, Any]:
    data = archive({"edge_agent/launcher.py": LAUNCHER, **files})
    send(home, data)
    return ask(home, "agent", digest_of(data))


def test_the_agent_runs_from_where_it_was_unpacked(tmp_path: Path) -> None:
    home = tmp_path / "it's home"
    program = b"import os, sys\ndef main(): print(os.environ['EDGE_AGENT_HOME'], sys.argv[1:], 'PYTHONPATH' in os.environ)"
    reply = install(home, {"__main__.py": program, "edge_agent/__init__.py": b""})
    assert (home / "agent" / "current").readlink() == Path(reply["agent"])
    done = subprocess.run([home / "bin" / "edge-agent", "a b"], capture_output=True, text=True, check=True, env={"PYTHONPATH": "/nowhere"})
    assert done.stdout == f"{home} ['a b'] False\n"
    assert [path.name for path in (home / "setup").iterdir()] == ["lock"]


def test_a_newer_agent_takes_over_and_the_one_before_stays(tmp_path: Path) -> None:
    for version in (b"1", b"2", b"3"):
        install(tmp_path, {"__main__.py": b"def main(): print(" + version + b")"})
    done = subprocess.run([tmp_path / "bin" / "edge-agent"], capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"
    assert len([path for path in (tmp_path / "agent").iterdir() if not path.is_symlink()]) == 2


def test_the_agent_runs_under_the_python_that_is_there_now(tmp_path: Path) -> None:
    install(tmp_path, {"__main__.py": b"import sys\ndef main(): print(sys.executable)"})
    assert ask(tmp_path, "launcher")["changed"] is False
    launcher = tmp_path / "bin" / "edge-agent"
    launcher.write_text(launcher.read_text().replace(sys.executable, "/gone/python"))
    assert subprocess.run([launcher], capture_output=True, check=True).stdout  # another python3 does meanwhile
    assert ask(tmp_path, "launcher")["changed"] is True
    assert subprocess.run([launcher], capture_output=True, text=True, check=True).stdout == f"{sys.executable}\n"


def test_a_cut_transfer_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    data = archive({"a": os.urandom(500_000)})
    cut = ask(tmp_path, "receive", digest_of(data), str(len(data)), "0", stdin=data[:200_000])
    assert "ended" in cut["error"]["message"]
    offset = ask(tmp_path, "held", digest_of(data))["held"][digest_of(data)]
    assert offset == 200_000
    assert send(tmp_path, data, offset) == {"received": 1}
    assert ask(tmp_path, "held", digest_of(data))["held"] == {digest_of(data): len(data)}
    assert send(tmp_path, data, len(data)) == {"received": 1}  # the reply was lost: asking again does no harm


def test_what_arrives_damaged_is_not_kept(tmp_path: Path) -> None:
    data = archive({"a": b"content"})
    wrong = ask(tmp_path, "receive", digest_of(data), str(len(data)), "0", stdin=data[:-1] + b"x")
    assert "another digest" in wrong["error"]["message"]
    assert ask(tmp_path, "held", digest_of(data))["held"] == {digest_of(data): 0}


def test_wheels_lie_beside_each_other_under_one_name(tmp_path: Path) -> None:
    tag = "cp311-x86_64-glibc"
    for version in (b"1", b"2"):
        wheels = [archive({"numpy/__init__.py": version}), archive({"onnxruntime/__init__.py": version, "onnxruntime/capi/x.so": b"so"})]
        for wheel in wheels:
            send(tmp_path, wheel)
        ask(tmp_path, "runtime", tag, *map(digest_of, wheels))
        assert (tmp_path / "runtime" / tag / "numpy/__init__.py").read_bytes() == version
        assert (tmp_path / "runtime" / tag / "onnxruntime/capi/x.so").read_bytes() == b"so"
    assert len(list((tmp_path / "runtime").iterdir())) == 2  # the link and what it leads to


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a//evil", "./evil", "a\\..\\evil"])
def test_a_member_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    reply = install(tmp_path / "home", {"good.py": b"", name: b"evil"})
    assert "leads out" in reply["error"]["message"]
    assert not (tmp_path / "home/agent/current").exists()
    assert [path.name for path in tmp_path.rglob("*evil*")] == []
    assert list((tmp_path / "home/agent").iterdir()) == []


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc")
    send(tmp_path, buffer.getvalue())
    assert "leads out" in ask(tmp_path, "agent", digest_of(buffer.getvalue()))["error"]["message"]


def test_a_file_twice_in_two_archives_is_refused(tmp_path: Path) -> None:
    wheels = [archive({"same.py": b"1"}), archive({"same.py": b"2"})]
    for wheel in wheels:
        send(tmp_path, wheel)
    assert "twice" in ask(tmp_path, "runtime", "cp311-x86_64-glibc", *map(digest_of, wheels))["error"]["message"]


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    send(tmp_path, b"not a zip file")
    assert "damaged" in ask(tmp_path, "agent", digest_of(b"not a zip file"))["error"]["message"]


@pytest.mark.parametrize("verb", [("agent", "../x"), ("held", "sha256:../../x"), ("runtime", "../x", digest_of(b"")), ("dance",)])
def test_words_of_the_host_do_not_become_paths(tmp_path: Path, verb: tuple[str, ...]) -> None:
    assert "error" in ask(tmp_path, *verb)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in ask(tmp_path / "file" / "home", "held")["error"]["message"]


def test_a_second_set_up_waits_and_then_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "LOCK_WAIT_S", 0.3)
    first, second = bootstrap.locked(tmp_path / "lock"), bootstrap.locked(tmp_path / "lock")
    with first, pytest.raises(bootstrap.BootstrapError, match=f"process {os.getpid()} since"), second:
        raise AssertionError
    with bootstrap.locked(tmp_path / "lock"):
        pass


def ask_at_home(folder: Path, *verb: str, stdin: bytes = b"") -> dict[str, Any]:
    """The same for a user whose home is ``folder``, and whose agent lies where it usually does."""
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-I", "-c", SOURCE, *verb], input=stdin, capture_output=True, check=True, env=environment, timeout=120)
    reply: dict[str, Any] = json.loads(done.stdout.decode().removeprefix(bootstrap.FRAME))
    return reply


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_python_finds_the_client_and_a_teardown_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".local" / "bin").mkdir(parents=True)
    before = everything_below(tmp_path)
    data = archive({"__main__.py": b"", "edge_agent/__init__.py": b"where = __file__", "edge_agent/launcher.py": LAUNCHER})
    ask_at_home(tmp_path, "receive", digest_of(data), str(len(data)), "0", stdin=data)
    reply = ask_at_home(tmp_path, "agent", digest_of(data))
    home = tmp_path / ".local" / "share" / "edge-agent"
    assert reply["clients"] == [str(path) for path in sorted(tmp_path.glob(".local/lib/python3.*/site-packages/edge-agent.pth"))]
    for python in bootstrap.pythons():
        environment = {"HOME": str(tmp_path)}
        about = json.loads(subprocess.run([python, "-c", bootstrap.ASK], capture_output=True, check=True, env=environment).stdout)
        if about[0] and about[1]:
            done = subprocess.run([python, "-c", "import edge_agent; print(edge_agent.where)"], capture_output=True, text=True, check=True, env=environment)
            assert done.stdout.startswith(f"{home}/agent/current/")
    (home / "bin" / "edge-agent").unlink()
    assert ask_at_home(tmp_path, "launcher")["clients"] == reply["clients"]

    planned = ask_at_home(tmp_path, "teardown", "--dry-run")
    assert planned["removed"] == [*reply["clients"], str(home)]
    assert home.is_dir()
    assert ask_at_home(tmp_path, "teardown") == {**planned, "dry_run": False}
    assert set(everything_below(tmp_path)) - set(before) <= {".local/share", ".local/lib"}
    assert ask_at_home(tmp_path, "teardown")["removed"] == []


def test_an_agent_of_another_folder_is_not_shown_to_every_python(tmp_path: Path) -> None:
    assert install(tmp_path / "second", {"edge_agent/__init__.py": b""})["clients"] == []


def test_a_teardown_leaves_what_is_not_the_agents(tmp_path: Path) -> None:
    install(tmp_path, {"edge_agent/__init__.py": b""})
    (tmp_path / "notes.txt").write_text("mine")
    reply = ask(tmp_path, "teardown")
    assert reply["kept"] == [str(tmp_path / "notes.txt")]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert str(tmp_path) not in reply["removed"]


@pytest.mark.e2e
def test_a_teardown_ends_the_agent(tmp_path: Path) -> None:
    install(tmp_path / "home", {"edge_agent/__init__.py": b""})
    process = subprocess.Popen([sys.executable, "-m", "edge_agent", "serve"], env={**os.environ, "EDGE_AGENT_HOME": str(tmp_path / "home")})
    try:
        while not (tmp_path / "home" / "agent.sock").exists():  # it hears signals by then
            assert process.poll() is None
        assert bootstrap.holder(tmp_path / "home") is not None
        ask(tmp_path / "home", "teardown")
        assert process.wait(20) == 0
        assert not (tmp_path / "home").exists()
    finally:
        process.kill()
        process.wait()


def test_several_verbs_are_one_command_and_what_is_unpacked_is_held(tmp_path: Path) -> None:
    """A reply that was lost after all was done: nothing of it is wanted again."""
    agent, first, second = archive({"edge_agent/launcher.py": LAUNCHER}), archive({"numpy/a.py": b"1"}), archive({"onnxruntime/b.py": b"2"})
    sent = [word for data in (agent, first, second) for word in (digest_of(data), str(len(data)), "0")]
    digests = [digest_of(data) for data in (agent, first, second)]
    verbs = ["receive", *sent, "then", "agent", *digests[:1], *digests, "then", "runtime", "cp399-x86_64-glibc", *digests[1:]]
    reply = ask(tmp_path, *verbs, stdin=agent + first + second)
    assert (reply["received"], reply["agent"]) == (3, digests[0][7:23])
    assert (tmp_path / "runtime" / reply["runtime"] / "onnxruntime" / "b.py").read_bytes() == b"2"
    assert sorted(path.name for path in (tmp_path / "setup").iterdir()) == ["lock"]
    held = ask(tmp_path, "held", *digests)["held"]
    assert all(held[digest] >= len(data) for digest, data in zip(digests, (agent, first, second), strict=True))
    again = ["receive", "then", *verbs[verbs.index("then") + 1 :]]
    assert ask(tmp_path, *again) == {"received": 0, **{key: reply[key] for key in ("agent", "clients", "runtime")}}
    assert ask(tmp_path, "held", digests[0], digest_of(b"other"))["held"][digest_of(b"other")] == 0


def test_a_verb_that_fails_ends_those_behind_it_and_what_arrived_stays(tmp_path: Path) -> None:
    data = archive({"numpy/a.py": b"1"})
    reply = ask(
        tmp_path, "receive", digest_of(data), str(len(data)), "0", "then", "agent", digest_of(b"none"), "then", "runtime", "cp399", digest_of(data), stdin=data
    )
    assert "error" in reply
    assert ask(tmp_path, "held", digest_of(data))["held"] == {digest_of(data): len(data)}
    assert not list((tmp_path / "runtime").iterdir())


def test_what_came_compiled_is_not_compiled_again(tmp_path: Path) -> None:
    source, ready = (
        archive({"edge_agent/launcher.py": LAUNCHER, "edge_agent/a.py": b"x = 1\n"}),
        archive({f"edge_agent/__pycache__/a.{sys.implementation.cache_tag}.pyc": b"sent"}),
    )
    for data in (source, ready):
        send(tmp_path, data)
    reply = ask(tmp_path, "agent", f"{digest_of(source)}+{digest_of(ready)}")
    folder = tmp_path / "agent" / reply["agent"] / "edge_agent" / "__pycache__"
    assert (folder / f"a.{sys.implementation.cache_tag}.pyc").read_bytes() == b"sent"
    assert (folder / f"launcher.{sys.implementation.cache_tag}.pyc").stat().st_size > 100
    assert sorted(path.name for path in (tmp_path / "setup").iterdir()) == ["lock"]
