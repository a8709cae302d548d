"""What a user does in a folder with a model and an edgesdk.toml, by the command line alone."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.bundle import Layout
from tests import digits

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    digits.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_AGENT_HOME", str(tmp_path / "agent"))
    yield tmp_path
    subprocess.run([sys.executable, "-m", "edge_agent", "stop"], check=True, capture_output=True)


def edgesdk(*arguments: str, exits: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "edgesdk.cli", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == exits, done.stderr
    return done


def test_a_bundle_for_another_board_is_refused_in_a_sentence_and_can_be_tried_here(folder: Path) -> None:
    (folder / "edgesdk.toml").write_text('name = "digits"\nevaluate = "evaluation.npz"\n')
    edgesdk("package", "--profile", "jetson")
    refused = edgesdk("deploy", "local", exits=1)
    assert "is no NVIDIA Jetson" in refused.stderr
    assert "edgesdk package --profile x86-" in refused.stderr or os.uname().machine != "x86_64"
    (told,) = json.loads(edgesdk("deploy", "local", "--as-profile", "jetson", "--json").stdout)
    assert told["outcome"] == "active"


def test_of_two_profiles_the_device_takes_its_own(folder: Path) -> None:
    own = "x86-cpu" if os.uname().machine == "x86_64" else "arm-cpu"
    (folder / "edgesdk.toml").write_text(f'name = "digits"\nprofiles = ["jetson", "{own}"]\n')
    edgesdk("package")
    (told,) = json.loads(edgesdk("deploy", "local", "--json").stdout)
    with Layout.open(folder / "bundles" / "digits") as layout:
        assert told["digest"] == layout.manifests()[own].digest
    assert set(told) >= {"host", "outcome", "digest", "previous", "blobs_sent", "bytes_sent", "seconds", "first_answer_ms", "placement", "error"}
    again = json.loads(edgesdk("deploy", "local", "--json").stdout)[0]
    assert (again["outcome"], again["blobs_sent"]) == ("unchanged", 0)
    assert json.loads(edgesdk("infer", "local", "digits", "--json").stdout)["agrees"] is True
    assert " ... " in edgesdk("infer", "local", "digits").stdout  # of ten numbers eight are shown
    (reported,) = json.loads(edgesdk("report", "local", "--json").stdout)["models"]
    assert {"name", "release", "digest", "provider", "count", "errors", "latency_ms", "since"} <= set(reported)
    told = json.loads(edgesdk("report", "local", "digits", "bundles/digits", "--html", "out.html", "--json").stdout)
    sections = {section["key"]: section for section in told["sections"]}
    assert {"latency", "placement", "evidence", "conditions"} <= set(sections)
    assert [chart["kind"] for chart in sections["latency"]["charts"]] == ["distribution", "phases"]
    assert sections["latency"]["rows"][0]["count"] == reported["count"]
    assert (folder / "out.html").stat().st_size < 1_000_000
    assert "digits" in edgesdk("report").stdout
    measured = json.loads(edgesdk("bench", "local", "digits", "--limit-s", "1", "--json").stdout)
    assert (measured["kind"], measured["via"], measured["inputs"]["source"], len(measured["restarts"])) == ("bench", "agent", "golden", 5)
    assert "activated" in edgesdk("logs", "local").stdout
    edgesdk("remove", "local", "digits")
    assert json.loads(edgesdk("status", "local", "--json").stdout)["models"] == []


def test_skopeo_reads_a_bundle(folder: Path) -> None:
    assert shutil.which("skopeo"), "install it: apt-get install skopeo"
    edgesdk("package", "--profile", "jetson", "--name", "digits")
    raw = subprocess.run(["skopeo", "inspect", "--raw", "oci:bundles/digits:jetson"], check=True, capture_output=True).stdout
    with Layout.open(folder / "bundles" / "digits") as layout:
        assert raw == layout.blob(layout.manifests()["jetson"].digest)
