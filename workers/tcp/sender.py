"""The outbound duty of a tcp worker: runs from the outbound rings onto connections.

    scan     each new slot once: its runs, those of this worker, join the lines of their connections
    send     one sendmsg for what waits on a line
    settle   hand on the slots whose runs are all done

Who carries what. A plain ring stays on one connection as long as the set of connections stays, so order inside a
flow holds. Coded and light slots bring a table of runs, each for a connection of its own.

A full socket. Plain blocks wait: the ring fills, and the ring stalls the TUN reader: no queue besides. What a line
holds up others of its peer may carry (`tcp_peer`).

A peer that takes nothing. With one peer the ring waits, and TUN with it. With several the others must not: once a ring
is half full, what waits in it for full lines is set aside for their peers, within bounds, and dropped beyond.

A connection that dies: its runs go to the peer's others. Without any, they wait `hold` seconds and are then dropped,
counted: in the ring if there is one peer, set aside if there are several.
"""

from __future__ import annotations

import select
import time

from pipeline.counters import ID
from pipeline.fec.shard import RUN_BYTES
from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from pipeline.shm import layout
from pipeline.shm.layout import LINK_ESTABLISHED, RECORD_WORDS, SENT_BYTES, SENT_DROPPED
from pipeline.shm.slot import MARKS, RUN_ROW, RUN_TABLE_HEADER, SLOT_AND_RUNS
from pipeline.transport.connection import Connection, ConnectionList
from pipeline.wire import framing
from workers.tcp.peer_sender import PeerSender
from workers.tcp.send_queue import RingReader, SendItem, SendQueue

KEEPALIVE_CHECK_NS = 100_000_000
BLOCKED_PAUSE_S = 0.001  # how long to wait on full sockets while a ring may have something for another
STUCK_NS = 20_000_000  # a line that has taken nothing for so long is tried again
RETRY_NS = 5_000_000  # so often, and not waited for


