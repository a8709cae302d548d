"""Another profile for what is packaged already: the same model with other settings, as a new release or as a profile's file.

write(Path("bundles/ocr"), Path("bundles/ocr-tuned"), before, after, evidence, signer)
write(Path("ocr.onnx"), Path("ocr-tuned.toml"), before, after, evidence, None)
"""

import json
from pathlib import Path
from typing import Any

from edge_agent import bundle
from edge_agent import golden as answers
from edge_agent.bundle import Contents, Layout
from edgesdk import knobs, packaging, profiles
from edgesdk.accuracy import Run
from edgesdk.errors import ProfileError, ProjectError
from edgesdk.profiles import Profile
from edgesdk.signing import Signer


def check(path: Path, profile: Profile, output: Path) -> None:
    """Before the long work: that `write` can write it. Raises ProjectError, ProfileError, BundleError."""
    if path.suffix != ".onnx":
        with Layout.open(path) as layout:
            (manifest,) = layout.manifests().values()
            packaging.check_output(output, layout.description(manifest).name, force=False)
        return
    if output.suffix != ".toml" or not bundle.NAME.fullmatch(output.stem):
        raise ProfileError(f"`{output.name}` is no name of a profile's file", "for a model it is a profile that is written: `-o tuned.toml`")
    if output.stem == profile.name:
        raise ProfileError(f"a profile cannot extend itself, and `{output.name}` would extend `{profile.name}`", "give it another name")
    if output.is_dir():
        raise ProjectError(f"`{output}` is a folder", "name the file that is to be written")
    if not output.absolute().parent.is_dir():
        raise ProjectError(f"there is no folder `{output.absolute().parent}`", "make it, or write elsewhere")
    if profile.name not in profiles.names() and not output.with_name(f"{profile.name}.toml").is_file():
        raise ProfileError(f"`{output}` would extend `{profile.name}`, which does not lie beside it", f"write it into the folder of `{profile.name}.toml`")


def difference(path: Path, run: Run) -> str | None:
    """What of a bundle's golden answers ``run`` answers otherwise; None where it gives them all, or there are none. Raises BundleError."""
    if path.suffix == ".onnx":
        return None
    with Layout.open(path) as layout:
        (manifest,) = layout.manifests().values()
        description = layout.description(manifest)
        samples = answers.parse(layout.blob(manifest.layer("golden.npz").digest), description)
    try:
        for sample in samples:
            answers.compare(sample.answers, run(sample.feeds), description)
    except answers.Differs as error:
        return str(error)
    return None


def write(path: Path, output: Path, before: Profile, after: Profile, evidence: dict[str, Any], signer: Signer | None) -> None:
    """``evidence`` joins what was measured of a bundle, under `tuned`. A profile that is there is replaced. Raises BundleError, SigningError, ProjectError."""
    if path.suffix == ".onnx":
        try:
            output.write_text(to_toml(before, after, evidence), encoding="utf-8")
        except OSError as error:
            raise ProjectError(f"`{output}` cannot be written: {error.strerror}", "write elsewhere: what was measured is remembered") from error
        return
    with Layout.open(path) as layout:
        (manifest,) = layout.manifests().values()
        description = layout.description(manifest)
        files = {layer.file: layout.blob(layer.digest) for layer in manifest.layers}
        config = bundle.parse_json(layout.blob(manifest.config.digest), "the configuration")
        measured = {**layout.evidence(manifest), "tuned": evidence}
    files["profile.json"] = bundle.to_json(after.to_dict())
    last = max(description.release, _last_release(output))
    again = _contents(files, config, description.profile, last, measured)
    made = again if _holds(output, again) else _contents(files, config, description.profile, last + 1, measured)
    bundle.write(output, [made], signer.sign if signer else None)


def to_toml(before: Profile, after: Profile, evidence: dict[str, Any]) -> str:
    """A profile that extends the one before and says what is other, readable by people."""
    gain = f": {evidence['speedup']:.3f} times as fast ({evidence['low']:.3f} … {evidence['high']:.3f})" if knobs.of_one(evidence["settings"]) else ""
    lines = [
        f"# Found by `edgesdk tune` on {evidence['device']}{gain}.",
        f"title = {json.dumps(f'{before.title}, tuned', ensure_ascii=False)}",
        f"extends = {json.dumps(before.name)}",
    ]
    runtime = {key: value for key, value in after.runtime.model_dump().items() if value != getattr(before.runtime, key)}
    if runtime:
        lines += ["", "[runtime]", *(f"{key} = {_value(value)}" for key, value in runtime.items())]
    if after.providers != before.providers:
        for provider in after.providers:
            options = ", ".join(f"{key} = {_value(value)}" for key, value in provider.options.items())
            lines += ["", "[[providers]]", f"name = {_value(provider.name)}", *([f"options = {{ {options} }}"] if options else [])]
    return "\n".join(lines) + "\n"


def _contents(files: dict[str, bytes], config: dict[str, Any], profile: str, release: int, evidence: dict[str, Any]) -> Contents:
    described = bundle.parse_json(files["bundle.json"], "bundle.json")
    own = {**files, "bundle.json": bundle.to_json({**described, "release": release})}
    numbered = {
        **config,
        "descriptor": {**config.get("descriptor", {}), "version": str(release)},
        "modelfs": {"type": "layers", "diffIds": [bundle.digest_of(own[file]) for file in bundle.LAYERS if file in own]},
    }
    return Contents(profile, numbered, own, evidence)


def _last_release(output: Path) -> int:
    """Of what is there; 0 where nothing is."""
    if not output.exists():
        return 0
    with Layout.open(output) as layout:
        return max(layout.description(manifest).release for manifest in layout.manifests().values())


def _holds(output: Path, contents: Contents) -> bool:
    if not output.exists():
        return False
    with Layout.open(output) as layout:
        return bundle.digest_of(bundle.manifest_of(contents)) in {manifest.digest for manifest in layout.manifests().values()}


def _value(value: object) -> str:
    """As TOML has it: numbers, truth and text are JSON's."""
    return json.dumps(value, ensure_ascii=False)
