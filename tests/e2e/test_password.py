"""A password is the last resort: typed at a terminal, unseen, kept nowhere. On a bare device, whose user has one."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgesdk import device
from edgesdk.errors import ConnectionFailed
from tests.bundles import write_bundle
from tests.e2e.bare import BareDevice, bare_device, needs_bare
from tests.e2e.links import slow_link

pytestmark = needs_bare

SECRET = "correct horse battery"
PROGRAM = "import logging, sys; logging.basicConfig(level=1, filename=sys.argv.pop(1)); from edgesdk.cli import main; main()"


class Terminal:
    """A program with a terminal of its own: what it shows, and what somebody types."""

    def __init__(self, *argv: str | Path) -> None:
        line = shlex.join(map(str, argv))
        self.process = subprocess.Popen(["script", "-qec", line, "/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.shown = ""

    def until(self, text: str) -> None:
        assert self.process.stdout
        deadline = time.monotonic() + 120
        seen = len(self.shown)
        while text not in self.shown[seen:]:
            assert select.select([self.process.stdout], [], [], deadline - time.monotonic())[0], self.shown
            data = os.read(self.process.stdout.fileno(), 4096)
            assert data, self.shown
            self.shown += data.decode(errors="replace")

    def type(self, text: str) -> None:
        assert self.process.stdin
        time.sleep(0.2)  # getpass throws away what was typed before it asked
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()

    def end(self) -> int:
        rest, _ = self.process.communicate(timeout=180)
        self.shown += rest.decode(errors="replace")
        return self.process.returncode


def enter_by_password(bare: BareDevice, config: Path, port: str = "") -> None:
    bare.ssh(f"echo 'pi:{SECRET}' | chpasswd", user="root")
    where = f"HostName 127.0.0.1\n    Port {port}\n    HostKeyAlias {bare.host}" if port else f"HostName {bare.host}"
    text = bare.config.read_text().replace(f"HostName {bare.host}", where)
    lines = [line for line in text.splitlines() if "IdentityFile" not in line and not (port and line.strip() == "Port 22")]
    config.write_text("\n".join([*lines, "    IdentityFile /none", ""]))


def test_a_password_is_asked_for_where_no_key_is_taken_and_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, config, log = write_bundle(tmp_path / "toy", width=1500), tmp_path / "config", tmp_path / "log"
    monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(config))
    monkeypatch.setenv("EDGESDK_CACHE", os.environ.get("EDGESDK_CACHE", str(tmp_path / "cache")))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with bare_device("locked") as bare, slow_link(f"{bare.host}:22", "--cut-after-bytes", "20000000") as link:
        enter_by_password(bare, config, str(link.port))
        with pytest.raises(ConnectionFailed, match="there is no SSH key"):  # nobody is here to be asked
            device.connect("locked")
        terminal = Terminal(sys.executable, "-c", PROGRAM, log, "deploy", "locked", bundle)
        terminal.until("password of pi at `locked`")
        terminal.type("not that one")
        terminal.until("password of pi at `locked`")
        terminal.type(SECRET)
        assert terminal.end() == 0, terminal.shown
        assert "locked: active" in terminal.shown
        assert terminal.shown.count("password of pi") == 2, "the connection broke, and it was not asked for again"
        link.end()
        assert link.connections >= 3
    said = log.read_text()
    assert "userauth" in said, "everything is logged there"
    assert not [word for word in (SECRET, "not that one") if word in said + terminal.shown]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