class Sender:
    """Every outbound ring to this worker's connections."""

    name = "outbound"

    def __init__(self, attachment: Attachment, connection_list: ConnectionList) -> None:
        self._feeds = [
            RingReader(port, kind)
            for kind in ("light", "outbound", "coded", "transit")
            for port in attachment.ports(self.name, kind)
        ]
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._connection_list = connection_list
        self._table = attachment.peers
        self._lane = attachment.me.lane
        self._sent = attachment.peers.sent[attachment.me.lane]
        self._several = attachment.peers.capacity > 1
        self._queue_bytes = attachment.settings["peer_queue_bytes"]
        self._keepalive_ns = int(attachment.settings["keepalive"] * 1e9)
        self._hold_ns = int(attachment.settings["hold"] * 1e9)
        self._lines: dict[Connection, SendQueue] = {}
        self._peers: dict[int, PeerSender] = {}  # by seat
        self._busy: dict[SendQueue, None] = {}  # lines that have something to send, in the order in which they got it
        self._full: list[SendQueue] = []
        self._limited: list[SendQueue] = []  # those of peers that have used up their rate
        self._next_due = 0  # when a peer may be sent to again that has used up its rate; 0: none has
        self._unsent = False  # a line has more than goes into one sendmsg
        self._next_check = 0
        self._crowd = False  # at the last tick more than one peer was connected, here or with another worker
        self._holding = False
        self._began = time.monotonic_ns()
        self.ended = False

    # -- the duty

    def work(self) -> int:
        """Once around: new slots onto the lines, each line to its socket, finished slots on."""
        now = time.monotonic_ns()
        if self._connection_list.version != self._connection_list.seen:
            self._follow_connections(now)
        self._holding = False
        found = 0
        for feed in self._feeds:
            waiting = feed.waiting()
            if waiting:
                found += self._scan(feed, waiting, now)
        self._full.clear()
        self._limited.clear()
        self._unsent = False
        self._next_due = 0
        if self._busy:
            for line in list(self._busy):
                self._send(line, now)
            if self._full or self._limited:
                self._relieve_all(now)
        for feed in self._feeds:
            if feed.scanned:
                found += feed.settle()
        if now >= self._next_check:
            self._next_check = now + KEEPALIVE_CHECK_NS
            self._tick(now)
        return MORE if self._unsent else NOTHING if not found else DONE if self._full else MORE

    def wait(self, seconds: float) -> None:
        if self._next_due:
            seconds = min(seconds, max(0.0, (self._next_due - time.monotonic_ns()) / 1e9))
        if self._full:
            seconds = min(seconds, RETRY_NS / 1e9)
        now = time.monotonic_ns()
        moving = [line for line in self._full if now - line.full_since < STUCK_NS]
        if moving:
            full = select.poll()
            for line in moving:
                full.register(line.connection.fd, select.POLLOUT)
            nobody = len(moving) == len(self._lines)  # can take anything: the sockets are all there is to wait for
            full.poll(1000 * (seconds if nobody else min(seconds, BLOCKED_PAUSE_S)))
        elif self._holding:
            self._bell.wait(self._connections_changed, seconds)
        else:
            self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        self.ended = not (self._full or self._limited) or not self._lines
        return self.ended

    def kick(self) -> None:
        """The roster has changed (called by the inbound duty)."""
        self._bell.kick()

    def _ready(self) -> int:
        for feed in self._feeds:
            if feed.port.ready() > feed.scanned:
                return 1
        return self._connections_changed()

    def _connections_changed(self) -> bool:
        return self._connection_list.version != self._connection_list.seen

    # -- connections come and go

    def _follow_connections(self, now: int) -> None:
        self._connection_list.seen = self._connection_list.version
        established = self._connection_list.established
        lines = {connection: self._lines.get(connection) or SendQueue(connection) for connection in established}
        gone = [line for connection, line in self._lines.items() if connection not in lines]
        of_handles: dict[int, list[SendQueue]] = {line.connection.peer_handle: [] for line in gone}
        for line in lines.values():
            of_handles.setdefault(line.connection.peer_handle, []).append(line)
        self._lines = lines
        for peer_handle, mine in of_handles.items():
            out = self._peer(peer_handle)
            if out.lines and not mine:
                out.lost_since = now
            out.sort(mine)
            out.limit(self._table.rate(out.peer), self._table.sent_elsewhere(out.peer, self._lane), now)
            if mine and out.orphans:
                out.adopt()
                self._busy.update(dict.fromkeys(mine))
        for line in gone:
            self._busy.pop(line, None)
            self._counters[ID["tcp.blocks_resent"]] += line.begun is not None
            out = self._peer(line.connection.peer_handle)
            for run in line.withdraw():
                if out.lines:
                    heir = out.line_for(run)
                    heir.inherit(run)
                    self._busy[heir] = None
                elif self._several:
                    self._orphan(out, run)
        if not lines and not self._several:
            for feed in self._feeds:  # whatever is not handed on is looked at again when there is a connection
                feed.scanned = 0

    def _peer(self, peer_handle: int) -> PeerSender:
        out = self._peers.get(peer_handle)
        if out is None:
            out = self._peers[peer_handle] = PeerSender(peer_handle, self._queue_bytes, self._began, self._counters)
        return out

    # -- from the rings to the lines

    def _scan(self, feed: RingReader, waiting: int, now: int) -> int:
        """Put this worker's runs of new slots onto lines. Slots looked at."""
        port = feed.port
        position = port.position
        light = feed.kind == "light"
        transit = feed.kind == "transit"
        done = 0
        while done < waiting:
            ahead = feed.scanned
            slot = port.slot(ahead)
            place = port.index(ahead)
            start, length, member, peer_handle, runs = _unpack_slot(slot)
            if transit:
                light = _unpack_marks(slot, layout.SLOT_TRAFFIC_CLASS_AT)[0] == framing.LIGHT
            out = self._peers.get(peer_handle) or self._peer(peer_handle)
            if runs:
                if not self._scan_table(feed, slot, place, runs, out, light, now):
                    break
            elif member != position:
                feed.left[place] = 0
            else:
                feed.left[place] = 1
                run = SendItem(feed, place, 0, light, length, None, slot[start : start + length])
                if out.lines:
                    self._enqueue(run, out.line_for(run))
                elif not self._without_line(out, run, now):
                    break
            feed.scanned += 1
            done += 1
        return done

    def _scan_table(
        self, feed: RingReader, slot: memoryview, place: int, runs: int, out: PeerSender, light: bool, now: int
    ) -> bool:
        """The same for a slot with a table. False if it has to wait for a connection."""
        position = feed.port.position
        _, spare, sparer = RUN_TABLE_HEADER.unpack_from(slot, layout.SLOT_RUNS_AT)
        feed.left[place] = 0
        pool = out.pool(light)
        at = layout.SLOT_TABLE_AT
        for _ in range(runs):
            member, ordinal, shards, head, start, length = _unpack_row(slot, at)
            at += layout.RUN_ROW_BYTES
            if member != position:
                continue
            header = slot[head : head + RUN_BYTES] if head else None
            run = SendItem(
                feed, place, shards, light, length + (RUN_BYTES if head else 0), header, slot[start : start + length]
            )
            feed.left[place] += 1
            if pool:
                self._enqueue(run, pool[ordinal % len(pool)])
            elif not self._without_line(out, run, now):
                return False
        feed.spare[place] = spare if sparer == position else 0
        return True

    def _enqueue(self, run: SendItem, line: SendQueue) -> None:
        (line.light if run.light else line.bulk).append(run)
        self._busy[line] = None

    def _without_line(self, out: PeerSender, run: SendItem, now: int) -> bool:
        """No connection. With one peer let the ring fill (False), but not with packets that are too old to be worth
        sending. Once ours are lost while another worker has one, what was stamped for us would only hold others up."""
        lost = self._connection_list.version and self._table.count(out.peer)
        since = self._connection_list.empty_since if not self._several else out.lost_since
        if now - since < self._hold_ns and not lost:
            if self._several:
                self._orphan(out, run)
                return True
            self._holding = True
            return False
        run.feed.finish(run)
        self._counters[ID["tcp.dropped_no_connection"]] += 1
        return True

    def _orphan(self, out: PeerSender, run: SendItem) -> None:
        copied = out.aside.take(run) if run.in_slot else run
        if copied is None:
            self._dropped(out, 1)
        else:
            out.orphans.append(copied)

    def _dropped(self, out: PeerSender, runs: int) -> None:
        if runs:
            self._counters[ID["tcp.dropped_peer_full"]] += runs
            self._sent[out.peer * RECORD_WORDS + SENT_DROPPED] += runs

    # -- from the lines to the sockets

    def _send(self, line: SendQueue, now: int) -> None:
        if line.broken:
            self._holding = True
            return
        connection = line.connection
        out = self._peers[connection.peer_handle]
        bucket = out.bucket
        if not bucket.ready(now):
            due = bucket.due()
            self._next_due = min(due, self._next_due) if self._next_due else due
            self._limited.append(line)
            return
        if line.full_since and now - line.full_since > STUCK_NS and now < line.retry_at:
            self._full.append(line)
            return
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
            line.retry_at = now + RETRY_NS
            self._full.append(line)
        elif line.idle:
            del self._busy[line]
        if sent:
            bucket.take(sent, now)
            counters[_FRAMES_SENT] += frames
            counters[_BYTES_SENT] += sent
            self._sent[out.peer * RECORD_WORDS + SENT_BYTES] += sent
            connection.sent_bytes += sent
            connection.last_sent_ns = now
            line.full_since = 0 if all_of_it else now
            if line.stalled:
                line.stalled = False
                out.sort(out.lines)
        elif not all_of_it and not line.full_since:
            line.full_since = now

    # -- what full lines hold up

    def _relieve_all(self, now: int) -> None:
        for line in self._full:
            for other in self._peers[line.connection.peer_handle].relieve(line, now):
                self._busy[other] = None
        if self._several and any(2 * feed.scanned >= feed.port.ring.capacity for feed in self._feeds):
            self._set_aside()

    def _set_aside(self) -> None:
        """A ring is half full: what waits for full lines shall not keep out what is for others."""
        if self._crowd or sum(bool(out.lines) for out in self._peers.values()) > 1:
            for line in (*self._full, *self._limited):
                out = self._peers[line.connection.peer_handle]
                self._dropped(out, line.set_aside(out.aside))

    # -- the clock

    def _tick(self, now: int) -> None:
        self._crowd = (
            self._several
            and len(
                {
                    peer
                    for words in self._table.links
                    for peer, count in enumerate(words[LINK_ESTABLISHED::RECORD_WORDS])
                    if count
                }
            )
            > 1
        )
        for connection, line in self._lines.items():
            if line.broken or not line.idle:
                continue
            if now - connection.last_sent_ns >= self._keepalive_ns:
                keepalive = connection.sealed(framing.KEEPALIVE_FRAME)
                line.put_first(keepalive)
                connection.keepalive_bytes += len(keepalive)
                self._counters[ID["tcp.keepalives_sent"]] += 1
            elif connection.unsent:
                line.put_first(connection.sealed(b""))
            else:
                continue
            self._busy[line] = None
            self._send(line, now)
        for peer_handle, out in list(self._peers.items()):
            if out.lines:
                out.limit(self._table.rate(out.peer), self._table.sent_elsewhere(out.peer, self._lane), now)
            elif now - out.lost_since >= self._hold_ns or self._table.peer_handle(out.peer) != peer_handle:
                self._counters[ID["tcp.dropped_no_connection"]] += out.give_up_orphans()
                del self._peers[peer_handle]


_unpack_slot = SLOT_AND_RUNS.unpack_from
_unpack_marks = MARKS.unpack_from
_unpack_row = RUN_ROW.unpack_from
_FRAMES_SENT = ID["tcp.frames_sent"]
_BYTES_SENT = ID["tcp.bytes_sent"]
_SOCKET_FULL_WAITS = ID["tcp.socket_full_waits"]
