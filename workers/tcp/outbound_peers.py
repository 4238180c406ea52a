"""The peers to which a tcp worker sends, and the queues of its connections, as connections come and go.

A connection that ends: its items go to the peer's other connections, and with uplinks also those that it has sent and
that are not acknowledged. If the peer has none, they wait `hold` seconds for
the next one, and are then dropped and counted. They wait in the ring if there can be one peer only, and in the peer's
backlog if there can be several.

A peer that takes nothing. With one peer the ring waits, and TUN with it. With several the others must not wait: items
for full connections spill into the backlog of their peer. An item that does not fit there is dropped and counted.

Owned by the outbound duty.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from pipeline.counters import ID
from pipeline.policy.loss_bursts import SPACING_MOST_NS
from pipeline.policy.token_bucket import SharedBucket
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import LINK_ESTABLISHED, RECORD_WORDS, SENT_BYTES, SENT_DROPPED
from pipeline.transport.connection import Connection
from pipeline.transport.connection_list import ConnectionList
from workers.tcp.delayed_items import DelayedItems
from workers.tcp.kept_items import KeptItems
from workers.tcp.path_watch import PathWatch, send_again
from workers.tcp.peer_sender import PeerSender
from workers.tcp.sealed_queue import SealedSendQueue
from workers.tcp.send_item import SendItem
from workers.tcp.send_queue import BURST_BYTES, SendQueue
from workers.tcp.total_rate import TotalRate

LIMITED_BYTES = 65536  # in one call, at a low rate: what is overdrawn is silence later
LIMITED_SHARE = 50  # else so much of a second's bytes

_SESSION_SHIFT = 20  # the number of a session is a time in ns: milliseconds differ from client to client

_FRAMES_SENT = ID["tcp.frames_sent"]
_BYTES_SENT = ID["tcp.bytes_sent"]
_PADDING_SENT = ID["tcp.bytes_padding_sent"]
_DROPPED_PARTIAL = ID["tcp.dropped_partial"]
_BLOCKS_RESENT = ID["tcp.blocks_resent"]
_DROPPED_NO_CONNECTION = ID["tcp.dropped_no_connection"]
_DROPPED_PEER_FULL = ID["tcp.dropped_peer_full"]


class OutboundPeers:
    """`by_handle`: a PeerSender for each peer handle; `queues`: a SendQueue for each established connection.

    `busy` holds the queues that have something to send, in the order in which they got it; `delayed`, what will get
    into them later.
    """

    def __init__(self, attachment: Attachment, connection_list: ConnectionList) -> None:
        settings = attachment.settings
        self._connection_list = connection_list
        self._table = attachment.peer_table
        self._lane = attachment.worker.lane
        self._sent = attachment.peer_table.sent[attachment.worker.lane]
        self._counters = attachment.page.counters
        self._queue_bytes = settings.peer_queue_bytes
        self._send_rate = settings.send_rate
        self._hold_ns = int(settings.hold * 1e9)
        self._began = time.monotonic_ns()
        self._turn = settings.session >> _SESSION_SHIFT
        self.several = attachment.peer_table.capacity > 1  # peers are possible
        self._several_connected = False  # at the last update, here or with another worker
        self.by_handle: dict[int, PeerSender] = {}
        self.queues: dict[Connection, SendQueue] = {}
        self.busy: dict[SendQueue, None] = {}
        self.delayed = DelayedItems()
        self.watch = PathWatch(self._counters)
        self.total = TotalRate(attachment, "outbound")
        self._buckets: dict[
            int, tuple[SharedBucket, SharedBucket]
        ] = {}  # by peer index: a new session has no new burst

    def add(self, peer_handle: int) -> PeerSender:
        """The PeerSender of a peer handle, made if there is none yet."""
        peer = self.by_handle.get(peer_handle)
        if peer is None:
            peer = PeerSender(peer_handle, self._queue_bytes, self._began, self._counters, self._turn)
            peer.bucket, peer.light_bucket = self._buckets.setdefault(peer.peer, (peer.bucket, peer.light_bucket))
            self.by_handle[peer_handle] = peer
        return peer

    # -- connections come and go

    def connections_changed(self) -> bool:
        return self._connection_list.version != self._connection_list.seen_version

    def follow_connections(self, now: int) -> None:
        """Make the queues those of the connections that are established now, and move the items of the others."""
        self._connection_list.seen_version = self._connection_list.version
        established = self._connection_list.established
        queues = {connection: self.queues.get(connection) or _queue_for(connection) for connection in established}
        ended = [queue for connection, queue in self.queues.items() if connection not in queues]
        of_handles: dict[int, list[SendQueue]] = {queue.connection.peer_handle: [] for queue in ended}
        for queue in queues.values():
            of_handles.setdefault(queue.connection.peer_handle, []).append(queue)
        self.queues = queues
        for peer_handle, current in of_handles.items():
            peer = self.add(peer_handle)
            if peer.queues and not current:
                peer.disconnected_since = now
            peer.set_queues(current)
            self._follow_table(peer, now)
            if current and peer.backlog.unassigned:
                peer.assign_backlog()
                self.busy.update(dict.fromkeys(current))
        for peer_handle in of_handles:
            of_uplinks = [
                each for each in ended if each.kept is not None and each.connection.peer_handle == peer_handle
            ]
            if of_uplinks:
                self._send_again(self.add(peer_handle), of_uplinks, now)
        for queue in ended:
            self._reassign(queue)

    def _reassign(self, ended: SendQueue) -> None:
        """Move the items of a connection that has ended to others of its peer, or into the backlog."""
        self.busy.pop(ended, None)
        self._counters[_BLOCKS_RESENT] += ended.partial is not None
        self._counters[_DROPPED_PARTIAL] += ended.tail_is_block and ended.kept is None
        peer = self.add(ended.connection.peer_handle)
        for item in ended.drain():
            if peer.queues:
                target = peer.queue_for(item)
                target.append_moved(item)
                self.busy[target] = None
            elif self.several:
                self._add_unassigned(peer, item)
            elif not item.source.in_ring:
                item.source.finish(item)  # the slots are visited again, and it is in none of them

    def _send_again(self, peer: PeerSender, ended: list[SendQueue], now: int) -> None:
        """Give to others what connections on uplinks have sent in vain; without any, it waits for the next one."""
        for queue in ended:
            queue.copy_out_partial()
        kept = [queue.kept for queue in ended if queue.kept is not None]
        for each in kept:
            each.drop_acknowledged(now)
        if peer.queues:
            self.busy.update(dict.fromkeys(send_again(peer, ended, self._counters)))
        else:
            peer.backlog.unassigned.extend(item for each in kept for _, item in each.take())
        for item in [
            item for each in kept for item in each.take_arrived()
        ]:  # most likely these were read: they come last
            if peer.queues:
                target = peer.queue_for(item)
                target.append_moved(item)
                self.busy[target] = None
            else:
                peer.backlog.unassigned.append(item)

    def hold_or_drop(self, peer: PeerSender, item: SendItem, now: int) -> bool:
        """Hold an item of a peer without a connection, or drop it. False: it has to wait in its ring.

        It waits for at most `hold` seconds, since older packets are not worth sending. If another worker has a
        connection to the peer, the item is dropped at once: it would only hold up what comes after it.
        """
        elsewhere = self._connection_list.version and self._table.established_count(peer.peer)
        since = peer.disconnected_since if self.several else self._connection_list.empty_since_ns
        if elsewhere or now - since >= self._hold_ns:
            item.source.finish(item)
            self._counters[_DROPPED_NO_CONNECTION] += 1
        elif self.several:
            self._add_unassigned(peer, item)
        else:
            return False
        return True

    def _add_unassigned(self, peer: PeerSender, item: SendItem) -> None:
        if not peer.backlog.add_unassigned(item):
            self._count_dropped(peer, 1)

    # -- what has been sent

    def count_sent(self, connection: Connection, peer: PeerSender, sent: int, frames: int, now: int) -> int:
        """A socket has taken so many bytes, and with them the end of so many frames. Those that count as the peer's:
        all but padding."""
        counters, send = self._counters, connection.send
        counters[_FRAMES_SENT] += frames
        counters[_BYTES_SENT] += sent
        send.byte_count += sent
        send.last_ns = now
        writer = send.writer
        if writer is not None and writer.padding_bytes:
            padding = writer.take_padding(sent)
            counters[_PADDING_SENT] += padding
            sent -= padding
        self._sent[peer.record_at + SENT_BYTES] += sent
        return sent

    # -- what goes out later

    def send_delayed(self, now: int) -> None:
        """Give the items that are due to their queues. One without a connection is dropped: others have gone out."""
        delayed, busy = self.delayed, self.busy
        while found := delayed.pop(now):
            peer_handle, place, item = found
            peer = self.by_handle.get(peer_handle)
            queues = peer.queues_for(item.light) if peer is not None else []
            if not queues:
                delayed.finish(item)
                continue
            queue = queues[place % len(queues)]
            queue.append_moved(item)
            busy[queue] = None

    def look_at_paths(self, now: int) -> None:
        """Let others send what silent uplinks have taken."""
        self.busy.update(dict.fromkeys(self.watch.look(self.by_handle.values(), now)))

    # -- what full connections hold up

    def relieve(self, full: Iterable[SendQueue], now: int) -> None:
        """Give what full connections hold up to others of their peers, as far as that is worth it."""
        by_handle, busy = self.by_handle, self.busy
        for queue in full:
            for target in by_handle[queue.connection.peer_handle].relieve(queue, now):
                busy[target] = None

    def spill(self, queues: Iterable[SendQueue]) -> None:
        """Copy the items of these queues into the backlogs of their peers, if another peer could use the slots."""
        if self._several_connected or sum(bool(peer.queues) for peer in self.by_handle.values()) > 1:
            for queue in queues:
                peer = self.by_handle[queue.connection.peer_handle]
                self._count_dropped(peer, peer.backlog.spill(queue))

    def _count_dropped(self, peer: PeerSender, items: int) -> None:
        if items:
            self._counters[_DROPPED_PEER_FULL] += items
            self._sent[peer.record_at + SENT_DROPPED] += items

    # -- on the clock

    def count_connected(self) -> None:
        """Note whether several peers are connected, here or with another worker."""
        self._several_connected = (
            self.several
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

    def update(self, now: int) -> None:
        """Follow rates and spacings; forget peers that have been away for too long, or have another session now."""
        self.total.follow(now)
        for peer_handle, peer in list(self.by_handle.items()):
            if peer.queues:
                self._follow_table(peer, now)
            elif now - peer.disconnected_since >= self._hold_ns or self._table.peer_handle(peer.peer) != peer_handle:
                self._counters[_DROPPED_NO_CONNECTION] += peer.backlog.drop_unassigned()
                del self.by_handle[peer_handle]

    def _follow_table(self, peer: PeerSender, now: int) -> None:
        peer.spacing_ns = min(self._table.spacing_ns(peer.peer), SPACING_MOST_NS)
        rates = self._table.rate(peer.peer), self._send_rate
        rate = min(filter(None, rates), default=0)
        limit = min(filter(None, (rate, self.total.rate)), default=0)
        burst_bytes = min(BURST_BYTES, max(LIMITED_BYTES, limit // LIMITED_SHARE)) if limit else BURST_BYTES
        for queue in peer.queues:
            if queue.kept is None:
                queue.burst_bytes = burst_bytes
        peer.bucket.update(rate, self._table.sent_elsewhere(peer.peer, self._lane), now)
        peer.is_limited = limit > 0
        peer.light_bucket.update(-(-rate // len(self._table.sent)), 0, now)


def _queue_for(connection: Connection) -> SendQueue:
    writer = connection.send.writer
    queue = SendQueue(connection) if writer is None else SealedSendQueue(connection, writer)
    if connection.uplink is not None:
        queue.kept = KeptItems(connection)
    return queue
