"""The parts of the clients of a hub in a rate that they share (`total_rate_mbit`): max-min fairness.

A client that wants less than an equal part gets as much as it wants. The others share the rest equally. A client that
has used nearly all of its part wants more; any other wants a little more than it has used. Each way is shared by
itself, but a client has one part for both: that of the way in which it wants more, or passes more.

A rest that nobody wants is divided as well, by SHARERS_MOST at most. So clients that begin at once pass more than the
rate only if there are more of them, and for one look. One that begins alone has a quarter of the rest for one look.

Counts of bytes and the time go in, parts come out. A part changes by STEP at least, so that no rate is written for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.policy.token_bucket import BURST_LEAST

LOOK_NS = 100_000_000
SECOND = 1_000_000_000

SHARERS_MOST = 4

HUNGRY = 0.8
"""A client that has used so much of its part wants more: TCP does not fill a part exactly."""

STAYS_NS = 500_000_000
"""It wants more for so long at least. At a low rate it passes a burst now and then, and nothing in between: until two
of them would have passed."""

HEADROOM = 1.25
"""Of the use of a client that is not hungry: it may want so much next."""

STEP = 0.05
PART_LEAST = 1000
"""Bytes a second: a part of 0 would be no limit."""


class Counts(NamedTuple):
    """Bytes that a peer has sent and received so far; they only grow."""

    received: int
    sent: int


def fair_level(total: float, wants: Sequence[float]) -> float:
    """The part that those get who want more than it; infinite if there is enough for all."""
    left, count = total, len(wants)
    for want in sorted(wants):
        if want * count > left:
            return left / count
        left -= want
        count -= 1
    return math.inf


class FairShare:
    """`total`: bytes a second, each way. Peers are numbers, such as handles."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._parts: dict[int, int] = {}
        self._before: dict[int, Counts] = {}
        self._full_ns: dict[tuple[int, int], int] = {}  # by peer and way: when it last used nearly all of its part
        self._looked_ns = 0

    def is_due(self, now: int) -> bool:
        return now >= self._looked_ns + LOOK_NS

    def part(self, peer: int) -> int:
        """Bytes a second, each way; of a peer that has just come, an equal one."""
        return self._parts.get(peer) or max(PART_LEAST, self._total // (len(self._parts) + 1))

    def look(self, counts: Mapping[int, Counts], now: int) -> dict[int, int]:
        """The peers that are connected now. Returns the parts that have changed. `now`: CLOCK_MONOTONIC ns."""
        seconds = (now - self._looked_ns) / SECOND
        self._looked_ns = now
        used = {
            peer: [(new - old) / seconds for new, old in zip(count, self._before.get(peer, count), strict=True)]
            for peer, count in counts.items()
        }
        self._before = dict(counts)
        ways = range(len(Counts._fields))
        hungry = {
            (peer, way) for peer, each in used.items() for way in ways if self._is_hungry(peer, way, each[way], now)
        }
        shares = [self._share({peer: each[way] for peer, each in used.items()}, way, hungry) for way in ways]
        changed = {}
        parts = {}
        for peer, each in used.items():
            way = max(ways, key=lambda way: ((peer, way) in hungry, each[way]))
            wanted = int(shares[way][peer])
            before = self._parts.get(peer, 0)
            parts[peer] = wanted if abs(wanted - before) > STEP * before else before
            if parts[peer] != before:
                changed[peer] = parts[peer]
        self._parts = parts
        self._full_ns = {key: since for key, since in self._full_ns.items() if key[0] in parts}
        return changed

    def _share(self, used: Mapping[int, float], way: int, hungry: set[tuple[int, int]]) -> dict[int, float]:
        """The part of each peer in one way."""
        wants = {peer: math.inf if (peer, way) in hungry else HEADROOM * rate for peer, rate in used.items()}
        level = fair_level(self._total, list(wants.values()))
        left = (self._total - sum(wants.values())) / min(len(wants), SHARERS_MOST) if wants else 0
        return {
            peer: max(PART_LEAST, left + want if level == math.inf else level)  # nobody wants what is left, as yet
            for peer, want in wants.items()
        }

    def _is_hungry(self, peer: int, way: int, rate: float, now: int) -> bool:
        """Whether the peer wants more than it has: it uses nearly all, or has done so a moment ago."""
        part = self._parts.get(peer)
        if part is None:
            return False
        if rate >= HUNGRY * part:
            self._full_ns[peer, way] = now
            return True
        since = self._full_ns.get((peer, way))
        return since is not None and now - since <= max(STAYS_NS, 2 * BURST_LEAST * SECOND // part)
