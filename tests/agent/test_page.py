"""The status page and its figures, without a browser."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, linear, make

from edge_agent import connect, page
from edge_agent.journal import Journal
from edge_agent.page import History

PAGE = Path(page.__file__).with_name("page.html").read_text()


def test_the_page_is_small_and_brings_everything_along() -> None:
    assert len(PAGE.encode()) < 60_000
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", PAGE)
    assert not re.search(r"""\son\w+=["']|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\sstyle=""", PAGE)


def test_only_its_own_script_may_run() -> None:
    policy = page.html(asks=True).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall("'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2


def test_history_follows_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    history = History(journal.path)
    assert history.newest() == []
    journal.append("started", version="1.2.3", pid=1)
    journal.append("tcp", address=None)
    assert [entry["words"] for entry in history.newest()] == ["the agent 1.2.3 started"]
    with journal.path.open("a") as stream:
        stream.write("no json\n[]\n{}\n")
        stream.write('{"time": "t", "event": "activated"')  # a line that power cut
    assert len(history.newest()) == 1
    journal.path.rename(tmp_path / "older")
    journal.append("activated", name="ocr", release=2, digest="sha256:0123456789abcdef", what="rollback ocr")
    journal.append("fell back", name="ocr", digest="sha256:fedcba9876543210")
    assert [entry["words"] for entry in history.newest()] == [
        "ocr fell back to fedcba987654",
        "ocr release 2 (0123456789ab) became active again, by a rollback",
        "the agent 1.2.3 started",
    ]


def get(url: str, target: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(url[len("http://") :], timeout=30)
    try:
        connection.request("GET", target, headers=headers)
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()


@pytest.mark.e2e
def test_over_tcp_the_page_is_open_and_its_figures_are_not(agent: Agent, tmp_path: Path) -> None:
    agent.activate(make(tmp_path / "one", linear(), name="toy"))
    with connect("toy", home=agent.home) as model:
        for _ in range(10):
            model(np.ones((1, 4), np.float32))
    url = agent.ask("POST", "/edge/tcp", {"port": 0})["url"]
    status, headers, body = get(url, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"data-asks" in body
    assert b"toy" not in body
    assert get(url, "/status.json")[0] == 401
    token = (agent.home / "secrets" / "token").read_text().strip()
    assert get(url, "/status.json", Authorization=f"Bearer {token}", Origin="http://elsewhere")[0] == 403
    status, headers, body = get(url, "/status.json", Authorization=f"Bearer {token}")
    assert (status, headers["cache-control"]) == (200, "no-store")
    told: Any = json.loads(body)
    (model_told,) = told["models"]
    assert model_told["name"] == "toy"
    assert sum(count for _, count in model_told["latency"]["total"]) == model_told["count"]
    assert {"total", "queue", "input", "run", "output"} <= set(model_told["latency"])
    assert told["device"]["cores"] >= 1
    assert "became active" in told["history"][0]["words"]


@pytest.mark.e2e
def test_on_the_socket_no_token_is_asked_for(shared: Agent) -> None:
    assert shared.ask("GET", "/status.json")["agent"]["version"]
    assert b"data-asks" not in page.html(asks=False).body[0]
