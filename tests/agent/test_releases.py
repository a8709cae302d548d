"""A device goes back only where somebody says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, counter, linear, make

from edge_agent import bootstrap
from edge_agent.bundle import Description
from edge_agent.releases import Refused, Releases
from edge_agent.store import Deployment


def deployment(release: int, digest: str) -> Deployment:
    return Deployment(Path("folder"), digest, Description("ocr", release, "x86-cpu", (), (), "1.16", 17, 8, {}, top1=False))


def refused(releases: Releases, one: Deployment, **allowed: bool) -> str:
    with pytest.raises(Refused) as caught:
        releases.check(one, allow_downgrade=allowed.get("allow_downgrade", False), retry=allowed.get("retry", False))
    return str(caught.value)


def test_releases_go_up(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    releases.check(deployment(3, "a"), allow_downgrade=False, retry=False)
    releases.accepted(deployment(3, "a"))
    for fine in (deployment(3, "a"), deployment(4, "b")):
        releases.check(fine, allow_downgrade=False, retry=False)
    assert "release 2 of ocr is older than 3" in refused(releases, deployment(2, "c"))
    assert "another bundle of ocr is release 3 here" in refused(releases, deployment(3, "c"))
    releases.check(deployment(2, "c"), allow_downgrade=True, retry=False)
    releases.accepted(deployment(2, "c"))
    assert "is older than 3" in refused(releases, deployment(2, "d")), "what was allowed once lowers nothing"
    releases.forget("ocr")
    releases.check(deployment(1, "e"), allow_downgrade=False, retry=False)


def test_what_was_rolled_back_is_tried_again_only_if_somebody_says_so(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    releases.rolled_back("ocr", "a")
    assert "was tried here and rolled back" in refused(releases, deployment(1, "a"))
    releases.check(deployment(1, "a"), allow_downgrade=False, retry=True)
    releases.accepted(deployment(1, "a"))
    releases.check(deployment(1, "a"), allow_downgrade=False, retry=False)


@pytest.mark.parametrize("content", ["", "[]", '{"ocr": 3}', '{"ocr": {"release": "x", "digest": "a"}}', '{"ocr": {"release": 1}}'])
def test_a_damaged_file_keeps_nobody_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "releases.json").write_text(content)
    Releases(tmp_path).check(deployment(1, "a"), allow_downgrade=False, retry=False)


# the agent


def said(done: Any) -> str:
    assert done["state"] == "failed", done
    message: str = done["error"]["message"]
    return message


def test_the_agent_goes_down_only_with_a_word(agent: Agent, tmp_path: Path) -> None:
    first, second, other = make(tmp_path / "1", linear(1)), make(tmp_path / "2", linear(2), release=2), make(tmp_path / "3", linear(3), release=2)
    for folder in (first, second):
        assert agent.activate(folder)["state"] == "done"
    assert "release 1 of toy is older than 2" in said(agent.activate(first))
    assert "another bundle of toy is release 2 here" in said(agent.activate(other))
    assert agent.rollback("toy")["state"] == "done"
    assert agent.activate(second)["state"] == "done"
    assert agent.activate(first, allow_downgrade=True)["state"] == "done"
    assert [line for line in agent.journal() if line["event"] == "activated"][-1]["allow_downgrade"] is True
    assert "is older than 2" in said(agent.activate(make(tmp_path / "4", linear(4))))
    left = [path.name for path in agent.home.iterdir() if path.name not in bootstrap.OURS and not bootstrap.OURS_TOO.fullmatch(path.name)]
    assert left == [], "a teardown would leave these"


def test_other_inputs_want_a_word(agent: Agent, tmp_path: Path) -> None:
    assert agent.activate(make(tmp_path / "1", linear(1)))["state"] == "done"
    other = make(tmp_path / "2", counter(), release=2, feeds=[{"n": np.array(3)}])
    message = said(agent.activate(other))
    assert "the inputs of release 2 of toy are `n` int64 []; those of release 1, which is active, `x` float32 [any, 4]" in message
    assert agent.model("toy")["release"] == "1"
    assert agent.activate(other, allow_signature_change=True)["state"] == "done"
