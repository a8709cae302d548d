from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from toys import CPU_PROFILE, everything, everything_feeds, gather, linear

from edge_agent import worker
from edge_agent.bundle import TensorInfo
from edge_agent.protocol import ProtocolError
from edge_agent.worker import BadFeeds, ProviderMissing, Session, SessionError, choose_providers, conform, cores_of, open_session

CUDA = {"name": "CUDAExecutionProvider", "options": {}}
CPU = {"name": "CPUExecutionProvider", "options": {}}


def opened(folder: Path, model: bytes, **options: Any) -> Session:
    (folder / "model.onnx").write_bytes(model)
    return open_session(folder, CPU_PROFILE, **options)


def test_a_session_says_what_it_is_and_runs(tmp_path: Path) -> None:
    session = opened(tmp_path, linear(2.0))
    assert session.inputs == (TensorInfo("x", "float32", (None, 4)),)
    assert session.outputs == (TensorInfo("y", "float32", (None, 3)),)
    assert session.providers == ["CPUExecutionProvider"]
    assert "nodes on CPU" in session.nodes
    assert session.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[8.0, 8.0, 8.0]]


@pytest.mark.parametrize(
    ("runtime", "spins"),
    [
        ({"intra_op_threads": 1}, False),
        ({"intra_op_threads": 2}, True),
        ({"intra_op_threads": 2, "allow_spinning": False}, False),
        ({"intra_op_threads": 1, "inter_op_threads": 2}, False),  # of no use without `parallel`
        ({"intra_op_threads": 1, "inter_op_threads": 2, "execution": "parallel"}, True),
    ],
)
def test_it_is_known_whether_threads_wait_busily(tmp_path: Path, runtime: dict[str, Any], spins: bool) -> None:
    (tmp_path / "model.onnx").write_bytes(linear())
    assert open_session(tmp_path, {**CPU_PROFILE, "runtime": runtime}).spins is spins


def test_two_threads_of_a_core_are_one(tmp_path: Path) -> None:
    for number, alike in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(alike + "\n")
    assert cores_of({0, 1, 2, 3}, tmp_path) == (2, True)
    assert cores_of({0, 2}, tmp_path) == (1, False)
    assert cores_of({0, 1, 3}, tmp_path) == (2, False)
    assert cores_of({0, 1, 2}, tmp_path / "nowhere") == (3, True)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor, which cannot be taken away")
def test_as_many_threads_run_as_are_told_where_a_process_may_not_use_all_cores(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear())
    program = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import onnxruntime
from edge_agent.worker import open_session
before = len(os.listdir("/proc/self/task"))
session = open_session(Path(sys.argv[1]), {"providers": [{"name": "CPUExecutionProvider"}], "runtime": {}})
print(session.threads, 1 + len(os.listdir("/proc/self/task")) - before, session.spins)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "False"]


def test_threads_of_xnnpack_wait_busily_whatever_is_said_to_those_of_onnxruntime() -> None:
    """No wheel that could be tried here has it: of pthreadpool's source."""
    four, one = (
        {"providers": [{"name": "XnnpackExecutionProvider", "options": {"intra_op_num_threads": count}}, CPU], "runtime": {"allow_spinning": False}}
        for count in ("4", "1")
    )
    taken = ["XnnpackExecutionProvider", "CPUExecutionProvider"]
    assert (worker._spins(four, 1, taken), worker._spins(four, 1, taken[1:]), worker._spins(one, 1, taken)) == (True, False, False)


@pytest.mark.parametrize("options", [{"threads": 2}, {"optimize": False}])
def test_threads_and_optimisation_are_the_callers_choice(tmp_path: Path, options: dict[str, Any]) -> None:
    session = opened(tmp_path, linear(), **options)
    assert session.threads == options.get("threads", 1)
    assert session.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[4.0, 4.0, 4.0]]


def test_every_dtype_goes_in_and_out(tmp_path: Path) -> None:
    session, feeds = opened(tmp_path, everything()), everything_feeds()
    for name, array in session.run(feeds).items():
        np.testing.assert_array_equal(array, feeds[name.replace("out_", "in_")])


def test_only_the_outputs_asked_for_are_computed(tmp_path: Path) -> None:
    assert list(opened(tmp_path, everything()).run(everything_feeds(), ["out_bool"])) == ["out_bool"]


def test_what_the_runtime_refuses_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="cannot open the model"):
        opened(tmp_path, b"noise")
    with pytest.raises(SessionError, match="cannot open the model"):
        open_session(tmp_path / "nowhere", CPU_PROFILE)
    with pytest.raises(BadFeeds, match="out of data bounds"):
        opened(tmp_path, gather()).run({"i": np.array([9])})


