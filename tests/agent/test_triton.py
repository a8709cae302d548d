"""tritonclient as it comes from PyPI, over TCP, without a change."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, answer, everything, everything_feeds, linear

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]  # of gevent, which tritonclient uses


@pytest.fixture(scope="module")
def triton(shared: Agent) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tritonclient import http
    reply = shared.ask("POST", "/edge/tcp", {"port": 0})
    client = http.InferenceServerClient(reply["url"][len("http://") :])
    # Handed over as a copy each time: tritonclient writes its own headers into it.
    client.token = {"Authorization": f"Bearer {Path(reply['token_file']).read_text().strip()}"}
    client.http = http
    yield client
    client.close()
    shared.ask("POST", "/edge/tcp", {"port": None})


def test_readiness_and_metadata(triton: Any) -> None:
    assert triton.is_server_live(headers=dict(triton.token))
    assert triton.is_server_ready(headers=dict(triton.token))
    assert triton.is_model_ready("linear", headers=dict(triton.token))
    assert triton.is_model_ready("linear", "1", headers=dict(triton.token))
    assert not triton.is_model_ready("nothing", headers=dict(triton.token))
    assert triton.get_server_metadata(headers=dict(triton.token))["name"] == "edge-agent"
    assert triton.get_model_metadata("linear", headers=dict(triton.token))["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_it_answers_as_onnxruntime_does_in_this_process(triton: Any, binary_in: bool, binary_out: bool | None) -> None:
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    tensor = triton.http.InferInput("x", [5, 4], "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary_in)
    outputs = None if binary_out is None else [triton.http.InferRequestedOutput("y", binary_data=binary_out)]
    result = triton.infer("linear", [tensor], outputs=outputs, headers=dict(triton.token), request_id="r1")
    np.testing.assert_allclose(result.as_numpy("y"), answer(linear(), {"x": x})["y"], rtol=1e-6)
    assert result.get_response()["id"] == "r1"


@pytest.mark.parametrize("binary", [True, False])
def test_every_dtype(triton: Any, binary: bool) -> None:
    feeds = everything_feeds()
    metadata = {entry["name"]: entry["datatype"] for entry in triton.get_model_metadata("everything", headers=dict(triton.token))["inputs"]}
    tensors = []
    for name, array in feeds.items():
        tensor = triton.http.InferInput(name, list(array.shape), metadata[name])
        # tritonclient itself sends float16 only as binary.
        tensor.set_data_from_numpy(array, binary_data=binary or array.dtype == np.float16)
        tensors.append(tensor)
    outputs = [triton.http.InferRequestedOutput(name.replace("in_", "out_"), binary_data=binary or array.dtype == np.float16) for name, array in feeds.items()]
    result = triton.infer("everything", tensors, outputs=outputs, headers=dict(triton.token))
    expected = answer(everything(), feeds)
    for name, array in expected.items():
        got = result.as_numpy(name)
        if array.dtype == object and binary:
            got = np.array([text.decode() for text in got], object)
        np.testing.assert_array_equal(got, array)


def test_index_and_statistics(triton: Any) -> None:
    tensor = triton.http.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    triton.infer("linear", [tensor], headers=dict(triton.token))
    index = triton.get_model_repository_index(headers=dict(triton.token))
    assert {"name": "linear", "version": "1", "state": "READY", "reason": ""} in index
    for found in (
        triton.get_inference_statistics("linear", headers=dict(triton.token)),
        triton.get_inference_statistics("linear", "1", headers=dict(triton.token)),
        triton.get_inference_statistics(headers=dict(triton.token)),
    ):
        (entry,) = [entry for entry in found["model_stats"] if entry["name"] == "linear"]
        assert entry["inference_count"] >= 1
        assert entry["inference_stats"]["success"]["ns"] > 0


def test_shared_memory(triton: Any) -> None:
    """As in Triton's own example, simple_http_shm_client.py."""
    shm = pytest.importorskip("tritonclient.utils.shared_memory")
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    expected = answer(linear(), {"x": x})["y"]
    triton.unregister_system_shared_memory(headers=dict(triton.token))
    given = shm.create_shared_memory_region("input_data", "/input_simple", x.nbytes)
    wanted = shm.create_shared_memory_region("output_data", "/output_simple", expected.nbytes)
    try:
        shm.set_shared_memory_region(given, [x])
        triton.register_system_shared_memory("input_data", "/input_simple", x.nbytes, headers=dict(triton.token))
        triton.register_system_shared_memory("output_data", "/output_simple", expected.nbytes, headers=dict(triton.token))
        status = triton.get_system_shared_memory_status(headers=dict(triton.token))
        assert {entry["name"]: entry["byte_size"] for entry in status} == {"input_data": x.nbytes, "output_data": expected.nbytes}
        tensor = triton.http.InferInput("x", [5, 4], "FP32")
        tensor.set_shared_memory("input_data", x.nbytes)
        output = triton.http.InferRequestedOutput("y", binary_data=True)
        output.set_shared_memory("output_data", expected.nbytes)
        result = triton.infer("linear", [tensor], outputs=[output], headers=dict(triton.token))
        assert result.get_output("y")["shape"] == [5, 3]
        np.testing.assert_allclose(shm.get_contents_as_numpy(wanted, np.float32, [5, 3]), expected, rtol=1e-6)
        triton.unregister_system_shared_memory("input_data", headers=dict(triton.token))
        triton.unregister_system_shared_memory("output_data", headers=dict(triton.token))
        assert triton.get_system_shared_memory_status(headers=dict(triton.token)) == []
    finally:
        shm.destroy_shared_memory_region(given)
        shm.destroy_shared_memory_region(wanted)


def test_errors_reach_it_as_its_own(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    tensor = triton.http.InferInput("x", [4], "FP32")
    tensor.set_data_from_numpy(np.zeros(4, np.float32))
    with pytest.raises(InferenceServerException, match=r"the input `x` is float32 \[any, 4\], float32 \[4\] came"):
        triton.infer("linear", [tensor], headers=dict(triton.token))
    with pytest.raises(InferenceServerException):
        triton.get_server_metadata()
    assert json.loads(json.dumps(triton.get_server_metadata(headers=dict(triton.token))))["version"]
