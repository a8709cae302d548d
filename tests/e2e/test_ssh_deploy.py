"""The main job over a real OpenSSH server: from a bundle to a model that answers there."""

import io
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent import bundle
from edge_agent.bundle import Layout
from edgesdk import deploying, device, setting_up
from edgesdk.errors import DeviceError
from tests.bundles import answer, contents, inputs, write_bundle
from tests.e2e.conftest import Bench

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu")]

WIDTH = 600  # 1.4 MB of weights: a file of their own


def blobs_of(bundle: Path) -> dict[str, int]:
    with Layout.open(bundle) as layout:
        return {blob.digest: blob.size for blob in layout.manifests()["x86-cpu"].blobs}


def asked(pi: device.Device, name: str = "toy", width: int = WIDTH) -> np.ndarray:
    return pi.infer(name, {"x": inputs(width)[0]}).arrays()["y"]


def test_deploy_ask_report_again_newer_and_back(bench: Bench, tmp_path: Path) -> None:
    bench.start()
    first, second = write_bundle(tmp_path / "v1", width=WIDTH), write_bundle(tmp_path / "v2", width=WIDTH, release=2, seed=1)
    x = inputs(WIDTH)[0]
    stages: list[str] = []
    with device.connect("pi") as pi:
        deployed = deploying.deploy(pi, first, progress=lambda stage, *_: stages.append(stage))
        assert deployed.outcome == "active" and deployed.previous is None and deployed.first_answer_ms
        assert (deployed.blobs_sent, deployed.bytes_sent) == (len(blobs_of(first)), sum(blobs_of(first).values()))
        assert deployed.set_up_bytes > 500_000, "the agent, which is none of the bundle"
        assert list(dict.fromkeys(stages))[:3] == ["agent", "start", "push"]
        np.testing.assert_allclose(asked(pi), answer(x, width=WIDTH), atol=1e-3)
        assert pi.infer("toy").agrees

        reported = pi.report("toy").models[0]
        assert (reported.name, reported.release, reported.digest, reported.errors) == ("toy", 1, deployed.digest, 0)
        assert reported.count >= 2 and reported.latency_ms and reported.latency_ms.p99 >= reported.latency_ms.p50 > 0

        again = deploying.deploy(pi, first)
        assert (again.outcome, again.blobs_sent, again.bytes_sent, again.digest) == ("unchanged", 0, 0, deployed.digest)

        newer = deploying.deploy(pi, second)
        assert newer.set_up_bytes == 0
        changed = {digest: size for digest, size in blobs_of(second).items() if digest not in blobs_of(first)}
        assert len(changed) < len(blobs_of(second))
        assert (newer.outcome, newer.previous, newer.blobs_sent, newer.bytes_sent) == ("active", deployed.digest, len(changed), sum(changed.values()))
        np.testing.assert_allclose(asked(pi), answer(x, width=WIDTH, seed=1), atol=1e-3)

        back = pi.rollback("toy")
        assert (back.digest, back.previous) == (deployed.digest, newer.digest)
        np.testing.assert_allclose(asked(pi), answer(x, width=WIDTH), atol=1e-3)
        assert pi.remove("toy").removed == "toy"
        assert pi.status().models == ()


def test_the_agent_outlives_the_connection(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start()
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).worked
    done = subprocess.run([pi.agent_home / "bin" / "edge-agent", "infer", "toy", "--golden"], capture_output=True, text=True, check=True)
    assert '"agrees": true' in done.stdout
    with device.connect("pi") as again:
        assert again.status().models[0].state == "active"


@pytest.mark.parametrize("damaged", [False, True])
def test_an_archive_that_is_all_there_and_was_never_checked_is_finished(bench: Bench, tmp_path: Path, damaged: bool) -> None:
    """The power failed between its last byte and its name: an earlier set-up's last words, and no reason for the next one to fail."""
    pi = bench.start()
    with device.connect("pi") as there:
        archive = setting_up.plan_set_up(there.facts()).agent
    assert archive is not None
    part = pi.agent_home / "setup" / f"{archive.digest[len('sha256:') :]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(len(archive.data)) if damaged else archive.data)
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).outcome == "active"
    assert not part.exists()


