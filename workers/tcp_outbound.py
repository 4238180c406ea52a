"""The outbound duty of a tcp worker: runs from the outbound rings onto connections.

    scan     each new slot once: its runs, those of this worker, join the lines of their connections
    send     one sendmsg for what waits on a line
    settle   hand on the slots whose runs are all done

Who carries what. A plain ring stays on one connection as long as the set of connections stays, so order inside a
flow holds. Coded and light slots bring a table of runs, each for a connection of its own.

A full socket. Plain blocks wait: the ring fills, and the ring stalls the TUN reader: no queue besides. A line that lags
behind the others with its runs of shards holds nobody up: they are spared, that is left unsent, as long as their block
can do without them, and moved to another line after that. A line that takes nothing for STALL_NS, and whose connection
stands still, hands its plain blocks to another as well; BBR, which pauses by itself (PROBE_RTT), does not count.

A connection that dies: its runs go to the others. Without any, slots wait `hold` seconds and are then dropped, counted.
"""

from __future__ import annotations

import select
import time
from collections import deque

from pipeline import carrier, layout, stripe, wire
from pipeline.connection import Connection, Roster
from pipeline.counters import ID
from pipeline.shard import RUN_BYTES
from pipeline.worker import DONE, MORE, NOTHING, Attachment
from workers.tcp_line import Feed, Line, Run

KEEPALIVE_CHECK_NS = 100_000_000
BLOCKED_PAUSE_S = 0.001    # how long to wait on full sockets while a ring may have something for another
STALL_NS = 200_000_000     # the least retransmission timeout of Linux (TCP_RTO_MIN)
LAG_SLOTS = 4              # so far behind the middle of the others, a line is left out


