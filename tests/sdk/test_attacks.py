"""What others wrote, against the host: models, archives of samples, lists of devices, wheels. tests/ATTACKS.md says which row each is for."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk import agent_package, arrays, fleet, graph, sampling, source
from edgesdk.errors import ConnectionFailed, DeviceError, EdgeSDKError, ModelError, ProfileError, SampleError
from edgesdk.replies import Facts
from edgesdk.transport import settings
from tests.sdk.small_models import build, node

BOARD = Facts(architecture="x86_64", python="3.11.7", abi="cp311", libc="glibc 2.36", home="/h")


# Models


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def graph_of(nodes: list[onnx.NodeProto], *weights: TensorProto, domain: str = "") -> bytes:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(helper.make_graph(nodes, "toy", info[:1], info[1:], list(weights)), opset_imports=opsets, ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def nested(depth: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for level in range(3 * depth):
        head = bytes([(6, 5, 1)[level % 3] << 3 | 2]) + varint(size)
        parts.append(head)
        size += len(head)
    return b"\x08\x08\x3a" + varint(size) + b"".join(reversed(parts)) + b"\x42\x02\x10\x11"


ADD = helper.make_node("Add", ["x", "w"], ["y"])
FILLED = [
    helper.make_node("ConstantOfShape", ["s"], ["w"]),
    helper.make_node("ReduceSum", ["w"], ["r"], keepdims=0),
    helper.make_node("Add", ["x", "r"], ["y"]),
]
MODELS = {
    "2 GB claimed": b"\x08\x08\x3a" + varint(2**31 - 1) + b"x",
    "graphs in graphs, 100,000 deep": nested(100_000),
    "graphs in graphs, 90 deep": nested(30),
    "a circle": graph_of([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"]), helper.make_node("Add", ["a", "b"], ["y"])]),
    "dimensions beyond any memory": graph_of([ADD], TensorProto(name="w", data_type=1, dims=[1 << 40, 1 << 22], raw_data=b"x")),
    "dimensions whose product is 0 in 64 bits": graph_of([ADD], TensorProto(name="w", data_type=1, dims=[1 << 32, 1 << 32])),
    "dimensions below zero": graph_of([ADD], TensorProto(name="w", data_type=1, dims=[-4], raw_data=bytes(16))),
    "strings where numbers belong": graph_of([ADD], TensorProto(name="w", data_type=8, dims=[4], string_data=[b"a"] * 4)),
    "strings as raw bytes": graph_of([ADD], TensorProto(name="w", data_type=8, dims=[4], raw_data=b"abcd")),
    "a type that is none": graph_of([ADD], TensorProto(name="w", data_type=77, dims=[4], raw_data=bytes(16))),
    "a tensor made at load that fits no memory": graph_of(
        [
            helper.make_node("ConstantOfShape", ["s"], ["w"]),
            helper.make_node("ReduceSum", ["w"], ["r"], keepdims=0),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ],
        numpy_helper.from_array(np.array([1 << 40, 1 << 22], np.int64), "s"),
    ),
    "an operator of another domain": graph_of([helper.make_node("Run", ["x"], ["y"], domain="./libevil.so")], domain="./libevil.so"),
}
RUN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2)
sys.argv = ["edgesdk", "package", sys.argv[1], "--profile", "x86-cpu", "--quick", "-o", sys.argv[2]]
from edgesdk.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(MODELS))
def test_a_crafted_model_is_one_sentence_in_bounded_memory_and_nothing_is_written(tmp_path: Path, what: str) -> None:
    (tmp_path / "evil.onnx").write_bytes(MODELS[what])
    argv = [sys.executable, "-c", RUN, str(tmp_path / "evil.onnx"), str(tmp_path / "bundle")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["evil.onnx"]


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "link.bin"])
def test_weights_that_lie_elsewhere_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(b"secret" * 100)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = build([node("Add", ["x", "w"], ["y"])], inputs={"x": ["n", 4]}, outputs={"y": ["n", 4]}, weights={"w": np.zeros(4, np.float32)})
    proto = onnx.load_from_string(graph.to_bytes(model)[0])
    (weight,) = proto.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "16")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    (tmp_path / "models" / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError):
        graph.load(tmp_path / "models" / "m.onnx")


# Samples


def npy(shape: str, data: bytes) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize("shape", ["(4398046511104, 4)", "(2147483648, 4)"])
def test_samples_that_claim_more_than_there_is_are_refused_before_they_are_read(tmp_path: Path, shape: str) -> None:
    model = build([node("Relu", ["x"], ["y"])], inputs={"x": ["n", 4]}, outputs={"y": ["n", 4]})
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, bytes(64)))
    for read in (lambda: arrays.read(tmp_path / "c.npz"), lambda: list(sampling.load(tmp_path / "c.npz", model))):
        with pytest.raises(SampleError):
            read()


def test_samples_that_unpack_to_more_than_they_may_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    """3 GB of zeros in 3 MB."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        member.write(npy("(805306368,)", b""))
        for _ in range(48):
            member.write(bytes(1 << 26))
    assert (tmp_path / "bomb.npz").stat().st_size < 20 << 20
    with pytest.raises(SampleError, match="unpacks to more than"):
        arrays.read(tmp_path / "bomb.npz")


