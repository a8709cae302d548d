"""Keys that sign, and the line by which a device knows one."""

from pathlib import Path

import pytest

from edgesdk import signing
from edgesdk.errors import SigningError
from tests.e2e.conftest import keygen


@pytest.mark.parametrize(("expires", "told"), [("2027-12-31", "is no day"), ("20200101", "is over")])
def test_a_key_is_trusted_until_a_day_that_is_to_come(tmp_path: Path, expires: str, told: str) -> None:
    """Trusted until yesterday it would make a device refuse every bundle."""
    keygen(tmp_path / "ana")
    signer = signing.read(tmp_path / "ana")
    assert 'valid-before="20991231"' in signer.line(expires="20991231")
    with pytest.raises(SigningError, match=told):
        signer.line(expires=expires)
