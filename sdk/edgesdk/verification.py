"""Is a bundle what it should be? Its digests, its signatures, its profile's rules, its golden answers.

verify(Path("bundles/ocr"))[0]["golden"]
"""

import tempfile
from pathlib import Path
from typing import Any

from edge_agent import bundle, probe
from edge_agent import golden as answers
from edge_agent.bundle import Layout, Manifest
from edgesdk import constraints, graph, profiles, signing
from edgesdk.errors import ConstraintViolated, ModelError, SigningError
from edgesdk.source import runner


def verify(path: Path | str) -> list[dict[str, Any]]:
    """Digests of every blob, signatures, the constraints of each profile, and its golden answers where this machine can give them.

    Raises BundleError, SigningError, ConstraintViolated or ModelError at the first thing that is not as it should be.
    """
    with Layout.open(Path(path)) as layout:
        layout.verify()
        return [_verified(layout, profile, manifest) for profile, manifest in layout.manifests().items()]


def _verified(layout: Layout, profile: str, manifest: Manifest) -> dict[str, Any]:
    description, signer = layout.description(manifest), _signer(layout, manifest)
    rules = profiles.parse(bundle.parse_json(layout.blob(manifest.layer("profile.json").digest), "profile.json"), layout.name)
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as folder:
        for layer in manifest.layers:
            Path(folder, layer.file).write_bytes(layout.blob(layer.digest))
        model = graph.load(Path(folder, "model.onnx"))
        if violations := constraints.check(model, rules):
            raise ConstraintViolated(f"`{layout.name}` does not obey `{profile}`: {violations[0]}", "package the model again")
        here = profiles.resembles(rules, probe.facts())
        run = runner(model, optimize=here, threads=1)
        try:
            samples = answers.load(Path(folder, "golden.npz"), description)
            worst = answers.worst_of([answers.compare(sample.answers, run(sample.feeds), description) for sample in samples])
        except answers.Differs as error:
            raise ModelError(f"`{layout.name}` for `{profile}` does not give its golden answers here: {error}", "package the model again") from error
    return {
        "profile": profile,
        "name": description.name,
        "release": description.release,
        "digest": manifest.digest,
        "signer": signer,
        "golden": {"samples": len(samples), **worst.to_dict()},
    }


def _signer(layout: Layout, manifest: Manifest) -> str | None:
    """The fingerprint of the one key that signed the model and what was measured of it; whether it is trusted, a device says."""
    digests = layout.manifests_of(manifest)
    signatures = [layout.signature(digest) for digest in digests]
    keys = {signing.verified(layout.blob(digest), signature) for digest, signature in zip(digests, signatures, strict=True) if signature is not None}
    if len(keys) > 1 or (keys and None in signatures):
        raise SigningError(f"`{layout.name}`: the model and its evidence are not signed by the same key", "do not use this file; package the model again")
    return next(iter(keys), None)