# Names, hosts, paths

SHELL = [
    "; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "| touch pwned",
    "&& touch pwned",
    "-oProxyCommand=touch pwned",
    "a b",
    "a\nb",
    "../../x",
    "'",
    '"',
]


@pytest.mark.parametrize("text", SHELL)
def test_shell_text_in_a_fleets_file_is_refused_before_anything_runs(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.chdir(tmp_path)

    def ran(*_: object, **__: object) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr(subprocess, "Popen", ran)
    (tmp_path / "fleet.toml").write_text(f"[[devices]]\nhost = {json.dumps(text)}\nbundle = {json.dumps(text)}\n")
    (member,) = fleet.load(tmp_path / "fleet.toml")
    with pytest.raises(ConnectionFailed, match="is no host"):
        settings.resolve(member.host)
    with pytest.raises(EdgeSDKError):
        (tmp_path / "labels.toml").write_text(f'[[devices]]\nhost = "pi"\nlabels = [{json.dumps(text)}]\n')
        fleet.load(tmp_path / "labels.toml")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", [*SHELL, "A", "", "x" * 64, ".x", "ä"])
def test_a_bundles_name_and_a_profiles_are_plain_words(text: str) -> None:
    from edge_agent.bundle import BundleError, check_name
    from edgesdk import profiles

    with pytest.raises(BundleError, match="is no name"):
        check_name(text)
    with pytest.raises(ProfileError):
        profiles.find(text)


# Wheels


def test_a_cached_wheel_that_is_no_longer_what_was_fetched_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_package, "cache_folder", lambda: tmp_path)
    tag = "cp311-cp311-manylinux_2_17_x86_64"

    def fetched(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        scratch = Path(argv[argv.index("--dest") + 1])
        for name in ("numpy-2.4.6", "onnxruntime-1.20.1"):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(f"{name.partition('-')[0]}/__init__.py", "version = 1")
            (scratch / f"{name}-{tag}.whl").write_bytes(packed.getvalue())
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(agent_package.subprocess, "run", fetched)
    wheels = agent_package.runtime_wheels(BOARD, "1.20")
    assert agent_package.runtime_wheels(BOARD, "1.20") == wheels
    changed = bytearray(wheels[1].read_bytes())
    changed[40] ^= 1
    wheels[1].write_bytes(bytes(changed))
    with pytest.raises(DeviceError, match=r"`onnxruntime-1\.20\.1-.*\.whl` in this machine's cache is not what was fetched"):
        agent_package.runtime_wheels(BOARD, "1.20")


def test_source_knows_no_other_way_to_run_a_model() -> None:
    """A library of custom operators is code: nothing of ours registers one."""
    for module in Path(source.__file__).parent.rglob("*.py"):
        assert "register_custom_ops_library" not in module.read_text(), module.name
