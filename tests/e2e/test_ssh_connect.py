"""Reaching a device: every way in that works, and one clear sentence for each that does not."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesdk.errors import ConnectionFailed, DeviceError
from edgesdk.transport import connect, ssh
from tests.e2e.conftest import Bench, keygen

pytestmark = pytest.mark.e2e

NASTY = ["it's", 'say "hi"', "$HOME `id` $(id)", "a\\b \\' \\\\", "two\nlines\n", "!!", "~", "*", "-n", "", "größe", "%s", ";&|<>"]


def refusal(host: str) -> tuple[str, str]:
    with pytest.raises(ConnectionFailed) as caught:
        connect(host)
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.hint


# The first three are on every Debian and Ubuntu; the others are tried where they are.
SHELLS = ["sh", "bash", "dash", *filter(shutil.which, ("fish", "csh", "zsh"))]


@pytest.mark.parametrize("shell", SHELLS)
def test_arguments_arrive_as_they_were_written_whatever_the_login_shell(bench: Bench, shell: str) -> None:
    bench.start(login_shell=shell)
    with connect("pi") as pi:
        done = pi.run(["python3", "-c", "import sys; print(ascii(sys.argv[1:]))", *NASTY])
    assert (done.returncode, done.stdout.decode().strip(), done.stderr) == (0, ascii(NASTY), "")


def test_input_output_and_exit_status_come_through(bench: Bench) -> None:
    bench.start()
    data = os.urandom(3 << 20)
    taken = []

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(data), 1 << 16):
            yield data[start : start + (1 << 16)]
            taken.append(start)

    with connect("pi") as pi:
        assert pi.run(["cat"], stdin=chunks(), most_bytes=4 << 20).stdout == data
        assert len(taken) == 48
        assert pi.run(["sh", "-c", "echo out; echo err >&2; exit 3"]).returncode == 3
        assert pi.run(["no-such-program"]).returncode == 127
        assert pi.run(["sh", "-c", "echo err >&2"]).stderr == "err\n"
        # A command that ends before it has read everything is no broken connection.
        assert pi.run(["head", "-c", "3"], stdin=chunks()).stdout == data[:3]
        with pytest.raises(DeviceError, match="more than 1000 bytes"):
            pi.run(["cat"], stdin=chunks(), most_bytes=1000)


def test_a_daemon_that_keeps_our_pipes_does_not_keep_us(bench: Bench) -> None:
    bench.start()
    with connect("pi") as pi:
        begin = time.monotonic()
        assert pi.run(["sh", "-c", "sleep 30 & echo started"]).stdout == b"started\n"
        assert time.monotonic() - begin < 10


def test_silence_ends_with_the_time_named(bench: Bench) -> None:
    bench.start()
    with connect("pi") as pi, pytest.raises(ConnectionFailed, match="nothing moved for 1 s"):
        pi.run(["sleep", "30"], silence_s=1)


def test_a_frozen_server_is_noticed(bench: Bench) -> None:
    device = bench.start()
    with connect("pi") as pi:
        sessions = [int(pid) for pid in subprocess.run(["pgrep", "-P", str(device.process.pid)], capture_output=True, text=True, check=True).stdout.split()]
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ConnectionFailed, match=r"within|nothing moved|broke|failed"):
                pi.run(["true"], silence_s=1)
        finally:
            for pid in sessions:
                os.kill(pid, signal.SIGCONT)


def test_user_host_and_port_without_a_configuration_entry(bench: Bench, tmp_path: Path) -> None:
    device = bench.start()
    config = tmp_path / "other"
    config.write_text(f"IdentityFile {bench.key}\nUserKnownHostsFile {bench.known_hosts}\n")
    os.environ["EDGESDK_SSH_CONFIG"] = str(config)  # the bench's monkeypatch restores it
    with connect(f"{getpass.getuser()}@127.0.0.1:{device.port}") as pi:
        assert pi.run(["echo", "here"]).stdout == b"here\n"


def test_unknown_host_key_is_refused_with_the_command_that_accepts_it(bench: Bench) -> None:
    bench.start(known=False)
    message, hint = refusal("pi")
    assert "the host key of `pi`" in message and "is not known: ssh-ed25519 SHA256:" in message
    command = hint.split("`")[1]
    assert command.startswith("ssh -o StrictHostKeyChecking=accept-new")
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=30)
    with connect("pi") as pi:
        assert pi.run(["true"]).returncode == 0


def test_unknown_host_key_without_an_ssh_program(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start(known=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    _, hint = refusal("pi")
    subprocess.run(["sh", "-c", hint.split("`")[1]], check=True)
    with connect("pi") as pi:
        assert pi.run(["true"]).returncode == 0


def test_changed_host_key_is_refused_loudly(bench: Bench, tmp_path: Path) -> None:
    device = bench.start(known=False)
    keygen(tmp_path / "other")
    bench.known_hosts.write_text(f"[127.0.0.1]:{device.port} {(tmp_path / 'other.pub').read_text()}")
    message, hint = refusal("pi")
    assert "HAS CHANGED" in message and message.count("SHA256:") == 2
    remove, accept = hint.split("`")[1::2]
    subprocess.run(["sh", "-c", f"{remove} && {accept}"], check=True, capture_output=True, timeout=30)
    with connect("pi") as pi:
        assert pi.run(["true"]).returncode == 0


def test_revoked_host_key_is_refused(bench: Bench) -> None:
    device = bench.start()
    with bench.known_hosts.open("a") as file:
        file.write(f"@revoked {device.known_hosts_line}")
    assert "is revoked" in refusal("pi")[0]


def test_lines_of_known_hosts_that_mean_nothing_to_us_do_not_hide_the_others(bench: Bench) -> None:
    bench.start()
    lines = ["@cert-authority *.example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", "garbage", "host ssh-rsa !!!!", "# comment", ""]
    bench.known_hosts.write_text("\n".join(lines) + "\n" + bench.known_hosts.read_text())
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", bench.known_hosts], check=False, capture_output=True)
    with connect("pi") as pi:
        assert pi.run(["true"]).returncode == 0


def test_lines_of_known_hosts_that_were_passed_over_are_named_where_a_key_is_missing(bench: Bench) -> None:
    bench.start(known=False)
    bench.known_hosts.write_text(f"garbage\n@cert-authority * {bench.key.with_suffix('.pub').read_text()}")
    message, _ = refusal("pi")
    assert f"({bench.known_hosts}:1 cannot be read; {bench.known_hosts}:2 names an authority" in message


def test_wrong_key_names_what_was_tried_and_what_to_do(bench: Bench) -> None:
    bench.start()
    bench.key.unlink()
    bench.key.with_suffix(".pub").unlink()
    keygen(bench.key)
    message, hint = refusal("pi")
    assert "is not let in with" in message and str(bench.key) in message
    assert "ssh-copy-id" in hint


def test_no_key_at_all(bench: Bench) -> None:
    bench.start()
    bench.key.unlink()
    assert "there is no SSH key for" in refusal("pi")[0]


def test_a_key_with_a_passphrase_wants_the_ssh_agent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start()
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret words", "-f", bench.key], check=True, capture_output=True)
    message, hint = refusal("pi")
    assert "passphrase" in message and f"ssh-add {bench.key}" in hint and "secret" not in message + hint

    socket_path = bench.folder / "agent.sock"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket_path], stdout=subprocess.DEVNULL)
    try:
        while not socket_path.exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))
        script = bench.folder / "askpass"
        script.write_text("#!/bin/sh\necho secret words\n")
        script.chmod(0o700)
        environment = {**os.environ, "SSH_ASKPASS": str(script), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
        subprocess.run(["ssh-add", bench.key], env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        with connect("pi") as pi:
            assert pi.run(["true"]).returncode == 0
    finally:
        agent.terminate()
        agent.wait()


def test_through_another_host(bench: Bench) -> None:
    bench.start("door")
    bench.start("inside", options="  ProxyJump door")
    with connect("inside") as inside:
        assert inside.run(["sh", "-c", "basename $(dirname $HOME)"]).stdout == b"inside\n"


def test_the_host_in_between_is_checked_too(bench: Bench) -> None:
    bench.start("door", known=False)
    bench.start("inside", options="  ProxyJump door")
    message, hint = refusal("inside")
    assert "the host key of `door`" in message and "door exit" in hint


def test_hosts_that_lead_to_each_other_end(bench: Bench) -> None:
    bench.start("door", options="  ProxyJump inside")
    bench.start("inside", options="  ProxyJump door")
    assert "circle" in " ".join(refusal("inside"))


def test_jumping_for_all_hosts_but_the_door_itself(bench: Bench) -> None:
    bench.start("door")
    bench.start("inside")
    with bench.config.open("a") as config:
        config.write("Host *\n  ProxyJump door\n")
    with connect("inside") as inside:
        assert inside.run(["echo", "through"]).stdout == b"through\n"


def test_proxy_command(bench: Bench) -> None:
    bench.start("door")
    bench.start("inside", options=f"  ProxyCommand ssh -F {bench.config} -W %h:%p door 2>/dev/null")
    with connect("inside") as inside:
        assert inside.run(["echo", "through"]).stdout == b"through\n"


def test_proxy_command_that_fails(bench: Bench) -> None:
    bench.start(options="  ProxyCommand false")
    begin = time.monotonic()
    assert "ProxyCommand" in " ".join(refusal("pi"))
    assert time.monotonic() - begin < 10


def test_nobody_listens(bench: Bench) -> None:
    bench.start().stop()
    message, hint = refusal("pi")
    assert "refuses the connection" in message and "sshd" in hint


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64, "a..b"])
def test_a_host_that_does_not_exist(bench: Bench, host: str) -> None:
    assert refusal(f"pi@{host}")[0] == f"there is no host `{host}`"


def test_what_answers_is_no_ssh_server(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert "does not speak SSH" in refusal(f"pi@127.0.0.1:{server.getsockname()[1]}")[0]


def test_who_listens_and_says_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_HANDSHAKE_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "does not speak SSH" in refusal(f"pi@127.0.0.1:{server.getsockname()[1]}")[0]


def test_who_does_not_answer_at_all(bench: Bench) -> None:
    """A full backlog drops what comes, as a firewall does."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        with bench.config.open("a") as config:
            config.write(f"Host silent\n  HostName 127.0.0.1\n  Port {server.getsockname()[1]}\n  ConnectTimeout 1\n")
        message, hint = refusal("silent")
    assert "does not answer within 1 s" in message and "firewall" in hint


@pytest.mark.parametrize("host", ["-oProxyCommand=id", "pi@-oProxyCommand=id", "a b", "$(id)", "pi;id", "", "pi@host:99999", "pi@host:0", "x@y@z", "pi\n"])
def test_what_is_no_host_is_refused_before_anything_runs(host: str) -> None:
    assert "is no host" in refusal(host)[0]
