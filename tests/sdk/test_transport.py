"""What of the transport needs no server: quoting, known_hosts, ssh's settings, and this machine as a device."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgesdk import transport
from edgesdk.cli import output
from edgesdk.errors import ConnectionFailed, DeviceError
from edgesdk.transport import command_line, connect, ssh
from edgesdk.transport.known_hosts import HostKey, name_of, read
from edgesdk.transport.settings import resolve

KEY, OTHER = HostKey("ssh-ed25519", b"one"), HostKey("ssh-ed25519", b"two")


@pytest.fixture(autouse=True)
def _plain_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def test_any_argument_survives_a_shell() -> None:
    every_byte = bytes(range(1, 256)).decode("latin-1")
    done = subprocess.run(
        ["sh", "-c", command_line([sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", every_byte, ""])], capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == ascii([every_byte, ""])
    line = command_line(["x", every_byte])
    assert re.fullmatch(r"""sh -c 'eval "\$\(printf %b "\$@"\)"' sh( '[^']{1,1000}')+""", line)  # every word in one pair of quotes, none too long for csh
    assert "!" not in line and "\n" not in line and "\\\\" not in line


def test_local_feeds_and_reads_at_the_same_time() -> None:
    data = os.urandom(5 << 20)
    with connect("local") as here:
        assert here.run(["cat"], stdin=[data[: 1 << 20], data[1 << 20 :]], most_bytes=6 << 20).stdout == data
        assert here.run(["head", "-c", "3"], stdin=[data]).stdout == data[:3]


def test_local_tells_how_a_command_ended() -> None:
    with connect("local") as here:
        done = here.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", "err\n")
        assert here.run(["no-such-program"]).returncode == 127
        assert here.run(["sh", "-c", "kill -9 $$"]).returncode == -9


def test_local_bounds_silence_and_length() -> None:
    with connect("local") as here:
        with pytest.raises(ConnectionFailed, match="nothing moved for 0 s"):
            here.run(["sleep", "30"], silence_s=0.2)
        with pytest.raises(DeviceError, match="longer than 1000 bytes"):
            here.run(["cat", "/dev/zero"], most_bytes=1000)


def test_local_does_not_wait_for_a_daemon_that_keeps_the_pipes() -> None:
    begin = time.monotonic()
    with connect("local") as here:
        assert here.run(["sh", "-c", "sleep 20 & echo started"]).stdout == b"started\n"
    assert time.monotonic() - begin < 10


def test_an_error_while_reading_the_input_is_the_callers() -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise OSError("the file is gone")

    with connect("local") as here, pytest.raises(OSError, match="the file is gone"):
        here.run(["cat"], stdin=broken())


class Late:
    """A channel whose command is silent for long; its answer and its end come just after somebody looked for the answer."""

    def __init__(self) -> None:
        self.says: list[bytes] = []

    def recv(self, _most: int) -> bytes:
        if not self.says:
            time.sleep(0.1)
            self.says = [b"answer", b""]
            raise TimeoutError
        return self.says.pop(0)

    def exit_status_ready(self) -> bool:
        return bool(self.says)

    def recv_exit_status(self) -> int:
        return 0

    def recv_stderr_ready(self) -> bool:
        return False

    def settimeout(self, _s: float) -> None:
        pass

    def shutdown_write(self) -> None:
        pass


def test_what_is_said_at_the_very_end_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_GRACE_S", 0.05)
    monkeypatch.setattr(ssh, "_execute", lambda *_: None)
    done = ssh.SshTransport(resolve("pi"), [])._exchange(Late(), "line", (), 5, 100)  # type: ignore[arg-type]
    assert done.stdout == b"answer"


def known_hosts(tmp_path: Path, *lines: str) -> list[Path]:
    file = tmp_path / "known_hosts"
    file.write_text("\n".join(lines) + "\n")
    return [tmp_path / "missing", file]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (f"pi {KEY.text}", "pi"),
        (f"other,pi,10.0.0.1 {KEY.text} a comment", "pi"),
        (f"[pi]:2222 {KEY.text}", "[pi]:2222"),
        (f"*.lab,!bad.lab {KEY.text}", "pi.lab"),
        (f"[10.0.0.?]:22* {KEY.text}", "[10.0.0.7]:2222"),
        (f"PI {KEY.text}", "pi"),
    ],
)
def test_a_host_is_found_by_its_patterns(tmp_path: Path, line: str, name: str) -> None:
    assert read(known_hosts(tmp_path, line), name).judge(KEY) == "known"


def test_a_hashed_name_is_found(tmp_path: Path) -> None:
    files = known_hosts(tmp_path, f"[pi]:2222 {KEY.type} AAAAC3NzaC1lZDI1NTE5AAAAIGBwfoEDp9L3bcSh4X5bqZHpW5h7HN3P0q6y0Sg7iq5Y")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", files[1]], check=True, capture_output=True)
    assert files[1].read_text().startswith("|1|")
    assert len(read(files, "[pi]:2222").accepted) == 1
    assert read(files, "[pi]:22").accepted == ()


