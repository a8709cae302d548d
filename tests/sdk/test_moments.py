"""Moments as people type them."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from edgesdk.moments import moment

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def in_tokyo() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("+90m", "2027-01-31T13:30"),
        ("+2d", "2027-02-02T12:00"),
        ("21:01", "2027-01-31T12:01"),
        ("20:59", "2027-02-01T11:59"),
        ("2027-02-01T03:00", "2027-01-31T18:00"),
        ("2027-02-01T03:00+01:00", "2027-02-01T02:00"),
        ("2027-02-01T03:00Z", "2027-02-01T03:00"),
    ],
)
def test_they_are_this_machines_time_unless_they_say_otherwise(text: str, utc: str) -> None:
    assert moment(text, NOW).astimezone(UTC).isoformat(timespec="minutes") == f"{utc}+00:00"
    assert moment(text, NOW) - NOW > timedelta(0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tonight", "is no moment"),
        ("25:00", "is no moment"),
        ("", "is no moment"),
        ("+5", "is no moment"),
        ("2027-01-31T20:00", "is over"),
        ("2020-01-01", "is over"),
    ],
)
def test_what_is_none_or_over_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        moment(text, NOW)
