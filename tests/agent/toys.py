"""Small models, real bundles of them, and a real agent to send them to. Runs under Python 3.9 and onnxruntime 1.16 too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent import bundle
from edge_agent.bundle import Contents, Layout
from edge_agent.connection import ClientError, Connection

FRAME = "edge-agent-reply: "

CPU_PROFILE: dict[str, Any] = {
    "name": "x86-cpu",
    "deployable": True,
    "reason": "",
    "providers": [{"name": "CPUExecutionProvider", "options": {}}],
    "runtime": {"on_missing_provider": "fallback", "intra_op_threads": 1, "allow_spinning": False},
    "budget": {"max_drop": 0.01, "max_latency_ms": None, "max_size_bytes": None},
}

# Every dtype that the agent carries: numpy's name, ONNX's, and values at the ends of its range.
EVERY_DTYPE: dict[str, tuple[int, list[Any]]] = {
    "bool": (TensorProto.BOOL, [True, False]),
    "uint8": (TensorProto.UINT8, [0, 255]),
    "uint16": (TensorProto.UINT16, [0, 65535]),
    "uint32": (TensorProto.UINT32, [0, 2**32 - 1]),
    "uint64": (TensorProto.UINT64, [0, 2**64 - 1]),
    "int8": (TensorProto.INT8, [-128, 127]),
    "int16": (TensorProto.INT16, [-(2**15), 2**15 - 1]),
    "int32": (TensorProto.INT32, [-(2**31), 2**31 - 1]),
    "int64": (TensorProto.INT64, [-(2**63), 2**63 - 1]),
    "float16": (TensorProto.FLOAT16, [-65504.0, 0.5]),
    "float32": (TensorProto.FLOAT, [-1.5, 3.0e38]),
    "float64": (TensorProto.DOUBLE, [-1.5, 1.0e300]),
    "string": (TensorProto.STRING, ["", "größer 😀"]),
}


def linear(scale: float = 1.0) -> bytes:
    """y = relu(x @ w), x of [any, 4], y of [any, 3], every weight ``scale``."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    weights = numpy_helper.from_array(np.full((4, 3), scale, np.float32), "w")
    return _packed(nodes, [_info("x", TensorProto.FLOAT, ["n", 4])], [_info("y", TensorProto.FLOAT, ["n", 3])], [weights])


def everything() -> bytes:
    """One identity for each dtype: in_float32 of [any] to out_float32, and so on."""
    nodes = [helper.make_node("Identity", [f"in_{dtype}"], [f"out_{dtype}"]) for dtype in EVERY_DTYPE]
    inputs = [_info(f"in_{dtype}", kind, ["n"]) for dtype, (kind, _) in EVERY_DTYPE.items()]
    outputs = [_info(f"out_{dtype}", kind, ["n"]) for dtype, (kind, _) in EVERY_DTYPE.items()]
    return _packed(nodes, inputs, outputs, [])


def counter() -> bytes:
    """Counts to the number given, a step at a time: takes as long as one likes (about a microsecond a step)."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["sum", "one"], ["more"])],
        "body",
        [_info("i", TensorProto.INT64, []), _info("go", TensorProto.BOOL, []), _info("sum", TensorProto.FLOAT, [])],
        [_info("go_on", TensorProto.BOOL, []), _info("more", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    start = [numpy_helper.from_array(np.array(True), "go"), numpy_helper.from_array(np.array(0, np.float32), "zero")]
    nodes = [helper.make_node("Loop", ["n", "go", "zero"], ["sum"], body=body)]
    return _packed(nodes, [_info("n", TensorProto.INT64, [])], [_info("sum", TensorProto.FLOAT, [])], start)


def layers(count: int, width: int = 256) -> bytes:
    """``count`` matrix products one after the other, x of [any, 256]: as slow as one likes."""
    nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", "w"], [f"x{i + 1}" if i + 1 < count else "y"]) for i in range(count)]
    weights = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    return _packed(nodes, [_info("x", TensorProto.FLOAT, ["n", width])], [_info("y", TensorProto.FLOAT, ["n", width])], [weights])


def slow_to_load(count: int = 800, width: int = 512) -> bytes:
    """y = x, of [n, 4], by way of a product of as many constant matrices, which onnxruntime multiplies when it opens the model: a second or two."""
    nodes = [helper.make_node("MatMul", [f"c{i}" if i else "w", "w"], [f"c{i + 1}"]) for i in range(count)]
    nodes += [helper.make_node("ReduceMax", [f"c{count}"], ["one"], keepdims=0), helper.make_node("Mul", ["x", "one"], ["y"])]
    weights = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    return _packed(nodes, [_info("x", TensorProto.FLOAT, ["n", 4])], [_info("y", TensorProto.FLOAT, ["n", 4])], [weights])


def mean() -> bytes:
    """y = the mean over each channel, x of [1, 3, 224, 224]: 602,112 bytes that are read once."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"])]
    return _packed(nodes, [_info("x", TensorProto.FLOAT, [1, 3, 224, 224])], [_info("y", TensorProto.FLOAT, [1, 3, 1, 1])], [])


