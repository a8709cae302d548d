"""What asking through the agent costs beyond `session.run` in one's own process: latency, memory, start, throughput, swaps.

    python -m tests.benchmarks.asking                # writes docs/asking.md
    python -m tests.benchmarks.asking --requests 6000

Every way is asked in turn within a round, in random order, and differences are taken within rounds: what slows a shared machine down
for a second slows all of a round. Memory and start are measured from a process that has no library in common with what is measured.
"""

import argparse
import json
import mmap
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_agent.connection import Connection
from edge_agent.home import ENVIRONMENT

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "asking.md"
MARK = "<!-- written by `make bench` -->"
ROUNDS, IN_A_ROW = 100, 20
STARTS = 9
CLIENTS, THROUGHPUT_S = 8, 3.0

BARE = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in sys.argv[1:]]
for session in sessions:
    session.run(None, {"x": np.ones((1, 4), np.float32)})
print("answered", flush=True)
sys.stdin.read()
"""

# Processes that share memory and ring each other over a socket, with nothing of ours: what any way between two programs costs here.
PAIR = """
import mmap, select, socket, sys
import numpy as np, onnxruntime
path, shape, pairs = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
epoll, callers = select.epoll(), {}
for descriptor, bell in pairs:
    callers[bell] = socket.socket(fileno=bell), np.ndarray(shape, np.float32, mmap.mmap(descriptor, 1 << 20))
    epoll.register(bell, select.EPOLLIN)
    callers[bell][0].send(b"ready")
while callers:
    for bell, _ in epoll.poll():
        rung, x = callers[bell]
        if not rung.recv(8):
            epoll.unregister(bell)
            del callers[bell]
            continue
        session.run(None, {"x": x})
        rung.send(b"done")
"""

PAIRED = """
import mmap, socket, sys, time
import numpy as np
shape, descriptor, bell, seconds = eval(sys.argv[1]), int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])), float(sys.argv[4])
x, placed, count = np.ones(shape, np.float32), np.ndarray(shape, np.float32, mmap.mmap(descriptor, 1 << 20)), 0
bell.recv(8)
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + seconds
while time.monotonic() < end:
    placed[...] = x
    bell.send(b"ask")
    bell.recv(8)
    count += 1
print(count)
"""

CLIENT = """
import json, sys, time
import numpy as np
from edge_agent import connect
name, shape, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
x, count = np.ones(shape, np.float32), 0
with connect(name, via="shm") as model:
    for _ in range(20):
        model(x)
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        model(x)
        count += 1
