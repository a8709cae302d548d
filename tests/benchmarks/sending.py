"""What sending costs, against `scp` and `rsync` of the same bytes to the same sshd: a part of `make bench`, written to docs/sending.md.

python -m tests.benchmarks.sending [loopback] [slow] [update] [same] [stop] [fleet]        # some parts alone: shown, not written

The device is a bare Debian on this machine (root, mmdebstrap), the link what testbed/slow-link makes. scp and we take turns.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent import bundle
from edge_agent.bundle import Layout
from edgesdk import deploying, device, sending, sent, setting_up, transport
from tests.bundles import contents, inputs, write_bundle
from tests.e2e.bare import BareDevice, bare_device, bare_devices
from tests.e2e.links import Counter, slow_link
from tests.e2e.test_bare_fleet import assert_resumed, fleet_of, rollout
from tests.sdk.test_interrupts import START

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sending.md"
WIDTH = 5000  # 100 MB of float32
LINK = ("--mbit", "50", "--rtt-ms", "20")
ROUNDS, SLOW_ROUNDS, SAME_ROUNDS = 7, 3, 9
DEVICES, PARALLEL = 50, 16
STOPS, LONGEST_S = 12, 18

HEAD = """# What sending costs

`python -m tests.benchmarks.sending`, a part of `make bench`: to a bare Debian 12 (python3 and sshd) on the same machine, against `scp` and `rsync` of the
same bytes to the same sshd, in turns. Ours connects, asks what is missing, sends, and ends when the device has checked the digest and synced
the file; `scp` neither checks nor syncs.

<!-- written by `make bench` -->
"""


def main() -> None:
    parts: dict[str, Callable[[Path], list[str]]] = {"loopback": loopback, "slow": slow, "update": update, "same": same, "stop": stop, "fleet": fleet}
    chosen = sys.argv[1:] or list(parts)
    lines = [HEAD, machine(), ""]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EDGESDK_CACHE"] = os.environ.get("EDGESDK_CACHE") or str(ROOT / ".cache")
        for name in chosen:
            folder = Path(scratch, name)
            folder.mkdir()
            found = parts[name](folder)
            print("\n".join(found), flush=True)
            lines += found
    if chosen == list(parts):
        PAGE.write_text("\n".join(lines).rstrip() + "\n")


# 100 MB


def loopback(folder: Path) -> list[str]:
    with prepared(folder) as bare:
        ours, theirs = in_turns(folder, bare, ROUNDS)
    return ["## 100 MB on loopback", "", *table_of(ours, theirs, 1.5)]


def slow(folder: Path) -> list[str]:
    with prepared(folder) as bare, slow_link(f"{bare.host}:22", *LINK) as link:
        lead_through(folder, bare, link.port)
        ours, theirs = in_turns(folder, bare, SLOW_ROUNDS)
    return ["## 100 MB at 50 Mbit/s, 20 ms", "", *table_of(ours, theirs, 1.05)]


def in_turns(folder: Path, bare: BareDevice, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round: ours, scp's."""
    target = write_bundle(folder / "bundle", width=WIDTH)
    ours, theirs = [], []
    with Layout.open(target) as layout:
        manifest = layout.manifests()["x86-cpu"]
        source = target / "blobs" / "sha256" / manifest.layer("weights.bin").digest.removeprefix("sha256:")
        with device.connect(bare.name) as pi:
            facts = pi.facts()
        for number in range(rounds + 1):
            bare.ssh("rm -f w .local/share/edge-agent/blobs/sha256/*; sync")
            begin = time.perf_counter()
            subprocess.run(["scp", "-q", "-F", folder / "config", source, f"{bare.name}:w"], check=True)
            middle = time.perf_counter()
            bare.ssh("sync")
            start = time.perf_counter()
            with device.connect(bare.name) as pi:
                sending.push(pi, layout, manifest, facts)
            end = time.perf_counter()
            if number:  # the first warms both up
                theirs.append(middle - begin)
                ours.append(end - start)
    return ours, theirs


