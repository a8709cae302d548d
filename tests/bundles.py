"""Small bundles for tests: one matrix product with a bias, golden answers computed by numpy.

write_bundle(tmp_path / "toy", release=2, seed=1)      # other weights, everything else alike
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent import bundle
from edgesdk import profiles

BATCH = 2
SAMPLES = 4


def weights(seed: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Only the matrix depends on the seed, so that model.onnx does not when the matrix lies outside."""
    matrix = np.random.default_rng(seed).standard_normal((width, width), np.float32)
    return matrix, np.linspace(-1, 1, width, dtype=np.float32)


def inputs(width: int) -> list[NDArray[np.float32]]:
    """The golden inputs: the same for every release."""
    random = np.random.default_rng(99)
    return [random.standard_normal((BATCH, width), np.float32) for _ in range(SAMPLES)]


def answer(x: NDArray[np.float32], *, seed: int = 0, width: int = 8) -> NDArray[np.float32]:
    """What the model of that seed says."""
    matrix, bias = weights(seed, width)
    return x @ matrix + bias


def contents(
    *, name: str = "toy", release: int = 1, profile: str = "x86-cpu", seed: int = 0, width: int = 8, needs: str = "1.16.0", wrong: bool = False
) -> bundle.Contents:
    """``width`` 600 and more puts the weights into weights.bin. ``wrong``: golden answers that the model does not give."""
    matrix, bias = weights(seed, width)
    external = matrix.nbytes > 1 << 20
    golden = io.BytesIO()
    golden_inputs = inputs(width)
    np.savez(
        golden,
        **{f"{i}.in.0": x for i, x in enumerate(golden_inputs)},
        **{f"{i}.out.0": answer(x, seed=seed, width=width) + wrong for i, x in enumerate(golden_inputs)},
    )
    files = {
        "model.onnx": _model(matrix, bias, external=external),
        **({"weights.bin": matrix.tobytes()} if external else {}),
        "bundle.json": bundle.to_json(
            {
                "format": 1,
                "name": name,
                "release": release,
                "profile": profile,
                "model": {
                    "inputs": [{"name": "x", "dtype": "float32", "shape": [None, width]}],
                    "outputs": [{"name": "y", "dtype": "float32", "shape": [None, width]}],
                    "opset": 13,
                    "ir_version": 8,
                },
                "needs": {"onnxruntime": needs},
                "golden": {"samples": SAMPLES, "tolerance": {"y": 1e-3}, "top1": False, "source": "generated"},
                "source": {"digest": "sha256:" + "0" * 64},
                "tools": {},
            }
        ),
        "profile.json": bundle.to_json(profiles.find(profile).to_dict()),
        "recipe.json": bundle.to_json([]),
        "golden.npz": golden.getvalue(),
    }
    config = {"descriptor": {"name": name, "version": str(release)}, "config": {"format": "onnx"}, "modelfs": {"type": "layers", "diffIds": []}}
    return bundle.Contents(profile, config, files, {})


def write_bundle(target: Path, *, profiles: tuple[str, ...] = ("x86-cpu",), **settings: object) -> Path:
    """A bundle of that model for each profile."""
    bundle.write(target, [contents(profile=profile, **settings) for profile in profiles])  # type: ignore[arg-type]
    return target


def _model(matrix: NDArray[np.float32], bias: NDArray[np.float32], *, external: bool) -> bytes:
    weight = numpy_helper.from_array(matrix, "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": 0, "length": matrix.nbytes}.items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, str(value)
    width = len(bias)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [weight, numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="tests")
    data: bytes = model.SerializeToString()
    return data
