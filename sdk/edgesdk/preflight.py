"""Whether a device can run a bundle, decided from facts before the first byte is sent.

    choice = choose(layout, facts, host)     # which of the bundle's models
    check(choice, facts, host)               # its needs against what the device said of itself

Nothing here talks to a device. What does not fit is refused in one sentence with both values named, and with what to run; what can be made to fit is:
`device` sends the wheels that are missing, and `lowering` brings a model down to an onnxruntime that stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edge_agent.bundle import Description, Layout, Manifest, parse_json
from edge_agent.trust import fingerprint, parse_signature
from edgesdk import profiles, runtimes
from edgesdk.agent_package import OLDEST_ONNXRUNTIME
from edgesdk.errors import Refused
from edgesdk.profiles import Profile
from edgesdk.replies import Facts
from edgesdk.runtimes import version_of
from edgesdk.transport import LOCAL

OLDEST_PYTHON = (3, 9)
SYSTEM_HOME = "/var/lib/edge-agent"
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The one of a bundle's models that a device takes. ``assumed``: somebody said so; the device was not recognised as that."""

    manifest: Manifest
    description: Description
    profile: Profile
    assumed: bool


def choose(layout: Layout, facts: Facts, host: str, as_profile: str | None = None) -> Choice:
    """The bundle's model for this device: the most specific profile that the device shows the facts of, or ``as_profile``. Raises Refused."""
    manifests = layout.manifests()
    held = {name: _profile(layout, manifest) for name, manifest in manifests.items()}
    fitting = [profile.name for profile in profiles.recognise(facts.to_dict(), held.values())]
    chosen = as_profile or (fitting[0] if fitting else None)
    if chosen is None:
        raise _unfit(layout.description(next(iter(manifests.values()))).name, held, facts, host)
    if chosen not in manifests:
        raise Refused(f"the bundle holds no model for `{chosen}`, only for {', '.join(manifests)}", f"`edgesdk package --profile {chosen}` builds one")
    return Choice(manifest=manifests[chosen], description=layout.description(manifests[chosen]), profile=held[chosen], assumed=chosen not in fitting)


def check_signed(choice: Choice, facts: Facts, host: str, *, signed: bool, first: bool) -> None:
    """A device that takes signed bundles only gets no other. ``first``: it is about to be told whom to trust. Raises Refused."""
    if signed or not (facts.trust.demanded or first):
        return
    raise Refused(
        f"`{choice.description.name}` is not signed, and {words(facts, host)} takes signed bundles only",
        "`edgesdk key use`, then package it again" if facts.trust.demanded else "package it again: a key signs since then; or `edgesdk key off`",
    )


def check_signer(choice: Choice, facts: Facts, host: str, signature: bytes | None) -> None:
    """Whether the device knows whose signature that is, as far as it has told. What the signature is of, it finds out itself. Raises Refused."""
    if signature is None or not facts.trust.demanded or facts.trust.signers is None:
        return
    try:
        signer = fingerprint(parse_signature(signature)[0])
    except ValueError:
        return  # the device says what is wrong with it
    signed = f"`{choice.description.name}` is signed with the key {signer}, which"
    if signer in facts.trust.revoked:
        raise Refused(f"{signed} was revoked on {words(facts, host)}", "sign it with another key: `edgesdk key use`, then package it again")
    if signer not in facts.trust.signers:
        raise Refused(f"{signed} {words(facts, host)} does not know", f"`edgesdk key trust {host}` makes it known there")


def check_release(choice: Choice, facts: Facts, host: str, allowed: Collection[str]) -> None:
    """Whether the device has had a newer one, or rolled this one back: `edge_agent.releases` decides the same. Raises Refused."""
    name, release, digest = choice.description.name, choice.description.release, choice.manifest.digest
    known, where = facts.releases.get(name), words(facts, host)
    if known is None:
        return
    if digest in known.rolled_back and "retry" not in allowed:
        raise Refused(f"release {release} of `{name}` was tried on {where} and rolled back", "package it again, or deploy it with --retry")
    if known.release is None or release > known.release or digest == known.digest or "allow-downgrade" in allowed:
        return
    if release == known.release:
        raise Refused(
            f"another bundle of `{name}` is release {release} on {where} ({(known.digest or '')[:19]}, not {digest[:19]})",
            f"package it with --release {release + 1}, or deploy it with --allow-downgrade",
        )
    raise Refused(
        f"release {release} of `{name}` is older than {known.release}, which {where} has had",
        f"`edgesdk rollback {host} {name}` goes back to what ran before; or deploy it with --allow-downgrade",
    )


