"""How the dial slots of a client are shared out among its uplinks. Pure.

In turn, those of each traffic class by themselves: of five slots for bulk and two uplinks, 0, 2 and 4 have the first
uplink, 1 and 3 the second. Lanes take slots in turn as well. Where both turns would fall in step, so that all slots of
a lane had one uplink, each round begins with the next uplink.
"""

from __future__ import annotations

from math import gcd


def uplink_of(dial_index: int, connections: int, lanes: int, count: int) -> int:
    """The number of the uplink. `connections`: slots for bulk, which come before the others; `count`: of uplinks."""
    position = dial_index if dial_index < connections else dial_index - connections
    common = gcd(lanes, count)
    return (position + (position * common // (lanes * count) if common > 1 else 0)) % count
