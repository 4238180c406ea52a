"""When probes go to the candidates of a partner, so that they find a way through the NATs of both ends. Pure.

A probe makes the NAT of its sender let the answer in, and with it what the partner sends from there. So both ends probe
all candidates at once, and go on: the first probes of one end come before the other end's NAT lets them in.

    the first FAST_NS     each candidate gets a probe in EVERY_NS
    later                 in LATER_NS

The supervisor ends a pair whose path does not open. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

EVERY_NS, FAST_NS, LATER_NS = 200_000_000, 3_000_000_000, 1_000_000_000


class Punching:
    def __init__(self, now: int) -> None:
        self._began = self._next = now

    def begin_anew(self, now: int) -> None:
        """The path has gone dark."""
        self._began = self._next = now

    def due(self, now: int) -> bool:
        """Whether each candidate gets a probe now; the caller sends them, unless the path leads somewhere."""
        if now < self._next:
            return False
        self._next = now + (EVERY_NS if now - self._began < FAST_NS else LATER_NS)
        return True