def need(choice: Choice, host: str, facts: Facts) -> str:
    """The oldest onnxruntime that reads the model, whatever the bundle says of it. Raises Refused for what none reads that is known here."""
    said = choice.description
    reads = runtimes.needed(said.opset, said.ir_version)
    if reads is None and version_of(said.onnxruntime) <= version_of(runtimes.RUNTIMES[-1][0]):
        have = facts.onnxruntime.version if facts.onnxruntime else runtimes.RUNTIMES[-1][0]
        opset, ir_version = runtimes.newest(have)
        raise Refused(
            f"`{said.name}` is of opset {said.opset} and IR version {said.ir_version}, "
            f"onnxruntime {have} on {words(facts, host)} reads opset {opset} and IR version {ir_version}",
            "export the model with an older opset, or update edgesdk if such an onnxruntime exists",
        )
    return max(said.onnxruntime, reads or said.onnxruntime, key=version_of)


def staying(choice: Choice, facts: Facts) -> str | None:
    """The onnxruntime that the device has and keeps: its vendor's, or its Python's own. None where one is sent if that is needed."""
    have = facts.onnxruntime
    vendors = choice.profile.runtime.prefer_installed and not choice.assumed
    # Where Python has an onnxruntime of its own that the agent can run on, the agent takes no other.
    own = have is not None and have.where == "system" and version_of(have.version) >= version_of(OLDEST_ONNXRUNTIME)
    return have.version if have and (vendors or own) else None


def may_be_lowered(choice: Choice, onnxruntime: str) -> bool:
    """Whether its opset is what keeps that onnxruntime from reading it."""
    return version_of(onnxruntime) >= version_of(OLDEST_ONNXRUNTIME) and choice.description.opset > runtimes.newest(onnxruntime)[0]


def check(choice: Choice, facts: Facts, host: str, *, as_it_is: bool = True) -> None:
    """What the bundle needs against what the device said of itself. Not ``as_it_is``: its model may still be brought down to an older onnxruntime.

    Raises Refused, with both values named.
    """
    profile, where = choice.profile, words(facts, host)
    check_system(facts, host)
    if not choice.assumed:
        for recognised in (profile, *profiles.recognise(facts.to_dict())[:1]):
            if not recognised.deployable:
                raise Refused(
                    f"{where} is recognised as {_kind(recognised)}, which cannot be deployed to: {recognised.reason}",
                    "`edgesdk package` and `check` work for it",
                )
    said, have, oldest = choice.description, facts.onnxruntime, need(choice, host, facts)
    name = said.name
    if profile.runtime.prefer_installed and not choice.assumed and have is None:
        raise _no_vendors_runtime(profile, facts, host)
    stays = staying(choice, facts)
    if stays and version_of(stays) < version_of(oldest) and (as_it_is or not may_be_lowered(choice, stays)):
        raise Refused(
            f"`{name}` needs onnxruntime {oldest} (opset {said.opset}, IR version {said.ir_version}), {where} has {stays}",
            "update it there, or package the model for an older opset",
        )
    first = profile.providers[0].name
    if profile.runtime.on_missing_provider == "refuse" and not choice.assumed and have and first not in have.providers:
        raise Refused(f"`{name}` needs {first}, {where} has {', '.join(have.providers)}", "install the onnxruntime of the board's vendor")
    weights = sum(layer.size for layer in choice.manifest.layers if layer.file in ("model.onnx", "weights.bin"))
    if facts.memory_bytes and weights > facts.memory_bytes:
        raise Refused(f"`{name}` needs {_size(weights)} of memory, {where} has {_size(facts.memory_bytes)}", "prune or quantize it further")
    # Where a version of it runs, that one makes room; and the device itself lets it go where both do not fit.
    if facts.available_bytes is not None and weights > facts.available_bytes and name not in facts.releases:
        raise Refused(
            f"`{name}` needs {_size(weights)} of memory, {where} has {_size(facts.available_bytes)} left",
            "end programs there that need much, `edgesdk remove` a model, or prune or quantize it further",
        )


