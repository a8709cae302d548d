"""Prepares a device: the agent, what it runs on, whom it trusts; for the login user, or for the whole system. And what of a bundle fits it.

plan = plan_set_up(facts)                      # what it lacks
set_up(device, facts, plan)
set_up_system(device)                          # by root: systemd runs the agent as a user of its own
set_up_words(facts, plan, None, system=True)   # what that would do
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.bundle import Layout, digest_of
from edgesdk import agent_package, lean, preflight, sending, signing
from edgesdk.agent_package import AgentPackage
from edgesdk.errors import DeviceError, Refused
from edgesdk.privileges import Ask, on_terminal
from edgesdk.progress import Progress, silent
from edgesdk.replies import Facts, Launcher, parse
from edgesdk.runtimes import version_of
from edgesdk.signing import Signer

if TYPE_CHECKING:
    from edgesdk.device import Device


_COMPILED_BYTES = 2 << 20  # what Python writes beside the agent's modules


@dataclass(frozen=True, slots=True)
class SetUp:
    """What a device has to be sent before it can take a bundle."""

    agent: AgentPackage | None
    wheels: tuple[Path, ...]
    abi: str = field(default="", compare=False)

    @property
    def needed_bytes(self) -> int:
        """On the device's disk: archives and what they unpack to, for a moment both."""
        agent = sum(2 * len(archive.data) for archive in self.agent_archives) + (_COMPILED_BYTES if self.agent else 0)
        return agent + sum(archive.stat().st_size + agent_package.unpacked_bytes(archive) for archive in self.archives)

    @property
    def sent_bytes(self) -> int:
        """At most: of what is cut off the device keeps a part."""
        return sum(len(archive.data) for archive in self.agent_archives) + sum(archive.stat().st_size for archive in self.archives)

    @property
    def agent_archives(self) -> tuple[AgentPackage, ...]:
        """The agent, and what of it is compiled, where the device's Python is this one's: a small board takes seconds for that."""
        if self.agent is None:
            return ()
        data = lean.compiled(self.agent.data) if self.abi == lean.own_abi() else b""
        return (self.agent, AgentPackage(digest_of(data), data)) if data else (self.agent,)

    @property
    def archives(self) -> tuple[Path, ...]:
        """What is sent of the wheels. Raises DeviceError."""
        return tuple(lean.archive(wheel, self.abi) for wheel in self.wheels)


def fitted(
    opened: contextlib.ExitStack, layout: Layout, choice: preflight.Choice, facts: Facts, host: str, wheelhouse: Path | None, progress: Progress
) -> tuple[Layout, preflight.Choice, SetUp]:
    """What is sent: the bundle, or the same in an older opset where no onnxruntime can be had there that reads it; and the set-up.

    Raises Refused, DeviceError.
    """
    needs, stays = preflight.need(choice, host, facts), preflight.staying(choice, facts)
    vendors = choice.profile.runtime.prefer_installed and not choice.assumed
    if stays is not None:
        plan, runs = plan_set_up(facts, stays, prefer_installed=vendors, wheelhouse=wheelhouse, progress=progress), stays
    else:
        try:
            return layout, choice, plan_set_up(facts, needs, prefer_installed=vendors, wheelhouse=wheelhouse, progress=progress)
        except agent_package.TooNew:  # there are older ones
            plan = plan_set_up(facts, wheelhouse=wheelhouse, progress=progress)
            runs = agent_package.version_in(plan.wheels) or (facts.onnxruntime.version if facts.onnxruntime else "0")
            if not preflight.may_be_lowered(choice, runs):
                raise
    if version_of(runs) >= version_of(needs) or not preflight.may_be_lowered(choice, runs):
        return layout, choice, plan
    from edgesdk.lowering import lowered

    progress("convert", 0, 1)
    older = opened.enter_context(lowered(layout, choice, runs, sign=_sign_again(choice, facts, host, runs)))
    progress("convert", 1, 1)
    return older, preflight.choose(older, facts, host, choice.profile.name if choice.assumed else None), plan


def _sign_again(choice: preflight.Choice, facts: Facts, host: str, runs: str) -> Callable[[bytes], bytes] | None:
    """What is converted is another bundle, and wants a signature where the device does. Raises Refused."""
    signer = signing.in_use()
    if signer is None and facts.trust.demanded:
        raise Refused(
            f"`{choice.description.name}` needs onnxruntime {choice.description.onnxruntime}, {preflight.words(facts, host)} runs {runs}; "
            "converted it has to be signed anew, and no key is in use here",
            "`edgesdk key use`, or package the model for an older opset",
        )
    return signer.sign if signer else None


def plan_set_up(
    facts: Facts,
    onnxruntime: str = agent_package.OLDEST_ONNXRUNTIME,
    *,
    prefer_installed: bool = False,
    wheelhouse: Path | None = None,
    progress: Progress = silent,
) -> SetUp:
    """What the device lacks. Wheels are fetched to this machine's cache now, so that their absence is known before anything is sent."""
    package = agent_package.build()
    current = facts.agent is not None and facts.agent.digest == package.name
    oldest = max(onnxruntime, agent_package.OLDEST_ONNXRUNTIME, key=version_of)
    usable = facts.onnxruntime and facts.numpy and (prefer_installed or version_of(facts.onnxruntime.version) >= version_of(oldest))
    wheels = () if usable else tuple(agent_package.runtime_wheels(facts, oldest, wheelhouse, progress))
    return SetUp(None if current else package, wheels, facts.abi)


