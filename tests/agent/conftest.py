"""One agent for all tests that do not need one of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from toys import Agent, everything, everything_feeds, linear, make

# A test that took long on a busy machine has not failed.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A running agent with the models `linear` and `everything`. Leave these as they are; others come and go."""
    bundles = tmp_path_factory.mktemp("bundles")
    with running() as agent:
        assert agent.activate(make(bundles / "linear", linear(), name="linear"))["state"] == "done"
        assert agent.activate(make(bundles / "everything", everything(), name="everything", feeds=[everything_feeds()]))["state"] == "done"
        yield agent


@pytest.fixture
def agent() -> Iterator[Agent]:
    """A running agent of one's own, empty."""
    with running() as fresh:
        yield fresh


class running:  # noqa: N801 - reads as a phrase
    """An agent on a short path that ends with the context."""

    def __enter__(self) -> Agent:
        self._folder = tempfile.TemporaryDirectory(prefix="agent-")
        self.agent = Agent(Path(self._folder.name, "home"))
        self.agent.start()
        return self.agent

    def __exit__(self, *_: object) -> None:
        try:
            if self.agent.process is not None and self.agent.process.poll() is None:
                self.agent.stop()
        finally:
            self._folder.cleanup()
