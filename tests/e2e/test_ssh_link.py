"""A link that breaks, hangs, or is slow: the deployment is done in the end, and hardly a byte goes twice."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.bundle import Layout
from edgesdk import deploying, device, sending, sent, setting_up
from edgesdk.device import Device
from edgesdk.errors import ConnectionFailed, DeviceError
from edgesdk.transport import Completed, Transport, connect
from tests.bundles import answer, inputs, write_bundle
from tests.e2e.conftest import Bench
from tests.e2e.links import Counter, Link, slow_link

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu")]

WIDTH = 2048  # 17 MB of weights
LINK = ("--mbit", "50", "--rtt-ms", "20")


def size_of(bundle: Path) -> int:
    with Layout.open(bundle) as layout:
        return sum({blob.digest: blob.size for blob in layout.manifests()["x86-cpu"].blobs}.values())


def prepared(bench: Bench, *, check_s: float = 0) -> int:
    """The port of a device that has its agent. ``check_s``: how long its own check takes, so that a trial and a probation last as long at least."""
    started = bench.start()
    if check_s:
        started.agent_home.mkdir(parents=True)
        (started.agent_home / "config.json").write_text(json.dumps({"check": {"command": ["sleep", str(check_s)]}}))
    with device.connect("pi") as pi:
        setting_up.set_up(pi, (found := pi.facts()), setting_up.plan_set_up(found))
    return started.port


def behind(bench: Bench, link: Link, name: str, port: int) -> str:
    bench.entry(name, link.port, f"  HostKeyAlias [127.0.0.1]:{port}")
    return name


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that hangs is given up after seconds, so that a test need not wait for a minute."""
    for name in ("_PUT_SILENCE_S", "_JOB_SILENCE_S", "_SILENCE_S"):
        monkeypatch.setattr(device, name, 3)
    monkeypatch.setattr(device, "_WAIT_S", 1)


