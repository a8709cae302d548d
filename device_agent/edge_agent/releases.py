"""Which releases of a model a device has accepted: it goes up, and down only if somebody says so.

    releases = Releases(home)
    releases.check(deployment, allow_downgrade=False, retry=False)      # raises Refused
    releases.accepted(deployment)
    releases.rolled_back("ocr", "sha256:…")
    releases.forget("ocr")

An old release with a known fault, signed by the right person, is an attack as good as any. Order is by number, never by time: a device may have no clock.
Going back to what ran here before is always allowed, and changes nothing of what is written here. Standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_agent.errors import AgentError
from edge_agent.store import Deployment, write_atomically

_KEPT = 20  # of the digests that were rolled back


class Refused(AgentError):
    """Not without somebody's permission."""


class Releases:
    """One small file, written when a release is accepted or rolled back."""

    def __init__(self, home: Path) -> None:
        self._path = home / "releases.json"

    def check(self, deployment: Deployment, *, allow_downgrade: bool, retry: bool) -> None:
        """Raises Refused."""
        known = self._read().get(deployment.name, {})
        name, release, digest = deployment.name, deployment.description.release, deployment.digest
        if digest in known.get("rolled_back", ()) and not retry:
            raise Refused(f"release {release} of {name} was tried here and rolled back", "package it again, or deploy it with --retry")
        highest = known.get("release")
        if highest is None or release > highest or digest == known.get("digest") or allow_downgrade:
            return
        if release == highest:
            raise Refused(
                f"another bundle of {name} is release {release} here ({known['digest'][:19]}, not {digest[:19]})",
                f"package it with --release {highest + 1}, or deploy it with --allow-downgrade",
            )
        raise Refused(
            f"release {release} of {name} is older than {highest}, which this device has had",
            "`edgesdk rollback` goes back to what ran before; or deploy it with --allow-downgrade",
        )

    def accepted(self, deployment: Deployment) -> None:
        """It answered. Raises OSError."""
        document = self._read()
        known = document.setdefault(deployment.name, {})
        known["rolled_back"] = [digest for digest in known.get("rolled_back", ()) if digest != deployment.digest]
        if deployment.description.release >= known.get("release", 0):
            known.update(release=deployment.description.release, digest=deployment.digest)
        self._write(document)

    def rolled_back(self, name: str, digest: str) -> None:
        """It was active, and had to go. Raises OSError."""
        document = self._read()
        known = document.setdefault(name, {})
        known["rolled_back"] = [*(one for one in known.get("rolled_back", ()) if one != digest), digest][-_KEPT:]
        self._write(document)

    def forget(self, name: str) -> None:
        """The model was taken off the device. Raises OSError."""
        document = self._read()
        if document.pop(name, None) is not None:
            self._write(document)

    def _read(self) -> dict[str, Any]:
        """One that is damaged forgets: a device that takes no release any more would be worse."""
        try:
            document = json.loads(self._path.read_bytes())
            return {str(name): _checked(known) for name, known in document.items()}
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            return {}

    def _write(self, document: dict[str, Any]) -> None:
        write_atomically(self._path, (json.dumps(document, sort_keys=True) + "\n").encode())


def _checked(known: dict[str, Any]) -> dict[str, Any]:
    rolled_back = [str(digest) for digest in known.get("rolled_back", ())]
    return (
        {"release": int(known["release"]), "digest": str(known["digest"]), "rolled_back": rolled_back} if "release" in known else {"rolled_back": rolled_back}
    )