def test_what_a_login_shell_prints_does_no_harm(bench: Bench, tmp_path: Path) -> None:
    pi = bench.start(login_shell="bash")
    (pi.home / ".bashrc").write_text("echo 'Welcome to this device!'; printf 'no line end'; echo noise >&2\n")
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).outcome == "active"


def test_another_pythons_settings_do_no_harm_and_the_agents_folder_is_the_devices_choice(bench: Bench, tmp_path: Path) -> None:
    polluted = tmp_path / "polluted"
    polluted.mkdir()
    for module in ("json", "numpy", "zipfile"):
        (polluted / f"{module}.py").write_text("raise SystemExit('polluted')\n")
    home = tmp_path / "its own folder"
    bench.start(environment=f'PYTHONPATH={polluted} "EDGE_AGENT_HOME={home}"')
    try:
        assert deploying.attempt("pi", write_bundle(tmp_path / "b")).outcome == "active"
        with device.connect("pi") as pi:
            assert pi.status().agent.home == str(home)
    finally:
        subprocess.run([home / "bin" / "edge-agent", "stop"], check=True, capture_output=True)


def test_through_another_host(bench: Bench, tmp_path: Path) -> None:
    bench.start("door")
    bench.start("inside", options="  ProxyJump door")
    deployed = deploying.attempt("inside", write_bundle(tmp_path / "b"))
    assert (deployed.host, deployed.outcome) == ("inside", "active")


def test_a_bundle_that_answers_wrongly_there_leaves_the_old_one_running(bench: Bench, tmp_path: Path) -> None:
    bench.start()
    assert deploying.attempt("pi", write_bundle(tmp_path / "good", width=WIDTH)).worked
    failed = deploying.attempt("pi", write_bundle(tmp_path / "bad", width=WIDTH, release=2, seed=1, wrong=True))
    assert failed.outcome == "failed" and failed.error and "y" in failed.error["message"]
    with device.connect("pi") as pi:
        np.testing.assert_allclose(asked(pi), answer(inputs(WIDTH)[0], width=WIDTH), atol=1e-3)


def test_a_model_that_is_not_there(bench: Bench, tmp_path: Path) -> None:
    bench.start()
    assert deploying.attempt("pi", write_bundle(tmp_path / "b")).worked
    with device.connect("pi") as pi, pytest.raises(DeviceError, match="other"):
        pi.infer("other")


def test_a_transfer_that_is_cut_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    """The cut is a reset after so many bytes; in all hardly more is sent than without it."""
    pi = bench.start()
    bundle = write_bundle(tmp_path / "b", width=1500)  # 9 MB
    with device.connect("pi") as there:
        setting_up.set_up(there, (found := there.facts()), setting_up.plan_set_up(found))
    size = sum(blobs_of(bundle).values())
    with Cutter(pi.port, after_bytes=size // 2) as cutter:
        with bench.config.open("a") as config:
            config.write(
                f"Host cut\n  HostName 127.0.0.1\n  Port {cutter.port}\n  HostKeyAlias [127.0.0.1]:{pi.port}\n  IdentityFile {bench.key}\n"
                f"  UserKnownHostsFile {bench.known_hosts}\n"
            )
        deployed = deploying.attempt("cut", bundle)
    assert deployed.outcome == "active", deployed.error
    assert cutter.connections == 2
    assert deployed.bytes_sent == size
    assert cutter.forwarded <= 1.02 * size + 300_000  # handshakes, and the probe's source


class Cutter:
    """Forwards connections to a port at 20 MB/s, and resets the first one after so many bytes from the client.

    Unthrottled, megabytes would lie in loopback's buffers where a link has its kilobytes, and a reset drops what nobody has read.
    """

    def __init__(self, target: int, *, after_bytes: int) -> None:
        self.target, self.left = target, after_bytes
        self.connections = self.forwarded = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]

    def __enter__(self) -> "Cutter":
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            self.connections += 1
            device_side = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self.forward, args=(client, device_side, self.connections == 1), daemon=True).start()

    def forward(self, client: socket.socket, device_side: socket.socket, cut: bool) -> None:
        other = {client: device_side, device_side: client}
        with client, device_side:
            while True:
                for side in select.select(list(other), [], [])[0]:
                    try:
                        data = side.recv(1 << 16)
                        time.sleep(len(data) / 20e6)
                        other[side].sendall(data)
                    except OSError:
                        return
                    if not data:
                        return
                    if side is client:
                        self.forwarded += len(data)
                        self.left -= len(data)
                        if cut and self.left <= 0:
                            for end in other:
                                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            return


