from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from toys import Agent, wait_until

from conftest import running
from edge_agent import config
from edge_agent.config import Config, ConfigError


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    assert config.read(tmp_path) == Config()


def test_what_is_said_holds_and_the_rest_is_default(tmp_path: Path) -> None:
    write(tmp_path, {"hosts": ["camera.local"], "socket": {"group": "video"}, "limits": {"body_bytes": 1000, "idle_s": 0.5}})
    read = config.read(tmp_path)
    assert (read.hosts, read.socket.group, read.limits.body_bytes, read.limits.idle_s) == (("camera.local",), "video", 1000, 0.5)
    assert read.limits.connections == Config().limits.connections


def test_the_agent_changes_one_key(tmp_path: Path) -> None:
    write(tmp_path, {"hosts": ["camera.local"]})
    config.write_tcp(tmp_path, "127.0.0.1:8000")
    assert json.loads((tmp_path / "config.json").read_bytes()) == {"hosts": ["camera.local"], "tcp": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"limits": {"body_byts": 1}}, r"limits.body_byts: unknown key \(did you mean body_bytes\?\)"),
        ({"limit": {}}, r"config.json: limit: unknown key \(did you mean limits\?\)"),
        ({"limits": 7}, "limits is not an object"),
        ({"limits": {"body_bytes": 0}}, "limits.body_bytes is a whole number above 0, not 0"),
        ({"limits": {"body_bytes": 1.5}}, "a whole number above 0, not 1.5"),
        ({"limits": {"idle_s": True}}, "limits.idle_s is a number above 0, not True"),
        ({"limits": {"idle_s": float("inf")}}, "is a number above 0, not inf"),
        ({"hosts": "camera.local"}, "hosts is a list of strings"),
        ({"socket": {"group": 7}}, "socket.group is a string or null, not 7"),
        ([], "not a JSON object"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, document: Any, message: str) -> None:
    write(tmp_path, document)
    with pytest.raises(ConfigError, match=message):
        config.read(tmp_path)


@pytest.mark.e2e
def test_an_agent_with_a_mistake_in_its_file_does_not_start_and_says_why(tmp_path: Path) -> None:
    write(tmp_path, {"limits": {"body_byts": 1}})
    agent = Agent(tmp_path)
    assert "did you mean body_bytes?" in agent.verb("start", code=1)["error"]["message"]
    assert "did you mean body_bytes?" in agent.verb("serve", code=1)["error"]["message"]
    write(tmp_path, {"socket": {"group": "no-such-group"}})
    assert "no such group" in agent.verb("serve", code=1)["error"]["message"]


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file away")
def test_the_socket_goes_to_whom_the_file_says() -> None:
    with running() as agent:
        path = agent.home / "agent.sock"
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (os.geteuid(), os.getegid(), 0o660)
        agent.stop()
        write(agent.home, {"socket": {"owner": "daemon", "group": "video"}})
        agent.start()
        found = wait_until(path.stat)
        assert (found.st_uid, path.group(), found.st_mode & 0o777) == (1, "video", 0o660)


def write(home: Path, document: Any) -> None:
    (home / "config.json").write_text(json.dumps(document))
