"""Bundles that wait on a device for a word, or for their time; and what stays there and why."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import Agent, linear, make, wait_until

from edge_agent import connect, staging
from edge_agent.blobs import StoreError
from edge_agent.client import ClientError
from edge_agent.staging import Due, Later, Staging, Waiting

ONES = np.ones((1, 4), np.float32)
ONE = Waiting("ocr", "sha256:" + "1" * 64, 3, {"retry": True})
OTHER = Waiting("det", "sha256:" + "2" * 64, 1, {})


def answered(agent: Agent) -> float:
    with connect("toy", home=agent.home) as model:
        return float(model(ONES)["y"][0, 0])


@pytest.mark.e2e
def test_what_is_staged_is_tried_waits_outlives_restarts_and_collecting_and_becomes_active_by_its_name(agent: Agent, tmp_path: Path) -> None:
    first, second = make(tmp_path / "1", linear(1)), make(tmp_path / "2", linear(2), release=2)
    assert agent.activate(first)["state"] == "done"
    done = agent.activate(second, stage=True)
    assert (done["state"], done["result"]["outcome"], done["result"]["at"]) == ("done", "staged", None), done
    assert done["result"]["trial"]["worst"]["difference"] == 0
    digest = done["result"]["digest"]
    assert (agent.model("toy")["release"], answered(agent)) == ("1", 4)
    # Two more of another name come and go, and with each what nothing needs is collected.
    for release in (1, 2):
        assert agent.activate(make(tmp_path / f"other{release}", linear(release), name="other", release=release))["state"] == "done"
    agent.stop()
    agent.start()
    wait_until(lambda: agent.model("toy")["state"] == "active")
    status = agent.ask("GET", "/edge/status")
    assert status["staged"] == [{"name": "toy", "release": 2, "digest": digest, "signer": None, "at": None, "error": None}]
    assert [(one["name"], one["why"], one["release"]) for one in status["store"]["kept"]] == [
        ("other", "active", "2"),
        ("other", "previous", "1"),
        ("toy", "active", "1"),
        ("toy", "staged", "2"),
    ]
    assert status["store"]["keep"] == 2
    shown = agent.verb("activate", "toy")  # the verb starts the job
    assert agent.job(shown)["result"]["outcome"] == "active"
    assert answered(agent) == 8
    status = agent.ask("GET", "/edge/status")
    assert status["staged"] == []
    assert [(one["why"], one["release"]) for one in status["store"]["kept"] if one["name"] == "toy"] == [("active", "2"), ("previous", "1")]


@pytest.mark.e2e
def test_what_fails_its_trial_is_not_staged_and_a_newer_one_takes_the_place(agent: Agent, tmp_path: Path) -> None:
    wrong = make(tmp_path / "wrong", linear(1), answers=[{"y": np.zeros((2, 3), np.float32)}, {"y": np.zeros((1, 3), np.float32)}])
    assert "golden answers" in agent.activate(wrong, stage=True)["error"]["message"]
    assert agent.ask("GET", "/edge/status")["staged"] == []
    for release in (1, 2):
        assert agent.activate(make(tmp_path / str(release), linear(release), release=release), stage=True)["state"] == "done"
    status = agent.ask("GET", "/edge/status")
    assert [(one["why"], one["release"]) for one in status["store"]["kept"]] == [("staged", "2")]
    assert len(list((agent.home / "deployments" / "toy").iterdir())) == 1
    assert agent.verb("unstage", "toy")["release"] == 2
    assert "nothing that is called 'toy' is staged" in agent.verb("activate", "toy", code=1)["error"]["message"]
    assert "nothing that is called" in agent.verb("activate", "toy", "--in", "60", code=1)["error"]["message"]


@pytest.mark.e2e
def test_its_time_comes_also_after_a_restart_and_only_then(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    done = agent.activate(make(tmp_path / "2", linear(2), release=2), stage=True, in_s=3600)
    assert done["result"]["at"]
    agent.stop()
    agent.start()
    wait_until(lambda: agent.model("toy")["state"] == "active")
    assert agent.ask("GET", "/edge/status")["staged"][0]["at"]
    assert answered(agent) == 4
    told = agent.verb("activate", "toy", "--in", "1")
    assert told["at"]
    wait_until(lambda: agent.model("toy")["release"] == "2" and not agent.ask("GET", "/edge/status")["staged"])
    assert [line["event"] for line in agent.journal() if line["event"] in ("staged", "scheduled", "activated")] == [
        "activated",
        "staged",
        "scheduled",
        "activated",
    ]


@pytest.mark.e2e
def test_one_whose_time_passed_while_the_device_was_off_comes_when_it_is_on(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "2", linear(2), release=2), stage=True, in_s=3600)["state"] == "done"
    agent.stop()
    path = agent.home / "staged" / "toy.json"
    document = json.loads(path.read_bytes())
    document["due"] = {"boot": "another start of the device", "up": 1e9, "wall": time.time() - 60}
    path.write_text(json.dumps(document))
    agent.start()
    wait_until(lambda: (agent.model("toy") or {}).get("release") == "2")


@pytest.mark.e2e
def test_one_that_fails_when_its_time_has_come_says_so_and_stays(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    staged = agent.activate(make(tmp_path / "2", linear(2), release=2), stage=True)["result"]
    assert agent.activate(make(tmp_path / "3", linear(3), release=3))["state"] == "done"  # meanwhile a newer one came
    agent.verb("activate", "toy", "--in", "0")
    (waiting,) = wait_until(lambda: [one for one in agent.ask("GET", "/edge/status")["staged"] if one["error"]])
    assert "release 2 of toy is older than 3" in waiting["error"]
    assert (waiting["at"], waiting["digest"]) == (None, staged["digest"])
    assert answered(agent) == 12
    assert agent.activate(tmp_path / "2", allow_downgrade=True)["state"] == "done"
    assert agent.ask("GET", "/edge/status")["staged"] == []


@pytest.mark.e2e
@pytest.mark.parametrize("document", [{"what": "toy"}, {"what": "toy", "in_s": -1}, {"what": "toy", "in_s": True}, {"what": "toy", "in_s": 1, "cancel": True}])
def test_what_is_no_time_is_refused(shared: Agent, document: dict[str, object]) -> None:
    with pytest.raises(ClientError, match=r"in_s"):
        shared.ask("POST", "/edge/staged", document)


def test_it_is_found_by_name_by_digest_and_by_the_beginning_of_one(tmp_path: Path) -> None:
    known = Staging(tmp_path, lambda _: None)
    known.put(ONE)
    known.put(OTHER)
    for what in ("ocr", ONE.digest, ONE.digest[:20], "1" * 12):
        assert known.find(what) == ONE
    assert known.find("sha256:" + "3" * 64) is None
    for what in ("text", "3" * 12, "../det", ""):
        with pytest.raises(StoreError):
            known.find(what)


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    known = Staging(tmp_path, lambda _: None)
    known.put(ONE)
    good = json.loads((tmp_path / "staged" / "ocr.json").read_bytes())
    for damaged in (b"", b"{", b"[]", b"{}", json.dumps({**good, "digest": "sha256:../../x"}).encode(), json.dumps({**good, "name": "../x"}).encode()):
        (tmp_path / "staged" / "ocr.json").write_bytes(damaged)
        assert known.all() == []
    (tmp_path / "staged" / "ocr.json").write_text(json.dumps({**good, "of a newer agent": 1}))
    assert known.all() == [ONE]


def test_setting_the_clock_moves_nothing_while_the_device_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = staging.due(100)
    monkeypatch.setattr(staging.time, "time", lambda: 0.0)  # 1970
    assert 99 < soon.left_s() <= 100
    assert replace(soon, boot="an earlier start").left_s() > 1e9


def test_one_that_takes_the_device_down_is_tried_three_times(tmp_path: Path) -> None:
    """Each start of the agent begins anew with what the file says; the activation never returns."""
    tried: list[int] = []

    def down(waiting: Waiting) -> None:
        tried.append(waiting.tries)
        time.sleep(1000)

    known = Staging(tmp_path, down)
    known.put(replace(ONE, due=Due("", 0, 0)))
    for start in range(3):
        Staging(tmp_path, down).start()
        wait_until(lambda start=start: len(tried) == start + 1)
    Staging(tmp_path, down).start()
    wait_until(lambda: known.all()[0].error)
    (waiting,) = known.all()
    assert tried == [0, 1, 2]
    assert "went down 3 times" in str(waiting.error)
    assert waiting.due is None


def test_while_another_deployment_is_under_way_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_AGAIN_S", 0.05)
    says = [Later("busy"), Later("busy"), None]

    def activate(waiting: Waiting) -> None:
        said = says.pop(0)
        if said:
            raise said
        known.forget(waiting.name, waiting.digest)

    known = Staging(tmp_path, activate)
    known.start()
    known.put(replace(ONE, due=staging.due(0)))
    wait_until(lambda: not known.all())
    assert says == []
    known.close()
