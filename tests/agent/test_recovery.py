"""An agent that starts finds what the last one was at, and says what it did about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_store import fill
from toys import linear, make

from edge_agent import recovery
from edge_agent.journal import Journal
from edge_agent.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With two versions of `toy`, the second active."""
    store = Store(tmp_path / "home")
    for release in (1, 2):
        store.swap("toy", store.lay_out(*fill(store, make(tmp_path / str(release), linear(release), release=release))).folder)
    return store


def swapping(store: Store, journal: Journal, third: Path) -> tuple[Path, Path]:
    """As `deployments` does it, up to the links; what was active and previous."""
    active, previous = store.active("toy"), store.previous("toy")
    assert active is not None and previous is not None
    folder = store.lay_out(*fill(store, make(third, linear(3), release=3))).folder
    journal.promise("swapping", name="toy", digest="sha256:3", what="activate", before=active.name, previous=previous.name)
    store.swap("toy", folder)
    return active, previous


def recover(store: Store, journal: Journal) -> recovery.Told:
    return recovery.recover(store, journal, lambda _: None)


def events(journal: Journal) -> list[str]:
    return [entry["event"] for entry in journal.entries()]


def test_a_swap_that_had_not_answered_is_undone(store: Store, tmp_path: Path) -> None:
    journal = Journal(store.home)
    before = swapping(store, journal, tmp_path / "3")
    recover(store, journal)
    assert (store.active("toy"), store.previous("toy")) == before
    assert events(journal) == ["swapping", "undone"]
    recover(store, journal)
    assert events(journal) == ["swapping", "undone"]


@pytest.mark.parametrize("end", ["activated", "swapped back"])
def test_a_swap_that_has_ended_is_left_alone(store: Store, tmp_path: Path, end: str) -> None:
    journal = Journal(store.home)
    swapping(store, journal, tmp_path / "3")
    journal.append(end, name="toy", digest="sha256:3")
    after = store.active("toy")
    recover(store, journal)
    assert store.active("toy") == after


def test_the_first_version_of_a_model_is_undone_to_none(store: Store, tmp_path: Path) -> None:
    journal = Journal(store.home)
    journal.promise("swapping", name="new", digest="sha256:1", what="activate", before=None, previous=None)
    store.swap("new", store.lay_out(*fill(store, make(tmp_path / "new", name="new"))).folder)
    recover(store, journal)
    assert store.names() == ["toy"]


def test_what_is_gone_is_not_gone_back_to(store: Store, tmp_path: Path) -> None:
    journal = Journal(store.home)
    journal.promise("swapping", name="toy", digest="sha256:3", what="activate", before="0" * 16, previous=None)
    active = store.active("toy")
    recover(store, journal)
    assert store.active("toy") == active


def test_a_removal_is_finished(store: Store) -> None:
    journal = Journal(store.home)
    journal.append("removing", name="toy")
    (store.home / "active" / "toy").unlink()  # so far it came
    gone: list[str] = []
    recovery.recover(store, journal, gone.append)
    assert gone == ["toy"]
    assert store.usage()["blobs"] == 0
    assert not (store.home / "deployments" / "toy").exists()
    assert events(journal) == ["removing", "removed"]


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("started")
    with journal.path.open("ab") as stream:
        stream.write(b'{"time": "2026-01-01", "event": "swapp')
    journal.append("activated", name="toy", digest="sha256:1")
    assert events(journal) == ["started", "activated"]
    assert recovery.read(journal.entries()).on_probation == {"toy": "sha256:1"}


def test_noise_of_a_dying_disk_is_no_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_bytes(b"\0" * 512 + b'\n[1]\n"x"\n{"event": 3}\n{"event": "activated", "name": 7}\n' + b"[" * 5000 + b"\n")
    journal.append("activated", name="toy", digest="sha256:1")
    told = recovery.read(journal.entries())
    assert (told.under_way, told.on_probation) == ({}, {"toy": "sha256:1"})


def test_the_journal_is_bounded_and_what_is_under_way_is_found_in_the_older_file(store: Store, tmp_path: Path) -> None:
    journal = Journal(store.home)
    before = swapping(store, journal, tmp_path / "3")
    with journal.path.open("ab") as stream:
        for number in range(45000):
            stream.write(json.dumps({"time": "2026-01-01T00:00:00+00:00", "event": "worker died", "name": "other", "cause": f"{number}" * 8}).encode() + b"\n")
    journal.append("started")
    assert journal.path.stat().st_size < 1000
    recover(store, journal)
    assert (store.active("toy"), store.previous("toy")) == before


def test_what_was_half_written_is_swept(store: Store) -> None:
    active = store.active("toy")
    assert active is not None
    for path in (store.home / ".releases.json.12.34", active / ".deployment.json.1.2", store.home / "active" / ".toy"):
        path.write_text("half")
    (active.parent / ".0123456789abcdef" / "cache").mkdir(parents=True)
    before = sorted(path for path in store.home.rglob("*") if not path.relative_to(store.home).as_posix().count("/."))
    recover(store, Journal(store.home))
    assert list(store.home.rglob(".*")) == []
    assert store.active("toy") == active
    assert (store.home / "active" / "toy") in before


def test_deaths_within_a_probation_are_counted_and_ends_in_peace_are_not() -> None:
    activated = {"event": "activated", "name": "toy", "digest": "sha256:1"}
    started, stopped = {"event": "started"}, {"event": "stopped"}
    told = recovery.read([started, activated, stopped, started, started, started])
    assert (told.on_probation, told.deaths) == ({"toy": "sha256:1"}, {"toy": 2})
    assert recovery.read([started, activated, {"event": "proven", "name": "toy"}, started]).on_probation == {}
    assert recovery.read([started, started, activated]).deaths == {}


def test_a_deployment_whose_blobs_were_sent_again_is_mended_and_never_gone(store: Store, tmp_path: Path) -> None:
    active = store.active("toy")
    assert active is not None
    opened = store.opened(active)
    manifest = store.manifest(opened.digest)
    (active / "model.onnx").write_bytes(b"rotten")
    for blob in manifest.blobs:
        if blob.file == "model.onnx":
            store.path(blob.digest).unlink()
    (active / "deployment.json").write_text("{}")
    fill(store, tmp_path / "2")
    store.lay_out(manifest, opened.description)
    store.verify_deployment(active)
    assert (active / "deployment.json").exists()  # how it was activated still holds