def logarithm() -> bytes:
    """y = log(x): NaN and infinity on demand."""
    return _packed([helper.make_node("Log", ["x"], ["y"])], [_info("x", TensorProto.FLOAT, ["n"])], [_info("y", TensorProto.FLOAT, ["n"])], [])


def gather() -> bytes:
    """table[i]: refuses at run time an index beyond its five rows."""
    table = numpy_helper.from_array(np.arange(5, dtype=np.float32), "table")
    return _packed([helper.make_node("Gather", ["table", "i"], ["y"])], [_info("i", TensorProto.INT64, ["n"])], [_info("y", TensorProto.FLOAT, ["n"])], [table])


LINEAR_FEEDS = [{"x": np.arange(8, dtype=np.float32).reshape(2, 4)}, {"x": np.ones((1, 4), np.float32)}]


def everything_feeds() -> dict[str, Any]:
    return {f"in_{dtype}": np.array(values, object if dtype == "string" else dtype) for dtype, (_, values) in EVERY_DTYPE.items()}


def make(
    folder: Path,
    model: bytes | None = None,
    *,
    name: str = "toy",
    release: int = 1,
    feeds: list[dict[str, Any]] | None = None,
    answers: list[dict[str, Any]] | None = None,
    tolerance: float = 1e-4,
    top1: bool = False,
    profile: dict[str, Any] | None = None,
    onnxruntime: str = "1.16.0",
    macs: dict[str, int] | None = None,
) -> Path:
    """A bundle as `edgesdk package` writes it. ``answers`` are those of onnxruntime here, unless others are given."""
    model = linear() if model is None else model
    feeds = LINEAR_FEEDS if feeds is None else feeds
    profile = CPU_PROFILE if profile is None else profile
    inputs, outputs = described(model)
    answers = [answer(model, feed) for feed in feeds] if answers is None else answers
    description = {
        "format": 1,
        "name": name,
        "release": release,
        "profile": profile["name"],
        "model": {"inputs": inputs, "outputs": outputs, "opset": 17, "ir_version": 8, **({"macs": macs} if macs else {})},
        "needs": {"onnxruntime": onnxruntime},
        "golden": {"samples": len(feeds), "tolerance": {output["name"]: tolerance for output in outputs}, "top1": top1, "source": "generated"},
        "source": {"digest": bundle.digest_of(model)},
        "tools": {},
    }
    files = {
        "model.onnx": model,
        "bundle.json": bundle.to_json(description),
        "profile.json": bundle.to_json(profile),
        "golden.npz": golden_file(inputs, outputs, feeds, answers),
    }
    bundle.write(folder, [Contents(profile["name"], {"descriptor": {"name": name}}, files, {})])
    return folder


