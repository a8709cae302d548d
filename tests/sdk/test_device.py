"""What is decided before the first byte, and what a device may say without harm."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_agent.bundle import Layout
from edgesdk import deploying, device, preflight, sending, setting_up
from edgesdk.device import Device
from edgesdk.errors import ConnectionFailed, DeviceError, OutcomeUnknown, Refused, RolledBack
from edgesdk.replies import Facts
from edgesdk.transport import Completed
from tests.bundles import write_bundle

CPU = {"version": "1.32.0", "providers": ["CPUExecutionProvider"]}
PC = Facts(architecture="x86_64", python="3.11.7", abi="cp311", libc="glibc 2.36", home="/h", memory_bytes=8 << 30, onnxruntime=CPU, numpy="2.4.6")


def facts(base: Facts, **changed: Any) -> Facts:
    return Facts.model_validate(base.to_dict() | changed)


ORIN = facts(
    PC,
    architecture="aarch64",
    board="NVIDIA Jetson Orin Nano",
    files=["/etc/nv_tegra_release"],
    onnxruntime=CPU | {"providers": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]},
)


def choose(bundle: Path, found: Facts, as_profile: str | None = None, host: str = "local") -> preflight.Choice:
    with Layout.open(bundle) as layout:
        choice = preflight.choose(layout, found, host, as_profile)
    preflight.check(choice, found, host)
    return choice


def refusal(bundle: Path, found: Facts, as_profile: str | None = None, host: str = "local") -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        choose(bundle, found, as_profile, host)
    return str(caught.value), caught.value.hint


# Which of the bundle's models


def test_a_pc_takes_the_second_profile_of_a_bundle_for_both(tmp_path: Path) -> None:
    choice = choose(write_bundle(tmp_path / "b", profiles=("jetson", "x86-cpu")), PC)
    assert (choice.profile.name, choice.assumed, choice.description.profile) == ("x86-cpu", False, "x86-cpu")


def test_a_pc_is_no_jetson_and_is_told_what_to_run(tmp_path: Path) -> None:
    message, hint = refusal(write_bundle(tmp_path / "b", profiles=("jetson",), name="ocr"), PC)
    assert message == "this PC (x86_64) is no NVIDIA Jetson: the bundle `ocr` holds jetson only"
    assert "`edgesdk package --profile x86-cpu`" in hint and "`edgesdk deploy local --as-profile jetson`" in hint


def test_another_profile_may_be_tried_on_the_cpu(tmp_path: Path) -> None:
    choice = choose(write_bundle(tmp_path / "b", profiles=("jetson", "x86-cpu")), PC, "jetson")
    assert (choice.profile.name, choice.assumed) == ("jetson", True)


def test_the_closest_profile_wins(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", profiles=("jetson", "jetson-orin"))
    assert choose(bundle, ORIN).profile.name == "jetson-orin"
    assert not choose(bundle, ORIN, "jetson").assumed


def test_a_profile_that_is_not_in_the_bundle(tmp_path: Path) -> None:
    message, hint = refusal(write_bundle(tmp_path / "b"), PC, "jetson")
    assert message == "the bundle holds no model for `jetson`, only for x86-cpu" and "--profile jetson" in hint


def test_a_profile_of_ones_own_is_recognised_by_what_the_bundle_says_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('title = "My board"\nextends = "x86-cpu"\n[recognise]\nboard = "Mine"\n')
    find = preflight.profiles.find
    monkeypatch.setattr(preflight.profiles, "find", lambda name: find(str(tmp_path / "mine.toml") if name == "mine" else name))
    bundle = write_bundle(tmp_path / "b", profiles=("x86-cpu", "mine"))
    assert choose(bundle, facts(PC, board="Mine 3")).profile.name == "mine"
    assert choose(bundle, PC).profile.name == "x86-cpu"


# Its needs against the device


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (facts(PC, python="3.8.10"), ["3.8.10", "3.9"]),
        (facts(PC, missing_modules=["ssl", "sqlite3"]), ["lacks ssl, sqlite3"]),
        (facts(PC, writable=False, user="pi"), ["user pi", "may not write to /h"]),
        (facts(PC, system="FreeBSD"), ["FreeBSD", "Linux"]),
        (facts(PC, memory_bytes=100), ["0.0 MB"]),
        (facts(PC, available_bytes=100), ["of memory", "has 0.0 MB left"]),
    ],
)
def test_what_the_device_cannot_do_is_refused_with_both_values(tmp_path: Path, found: Facts, said: list[str]) -> None:
    message, _ = refusal(write_bundle(tmp_path / "b"), found)
    assert all(word in message for word in said), message


def test_a_model_that_has_a_version_there_may_take_its_memory(tmp_path: Path) -> None:
    there = facts(PC, available_bytes=100, releases={"toy": {"release": 1, "digest": "sha256:" + "0" * 64}})
    assert choose(write_bundle(tmp_path / "b", release=2), there).description.release == 2


def test_a_board_below_the_floor_is_refused_with_the_reason(tmp_path: Path) -> None:
    nano = facts(ORIN, board="NVIDIA Jetson Nano Developer Kit")
    for profiles in (("jetson-nano",), ("jetson",)):
        message, _ = refusal(write_bundle(tmp_path / profiles[0], profiles=profiles), nano, host="nano")
        assert "NVIDIA Jetson Nano, which cannot be deployed to" in message and "JetPack 4 ends at Python 3.6" in message


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        (None, "has no onnxruntime"),
        (CPU, "needs TensorrtExecutionProvider, `orin` (NVIDIA Jetson Orin Nano) has CPUExecutionProvider"),
        (CPU | {"version": "1.15.1"}, "needs onnxruntime 1.16.0 (opset 13, IR version 8), `orin` (NVIDIA Jetson Orin Nano) has 1.15.1"),
    ],
)
def test_a_board_whose_vendors_runtime_is_wanted(tmp_path: Path, runtime: dict[str, Any] | None, said: str) -> None:
    assert said in refusal(write_bundle(tmp_path / "b", profiles=("jetson",)), facts(ORIN, onnxruntime=runtime), host="orin")[0]


def test_an_onnxruntime_of_the_devices_own_that_is_too_old_for_the_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", needs="1.20.0")
    own = CPU | {"version": "1.17.3", "where": "system"}
    assert refusal(bundle, facts(PC, onnxruntime=own))[0] == "`toy` needs onnxruntime 1.20.0 (opset 13, IR version 8), this PC (x86_64) has 1.17.3"
    choose(bundle, facts(PC, onnxruntime=own | {"where": "runtime"}))  # ours: a newer one is sent
    choose(bundle, facts(PC, onnxruntime=own | {"version": "1.15.0"}))


def test_a_release_that_the_device_would_refuse_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    with Layout.open(write_bundle(tmp_path / "b", release=2)) as layout:
        choice = preflight.choose(layout, PC, "pi")
    digest, other = choice.manifest.digest, "sha256:" + "1" * 64

    def said(allowed: tuple[str, ...] = (), **known: Any) -> str:
        try:
            preflight.check_release(choice, facts(PC, releases={"toy": known}), "pi", allowed)
        except Refused as refused:
            assert refused.hint
            return str(refused)
        return ""

    assert said(release=3, digest=other) == "release 2 of `toy` is older than 3, which `pi` (x86_64) has had"
    assert said(release=2, digest=other) == f"another bundle of `toy` is release 2 on `pi` (x86_64) ({other[:19]}, not {digest[:19]})"
    assert said(rolled_back=[digest]) == "release 2 of `toy` was tried on `pi` (x86_64) and rolled back"
    assert said() == said(release=1, digest=other) == said(release=2, digest=digest) == ""
    assert said(("allow-downgrade",), release=3, digest=other) == said(("retry",), rolled_back=[digest]) == ""


def test_nothing_is_sent_where_the_device_has_what_it_needs() -> None:
    package = device.agent_package.build()
    has = facts(PC, agent={"digest": package.name, "version": "0.1.0", "running": True})
    assert setting_up.plan_set_up(has) == setting_up.SetUp(None, ())
    assert setting_up.plan_set_up(facts(has, agent=None)).agent == package


def test_wheels_are_sent_where_the_runtime_is_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "onnxruntime-1.20.0-x.whl"
    asked = []
    monkeypatch.setattr(device.agent_package, "runtime_wheels", lambda _, oldest, *_more: asked.append(oldest) or [wheel])
    for found in (facts(PC, onnxruntime=None), facts(PC, numpy=None), facts(PC, onnxruntime=CPU | {"version": "1.15.0"})):
        assert setting_up.plan_set_up(found).wheels == (wheel,)
    assert asked == ["1.16"] * 3


def test_a_disk_that_is_too_small_is_refused_with_both_values(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"needs 51\.0 MB of disk below /h, `pi` \(x86_64\) has 20\.0 MB free"):
        preflight.check_space(50_000_000, facts(PC, free_bytes=20_000_000), "pi")
    preflight.check_space(0, facts(PC, free_bytes=0), "pi")
    with Layout.open(write_bundle(tmp_path / "b")) as layout:
        manifest = layout.manifests()["x86-cpu"]
        pi, transport = scripted({"missing": [{"digest": manifest.digest, "offset": 0}]})
        with pytest.raises(Refused, match="of disk"):
            sending.push(pi, layout, manifest, facts(PC, free_bytes=1000))
        assert [argv[4] for argv in transport.asked] == ["missing"]


def test_room_for_the_agent_and_the_bundle_together_is_asked_for_before_either_is_sent(tmp_path: Path) -> None:
    """The agent there is an older one; its disk has room for the new one, and not for the bundle as well."""
    bundle = write_bundle(tmp_path / "b", width=700)
    with Layout.open(bundle) as layout:
        manifest = layout.manifests()["x86-cpu"]
    old = facts(PC, agent={"digest": "0" * 16, "version": "0.0.9", "running": True}, free_bytes=3_000_000)
    lacking = {"missing": [{"digest": blob.digest, "offset": 0} for blob in manifest.blobs]}
    pi, transport = scripted(old.to_dict(), lacking)
    with pytest.raises(Refused, match=r"of disk below /h, `pi` \(x86_64\) has 3\.0 MB free"):
        deploying.deploy(pi, bundle)
    assert [argv[-1] for argv in transport.asked[1:]] == ["missing"]


def test_what_a_set_up_would_do_is_said_in_words() -> None:
    bare = facts(PC, agent=None, user="pi", systemd=True)
    plan = setting_up.plan_set_up(bare)
    users = "\n".join(setting_up.set_up_words(bare, plan, None, system=False))
    systems = "\n".join(setting_up.set_up_words(bare, plan, None, system=True))
    assert "send the agent" in users and "/h/agent.sock" in users and "group" not in users
    assert "group edge" in systems and "put pi into the group" in systems and "/run/edge-agent/agent.sock" in systems and "/etc/systemd/system" in systems
    has = facts(PC, agent={"digest": device.agent_package.build().name, "version": "0.1.0", "running": True})
    assert setting_up.set_up_words(has, setting_up.plan_set_up(has), None, system=False) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"systemd": False}, "runs no systemd"),
        ({"systemd": True, "agent": {"version": "1", "running": True}, "user": "ana"}, "ana on `pi` (x86_64) has an agent already, at /h"),
    ],
)
def test_where_an_agent_of_the_system_cannot_be_is_said_before_anything_is_done(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as caught:
        setting_up.check_for_system(facts(PC, **changed), "pi")
    assert said in str(caught.value) and caught.value.hint


# What comes back


class Scripted:
    """A transport whose device says what the test wants: bytes, a JSON reply, or an exception, the last one forever."""

    host, python = "pi", "python3"

    def __init__(self, *says: Any) -> None:
        self.says = list(says)
        self.asked: list[list[str]] = []
        self.closed = 0

    def run(self, argv: Sequence[str], *, stdin: Iterable[bytes] = (), **_: float) -> Completed:
        self.asked.append(list(argv))
        self.taken = b"".join(stdin)
        say = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(say, Exception):
            raise say
        if isinstance(say, Completed):
            return say
        if isinstance(say, bytes):
            return Completed(0, say, "")
        return Completed(int(list(say) == ["error"]), b"edge-agent-reply: " + json.dumps(say).encode() + b"\n", "")

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def scripted(*says: Any) -> tuple[Device, Scripted]:
    transport = Scripted(*says)
    return Device(lambda: transport), transport


def test_a_reply_is_found_among_what_a_shell_prints() -> None:
    pi, _ = scripted(b"Welcome!\n\x1b[31mMOTD\nedge-agent-reply: {broken\nedge-agent-reply: " + json.dumps(PC.to_dict()).encode() + b"\nbye\n")
    assert pi.facts() == PC


def test_what_the_agent_complains_of_arrives_harmless() -> None:
    pi, _ = scripted({"error": {"message": "bad \x1b[2J\u202e name", "hint": "try\x07"}})
    with pytest.raises(DeviceError) as caught:
        pi.status()
    assert (str(caught.value), caught.value.hint) == ("bad \\x1b[2J\\u202e name", "try\\x07")


def test_what_the_agent_tells_its_own_programs_to_type_is_said_as_one_types_it_here() -> None:
    pi, _ = scripted({"error": {"message": "no model `x` is active", "hint": "`edge-agent status` lists those that are"}})
    with pytest.raises(DeviceError) as caught:
        pi.status()
    assert caught.value.hint == "`edgesdk status pi` lists those that are"


@pytest.mark.parametrize("reply", [{}, {"agent": 3}, {"agent": {"version": []}}, {"agent": {"version": "1"}, "models": [{"name": "x"}]}])
def test_a_reply_that_makes_no_sense_is_said_to_be_so(reply: dict[str, Any]) -> None:
    pi, _ = scripted(reply)
    with pytest.raises(DeviceError, match="`pi` gives an answer that makes no sense"):
        pi.status()


@pytest.mark.parametrize("garbage", [b"", b"edge-agent-reply: ", b"edge-agent-reply: [1]\n", b"edge-agent-reply: " + b"[" * 100_000, b"\xff\xfe\n"])
def test_no_reply_at_all(garbage: bytes) -> None:
    pi, _ = scripted(Completed(1, garbage, "Traceback\nValueError: \x1b[31mno\n"))
    with pytest.raises(DeviceError, match=r"`pi` gives no answer to `status` \(exit 1\): ") as caught:
        pi.status()
    assert "\x1b" not in str(caught.value)


def test_a_device_without_an_agent() -> None:
    pi, _ = scripted(Completed(127, b"", "sh: 1: exec: /home/pi/.local/share/edge-agent/bin/edge-agent: not found"))
    with pytest.raises(DeviceError, match="`pi` has no agent yet") as caught:
        pi.report()
    assert "edgesdk setup pi" in caught.value.hint


@pytest.mark.parametrize(
    ("probe", "version", "error", "said"),
    [
        (Completed(127, b"", "not found"), Completed(127, b"", "not found"), Refused, "`pi` has no python3"),
        (Completed(1, b"", "SyntaxError"), Completed(0, b"Welcome\nPython 3.6.9\n", ""), Refused, "`pi` has Python 3.6.9; the agent needs 3.9"),
        (Completed(1, b"", "boom"), Completed(0, b"Python 3.11.2\n", ""), DeviceError, "`pi` cannot be looked at (exit 1): boom"),
        (
            Completed(1, b"This account is currently not available.\n", ""),
            None,
            DeviceError,
            "`pi` runs no commands (exit 1): This account is currently not available.",
        ),
    ],
)
def test_a_device_that_cannot_be_looked_at(probe: Completed, version: Completed | None, error: type[Exception], said: str) -> None:
    pi, _ = scripted(probe, version or probe)
    with pytest.raises(error) as caught:
        pi.facts()
    assert str(caught.value) == said


def test_a_device_cannot_ask_for_blobs_of_its_choice(tmp_path: Path) -> None:
    pi, _ = scripted({"missing": [{"digest": "sha256:../../etc/passwd", "offset": 0}]})
    with Layout.open(write_bundle(tmp_path / "b")) as layout, pytest.raises(DeviceError, match="asks for a blob that is not in the bundle"):
        sending.push(pi, layout, layout.manifests()["x86-cpu"], PC)


# Sending and switching


def test_only_missing_blobs_are_sent_each_from_its_offset(tmp_path: Path) -> None:
    with Layout.open(write_bundle(tmp_path / "b")) as layout:
        manifest = layout.manifests()["x86-cpu"]
        blob = manifest.layer("model.onnx")
        pi, transport = scripted({"missing": [{"digest": blob.digest, "offset": 100}]}, {})
        seen: list[tuple[str, int, int]] = []
        assert sending.push(pi, layout, manifest, PC, lambda *at: seen.append(at)) == (1, blob.size - 100)
        assert transport.asked[1][4:] == ["receive"]
        listed, _, content = transport.taken.partition(b"\n")
        assert json.loads(listed) == {"blobs": [{"digest": blob.digest, "size": blob.size, "offset": 100}]}
        assert content == layout.blob(blob.digest)[100:]
        assert seen == [("push", blob.size - 100, blob.size - 100)]


def test_a_blob_is_read_from_a_tar_to_its_end_and_no_further(tmp_path: Path) -> None:
    with Layout.open(write_bundle(tmp_path / "b.tar")) as layout:
        manifest = layout.manifests()["x86-cpu"]
        blob = manifest.layer("bundle.json")
        pi, transport = scripted({"missing": [{"digest": blob.digest, "offset": 0}]}, {})
        sending.push(pi, layout, manifest, PC)
        assert transport.taken.partition(b"\n")[2] == layout.blob(blob.digest)


def test_a_device_that_forgets_everything_is_not_set_up_unless_that_is_meant() -> None:
    forgetful = facts(PC, volatile="tmpfs")
    with pytest.raises(Refused, match=r"lies in memory \(tmpfs\): what is sent there is gone when the power is") as caught:
        preflight.check_lasting(forgetful, "pi", [])
    assert "--volatile" in caught.value.hint
    preflight.check_lasting(forgetful, "pi", ["volatile"])
    preflight.check_lasting(facts(PC), "pi", [])


def test_a_broken_connection_is_opened_again_and_the_rest_is_sent(tmp_path: Path) -> None:
    with Layout.open(write_bundle(tmp_path / "b")) as layout:
        manifest = layout.manifests()["x86-cpu"]
        blob = manifest.layer("model.onnx")
        lost = ConnectionFailed("the connection broke")
        pi, transport = scripted({"missing": [{"digest": blob.digest, "offset": 0}]}, lost, {"missing": [{"digest": blob.digest, "offset": 7}]}, {})
        assert sending.push(pi, layout, manifest, PC)[0] == 1
        assert transport.closed == 1 and len(transport.taken.partition(b"\n")[2]) == blob.size - 7


def test_as_long_as_more_arrives_each_time_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_RECONNECT_S", 0)
    with Layout.open(write_bundle(tmp_path / "b")) as layout:
        manifest = layout.manifests()["x86-cpu"]
        blob = manifest.layer("model.onnx")
        lost = ConnectionFailed("the connection broke")
        arrives = [say for offset in (0, 7, 9, 20, 50) for say in ({"missing": [{"digest": blob.digest, "offset": offset}]}, lost)]
        pi, transport = scripted(*arrives, {"missing": []})
        assert sending.push(pi, layout, manifest, PC)[0] == 1
        assert transport.closed == 5
        stuck, transport = scripted(*arrives[:2], *arrives[:2], {"missing": []})
        with pytest.raises(ConnectionFailed):
            sending.push(stuck, layout, manifest, PC)


def test_a_door_that_is_shut_is_not_knocked_at_again(tmp_path: Path) -> None:
    with Layout.open(write_bundle(tmp_path / "b")) as layout:
        pi, transport = scripted(ConnectionFailed("the host key has changed", final=True))
        with pytest.raises(ConnectionFailed, match="has changed"):
            sending.push(pi, layout, layout.manifests()["x86-cpu"], PC)
        assert len(transport.asked) == 1


def test_a_connection_that_stays_broken_ends_with_the_stage_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_RECONNECT_S", 0)
    with Layout.open(write_bundle(tmp_path / "b")) as layout:
        pi, _ = scripted(ConnectionFailed("the connection broke"))
        with pytest.raises(ConnectionFailed, match=r"during `missing`"):
            sending.push(pi, layout, layout.manifests()["x86-cpu"], PC)


RESULT = {"name": "toy", "release": 1, "digest": "sha256:x", "previous": None, "outcome": "active", "first_answer_ms": 1.5}


def job(state: str, stage: str, **more: Any) -> dict[str, Any]:
    return {"id": "1", "state": state, "stage": stage, "result": None, "error": None, **more}


def test_a_job_is_followed_to_its_end() -> None:
    pi, transport = scripted({"job": "j1"}, job("running", "load"), job("running", "trial"), job("done", "ask", result=RESULT))
    stages: list[str] = []
    result = pi.activate("sha256:x", as_profile=True, allowed=["allow-slow"], progress=lambda stage, *_: stages.append(stage))
    assert (result.outcome, result.first_answer_ms) == ("active", 1.5)
    assert transport.asked[0][4:] == ["activate", "sha256:x", "--by", device._me(), "--as-profile", "--allow-slow"]
    assert [argv[-1] for argv in transport.asked[1:]] == ["verify", "load", "trial"]
    assert stages == ["load", "trial", "ask", "probation"]


@pytest.mark.parametrize(("wait", "outcome"), [(True, "active"), (False, "probation")])
def test_the_end_of_a_probation_is_waited_for_or_not(wait: bool, outcome: str) -> None:
    pi, _ = scripted(
        {"job": "j1"}, job("running", "ask"), job("running", "probation", result={**RESULT, "outcome": "probation"}), job("done", "probation", result=RESULT)
    )
    assert pi.activate("sha256:x", wait=wait).outcome == outcome


@pytest.mark.parametrize(("stage", "kind"), [("trial", DeviceError), ("ask", RolledBack), ("probation", RolledBack)])
def test_a_job_that_fails_says_why(stage: str, kind: type[Exception]) -> None:
    pi, _ = scripted({"job": "j1"}, job("failed", stage, error={"message": "the answers differ", "hint": "package again"}))
    with pytest.raises(DeviceError, match="the answers differ") as caught:
        pi.activate("sha256:x")
    assert type(caught.value) is kind


def test_a_connection_lost_while_a_job_runs_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.time, "sleep", lambda _: None)
    lost = ConnectionFailed("the connection broke")
    pi, transport = scripted({"job": "j1"}, lost, lost, job("done", "ask", result=RESULT))
    assert pi.activate("sha256:x").outcome == "active"
    assert [argv[4] for argv in transport.asked] == ["activate", "job", "job", "job"]


def test_what_became_of_a_job_may_stay_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_RECONNECT_S", 0)
    monkeypatch.setattr(device.time, "sleep", lambda _: None)
    pi, _ = scripted({"job": "j1"}, ConnectionFailed("the connection broke"))
    with pytest.raises(OutcomeUnknown, match="what `pi` did meanwhile is not known") as caught:
        pi.activate("sha256:x")
    assert "edgesdk status pi" in caught.value.hint


def test_going_back_is_not_asked_for_twice() -> None:
    pi, transport = scripted(ConnectionFailed("the connection broke"))
    with pytest.raises(OutcomeUnknown):
        pi.rollback("toy")
    assert len(transport.asked) == 1


def test_what_goes_wrong_with_one_of_many_is_in_its_result(tmp_path: Path) -> None:
    failed = deploying.attempt("-oProxyCommand=id", write_bundle(tmp_path / "b"))
    assert (failed.outcome, failed.worked) == ("failed", False) and failed.error and "is no host" in failed.error["message"]
    missing = deploying.attempt("local", tmp_path / "nothing")
    assert missing.error and "there is no bundle" in missing.error["message"]
    assert list(missing.to_dict()) == [
        "host",
        "outcome",
        "digest",
        "previous",
        "blobs_sent",
        "bytes_sent",
        "set_up_bytes",
        "seconds",
        "first_answer_ms",
        "converted",
        "at",
        "placement",
        "error",
    ]


def test_inputs_of_any_name_and_text_travel_without_pickle() -> None:
    import io

    import numpy as np

    answer = {"outputs": {"y": {"dtype": "float32", "shape": [1, 2], "data": [[1.5, 2.5]]}}, "latency_ms": 0.5}
    pi, transport = scripted(answer)
    feeds = {"file": np.ones(2, np.float32), "text": np.array(["a", "bc"], object)}
    assert pi.infer("toy", feeds).arrays()["y"].tolist() == [[1.5, 2.5]]
    with np.load(io.BytesIO(transport.taken), allow_pickle=False) as sent:
        assert sent["file"].tolist() == [1, 1] and sent["text"].tolist() == ["a", "bc"]


# This machine, for real


@pytest.fixture
def agent_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Path]:
    monkeypatch.setenv("EDGE_AGENT_HOME", str(tmp_path / "agent"))
    yield tmp_path / "agent"
    with device.connect("local") as here:
        if (tmp_path / "agent" / "bin").exists():
            here.ask("stop")


@pytest.mark.e2e
def test_local_is_a_device(tmp_path: Path, agent_home: Path) -> None:
    import numpy as np

    from tests.bundles import answer

    bundle = write_bundle(tmp_path / "b", profiles=("jetson", "x86-cpu"))
    with device.connect("local") as here:
        if here.facts().architecture != "x86_64":
            pytest.skip("this machine takes another profile")
        first = deploying.deploy(here, bundle)
        assert (first.outcome, first.previous) == ("active", None) and first.first_answer_ms and first.blobs_sent > 5
        again = deploying.deploy(here, bundle)
        assert (again.outcome, again.blobs_sent, again.bytes_sent) == ("unchanged", 0, 0)
        x = np.ones((1, 8), np.float32)
        np.testing.assert_allclose(here.infer("toy", {"x": x}).arrays()["y"], answer(x), rtol=1e-4)
        assert here.infer("toy").agrees
        assert here.report().models[0].count >= 2
        assert here.status().models[0].profile == "x86-cpu"
        assert here.logs()
        assert here.remove("toy").removed == "toy"
        assert os.path.commonpath([here.facts().home, agent_home]) == str(agent_home)


@pytest.mark.e2e
def test_a_bundle_is_staged_scheduled_let_go_and_activated_by_the_command_line(tmp_path: Path, agent_home: Path) -> None:
    from typer.testing import CliRunner

    from edgesdk.cli import app

    def ran(*argv: str) -> Any:
        done = CliRunner().invoke(app, [*argv, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    with device.connect("local") as here:
        if here.facts().architecture != "x86_64":
            pytest.skip("this machine takes another profile")
    one, two = (str(write_bundle(tmp_path / str(release), release=release, seed=release)) for release in (1, 2))
    assert ran("deploy", "local", one)[0]["outcome"] == "active"
    (staged,) = ran("deploy", "local", two, "--stage-only")
    assert (staged["outcome"], staged["at"], staged["error"]) == ("staged", None, None)
    status = ran("status", "local")
    assert [(one["name"], one["release"], one["digest"]) for one in status["staged"]] == [("toy", 2, staged["digest"])]
    assert [(one["why"], one["release"]) for one in status["store"]["kept"]] == [("active", 1), ("staged", 2)]
    assert status["store"]["keep"] == 2
    assert ran("activate", "local", "toy", "--at", "+2h")["at"]
    assert ran("activate", "local", "toy", "--cancel")["release"] == 2
    gone = CliRunner().invoke(app, ["activate", "local", "toy"])
    assert (gone.exit_code, "nothing that is called 'toy' is staged" in gone.output) == (1, True)
    assert ran("deploy", "local", two, "--at", "+1h")[0]["at"]
    done = ran("activate", "local", staged["digest"][:19])
    assert (done["outcome"], done["release"], done["digest"]) == ("active", 2, staged["digest"])
    assert ran("status", "local")["staged"] == []
