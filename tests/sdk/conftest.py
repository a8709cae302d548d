"""Every run measures anew: ranges that an earlier one kept would hide what has changed since."""

from collections.abc import Iterator

import pytest

from edgesdk import calibration


@pytest.fixture(autouse=True, scope="session")
def own_ranges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibration, "cache_folder", lambda: tmp_path_factory.getbasetemp() / "cache")
        yield