@pytest.mark.parametrize(("how", "percents"), [("reset", (1, 10, 50, 99)), ("hang", (50,))])
def test_a_transfer_that_is_cut_goes_on_where_it_was(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, percents: tuple[int, ...]
) -> None:
    monkeypatch.setattr(device, "_PUT_SILENCE_S", 32)  # the device gives up after 30 s, and then somebody else may send
    port = prepared(bench)
    for release, percent in enumerate(percents, 1):
        bundle = write_bundle(tmp_path / str(percent), width=WIDTH, release=release, seed=release)
        size = size_of(bundle)
        with slow_link(port, *LINK, "--cut", how, "--cut-after-bytes", str(size * percent // 100)) as link:
            deployed = deploying.attempt(behind(bench, link, f"at{percent}", port), bundle)
        assert deployed.outcome == "active", deployed.error
        assert link.connections == 2
        assert link.up <= 1.02 * size, f"{link.up - size} bytes more, cut at {percent} %"


@pytest.mark.parametrize("how", ["reset", "hang"])
@pytest.mark.parametrize("when", [("load", "trial", "swap", "ask"), ("probation",)], ids=["trial", "probation"])
def test_a_link_that_breaks_during_the_activation_is_asked_again(bench: Bench, tmp_path: Path, impatient: None, when: tuple[str, ...], how: str) -> None:
    port = prepared(bench, check_s=2)
    links: list[Link] = []

    def breaks(stage: str, *_: int) -> None:
        if stage in when and len(links) == 1:
            links[0].process.send_signal(signal.SIGSTOP if how == "hang" else signal.SIGKILL)
            if how == "hang":  # nothing passes; who connects anew comes by another way
                bench.config.write_text(bench.config.read_text().replace(f"Port {links[0].port}\n", f"Port {port}\n"))
                links.append(links[0])
            else:
                links[0].process.wait()
                again = slow_link(port, port=links[0].port)
                links.append(again.__enter__())
                ways.append(again)

    ways: list[Any] = []
    with slow_link(port) as link:
        links.append(link)
        deployed = deploying.attempt(behind(bench, link, "cut", port), write_bundle(tmp_path / "b", width=WIDTH), progress=breaks)
    for way in ways:
        way.__exit__(None, None, None)
    assert deployed.outcome == "active", deployed.error
    assert len(links) == 2
    with device.connect("pi") as pi:
        assert [line for line in pi.logs(1000) if '"activated"' in line] and pi.infer("toy").agrees


def test_a_link_that_comes_and_goes_finishes_in_the_end(bench: Bench, tmp_path: Path) -> None:
    """Down for a while, and broken at each of its first connections: more than any number of tries."""
    port = prepared(bench)
    bundle = write_bundle(tmp_path / "b", width=WIDTH)
    size = size_of(bundle)
    with slow_link(port, *LINK, "--cut-after-bytes", str(size // 8), "--cut-times", "6") as link:
        deployed = deploying.attempt(behind(bench, link, "flaky", port), bundle)
    assert deployed.outcome == "active", deployed.error
    assert link.connections == 7


def test_who_sends_and_who_receives_give_up_a_link_that_stalls_and_another_host_deploys(
    bench: Bench, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = prepared(bench)
    bundle = write_bundle(tmp_path / "b", width=WIDTH)
    monkeypatch.setattr(device, "_RECONNECT_S", 0)
    with slow_link(port, *LINK, "--cut", "hang", "--cut-after-bytes", str(size_of(bundle) // 2), "--cut-times", "0") as link:
        stalled = deploying.attempt(behind(bench, link, "stalled", port), bundle)
        assert stalled.error and "is silent: nothing moved for 3 s (during `receive`)" in stalled.error["message"]
        monkeypatch.setattr(device, "_PUT_SILENCE_S", 60)  # the device still holds the file of the one who is gone, for half a minute
        other = deploying.attempt("pi", bundle)
    assert other.outcome == "active", other.error
    assert other.bytes_sent < 0.6 * size_of(bundle)


def test_what_has_not_changed_costs_two_round_trips(bench: Bench, tmp_path: Path) -> None:
    """Beyond those of SSH itself: a channel, and one command that looks, asks the golden question, and tells."""
    port, bundle = prepared(bench), write_bundle(tmp_path / "b")
    assert deploying.attempt("pi", bundle).outcome == "active"
    with Counter("127.0.0.1", port) as door:
        bench.entry("door", door.port, f"  HostKeyAlias [127.0.0.1]:{port}")
        with connect("door"):
            pass
        handshake = door.answers
        again = deploying.attempt("door", bundle)
        assert (again.outcome, again.bytes_sent) == ("unchanged", 0) and again.first_answer_ms
        assert door.answers - 2 * handshake <= 2
        before = door.answers
        assert deploying.attempt("door", write_bundle(tmp_path / "new", release=2, seed=1)).outcome == "active"
        assert door.answers - before - handshake > 2  # it does count


class Forgetful:
    """A way to this machine on which the reply to each command is lost the first time, after the command has done its work."""

    def __init__(self, inner: Transport, lost: list[str]) -> None:
        self._inner, self._lost = inner, lost
        self.host, self.python = inner.host, inner.python

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        done = self._inner.run(argv, **options)
        command = " ".join(argv)
        if command not in self._lost:
            self._lost.append(command)
            raise ConnectionFailed("the reply was lost")
        return done

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> "Forgetful":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_whichever_reply_is_lost_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write_bundle(tmp_path / "v1", width=600), write_bundle(tmp_path / "v2", width=600, release=2, seed=1)
    monkeypatch.setattr(sent, "_folder", lambda: tmp_path / "sent")
    monkeypatch.setenv("EDGE_AGENT_HOME", str(tmp_path / "agent"))
    lost: list[str] = []
    with Device(lambda: Forgetful(connect("local"), lost)) as here:
        try:
            for bundle in (first, second):
                assert deploying.deploy(here, bundle).outcome in ("active", "unchanged")
            assert len(lost) >= 12
            journal = (tmp_path / "agent" / "journal.jsonl").read_text()
            assert journal.count('"activated"') == 2
            here.persistently(here.status)
            assert [(model.release, model.state) for model in here.status().models] == [(2, "active")]
            with device.connect("local") as sure:
                np.testing.assert_allclose(sure.infer("toy", {"x": (x := inputs(600)[0])}).arrays()["y"], answer(x, width=600, seed=1), atol=1e-3)
        finally:
            with device.connect("local") as sure:
                sure.ask("stop")


def test_of_two_people_the_second_is_told_who_is_at_it(bench: Bench, tmp_path: Path) -> None:
    prepared(bench, check_s=2)
    first, second = write_bundle(tmp_path / "a", name="a", width=WIDTH), write_bundle(tmp_path / "b", name="b")
    refused: list[str] = []
    with device.connect("pi") as other, Layout.open(second) as layout:
        manifest = layout.manifests()["x86-cpu"]
        sending.push(other, layout, manifest, other.facts())

        def meanwhile(stage: str, *_: int) -> None:
            if stage in ("load", "trial") and not refused:
                with pytest.raises(DeviceError) as caught:
                    other.activate(manifest.digest)
                refused.append(str(caught.value))

        deployed = deploying.attempt("pi", first, progress=meanwhile)
    assert deployed.outcome == "active"
    assert "another deployment is under way on this device: activate sha256:" in refused[0] and f" by {device._me()}, for " in refused[0]
    assert deploying.attempt("pi", second).outcome == "active"


@pytest.mark.parametrize("shell", ["rbash", "dash", "fish"])
def test_a_deployment_by_any_login_shell(bench: Bench, tmp_path: Path, shell: str) -> None:
    path = tmp_path / "shells"
    path.mkdir()
    if shell == "rbash":
        (path / "rbash").symlink_to("/bin/bash")
        shell = str(path / "rbash")
    bench.start(login_shell=shell)
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).outcome == "active"


def test_a_login_shell_that_runs_nothing_is_named(bench: Bench, tmp_path: Path) -> None:
    bench.start(login_shell="/usr/sbin/nologin")
    refused = deploying.attempt("pi", write_bundle(tmp_path / "b"))
    assert refused.error and "runs no commands (exit 1): This account is currently not available." in refused.error["message"]
    assert "login shell" in refused.error["hint"]


def test_a_banner_before_the_login_does_no_harm(bench: Bench, tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    banner.write_text("Authorized use only!\n" * 20 + "edge-agent-reply: {}\n")
    pi = bench.start(login_shell="bash", sshd_options=f"Banner {banner}")
    (pi.home / ".bashrc").write_text("echo 'edge-agent-reply: {'; cat ../../banner; echo 'edge-agent-reply: no JSON'\n")
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).outcome == "active"


def test_a_login_shell_that_eats_what_is_sent_is_an_error_that_says_so(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start(login_shell="bash")
    (pi.home / ".bashrc").write_text("exit 0\n")
    refused = deploying.attempt("pi", write_bundle(tmp_path / "b"))
    assert refused.outcome == "failed" and refused.error and "runs no commands" in refused.error["message"]
