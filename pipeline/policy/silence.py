"""Whether the other end of some connections is silent: something is outstanding, and nothing has been heard. Pure.

The kernel says for each connection which segments are unacknowledged, and when anything came last. A connection on
which nothing is outstanding says nothing: an idle end has nothing to answer. One connection that hears something is
enough, since a connection alone may be stuck behind a router that has forgotten it.

    update      what the kernel says now
    ask         the other end is asked whether it is there: it counts as silent until something comes
    is_silent   the verdict

Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SILENT_NS = 1_500_000_000
"""Longer than the gaps of a path that works: a retransmission and its answer, on several connections at once."""

ROUND_TRIPS = 3  # on a path with a long round trip, or a long queue, silence takes so many at least

MS = 1_000_000
US = 1_000


class Outstanding(NamedTuple):
    """The kernel's word about a connection."""

    unacked: int  # segments
    heard_ms: int  # since data or an acknowledgement came
    rtt_us: int = 0  # smoothed


class Silence:
    """The connections to one other end, by any key."""

    def __init__(self) -> None:
        self._waiting: dict[int, int] = {}  # since when something is outstanding on each
        self._heard = 0  # when anything came last, on any
        self._limit = SILENT_NS
        self._asked = 0  # when the other end was asked; 0: it need not answer

    def update(self, connections: Mapping[int, Outstanding], now: int) -> None:
        self._waiting = {key: self._waiting.get(key, now) for key, each in connections.items() if each.unacked}
        round_trip = min((each.rtt_us * US for each in connections.values() if each.rtt_us), default=0)
        self._limit = max(SILENT_NS, ROUND_TRIPS * round_trip)
        self._heard = max((now - each.heard_ms * MS for each in connections.values()), default=now)

    def ask(self, since: int) -> None:
        """It has been asked at this time; 0: it need not answer. A connection that was made later is an answer."""
        self._asked = since

    def is_silent(self, now: int) -> bool:
        if self._asked and self._heard <= self._asked:
            return True
        waited = now - min(self._waiting.values(), default=now)
        return waited >= self._limit and now - self._heard >= self._limit
