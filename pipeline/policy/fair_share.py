"""The parts of the clients of a hub in a rate that they share (`total_rate_mbit`): max-min fairness.

A client that wants less than an equal part gets as much as it wants. The others share the rest equally. A client that
has used nearly all of its part wants more; any other wants a little more than it has used. Each way is shared by
itself, but a client has one part for both: that of the way in which it passes more. So together they may pass more than
the rate for one look, when several begin at once.

Counts of bytes and the time go in, parts come out. A part changes by STEP at least, so that no rate is written for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LOOK_NS = 250_000_000
SECOND = 1_000_000_000

HUNGRY = 0.8
"""A client that has used so much of its part wants more: TCP does not fill a part exactly."""

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
        ways = [self._share({peer: each[way] for peer, each in used.items()}) for way in range(len(Counts._fields))]
        changed = {}
        parts = {}
        for peer, each in used.items():
            wanted = int(ways[each.index(max(each))][peer])
            before = self._parts.get(peer, 0)
            parts[peer] = wanted if abs(wanted - before) > STEP * before else before
            if parts[peer] != before:
                changed[peer] = parts[peer]
        self._parts = parts
        return changed

    def _share(self, used: Mapping[int, float]) -> dict[int, float]:
        """The part of each peer in one way."""
        wants = {
            peer: math.inf if peer in self._parts and rate >= HUNGRY * self._parts[peer] else HEADROOM * rate
            for peer, rate in used.items()
        }
        level = fair_level(self._total, list(wants.values()))
        left = self._total - sum(wants.values())
        return {
            peer: max(PART_LEAST, left + want if level == math.inf else level)  # nobody else wants what is left
            for peer, want in wants.items()
        }
