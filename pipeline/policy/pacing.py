"""The bulk pacer: how fast the bulk connections may send together, so that the path's queue stays short.

Several connections at once fill the queue of a bottleneck, whatever their congestion control is. Every packet of a
light flow then waits in it. The kernel's round trip times tell how long it is: tcpi_rtt above tcpi_min_rtt.

    not limited, queue above QUEUE_MOST   begin a limit at the delivery rate, if at least OURS_LEAST of our bytes are
                                          in that queue
    limited                               the limit follows the delivery rate, corrected so that the queue comes to
                                          QUEUE_AIM_NS within DRAIN_NS; so the bottleneck never runs dry
    limit far above the delivery rate     lift it: it limits nothing
    the other end does not read           no limit for UNREAD_NS: its kernel answers late then, which looks like a
                                          queue (delayed acknowledgements, RFC 9293, 3.8.6.3)
    queue above QUEUE_MOST for LONG       lift the limit for FREE_NS. The queue is not ours, and its other users would
    updates, or above QUEUE_AIM_NS while  take the whole path; or the delay is no queue but a path, or a machine, that
    the limit is below 1 / FALLEN of its  is late now and then
    first value

LEDBAT (RFC 6817) has the same aim; the way out is ours.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

QUEUE_AIM_NS = 5_000_000  # or an eighth of the shortest round trip, if that is more
QUEUE_MOST = 2  # times QUEUE_AIM_NS
DRAIN_NS = 250_000_000  # updates come every 100 ms, and round trip times are smoothed over some
GROWTH = 1.02  # of the limit with each update besides, to find out whether the path carries more
GROWTH_EMPTY = 1.05  # where there is hardly a queue
SLOWEST_FALL = 0.85  # in one update: after a moment with little to send most of the limit is left
UNLIMITED = 1.15  # a limit of so many times the delivery rate limits nothing, and is lifted if that is so
UNLIMITED_UPDATES = 20  # for so long: flows pause, and BBR does so by itself (PROBE_RTT)
LONG = 20
FALLEN = 4  # a path seldom narrows by more; then its queue is full for FREE_NS
OURS_LEAST = 4096  # bytes, some segments: with less than that under way we are not what fills a queue
FREE_NS = 30_000_000_000
UNREAD_NS = 2_000_000_000  # smoothed round trip times remember late answers for so long
DELIVERY_WINDOW = 3  # updates over which deliveries are averaged
IN_USE = 0.85  # of the limit: flows that deliver less do not find out whether the path carries more
QUEUE_SHARE = 8
BUSY_SHARE = 4  # a connection is busy if it delivers this part of an equal share


class PathSample(NamedTuple):
    """The kernel's numbers of one connection: round trip times in ns, bytes delivered since its beginning."""

    serial: int
    rtt_ns: int
    min_rtt_ns: int
    delivered: int
    unread: bool = False  # the other end has not read most of what it got


class BulkPacer:
    """`rate`: the limit for all bulk connections together in bytes a second; 0: none."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._first = 0.0  # the limit as it began
        self._before: dict[int, int] = {}
        self._window: deque[tuple[int, int]] = deque(maxlen=DELIVERY_WINDOW)  # bytes delivered, time that took
        self._updated_at = 0
        self._idle = 0  # updates in a row with a limit that limits nothing
        self._above = 0  # updates in a row with a long queue
        self._free_until = 0

    def update(self, flows: list[PathSample], now: int) -> float:
        """The limit for each connection from now on, 0 for none. `flows`: the bulk connections."""
        delivered = {flow: flow.delivered - self._before.get(flow.serial, flow.delivered) for flow in flows}
        self._before = {flow.serial: flow.delivered for flow in flows}
        total = sum(delivered.values())
        if self._updated_at:
            self._window.append((total, now - self._updated_at))
        self._updated_at = now
        busy = [flow for flow in flows if delivered[flow] * BUSY_SHARE * len(flows) > total]
        actual = sum(part for part, _ in self._window) * 1e9 / max(1, sum(time for _, time in self._window))
        if any(flow.unread for flow in busy):
            self._free_until = max(self._free_until, now + UNREAD_NS)
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
        if self._idle > UNLIMITED_UPDATES:
            return 0.0
        return limit if not self._idle else min(limit, self.rate)
