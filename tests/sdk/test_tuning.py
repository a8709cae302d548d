"""What `tune` tries, chooses, remembers and writes."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.bundle import Layout
from edgesdk import comparison, graph, knobs, profiles, remote, repackaging, tuning, verification
from edgesdk.cli import app
from edgesdk.errors import ModelError, ProfileError, ProjectError, ResultError
from edgesdk.ledger import Ledger
from edgesdk.profiles import Profile
from edgesdk.race import Raced
from edgesdk.tuning import Search, tune
from tests.bundles import contents, inputs, write_bundle
from tests.sdk.small_models import DATA, build, node

X86 = profiles.find("x86-cpu")
MODEL = DATA / "resnet8_mnist.onnx"


def raced(speedup: float) -> Raced:
    told = {"host": "", "device": "toy", "nodes": ("", ""), "threads": 4, "threads_after": 2, "onnxruntime": "1", "governor": None, "temperature_c": None}
    return Raced(before_ms=speedup, after_ms=1.0, speedup=speedup, low=speedup, high=speedup, runs=5, warmup=5, providers=("a", "b"), **told)


def speed(profile: Profile, factors: dict[str, float]) -> float:
    """Of a device on which each of these settings makes so much."""
    runtime = {key: value for key, value in profile.runtime.model_dump().items() if value != getattr(X86.runtime, key)}
    return math.prod(factors.get(f"{key}={value}", 1.0) for key, value in runtime.items())


def searched(tmp_path: Path, factors: dict[str, float], *, noise: float = 0.002, limit_s: float = 60, cores: int = 4) -> dict[str, Any]:
    drawn = random.Random(1)

    def measure(first: Profile, second: Profile, _: int) -> Raced:
        if "none" in (first.runtime.graph_optimization, second.runtime.graph_optimization):
            raise ModelError("no such luck")
        other = second if first == X86 else first
        found = raced(speed(other, factors) * math.exp(drawn.gauss(0, noise)))
        return found if first == X86 else comparison.turned(found)

    with Ledger.open(tmp_path / "l.jsonl", {}) as ledger:
        search = Search(X86, cores, measure, ledger, time.monotonic(), limit_s)
        best = search.best(knobs.knobs_of(X86, cores=cores, providers=["CPUExecutionProvider"]))
        return search.told(best, search.confirmed(best) if best else None)


def test_what_is_faster_together_is_found_and_confirmed(tmp_path: Path) -> None:
    found = searched(tmp_path, {"intra_op_threads=2": 1.2, "intra_op_threads=1": 1.1, "memory_arena=False": 1.1, "allow_spinning=False": 0.9})
    assert found["settings"] == {"intra_op_threads": 2, "memory_arena": False}
    assert (found["verdict"], found["stopped"]) == ("faster", "decided")
    assert found["low"] > 1.25
    assert found["threads"] == 2
    notes = {knobs.in_words(one.settings): one.note for one in found["tried"]}
    assert notes["intra_op_threads 2, memory_arena off"] == "chosen"
    assert notes["allow_spinning off"] == "not faster by itself"
    assert notes["intra_op_threads 1"] == "another value was faster"
    assert notes["graph_optimization none"] == "does not run: no such luck"


@pytest.mark.parametrize("damage", ["measured", {"speedup": 1.2}, 5, None])
def test_what_an_edgesdk_of_another_version_remembered_is_measured_again(tmp_path: Path, damage: Any) -> None:
    factors = {"memory_arena=False": 1.2}
    searched(tmp_path, factors)
    ledger = tmp_path / "l.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    ledger.write_text("".join(json.dumps({**line, "measured": damage} if "phase" in line else line) + "\n" for line in lines))
    again = searched(tmp_path, factors)
    assert again["settings"] == {"memory_arena": False}
    assert again["measured"] == len(lines) - 1


def test_what_only_looked_faster_is_not_chosen(tmp_path: Path) -> None:
    found = searched(tmp_path, {}, noise=0.05)
    assert found["candidate"]
    assert found["settings"] == {}
    assert found["verdict"] != "faster"
    assert found["threads"] == 4


def test_where_nothing_is_faster_the_profile_stays(tmp_path: Path) -> None:
    slow = {f"intra_op_threads={count}": 0.5 for count in (1, 2)} | {"memory_arena=False": 0.9, "allow_spinning=False": 0.8, "execution=parallel": 0.5}
    slow |= {"graph_optimization=basic": 0.7, "graph_optimization=extended": 0.7}
    found = searched(tmp_path, slow)
    assert (found["settings"], found["candidate"], found["stopped"], found["verdict"]) == ({}, {}, "nothing looked faster", "no difference seen")


def test_chance_is_seldom_chosen(tmp_path: Path) -> None:
    """Twenty devices on which no setting makes a difference."""
    chosen = 0
    for seed in range(20):
        drawn = random.Random(seed)
        with Ledger.open(tmp_path / f"{seed}.jsonl", {}) as ledger:
            search = Search(X86, 4, lambda *_, drawn=drawn: raced(math.exp(drawn.gauss(0, 0.03))), ledger, time.monotonic(), 60)  # type: ignore[misc]
            best = search.best(knobs.knobs_of(X86, cores=4, providers=[]))
            chosen += bool(best and search.told(best, search.confirmed(best))["settings"])
    assert chosen <= 2


def test_without_time_it_says_what_it_has(tmp_path: Path) -> None:
    def measure(*_: object) -> Raced:
        time.sleep(0.02)
        return raced(1.1)

    with Ledger.open(tmp_path / "l.jsonl", {}) as ledger:
        search = Search(X86, 4, measure, ledger, time.monotonic(), 0.3)
        best = search.best(knobs.knobs_of(X86, cores=4, providers=[]))
        assert search.cut_short
        assert best is not None
        found = search.told(best, search.confirmed(best))
    assert found["restarts"] >= 5
    assert "not measured: the time was up" in {one.note for one in found["tried"]}


def test_one_thread_does_not_wait_for_itself() -> None:
    assert knobs.alike(X86, {"intra_op_threads": 1, "allow_spinning": False}, cores=4) == {"intra_op_threads": 1}
    assert knobs.alike(X86, {"intra_op_threads": 2, "allow_spinning": False}, cores=4) == {"intra_op_threads": 2, "allow_spinning": False}


def test_a_knob_never_turns_to_where_it_is() -> None:
    lean = knobs.applied(X86, {"intra_op_threads": 2, "execution": "parallel", "inter_op_threads": 2, "graph_optimization": "basic"})
    for profile in (X86, lean):
        for knob in knobs.knobs_of(profile, cores=4, providers=["CPUExecutionProvider"]):
            assert all(knobs.applied(profile, change) != profile for change in knob.changes)
    assert {"execution": "sequential", "inter_op_threads": 1} in [change for knob in knobs.knobs_of(lean, cores=4, providers=[]) for change in knob.changes]
    assert [knob.name for knob in knobs.knobs_of(X86, cores=1, providers=[])] == ["arena", "graph"]


def test_options_are_those_of_the_provider_that_the_device_has() -> None:
    jetson = profiles.find("jetson-orin")
    names = {key for knob in knobs.knobs_of(jetson, cores=4, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]) for c in knob.changes for key in c}
    assert "CUDAExecutionProvider:cudnn_conv_algo_search" in names
    assert not any(name.startswith("Tensorrt") for name in names)
    changed = knobs.applied(jetson, {"TensorrtExecutionProvider:trt_builder_optimization_level": "5"})
    assert changed.providers[0].options["trt_builder_optimization_level"] == "5"
    assert changed.providers[0].options["trt_fp16_enable"] == "1"
    assert changed.providers[1:] == jetson.providers[1:]


def test_a_line_that_power_cut_off_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with Ledger.open(path, {"model": "m"}) as ledger:
        ledger.add("search", "a", 0, {"x": 1})
        ledger.add("search", "a", 1, {"x": 2})
        with pytest.raises(ResultError, match="by another process"), Ledger.open(path, {}):
            pass
    path.write_bytes(path.read_bytes()[:-5])
    with Ledger.open(path, {"model": "m"}) as ledger:
        assert (ledger.get("search", "a", 0), ledger.get("search", "a", 1), ledger.found) == ({"x": 1}, None, 1)
        ledger.add("search", "a", 1, {"x": 3})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"schema": 1, "about": {"model": "m"}}
    assert [line["measured"]["x"] for line in lines[1:]] == [1, 3]
    with Ledger.open(path, {}, afresh=True) as ledger:
        assert ledger.found == 0
    assert len(path.read_text().splitlines()) == 1


_CUT = """
import math, os, random, sys, time
from pathlib import Path
from edgesdk import race, tuning, profiles
from tests.sdk.test_tuning import raced, speed, X86