@pytest.mark.slow
def test_a_bare_python_is_sent_its_onnxruntime(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    pi = bench.start(python=tmp_path / "bare" / "bin")
    bundle = write_bundle(tmp_path / "b")
    stages: list[str] = []
    with device.connect("pi") as there:
        assert there.facts().onnxruntime is None
        assert deploying.deploy(there, bundle, progress=lambda stage, *_: stages.append(stage)).outcome == "active"
        after = there.facts()
        assert after.onnxruntime and after.onnxruntime.where == "runtime"
        assert there.infer("toy").agrees
        assert deploying.deploy(there, bundle).outcome == "unchanged"
    assert list(dict.fromkeys(stages))[:5] == ["fetch numpy and onnxruntime", "agent", "numpy", "onnxruntime", "start"]
    assert len(list((pi.agent_home / "setup").iterdir())) == 1


def test_a_new_version_goes_as_what_differs_from_the_old_one(bench: Bench, tmp_path: Path) -> None:
    pi_files = bench.start()
    folders = [_retrained(tmp_path / f"v{release}", release) for release in (1, 2, 3)]
    weights = next(size for size in blobs_of(folders[0]).values() if size > 1 << 20)
    with device.connect("pi") as pi:
        first = deploying.deploy(pi, folders[0])
        assert first.bytes_sent > weights
        second = deploying.deploy(pi, folders[1])
        assert (second.outcome, second.previous) == ("active", first.digest)
        assert second.bytes_sent < weights / 20
        # what it starts from is damaged there: the whole is sent, and nobody need know
        with Layout.open(folders[1]) as layout:
            digest = layout.manifests()["x86-cpu"].layer("weights.bin").digest
        base = pi_files.agent_home / "blobs" / "sha256" / digest[len("sha256:") :]
        kept = base.read_bytes()
        base.write_bytes(kept[:-4] + b"\0\0\0\0")
        third = deploying.deploy(pi, folders[2])
        assert third.outcome == "active" and third.bytes_sent > weights


def _retrained(target: Path, release: int) -> Path:
    """One weight in a hundred is another in each release."""
    made = contents(width=WIDTH, release=release)
    matrix = np.frombuffer(made.files["weights.bin"], np.float32).copy()
    matrix[:: 100 + release] *= np.float32(1.0001)
    golden = io.BytesIO()
    full, bias = matrix.reshape(WIDTH, WIDTH), np.linspace(-1, 1, WIDTH, dtype=np.float32)
    np.savez(golden, **{f"{i}.{way}.0": value for i, x in enumerate(inputs(WIDTH)) for way, value in (("in", x), ("out", x @ full + bias))})
    bundle.write(target, [replace(made, files={**made.files, "weights.bin": matrix.tobytes(), "golden.npz": golden.getvalue()})])
    return target


@pytest.mark.skipif(not shutil.which("csh"), reason="needs csh")
def test_a_device_whose_login_shell_is_csh_is_set_up_like_any_other(bench: Bench, tmp_path: Path) -> None:
    """Its words are short, and it looks for `!` in quotes; the set-up's programs are sent as one word of some ten thousand letters."""
    bench.start(login_shell="csh")
    done = deploying.attempt("pi", write_bundle(tmp_path / "v1", width=WIDTH))
    assert done.outcome == "active", done.error
    with device.connect("pi") as pi:
        np.testing.assert_allclose(asked(pi), answer(inputs(WIDTH)[0], width=WIDTH), atol=1e-3)
