"""Whether a device can run a bundle, decided from facts before the first byte is sent.

    choice = choose(layout, facts, host)     # which of the bundle's models
    check(choice, facts, host)               # its needs against what the device said of itself

Nothing here talks to a device. What does not fit is refused in one sentence with both values named, and with what to run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edge_agent.bundle import Description, Layout, Manifest, parse_json
from edgesdk import profiles
from edgesdk.agent_package import OLDEST_ONNXRUNTIME, version_of
from edgesdk.errors import Refused
from edgesdk.profiles import Profile
from edgesdk.replies import Facts
from edgesdk.transport import LOCAL

OLDEST_PYTHON = (3, 9)
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


def check(choice: Choice, facts: Facts, host: str) -> None:
    """What the bundle needs against what the device said of itself. Raises Refused, with both values named."""
    profile, where = choice.profile, words(facts, host)
    check_system(facts, host)
    if not choice.assumed:
        for recognised in (profile, *profiles.recognise(facts.to_dict())[:1]):
            if not recognised.deployable:
                raise Refused(
                    f"{where} is recognised as {_kind(recognised)}, which cannot be deployed to: {recognised.reason}",
                    "`edgesdk package` and `check` work for it",
                )
    name, have, oldest = choice.description.name, facts.onnxruntime, choice.description.onnxruntime
    vendors = profile.runtime.prefer_installed and not choice.assumed
    if vendors and have is None:
        raise _no_vendors_runtime(profile, facts, host)
    # Where Python has an onnxruntime of its own that the agent can run on, the agent takes no other.
    own = have is not None and have.where == "system" and version_of(have.version) >= version_of(OLDEST_ONNXRUNTIME)
    if have and (vendors or own) and version_of(have.version) < version_of(oldest):
        raise Refused(f"`{name}` needs onnxruntime {oldest}, {where} has {have.version}", "update it there, or package the model for an older opset")
    first = profile.providers[0].name
    if profile.runtime.on_missing_provider == "refuse" and not choice.assumed and have and first not in have.providers:
        raise Refused(f"`{name}` needs {first}, {where} has {', '.join(have.providers)}", "install the onnxruntime of the board's vendor")
    weights = sum(layer.size for layer in choice.manifest.layers if layer.file in ("model.onnx", "weights.bin"))
    if facts.memory_bytes and weights > facts.memory_bytes:
        raise Refused(f"`{name}` needs {_size(weights)} of memory, {where} has {_size(facts.memory_bytes)}", "prune or quantize it further")


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
    if facts.writable is False:
        raise Refused(f"the user {facts.user} on {where} may not write to {facts.home}", "set EDGE_AGENT_HOME there, or change the folder's owner")


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