def test_a_profile_may_refuse_or_fall_back_when_its_provider_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    profile: dict[str, Any] = {"name": "jetson", "providers": [CUDA, CPU]}
    with pytest.raises(ProviderMissing, match=r"the profile jetson wants CUDAExecutionProvider, this onnxruntime offers CPUExecutionProvider"):
        choose_providers({**profile, "runtime": {"on_missing_provider": "refuse"}}, ["CPUExecutionProvider"])
    assert choose_providers({**profile, "runtime": {"on_missing_provider": "fallback"}}, ["CPUExecutionProvider"]) == [CPU]
    assert capfd.readouterr().err == ""
    assert choose_providers({**profile, "runtime": {"on_missing_provider": "warn"}}, ["CPUExecutionProvider"]) == [CPU]
    assert "CUDAExecutionProvider is not available" in capfd.readouterr().err
    assert choose_providers({"providers": [CUDA]}, ["CPUExecutionProvider"]) == [{"name": "CPUExecutionProvider"}]
    assert choose_providers(profile, ["CUDAExecutionProvider", "CPUExecutionProvider"]) == [CUDA, CPU]


def test_a_provider_may_keep_its_cache_in_the_deployment(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear())
    profile = {**CPU_PROFILE, "providers": [{"name": "CPUExecutionProvider", "options": {"unknown": "{home}"}}]}
    try:
        open_session(tmp_path, profile)
    except SessionError as error:  # some versions refuse options that they do not know
        assert "unknown" in str(error)
    assert (tmp_path / "cache").is_dir()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "the model's inputs are `x`; `x` is missing"),
        ({"z": np.zeros((1, 4), np.float32)}, "`x` is missing"),
        ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1)}, "`z` is none of them"),
        ({"x": np.zeros((1, 4))}, r"the input `x` is float32 \[any, 4\], float64 \[1, 4\] came"),
        ({"x": np.zeros((1, 5), np.float32)}, r"float32 \[1, 5\] came"),
        ({"x": np.zeros(4, np.float32)}, r"float32 \[4\] came"),
        ({"x": np.array([["a"] * 4], object)}, r"string \[1, 4\] came"),
    ],
)
def test_inputs_that_do_not_fit_are_told_what_would(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        conform(feeds, [TensorInfo("x", "float32", (None, 4))])


_OPENED = """
import json, sys
from pathlib import Path
import numpy as np
from edge_agent.worker import open_session

def own_bytes():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous:"))

folder, profile = Path(sys.argv[1]), json.loads(sys.argv[2])
open_session(folder, {**profile, "runtime": {**profile["runtime"], "prepacking": False}})  # what the first session sets up is not the weights'
before = own_bytes()
session = open_session(folder, profile)
answer = session.run({"x": np.ones((1, 2048), np.float32)})["y"]
print(json.dumps({"bytes": own_bytes() - before, "sum": float(answer.sum())}))
"""


def test_weights_stay_on_the_disk_where_the_profile_turns_prepacking_off(tmp_path: Path) -> None:
    size = 2048
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size, size], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(4 * size * size))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    (tmp_path / "weights.bin").write_bytes(np.full(size * size, 0.5, np.float32).tobytes())
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    told = {}
    for prepacking in (True, False):
        profile = {**CPU_PROFILE, "runtime": {**CPU_PROFILE["runtime"], "prepacking": prepacking, "memory_arena": prepacking}}
        done = subprocess.run([sys.executable, "-c", _OPENED, str(tmp_path), json.dumps(profile)], capture_output=True, text=True, check=True)
        told[prepacking] = json.loads(done.stdout)
    assert told[True]["sum"] == told[False]["sum"] == size * size / 2
    assert told[False]["bytes"] < size * size  # a quarter of the weights
    assert told[True]["bytes"] > 4 * size * size * 0.9


def test_a_session_is_opened_with_what_the_profile_says(tmp_path: Path) -> None:
    import onnxruntime

    (tmp_path / "model.onnx").write_bytes(linear())
    said = {
        "intra_op_threads": 2,
        "execution": "parallel",
        "inter_op_threads": 3,
        "graph_optimization": "basic",
        "memory_arena": False,
        "allow_spinning": False,
    }
    options = open_session(tmp_path, {**CPU_PROFILE, "runtime": said})._handle.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads, options.enable_cpu_mem_arena) == (2, 3, False)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert [options.get_session_config_entry(f"session.{pool}_op.allow_spinning") for pool in ("intra", "inter")] == ["0", "0"]
    options = open_session(tmp_path, {**CPU_PROFILE, "runtime": {}})._handle.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads, options.enable_cpu_mem_arena) == (0, 1, True)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with pytest.raises(SessionError, match="wants `graph_optimization` to be 'more', and this agent knows all, extended, basic, none"):
        open_session(tmp_path, {**CPU_PROFILE, "runtime": {"graph_optimization": "more"}})
