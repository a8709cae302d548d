"""Signed bundles over a real OpenSSH server, with real keys, by the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent import bundle
from edge_agent.bundle import Layout
from edgesdk import deploying, device, signing
from edgesdk.errors import Refused, SigningError
from tests import bundles
from tests.e2e.conftest import Bench, keygen

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu")]


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def edgesdk(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "edgesdk.cli", *arguments, "--json"], capture_output=True, text=True, check=False)
    return json.loads(done.stdout)


def signed_bundle(target: Path, **settings: Any) -> Path:
    signer = signing.in_use()
    assert signer
    bundle.write(target, [bundles.contents(**settings)], signer.sign)
    return target


def test_who_sets_a_device_up_is_whom_it_trusts(bench: Bench, tmp_path: Path) -> None:
    bench.start()
    keygen(tmp_path / "ana")
    keygen(tmp_path / "bob")
    unsigned = bundles.write_bundle(tmp_path / "unsigned")
    ana = edgesdk("key", "use", str(tmp_path / "ana"))["fingerprint"]
    assert ana in [one["fingerprint"] for one in edgesdk("key", "list") if one["signs"]], "though it lies in no folder of keys"
    first = signed_bundle(tmp_path / "first", release=2, seed=2)
    with device.connect("pi") as pi:
        with pytest.raises(Refused, match=r"`toy` is not signed, and .* takes signed bundles only"):
            deploying.deploy(pi, unsigned)
        assert pi.facts().agent is None, "refused before the first byte"
        assert deploying.deploy(pi, first).outcome == "active"
        assert edgesdk("key", "trusted", "pi")["signers"] == [
            {"principals": "ana", "kind": "ssh-ed25519", "fingerprint": ana, "expires": None, "revoked": False}
        ]
        with pytest.raises(Refused, match="is not signed"):
            deploying.deploy(pi, unsigned)

        # rotation: the new key is made known, then the old one is revoked
        edgesdk("key", "use", str(tmp_path / "bob"))
        second = signed_bundle(tmp_path / "second", release=3, seed=3)
        with pytest.raises(Refused, match=r"`pi` \(x86_64\) does not know") as caught:
            deploying.deploy(pi, second)
        assert "edgesdk key trust" in caught.value.hint
        assert len(edgesdk("key", "trust", "pi", "--expires", "20991231")["signers"]) == 2
        assert deploying.deploy(pi, second).outcome == "active"
        assert edgesdk("key", "revoke", "pi", ana)["signers"][0]["revoked"]
        with pytest.raises(Refused, match=r"was revoked on `pi`"):
            deploying.deploy(pi, first)
        assert pi.status().models[0].release == 3


def test_a_device_that_is_there_goes_on_taking_any_until_it_is_told(bench: Bench, tmp_path: Path) -> None:
    bench.start()
    unsigned = bundles.write_bundle(tmp_path / "unsigned")
    with device.connect("pi") as pi:
        assert deploying.deploy(pi, unsigned).outcome == "active"
        keygen(tmp_path / "ana")
        edgesdk("key", "use", str(tmp_path / "ana"))
        assert deploying.deploy(pi, unsigned).outcome == "unchanged"
        edgesdk("key", "trust", "pi")
        with pytest.raises(Refused, match="is not signed"):
            deploying.deploy(pi, unsigned)


def test_verify_says_who_signed_and_finds_what_was_changed(tmp_path: Path) -> None:
    keygen(tmp_path / "ana")
    assert edgesdk("verify", str(bundles.write_bundle(tmp_path / "unsigned")))[0]["signer"] is None
    chosen = edgesdk("key", "use", str(tmp_path / "ana"))["fingerprint"]
    folder = signed_bundle(tmp_path / "signed")
    assert edgesdk("verify", str(folder))[0]["signer"] == chosen
    assert edgesdk("key", "show")["line"].startswith('ana namespaces="bundle@edgesdk" ssh-ed25519 AAAA')

    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
        signature = layout.signature(manifest.digest)
    assert signature
    # by hand, as the documentation has it
    (tmp_path / "allowed").write_text(edgesdk("key", "show")["line"] + "\n")
    (tmp_path / "sig").write_bytes(signature)
    raw = (folder / "blobs" / "sha256" / manifest.digest[len("sha256:") :]).read_bytes()
    command = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "ana", "-n", "bundle@edgesdk", "-s", tmp_path / "sig"]
    assert subprocess.run(command, input=raw, capture_output=True, check=False).returncode == 0

    # a signature of something else under the name of this one
    other = signing.read(tmp_path / "ana").sign(b"something else")
    bundle.write(tmp_path / "forged", [bundles.contents()], lambda _: other)
    assert "was changed after it was signed" in edgesdk("verify", str(tmp_path / "forged"))["error"]["message"]
    assert edgesdk("key", "off") == {}
    assert signing.in_use() is None


def test_a_key_that_cannot_sign_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    keygen(tmp_path / "ana")
    (tmp_path / "ana").rename(tmp_path / "gone")
    with pytest.raises(SigningError, match="neither beside it nor in ssh-agent"):
        signing.use(tmp_path / "ana.pub")
    with pytest.raises(SigningError, match="there is no public key at"):
        signing.use(tmp_path / "nobody")
    keygen(tmp_path / "locked", passphrase="secret words")
    locked = signing.use(tmp_path / "locked")
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    with pytest.raises(SigningError, match="did not sign") as caught:
        locked.sign(b"manifest")
    assert "secret words" not in str(caught.value)
