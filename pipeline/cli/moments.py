"""Moments on a command line: "24h", "7d", "2027-01-01", "2027-01-01T18:00", "never"; and times in words.

A duration counts from now. A date without a time is its first moment. Without a zone, it is local time of this machine.
"""

from __future__ import annotations

import re
import time
from datetime import datetime

from pipeline.errors import UsageError

NEVER = "never"
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
DURATION = re.compile(r"([0-9]{1,6})([mhdw])")
FORM = 'a duration such as "30m", "24h" or "7d", a date such as "2027-01-01" or "2027-01-01T18:00", or "never"'


def parse_moment(text: str, option: str, now: float) -> int:
    """UNIX time; 0 for never. UsageError for any other text, and for a moment that is past."""
    if text == NEVER:
        return 0
    moment = _moment(text, now)
    if moment is None:
        raise UsageError(f"{option}: given {text!r}, expected {FORM}")
    if moment <= now:
        raise UsageError(f"{option}: {text} is past")
    return moment


def _moment(text: str, now: float) -> int | None:
    if match := DURATION.fullmatch(text):
        return int(now) + int(match[1]) * UNITS[match[2]]
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        return None


def show_moment(moment: int) -> str:
    """To the minute, in local time, with the zone."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(moment))


def show_left(seconds: float) -> str:
    """How long something lasts, in its two largest units."""
    minutes = max(0, int(seconds)) // 60
    if minutes >= 1440:
        return f"{minutes // 1440}d{minutes % 1440 // 60:02d}h"
    return f"{minutes // 60}h{minutes % 60:02d}m"
