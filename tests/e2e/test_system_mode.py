"""The agent of a whole system: a user of its own, root for what root has to do, and nothing left when it is torn down."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.bundle import digest_of
from edgesdk import agent_package, deploying, device, profiles, setting_up, signing, timing, transport, tuning
from edgesdk.agent_package import AgentPackage
from edgesdk.cli import app
from edgesdk.errors import DeviceError, Refused
from edgesdk.privileges import Ask, become
from tests.bundles import write_bundle
from tests.e2e.bare import BareDevice, bare_device, needs_bare
from tests.e2e.conftest import keygen
from tests.e2e.test_systemd_device import WIDTH, asked
from tests.sdk.small_models import DATA

pytestmark = needs_bare


@pytest.fixture(scope="module")
def board() -> Iterator[BareDevice]:
    with bare_device("system", "--systemd") as started, pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDGESDK_SSH_CONFIG", str(started.config))
        yield started


def users(board: BareDevice) -> str:
    return board.ssh(
        "cat /etc/passwd /etc/group; ls /run /var/lib /etc/systemd/system /usr/local/lib; find / -xdev -name '*edge*agent*' 2>/dev/null", user="root"
    )


def newer_agent() -> AgentPackage:
    """The same with a file more."""
    data = io.BytesIO(agent_package.build().data)
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("edge_agent/newer.py", "")
    return AgentPackage(digest_of(data.getvalue()), data.getvalue())


def assert_measured(board: BareDevice) -> None:
    """By whoever may ask: the model that is active, a file that comes and goes, and settings for both."""
    with pytest.MonkeyPatch.context() as quicker:
        quicker.setattr(timing, "RESTART_S", 0.2)
        active = timing.bench(board.name, "toy", limit_s=0.1)
        assert (active.via, active.name, active.release, len(active.restarts)) == ("agent", "toy", 1, 5)
        file = timing.bench(board.name, DATA / "resnet8_mnist.onnx", limit_s=0.1)
        assert (file.via, file.provider, len(file.restarts)) == ("session", "CPUExecutionProvider", 5)
    assert tuning.tune(DATA / "resnet8_mnist.onnx", profiles.find("x86-cpu"), on=board.name, limit_s=1).host == board.name
    assert board.ssh("ls /var/lib/edge-agent/races", user="root") == "", "what was sent is gone"


def test_set_up_by_root_deployed_to_by_a_member_of_the_group_and_torn_down(board: BareDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = users(board)
    config = tmp_path / "config"
    config.write_text(board.config.read_text().replace("User pi", "User root"))
    os.environ["EDGESDK_SSH_CONFIG"] = str(config)
    try:
        with device.connect(board.name) as there:
            login = there.facts()
            assert (login.user, login.mode) == ("root", "user")
            would = setting_up.set_up_words(login, setting_up.plan_set_up(login), None, system=True)
            assert any("group edge" in line for line in would) and any("/etc/systemd/system" in line for line in would)
            assert users(board) == before, "a dry run does nothing"
            setting_up.set_up_system(there)
            assert there.status().agent.home == "/var/lib/edge-agent"
    finally:
        os.environ["EDGESDK_SSH_CONFIG"] = str(board.config)
    board.ssh("usermod -aG edge pi", user="root")

    # whose it is, and who may what
    modes = board.ssh("stat -c '%A %U %G %n' /var/lib/edge-agent /run/edge-agent/agent.sock /var/lib/edge-agent/blobs", user="root").splitlines()
    assert modes == [
        "drwxr-x--- edge-agent edge /var/lib/edge-agent",
        "srw-rw---- edge-agent edge /run/edge-agent/agent.sock",
        "drwxr-x--- edge-agent edge /var/lib/edge-agent/blobs",
    ]
    pid = board.ssh("systemctl show -P MainPID edge-agent", user="root").strip()
    status = board.ssh(f"cat /proc/{pid}/status", user="root")
    assert "CapEff:\t0000000000000000" in status and "Uid:\t0" not in status

    # the login user's verbs are thin: he sends, has it activated, asks, and writes nothing there himself
    with device.connect(board.name) as pi:
        facts = pi.facts()
        assert (facts.user, facts.mode, facts.home, facts.writable) == ("pi", "system", "/var/lib/edge-agent", False)
        assert deploying.deploy(pi, write_bundle(tmp_path / "one", width=WIDTH)).outcome == "active"
        assert pi.infer("toy").agrees
        assert deploying.deploy(pi, write_bundle(tmp_path / "two", width=WIDTH, release=2, seed=1), stage=device.Stage()).outcome == "staged"
        assert pi.activate("toy").outcome == "active"
        assert pi.rollback("toy").release == 1
        assert_measured(board)
        with pytest.raises(Refused, match="is not root, and there is no sudo"):
            pi.trust("ana ssh-ed25519 AAAA")
    assert asked(board) == "1"
    board.ssh("/var/lib/edge-agent/bin/edge-agent tcp 0")
    assert board.ssh("touch /var/lib/edge-agent/x; cat /var/lib/edge-agent/secrets/token", check=False).count("ermission denied") == 2
    assert board.ssh("stat -c '%A %U' /var/lib/edge-agent/secrets", user="root").strip() == "drwx------ edge-agent"
    board.reboot()
    assert asked(board) == "1"

    # a user outside of the group gets nothing, and is told why
    board.ssh("gpasswd -d pi edge", user="root")
    with device.connect(board.name) as pi, pytest.raises(DeviceError, match="may not ask the agent") as caught:
        pi.status()
    assert "usermod -aG edge" in caught.value.hint
    board.ssh("usermod -aG edge pi", user="root")

    # a newer agent is root's to bring: whoever may only ask is told so before anything is sent
    newer = newer_agent()
    monkeypatch.setattr(agent_package, "build", lambda: newer)
    three = write_bundle(tmp_path / "three", width=WIDTH, release=3, seed=3)
    with device.connect(board.name) as pi, pytest.raises(Refused, match="is not root, and there is no sudo"):
        deploying.deploy(pi, three)
    os.environ["EDGESDK_SSH_CONFIG"] = str(config)
    try:
        with device.connect(board.name) as there:
            assert deploying.deploy(there, three).outcome == "active"
            assert there.status().agent.digest == newer.name
    finally:
        os.environ["EDGESDK_SSH_CONFIG"] = str(board.config)
    assert asked(board) == "3"
    owners = board.ssh("find /var/lib/edge-agent ! -user edge-agent", user="root")
    assert owners == "", "root writes nothing there"

    # an update is root's again; a teardown leaves nothing
    with device.connect(board.name) as pi, pytest.raises(Refused, match="is not root"):
        pi.tear_down(dry_run=True)
    os.environ["EDGESDK_SSH_CONFIG"] = str(config)
    try:
        with device.connect(board.name) as there:
            setting_up.set_up_system(there)  # again: nothing is done twice, and it answers
            assert there.status().models[0].release == 3
            would = there.tear_down(dry_run=True)
            assert {"user edge-agent", "group edge", "/var/lib/edge-agent", "/etc/systemd/system/edge-agent.service"} <= set(would.removed)
        with pytest.raises(SystemExit) as ended:
            app(["teardown", board.name, "--yes"])
        assert ended.value.code == 0
    finally:
        os.environ["EDGESDK_SSH_CONFIG"] = str(board.config)
    assert "edge" not in before
    assert "edge" not in users(board)


def test_sudo_is_asked_for_its_password_once_and_a_wrong_one_is_said(board: BareDevice, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Debian's own sudo, which the board has not: brought there as a package."""
    fetched = subprocess.run(["apt-get", "download", "sudo"], cwd=tmp_path, capture_output=True, check=False)
    if fetched.returncode:
        pytest.skip("needs apt-get and its archive")
    (package,) = tmp_path.glob("sudo_*.deb")
    install = "cat > /tmp/sudo.deb; dpkg -i /tmp/sudo.deb && rm /tmp/sudo.deb; echo 'pi:open sesame' | chpasswd; usermod -aG sudo pi"
    subprocess.run(["ssh", "-F", board.config, "-l", "root", board.name, install], input=package.read_bytes(), capture_output=True, check=True, timeout=120)
    asked_for: list[str] = []

    def typed(word: str) -> Ask:
        return lambda question: asked_for.append(question) or word

    try:
        with device.connect(board.name) as pi:
            with pytest.raises(Refused, match="nobody is here to type it"):
                setting_up.set_up_system(pi)
            with pytest.raises(Refused, match="does not make pi root with that password"):
                setting_up.set_up_system(pi, typed("guessed"))
            setting_up.set_up_system(pi, typed("open sesame"))
            assert pi.status().agent.home == "/var/lib/edge-agent", "pi is in the group by now"
            assert deploying.deploy(pi, write_bundle(tmp_path / "one", width=WIDTH)).outcome == "active"
            assert asked_for == ["password of pi on system, for sudo: "] * 2
            with transport.connect(board.name) as plain:
                root = become(plain, typed("open sesame"))
                assert plain.run(root.argv(["cat"]), stdin=root.stdin([b"fed"])).stdout == b"fed"
                board.ssh("echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi", user="root")
                assert plain.run(root.argv(["cat"]), stdin=root.stdin([b"fed"])).stdout == b"fed", "sudo left the password to the command"
                board.ssh("rm /etc/sudoers.d/pi", user="root")
            keygen(tmp_path / "ana")
            assert pi.trust(signing.read(tmp_path / "ana").line()).demanded, "whom a system trusts is root's to say"
            with pytest.raises(Refused, match="is not signed"):
                deploying.deploy(pi, write_bundle(tmp_path / "two", width=WIDTH, release=2, seed=1))
            gone = pi.tear_down()
    finally:
        board.ssh("SUDO_FORCE_REMOVE=yes dpkg --purge sudo; passwd --lock pi", user="root")
    assert {"user edge-agent", "group edge"} <= set(gone.removed)
    assert "open sesame" not in repr(pi.__dict__)
    assert "open sesame" not in "".join(capfd.readouterr())
    counted = board.ssh("(journalctl --no-pager; cat /var/log/*) 2>/dev/null | grep -ac 'open sesame'", user="root", check=False)
    assert counted.strip() == "0"