def test_who_is_not_named_is_unknown(tmp_path: Path) -> None:
    files = known_hosts(tmp_path, f"pi {KEY.text}", f"!bad.lab,*.lab {KEY.text}", f"|1|x|y {KEY.text}", "@cert-authority * ssh-ed25519 AAAA")
    assert read(files, "pi2").judge(KEY) == "unknown"
    assert read(files, "bad.lab").judge(KEY) == "unknown"
    assert read(files, name_of("pi", 2222)).judge(KEY) == "unknown"


def test_a_line_that_says_nothing_to_us_is_named(tmp_path: Path) -> None:
    authority = f"@cert-authority *.lab {KEY.text}"
    files = known_hosts(tmp_path, "# a comment", "", "garbage", f"pi {KEY.text}", authority, f"@unheard-of pi {KEY.text}", "pi ssh-rsa !!!!")
    known = read(files, "pi.lab")
    assert known.judge(KEY) == "unknown"
    assert [text.removeprefix(f"{files[1]}:") for text in known.passed_over] == [
        "3 cannot be read",
        "5 names an authority: certificates of hosts are not read here",
        "6 cannot be read",
    ]
    assert read(files, "pi").judge(KEY) == "known"


def test_another_key_is_a_change_and_a_revoked_one_is_refused(tmp_path: Path) -> None:
    files = known_hosts(tmp_path, f"pi {KEY.text}", f"@revoked * {OTHER.text}")
    assert read(files, "pi").judge(HostKey("ssh-ed25519", b"three")) == "changed"
    assert read(files, "pi").judge(OTHER) == "revoked"
    assert read(files, "else").judge(OTHER) == "revoked"


CONFIG = """\
Host pi
  HostName 10.0.0.7
  User pi
  Port 2222
  IdentityFile ~/.ssh/%h_key
  ProxyCommand nc %h %p %%
  ConnectTimeout 3
Host behind
  ProxyJump door:22,pi@gate
"""


@pytest.mark.parametrize("ssh", [True, False], ids=["ssh -G", "paramiko"])
def test_settings_come_from_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ssh: bool) -> None:
    config = tmp_path / "config"
    config.write_text(CONFIG)
    if not ssh:
        monkeypatch.setattr("shutil.which", lambda _: None)
    pi = resolve("pi", config)
    assert (pi.hostname, pi.user, pi.port, pi.timeout_s) == ("10.0.0.7", "pi", 2222, 3)
    assert pi.identity_files[0] == Path.home() / ".ssh/10.0.0.7_key"
    assert pi.proxy_command == "nc 10.0.0.7 2222 %"
    assert resolve("behind", config).proxy_jump == ("door:22", "pi@gate")
    typed = resolve("root@pi:22", config)
    assert (typed.user, typed.port, typed.address) == ("root", 22, "`root@pi:22` (10.0.0.7:22)")
    assert ("there is no `ssh` here" in caplog.text) is not ssh


@pytest.mark.parametrize(
    ("host", "alias", "port"), [("fe80::1", "fe80::1", 22), ("me@[::1]:2222", "::1", 2222), ("[::1]", "::1", 22), ("10.0.0.7", "10.0.0.7", 22)]
)
def test_addresses(tmp_path: Path, host: str, alias: str, port: int) -> None:
    config = tmp_path / "config"
    config.touch()
    found = resolve(host, config)
    assert (found.alias, found.port) == (alias, port)


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host pi\n  Prot 22\n")
    with pytest.raises(ConnectionFailed, match="ssh cannot read its settings for `pi`") as caught:
        resolve("pi", config)
    assert f"`ssh -G -F {config} -- pi`" in caught.value.hint


def test_a_host_that_lets_one_wait_is_named_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(transport, "_SLOW_S", 0.1)
    monkeypatch.setattr(transport, "tell_slow", told.append)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (tmp_path / "config").write_text(f"Host mute\n  HostName 127.0.0.1\n  Port {silent.getsockname()[1]}\n  ConnectTimeout 1\n")
        monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(tmp_path / "config"))
        with pytest.raises(ConnectionFailed):
            connect("mute")
    assert told == ["mute"]
    with connect("local"):
        pass
    assert told == ["mute"]


def test_nothing_is_said_while_somebody_types_a_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output.say_connecting("pi")
    assert capsys.readouterr().err == "connecting to `pi` …\n"
    monkeypatch.setattr(output.termios, "tcgetattr", lambda _: [])
    monkeypatch.setattr(output.atexit, "register", lambda *_: None)
    monkeypatch.setattr(output.sys, "stdin", SimpleNamespace(fileno=lambda: 0))
    monkeypatch.setattr(output.getpass, "getpass", lambda _: output.say_connecting("pi") or "secret")
    assert output.password("password of pi") == "secret"
    assert capsys.readouterr().err == ""
