"""One bundle to one device: preflight, set-up, what is missing of it, and the switch. The verb `deploy`.

    with connect("pi@192.168.1.20") as pi:
        deploy(pi, Path("bundles/ocr")).first_answer_ms

Everything that can be known to fail is refused before the first byte is sent.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edge_agent.bundle import BundleError, Layout, Manifest
from edgesdk import preflight, sending, sent, setting_up
from edgesdk.device import Device, Stage, connect
from edgesdk.errors import DeviceError, EdgeSDKError, OutcomeUnknown, RolledBack
from edgesdk.progress import Progress, silent
from edgesdk.replies import Activated, Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One attempt to put one bundle on one device; its fields are the keys of `deploy --json`."""

    host: str
    outcome: str  # active, unchanged, staged, probation, rolled-back, failed, unknown; of a fleet also skipped
    digest: str | None = None
    previous: str | None = None
    blobs_sent: int = 0
    bytes_sent: int = 0  # of the bundle
    set_up_bytes: int = 0  # of agent and runtime, where they had to come first
    seconds: float = 0.0
    first_answer_ms: float | None = None
    converted: str | None = None  # where the device's onnxruntime is older than the model: "opset 21 to 19"
    at: str | None = None  # when what is staged becomes active, by the device's clock
    placement: str | None = None  # how much the accelerator computes, where the profile wants that; or why it is not known
    error: dict[str, str] | None = None  # message and hint

    @property
    def worked(self) -> bool:
        """Whether it came to what was asked for: only who asks for no more is told that it is staged."""
        return self.outcome in ("active", "unchanged", "staged")

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)


def attempt(
    host: str,
    bundle: Path,
    *,
    as_profile: str | None = None,
    allowed: Collection[str] = (),
    wheelhouse: Path | None = None,
    wait: bool = True,
    stage: Stage | None = None,
    progress: Progress = silent,
) -> Deployment:
    """Connect, deploy, disconnect. What goes wrong is in the result, so that one device of many does not stop the others."""
    begin = time.monotonic()
    try:
        with connect(host) as device:
            return deploy(device, bundle, as_profile=as_profile, allowed=allowed, wheelhouse=wheelhouse, wait=wait, stage=stage, progress=progress)
    except (EdgeSDKError, BundleError) as error:
        outcome = "unknown" if isinstance(error, OutcomeUnknown) else "rolled-back" if isinstance(error, RolledBack) else "failed"
        return Deployment(host=host, outcome=outcome, seconds=time.monotonic() - begin, error={"message": str(error), "hint": error.hint})


def deploy(
    device: Device,
    bundle: Path | str,
    *,
    as_profile: str | None = None,
    allowed: Collection[str] = (),
    wheelhouse: Path | None = None,
    wait: bool = True,
    stage: Stage | None = None,
    progress: Progress = silent,
) -> Deployment:
    """Put a bundle on a device and switch to it. ``allowed``: which Allowances are given. ``wheelhouse``: a folder of wheels, instead of an index. Not
    to ``wait`` ends with `probation`, once it has answered; with ``stage``, it is all but the switch.

    Raises Refused before the first byte where the device cannot run it; RolledBack where the device went back to what ran
    before; OutcomeUnknown where the connection was lost for good while the device was at it.
    """
    begin = time.monotonic()
    with contextlib.ExitStack() as opened:
        layout = opened.enter_context(Layout.open(Path(bundle)))
        whole = wait and stage is None
        facts = device.persistently(lambda: device.glance(layout, as_profile) if whole else device.facts())
        if isinstance(facts, Activated):
            return _deployment(device, facts, begin)
        signer = setting_up.first_signer(facts)
        given = preflight.choose(layout, facts, device.host, as_profile)
        preflight.check_signed(given, facts, device.host, signed=layout.signature(given.manifest.digest) is not None, first=signer is not None)
        preflight.check(given, facts, device.host, as_it_is=False)
        layout, choice, plan = setting_up.fitted(opened, layout, given, facts, device.host, wheelhouse, progress)
        preflight.check(choice, facts, device.host)
        signature = layout.signature(choice.manifest.digest)
        preflight.check_signer(choice, facts, device.host, signature)
        preflight.check_release(choice, facts, device.host, allowed)
        preflight.check_lasting(facts, device.host, allowed)
        if plan.needed_bytes:  # else `push` looks before it sends the first byte
            preflight.check_space(plan.needed_bytes + _lacking_bytes(device, choice.manifest, facts), facts, device.host)
        if facts.mode == "system" and (plan.agent or plan.wheels):
            device.become_root()
        setting_up.set_up(device, facts, plan, progress, signer, tried=True)
        pushed = sending.push(device, layout, choice.manifest, facts, progress, fresh=facts.agent is None)
        result = device.activate(
            choice.manifest.digest, signature=signature, as_profile=choice.assumed, allowed=allowed, wait=wait, stage=stage, follow=True, progress=progress
        )
        sent.keep(layout, choice.manifest)
    converted = f"opset {given.description.opset} to {choice.description.opset}" if choice is not given else None
    return replace(_deployment(device, result, begin, pushed, converted), set_up_bytes=plan.sent_bytes)


def _lacking_bytes(device: Device, manifest: Manifest, facts: Facts) -> int:
    """Of blobs. A device without an agent lacks all; what an agent that is about to be replaced does not tell is not known."""
    blobs = {blob.digest: blob.size for blob in sending.unique(manifest.blobs)}
    if facts.agent is None:
        return sum(blobs.values())
    with contextlib.suppress(DeviceError):
        return sum(
            blobs[one.digest] - min(one.offset, blobs[one.digest]) for one in device.persistently(lambda: device.missing(sending.unique(manifest.blobs)))
        )
    return 0


def _deployment(device: Device, result: Activated, begin: float, pushed: tuple[int, int] = (0, 0), converted: str | None = None) -> Deployment:
    return Deployment(
        host=device.host,
        outcome=result.outcome,
        digest=result.digest,
        previous=result.previous,
        blobs_sent=pushed[0],
        bytes_sent=pushed[1],
        seconds=time.monotonic() - begin,
        first_answer_ms=result.first_answer_ms,
        at=result.at,
        converted=converted,
        placement=result.trial.placement.said if result.trial and result.trial.placement else None,
    )