print(count)
"""

PREPARE = """
import sys
from pathlib import Path
from tests.benchmarks.asking import prepared
prepared(Path(sys.argv[1]))
"""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--requests", type=int, default=200_000, help="while versions are swapped")
    requests = arguments.parse_args().requests
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # on a device the agent's code was compiled when it was unpacked
    with tempfile.TemporaryDirectory(prefix="agent-") as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, "-c", PREPARE, str(folder)], check=True, cwd=ROOT)
        lines = []
        for part in (memory, start, imports, latency, throughput, lambda folder: swaps(folder, requests)):
            told = part(folder)
            print("\n".join(told), flush=True)
            lines += told
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(MARK) + len(MARK)] + "\n\n" + "\n".join([machine(), "", *lines]) + "\n")


def prepared(folder: Path) -> None:
    """Homes of agents with one model, with three, and with those that are timed."""
    toys = _toys()
    homes = {
        "one": {"m0": toys.linear(1)},
        "three": {f"m{number}": toys.linear(number + 1) for number in range(3)},
        "timed": {"mean": toys.mean(), "small": toys.linear(1), "slow": toys.layers(_SLOW_LAYERS)},
    }
    feeds = {"mean": FEEDS["mean"], "slow": FEEDS["slow"]}
    for home, models in homes.items():
        agent = toys.Agent(folder / home)
        agent.start()
        for name, model in models.items():
            asked = [{"x": _ones(feeds[name])}] if name in feeds else None
            done = agent.activate(toys.make(folder / f"{home}-{name}", model, name=name, feeds=asked))
            assert done["state"] == "done", done
        agent.stop()


_SLOW_LAYERS = 60
FEEDS = {"mean": [1, 3, 224, 224], "small": [1, 4], "slow": [128, 256]}


def memory(folder: Path) -> list[str]:
    """PSS of all our processes, and of a bare script with the same models."""
    lines = ["## Memory", "", "| models | agent, all processes | bare onnxruntime script | more | held to |", "| --- | --- | --- | --- | --- |"]
    for home, most in (("one", 15), ("three", 45)):
        ours = _median([_agents_memory(folder / home) for _ in range(3)])
        bare = _median([_bare_memory(folder / home) for _ in range(3)])
        more = ours - bare
        lines.append(f"| {home} | {ours:.1f} MB | {bare:.1f} MB | {more:.1f} MB | at most {most} MB: {_yes(more <= most)} |")
    return [*lines, "", "Proportional set size; median of three starts each.", ""]


def start(folder: Path) -> list[str]:
    """From the start of the process to the first answer: the agent's to a client that waits, and the bare script's own."""
    pairs = []
    for number in range(STARTS + 1):
        turns: list[Callable[[], float]] = [lambda: _agents_start(folder / "one"), lambda: _bare_start(folder / "one")]
        order = [0, 1] if number % 2 else [1, 0]
        taken = {index: turns[index]() for index in order}
        pairs.append((taken[0], taken[1]))
    ratios = [ours / bare for ours, bare in pairs[1:]]
    ratio = _median(ratios)
    ours, bare = (_median([pair[index] for pair in pairs[1:]]) for index in (0, 1))
    line = f"Agent {ours * 1000:.0f} ms, bare script {bare * 1000:.0f} ms, ratio {ratio:.2f} (held to at most 1.25: {_yes(ratio <= 1.25)})"
    return ["## Start to first answer", "", f"{line}; median of {STARTS} pairs after one of warm-up.", ""]


def imports(_folder: Path) -> list[str]:
    """What a program waits for `edge_agent.client`, numpy aside."""
    pairs = [(_import_s("numpy"), _import_s("edge_agent.client")) for _ in range(STARTS + 1)][1:]
    more = _median([client - numpy for numpy, client in pairs]) * 1000
    return ["## Import", "", f"`edge_agent.client` takes {more:.0f} ms more than numpy (held to at most 60: {_yes(more <= 60)}); median of {STARTS} pairs.", ""]


def _import_s(module: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - begin


def latency(folder: Path) -> list[str]:
    """Each way of asking against `session.run` here, on the same file."""
    import numpy as np
    import onnxruntime

    from edge_agent import connect

    lines = ["## Latency", "", "| tensor | way | p50 | more than `session.run` | held to |", "| --- | --- | --- | --- | --- |"]
    with Running(folder / "timed") as home:
        for name, limits in (("mean", {"inprocess": 5, "shm": 75, "http": 350}), ("small", {"inprocess": 5, "shm": 45, "http": None})):
            x = np.ones(FEEDS[name], np.float32)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(home / "active" / name / "model.onnx"), options, providers=["CPUExecutionProvider"])
            models = {way: connect(name, via=way, home=home) for way in limits}
            runs: dict[str, Callable[[], object]] = {"session.run": lambda session=session, x=x: session.run(None, {"x": x})}  # type: ignore[misc]
            pair = _Pair(str(home / "active" / name / "model.onnx"), x)
            runs["two bare processes"] = pair.ask
            runs.update({way: lambda model=model, x=x: model({"x": x}) for way, model in models.items()})  # type: ignore[misc]
            times = rounds(runs)
            bare = [statistics.median(taken) for taken in times["session.run"]]
            lines.append(f"| {x.nbytes} bytes | session.run | {_median(bare):.1f} µs | | |")
            for way, limit in {"two bare processes": None, **limits}.items():
                medians = [statistics.median(taken) for taken in times[way]]
                more, low, high = interval([one - other for one, other in zip(medians, bare, strict=True)])
                held = "" if limit is None else f"at most {limit} µs: {_yes(more <= limit)}"
                lines.append(f"| {x.nbytes} bytes | {way} | {_median(medians):.1f} µs | {more:+.1f} µs ({low:+.1f} … {high:+.1f}) | {held} |")
            pair.close()
            for model in models.values():
                model.close()
    told = (
        f"{ROUNDS} rounds of {IN_A_ROW} questions a way after one of warm-up; p50 of a round, median of the rounds' differences, its 95 % interval. "
        "Two bare processes share memory and ring each other over a socket, with nothing of the agent."
    )
    return [*lines, "", told, ""]


def throughput(folder: Path) -> list[str]:
    """Eight programs at once by shared memory, against one loop around the bare session with as many threads as the worker has."""
    lines = [
        "## Throughput with eight programs",
        "",
        "| model | bare session | bare processes | agent | share of the session | held to |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with Running(folder / "timed") as home:
        for name, least in (("slow", 0.95), ("mean", 0.4)):
            rates = [(_bare_rate(home, name), _paired_rate(home, name), _agents_rate(home, name)) for _ in range(3)]
            share = _median([ours / bare for bare, _, ours in rates])
            bare, paired, ours = (_median([each[index] for each in rates]) for index in range(3))
            held = f"at least {least}: {_yes(share >= least)}"
            lines.append(f"| {name}, {1000 / bare:.2f} ms | {bare:.0f} a second | {paired:.0f} | {ours:.0f} | {share:.2f} | {held} |")
    told = (
        f"{CLIENTS} processes for {THROUGHPUT_S:g} s, three times, alternating with the bare session; one thread within an operator. "
        "The bare processes do the same with nothing of the agent: eight copy their tensor into shared memory and ring one that has the session."
    )
    return [*lines, "", told, ""]


def swaps(folder: Path, requests: int) -> list[str]:
    """Two versions replace each other every second while programs ask."""
    toys = _toys()
    from soaking import soak

    agent = toys.Agent(folder / "soak")
    agent.start()
    try:
        told = soak(agent, folder, requests)
    finally:
        agent.stop()
    good = told.dropped == told.wrong == 0
    return [
        "## Versions swapped while programs ask",
        "",
        f"{told.requests} requests, {told.swaps} swaps in {told.seconds:.0f} s: {told.dropped} dropped, {told.wrong} wrong (held to none: {_yes(good)}), "
        f"memory of what stays {told.growth:+.1%} (held to 2 %: {_yes(told.growth < 0.02)}).",
        "",
    ]


# measuring


def rounds(runs: dict[str, Callable[[], object]]) -> dict[str, list[list[float]]]:
    """Microseconds of each call, by way and round."""
    times: dict[str, list[list[float]]] = {way: [] for way in runs}
    shuffled, order = random.Random(0), list(runs)
    for number in range(ROUNDS + 1):
        shuffled.shuffle(order)
        for way in order:
            run, taken = runs[way], []
            for _ in range(IN_A_ROW):
                begin = time.perf_counter_ns()
                run()
                taken.append((time.perf_counter_ns() - begin) / 1000)
            if number:
                times[way].append(taken)
    return times


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median, and its 95 % interval (bootstrap)."""
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), medians[25], medians[974]


