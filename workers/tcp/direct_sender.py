"""The short way of blocks: from their slots onto a connection in one call, and the slots are free.

Most bursts find every queue empty, and their slots are for one connection that takes them whole. Then no send item is
made. A ring goes the long way (`workers.tcp.ring_scanner`, `workers.tcp.send_queue`)

    from the start    if slots of it have been visited already; if one of its slots has runs, is spoilt, or is not for
                      this worker; if they are for several connections, or for none; if their peer has a rate; if the
                      connection has TLS, or is broken
    behind a send     if the socket did not take all of it: what is left becomes items of the queue

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.shm.slot import read_header_and_runs, read_marks
from pipeline.wire import framing
from workers.tcp.outbound_peers import OutboundPeers
from workers.tcp.peer_sender import PeerSender
from workers.tcp.ring_reader import RingReader
from workers.tcp.send_queue import BURST_BYTES, SendItem, SendQueue


class DirectSender:
    """`is_complete`: the last send() has left nothing for the long way."""

    def __init__(self, peers: OutboundPeers) -> None:
        self._peers = peers
        self._busy = peers.busy
        self._by_handle = peers.by_handle
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
        while len(bodies) < ready and size < BURST_BYTES:
            slot = port.slot(len(bodies))
            start, length, consumer, peer_handle, runs = read_header_and_runs(slot)
            if runs or consumer != port.position or start + length > len(slot):
                return 0
            if reader.kind == "transit" and is_light is not (read_marks(slot)[0] == framing.LIGHT):
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
        views, size, frames = queue.frames_of(bodies)
        try:
            sent = queue.connection.socket.sendmsg(views)
        except BlockingIOError:
            return 0
        except OSError as error:
            queue.connection.write_failed(error)
            queue.broken = True
            return 0
        if sent == size:
            done = finished = len(bodies)
            queue.note_sent(done)
            port.advance(done)
        else:
            done = len(bodies)
            items = [self._visit(reader, body, is_light) for body in bodies]
            finished = queue.note_partly_sent(items, sent, views, frames)
            self._busy[queue] = None
        self._peers.count_sent(queue.connection, peer, sent, finished, now)
        return done

    @staticmethod
    def _visit(reader: RingReader, body: memoryview, is_light: bool) -> SendItem:
        """The item of the next slot, which has been visited now."""
        index = reader.port.index(reader.scanned)
        reader.unfinished[index] = 1
        reader.scanned += 1
        return SendItem(reader, index, 0, is_light, len(body), None, body)


def _queue_for(peer: PeerSender, is_light: bool, lane: int) -> SendQueue | None:
    """The queue of the peer's blocks that may take the short way; None if they may not."""
    if not peer.queues or peer.bucket.rate:
        return None
    queues = peer.queues_for(is_light)
    queue = queues[peer.place_of(lane, is_light)]
    return None if queue.broken or queue.connection.channel is not None else queue
