"""Who may put a bundle on a device. Every signature is ssh-keygen's own, and so is every verdict."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import Agent, linear, make

from edge_agent.bundle import Layout
from edge_agent.trust import NAMESPACE, Trust, Untrusted, fingerprint, parse_signature

MANIFEST = b'{"a":1}\n'


class Key:
    """A key pair in a folder."""

    def __init__(self, folder: Path, name: str, kind: str = "ed25519") -> None:
        self.path = folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"{name}@example.org", "-f", self.path], check=True)
        self.kind, self.encoded, self.name = self.path.with_suffix(".pub").read_text().split()

    @property
    def fingerprint(self) -> str:
        return fingerprint(base64.b64decode(self.encoded))

    def line(self, options: str = f'namespaces="{NAMESPACE}"') -> str:
        return f"{self.name} {options} {self.kind} {self.encoded}"

    def sign(self, message: bytes, namespace: str = NAMESPACE) -> bytes:
        return subprocess.run(["ssh-keygen", "-Y", "sign", "-q", "-n", namespace, "-f", self.path], input=message, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def ana(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("keys"), "ana")


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("keys"), "bob", "ecdsa")


def refused(trust: Trust, signature: bytes | None, manifest: bytes = MANIFEST) -> str:
    with pytest.raises(Untrusted) as caught:
        trust.check(manifest, signature, unsigned=False)
    assert caught.value.hint
    return str(caught.value)


def test_a_device_without_a_list_takes_what_it_is_given(tmp_path: Path, ana: Key) -> None:
    trust = Trust(tmp_path)
    assert trust.check(MANIFEST, None, unsigned=False) is None
    assert trust.check(MANIFEST, ana.sign(MANIFEST), unsigned=False) is None
    assert trust.to_dict()["demanded"] is False


def test_only_who_is_trusted_signs(tmp_path: Path, ana: Key, bob: Key) -> None:
    trust = Trust(tmp_path)
    trust.add(ana.line())
    assert trust.check(MANIFEST, ana.sign(MANIFEST), unsigned=False) == "ana@example.org"
    assert "is not signed" in refused(trust, None)
    assert trust.check(MANIFEST, None, unsigned=True) is None
    assert f"with the key {bob.fingerprint}, which this device does not know" in refused(trust, bob.sign(MANIFEST))
    trust.add(bob.line())
    assert trust.check(MANIFEST, bob.sign(MANIFEST), unsigned=False) == "bob@example.org"


def test_each_no_has_its_own_sentence(tmp_path: Path, ana: Key, bob: Key) -> None:
    trust = Trust(tmp_path)
    trust.add(ana.line())
    assert "was changed after it was signed" in refused(trust, ana.sign(b"another"))
    assert "made for 'file', not for 'bundle@edgesdk'" in refused(trust, ana.sign(MANIFEST, "file"))
    assert "it has no SSH SIGNATURE's first and last line" in refused(trust, b"hello")
    assert "more than 16384 bytes" in refused(trust, ana.sign(MANIFEST) + b" " * (1 << 14))
    trust.add(ana.line('valid-before="20200101Z"'))
    assert "expired on 2020-01-01" in refused(trust, ana.sign(MANIFEST))
    trust.add(ana.line('valid-after="20990101Z"'))
    assert "holds only from 2099-01-01" in refused(trust, ana.sign(MANIFEST))
    trust.add(ana.line('namespaces="git"'))
    assert "may sign for git only" in refused(trust, ana.sign(MANIFEST))
    trust.add(ana.line(""))
    assert trust.check(MANIFEST, ana.sign(MANIFEST), unsigned=False)
    assert len(trust.signers()) == 1, "a line for a key that is there is replaced"


def test_what_is_revoked_stays_so(tmp_path: Path, ana: Key, bob: Key) -> None:
    trust = Trust(tmp_path)
    trust.add(ana.line())
    trust.add(bob.line())
    for _ in range(2):  # twice does no harm
        trust.revoke(ana.fingerprint)
    assert "was revoked on this device" in refused(trust, ana.sign(MANIFEST))
    assert trust.check(MANIFEST, bob.sign(MANIFEST), unsigned=False)
    with pytest.raises(Untrusted, match="was revoked"):
        trust.add(ana.line())
    with pytest.raises(Untrusted, match="trusts no key SHA256:x"):
        trust.revoke("SHA256:x")
    assert [one["revoked"] for one in trust.to_dict()["signers"]] == [True, False]  # type: ignore[attr-defined]


def test_a_clock_that_was_set_back_makes_no_expired_key_good(tmp_path: Path, ana: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = Trust(tmp_path)
    trust.add(ana.line('valid-before="20400101Z"'))
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)  # 2033
    assert trust.check(MANIFEST, ana.sign(MANIFEST), unsigned=False)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    trust.add(ana.line('valid-before="20300101Z"'))
    assert "expired on 2030-01-01" in refused(trust, ana.sign(MANIFEST))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("ana@example.org ssh-ed25519", "holds no public key"),
        ("ana@example.org ssh-ed25519 AAAA", "holds no public key"),
        ('ana@example.org "ssh-ed25519', "cannot be read"),
        ("ana@example.org no-such-option ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtleQ==", "has the option 'no-such-option'"),
        ('ana@example.org valid-before="soon" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtleQ==', "has no time where it says 'soon'"),
    ],
)
def test_a_line_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path, line: str, message: str) -> None:
    trust = Trust(tmp_path)
    with pytest.raises(Untrusted, match=message):
        trust.add(line)
    assert not trust.demanded


def test_a_list_with_a_line_that_cannot_be_read_lets_nobody_in(tmp_path: Path, ana: Key) -> None:
    trust = Trust(tmp_path)
    trust.add(ana.line())
    trust.allowed.write_text("nonsense\n" + ana.line("no-such-option") + "\n")
    assert "allowed_signers" in refused(trust, ana.sign(MANIFEST))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_signature_or_a_sentence(data: bytes) -> None:
    for armoured in (data, b"-----BEGIN SSH SIGNATURE-----\n" + base64.b64encode(b"SSHSIG\0\0\0\1" + data) + b"\n-----END SSH SIGNATURE-----"):
        try:
            parse_signature(armoured)
        except ValueError as error:
            assert str(error)


@given(st.text(max_size=200))
def test_any_text_is_a_signer_or_a_sentence(text: str) -> None:
    with pytest.raises(Untrusted):
        Trust(Path("/nowhere")).add(text)


# the agent


def test_an_agent_takes_what_is_signed_and_nothing_else(agent: Agent, tmp_path: Path, ana: Key, bob: Key) -> None:
    first, second = make(tmp_path / "1", linear(1)), make(tmp_path / "2", linear(2), release=2)
    trusted = agent.verb("trust", "--add", stdin=ana.line().encode())
    assert [one["fingerprint"] for one in trusted["signers"]] == [ana.fingerprint]
    assert agent.verb("probe")["trust"] == {
        "known": True,
        "demanded": True,
        "ssh_keygen": True,
        "signers": [ana.fingerprint],
        "revoked": [],
    }

    signed = agent.activate(first, signature=ana.sign(raw(first)).decode())
    assert signed["state"] == "done"
    assert [line for line in agent.journal() if line["event"] == "activated"][-1]["signer"] == "ana@example.org"
    mixed = agent.activate(second, signature=ana.sign(raw(first)).decode())
    assert "was changed after it was signed" in mixed["error"]["message"]
    assert "does not know" in agent.activate(second, signature=bob.sign(raw(second)).decode())["error"]["message"]
    assert "is not signed" in agent.activate(second)["error"]["message"]
    assert agent.model("toy")["release"] == "1"

    agent.verb("trust", "--revoke", ana.fingerprint)
    assert "was revoked" in agent.activate(second, signature=ana.sign(raw(second)).decode())["error"]["message"]
    assert "trusts no key" in agent.verb("trust", "--revoke", "SHA256:x", code=1)["error"]["message"]
    assert agent.model("toy")["state"] == "active"


def test_config_may_allow_unsigned_bundles(agent: Agent, tmp_path: Path, ana: Key) -> None:
    agent.verb("trust", "--add", stdin=ana.line().encode())
    agent.stop()
    (agent.home / "config.json").write_text('{"trust": {"unsigned": true}}')
    agent.start()
    assert agent.verb("probe")["trust"]["demanded"] is False
    assert agent.activate(make(tmp_path / "1"))["state"] == "done"


def raw(folder: Path) -> bytes:
    """The manifest's bytes."""
    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
        return layout.blob(manifest.digest)