def check_target(profile: Profile, facts: Facts, host: str) -> None:
    """Whether a speed measured there is one of the profile's hardware. Raises Refused."""
    check_system(facts, host)
    if not profiles.recognise(facts.to_dict(), [profile]):
        recognised = profiles.recognise(facts.to_dict())
        raise Refused(
            f"{words(facts, host)} is no {_kind(profile)}: its speed says nothing about one",
            f"package for `{recognised[0].name}`, or leave `--on` out" if recognised else "leave `--on` out",
        )
    if profile.runtime.prefer_installed and facts.onnxruntime is None:
        raise _no_vendors_runtime(profile, facts, host)


def check_system(facts: Facts, host: str) -> None:
    """Whether the agent can run there at all. Raises Refused."""
    where = words(facts, host)
    if facts.system not in (None, "Linux"):
        raise Refused(f"{where} runs {facts.system}; the agent needs Linux")
    if version_of(facts.python)[:2] < OLDEST_PYTHON:
        raise old_python(host, facts.python)
    if facts.missing_modules:
        raise Refused(f"python3 on {where} lacks {', '.join(facts.missing_modules)}", "install the full package: `apt-get install python3`")
    if facts.writable is False and facts.mode == "user":  # in system mode the agent itself writes there
        raise Refused(f"the user {facts.user} on {where} may not write to {facts.home}", "set EDGE_AGENT_HOME there, or change the folder's owner")


def check_lasting(facts: Facts, host: str, allowed: Collection[str]) -> None:
    """Before the first byte goes where the next power cut takes all: not unless somebody said so. Raises Refused."""
    if facts.volatile and facts.agent is None and "volatile" not in allowed:
        raise Refused(
            f"{facts.home} on {words(facts, host)} lies in memory ({facts.volatile}): what is sent there is gone when the power is",
            "set EDGE_AGENT_HOME there to a folder on a disk; --volatile if that is meant",
        )


def check_space(needed: int, facts: Facts, host: str) -> None:
    """Raises Refused where so many bytes, and a little for logs, do not fit."""
    if needed and facts.free_bytes is not None and needed + _SPARE_BYTES > facts.free_bytes:
        raise Refused(
            f"this needs {_size(needed + _SPARE_BYTES)} of disk below {facts.home}, {words(facts, host)} has {_size(facts.free_bytes)} free",
            f"remove models or files there; `edgesdk status {host}` shows what it holds",
        )


def words(facts: Facts, host: str) -> str:
    """The device in a sentence."""
    if host == LOCAL:
        return f"this {facts.board}" if facts.board else f"this PC ({facts.architecture})"
    return f"`{host}` ({facts.board or facts.architecture})"


def _no_vendors_runtime(profile: Profile, facts: Facts, host: str) -> Refused:
    return Refused(f"{words(facts, host)} has no onnxruntime, and {_kind(profile)} wants its vendor's", "install the one that comes with the board's software")


def old_python(host: str, version: str) -> Refused:
    return Refused(
        f"`{host}` has Python {version}; the agent needs {'.'.join(map(str, OLDEST_PYTHON))}", "update the device's system, or package for another one"
    )


def _profile(layout: Layout, manifest: Manifest) -> Profile:
    """The profile that the bundle was built for, as it was then. Raises ProfileError."""
    return profiles.parse(parse_json(layout.blob(manifest.layer("profile.json").digest, 1 << 20), "profile.json"), layout.name)


def _unfit(name: str, held: Mapping[str, Profile], facts: Facts, host: str) -> Refused:
    """This PC (x86_64) is no NVIDIA Jetson: …"""
    kinds = " or ".join(dict.fromkeys(_kind(profile) for profile in held.values()))
    recognised = profiles.recognise(facts.to_dict())
    build = f"`edgesdk package --profile {recognised[0].name}` builds one for it; " if recognised else ""
    first = next(iter(held))
    return Refused(
        f"{words(facts, host)} is no {kinds}: the bundle `{name}` holds {', '.join(held)} only",
        f"{build}`edgesdk deploy {host} --as-profile {first}` tries {first}'s on its CPU",
    )


def _kind(profile: Profile) -> str:
    return re.sub(r" \(.*\)", "", profile.title)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