asked = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
add = tuning.Ledger.add

def measured(self, before, after, *, limit_s, profiles, together):
    time.sleep(0.02)
    default, other = profiles if profiles[0] == X86 else profiles[::-1]
    found = speed(other, {"memory_arena=False": 1.1, "intra_op_threads=1": 1.05}) * math.exp(random.gauss(0, 0.01))
    return raced(found if profiles[0] == X86 else 1 / found)

def added(self, phase, what, index, found):
    os.write(asked, f"{phase} {what} {index}\\n".encode())
    return add(self, phase, what, index, found)

race.Here.race, tuning.Ledger.add = measured, added
found = tuning.tune(Path(sys.argv[2]), X86, limit_s=60)
print(found.measured, found.remembered, found.settings)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_repeats_no_finished_measurement(tmp_path: Path) -> None:
    """Only the measurement itself is replaced, by one that takes 20 ms."""
    asked, drawn, kept = tmp_path / "asked", random.Random(7), set[str]()
    environment = {**os.environ, "EDGESDK_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    killed = 0
    for _ in range(40):
        before = asked.read_text().splitlines() if asked.exists() else []
        process = subprocess.Popen([sys.executable, "-c", _CUT, str(asked), str(MODEL)], env=environment, stdout=subprocess.PIPE, text=True)
        already, until = len(before), time.monotonic() + 60
        wanted = already + drawn.randrange(2, 16)
        while process.poll() is None and (len(asked.read_text().splitlines()) if asked.exists() else 0) < wanted and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(drawn.random() * 0.04)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        said, _ = process.communicate()
        now = asked.read_text().splitlines()[len(before) :]
        assert not kept & set(now), "what was on the disk was measured again"
        kept |= finished(tmp_path / "cache")
        if process.returncode == 0:
            break
    else:
        pytest.fail("it never came to an end")
    assert killed >= 3
    measured, remembered, settings = said.split(" ", 2)
    assert int(measured) + int(remembered) == len(kept)
    assert "'memory_arena': False" in settings
    again = subprocess.run([sys.executable, "-c", _CUT, str(asked), str(MODEL)], env=environment, capture_output=True, text=True, check=True).stdout
    assert again.split(" ", 2) == ["0", str(len(kept)), settings]


def finished(cache: Path) -> set[str]:
    """Whole lines of the one file."""
    found = [path.read_bytes() for path in (cache / "tuning").glob("*.jsonl")]
    assert len(found) == 1, "the same model, device and question, and so the same file"
    lines = [json.loads(line) for line in found[0][: found[0].rfind(b"\n") + 1].splitlines()]
    keys = [f"{line['phase']} {line['what']} {line['index']}" for line in lines if "phase" in line]
    assert len(keys) == len(set(keys))
    return set(keys)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Measurements on a device that is made up."""
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))

    def with_factors(factors: dict[str, float]) -> None:
        drawn = random.Random(0)

        def measured(_self: object, *_: object, limit_s: float, profiles: tuple[Profile, Profile], together: int) -> Raced:
            first, second = (speed(each, factors) for each in profiles)
            return raced(second / first * math.exp(drawn.gauss(0, 0.001)))

        monkeypatch.setattr(tuning.race.Here, "race", measured)

    return with_factors


def test_of_a_bundle_there_is_a_new_release_with_the_choice_in_its_profile(tmp_path: Path, quick: Callable[[dict[str, float]], None]) -> None:
    quick({"memory_arena=False": 1.3})
    old, new = write_bundle(tmp_path / "toy", release=3), tmp_path / "tuned.tar"
    found = tune(old, output=new)
    assert (found.settings, found.release, found.written) == ({"memory_arena": False}, 3, str(new))
    (verified,) = verification.verify(new)
    assert (verified["name"], verified["release"]) == ("toy", 4)
    with Layout.open(new) as layout:
        (manifest,) = layout.manifests().values()
        profile = json.loads(layout.blob(manifest.layer("profile.json").digest))
        assert profile["runtime"]["memory_arena"] is False
        evidence = layout.evidence(manifest)["tuned"]
        assert evidence["settings"] == {"memory_arena": False}
        assert any(one["note"] == "chosen" for one in evidence["tried"])
        digest = manifest.digest
    tune(old, output=new)  # the same again is the same release
    with Layout.open(new) as layout:
        assert next(iter(layout.manifests().values())).digest == digest
    other = write_bundle(tmp_path / "other", name="other")
    with pytest.raises(ProjectError, match="holds `other`, not `toy`"):
        tune(old, output=other)


def test_what_answers_otherwise_is_not_chosen_however_fast(tmp_path: Path, quick: Callable[[dict[str, float]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    quick({"memory_arena=False": 1.3, "intra_op_threads=1": 1.1})
    asked = []

    def difference(_: Path, run: Callable[[Any], Any]) -> str | None:
        asked.append(run({"x": inputs(8)[0]}))
        return "the output `y` at [0, 0]: expected 1, got 2" if len(asked) == 1 else None

    monkeypatch.setattr(tuning.repackaging, "difference", difference)
    found = tune(write_bundle(tmp_path / "toy"))
    assert found.settings and found.settings != found.tried[0].settings
    assert found.tried[0].note == "other answers than the golden ones: the output `y` at [0, 0]: expected 1, got 2"
    assert "y" in asked[0]


def test_golden_answers_are_compared_in_a_tuned_session(tmp_path: Path) -> None:
    good, wrong = write_bundle(tmp_path / "good"), write_bundle(tmp_path / "wrong", wrong=True)
    with remote.here(X86, {"model.onnx": contents().files["model.onnx"]}) as here:
        assert repackaging.difference(good, here.run) is None
        assert "the output `y`" in (repackaging.difference(wrong, here.run) or "")
        assert repackaging.difference(MODEL, here.run) is None


@pytest.fixture
def batching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], list[tuple[int, int, int]]]:
    """A device on which so many rows take ``fixed_ms`` + rows * ``each_ms``; what is asked of it: both batches, and how many come together."""
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[int, int, int]] = []

    def with_times(fixed_ms: float, each_ms: float) -> list[tuple[int, int, int]]:
        drawn = random.Random(0)

        def measured(_self: object, *_: object, limit_s: float, profiles: tuple[Profile, Profile], together: int) -> Raced:
            first, second = rows = [min(each.runtime.max_batch, together) for each in profiles]
            asked.append((first, second, together))
            before, after = (together / count * (fixed_ms + count * each_ms) for count in rows)
            return raced(before / after * math.exp(drawn.gauss(0, 0.003)))

        monkeypatch.setattr(tuning.race.Here, "race", measured)
        return asked

    return with_times


def test_batches_grow_as_long_as_the_mean_question_is_answered_sooner(tmp_path: Path, batching: Callable[..., Any]) -> None:
    asked = batching(3.0, 1.0)  # 1: 4 ms, 2: 5 < 1.5 * 4, 4: 7 < 1.5 * 5, 8: 11 > 1.5 * 7
    found = tune(write_bundle(tmp_path / "toy"), output=tmp_path / "tuned.tar")
    assert found.settings == {"max_batch": 4}
    assert [(each.rows, each.verdict) for each in found.batches] == [(2, "faster"), (4, "faster"), (8, "slower")]
    assert found.batches[0].speedup == pytest.approx(0.75 * 8 / 5, rel=0.01)
    assert {(*sorted(both), together) for *both, together in asked if together > 1} == {(1, 2, 2), (2, 4, 4), (4, 8, 8)}  # which is opened first is drawn
    with Layout.open(tmp_path / "tuned.tar") as layout:
        (manifest,) = layout.manifests().values()
        assert json.loads(layout.blob(manifest.layer("profile.json").digest))["runtime"]["max_batch"] == 4
    count = len(asked)
    again = tune(write_bundle(tmp_path / "toy"))
    assert [(each.rows, each.verdict, each.restarts) for each in again.batches] == [(each.rows, each.verdict, each.restarts) for each in found.batches]
    assert (len(asked), again.measured) == (count, 0), "what was measured is remembered"


def test_where_rows_cost_as_much_together_as_alone_questions_run_one_by_one(tmp_path: Path, batching: Callable[..., Any]) -> None:
    batching(0.1, 1.0)
    found = tune(write_bundle(tmp_path / "toy"))
    assert ([(each.rows, each.verdict) for each in found.batches], found.settings) == ([(2, "slower")], {})
    mine = X86.model_copy(update={"runtime": X86.runtime.model_copy(update={"max_batch": 8})})
    (tmp_path / "free.onnx").write_bytes(contents().files["model.onnx"])
    (note,) = [note for note in tune(tmp_path / "free.onnx", mine).notes if "max_batch" in note]
    assert note == "max_batch 8 is the profile's and stays; of 2 questions that come at once, 1 at a time are answered as soon"


def test_what_has_no_free_axis_is_not_batched(tmp_path: Path, batching: Callable[..., Any]) -> None:
    asked = batching(3.0, 1.0)
    graph.save_as(build([node("Relu", ["x"], ["y"])], inputs={"x": (1, 4)}, outputs={"y": (1, 4)}), tmp_path / "fixed.onnx")
    found = tune(tmp_path / "fixed.onnx", X86)
    assert (found.batches, found.notes) == ((), ("batches: the model's first axis is fixed",))
    assert all(together == 1 for _, _, together in asked)


def test_what_would_be_compiled_for_each_number_of_rows_is_not_batched(tmp_path: Path, batching: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = batching(3.0, 1.0)
    monkeypatch.setattr(tuning, "_ANY_SHAPE", ("CUDAExecutionProvider",))
    found = tune(write_bundle(tmp_path / "toy"))
    assert (found.batches, found.notes) == ((), ("batches: CPUExecutionProvider compiles for each number of rows",))
    assert all(together == 1 for _, _, together in asked)


def test_where_several_at_once_do_not_run_they_are_asked_one_by_one(tmp_path: Path, quick: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    quick({"memory_arena=False": 1.3})
    alone = tuning.race.Here.race

    def refused(self: Any, *models: Any, together: int, **more: Any) -> Raced:
        if together > 1:
            raise ModelError("no room for two")
        return alone(self, *models, together=together, **more)

    monkeypatch.setattr(tuning.race.Here, "race", refused)
    found = tune(write_bundle(tmp_path / "toy"))
    assert (found.settings, found.batches, found.notes) == ({"memory_arena": False}, (), ("batches: no room for two",))


def test_where_the_profile_stays_nothing_is_written(tmp_path: Path, quick: Callable[[dict[str, float]], None]) -> None:
    quick({})
    found = tune(write_bundle(tmp_path / "toy"), output=tmp_path / "new")
    assert (found.settings, found.written) == ({}, None)
    assert not (tmp_path / "new").exists()


def test_of_a_file_there_is_a_profile_that_extends_the_one_it_was_run_as(tmp_path: Path, quick: Callable[[dict[str, float]], None]) -> None:
    quick({"memory_arena=False": 1.3, "graph_optimization=extended": 1.2})
    found = tune(MODEL, X86, output=tmp_path / "fast.toml")
    assert found.settings == {"memory_arena": False, "graph_optimization": "extended"}
    fast = profiles.find(str(tmp_path / "fast.toml"))
    assert fast.runtime == knobs.applied(X86, found.settings).runtime
    assert fast.providers == X86.providers
    assert tomllib.loads((tmp_path / "fast.toml").read_text())["extends"] == "x86-cpu"
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.rows()[0]["settings"] == "memory_arena off, graph_optimization extended"


def test_options_of_providers_are_written_too(tmp_path: Path) -> None:
    jetson = profiles.find("jetson-orin")
    changed = knobs.applied(jetson, {"TensorrtExecutionProvider:trt_builder_optimization_level": "5"})
    text = tuning.repackaging.to_toml(jetson, changed, {"device": "a board", "speedup": 1.1, "low": 1.05, "high": 1.2, "settings": {"x": 1}})
    (tmp_path / "fast.toml").write_text(text)
    assert profiles.find(str(tmp_path / "fast.toml")).providers == changed.providers


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("fast.json", "is no name of a profile's file"),
        ("x86-cpu.toml", "cannot extend itself"),
        ("Fast!.toml", "is no name"),
        ("no/fast.toml", "there is no folder"),
        ("folder.toml", "is a folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_long_work(tmp_path: Path, output: str, words: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises((ProfileError, ProjectError), match=words):
        tune(MODEL, X86, output=tmp_path / output)


def test_a_profile_that_cannot_be_written_after_all_is_a_sentence(tmp_path: Path, quick: Callable[[dict[str, float]], None]) -> None:
    quick({"memory_arena=False": 1.3})
    found = tune(MODEL, X86)
    (tmp_path / "made-meanwhile.toml").mkdir()
    with pytest.raises(ProjectError, match="cannot be written"):
        repackaging.write(MODEL, tmp_path / "made-meanwhile.toml", X86, knobs.applied(X86, found.settings), found.to_dict(), None)


def test_a_profile_of_ones_own_has_to_lie_beside(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('title = "mine"\nextends = "x86-cpu"\n')
    (tmp_path / "sub").mkdir()
    with pytest.raises(ProfileError, match="which does not lie beside it"):
        tune(MODEL, profiles.find(str(tmp_path / "mine.toml")), output=tmp_path / "sub" / "fast.toml")


def test_a_bundle_brings_its_profile(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="is for `x86-cpu`, not for `arm-cpu`"):
        tune(write_bundle(tmp_path / "toy"), profiles.find("arm-cpu"))


def test_the_verb(tmp_path: Path, quick: Callable[[dict[str, float]], None]) -> None:
    quick({"memory_arena=False": 1.3})
    said = CliRunner().invoke(app, ["tune", str(MODEL), "-p", "x86-cpu", "-o", str(tmp_path / "fast.toml"), "--json"])
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)
    assert (told["kind"], told["schema"], told["settings"], told["written"]) == ("tune", 1, {"memory_arena": False}, str(tmp_path / "fast.toml"))
    assert told["tried"][0]["ms"] > 0
    assert len(list((tmp_path / "cache" / "tuning").glob("*.jsonl"))) == 1


def test_the_table_names_everything_that_was_tried(tmp_path: Path, quick: Callable[[dict[str, float]], None]) -> None:
    from edgesdk.cli.tuning import _tuned

    quick({"memory_arena=False": 1.3})
    text = _tuned(tune(MODEL, X86))
    assert "memory_arena off" in text and "chosen" in text and "times as fast" in text
    quick({"memory_arena=False": 0.3})
    assert "`x86-cpu` stays as it is" in _tuned(tune(MODEL, X86, afresh=True))


@pytest.mark.slow
def test_what_is_chosen_is_not_slower_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make bench` does this at length, and for the whole suite."""
    from tests.benchmarks import tuning as benchmark
    from tests.suite import SUITE

    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path))
    (row,) = benchmark.run([entry for entry in SUITE if entry.name == "bilstm"], X86, 8, 1)
    assert row.verdict != "slower"
    assert row.text.startswith("| bilstm |")


def test_why_nothing_runs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"nothing could be measured: does not run: .* wants TensorrtExecutionProvider"):
        tune(MODEL, profiles.find("jetson"), limit_s=1)