def table_of(ours: list[float], theirs: list[float], most: float) -> list[str]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    return [
        "| | seconds, median | fastest | slowest |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |" for name, times in (("scp", theirs), ("edgesdk", ours))),
        "",
        f"Ratio of a round, median of {len(ratios)}: {ratio:.2f} (held to at most {most}: {yes(ratio <= most)}).",
        "",
    ]


# an update


def update(folder: Path) -> list[str]:
    """Bytes on the wire, both directions: of a whole `deploy`, and of `rsync -z`, which the device would have to have."""
    lines = ["## One weight in a hundred is another", "", "| which | rsync -z | edgesdk deploy | ratio | held to |", "| --- | --- | --- | --- | --- |"]
    for kind, most in (("contiguous", 1.05), ("scattered", 0.1)):
        old, new = (retrained(folder / f"{kind}{release}", release, kind) for release in (1, 2))
        with prepared(folder) as bare:
            sent._folder = lambda kind=kind: folder / f"sent-{kind}"  # type: ignore[assignment,misc]
            with device.connect(bare.name) as pi:
                deploying.deploy(pi, old)
            with slow_link(f"{bare.host}:22") as link:
                lead_through(folder, bare, link.port)
                with device.connect(bare.name) as pi:
                    assert deploying.deploy(pi, new).outcome == "active"
            mine = link.up + link.down
            other = rsync_bytes(folder, old, new)
        lines.append(f"| {kind} | {other / 1e6:.2f} MB | {mine / 1e6:.2f} MB | {mine / other:.3f} | at most {most}: {yes(mine <= most * other)} |")
    return [
        *lines,
        "",
        "Bytes of both directions, for the same files: 100 MB of weights, golden answers, descriptions. Ours with SSH and all else.",
        "",
    ]


