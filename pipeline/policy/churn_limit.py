"""How often a peer may begin something that costs others time: sessions of a client, connections.

    has_room(peer, now)   whether it may begin another one
    record(peer, now)     it has begun one

Each peer may begin `burst` of them at once, and one each `interval_ns` on average. An honest peer stays far below: it
is started again now and then, and its connections end together at most. A peer that has not begun anything for so long
that all of its burst is back is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

REMEMBERED = 4096  # peers; beyond them the one that has begun nothing for the longest time is forgotten


class ChurnLimit:
    """Times are CLOCK_MONOTONIC ns."""

    def __init__(self, burst: int, interval_ns: int) -> None:
        self._ahead_ns = (burst - 1) * interval_ns
        self._interval_ns = interval_ns
        self._full_at: OrderedDict[Hashable, int] = OrderedDict()  # when all of the burst is back

    def has_room(self, peer: Hashable, now: int) -> bool:
        return self._full_at.get(peer, 0) - now <= self._ahead_ns

    def record(self, peer: Hashable, now: int) -> None:
        self._full_at[peer] = max(now, self._full_at.get(peer, 0)) + self._interval_ns
        self._full_at.move_to_end(peer)
        while len(self._full_at) > REMEMBERED or next(iter(self._full_at.values())) <= now:
            self._full_at.popitem(last=False)
