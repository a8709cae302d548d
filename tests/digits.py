"""Labelled digits for `tests/data/resnet8_mnist.onnx`: real images, real labels.

`write(folder)` puts down what a user would have: model, calibration.npz, evaluation.npz with labels.
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).with_name("data")
MODEL = DATA / "resnet8_mnist.onnx"
CALIBRATION = 128


def images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images float32 [628, 1, 28, 28] and labels [628]; the first 128 are for calibration."""
    with np.load(DATA / "digits.npz") as archive:
        return archive["image"].astype(np.float32) / 255, archive["label"].astype(np.int64)


def write(folder: Path) -> Path:
    """Returns the model's path."""
    pixels, labels = images()
    np.savez(folder / "calibration.npz", image=pixels[:CALIBRATION])
    np.savez(folder / "evaluation.npz", image=pixels[CALIBRATION:], labels=labels[CALIBRATION:])
    return Path(shutil.copy(MODEL, folder / "model.onnx"))
