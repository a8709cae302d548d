"""A moment as people type it: `03:00`, `+90m`, `2027-01-31T03:00`, `2027-01-31T03:00+01:00`.

    in_seconds(moment("+90m"))

Without an offset it is this machine's time. A device is told how many seconds are left, so its own clock may be wrong.
"""

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str, now: datetime | None = None) -> datetime:
    """When that is. Raises ValueError, with a sentence, for what is none or is over.

    >>> moment("+2h", datetime(2027, 1, 31, tzinfo=UTC)).isoformat()
    '2027-01-31T02:00:00+00:00'
    """
    now = now or datetime.now(UTC)
    if ahead := re.fullmatch(r"\+(\d{1,6})([smhd])", text):
        return now + timedelta(seconds=int(ahead[1]) * _UNITS[ahead[2]])
    here = now.astimezone()
    if clock := re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", text):
        today = here.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0, tzinfo=None).astimezone()
        return today if today > here else (today.replace(tzinfo=None) + timedelta(days=1)).astimezone()
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no moment: write 03:00, +90m, 2027-01-31T03:00 or 2027-01-31T03:00+01:00") from None
    found = found.astimezone()
    if found <= here:
        raise ValueError(f"{text} is over: here it is {here.isoformat(timespec='minutes')}")
    return found


def in_seconds(when: datetime) -> float:
    """From now on; 0 for what is over."""
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
