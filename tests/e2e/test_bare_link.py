"""A bare device on a network that loses packets, and one whose plug is pulled while it is sent something."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesdk import deploying, device, setting_up
from tests.bundles import write_bundle
from tests.e2e.bare import BareDevice, bare_device, needs_bare
from tests.e2e.links import lossy_link
from tests.e2e.test_ssh_link import WIDTH, size_of

pytestmark = needs_bare


def prepare(bare: BareDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESDK_SSH_CONFIG", str(bare.config))
    with device.connect(bare.name) as pi:
        setting_up.set_up(pi, (found := pi.facts()), setting_up.plan_set_up(found))


def test_one_packet_in_twenty_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "b", width=WIDTH)
    with bare_device("lossy") as bare:
        prepare(bare, monkeypatch)
        with lossy_link(bare.name, bare.state, "--loss", "5", "--rtt-ms", "20", "--mbit", "50"):
            deployed = deploying.attempt(bare.name, bundle)
    assert deployed.outcome == "active", deployed.error
    assert deployed.bytes_sent == size_of(bundle)


def test_the_plug_is_pulled_while_it_is_sent_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "b", width=WIDTH)
    pulled: list[int] = []

    def pull(stage: str, done: int, total: int) -> None:
        if stage == "push" and done > total // 2 and not pulled:
            pulled.append(done)
            bare.reboot()

    with bare_device("plug") as bare:
        prepare(bare, monkeypatch)
        deployed = deploying.attempt(bare.name, bundle, progress=pull)
        assert pulled
        assert deployed.outcome == "active", deployed.error
        with device.connect(bare.name) as pi:
            assert pi.infer("toy").agrees
