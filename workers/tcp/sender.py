"""The outbound duty of a tcp worker: what the rings hold goes onto connections.

A burst, in the order in which `work` calls:

    1. follow_connections  connections that came or went: a send queue each; items of those that ended go to others
                           (`workers.tcp.outbound_peers`)
    2. send                while no queue has anything: slots for one connection go straight to its socket
                           (`workers.tcp.direct_sender`). If that leaves anything, or a queue has something:
    3. scan                each new slot becomes send items in the queues of their connections
                           (`workers.tcp.ring_scanner`), some a little later (`workers.tcp.delayed_items`)
    4. _send               one sendmsg for each queue that has something, within the rate of its peer
                           (`workers.tcp.send_queue`)
    5. _relieve            what full connections hold up is skipped, moved (`workers.tcp.peer_sender`) or copied out of
                           the rings (`workers.tcp.backlog`)
    6. release             slots whose items are all finished go on: the ring has room for TUN again
    7. _tick               ten times a second: keepalives, rates, and the news that this end is about to stop

A full socket. With one peer, plain blocks wait in the ring, and only TLS records that the socket has not taken wait
elsewhere. The ring fills and stalls the TUN reader, which may queue packets of its own (`workers.tun.backpressure`).
With several peers that would hold up the others: once a ring is half full, items for full connections are copied out.
"""

from __future__ import annotations

import select
import time

from pipeline.counters import ID
from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from pipeline.transport.connection_list import ConnectionList
from pipeline.wire import noise
from workers.tcp.direct_sender import DirectSender
from workers.tcp.outbound_peers import OutboundPeers
from workers.tcp.ring_scanner import RingScanner
from workers.tcp.sealed_queue import SealedSendQueue
from workers.tcp.send_queue import SendQueue

TICK_NS = 100_000_000
BLOCKED_PAUSE_S = 0.001  # how long to wait on full sockets while a ring may have something for another
STUCK_NS = 20_000_000  # a connection that has taken nothing for so long is not waited for
RETRY_NS = 5_000_000  # but tried again so often

_SOCKET_FULL_WAITS = ID["tcp.socket_full_waits"]
_KEEPALIVES_SENT = ID["tcp.keepalives_sent"]


