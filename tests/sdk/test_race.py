"""Two models timed on a device, seen from the host."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.bundle import digest_of
from edgesdk import device, profiles, race
from edgesdk.device import Device
from edgesdk.errors import DeviceError, ModelError, Refused
from edgesdk.race import Racer, racing
from tests.bundles import contents, inputs
from tests.sdk.test_device import PC, facts, scripted

X86 = profiles.find("x86-cpu")
FEEDS = [{"x": x} for x in inputs(8)]
BEFORE, AFTER = {"model.onnx": b"before"}, {"model.onnx": b"after", "weights.bin": b"weights"}
TIMES = {"pairs_ns": [[2_000_000, 1_000_000]] * 20, "warmup": 5, "before": {"provider": "A"}, "after": {"provider": "B"}, "threads": 1, "onnxruntime": "1.20.0"}


def files(**settings: Any) -> dict[str, bytes]:
    return {name: data for name, data in contents(**settings).files.items() if name in ("model.onnx", "weights.bin")}


def ended(result: Any = None, **more: Any) -> dict[str, Any]:
    return {"state": "done", "stage": "race", "result": result, "error": None, **more}


def test_what_comes_back_is_what_a_comparison_here_would_tell() -> None:
    pi, transport = scripted({"missing": []}, {"job": "1"}, ended(TIMES))
    raced = Racer(pi, PC, X86, FEEDS).race(BEFORE, AFTER, limit_s=2)
    assert (raced.before_ms, raced.after_ms, raced.speedup, raced.low, raced.high, raced.runs, raced.warmup) == (2, 1, 2, 2, 2, 20, 5)
    assert raced.faster and raced.providers == ("A", "B")
    assert raced.to_dict()["threads"] == 1 and raced.to_dict()["host"] == "pi"
    assert [argv[4] for argv in transport.asked] == ["missing", "race", "job"]
    assert transport.asked[2][-2:] == ["--wait", "20"]  # no question disturbs the measurement


def test_an_agent_that_knows_no_questions_that_come_together_is_not_believed() -> None:
    pi, _ = scripted({"missing": []}, {"job": "1"}, ended({**TIMES, "together": 8}), {"missing": []}, {"job": "2"}, ended(TIMES))
    racer = Racer(pi, PC, X86, FEEDS)
    assert racer.race(BEFORE, AFTER, limit_s=2, together=8).speedup == 2
    with pytest.raises(DeviceError, match="runs no questions together"):
        racer.race(BEFORE, AFTER, limit_s=2, together=8)


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [("after", ModelError, "the second of two models"), (None, ModelError, "one of two models"), ("before", DeviceError, "the first of two models")],
)
def test_a_model_that_does_not_run_there(model: str | None, kind: type[Exception], words: str) -> None:
    pi, _ = scripted({"missing": []}, {"job": "1"}, ended({"failed": {"model": model, "message": "was killed by SIGSEGV", "hint": "look"}}))
    with pytest.raises(kind, match=rf"`pi` cannot run {words}: was killed by SIGSEGV") as caught:
        Racer(pi, PC, X86, FEEDS).race(BEFORE, AFTER, limit_s=2)
    assert caught.value.hint == "look"  # type: ignore[attr-defined]  # ours have one


@pytest.mark.parametrize("pairs", [[], [[0, 1]], [[1]], [[1.5, "x"]], [[1, 1]] * 1001])
def test_times_that_make_no_sense(pairs: Any) -> None:
    pi, _ = scripted({"missing": []}, {"job": "1"}, ended({**TIMES, "pairs_ns": pairs}))
    with pytest.raises(DeviceError, match="makes no sense"):
        Racer(pi, PC, X86, FEEDS).race(BEFORE, AFTER, limit_s=2)


def test_an_agent_that_was_restarted_is_sent_everything_again() -> None:
    lost = {"error": {"message": "there is no job '1'; the agent may have been restarted"}}
    model = {"digest": digest_of(b"after"), "offset": 2}
    pi, transport = scripted({"missing": []}, {"job": "1"}, lost, {"missing": [model]}, {}, {"job": "2"}, ended(TIMES))
    racer = Racer(pi, PC, X86, FEEDS)
    racer.race(BEFORE, AFTER, limit_s=2)
    assert transport.asked[4][4:] == ["receive", "--race", racer.session]


def test_a_device_of_another_kind_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    pi, transport = scripted(PC.to_dict())
    monkeypatch.setattr(race.device, "connect", lambda _: pi)
    with pytest.raises(Refused, match=r"`pi` \(x86_64\) is no NVIDIA Jetson: its speed says nothing about one") as caught, racing("pi", jetson(), FEEDS):
        pass
    assert "package for `x86-cpu`" in caught.value.hint
    assert len(transport.asked) == 1
    transport.says = [facts(PC, architecture="aarch64", files=["/etc/nv_tegra_release"], board="NVIDIA Jetson Orin Nano", onnxruntime=None).to_dict()]
    with pytest.raises(Refused, match="wants its vendor's"), racing("pi", jetson(), FEEDS):
        pass


def jetson() -> profiles.Profile:
    return profiles.find("jetson")


def test_so_many_feeds_travel_as_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(count: int) -> list[str]:
        with np.load(io.BytesIO(race.packed([{"a": np.ones(4), "file": np.array(["ü"], object)}] * count, ["a", "file"])), allow_pickle=False) as archive:
            return list(archive.files)

    assert sent(2) == ["0.0", "0.1", "1.0", "1.1"]
    assert len(sent(300)) == 2 * race.MOST_FEEDS
    monkeypatch.setattr(race, "MOST_FEED_BYTES", 100)
    assert len(sent(10)) == 2 * 2
    monkeypatch.setattr(race, "MOST_FEED_BYTES", 1)
    assert len(sent(10)) == 2


# This machine, for real


@pytest.fixture
def agent_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "agent"
    monkeypatch.setenv("EDGE_AGENT_HOME", str(home))
    yield home
    if (home / "bin").exists():
        with device.connect("local") as here:
            here.ask("stop")


@pytest.mark.e2e
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the profile is x86-cpu")
def test_local_is_a_device_to_race_on(agent_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Device.put
    sent: list[str] = []

    def counted(self: Device, blobs: Any, *rest: Any, **options: Any) -> None:
        sent.extend(blob.digest for blob, _ in blobs)
        put(self, blobs, *rest, **options)

    monkeypatch.setattr(Device, "put", counted)
    small, other = files(width=600), files(width=600, seed=1)
    stages: list[str] = []
    with racing("local", X86, [{"x": x} for x in inputs(600)], lambda stage, *_: stages.append(stage)) as racer:
        raced = racer.race(small, other, limit_s=0.5)
        assert raced.low <= raced.speedup <= raced.high and raced.runs >= 5
        assert raced.providers == ("CPUExecutionProvider",) * 2 and raced.device
        assert len(sent) == len({*small.values(), *other.values()}) + 1
        racer.race(other, small, limit_s=0.1)
        with pytest.raises(ModelError, match="cannot open the model"):
            racer.race(small, {"model.onnx": b"\x08\x08\x3a\x00"}, limit_s=0.1)
        assert len(sent) == len({*small.values(), *other.values()}) + 2
        assert racer.race(small, other, limit_s=0.1).runs >= 5  # a broken one costs the next nothing
    assert list((agent_home / "races").iterdir()) == []
    assert list(dict.fromkeys(stages)) == ["agent", "start", "send candidates"]