class Outbound:
    """Every outbound ring to this worker's connections."""

    name = "outbound"

    def __init__(self, attachment: Attachment, roster: Roster) -> None:
        self._feeds = [Feed(port, kind) for kind in ("light", "outbound", "coded")
                       for port in attachment.ports(self.name, kind)]
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._roster = roster
        self._others = carrier.others(attachment)
        self._keepalive_ns = int(attachment.settings["keepalive"] * 1e9)
        self._hold_ns = int(attachment.settings["hold"] * 1e9)
        self._lines: dict[Connection, Line] = {}
        self._for_bulk: list[Line] = []
        self._for_light: list[Line] = []
        self._full: list[Line] = []
        self._unsent = False     # a line has more than goes into one sendmsg
        self._next_check = 0
        self._holding = False
        self.ended = False

    # -- the duty

    def work(self) -> int:
        """Once around: new slots onto the lines, each line to its socket, finished slots on."""
        if self._roster.version != self._roster.seen:
            self._follow_roster()
        now = time.monotonic_ns()
        self._holding = False
        found = 0
        for feed in self._feeds:
            waiting = feed.waiting()
            if waiting:
                found += self._scan(feed, waiting, now)
        self._full.clear()
        self._unsent = False
        for line in self._lines.values():
            if line.light or line.bulk or line.begun or line.rest:
                self._send(line, now)
        for line in self._full:
            self._relieve(line, now)
        for feed in self._feeds:
            if feed.scanned:
                found += feed.settle()
        if now >= self._next_check:
            self._next_check = now + KEEPALIVE_CHECK_NS
            self._send_keepalives(now)
        return MORE if self._unsent else NOTHING if not found else DONE if self._full else MORE

    def wait(self, seconds: float) -> None:
        if self._full:
            full = select.poll()
            for line in self._full:
                full.register(line.connection.fd, select.POLLOUT)
            nobody = len(self._full) == len(self._lines)  # can take anything: the sockets are all there is to wait for
            full.poll(1000 * (seconds if nobody else min(seconds, BLOCKED_PAUSE_S)))
        elif self._holding:
            self._bell.wait(self._roster_changed, seconds)
        else:
            self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        self.ended = not self._full or not self._lines
        return self.ended

    def kick(self) -> None:
        """The roster has changed (called by the inbound duty)."""
        self._bell.kick()

    def _ready(self) -> int:
        for feed in self._feeds:
            if feed.port.ready() > feed.scanned:
                return 1
        return self._roster_changed()

    def _roster_changed(self) -> bool:
        return self._roster.version != self._roster.seen

    # -- connections come and go

    def _follow_roster(self) -> None:
        self._roster.seen = self._roster.version
        established = self._roster.established
        lines = {connection: self._lines.get(connection) or Line(connection) for connection in established}
        gone = [line for connection, line in self._lines.items() if connection not in lines]
        self._lines = lines
        self._sort_lines()
        for line in gone:
            self._counters[ID["tcp.blocks_resent"]] += line.begun is not None
            for run in line.withdraw():
                if lines:
                    pool = self._pool(run.feed)
                    self._enqueue(run, pool[run.place % len(pool)] if run.shards else self._line_of(run.feed))
        if not lines:
            for feed in self._feeds:  # whatever is not handed on is looked at again when there is a connection
                feed.scanned = 0

    def _sort_lines(self) -> None:
        lines = [line for line in self._lines.values() if not line.stalled] or list(self._lines.values())
        self._for_bulk = [line for line in lines if line.connection.purpose == wire.BULK] or lines
        self._for_light = [line for line in lines if line.connection.purpose == wire.LIGHT] or lines

    def _pool(self, feed: Feed) -> list[Line]:
        return self._for_light if feed.kind == "light" else self._for_bulk

    # -- from the rings to the lines

    def _scan(self, feed: Feed, waiting: int, now: int) -> int:
        """Put this worker's runs of new slots onto lines. Slots looked at."""
        port = feed.port
        pool = self._pool(feed)
        position = port.position
        done = 0
        while done < waiting:
            ahead = feed.scanned
            slot = port.slot(ahead)
            place = port.index(ahead)
            start, length, member, _, runs = _unpack_slot(slot)
            if runs:
                if not self._scan_table(feed, slot, place, runs, pool, now):
                    break
            elif member != position:
                feed.left[place] = 0
            elif pool:
                feed.left[place] = 1
                self._enqueue(Run(feed, place, 0, length, None, slot[start : start + length]), self._line_of(feed))
            elif self._give_up(now):
                feed.left[place] = 0
            else:
                break
            feed.scanned += 1
            done += 1
        return done

    def _scan_table(self, feed: Feed, slot: memoryview, place: int, runs: int, pool: list[Line], now: int) -> bool:
        """The same for a slot with a table. False if it has to wait for a connection."""
        position = feed.port.position
        _, spare, sparer = stripe.HEADER.unpack_from(slot, layout.SLOT_RUNS_AT)
        left = 0
        at = layout.SLOT_TABLE_AT
        for _ in range(runs):
            member, ordinal, shards, head, start, length = _unpack_row(slot, at)
            at += layout.RUN_ROW_BYTES
            if member != position:
                continue
            if not pool:
                feed.left[place] = 0
                return self._give_up(now)
            header = slot[head : head + RUN_BYTES] if head else None
            run = Run(feed, place, shards, length + (RUN_BYTES if head else 0), header, slot[start : start + length])
            self._enqueue(run, pool[ordinal % len(pool)])
            left += 1
        feed.left[place] = left
        feed.spare[place] = spare if sparer == position else 0
        return True

    def _enqueue(self, run: Run, line: Line) -> None:
        self._queue(run.feed, line).append(run)

    def _queue(self, feed: Feed, line: Line) -> deque[Run]:
        return line.light if feed.kind == "light" else line.bulk

    def _line_of(self, feed: Feed) -> Line:
        """For plain blocks: one connection as long as the connections stay the same."""
        pool = self._pool(feed)
        return pool[feed.port.lane % len(pool)]

    def _give_up(self, now: int) -> bool:
        """No connection: let the ring fill, but not with packets that are too old to be worth sending. Once ours are
        lost while another worker has one, what was stamped for us would only hold the others up."""
        lost = self._roster.version and any(words[carrier.ESTABLISHED] for words in self._others)
        if now - self._roster.empty_since < self._hold_ns and not lost:
            self._holding = True
            return False
        self._counters[ID["tcp.dropped_no_connection"]] += 1
        return True

    # -- from the lines to the sockets

    def _send(self, line: Line, now: int) -> None:
        if line.broken:
            self._holding = True
            return
        connection = line.connection
        try:
            sent, frames, all_of_it = line.send()
            self._unsent |= all_of_it and not line.idle
        except BlockingIOError:
            sent = frames = 0
            all_of_it = False
        except OSError as error:
            connection.fail(error)
            line.broken = True
            self._holding = True
            return
        counters = self._counters
        if not all_of_it:
            counters[_SOCKET_FULL_WAITS] += 1
            self._full.append(line)
        if sent:
            counters[_FRAMES_SENT] += frames
            counters[_BYTES_SENT] += sent
            connection.sent += sent
            connection.spoke = now
            line.full_since = 0 if all_of_it else now
            if line.stalled:
                line.stalled = False
                self._sort_lines()
        elif not line.full_since:
            line.full_since = now

    def _relieve(self, line: Line, now: int) -> None:
        """Leave out, or give to others, what a full line holds up."""
        if len(self._lines) == 1:
            return
        if not line.stalled and now - line.full_since > STALL_NS and line.connection.stands_still():
            line.stalled = True
            self._sort_lines()
            line.set_aside()
            for run in line.take_plain():
                other = self._line_of(run.feed)
                self._enqueue(run, other)
                self._counters[ID["tcp.runs_moved"]] += other is not line
        for queue, pool in ((line.light, self._for_light), (line.bulk, self._for_bulk)):
            if queue and queue[0].shards:
                self._leave_out(line, queue, pool)

    def _leave_out(self, line: Line, queue: deque[Run], pool: list[Line]) -> None:
        others = [each for each in pool if each is not line]
        if not others:
            return
        feed = queue[0].feed
        heads = sorted(self._head(other, feed) for other in others)
        limit = heads[len(heads) // 2] - LAG_SLOTS
        while queue and queue[0].shards and queue[0].feed is feed and feed.ahead(queue[0].place) <= limit:
            run = queue.popleft()
            if feed.spare[run.place] >= run.shards:
                feed.spare[run.place] -= run.shards
                feed.left[run.place] -= 1
                self._counters[ID["tcp.runs_spared"]] += 1
            else:
                other = min(others, key=lambda each: len(each.bulk) + len(each.light))
                self._enqueue(run, other)
                self._counters[ID["tcp.runs_moved"]] += 1

    def _head(self, line: Line, feed: Feed) -> int:
        """How far this line has got in the feed: slots behind the port's cursor."""
        queue = self._queue(feed, line)
        return feed.ahead(queue[0].place) if queue and queue[0].feed is feed else feed.scanned

    def _send_keepalives(self, now: int) -> None:
        for connection, line in self._lines.items():
            if now - connection.spoke < self._keepalive_ns or not line.idle or line.broken:
                continue
            line.rest = wire.KEEPALIVE_FRAME
            self._send(line, now)
            self._counters[ID["tcp.keepalives_sent"]] += not line.rest


_unpack_slot = stripe.SLOT_AND_RUNS.unpack_from
_unpack_row = stripe.ROW.unpack_from
_FRAMES_SENT = ID["tcp.frames_sent"]
_BYTES_SENT = ID["tcp.bytes_sent"]
_SOCKET_FULL_WAITS = ID["tcp.socket_full_waits"]
