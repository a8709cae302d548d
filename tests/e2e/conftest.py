"""A real OpenSSH server on loopback: the current user's, with its own port, keys and home."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgesdk import sent

CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home} PATH={path} {environment}
{sshd_options}
ForceCommand cd "$HOME"; if [ -f .bashrc ]; then . ./.bashrc; fi; exec {login_shell} -c "$SSH_ORIGINAL_COMMAND"
"""


@dataclass
class Device:
    """A running sshd, and the files by which a client knows and enters it."""

    name: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def agent_home(self) -> Path:
        return self.home / ".local" / "share" / "edge-agent"

    @property
    def known_hosts_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {(self.folder / 'host_key.pub').read_text()}"

    def stop(self) -> None:
        """sshd and its sessions; the agent that it started stays, as on a board."""
        self.process.terminate()
        self.process.wait(10)


@dataclass
class Bench:
    """The host's side: one ssh configuration, one known_hosts, one key; and as many devices as a test asks for."""

    folder: Path
    start: Callable[..., Device]

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def config(self) -> Path:
        return self.folder / "config"

    def entry(self, name: str, port: int, options: str = "") -> None:
        """Another way to a host on loopback, under a name of its own."""
        with self.config.open("a") as config:
            config.write(
                f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {self.key}\n"
                f"  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n{options}\n"
            )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    folder = tmp_path / "ssh"
    folder.mkdir()
    keygen(folder / "id_ed25519")
    (folder / "known_hosts").touch()
    (folder / "config").touch()
    monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(folder / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(sent, "_folder", lambda: tmp_path / "sent")  # what other tests sent is no base here
    devices: list[Device] = []

    def start(
        name: str = "pi",
        *,
        options: str = "",
        sshd_options: str = "",
        login_shell: str = "sh",
        environment: str = "",
        python: Path = Path(sys.executable).parent,
        known: bool = True,
    ) -> Device:
        path = f"{python}:/usr/local/bin:/usr/bin:/bin"
        settings = {"login_shell": login_shell, "path": path, "environment": environment, "sshd_options": sshd_options}
        device = start_sshd(name, tmp_path / name, folder / "id_ed25519.pub", **settings)
        devices.append(device)
        found.entry(name, device.port, options)
        if known:
            with (folder / "known_hosts").open("a") as file:
                file.write(device.known_hosts_line)
        return device

    found = Bench(folder, start)
    yield found
    for device in devices:
        agent = device.agent_home / "bin" / "edge-agent"
        if agent.exists():
            subprocess.run([agent, "stop"], capture_output=True, check=False, timeout=60)
        device.stop()


def start_sshd(name: str, folder: Path, public_key: Path, **settings: str) -> Device:
    (folder / "home").mkdir(parents=True)
    keygen(folder / "host_key")
    shutil.copy(public_key, folder / "authorized_keys")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(CONFIG.format(port=port, folder=folder, home=folder / "home", **settings))
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert program, "these tests need OpenSSH's server: apt-get install openssh-server"
    process = subprocess.Popen([program, "-D", "-f", folder / "sshd_config", "-E", folder / "sshd.log"], stdin=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return Device(name, folder, port, process)
        assert process.poll() is None, (folder / "sshd.log").read_text()
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")


def keygen(path: Path, *, passphrase: str = "") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", path.name, "-f", path], check=True)
