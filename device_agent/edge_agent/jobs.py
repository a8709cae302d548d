"""What a transaction is to those who ask about it: a job, what was allowed for it, and why there may be none. Standard library only.

job = Job("activate sha256:…", by="pi")
job.to_dict()["stage"]
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from edge_agent.errors import AgentError


class Busy(AgentError):
    """Another change of what is active is under way."""

    def __init__(self, what: str, seconds: float, by: str = "") -> None:
        super().__init__(
            f"another deployment is under way on this device: {what}{f' by {by}' if by else ''}, for {seconds:.0f} s", "wait for it to end, then try again"
        )


class UnknownJob(AgentError):
    """No such job: jobs are forgotten when the agent restarts."""

    def __init__(self, identity: str) -> None:
        super().__init__(
            f"there is no job {identity[:40]!r}; the agent may have been restarted",
            "run the same command again: it tells what is active, and finishes what is not",
        )


@dataclass(frozen=True)
class Permissions:
    """What somebody allows for once."""

    as_profile: bool = False  # the profile of another device: a provider that is missing is no reason to refuse
    allow_slow: bool = False  # the latency budget is missed
    allow_downgrade: bool = False  # a release that is lower than one accepted here, or another bundle of the same
    allow_signature_change: bool = False  # other inputs, outputs or labels than those of what is active
    retry: bool = False  # a bundle that was rolled back here

    def with_those(self, given: dict[str, bool]) -> Permissions:
        """These, and what was given earlier."""
        return Permissions(**{name: value or given.get(name, False) for name, value in asdict(self).items()})


class Job:
    """A transaction under way or ended. Its thread writes, others read."""

    def __init__(self, what: str, by: str = "") -> None:
        self.identity = secrets.token_hex(6)
        self.what, self.by = what, by
        self.begin = time.monotonic()
        self.state, self.stage = "running", "verify"
        self.result: dict[str, Any] | None = None
        self.error: dict[str, str] | None = None
        self.ended = threading.Event()
        self.asked = self.begin  # when somebody last wanted to know how it goes

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.identity, "state": self.state, "stage": self.stage, "result": self.result, "error": self.error}
