"""Floor 1, pure. How fast the connections for bulk may send together, so that the path's queue stays short.

Several connections at once fill the queue of a bottleneck whatever their congestion control is, and every packet of a
light flow then waits in it. The kernel's round trip times tell how long it is: tcpi_rtt above tcpi_min_rtt.

    queue above its limit    send at CUT of what was delivered
    below                    GROWTH more each look, until the limit limits nothing
    CUTS_MOST cuts in a row  the queue is not ours: no limit for FREE_NS, whoever else fills it would have it all

As LEDBAT (RFC 6817) does, but with a way out where others fill the queue.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

QUEUE_NS = 8_000_000
QUEUE_SHARE = 4                # or a quarter of the shortest round trip, if that is more
CUT = 0.85
GROWTH = 1.03
UNLIMITED = 2.0                # a limit of so many times what is delivered limits nothing
CUTS_MOST = 8
FREE_NS = 30_000_000_000
WINDOW = 5                     # looks over which deliveries are averaged


class Flow(NamedTuple):
    """What the kernel says about one connection: round trip times in ns, bytes delivered since it was made."""

    serial: int
    rtt_ns: int
    min_rtt_ns: int
    delivered: int


class Pace:
    """`rate` is the limit for all together in bytes a second, 0 for none."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._before: dict[int, int] = {}
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW)   # bytes delivered, time that took
        self._looked = 0
        self._cuts = 0
        self._free_until = 0

    def look(self, flows: list[Flow], now: int) -> float:
        """The limit from now on. `flows`: the connections for bulk."""
        delivered = sum(flow.delivered - self._before.get(flow.serial, flow.delivered) for flow in flows)
        self._before = {flow.serial: flow.delivered for flow in flows}
        if self._looked:
            self._window.append((delivered, now - self._looked))
        self._looked = now
        if not flows or not self._window or now < self._free_until:
            self.rate = 0.0
            return self.rate
        actual = 1e9 * sum(part for part, _ in self._window) / sum(time for _, time in self._window)
        if self._queued(flows) and actual:
            self._cuts += 1
            self.rate = CUT * min(actual, self.rate or actual)
            if self._cuts > CUTS_MOST:
                self.rate = 0.0
                self._cuts = 0
                self._free_until = now + FREE_NS
        else:
            self._cuts = 0
            self.rate *= GROWTH
            if self.rate > UNLIMITED * actual:
                self.rate = 0.0
        return self.rate

    def _queued(self, flows: list[Flow]) -> bool:
        """Whether most of them see a queue."""
        waits = sorted(flow.rtt_ns - flow.min_rtt_ns - max(QUEUE_NS, flow.min_rtt_ns // QUEUE_SHARE) for flow in flows)
        return waits[len(waits) // 2] > 0
