"""Whether a client goes on with a partner, or ends the pair. Pure.

A direct path is worth its probes while it is open, used, and not worse than the way by the hub. Each verdict is a
sentence for people. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from typing import NamedTuple

SECOND = 1_000_000_000

GIVE_UP_NS = 12 * SECOND
"""Longer than the first probes of both ends, and two round trips of any path."""

IDLE_NS = 300 * SECOND
HUB_GONE_NS = 15 * SECOND
"""Nobody could say that the partner was revoked: longer than a client takes to dial its server anew."""

MARGIN_US = 5_000
"""By so much, and by a quarter, a round trip is longer if it counts as worse: paths vary by themselves."""
TRIP_NS = 10 * SECOND
"""The lowest round trip of such a time counts: one under load has our own queue in it, and that by the hub had none."""
LOSS_SEGMENTS = 1000
LOSS_SHARE = 5  # one segment of so many

NOT_THROUGH = "no probe got through in 12 s: the NATs of both ends let nobody in"
NOT_AGAIN = "it went dark, and no probe got through again in 12 s"
IDLE = "nothing was sent either way for 300 s"
HUB_GONE = "there is no connection with the hub, which could end it"


class LowestTrip:
    """The round trips of a path, as looks at it show them."""

    def __init__(self, now: int) -> None:
        self._since = now
        self._lowest = 0

    def seen(self, trip_us: int, now: int) -> int:
        """The lowest one of TRIP_NS, each time that they are over; else 0. `trip_us`: 0 if it is not known."""
        if trip_us:
            self._lowest = min(trip_us, self._lowest or trip_us)
        if now - self._since < TRIP_NS:
            return 0
        found, self._since, self._lowest = self._lowest, now, 0
        return found


class PartnerFacts(NamedTuple):
    is_open: bool
    was_open: bool
    state_since: int  # ns: open, or not
    used_since: int  # ns: when bytes were seen last
    hub_seen: int  # ns: when there was a connection with the hub last
    round_trip_us: int  # 0: not known
    relayed_us: int  # 0: not known
    sent_segments: int
    lost_segments: int


def why_end(facts: PartnerFacts, now: int) -> str:
    """Empty if the pair goes on."""
    if now - facts.hub_seen > HUB_GONE_NS:
        return HUB_GONE
    if not facts.is_open:
        if now - facts.state_since <= GIVE_UP_NS:
            return ""
        return NOT_AGAIN if facts.was_open else NOT_THROUGH
    if now - facts.used_since > IDLE_NS:
        return IDLE
    return _why_worse(facts)


def _why_worse(facts: PartnerFacts) -> str:
    own, relayed = facts.round_trip_us, facts.relayed_us
    if own and relayed and own > relayed + relayed // 4 + MARGIN_US:
        return f"its round trip is {own / 1000:.0f} ms, that by the hub {relayed / 1000:.0f} ms"
    if facts.sent_segments >= LOSS_SEGMENTS and facts.lost_segments * LOSS_SHARE > facts.sent_segments:
        return f"it loses {100 * facts.lost_segments // facts.sent_segments} % of its segments"
    return ""
