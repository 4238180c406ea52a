"""What a tcp worker has for one seat on the way out: lines, and what was set aside. Owned by the outbound duty.

    set aside    runs of lines that take nothing, so that their slots need not wait; at most peer_queue_bytes
    orphans      the same while the peer has no connection here: kept for `hold` seconds, for the next one
    rate         a token bucket over everything that is sent to it from here

A line that lags behind the others with its runs of shards holds nobody up: they are spared, that is left unsent, as
long as their block can do without them, and moved to another line after that. A line that takes nothing for STALL_NS,
and whose connection stands still, hands its plain blocks to another as well; BBR, which pauses by itself (PROBE_RTT),
does not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from pipeline.counters import ID
from pipeline.policy.token_bucket import TokenBucket
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.wire import framing
from workers.tcp.send_queue import Backlog, RingReader, SendItem, SendQueue

STALL_NS = 200_000_000  # the least retransmission timeout of Linux (TCP_RTO_MIN)
LAG_SLOTS = 4  # so far behind the middle of the others, a line is left out


class PeerSender:
    """`for_bulk`, `for_light`: the lines that carry what, never empty while there is a line."""

    def __init__(self, peer_handle: int, limit: int, since: int, counters: memoryview) -> None:
        self.peer = peer_handle & PEER_INDEX_MASK
        self._counters = counters
        self.lines: list[SendQueue] = []
        self.for_bulk: list[SendQueue] = []
        self.for_light: list[SendQueue] = []
        self.aside = Backlog(limit)
        self.orphans: deque[SendItem] = deque()
        self.lost_since = since  # since when it has no line
        self.bucket = TokenBucket(0)
        self._elsewhere = 0

    def sort(self, lines: Iterable[SendQueue]) -> None:
        """These are its lines now; who stands still carries nothing, unless all do."""
        self.lines = list(lines)
        moving = [line for line in self.lines if not line.stalled] or self.lines
        self.for_bulk = [line for line in moving if line.connection.traffic_class == framing.BULK] or moving
        self.for_light = [line for line in moving if line.connection.traffic_class == framing.LIGHT] or moving

    def limit(self, rate: int, elsewhere: int, now: int) -> None:
        """So many bytes a second from now on; 0: no limit. `elsewhere`: what has passed other workers counts too."""
        if rate != self.bucket.rate:
            self.bucket = TokenBucket(rate)
        elif rate:
            self.bucket.take(elsewhere - self._elsewhere, now)
        self._elsewhere = elsewhere

    def pool(self, light: bool) -> list[SendQueue]:
        return self.for_light if light else self.for_bulk

    def line_for(self, run: SendItem) -> SendQueue:
        """Plain blocks: one line of their lane's as long as the lines stay the same. Runs of shards: one in turn."""
        pool = self.pool(run.light)
        return pool[(run.place if run.shards else run.lane) % len(pool)]

    def adopt(self) -> None:
        """There are lines again: what waited for one goes first."""
        while self.orphans:
            run = self.orphans.popleft()
            self.line_for(run).queue(run.light).append(run)

    def give_up_orphans(self) -> int:
        """Nobody came for them. Runs dropped."""
        count = len(self.orphans)
        while self.orphans:
            run = self.orphans.popleft()
            run.feed.finish(run)
        return count

    # -- what a full line holds up

    def relieve(self, line: SendQueue, now: int) -> list[SendQueue]:
        """Leave out, or give to others, what this full line holds up. Lines that have got some of it."""
        if len(self.lines) == 1:
            return []
        changed = []
        if not line.stalled and now - line.full_since > STALL_NS and line.connection.stands_still():
            line.stalled = True
            self.sort(self.lines)
            line.keep_begun()
            for run in line.take_plain():
                other = self.line_for(run)
                other.inherit(run)
                changed.append(other)
                self._counters[_RUNS_MOVED] += other is not line
        for light in (True, False):
            queue = line.queue(light)
            others = [each for each in self.pool(light) if each is not line]
            if others and queue and queue[0].shards and queue[0].in_slot:
                changed += self._leave_out(queue, others)
        return changed

    def _leave_out(self, queue: deque[SendItem], others: list[SendQueue]) -> list[SendQueue]:
        feed = queue[0].feed
        heads = sorted(_head(other, feed, queue[0].light) for other in others)
        limit = heads[len(heads) // 2] - LAG_SLOTS
        changed = []
        while queue and queue[0].shards and queue[0].feed is feed and feed.ahead(queue[0].place) <= limit:
            run = queue.popleft()
            if feed.spare[run.place] >= run.shards:
                feed.spare[run.place] -= run.shards
                feed.left[run.place] -= 1
                self._counters[_RUNS_SPARED] += 1
            else:
                other = min(others, key=lambda each: len(each.bulk) + len(each.light))
                other.queue(run.light).append(run)
                changed.append(other)
                self._counters[_RUNS_MOVED] += 1
        return changed


def _head(line: SendQueue, feed: RingReader, light: bool) -> int:
    """How far this line has got in the feed: slots behind the port's cursor."""
    queue = line.queue(light)
    return feed.ahead(queue[0].place) if queue and queue[0].feed is feed else feed.scanned


_RUNS_SPARED = ID["tcp.runs_spared"]
_RUNS_MOVED = ID["tcp.runs_moved"]
