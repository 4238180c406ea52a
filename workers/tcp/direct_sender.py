"""The short way of blocks: from their slots onto a connection in one call, and the slots are free.

Most bursts find every queue empty, and their slots are for one connection that takes them whole. Then no send item is
made. If a light block with copies is alone in its ring, the first copy goes out likewise. The others are copied out of
the slot, since they wait (`workers.tcp.delayed_items`). A ring goes the long way (`workers.tcp.ring_scanner`,
`workers.tcp.send_queue`)

    from the start    if slots of it have been visited already; if one of its slots has other runs, is spoilt, or is
                      not for this worker. Also if they are for several connections, or for none; if their peer has a
                      rate, or all have; if the connection has TLS, keeps what it sends, or is broken
    behind a send     if the socket did not take all of it: what is left becomes items of the queue

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.shm.layout import RUNS_MAX
from pipeline.shm.slot import VOICE, read_header_and_runs, read_marks, read_runs
from pipeline.wire import framing
from workers.tcp.delayed_items import copy_spacing_ns
from workers.tcp.outbound_peers import OutboundPeers
from workers.tcp.peer_sender import PeerSender
from workers.tcp.ring_reader import RingReader
from workers.tcp.send_item import CopiedBlock, SendItem
from workers.tcp.send_queue import BURST_BYTES, BURST_VIEWS, SendQueue


class DirectSender:
    """`is_complete`: the last send() has left nothing for the long way."""

    def __init__(self, peers: OutboundPeers) -> None:
        self._peers = peers
        self._busy = peers.busy
        self._by_handle = peers.by_handle
        self._delayed = peers.delayed
        self.is_complete = False

    def send(self, readers: list[RingReader], now: int) -> int:
        """Send a burst of each ring. No queue has anything. Slots handed on."""
        self.is_complete = True
        found = 0
        for reader in readers:
            ready = reader.port.ready()
            if ready:
                done = 0 if reader.scanned else self._send_slots(reader, ready, now)
                found += done
                if not done or self._busy:
                    self.is_complete = False
                    break
        return found

    def _send_slots(self, reader: RingReader, ready: int, now: int) -> int:
        """Send the first of so many ready slots. Slots handed on; 0 if they go the long way."""
        port = reader.port
        is_light = reader.kind == "light"
        peer: PeerSender | None = None
        queue: SendQueue | None = None
        bodies: list[memoryview] = []
        size = 0
        most = min(ready, BURST_VIEWS)
        while len(bodies) < most and size < BURST_BYTES:
            slot = port.slot(len(bodies))
            start, length, consumer, peer_handle, runs = read_header_and_runs(slot)
            if runs or consumer != port.position or start + length > len(slot):
                return self._send_first_copy(reader, slot, peer_handle, runs, now) if runs and ready == 1 else 0
            if reader.marks_class and is_light is not (read_marks(slot)[0] == framing.LIGHT):
                if bodies:
                    return 0
                is_light = True
            if queue is None or peer_handle != queue.connection.peer_handle:
                peer = self._by_handle.get(peer_handle)
                found = None if peer is None else _queue_for(peer, is_light, reader.lane)
                if found is None or queue is not None:
                    return 0
                queue = found
            bodies.append(slot[start : start + length])
            size += length
        assert peer is not None and queue is not None
        if not self._give(reader, peer, queue, bodies, is_light, now):
            return 0
        if not reader.scanned:
            port.advance(len(bodies))
        return len(bodies)

    def _send_first_copy(self, reader: RingReader, slot: memoryview, peer_handle: int, runs: int, now: int) -> int:
        """Send the first copy of the light block in the first slot; the others wait. 1, or 0 for the long way."""
        peer = self._by_handle.get(peer_handle)
        if reader.kind != "light" or runs > RUNS_MAX or peer is None:
            return 0
        port = reader.port
        rows = list(read_runs(slot, runs))
        consumer, ordinal, _, _, start, length = rows[0]
        queue = _queue_for(peer, True, reader.lane, ordinal)
        if queue is None or consumer != port.position or any(each[3] or each[4] + each[5] > len(slot) for each in rows):
            return 0
        if not self._give(reader, peer, queue, [slot[start : start + length]], True, now):
            return 0
        spacing, first = copy_spacing_ns(peer.spacing_ns), peer.place_of(reader.lane, True)
        copied = CopiedBlock(queue.connection)
        for row in range(1, runs):
            consumer, ordinal, shards, _, start, length = rows[row]
            if consumer == port.position:
                body = slot[start : start + length]
                item = SendItem(reader, 0, shards, True, length, None, body, copied=copied)
                self._delayed.add(item, now + row * spacing, peer_handle, first + ordinal)
        if not reader.scanned:
            port.advance(1)
        return 1

    def _give(
        self,
        reader: RingReader,
        peer: PeerSender,
        queue: SendQueue,
        bodies: list[memoryview],
        is_light: bool,
        now: int,
    ) -> bool:
        """Give the bodies of the next slots to a socket. False if it takes nothing.

        If it does not take all of them, the slots have been visited, and what is left of them are items of the queue.
        """
        views, size, frames = queue.frames_of(bodies)
        try:
            sent = queue.connection.socket.sendmsg(views)
        except BlockingIOError:
            return False
        except OSError as error:
            queue.connection.write_failed(error)
            queue.broken = True
            return False
        finished = len(bodies)
        if sent == size:
            queue.note_sent(finished)
        else:
            items = [self._visit(reader, body, is_light) for body in bodies]
            finished = queue.note_partly_sent(items, sent, views, frames)
            self._busy[queue] = None
        self._peers.count_sent(queue.connection, peer, sent, finished, now)
        return True

    @staticmethod
    def _visit(reader: RingReader, body: memoryview, is_light: bool) -> SendItem:
        """The item of the next slot, which has been visited now."""
        index = reader.port.index(reader.scanned)
        voice = reader.kind == "light" and read_marks(reader.port.slot(reader.scanned))[0] == VOICE
        reader.unfinished[index] = 1
        reader.scanned += 1
        return SendItem(reader, index, 0, is_light, len(body), None, body, voice)


def _queue_for(peer: PeerSender, is_light: bool, lane: int, ordinal: int = 0) -> SendQueue | None:
    """The queue of the peer's blocks that may take the short way; None if they may not.

    `ordinal`: of a copy, counted from the connection that the block would take without copies.
    """
    if not peer.queues or peer.is_limited:
        return None
    queues = peer.queues_for(is_light)
    queue = queues[(peer.place_of(lane, is_light) + ordinal) % len(queues)]
    return None if queue.broken or queue.kept is not None or queue.connection.channel is not None else queue
