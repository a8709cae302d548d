"""A bundle made to fit a device whose onnxruntime is older than its model: the same model in an older opset, under the same name and release.

    with lowered(layout, choice, "1.17.3", sign=None) as older: ...

It is another bundle, with a digest and a signature of its own, and has to give the golden answers of the first, here and on the device.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import version_converter

from edge_agent import bundle, probe
from edge_agent import golden as answers
from edge_agent.bundle import BundleError, Contents, Layout
from edgesdk import graph, profiles, runtimes
from edgesdk.errors import ModelError, Refused
from edgesdk.preflight import Choice
from edgesdk.runtimes import version_of
from edgesdk.source import runner


@contextmanager
def lowered(layout: Layout, choice: Choice, onnxruntime: str, *, sign: Callable[[bytes], bytes] | None) -> Iterator[Layout]:
    """The bundle for that onnxruntime, as long as the context lasts. Raises Refused, with both versions and why, where the model cannot be converted."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-") as scratch:
        folder = Path(scratch)
        for layer in choice.manifest.layers:
            (folder / layer.file).write_bytes(layout.blob(layer.digest))
        try:
            model = _converted(folder, choice, onnxruntime)
        except (ModelError, BundleError) as error:
            raise Refused(
                f"`{choice.description.name}` needs onnxruntime {choice.description.onnxruntime} (opset {choice.description.opset}), "
                f"there it is {onnxruntime} (opset {runtimes.newest(onnxruntime)[0]}), and it cannot be converted: {error}",
                "update onnxruntime there, or export the model with an older opset",
            ) from error
        config = bundle.parse_json(layout.blob(choice.manifest.config.digest), "the configuration")
        bundle.write(folder / "bundle", [_contents(folder, choice, model, config)], sign)
        with Layout.open(folder / "bundle") as written:
            yield written


def _converted(folder: Path, choice: Choice, onnxruntime: str) -> graph.Model:
    """Checked with the golden answers. Raises ModelError, BundleError."""
    target = runtimes.newest(onnxruntime)[0]
    if choice.description.opset <= target:
        raise ModelError(f"its operators of opset {choice.description.opset} are not what needs the newer one")
    try:
        proto = version_converter.convert_version(onnx.load(folder / "model.onnx"), target)
    except (version_converter.ConvertError, RuntimeError, ValueError, OSError) as error:
        raise ModelError(" ".join(str(error).split())[:200]) from error
    proto.ir_version = runtimes.newest(onnxruntime)[1]
    onnx.save(proto, folder / "converted.onnx")
    model = graph.load(folder / "converted.onnx")
    if version_of(graph.oldest_onnxruntime(model)) > version_of(onnxruntime):
        raise ModelError(f"in opset {target} it needs onnxruntime {graph.oldest_onnxruntime(model)} still")
    if (graph.inputs(model), graph.outputs(model)) != (choice.description.inputs, choice.description.outputs):
        raise ModelError("its inputs or outputs would change")
    run = runner(model, optimize=profiles.resembles(choice.profile, probe.facts()), threads=1)
    try:
        for sample in answers.load(folder / "golden.npz", choice.description):
            answers.compare(sample.answers, run(sample.feeds), choice.description)
    except answers.Differs as error:
        raise ModelError(f"its answers would change: {error}") from error
    return model


def _contents(folder: Path, choice: Choice, model: graph.Model, config: dict[str, Any]) -> Contents:
    """All as it was, but the model and what is said of its versions."""
    files = {layer.file: (folder / layer.file).read_bytes() for layer in choice.manifest.layers}
    described = bundle.parse_json(files["bundle.json"], "bundle.json")
    converted = {"from": choice.manifest.digest, "opset": [choice.description.opset, graph.opset(model)]}
    described["model"].update(opset=graph.opset(model), ir_version=graph.ir_version(model))
    described["needs"].update(onnxruntime=graph.oldest_onnxruntime(model))
    files.pop("weights.bin", None)
    files["model.onnx"], weights = graph.to_bytes(model)
    if weights is not None:
        files["weights.bin"] = weights
    files["bundle.json"] = bundle.to_json({**described, "converted": converted})
    config["modelfs"] = {"type": "layers", "diffIds": [bundle.digest_of(files[file]) for file in bundle.LAYERS if file in files]}
    return Contents(choice.profile.name, config, files, {"converted": converted})
