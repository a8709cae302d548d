"""Crafted bundles, archives and models against the reader and a real agent. tests/ATTACKS.md says which row of the threat table each test is for."""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_trust import Key
from toys import CPU_PROFILE, LINEAR_FEEDS, Agent, linear, make

from edge_agent import bundle, connect, externals, golden
from edge_agent.bundle import BundleError, Contents, Layout, digest_of
from edge_agent.trust import Trust, Untrusted

ONES = np.ones((1, 4), np.float32)


def answered(agent: Agent) -> float:
    with connect("toy", home=agent.home) as model:
        return float(model(ONES)["y"][0, 0])


# A bundle that was changed


def read(folder: Path) -> dict[str, str]:
    """What a device would take of it: profile -> digest, all of it verified."""
    with Layout.open(folder) as layout:
        found = layout.manifests()
        layout.verify()
        for manifest in found.values():
            layout.description(manifest)
        return {profile: manifest.digest for profile, manifest in found.items()}


@pytest.mark.parametrize("kind", ["oci-layout", "index.json", "manifest", "config", "layer"])
def test_whatever_byte_of_a_bundle_is_flipped_it_is_refused_or_the_same_manifest(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path / "b")
    honest = read(folder)
    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
    blobs = {"manifest": manifest.digest, "config": manifest.config.digest, "layer": manifest.layer("model.onnx").digest}
    file = folder / "blobs" / "sha256" / blobs[kind][7:] if kind in blobs else folder / kind
    data = file.read_bytes()
    refused = 0
    for place in range(0, len(data), max(1, len(data) // 200)):
        for bit in (1, 32, 128):
            changed = bytearray(data)
            changed[place] ^= bit
            file.write_bytes(bytes(changed))
            try:
                assert read(folder) == honest, (place, bit)
            except BundleError as error:
                refused += 1
                assert error.hint
    file.write_bytes(data)
    assert read(folder) == honest
    assert refused > 20
    if kind in blobs:
        assert refused == 3 * len(range(0, len(data), max(1, len(data) // 200))), "the digest leaves no byte out"


def test_whatever_byte_of_a_signature_is_flipped_it_is_refused_or_says_the_same(tmp_path: Path) -> None:
    ana, manifest = Key(tmp_path, "ana"), b'{"a":1}\n'
    trust = Trust(tmp_path)
    trust.add(ana.line())
    signature = ana.sign(manifest)
    accepted = 0
    for place in range(0, len(signature), 7):
        changed = bytearray(signature)
        changed[place] ^= 1
        try:
            assert trust.check(manifest, bytes(changed), unsigned=False) == "ana@example.org"
            accepted += 1
        except Untrusted as error:
            assert error.hint
        with pytest.raises(Untrusted):  # and it is never one of something else
            trust.check(manifest + b" ", bytes(changed), unsigned=False)
    assert accepted <= 2, "but line ends, which carry nothing"


def test_an_older_bundle_in_the_place_of_a_newer_one_is_refused_though_both_are_signed(agent: Agent, tmp_path: Path) -> None:
    """Mix and match: name and release lie within what is signed, so an index that points elsewhere changes nothing."""
    ana = Key(tmp_path, "ana")
    agent.verb("trust", "--add", stdin=ana.line().encode())
    made: dict[str, Path] = {}
    for what, name, release in (("old", "toy", 1), ("new", "toy", 2), ("other", "text", 9)):
        files = make(tmp_path / f"plain-{what}", linear(release), name=name, release=release)
        made[what] = signed(tmp_path / what, files, ana)
    assert agent.verb("install", str(made["new"]))["outcome"] == "active"
    for what, said in (("old", "release 1 of toy is older than 2"), ("other", "")):
        mixed = tmp_path / f"mixed-{what}"
        subprocess.run(["cp", "-r", made["new"], mixed], check=True)
        subprocess.run(["cp", "-r", f"{made[what]}/.", mixed], check=True)  # its index, and its blobs beside the others
        if said:
            assert said in agent.verb("install", str(mixed), code=1)["error"]["message"]
        else:  # it is what it says that it is, and touches the other's place in nothing
            assert agent.verb("install", str(mixed))["name"] == "text"
    # The new one's signature does not make the old one's manifest good, nor a manifest that says another release.
    entry = {"old": index(made["old"]), "new": index(made["new"])}
    crossed = tmp_path / "crossed"
    subprocess.run(["cp", "-r", made["new"], crossed], check=True)
    subprocess.run(["cp", "-r", f"{made['old']}/blobs", crossed], check=True)
    entry["new"]["manifests"] = [one for one in entry["old"]["manifests"] if "signature" not in one["artifactType"]] + [
        one for one in entry["new"]["manifests"] if "signature" in one["artifactType"]
    ]
    (crossed / "index.json").write_text(json.dumps(entry["new"]))
    assert "is not signed" in agent.verb("install", str(crossed), code=1)["error"]["message"]
    assert agent.model("toy")["release"] == "2"
    assert answered(agent) == 8


def signed(target: Path, folder: Path, key: Key) -> Path:
    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
        files = {layer.file: layout.blob(layer.digest) for layer in manifest.layers}
    bundle.write(target, [Contents("x86-cpu", {"descriptor": {}}, files, {})], key.sign)
    return target


def index(folder: Path) -> Any:
    return json.loads((folder / "index.json").read_bytes())


# Archives

BLOB = "blobs/sha256/" + "0" * 64


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


EVIL: dict[str, list[tarfile.TarInfo]] = {
    "a path that leads out": [member("../../evil")],
    "one within a blob's name": [member("blobs/sha256/../../../evil")],
    "an absolute path": [member("/etc/evil")],
    "a symbolic link": [member(BLOB, tarfile.SYMTYPE, linkname="/etc/shadow")],
    "a symbolic link as a folder": [member("blobs", tarfile.SYMTYPE, linkname="/etc"), member("blobs/evil")],
    "a hard link": [member(BLOB, tarfile.LNKTYPE, linkname="/etc/shadow")],
    "a device": [member(BLOB, tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a block device": [member(BLOB, tarfile.BLKTYPE, devmajor=8)],
    "a pipe": [member(BLOB, tarfile.FIFOTYPE)],
    "a member twice": [member("index.json"), member("index.json")],
    "names that differ in their case": [member("index.json"), member("INDEX.json")],
    "a line break in a name": [member("index.json\nevil")],
    "a name that is no UTF-8": [member("blobs/sha256/\udcff\udcfe")],
    "a control character": [member("\x1b[2Jindex.json")],
    "a long name": [member("blobs/" + "a" * 5000)],
    "a sparse file": [member(BLOB, tarfile.GNUTYPE_SPARSE)],
}


@pytest.mark.parametrize("what", sorted(EVIL))
def test_a_crafted_archive_is_refused_and_nothing_is_written(tmp_path: Path, what: str) -> None:
    bad = tmp_path / "in" / "bad.tar"
    honest = make(tmp_path / "honest")
    bad.parent.mkdir()
    with tarfile.open(bad, "w") as tar:
        for file in sorted(path for path in honest.rglob("*") if path.is_file()):
            if str(file.relative_to(honest)) not in {info.name for info in EVIL[what]}:
                tar.add(file, str(file.relative_to(honest)))
        for info in EVIL[what]:
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError) as caught, Layout.open(bad):
        pass
    assert caught.value.hint
    assert str(caught.value).isprintable(), "what it quotes steers no terminal"
    assert sorted(tmp_path.rglob("*")) == before


def test_more_members_than_any_bundle_has_are_refused_early(tmp_path: Path) -> None:
    """A million of them, half a gigabyte: the reader stops at the first ten thousand. Folders count, too."""
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE):
        with (tmp_path / "many.tar").open("wb") as stream:
            for number in range(10_050):
                stream.write(member(f"blobs/sha256/{number:064x}", kind).tobuf())
            stream.truncate(512 * 1_000_000)
        begin = time.monotonic()
        with pytest.raises(BundleError, match=r"more than 10,000 members"), Layout.open(tmp_path / "many.tar"):
            pass
        assert time.monotonic() - begin < 30


CLAIMS = {
    "a long name of 3 GB": tarfile.GNUTYPE_LONGNAME,
    "a long link of 3 GB": tarfile.GNUTYPE_LONGLINK,
    "extended headers of 3 GB": tarfile.XHDTYPE,
    "global headers of 3 GB": tarfile.XGLTYPE,
}


@pytest.mark.parametrize("what", sorted(CLAIMS))
def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path, what: str) -> None:
    """The file is sparse: it costs nothing to send, and all of it would be read into memory."""
    with (tmp_path / "claim.tar").open("wb") as stream:
        stream.write(member("x", CLAIMS[what], size=3 << 30).tobuf(tarfile.GNU_FORMAT))
        stream.truncate(3 << 30)
    assert opened_in_little_memory(tmp_path / "claim.tar") == "BundleError"


def test_a_size_below_zero_ends_nothing_in_a_circle(tmp_path: Path) -> None:
    """Python's own reader goes round in a circle there, but for the newest (CVE-2025-8194)."""
    for header in (member("blobs", tarfile.DIRTYPE), member("index.json")):
        raw = bytearray(header.tobuf(tarfile.GNU_FORMAT))
        raw[124:136] = b"\xff" * 10 + b"\xfe\x00"  # in base 256, -512: back to this very header
        raw[148:156] = b"        "
        raw[148:156] = b"%06o\0 " % sum(raw[:512])
        (tmp_path / "below.tar").write_bytes(bytes(raw) + bytes(10240))
        assert opened_in_little_memory(tmp_path / "below.tar") == "BundleError"
    pax = b"15 size=-1024\n\n"
    with (tmp_path / "below.tar").open("wb") as stream:
        stream.write(member("x", tarfile.XHDTYPE, size=len(pax)).tobuf(tarfile.GNU_FORMAT) + pax.ljust(512, b"\0"))
        stream.write(member("blobs", tarfile.DIRTYPE).tobuf() + bytes(10240))
    assert opened_in_little_memory(tmp_path / "below.tar") == "BundleError"


def opened_in_little_memory(path: Path) -> str:
    """What the reader raises in a process that may take 500 MB, and 20 seconds."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (500 << 20,) * 2)\n"
        "from pathlib import Path\nfrom edge_agent.bundle import Layout\n"
        "try:\n    with Layout.open(Path(sys.argv[1])): print('opened')\nexcept BaseException as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip()


def test_of_a_blob_that_is_larger_than_its_manifest_says_only_that_much_is_taken(tmp_path: Path, agent: Agent) -> None:
    """Declared small, a gigabyte large."""
    folder = make(tmp_path / "b")
    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
    blob = folder / "blobs" / "sha256" / manifest.layer("model.onnx").digest[7:]
    with blob.open("ab") as stream:
        stream.truncate(1 << 30)
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match="bytes, its manifest says"):
        read(folder)
    assert agent.verb("install", str(folder))["digest"] == manifest.digest
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin < 200_000
    assert sum(path.stat().st_size for path in agent.home.rglob("*") if path.is_file()) < 10 << 20


# Models


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def graph_of(nodes: list[Any], initializers: tuple[Any, ...] = (), *, domains: tuple[str, ...] = (), shape: tuple[Any, ...] = ("n", 4)) -> bytes:
    """x -> y, unchecked."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "toy", info[:1], info[1:], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)])
    model.ir_version = 8
    data: bytes = model.SerializeToString()
    return data


def tensor(dims: list[int], **fields: Any) -> TensorProto:
    return TensorProto(name="w", data_type=fields.pop("data_type", TensorProto.FLOAT), dims=dims, **fields)


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on. Written by hand: protobuf refuses to."""
    message = b""
    for _ in range(depth):
        for field in (6, 5, 1):
            message = bytes([field << 3 | 2]) + varint(len(message)) + message
    return b"\x3a" + varint(len(message)) + message + b"\x42\x02\x10\x11"


NODE = helper.make_node("Add", ["x", "w"], ["y"])
HUGE = numpy_helper.from_array(np.array([1 << 40, 1 << 22], np.int64), "s")
FILLED = [
    helper.make_node("ConstantOfShape", ["s"], ["w"]),
    helper.make_node("ReduceSum", ["w"], ["r"], keepdims=0),
    helper.make_node("Add", ["x", "r"], ["y"]),
]
MODELS: dict[str, bytes] = {
    "2 GB claimed": b"\x3a" + varint(2**31 - 1) + b"x",
    "more than 64 bits claimed": b"\x3a" + b"\xff" * 9 + b"\x7f",
    "graphs in graphs, 2,000 deep": nested(2000),
    "a circle": graph_of([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"]), helper.make_node("Add", ["a", "b"], ["y"])]),
    "dimensions beyond any memory": graph_of([NODE], (tensor([1 << 40, 1 << 22], raw_data=b"x"),)),
    "dimensions whose product is 0 in 64 bits": graph_of([NODE], (tensor([1 << 32, 1 << 32], raw_data=b""),)),
    "dimensions below zero": graph_of([NODE], (tensor([-4], raw_data=bytes(16)),)),
    "a tensor made at load that fits no memory": graph_of(
        [
            helper.make_node("ConstantOfShape", ["s"], ["w"]),
            helper.make_node("ReduceSum", ["w"], ["r"], keepdims=0),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ],
        (HUGE,),
    ),
    "strings where numbers belong": graph_of([NODE], (tensor([4], data_type=TensorProto.STRING, string_data=[b"a"] * 4),)),
    "strings as raw bytes": graph_of([NODE], (tensor([4], data_type=TensorProto.STRING, raw_data=b"abcd"),)),
    "a type that is none": graph_of([NODE], (tensor([4], data_type=77, raw_data=bytes(16)),)),
    "an operator of another domain": graph_of([helper.make_node("Run", ["x"], ["y"], domain="evil.so")], domains=("evil.so",)),
}


@pytest.mark.e2e
@pytest.mark.parametrize("what", sorted(MODELS))
def test_a_crafted_model_is_refused_at_the_trial_and_costs_the_trial_alone(shared: Agent, tmp_path: Path, what: str) -> None:
    supervisor = shared.process.pid if shared.process else 0
    before = resident_bytes(supervisor)
    failed = shared.activate(crafted(tmp_path / "b", MODELS[what]))
    assert failed["state"] == "failed", failed
    assert failed["stage"] in ("load", "trial", "verify")
    assert failed["error"]["message"]
    assert failed["error"]["hint"]
    assert resident_bytes(supervisor) - before < 50 << 20
    with connect("linear", home=shared.home) as model:
        assert model(ONES)["y"].tolist() == [[4.0] * 3]
    assert shared.model("evil") is None


def crafted(folder: Path, model: bytes) -> Path:
    """A bundle of it that says nothing wrong itself."""
    info = [{"name": name, "dtype": "float32", "shape": [None, 4]} for name in ("x", "y")]
    answers = {f"0.{way}.0": np.ones((1, 4), np.float32) for way in ("in", "out")}
    packed = io.BytesIO()
    np.savez(packed, **answers)
    described = {
        "format": 1,
        "name": "evil",
        "release": 1,
        "profile": "x86-cpu",
        "model": {"inputs": info[:1], "outputs": info[1:], "opset": 17, "ir_version": 8},
        "needs": {"onnxruntime": "1.16.0"},
        "golden": {"samples": 1, "tolerance": {"y": 1e9}, "top1": False, "source": "generated"},
        "source": {"digest": digest_of(model)},
        "tools": {},
    }
    files = {"model.onnx": model, "bundle.json": bundle.to_json(described), "profile.json": bundle.to_json(CPU_PROFILE), "golden.npz": packed.getvalue()}
    bundle.write(folder, [Contents("x86-cpu", {"descriptor": {}}, files, {})])
    return folder


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("depth", [100, 100_000])
def test_graphs_in_graphs_are_refused_whatever_their_number_in_little_memory(depth: int) -> None:
    message = nested(depth) if depth < 1000 else deep(depth)
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match="nests graphs"):
        externals.check(message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin < 100_000


def deep(depth: int) -> bytes:
    """The same in one pass from the inside: a hundred thousand lengths of ever larger messages."""
    parts: list[bytes] = []
    size = 0
    for level in range(3 * depth):
        head = bytes([(6, 5, 1)[level % 3] << 3 | 2]) + varint(size)
        parts.append(head)
        size += len(head)
    return b"\x3a" + varint(size) + b"".join(reversed(parts))


@pytest.mark.e2e
def test_a_domain_that_names_a_library_has_it_loaded_by_nobody(shared: Agent, tmp_path: Path) -> None:
    """Whoever opened it would wait for ever: it is a pipe that nobody writes to."""
    library = tmp_path / "libevil.so"
    os.mkfifo(library)
    named = graph_of([helper.make_node("Run", ["x"], ["y"], domain=str(library))], domains=(str(library),))
    model = onnx.load_from_string(named)
    for key in ("ort_config", "ort_extensions", "register_custom_ops_library"):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps({"session_options": {"custom_ops": str(library)}, "path": str(library)})
    failed = shared.activate(crafted(tmp_path / "b", model.SerializeToString()))
    assert failed["state"] == "failed"
    assert "cannot open the model" in failed["error"]["message"]


# Arrays


@pytest.mark.parametrize("shape", ["(4398046511104,)", "(4294967296, 4294967296)", "(-1,)"])
def test_an_array_that_claims_more_than_there_is_is_refused_before_it_is_made(shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("0.in.0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64))
    with pytest.raises(BundleError):
        golden.read_arrays(packed.getvalue(), "golden.npz")


# Other users of the device

OTHER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
home = sys.argv[1]
got = []
for path in ("", "secrets", "secrets/token", "blobs", "deployments", "agent.log", "journal.jsonl", "config.json", "active"):
    full = os.path.join(home, path)
    try:
        got.append(os.listdir(full) if os.path.isdir(full) else open(full, "rb").read())
    except OSError:
        pass
try:
    socket.socket(socket.AF_UNIX).connect(os.path.join(home, "agent.sock"))
    got.append("socket")
except OSError:
    pass
print(got)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user is root's")
def test_a_user_outside_of_the_group_gets_nothing(agent: Agent, tmp_path: Path) -> None:
    agent.home.parent.chmod(0o755)
    assert agent.activate(make(tmp_path / "1"))["state"] == "done"
    agent.verb("tcp", "0")
    assert (agent.home / "secrets").stat().st_mode & 0o777 == 0o700
    assert (agent.home / "secrets" / "token").stat().st_mode & 0o777 == 0o600
    assert agent.home.stat().st_mode & 0o777 == 0o750
    code = tmp_path / "other.py"
    code.write_text(OTHER)
    done = subprocess.run([sys.executable, "-c", OTHER, agent.home], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "[]\n"


def test_nothing_of_ours_has_a_name_in_a_shared_folder_that_others_could_guess() -> None:
    """Scratch files lie in the agent's own folder, or have mkstemp's names."""
    from edge_agent import home

    for module in Path(home.__file__).parent.glob("*.py"):
        text = module.read_text()
        assert "/tmp" not in text, module.name  # noqa: S108 - that is the point
        assert "gettempdir" not in text, module.name
        assert "mktemp(" not in text, module.name


def test_a_link_that_somebody_planted_is_not_written_through(tmp_path: Path) -> None:
    from edge_agent.store import Store, write_atomically

    victim = tmp_path / "victim"
    victim.write_text("precious")
    store, data = Store(tmp_path / "home"), b"x" * 100
    digest = digest_of(data)
    (tmp_path / "home" / "incoming" / f"{digest[7:]}.part").symlink_to(victim)
    with pytest.raises(Exception, match="cannot write"):
        store.receive(digest, len(data), 0, iter([memoryview(data)]))
    (tmp_path / "home" / "config.json").symlink_to(victim)
    write_atomically(tmp_path / "home" / "config.json", b"new")
    assert victim.read_text() == "precious"


# Secrets


@pytest.mark.e2e
def test_neither_the_token_nor_a_question_is_in_any_file_that_others_may_read(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1"))["state"] == "done"
    port = agent.verb("tcp", "0")["url"].rpartition(":")[2]
    token = (agent.home / "secrets" / "token").read_text().strip()
    import urllib.error
    import urllib.request

    for given in (token, token + "x", ""):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/toy", headers={"Authorization": f"Bearer {given}"})
        try:
            urllib.request.urlopen(request).read()  # noqa: S310
        except urllib.error.HTTPError as error:
            assert error.code == 401
            assert token not in error.read().decode()
    shown = json.dumps([agent.verb("status"), agent.verb("logs", "--lines", "1000"), agent.verb("probe"), agent.verb("tcp", port)])
    agent.stop()
    for path in agent.home.rglob("*"):
        if path.is_file() and path != agent.home / "secrets" / "token":
            assert token.encode() not in path.read_bytes(), path
            assert base64.b64encode(token.encode()) not in path.read_bytes(), path
    assert token not in shown


def test_a_pickle_in_the_golden_answers_runs_nothing(agent: Agent, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    packed = io.BytesIO()
    np.savez(packed, **{"0.in.0": np.array([Bomb()], object), "0.out.0": np.zeros(1)})  # type: ignore[arg-type]
    folder = make(tmp_path / "b", linear(), feeds=LINEAR_FEEDS)
    with Layout.open(folder) as layout:
        (manifest,) = layout.manifests().values()
        files = {layer.file: layout.blob(layer.digest) for layer in manifest.layers}
    bundle.write(folder, [Contents("x86-cpu", {"descriptor": {}}, {**files, "golden.npz": packed.getvalue()}, {})])
    assert "is not an .npz of plain arrays" in agent.activate(folder)["error"]["message"]
    assert not (tmp_path / "pwned").exists()
