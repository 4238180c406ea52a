"""A line: what waits for one connection on the way out, and how far it has got. Owned by the outbound duty.

A run is a reference into a slot: its bytes are sent from there. The one that was sent in part is finished before
anything else; light runs go before bulk. A slot goes on once all its runs are sent, spared or moved elsewhere. A run
can be set aside: copied out of its slot, so that the slot need not wait for it.

With TLS what is sealed counts as sent: its ciphertext waits in `rest`, and its slots go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.runtime.port import Port
from pipeline.transport.connection import Connection

BURST_VIEWS = 64  # pieces in one sendmsg; IOV_MAX is 1024 (linux/uio.h)
BURST_BYTES = 262144  # and their bytes: more would not fit a socket's unsent limit anyway
SEAL_BYTES = 65536  # the same with TLS: what is sealed is in front of whatever comes


class RingReader:
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

    def finish(self, run: SendItem) -> None:
        self.left[run.place] -= 1

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


class Backlog:
    """Bytes of runs that were set aside for one peer, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, run: SendItem) -> SendItem | None:
        """A copy that needs no slot; None if there is no room. The slot's own is finished either way."""
        run.feed.finish(run)
        if self.used + run.size > self.limit:
            return None
        self.used += run.size
        return run._replace(feed=self, head=run.head and bytes(run.head), body=bytes(run.body))

    def finish(self, run: SendItem) -> None:
        self.used -= run.size


class SendItem(NamedTuple):
    """Bytes of one slot for one connection: `head` (or None) and then `body`, `size` bytes in all.

    `shards` 0: a plain block, which goes out once, so it is never left out.
    """

    feed: RingReader | Backlog
    place: int
    shards: int
    light: bool
    size: int
    head: memoryview | bytes | None
    body: memoryview | bytes

    @property
    def lane(self) -> int:
        """Of its ring; what was set aside belongs to none any more."""
        return self.feed.port.lane if self.in_slot else 0

    @property
    def in_slot(self) -> bool:
        return type(self.feed) is RingReader


class SendQueue:
    """One connection's queues."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.light: deque[SendItem] = deque()
        self.bulk: deque[SendItem] = deque()
        self.begun: SendItem | None = None
        self.offset = 0  # bytes of `begun` that are sent
        self.rest: bytes | memoryview = b""  # bytes without a slot that go before everything else
        self.full_since = 0
        self.retry_at = 0  # when one that has been full for long is tried again
        self.stalled = False  # full for so long that others carry what waits
        self.broken = False  # a write failed: the inbound duty will take it off the roster
        self.mixed = False  # what was set aside may be behind what was not

    @property
    def idle(self) -> bool:
        return not (self.light or self.bulk or self.begun or self.rest)

    def queue(self, light: bool) -> deque[SendItem]:
        return self.light if light else self.bulk

    def send(self) -> tuple[int, int, bool]:
        """Send some of what waits: bytes sent, runs finished, and whether that was all that one call takes.

        BlockingIOError if the socket takes nothing, OSError if the connection is broken.
        """
        channel = self.connection.channel
        if channel is None:
            views, size, light, bulk = self._gather(BURST_BYTES)
            sent = self.connection.socket.sendmsg(views)
            return sent, self._progress(sent, light, bulk), sent == size
        done = 0
        pieces = [self.rest] if self.rest else []
        if not pieces:
            views, size, light, bulk = self._gather(SEAL_BYTES)
            pieces = channel.records(views)
            done = self._progress(size, light, bulk)
        sent = 0
        try:
            sent = self.connection.socket.sendmsg(pieces)
        except BlockingIOError:
            if not done:
                raise
        finally:
            self.rest = _after(pieces, sent)
        return sent, done, not self.rest

    def put_first(self, data: bytes) -> None:
        """Bytes that the channel itself has to say, or a keepalive, ahead of what waits. The line is idle."""
        self.rest = data

    def _gather(self, most: int) -> tuple[list[bytes | memoryview], int, int, int]:
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
            if size >= most or len(views) >= BURST_VIEWS:
                break
        if size < most and len(views) < BURST_VIEWS:
            for run in self.bulk:
                if run.head is not None:
                    views.append(run.head)
                views.append(run.body)
                size += run.size
                bulk += 1
                if size >= most or len(views) >= BURST_VIEWS:
                    break
        return views, size, light, bulk

    def _progress(self, sent: int, light: int, bulk: int) -> int:
        done = 0
        left = sent
        if self.rest and self.connection.channel is None:
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
            self.begun.feed.finish(self.begun)
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
                run.feed.finish(run)
                done += 1
        return done

    # -- what is not sent from its slot

    def keep_begun(self) -> None:
        """Keep a copy of what is left of the run in hand, so that its slot need not wait."""
        if self.begun is not None:
            self.rest = b"".join([self.rest, *_behind(self.begun, self.offset)])
            self.begun.feed.finish(self.begun)
            self.begun = None

    def set_aside(self, aside: Backlog) -> int:
        """Copy this line's runs out of their slots, oldest first. Runs for which there was no room: they are
        dropped."""
        self.keep_begun()
        dropped = 0
        for queue in (self.light, self.bulk):
            in_slots = []
            while queue and (queue[-1].in_slot or self.mixed):  # else what was set aside before is in front of them
                in_slots.append(queue.pop())
            for run in reversed(in_slots):
                copied = aside.take(run) if run.in_slot else run
                if copied is None:
                    dropped += 1
                else:
                    queue.append(copied)
        self.mixed = False
        return dropped

    def inherit(self, run: SendItem) -> None:
        """Take over a run that was another line's."""
        self.queue(run.light).append(run)
        self.mixed = True

    def take_plain(self) -> list[SendItem]:
        """Take the plain blocks out of the queues."""
        plain = [run for queue in (self.light, self.bulk) for run in queue if not run.shards]
        if plain:
            self.light = deque(run for run in self.light if run.shards)
            self.bulk = deque(run for run in self.bulk if run.shards)
        return plain

    def withdraw(self) -> Iterator[SendItem]:
        """Take back every run, oldest first; the one in hand from its beginning."""
        if self.begun is not None:
            yield self.begun
            self.begun = None
        for queue in (self.light, self.bulk):
            yield from queue
            queue.clear()


def _after(pieces: list[bytes | memoryview], sent: int) -> bytes | memoryview:
    """What is left of these once so many bytes are sent."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            rest = memoryview(piece)[sent:]
            return rest if index == len(pieces) - 1 else b"".join((rest, *pieces[index + 1 :]))
        sent -= len(piece)
    return b""


def _behind(run: SendItem, offset: int) -> list[memoryview]:
    """What follows the first `offset` bytes of a run."""
    if run.head is None:
        return [run.body[offset:]]
    if offset < len(run.head):
        return [run.head[offset:], run.body]
    return [run.body[offset - len(run.head) :]]
