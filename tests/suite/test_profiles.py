"""The small models of the suite, which are in the repository with some of their data, for every profile: what `make suite` does for all."""

from pathlib import Path

import numpy as np
import pytest

from edgesdk import packaging, profiles
from tests.suite import COMMITTED, SUITE
from tests.suite.profiles import MOST_REFUSED, packaged, refused, titles, wrong

DATA = {"resnet8": "digits", "resnet20": "fashion", "mobilenet": "fashion", "bilstm": "vowels"}  # model → tests/data
EVALUATED = {"digits": 500, "fashion": 500, "vowels": 200}  # of each, the last; those before are for calibration


def written(data: str, folder: Path) -> tuple[str, str]:
    """What a user would have: samples to calibrate with, and labelled ones."""
    with np.load(COMMITTED / f"{data}.npz") as archive:
        labels = archive["label"].astype(np.int64)
        (name,) = set(archive) - {"label"}
        inputs = archive[name].astype(np.float32) / (255 if archive[name].dtype == np.uint8 else 1)
    first = len(labels) - EVALUATED[data]
    np.savez(folder / "calibration.npz", **{name: inputs[:first]})
    np.savez(folder / "evaluation.npz", **{name: inputs[first:], "labels": labels[first:]})
    return str(folder / "calibration.npz"), str(folder / "evaluation.npz")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("profile", profiles.names())
@pytest.mark.parametrize("entry", [entry for entry in SUITE if entry.name in DATA], ids=lambda entry: entry.name)
def test_a_small_model_is_packaged_and_proven(entry, profile, tmp_path):
    calibration, evaluation = written(DATA[entry.name], tmp_path)
    request = packaging.Request(
        model=entry.model,
        profiles=(profiles.find(profile),),
        name=entry.name,
        output=tmp_path / "bundle",
        calibration=calibration,
        evaluate=evaluation,
        quick=True,
    )
    pair = packaged(request, entry.name, digest="")
    assert wrong([pair]) == []


def test_the_refused_pairs_are_few_and_exist():
    assert len(refused()) <= MOST_REFUSED
    assert refused() <= {(title, profile) for title in titles().values() for profile in profiles.names()}
