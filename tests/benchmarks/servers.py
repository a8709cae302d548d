"""The same question by HTTP to the agent and to the servers that a user would pick instead, in one run. A part of `make bench`.

    python -m tests.benchmarks.servers               # in .venv-servers; writes docs/servers.md

Each server serves the same file on the same machine with one thread within an operator, and is asked the quickest way that it takes by
HTTP: binary where it can. All run at the same time and are asked in turn within a round, in random order, from this process.
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime

from edge_agent import connect
from tests.benchmarks.asking import FEEDS, IN_A_ROW, PREPARE, ROOT, ROUNDS, Running, interval, machine, rounds

PAGE = ROOT / "docs" / "servers.md"
MODELS = ("small", "mean")
WITHIN = 0.5  # of the best of the others
_START_S = 120

LITSERVE = """
import sys
import litserve, numpy as np, onnxruntime
from fastapi import Response

class Api(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.shape = [length if isinstance(length, int) else -1 for length in self.session.get_inputs()[0].shape]
    def decode_request(self, request):
        return np.frombuffer(request["x"].file.read(), np.float32).reshape(self.shape)
    def predict(self, x):
        return self.session.run(None, {"x": x})[0]
    def encode_response(self, y):
        return Response(y.tobytes(), media_type="application/octet-stream")

if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="warning")
"""

BENTOML = """
import os
import bentoml, numpy as np, onnxruntime
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
shape = [length if isinstance(length, int) else -1 for length in session.get_inputs()[0].shape]

async def infer(request: Request) -> Response:
    x = np.frombuffer(await request.body(), np.float32).reshape(shape)
    return Response(session.run(None, {"x": x})[0].tobytes(), media_type="application/octet-stream")

@bentoml.asgi_app(Starlette(routes=[Route("/infer", infer, methods=["POST"])]), path="/raw")
@bentoml.service(workers=1)
class Service:
    @bentoml.api
    def ready(self) -> bool:
        return True
"""

MLSERVER = """
import os
import numpy as np, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

