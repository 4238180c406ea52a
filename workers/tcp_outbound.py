"""The outbound duty of a tcp worker: blocks from the outbound rings onto connections.

A lane stays on one connection as long as the set of connections stays, so order inside a flow holds. A full socket
stalls that lane's ring, and the ring stalls the TUN reader: backpressure, no queue. A frame that was sent in part
is finished before anything else goes out on that connection; if the connection dies first, the block is sent again
from its beginning on another. Without any connection blocks wait `hold` seconds and are then dropped, counted.
"""

from __future__ import annotations

import select
import time

from pipeline import carrier, wire
from pipeline.block import SLOT
from pipeline.connection import Connection, Roster
from pipeline.counters import ID
from pipeline.port import Port, any_ready
from pipeline.worker import DONE, MORE, NOTHING, Attachment

BURST_SLOTS = 16           # slots in one sendmsg
BURST_BYTES = 262144       # and their bytes: more would not fit a socket's unsent limit anyway
KEEPALIVE_CHECK_NS = 100_000_000
BLOCKED_PAUSE_S = 0.002    # how long to wait on one full socket while other lanes may become ready


class Lane:
    """One outbound ring as this worker sees it: `offset` bytes of its first slot are sent on `connection`."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.connection: Connection | None = None
        self.offset = 0


class Outbound:
    """Every outbound ring to this worker's connections."""

    name = "outbound"

    def __init__(self, attachment: Attachment, roster: Roster) -> None:
        self._lanes = [Lane(port) for port in attachment.ports(self.name, "outbound")]
        self._ports_ready = any_ready([lane.port for lane in self._lanes])
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._roster = roster
        self._others = carrier.others(attachment)
        self._keepalive_ns = int(attachment.settings["keepalive"] * 1e9)
        self._hold_ns = int(attachment.settings["hold"] * 1e9)
        self._next_check = 0
        self._full: list[Connection] = []
        self._waiting_for_connection = False
        self.ended = False

    def work(self) -> int:
        """Send what is ready, once around the lanes."""
        roster = self._roster
        roster.seen = roster.version
        connections = roster.established
        full = self._full
        full.clear()
        self._waiting_for_connection = False
        now = time.monotonic_ns()
        done = 0
        for lane in self._lanes:
            ready = lane.port.ready()
            if ready:
                done += self._send(lane, ready, connections, now) if connections else self._hold(lane, ready, now)
        if now >= self._next_check:
            self._next_check = now + KEEPALIVE_CHECK_NS
            self._send_keepalives(connections, now)
        return NOTHING if not done else DONE if full else MORE

    def wait(self, seconds: float) -> None:
        if self._full:
            full = select.poll()
            for connection in self._full:
                full.register(connection.fd, select.POLLOUT)
            full.poll((seconds if len(self._lanes) == 1 else BLOCKED_PAUSE_S) * 1000)
        elif self._waiting_for_connection:
            self._bell.wait(self._roster_changed, seconds)
        else:
            self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        self.ended = not self._full or not self._roster.established
        return self.ended

    def kick(self) -> None:
        """The roster has changed (called by the inbound duty)."""
        self._bell.kick()

    def _ready(self) -> int:
        return self._ports_ready() or self._roster_changed()

    def _roster_changed(self) -> bool:
        return self._roster.version != self._roster.seen

    def _send(self, lane: Lane, ready: int, connections: tuple[Connection, ...], now: int) -> int:
        """Send this lane's ready slots with one system call. Slots done."""
        port = lane.port
        if not lane.offset or lane.connection not in connections:  # a frame is finished where it was begun
            self._start_anew(lane)
            lane.connection = connections[port.lane % len(connections)]
        connection = lane.connection
        if connection.unfinished_lane not in (-1, port.lane) or connection.pending:
            self._full.append(connection)  # another frame has to be finished first
            return 0

        position = port.position
        offset = lane.offset
        views = []
        sizes = []
        size = 0
        for i in range(ready if ready < BURST_SLOTS else BURST_SLOTS):
            slot = port.slot(i)
            start, length, member, _ = _unpack_slot(slot)
            if member != position:
                sizes.append(0)
                continue
            views.append(slot[start + offset : start + length])
            sizes.append(length)
            size += length - offset
            offset = 0
            if size >= BURST_BYTES:
                break
        try:
            sent = connection.socket.sendmsg(views) if views else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            connection.fail(error)
            self._waiting_for_connection = True
            return 0

        counters = self._counters
        if sent == size:
            done = len(sizes)
            lane.offset = 0
        else:
            done, lane.offset = _progress(sizes, lane.offset + sent)
            counters[ID["tcp.socket_full_waits"]] += 1
            self._full.append(connection)
        connection.unfinished_lane = port.lane if lane.offset else -1
        if sent:
            counters[_FRAMES_SENT] += len(views) if sent == size else sum(map(bool, sizes[:done]))
            counters[_BYTES_SENT] += sent
            connection.sent += sent
            connection.spoke = now
        if done:
            port.advance(done)
        return done

    def _hold(self, lane: Lane, ready: int, now: int) -> int:
        """No connection: let the ring fill, but not with packets that are too old to be worth sending. Once ours are
        lost while another worker has one, what was stamped for us would only hold the others up."""
        port = lane.port
        self._start_anew(lane)
        lane.connection = None
        lost = self._roster.version and any(words[carrier.ESTABLISHED] for words in self._others)
        if now - self._roster.empty_since < self._hold_ns and not lost:
            done = 0
            while done < ready and _unpack_slot(port.slot(done))[2] != port.position:
                done += 1
        else:
            done = ready
            dropped = sum(_unpack_slot(port.slot(i))[2] == port.position for i in range(ready))
            self._counters[ID["tcp.dropped_no_connection"]] += dropped
        if done:
            port.advance(done)
        self._waiting_for_connection |= done < ready
        return done

    def _start_anew(self, lane: Lane) -> None:
        """The connection on which this lane's block was begun is gone: send it from its beginning."""
        if lane.offset:
            self._counters[ID["tcp.blocks_resent"]] += 1
            lane.offset = 0

    def _send_keepalives(self, connections: tuple[Connection, ...], now: int) -> None:
        for connection in connections:
            if connection.unfinished_lane != -1:
                continue
            if not connection.pending and now - connection.spoke < self._keepalive_ns:
                continue
            data = connection.pending or wire.KEEPALIVE_FRAME
            try:
                sent = connection.socket.send(data)
            except BlockingIOError:
                continue  # not silent at all: its send queue is full
            except OSError as error:
                connection.fail(error)
                continue
            connection.pending = data[sent:]
            connection.sent += sent
            connection.spoke = now
            self._counters[ID["tcp.keepalives_sent"]] += not connection.pending


def _progress(sizes: list[int], sent: int) -> tuple[int, int]:
    """How many of these slots `sent` bytes cover whole, and how many bytes of the next one."""
    done = 0
    for size in sizes:
        if size > sent:
            break
        sent -= size
        done += 1
    return done, sent


_unpack_slot = SLOT.unpack_from
_FRAMES_SENT = ID["tcp.frames_sent"]
_BYTES_SENT = ID["tcp.bytes_sent"]
