"""How fast the connections for bulk may send together, so that the path's queue stays short.

Several connections at once fill the queue of a bottleneck whatever their congestion control is, and every packet of a
light flow then waits in it. The kernel's round trip times tell how long it is: tcpi_rtt above tcpi_min_rtt.

    no limit, queue above QUEUE_MOST      a limit: what is delivered, if that makes OURS_LEAST in such a time
    a limit                               what is delivered, more or less by so much as brings the queue to QUEUE_AIM
                                          within DRAIN; so the bottleneck never runs dry
    far above what is delivered           no limit: it limits nothing
    above QUEUE_MOST for LONG looks, or   no limit for FREE_NS: the queue is not ours, and whoever else fills it would
    above QUEUE_AIM although the limit    have it all; or what delays us is no queue but a path, or a machine, that is
    has come down FALLEN times            late now and then

LEDBAT (RFC 6817) has the same aim; the way out is ours.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

QUEUE_AIM_NS = 5_000_000  # or an eighth of the shortest round trip, if that is more
QUEUE_MOST = 2  # times QUEUE_AIM
DRAIN_NS = 250_000_000  # looks come every 100 ms, and round trip times are smoothed over some
GROWTH = 1.02  # beside that, to find out whether there is more
GROWTH_EMPTY = 1.05  # the same where there is hardly a queue
SLOWEST_FALL = 0.85  # in one look: who had little to send for a moment keeps most of the limit
UNLIMITED = 1.15  # a limit of so many times what is delivered limits nothing, and goes if that is so
UNLIMITED_LOOKS = 20  # for so long: flows pause, and BBR does so by itself (PROBE_RTT)
LONG = 20
FALLEN = 4  # a path seldom narrows by more; then its queue is full for FREE_NS
OURS_LEAST = 4096  # bytes, some segments: with less than that under way we are not what fills a queue
FREE_NS = 30_000_000_000
WINDOW = 3  # looks over which deliveries are averaged
IN_USE = 0.85  # who delivers less than this of the limit does not find out that there is more
QUEUE_SHARE = 8
BUSY_SHARE = 4  # a connection is busy if it delivers this part of an equal share


class PathSample(NamedTuple):
    """What the kernel says about one connection: round trip times in ns, bytes delivered since it was made."""

    serial: int
    rtt_ns: int
    min_rtt_ns: int
    delivered: int


class BulkPacer:
    """`rate` is the limit for all together in bytes a second, 0 for none."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._first = 0.0  # the limit as it was when there came to be one
        self._before: dict[int, int] = {}
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW)  # bytes delivered, time that took
        self._looked = 0
        self._idle = 0  # looks in a row with a limit that limits nothing
        self._above = 0  # looks in a row with a long queue
        self._free_until = 0

    def look(self, flows: list[PathSample], now: int) -> float:
        """The limit for each connection from now on, 0 for none. `flows`: the connections for bulk."""
        delivered = {flow: flow.delivered - self._before.get(flow.serial, flow.delivered) for flow in flows}
        self._before = {flow.serial: flow.delivered for flow in flows}
        total = sum(delivered.values())
        if self._looked:
            self._window.append((total, now - self._looked))
        self._looked = now
        busy = [flow for flow in flows if delivered[flow] * BUSY_SHARE * len(flows) > total]
        actual = sum(part for part, _ in self._window) * 1e9 / max(1, sum(time for _, time in self._window))
        if now < self._free_until:
            self.rate = 0.0
        elif busy:
            self.rate = self._limit(actual, busy, now)
        return self.rate / max(1, len(busy))

    def _limit(self, actual: float, busy: list[PathSample], now: int) -> float:
        flow = sorted(busy, key=lambda flow: flow.rtt_ns - flow.min_rtt_ns)[len(busy) // 2]
        queue = flow.rtt_ns - flow.min_rtt_ns
        aim = max(QUEUE_AIM_NS, flow.min_rtt_ns // QUEUE_SHARE)
        self._above = self._above + 1 if queue > QUEUE_MOST * aim else 0
        if self._above > LONG or (queue > aim and 0 < self.rate < self._first / FALLEN):
            self._above = 0
            self._free_until = now + FREE_NS
            return 0.0
        if not self.rate:
            if not self._above or actual * queue < OURS_LEAST * 1e9:
                return 0.0
            self._first = actual
        change = (aim - queue) / DRAIN_NS
        if change < 0:
            limit = max(actual, SLOWEST_FALL * self.rate) * max(0.5, 1 + change)
        else:
            limit = max(actual, self.rate)
            if actual > IN_USE * self.rate:
                limit *= (GROWTH if queue > aim // 4 else GROWTH_EMPTY) + change
        self._idle = self._idle + 1 if limit > UNLIMITED * actual else 0
        if self._idle > UNLIMITED_LOOKS:
            return 0.0
        return limit if not self._idle else min(limit, self.rate)
