"""Marks of packets (DSCP, RFC 2474): their names and numbers."""

from __future__ import annotations

import re

DSCP_FORM = 'a name such as "EF", "AF41", "CS1" or "LE", a number of 0 to 63, or ""'
DSCP_MOST = 63
DSCP_NAMES = {
    **{f"CS{number}": 8 * number for number in range(8)},  # RFC 2474
    **{f"AF{number}{drop}": 8 * number + 2 * drop for number in range(1, 5) for drop in range(1, 4)},  # RFC 2597
    "EF": 46,  # RFC 3246
    "VA": 44,  # RFC 5865
    "LE": 1,  # RFC 8622
}


def parse_dscp(given: str | int) -> int:
    """A mark by its name or number; 0 for none. ValueError says what was expected."""
    text = str(given).strip().upper()
    if not text:
        return 0
    if re.fullmatch("[0-9]{1,2}", text) and int(text) <= DSCP_MOST:
        return int(text)
    if text not in DSCP_NAMES:
        raise ValueError(DSCP_FORM)
    return DSCP_NAMES[text]
