"""What the agent has to say where something does not work."""

from __future__ import annotations


class AgentError(Exception):
    """Base of the agent's errors. The message is for a person; ``hint`` says what to try, and may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
