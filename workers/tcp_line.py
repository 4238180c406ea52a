"""A line: what waits for one connection on the way out, and how far it has got. Owned by the outbound duty.

A run is a reference into a slot: its bytes are sent from there. The one that was sent in part is finished before
anything else; light runs go before bulk. A slot goes on once all its runs are sent, spared or moved elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.connection import Connection
from pipeline.port import Port

BURST_VIEWS = 64           # pieces in one sendmsg; IOV_MAX is 1024 (linux/uio.h)
BURST_BYTES = 262144       # and their bytes: more would not fit a socket's unsent limit anyway


class Feed:
    """One outbound ring as a tcp worker sees it.

    The first `scanned` slots behind the port's cursor have been looked at. By place in the ring: `left`, the runs of a
    slot that are not done yet, and `spare`, the shards that this worker may still leave unsent.
    """

    def __init__(self, port: Port, kind: str) -> None:
        self.port = port
        self.kind = kind
        self.scanned = 0
        self.left = [0] * port.ring.capacity
        self.spare = [0] * port.ring.capacity

    def waiting(self) -> int:
        """Slots that have not been looked at."""
        return self.port.ready() - self.scanned

    def settle(self) -> int:
        """Hand on the slots whose runs are all done. Slots done."""
        port, left, scanned = self.port, self.left, self.scanned
        done = 0
        while done < scanned and not left[port.index(done)]:
            done += 1
        if done:
            self.scanned = scanned - done
            port.advance(done)
        return done

    def ahead(self, place: int) -> int:
        """How far a slot, by its place in the ring, is behind the port's cursor."""
        return (place - self.port.cursor) & (self.port.ring.capacity - 1)


class Run(NamedTuple):
    """Bytes of one slot for one connection: `head` (or None) and then `body`, `size` bytes in all.

    `shards` 0: a plain block, which goes out once, so it is never left out.
    """

    feed: Feed
    place: int
    shards: int
    size: int
    head: memoryview | None
    body: memoryview


class Line:
    """One connection's queues."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.light: deque[Run] = deque()
        self.bulk: deque[Run] = deque()
        self.begun: Run | None = None
        self.offset = 0            # bytes of `begun` that are sent
        self.rest = b""            # bytes without a slot that go before everything else
        self.full_since = 0
        self.stalled = False       # full for so long that others carry what waits
        self.broken = False        # a write failed: the inbound duty will take it off the roster

    @property
    def idle(self) -> bool:
        return not (self.light or self.bulk or self.begun or self.rest)

    def send(self) -> tuple[int, int, bool]:
        """One sendmsg of what waits: bytes sent, runs finished, and whether that was all of it.

        BlockingIOError if the socket takes nothing, OSError if the connection is broken.
        """
        views: list[bytes | memoryview] = []
        size = 0
        rest = self.rest
        if rest:
            views.append(rest)
            size = len(rest)
        begun = self.begun
        if begun is not None:
            views += _behind(begun, self.offset)
            size += begun.size - self.offset
        light = bulk = 0
        for run in self.light:
            views.append(run.body)
            if run.head is not None:
                views.insert(-1, run.head)
            size += run.size
            light += 1
            if size >= BURST_BYTES or len(views) >= BURST_VIEWS:
                break
        if size < BURST_BYTES and len(views) < BURST_VIEWS:
            for run in self.bulk:
                if run.head is not None:
                    views.append(run.head)
                views.append(run.body)
                size += run.size
                bulk += 1
                if size >= BURST_BYTES or len(views) >= BURST_VIEWS:
                    break
        sent = self.connection.socket.sendmsg(views)
        return sent, self._progress(sent, light, bulk), sent == size

    def _progress(self, sent: int, light: int, bulk: int) -> int:
        done = 0
        left = sent
        if self.rest:
            taken = min(left, len(self.rest))
            self.rest = self.rest[taken:]
            left -= taken
            if self.rest:
                return 0
        if self.begun is not None:
            if left < self.begun.size - self.offset:
                self.offset += left
                return 0
            left -= self.begun.size - self.offset
            self._finish(self.begun)
            self.begun = None
            done = 1
        for queue, count in ((self.light, light), (self.bulk, bulk)):
            for _ in range(count):
                run = queue[0]
                if left < run.size:
                    if left:
                        self.begun = queue.popleft()
                        self.offset = left
                    return done
                queue.popleft()
                left -= run.size
                self._finish(run)
                done += 1
        return done

    def _finish(self, run: Run) -> None:
        run.feed.left[run.place] -= 1

    def set_aside(self) -> None:
        """Keep a copy of what is left of the run in hand, so that its slot need not wait."""
        if self.begun is not None:
            self.rest += b"".join(_behind(self.begun, self.offset))
            self._finish(self.begun)
            self.begun = None

    def take_plain(self) -> list[Run]:
        """Take the plain blocks out of the queues."""
        plain = [run for queue in (self.light, self.bulk) for run in queue if not run.shards]
        if plain:
            self.light = deque(run for run in self.light if run.shards)
            self.bulk = deque(run for run in self.bulk if run.shards)
        return plain

    def withdraw(self) -> Iterator[Run]:
        """Take back every run, oldest first; the one in hand from its beginning."""
        if self.begun is not None:
            yield self.begun
            self.begun = None
        for queue in (self.light, self.bulk):
            yield from queue
            queue.clear()


def _behind(run: Run, offset: int) -> list[memoryview]:
    """What follows the first `offset` bytes of a run."""
    if run.head is None:
        return [run.body[offset:]]
    if offset < len(run.head):
        return [run.head[offset:], run.body]
    return [run.body[offset - len(run.head) :]]