def retrained(target: Path, release: int, kind: str) -> Path:
    """The second release has a hundredth of its weights changed a little: all in one place, or anywhere."""
    made = contents(width=WIDTH, release=release)
    matrix = np.frombuffer(made.files["weights.bin"], np.float32).copy()
    if release > 1:
        random, count = np.random.default_rng(release), len(matrix) // 100
        where = slice(len(matrix) // 3, len(matrix) // 3 + count) if kind == "contiguous" else random.choice(len(matrix), count, replace=False)
        matrix[where] *= (1 + random.normal(0, 1e-3, count)).astype(np.float32) if kind == "scattered" else random.normal(1, 1, count).astype(np.float32)
    golden = io.BytesIO()
    full, bias = matrix.reshape(WIDTH, WIDTH), np.linspace(-1, 1, WIDTH, dtype=np.float32)
    np.savez(golden, **{f"{i}.{way}.0": value for i, x in enumerate(inputs(WIDTH)) for way, value in (("in", x), ("out", x @ full + bias))})
    bundle.write(target, [replace(made, files={**made.files, "weights.bin": matrix.tobytes(), "golden.npz": golden.getvalue()})])
    return target


def rsync_bytes(folder: Path, old: Path, new: Path) -> int:
    """Of bringing the bundle's files, by their names, where the old ones are; the far end is this machine's rsync, since a bare device has none."""
    there, here = folder / "there", folder / "here"
    for target, source in ((there, old), (here, new)):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        with Layout.open(source) as layout:
            for layer in layout.manifests()["x86-cpu"].layers:
                (target / layer.file).write_bytes(layout.blob(layer.digest))
                os.utime(target / layer.file, (0, int(target == here)))
    shell = folder / "shell"  # rsync counts by itself: the far end is started here, as an ssh would start it there
    shell.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    shell.chmod(0o755)
    argv = ["rsync", "-rtz", "--no-whole-file", "--stats", "-e", str(shell), f"{here}/", f"localhost:{there}/"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sum(int(count.replace(",", "")) for count in re.findall(r"Total bytes (?:sent|received): ([0-9,]+)", said))


# no change


def same(folder: Path) -> list[str]:
    target = write_bundle(folder / "bundle", width=600)
    with prepared(folder) as bare:
        with device.connect(bare.name) as pi:
            deploying.deploy(pi, target)
        seconds, python = [], []
        for _ in range(SAME_ROUNDS):
            with transport.connect(bare.name) as plain:
                begin = time.perf_counter()
                assert plain.run(["python3", "-c", "pass"]).returncode == 0
                python.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            assert deploying.attempt(bare.name, target).outcome == "unchanged"
            seconds.append(time.perf_counter() - begin)
        with Counter(bare.host, 22) as door:
            lead_through(folder, bare, door.port)
            with transport.connect(bare.name):
                pass
            handshake = door.answers
            with transport.connect(bare.name) as plain:
                plain.run(["true"])
            one_command = door.answers - handshake
            before = door.answers
            assert deploying.attempt(bare.name, target).outcome == "unchanged"
            whole = door.answers - before
    took, pass_s = statistics.median(seconds), statistics.median(python)
    return [
        "## Nothing has changed",
        "",
        "| | | held to |",
        "| --- | --- | --- |",
        f"| round trips of a connection that asks nothing | {handshake} | |",
        f"| more, for `true` | {one_command - handshake} | |",
        f"| more, for `deploy` of what runs there already, golden answer included | {whole - handshake} | at most 2: {yes(whole - handshake <= 2)} |",
        f"| seconds of that, connection included | {took:.2f} | at most 1 s + two `python3 -c pass` ({2 * pass_s:.2f}): {yes(took <= 1 + 2 * pass_s)} |",
        "",
        f"Median of {SAME_ROUNDS}; `python3 -c pass` over an open connection. A round trip is an answer of the device to what the client said, counted at a",
        "proxy with 100 ms each way.",
        "",
    ]


# Ctrl-C


def stop(folder: Path) -> list[str]:
    """A deploy of 100 MB over the slow link, interrupted at moments from its start to its end; after each the device answers as before, or with the new one."""
    old, new = write_bundle(folder / "1", width=600), write_bundle(folder / "2", width=WIDTH, release=2)
    with prepared(folder) as bare:
        with device.connect(bare.name) as pi:
            assert deploying.deploy(pi, old).outcome == "active"
        with slow_link(f"{bare.host}:22", *LINK) as link:
            lead_through(folder, bare, link.port)
            took = []
            for number in range(STOPS):
                after_s = LONGEST_S * number / STOPS
                took.append(stopped(new, after_s))
                print(f"Ctrl-C after {after_s:.1f} s: over in {took[-1]} s", file=sys.stderr, flush=True)
                with device.connect(bare.name) as pi:
                    (model,) = pi.status().models
                    assert pi.infer("toy").agrees and model.release in (1, 2), model
            with device.connect(bare.name) as pi:
                assert deploying.deploy(pi, new, allowed=["allow-signature-change"]).outcome in ("active", "unchanged")
    seconds = [one for one in took if one is not None]
    return [
        "## Ctrl-C",
        "",
        f"`edgesdk deploy` of 100 MB at 50 Mbit/s, interrupted at {len(seconds)} moments of its first {LONGEST_S} s: over after",
        f"{statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s at most (held to 2 s: {yes(max(seconds) <= 2)}). Each time the device",
        "answered with the old version or the new one, and the last deploy finished.",
        "",
    ]


def stopped(bundle: Path, after_s: float) -> float | None:
    """Seconds from Ctrl-C to the end; None where it had ended before."""
    argv = [sys.executable, "-c", START, "deploy", "bench", str(bundle), "--allow-signature-change"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.read(1) == b"!"
        time.sleep(after_s)
        begin = time.perf_counter()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
        took = time.perf_counter() - begin
    assert child.returncode in (0, 130), said.decode()
    return took if child.returncode else None


# a fleet


def fleet(folder: Path) -> list[str]:
    write_bundle(folder / "bundle", width=600)
    with bare_devices([f"many{number:03}" for number in range(DEVICES)]) as boards:
        os.environ["EDGESDK_SSH_CONFIG"] = str(folder / "config")
        (folder / "config").write_text("".join(board.config.read_text() for board in boards))
        with device.connect(boards[0].name) as pi:
            plan = setting_up.plan_set_up(pi.facts())
        load = payload(folder, plan)
        healthy = [board for number, board in enumerate(boards) if number not in (1, 4)]
        begin = time.perf_counter()
        names = "\n".join(board.name for board in healthy)
        subprocess.run(["xargs", f"-P{PARALLEL}", "-I{}", "scp", "-q", "-F", folder / "config", load, "{}:load"], input=names, text=True, check=True)
        theirs = time.perf_counter() - begin
        for board in healthy:
            board.ssh("rm load")
        fleet_of(boards, folder)
        begin = time.perf_counter()
        done = subprocess.run(rollout(folder, "--parallel", str(PARALLEL)), capture_output=True, text=True, check=False)
        ours = time.perf_counter() - begin
        outcomes = [one["outcome"] for one in json.loads(done.stdout)]
        print(f"scp {theirs:.1f} s, deploy {ours:.1f} s, load {os.getloadavg()[0]:.1f}\n{done.stderr}", file=sys.stderr, flush=True)
    with bare_devices([f"many{number:03}" for number in range(DEVICES)]) as boards:
        fleet_of(boards, folder)
        (folder / "fleet.state.json").unlink(missing_ok=True)
        assert_resumed(folder, boards, "--parallel", str(PARALLEL))
    active, failed = outcomes.count("active"), outcomes.count("failed")
    return [
        f"## {DEVICES} bare devices, {PARALLEL} at a time",
        "",
        "| | seconds | held to |",
        "| --- | --- | --- |",
        f"| `xargs -P{PARALLEL} scp`, {load.stat().st_size / 1e6:.0f} MB to each of {len(healthy)} | {theirs:.1f} | |",
        f"| `edgesdk deploy --fleet`, to the first answer | {ours:.1f} | at most 1.5 times: {yes(ours <= 1.5 * theirs)} |",
        "",
        f"{active} active, {failed} named with their reasons (one without python3, one off). All share {os.cpu_count()} cores: what each",
        "does for itself (unpack numpy and onnxruntime, start, load and try the model) is done here one after the other, and on boards at the same time.",
        "[Decision 41](adr/0041-what-runs-is-sent-and-imported-once.md) says what that is.",
        "",
        f"Killed half-way and run again on {DEVICES} fresh ones: the rest is done, none twice (by the devices' own journals).",
        "",
    ]


def payload(folder: Path, plan: setting_up.SetUp) -> Path:
    """The same bytes in one file: the agent, what runs of the wheels, and the bundle's blobs."""
    target = folder / "load"
    with target.open("wb") as stream, Layout.open(folder / "bundle") as layout:
        for archive in plan.agent_archives:
            stream.write(archive.data)
        for wheel in plan.archives:
            stream.write(wheel.read_bytes())
        for blob in sending.unique(layout.manifests()["x86-cpu"].blobs):
            stream.write(layout.blob(blob.digest))
    return target


# the device


@contextmanager
def prepared(folder: Path) -> Iterator[BareDevice]:
    """A bare device that has its agent."""
    with bare_device("bench") as bare:
        shutil.copy(bare.config, folder / "config")
        os.environ["EDGESDK_SSH_CONFIG"] = str(folder / "config")
        with device.connect(bare.name) as pi:
            setting_up.set_up(pi, (facts := pi.facts()), setting_up.plan_set_up(facts))
        yield bare


def lead_through(folder: Path, bare: BareDevice, port: int) -> None:
    """From now on its name leads to that port of loopback."""
    text = re.sub(r"HostName .*", f"HostName 127.0.0.1\n    HostKeyAlias {bare.host}", bare.config.read_text())
    (folder / "config").write_text(re.sub(r"Port .*", f"Port {port}", text))


def yes(held: bool) -> str:
    return "yes" if held else "**no**"


def machine() -> str:
    found = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"Measured on {found[0] if found else 'an unknown CPU'}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} of other work."


if __name__ == "__main__":
    main()