class Sender:
    """From every outbound ring onto this worker's connections."""

    name = "outbound"

    def __init__(self, attachment: Attachment, connection_list: ConnectionList) -> None:
        self._peers = OutboundPeers(attachment, connection_list)
        self._scanner = RingScanner(attachment, self.name, self._peers)
        self._direct = DirectSender(self._peers)
        self._busy = self._peers.busy
        self._delayed = self._peers.delayed
        self._watch = self._peers.watch
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._keepalive_ns = int(attachment.settings.keepalive * 1e9)
        self._noise = attachment.settings.noise
        self._full: list[SendQueue] = []
        self._limited: list[SendQueue] = []  # those of peers that have used up their rate
        self._credit_at = 0  # when the first of those peers may be sent to again; 0: there is none
        self._more = False  # a queue has more than goes into one sendmsg
        self._broken = False  # a write failed: nothing to do before the connections change
        self._next_tick = 0
        self._list = connection_list
        self._told: set[SendQueue] = set()  # whose other end knows that this one is about to stop
        self.ended = False

    # -- the duty

    def work(self) -> int:
        """One burst."""
        now = time.monotonic_ns()
        peers, scanner = self._peers, self._scanner
        if peers.connections_changed():
            peers.follow_connections(now)
            if not peers.queues and not peers.several:
                scanner.rewind()
        if self._delayed.next_due:
            peers.send_delayed(now)
        if self._watch.next_look and now >= self._watch.next_look:
            peers.look_at_paths(now)
        self._full.clear()
        self._limited.clear()
        self._more = self._broken = scanner.blocked = False
        self._credit_at = 0
        found = 0 if self._busy else self._direct.send(scanner.readers, now)
        if self._busy or not self._direct.is_complete:
            found += scanner.scan(now)
            for queue in list(self._busy):
                self._send(queue, now)
            if self._full or self._limited:
                self._relieve(now)
            found += scanner.release()
        if now >= self._next_tick:
            self._next_tick = now + TICK_NS
            self._tick(now)
        return MORE if self._more else NOTHING if not found else DONE if self._full else MORE

    def wait(self, seconds: float) -> None:
        if self._delayed.next_due:
            seconds = min(seconds, max(0.0, (self._delayed.next_due - time.monotonic_ns()) / 1e9))
        if self._watch.next_look:
            seconds = min(seconds, max(0.0, (self._watch.next_look - time.monotonic_ns()) / 1e9))
        if self._credit_at:
            seconds = min(seconds, max(0.0, (self._credit_at - time.monotonic_ns()) / 1e9))
        if self._full:
            seconds = min(seconds, RETRY_NS / 1e9)
        now = time.monotonic_ns()
        moving = [queue for queue in self._full if now - queue.full_since < STUCK_NS]
        if moving:
            full = select.poll()
            for queue in moving:
                full.register(queue.connection.fd, select.POLLOUT)
            all_are_full = len(moving) == len(self._peers.queues)  # so the sockets are all there is to wait for
            full.poll(1000 * (seconds if all_are_full else min(seconds, BLOCKED_PAUSE_S)))
        elif self._scanner.blocked or self._broken:
            self._bell.wait(self._peers.connections_changed, seconds)
        else:
            self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        self.ended = not (self._full or self._limited) or not self._peers.queues
        return self.ended

    def kick(self) -> None:
        """Wake this duty: the connections have changed. Called by the inbound duty."""
        self._bell.kick()

    def _ready(self) -> bool:
        return self._scanner.has_unscanned() or self._peers.connections_changed()

    # -- each burst

    def _send(self, queue: SendQueue, now: int) -> None:
        """Send what the socket of one queue takes in one call."""
        if queue.broken:
            self._broken = True
            return
        connection = queue.connection
        peer = self._peers.by_handle[connection.peer_handle]
        bucket = peer.bucket
        if not bucket.in_credit(now):
            credit_at = bucket.credit_at()
            self._credit_at = min(credit_at, self._credit_at) if self._credit_at else credit_at
            self._limited.append(queue)
            return
        if queue.full_since and now - queue.full_since > STUCK_NS and now < queue.retry_at:
            self._full.append(queue)
            return
        self._watch.note_send(queue, now)
        try:
            sent, frames, took_all = queue.send()
            self._more |= took_all and not queue.idle
        except BlockingIOError:
            sent = frames = 0
            took_all = False
        except OSError as error:
            connection.write_failed(error)
            queue.broken = True
            self._broken = True
            return
        counters = self._counters
        if not took_all:
            counters[_SOCKET_FULL_WAITS] += 1
            queue.retry_at = now + RETRY_NS
            self._full.append(queue)
        elif queue.idle:
            del self._busy[queue]
        if sent:
            bucket.spend(sent, now)
            self._peers.count_sent(connection, peer, sent, frames, now)
            queue.full_since = 0 if took_all else now
            if queue.stalled:
                queue.stalled = False
                peer.set_queues(peer.queues)
        elif not took_all and not queue.full_since:
            queue.full_since = now

    def _relieve(self, now: int) -> None:
        """Free the slots, and the queues, that full connections hold up."""
        self._peers.relieve(self._full, now)
        if self._peers.several and self._scanner.is_half_full():
            self._peers.spill((*self._full, *self._limited))

    # -- each tick

    def _tick(self, now: int) -> None:
        self._peers.count_connected()
        if self._list.leaving:
            self._say_leaving(now)
        for queue in self._peers.queues.values():
            if queue.idle and not queue.broken:
                self._keep_alive(queue, now)
        self._peers.update(now)

    def _say_leaving(self, now: int) -> None:
        """Tell each other end once that this one is about to stop."""
        for queue in [each for each in self._peers.queues.values() if each not in self._told]:
            writer = queue.connection.send.writer
            if writer is not None and isinstance(queue, SealedSendQueue) and not queue.broken:
                queue.put_behind(writer.goaway())
                self._busy[queue] = None
                self._send(queue, now)
            self._told.add(queue)

    def _keep_alive(self, queue: SendQueue, now: int) -> None:
        """Send a keepalive on an idle connection, or what its TLS channel has to send, if one is due."""
        connection = queue.connection
        send = connection.send
        if self._noise and not send.keepalive_after_ns:
            send.keepalive_after_ns = noise.keepalive_ns(self._keepalive_ns)
        is_due = now - send.last_ns >= (send.keepalive_after_ns or self._keepalive_ns)
        if is_due or send.last_ns < self._list.probe_ns:
            send.keepalive_after_ns = 0  # drawn anew
            keepalive = connection.keepalive()
            queue.put_control(keepalive)
            connection.send.keepalive_bytes += len(keepalive)
            self._counters[_KEEPALIVES_SENT] += 1
        elif connection.has_tls_output:
            queue.put_control(connection.seal(b""))
        else:
            return
        self._busy[queue] = None
        self._send(queue, now)