def set_up(device: Device, facts: Facts, plan: SetUp, progress: Progress = silent, signer: Signer | None = None, *, tried: bool = False) -> None:
    """Send what the plan says, whom the device is to trust if it is told so, and start the agent. ``tried``: a model's trial comes next, and tells as well
    whether onnxruntime works there.

    Raises DeviceError where the device then still has no onnxruntime.
    """
    archives = plan.archives
    digests = [agent_package.digest_of_wheel(archive) for archive in archives]
    agent = plan.agent_archives
    # The agent's stays until the wheels are unpacked: who comes again after a cut sends nothing twice.
    verbs = [["agent", "+".join(one.digest for one in agent), *[one.digest for one in agent if digests], *digests]] if agent else []
    verbs += [["runtime", agent_package.runtime_tag(facts), *digests]] if digests else []
    then = [word for number, verb in enumerate(verbs) for word in (*["then"] * bool(number), *verb)]
    sending.archives(device, agent, archives, held=facts.held, then=then, progress=progress)
    if signer:
        line = signer.line()
        device.persistently(lambda: device.trust(line))
    # The Python that ran it last may be another one than we were let to now: a virtual environment comes and goes. That of a system is root's business.
    ours = not plan.agent and (facts.mode == "user" or device.is_root)
    moved = ours and parse(Launcher, device.persistently(lambda: device.bootstrap("launcher")), device.host).changed
    running, runs = facts.agent is not None and facts.agent.running, None
    if running and not (plan.agent or plan.wheels or moved):  # an update that was cut may have left an earlier agent running
        running_digest = device.persistently(device.status).agent.digest
        moved = running_digest is not None and facts.agent is not None and running_digest != facts.agent.digest
    if running and (plan.agent or plan.wheels or moved):
        device.persistently(lambda: device.ask("stop"))
        running = False
    if not running:
        progress("start", 0, 1)
        runs = device.persistently(lambda: device.start(facts))
        progress("start", 1, 1)
    if plan.wheels and not tried and device.persistently(device.status).agent.onnxruntime is None:
        raise DeviceError(
            f"onnxruntime was sent to `{device.host}`, and Python cannot load it there",
            "is its folder mounted noexec, or is the processor older than onnxruntime asks for?",
        )
    if plan.agent and runs != plan.agent.name:
        raise DeviceError(
            f"the new agent does not run on `{device.host}`: the one before it does, and answers", f"`edgesdk logs {device.host}` tells why; update edgesdk"
        )


def set_up_system(device: Device, ask: Ask = on_terminal, *, wheelhouse: Path | None = None, progress: Progress = silent) -> SetUp:
    """Prepare a device for all of its users: systemd runs the agent as a user of its own. Needs root, or sudo. What was sent.

    Raises Refused, DeviceError.
    """
    login = device.facts()
    check_for_system(login, device.host)
    device.become_root(ask)
    device.account("make", *([login.user] if login.user else []))
    device.reconnect()  # the login user's new group holds from then on
    facts = device.facts()
    signer, plan = first_signer(facts), plan_set_up(facts, wheelhouse=wheelhouse, progress=progress)
    preflight.check_space(plan.needed_bytes, facts, device.host)
    set_up(device, facts, plan, progress, signer)
    if facts.agent and facts.agent.running and not (plan.agent or plan.wheels):
        device.start(facts)  # the units may be of an earlier edgesdk
    device.bootstrap("clients", as_root=True)
    return plan


def check_for_system(facts: Facts, host: str) -> None:
    """Raises Refused where it cannot be, or a user there has an agent of his own."""
    preflight.check_system(facts, host)
    where = preflight.words(facts, host)
    if not facts.systemd:
        raise Refused(f"{where} runs no systemd, which the agent of a system needs", f"set it up for one user: `edgesdk setup {host}`")
    if facts.mode == "user" and facts.agent is not None:
        raise Refused(f"{facts.user} on {where} has an agent already, at {facts.home}", f"`edgesdk teardown {host}` first: two would not know of each other")


def set_up_words(facts: Facts, plan: SetUp, signer: Signer | None, *, system: bool) -> list[str]:
    """What a set-up would do, a line each."""
    fresh = facts.agent is None
    folder = preflight.SYSTEM_HOME if system else facts.home
    lines = ["make the group edge and the user edge-agent, by root or sudo"] * (system and fresh)
    lines += [f"put {facts.user} into the group edge: its members may ask the agent"] * (system and fresh and facts.user not in (None, "root"))
    if plan.agent:
        lines.append(f"send the agent, {len(plan.agent.data) / 1e6:.1f} MB, to {folder}/agent/{plan.agent.name}")
    lines += [f"send {archive.name}, {archive.stat().st_size / 1e6:.1f} MB, to {folder}/runtime" for archive in plan.archives]
    lines += [f"trust bundles that {signer.principal} signs ({signer.fingerprint}), and no others"] * (signer is not None) if signer else []
    if fresh and folder.endswith((".local/share/edge-agent", preflight.SYSTEM_HOME)):
        lines.append("let every Python there find the client: a file edge-agent.pth in its site folder")
    if system:
        lines.append("write /etc/systemd/system/edge-agent.service and .socket, and have systemd run the agent; it listens at /run/edge-agent/agent.sock")
    elif plan.agent or plan.wheels or fresh:
        lines.append(f"start the agent as {facts.user}; it listens at {folder}/agent.sock")
    return lines


def first_signer(facts: Facts) -> Signer | None:
    """Whoever sets a device up is whom it trusts from then on, if it can check that and nobody was there before."""
    return signing.in_use() if facts.agent is None and not facts.trust.known and facts.trust.ssh_keygen else None