class Model(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        return True
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = self.session.run(None, {"x": x})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
"""


class Asked:
    """A kept-alive connection to a server on loopback."""

    def __init__(self, port: int, target: str, body: Callable[[], bytes], content_type: str) -> None:
        self._connection, self._target, self._body = http.client.HTTPConnection("127.0.0.1", port, timeout=60), target, body
        self._headers = {"Content-Type": content_type}

    def __call__(self) -> bytes:
        try:
            status, data = self._answered()
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):  # it was left alone for too long
            self._connection.close()
            status, data = self._answered()
        if status != 200:
            raise OSError(f"{self._target} answered {status}: {data[:200]!r}")
        return data

    def _answered(self) -> tuple[int, bytes]:
        self._connection.request("POST", self._target, self._body(), self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def main() -> None:
    lines = ["| tensor | server | p50 | more than `session.run` | the agent takes | held to |", "| --- | --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory(prefix="servers-") as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, "-c", PREPARE, str(folder)], check=True, cwd=ROOT)
        with Running(folder / "timed") as home:
            for name in MODELS:
                lines += _compared(folder, home, name)
                print("\n".join(lines), flush=True)
    told = f"{ROUNDS} rounds of {IN_A_ROW} questions a server after one of warm-up; p50 of a round, median over rounds, 95 % interval. No server was tuned."
    versions = ", ".join(f"{package} {version(package)}" for package in ("mlserver", "litserve", "bentoml"))
    PAGE.write_text("\n".join([_HEAD, machine() + f" {versions}.", "", *lines, "", told]) + "\n")


_HEAD = """# Asking by HTTP, beside other servers

`python -m tests.benchmarks.servers`, a part of `make bench`: one question to one model by HTTP. The agent is asked over its Unix socket with
binary tensors; MLServer takes tensors as JSON only; LitServe takes the tensor's bytes as a form's file, BentoML by
a route of its user's own.
"""


def _compared(folder: Path, home: Path, name: str) -> list[str]:
    x, file = np.ones(FEEDS[name], np.float32), home / "active" / name / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    with ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {"session.run": lambda: session.run(None, {"x": x})}
        model = stack.enter_context(connect(name, via="http", home=home))
        runs["edge-agent"] = lambda: model({"x": x})
        for server, started in (("LitServe", _litserve), ("BentoML", _bentoml), ("MLServer", _mlserver)):
            asked = stack.enter_context(started(folder / f"{name}-{server}", file, x))
            _check(server, asked(), expected)
            runs[server] = asked
        times = rounds(runs)
    medians = {server: [statistics.median(taken) for taken in times[server]] for server in runs}
    best = min(statistics.median(medians[server]) for server in runs if server not in ("session.run", "edge-agent"))
    lines = []
    for server in runs:
        mine = statistics.median(medians[server])
        more, low, high = interval([one - bare for one, bare in zip(medians[server], medians["session.run"], strict=True)])
        ratio = interval([ours / one for ours, one in zip(medians["edge-agent"], medians[server], strict=True)])
        others = server not in ("session.run", "edge-agent")
        share = f"{ratio[0]:.2f} ({ratio[1]:.2f} … {ratio[2]:.2f})" if others else ""
        held = f"at most {WITHIN:g} of the best: {'yes' if ratio[0] <= WITHIN else '**no**'}" if others and mine == best else ""
        told = f"{more:+.0f} µs ({low:+.0f} … {high:+.0f})" if server != "session.run" else ""
        lines.append(f"| {x.nbytes} bytes | {server} | {mine:.0f} µs | {told} | {share} | {held} |")
    return lines


def _check(server: str, answer: bytes, expected: np.ndarray) -> None:
    found = np.array(json.loads(answer)["outputs"][0]["data"]) if server == "MLServer" else np.frombuffer(answer, np.float32)
    assert np.allclose(found.ravel(), expected.ravel(), rtol=1e-5), f"{server} answers otherwise"


@contextmanager
def _litserve(folder: Path, file: Path, x: np.ndarray) -> Iterator[Asked]:
    folder.mkdir()
    (folder / "served.py").write_text(LITSERVE)
    port = _free_port()
    with _run([sys.executable, "served.py", str(file), str(port)], folder, {}):
        yield _ready(Asked(port, "/predict", lambda: _form(x.tobytes()), "multipart/form-data; boundary=edge"))


def _form(data: bytes) -> bytes:
    return b'--edge\r\nContent-Disposition: form-data; name="x"; filename="x"\r\nContent-Type: application/octet-stream\r\n\r\n' + data + b"\r\n--edge--\r\n"


@contextmanager
def _bentoml(folder: Path, file: Path, x: np.ndarray) -> Iterator[Asked]:
    folder.mkdir()
    (folder / "service.py").write_text(BENTOML)
    port = _free_port()
    with _run(
        [str(Path(sys.executable).with_name("bentoml")), "serve", "service:Service", "--host", "127.0.0.1", "--port", str(port)], folder, {"MODEL": str(file)}
    ):
        yield _ready(Asked(port, "/raw/infer", x.tobytes, "application/octet-stream"))


@contextmanager
def _mlserver(folder: Path, file: Path, x: np.ndarray) -> Iterator[Asked]:
    folder.mkdir()
    (folder / "served.py").write_text(MLSERVER)
    port, others = _free_port(), [_free_port(), _free_port()]
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": others[0], "metrics_port": others[1], "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps({"name": "model", "implementation": "served.Model"}))

    def body() -> bytes:
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        return json.dumps({"inputs": [tensor]}).encode()

    with _run([str(Path(sys.executable).with_name("mlserver")), "start", "."], folder, {"MODEL": str(file)}):
        yield _ready(Asked(port, "/v2/models/model/infer", body, "application/json"))


@contextmanager
def _run(command: list[str], folder: Path, more: dict[str, str]) -> Iterator[None]:
    environment = {**os.environ, **more, "BENTOML_DO_NOT_TRACK": "True", "LITSERVE_DISABLE_TELEMETRY": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def _ready(asked: Asked) -> Asked:
    until = time.monotonic() + _START_S
    while True:
        try:
            asked()
            return asked
        except (OSError, http.client.HTTPException):
            asked._connection.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()