def golden_file(inputs: list[Any], outputs: list[Any], feeds: list[dict[str, Any]], answers: list[dict[str, Any]]) -> bytes:
    arrays = {}
    for sample, feed in enumerate(feeds):
        expected = answers[sample]
        arrays.update({f"{sample}.in.{i}": _plain(feed[info["name"]]) for i, info in enumerate(inputs)})
        arrays.update({f"{sample}.out.{i}": _plain(expected[info["name"]]) for i, info in enumerate(outputs)})
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def described(model: bytes) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs as bundle.json has them."""
    graph = onnx.load_from_string(model).graph
    names = {kind: dtype for dtype, (kind, _) in EVERY_DTYPE.items()}

    def one(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        return {"name": value.name, "dtype": names[tensor.elem_type], "shape": [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]}

    return [one(value) for value in graph.input], [one(value) for value in graph.output]


def answer(model: bytes, feed: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime answers in this process."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed)))  # noqa: B905 - Python 3.9 has no `strict`


@dataclass
class Agent:
    """A real one on a folder of its own."""

    home: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "edge_agent", "serve"], env=self.environment(), start_new_session=True)
        wait_until(lambda: (self.home / "agent.sock").exists() and self._answers())

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "EDGE_AGENT_HOME": str(self.home)}

    def verb(self, *argv: str, stdin: bytes = b"", code: int = 0) -> Any:
        """The framed reply of a verb, run as a host would."""
        done = subprocess.run([sys.executable, "-m", "edge_agent", *argv], input=stdin, capture_output=True, env=self.environment(), timeout=60, check=False)
        assert done.returncode == code, done
        (line,) = [line for line in done.stdout.decode().splitlines() if line.startswith(FRAME)]
        return json.loads(line[len(FRAME) :])

    def ask(self, method: str, target: str, document: Any = None) -> Any:
        with Connection(home=self.home) as connection:
            return connection.request(method, target, [] if document is None else [json.dumps(document).encode()]).json()

    def send(self, folder: Path) -> str:
        """Put what is missing of a bundle; its manifest's digest."""
        with Layout.open(folder) as layout, Connection(home=self.home) as connection:
            (manifest,) = layout.manifests().values()
            wanted = {"digests": [{"digest": blob.digest, "size": blob.size} for blob in manifest.blobs]}
            for missing in self.ask("POST", "/edge/missing", wanted)["missing"]:
                data = layout.blob(missing["digest"])
                target = f"/edge/blobs/{missing['digest'][len('sha256:') :]}?size={len(data)}&offset={missing['offset']}"
                connection.upload("PUT", target, len(data) - missing["offset"], iter([data[missing["offset"] :]]))
        return manifest.digest

    def job(self, started: Any, timeout_s: float = 60) -> Any:
        """Wait for the job's end."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            state = self.ask("GET", f"/edge/jobs/{started['job']}")
            if state["state"] != "running":
                return state
            time.sleep(0.02)
        raise AssertionError(f"the job did not end: {state}")

    def activate(self, folder: Path, **options: Any) -> Any:
        return self.job(self.ask("POST", "/edge/activate", {"digest": self.send(folder), **options}))

    def rollback(self, name: str) -> Any:
        return self.job(self.ask("POST", f"/edge/models/{name}/rollback"))

    def model(self, name: str) -> Any:
        """Its entry in the status."""
        return next((model for model in self.ask("GET", "/edge/status")["models"] if model["name"] == name), None)

    def worker(self, name: str) -> int:
        """Its process."""
        pid: int = self.model(name)["pid"]
        return pid

    def workers(self) -> dict[int, str]:
        """Process and name (its first 15 letters) of every worker that runs."""
        return {pid: comm(pid) for pid in self._children(self.zygote())}

    def trials(self) -> list[int]:
        """The processes of versions that are tried."""
        return [pid for pid, name in self.workers().items() if name == "edge-trial"]

    def zygote(self) -> int:
        """The process that they are forked from."""
        process = self.process
        assert process is not None
        found: list[int] = wait_until(lambda: [pid for pid in self._children(process.pid) if comm(pid) == "edge-zygote"])
        (pid,) = found
        return pid

    def _children(self, parent: int) -> list[int]:
        return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if parent_of(stat) == parent]

    def journal(self) -> list[Any]:
        return [json.loads(line) for line in (self.home / "journal.jsonl").read_text().splitlines()]

    def _answers(self) -> bool:
        try:
            self.ask("GET", "/edge/alive")
        except Exception:  # noqa: BLE001 - not yet
            return False
        return True


def asked_while_versions_change(agent: Agent, folder: Path, opened: Any) -> tuple[list[str], set[Any]]:
    """Three programs ask `toy`, each by what ``opened()`` gives, while release 2 comes and goes: what went wrong, and (release, answer) as they saw it."""
    folders = [make(folder / str(n), linear(n), release=n) for n in (1, 2)]
    assert agent.activate(folders[0])["state"] == "done"
    stop, seen, problems = threading.Event(), set(), []

    def ask() -> None:
        with opened() as model:
            while not stop.is_set():
                try:
                    answer = float(model(np.ones((1, 4), np.float32))["y"][0, 0])
                    seen.add((model.release, answer))
                except ClientError as error:
                    problems.append(str(error))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    assert agent.activate(folders[1])["state"] == "done"
    assert agent.rollback("toy")["state"] == "done"
    stop.set()
    for asker in askers:
        asker.join()
    return problems, seen


def parent_of(stat: Path) -> int:
    """0 for one that is gone, or a zombie."""
    try:
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def used_s(pid: int) -> float:
    """Seconds of processor time."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) / os.sysconf("SC_CLK_TCK")


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def processes(words: str) -> list[int]:
    """Those whose arguments, separated by NUL, contain ``words``."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if words in arguments(int(folder.name))]


def wait_until(condition: Any, timeout_s: float = 20) -> Any:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def _packed(nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any]) -> bytes:
    model = helper.make_model(helper.make_graph(nodes, "toy", inputs, outputs, initializers), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _info(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _plain(array: Any) -> Any:
    return array.astype(np.str_) if np.asarray(array).dtype.kind == "O" else array