class Running:
    """An agent on a home that is there."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __enter__(self) -> Path:
        self.process = _served(self.home)
        _until_ready(self.home)
        return self.home

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def _served(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "edge_agent", "serve"], env={**os.environ, **ENVIRONMENT, "EDGE_AGENT_HOME": str(home)})


def _until_ready(home: Path) -> None:
    while True:
        try:
            with Connection(home=home) as connection:
                connection.request("GET", "/v2/health/ready")
                return
        except Exception:  # noqa: BLE001 - not yet
            time.sleep(0.005)


def _agents_memory(home: Path) -> float:
    with Running(home) as running:
        for name in sorted(path.name for path in (running / "active").iterdir()):
            asking = f"import numpy as np; from edge_agent import connect; connect({name!r})(np.ones((1, 4), np.float32))"
            subprocess.run([sys.executable, "-c", asking], env={**os.environ, "EDGE_AGENT_HOME": str(home)}, check=True)
        time.sleep(2)  # the zygote lets go of what it needs no more
        return sum(map(_megabytes, _tree(_pid(running))))


def _bare_memory(home: Path) -> float:
    with _bare(home) as process:
        return _megabytes(process.pid)


def _agents_start(home: Path) -> float:
    question = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()
    begin = time.perf_counter()
    process = _served(home)
    while True:
        try:
            with Connection(home=home) as connection:
                connection.request("POST", "/v2/models/m0/infer", [question])
                taken = time.perf_counter() - begin
                break
        except Exception:  # noqa: BLE001 - not yet
            time.sleep(0.002)
    process.terminate()
    process.wait()
    return taken


def _bare_start(home: Path) -> float:
    begin = time.perf_counter()
    with _bare(home):
        return time.perf_counter() - begin


class _Pair:
    """A question to a process that has nothing but the session: copied into memory that both share, and rung."""

    def __init__(self, model: str, x: Any) -> None:
        import numpy as np

        ((descriptor, self._bell),), self._process = _paired(model, x.shape, 1)
        self._x, self._placed = x, np.ndarray(x.shape, x.dtype, mmap.mmap(descriptor, 1 << 20))
        os.close(descriptor)
        self._bell.recv(8)

    def ask(self) -> None:
        self._placed[...] = self._x
        self._bell.send(b"ask")
        self._bell.recv(8)

    def close(self) -> None:
        self._bell.close()
        self._process.wait()


def _paired(model: str, shape: Sequence[int], count: int) -> tuple[list[tuple[int, socket.socket]], subprocess.Popen[bytes]]:
    """The memory and our end of the bell of each caller, and the process that answers them."""
    ours, theirs = [], []
    for _ in range(count):
        descriptor = os.memfd_create("pair")
        os.ftruncate(descriptor, 1 << 20)
        bell, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.append((descriptor, bell))
        theirs.append(other)
    pairs = [(descriptor, other.fileno()) for (descriptor, _), other in zip(ours, theirs, strict=True)]
    process = subprocess.Popen([sys.executable, "-c", PAIR, model, str(tuple(shape)), str(pairs)], pass_fds=[number for pair in pairs for number in pair])
    for other in theirs:
        other.close()
    return ours, process


class _bare:  # noqa: N801 - reads as a phrase
    """The script, its first answers given."""

    def __init__(self, home: Path) -> None:
        self.models = [str(path / "model.onnx") for path in sorted((home / "active").iterdir())]

    def __enter__(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", BARE, *self.models], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def _bare_rate(home: Path, name: str) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(home / "active" / name / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds, count = {"x": _ones(FEEDS[name])}, 0
    for _ in range(20):
        session.run(None, feeds)
    begin = time.monotonic()
    while time.monotonic() < begin + THROUGHPUT_S:
        session.run(None, feeds)
        count += 1
    return count / (time.monotonic() - begin)


def _agents_rate(home: Path, name: str) -> float:
    command = [sys.executable, "-c", CLIENT, name, json.dumps(FEEDS[name]), str(THROUGHPUT_S)]
    environment = {**os.environ, "EDGE_AGENT_HOME": str(home)}
    return _rate([subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(CLIENTS)])


def _paired_rate(home: Path, name: str) -> float:
    callers, process = _paired(str(home / "active" / name / "model.onnx"), FEEDS[name], CLIENTS)
    clients = []
    for descriptor, bell in callers:
        command = [sys.executable, "-c", PAIRED, str(tuple(FEEDS[name])), str(descriptor), str(bell.fileno()), str(THROUGHPUT_S)]
        clients.append(subprocess.Popen(command, pass_fds=(descriptor, bell.fileno()), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for descriptor, bell in callers:
        os.close(descriptor)
        bell.close()
    rate = _rate(clients)
    process.wait()
    return rate


def _rate(clients: list[subprocess.Popen[str]]) -> float:
    """Answers a second of programs that begin together."""
    for client in clients:
        assert client.stdout is not None
        client.stdout.readline()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("\n")
        client.stdin.flush()
    return sum(int(client.communicate()[0]) for client in clients) / THROUGHPUT_S


def _pid(home: Path) -> int:
    with Connection(home=home) as connection:
        return int(connection.request("GET", "/edge/alive").json()["pid"])


def _tree(pid: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def _megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def _median(values: list[float]) -> float:
    return float(statistics.median(values))


def _yes(held: bool) -> str:
    return "yes" if held else "**no**"


def machine() -> str:
    import onnxruntime

    found = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    load = os.getloadavg()[0]
    return (
        f"Measured on {found[0] if found else 'an unknown CPU'}, {os.cpu_count()} cores, load {load:.1f} of other work; onnxruntime {onnxruntime.__version__}."
    )


def _ones(shape: list[int]) -> Any:
    import numpy as np

    return np.ones(shape, np.float32)


def _toys() -> Any:
    sys.path.insert(0, str(ROOT / "tests" / "agent"))
    import toys

    return toys


if __name__ == "__main__":
    main()
