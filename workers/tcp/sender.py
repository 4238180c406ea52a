"""The outbound duty of a tcp worker: what the rings hold goes onto connections.

A burst, in the order in which `work` calls:

    1. follow_connections  connections that came or went: a send queue each; items of those that ended go to others
                           (`workers.tcp.outbound_peers`)
    2. send                while no queue has anything: slots for one connection go straight to its socket
                           (`workers.tcp.direct_sender`). If that leaves anything, or a queue has something:
    3. scan                each new slot becomes send items in the queues of their connections
                           (`workers.tcp.ring_scanner`), some a little later (`workers.tcp.delayed_items`)
    4. _send               one sendmsg for each queue that has something, within the rate of its peer and that of all
                           (`workers.tcp.send_queue`)
    5. _relieve            what full connections hold up is skipped, moved (`workers.tcp.peer_sender`) or copied out of
                           the rings (`workers.tcp.backlog`)
    6. release             slots whose items are all finished go on: the ring has room for TUN again
    7. _tick               ten times a second: keepalives, questions and answers, rates, and the news that this end is
                           about to stop

A full socket. With one peer, plain blocks wait in the ring, and only TLS records that the socket has not taken wait
elsewhere. The ring fills and stalls the TUN reader, which may queue packets of its own (`workers.tun.backpressure`).
With several peers that would hold up the others: once a ring is half full, items for full connections are copied out.

A peer that has used up its rate. Its bulk waits. Light items go on, and the bulk waits the longer, up to the rate for
light items alone. The rate of all peers is like that, and they take turns (`pipeline.policy.shared_rate`).
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
from workers.tcp.peer_sender import PeerSender
from workers.tcp.ring_scanner import RingScanner
from workers.tcp.sealed_queue import SealedSendQueue
from workers.tcp.send_queue import SendQueue

TICK_NS = 100_000_000
BLOCKED_PAUSE_S = 0.001  # how long to wait on full sockets while a ring may have something for another
STUCK_NS = 20_000_000  # a connection that has taken nothing for so long is not waited for
HELD_PAUSE_NS = 2_000_000  # while a connection on an uplink holds as much as it delivers soon
RETRY_NS = 5_000_000  # but tried again so often
EXCUSE_NS = 500_000_000  # an end whose bytes wait unread may have asked: it hears something so often

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
        self._total = self._peers.total
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._keepalive_ns = int(attachment.settings.keepalive * 1e9)
        self._noise = attachment.settings.noise
        self._full: list[SendQueue] = []
        self._limited: list[SendQueue] = []  # of peers that have used up their rate, or of uplinks that hold enough
        self._credit_at = 0  # when the first of those may be sent to again; 0: there is none
        self._waiting: list[int] = []  # peers that wait for the rate of all
        self._has_sent = False  # something, in this burst
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
        self._waiting.clear()
        self._more = self._broken = self._has_sent = scanner.blocked = False
        self._credit_at = 0
        found = 0 if self._busy else self._direct.send(scanner.readers, now)
        if self._busy or not self._direct.is_complete:
            found += scanner.scan(now)
            for queue in list(self._busy):
                self._send(queue, now)
            if self._waiting and self._total.shared is not None:
                self._total.shared.note_waiting(self._waiting, now)
                if not self._has_sent:
                    self._total.shared.begin_round(self._waiting, now)
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
        shared = self._total.shared
        in_credit = peer.bucket.in_credit(now)
        has_credit = in_credit and (shared is None or shared.may_pass(peer.peer, now))
        if not has_credit and not self._passes_limit(queue, peer, in_credit, now):
            return
        has_room = self._watch.has_room(queue, now)
        if not has_room and not self._passes_uplink(queue, now):
            return
        if queue.full_since and now - queue.full_since > STUCK_NS and now < queue.retry_at:
            self._full.append(queue)
            return
        sent, frames, took_all = self._write(queue, has_credit and has_room)
        if queue.broken:
            return
        if not took_all:
            self._counters[_SOCKET_FULL_WAITS] += 1
            queue.retry_at = now + RETRY_NS
            self._full.append(queue)
        elif queue.idle:
            del self._busy[queue]
        if sent:
            counted = self._peers.count_sent(connection, peer, sent, frames, now)
            self._spend(peer, counted, in_credit, now)
            queue.full_since = 0 if took_all else now
            if queue.stalled:
                queue.stalled = False
                peer.set_queues(peer.queues)
        elif not took_all and not queue.full_since:
            queue.full_since = now

    def _write(self, queue: SendQueue, bulk: bool) -> tuple[int, int, bool]:
        """Bytes sent, items finished, whether the socket took all. A queue whose connection has failed is broken."""
        try:
            sent, frames, took_all = queue.send(bulk=bulk)
        except BlockingIOError:
            return 0, 0, False
        except OSError as error:
            queue.connection.write_failed(error)
            queue.broken = self._broken = True
            return 0, 0, False
        self._more |= took_all and (not queue.idle if bulk else bool(queue.light))
        return sent, frames, took_all

    def _passes_uplink(self, queue: SendQueue, now: int) -> bool:
        """Let a queue wait whose connection holds as much as it delivers soon. Whether its light items go on."""
        self._limited.append(queue)
        self._look_again(now + HELD_PAUSE_NS)
        return bool(queue.light)

    def _spend(self, peer: PeerSender, sent: int, in_credit: bool, now: int) -> None:
        self._has_sent = True
        peer.bucket.spend(sent, now)
        if not in_credit:
            peer.light_bucket.spend(sent, now)
        if self._total.shared is not None:
            self._total.shared.spend(peer.peer, sent, now)

    def _passes_limit(self, queue: SendQueue, peer: PeerSender, in_credit: bool, now: int) -> bool:
        """Let a queue wait whose peer is not in credit, or not to pass now. Whether its light items go on."""
        self._limited.append(queue)
        shared, light = self._total.shared, bool(queue.light)
        if not in_credit:
            self._look_again(peer.bucket.credit_at())
            if light and not peer.light_bucket.in_credit(now):
                self._look_again(peer.light_bucket.credit_at())
                return False
        elif shared is not None:
            self._waiting.append(peer.peer)
            self._look_again(shared.passes_at(peer.peer))
        if light and shared is not None and not shared.may_pass(peer.peer, now, light=True):
            self._waiting.append(peer.peer)
            self._look_again(shared.passes_at(peer.peer, light=True))
            return False
        return light

    def _look_again(self, at: int) -> None:
        self._credit_at = min(at, self._credit_at) if self._credit_at else at

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
        while self._list.notes:
            self._send_note(*self._list.notes.popleft(), now)
        for queue in self._peers.queues.values():
            if isinstance(queue, SealedSendQueue) and not queue.broken:
                self._converse(queue, now)
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

    def _send_note(self, peer_handle: int, note: bytes, now: int) -> None:
        """On any connection of the peer's, behind the frame that has begun."""
        for queue in self._peers.queues.values():
            writer = queue.connection.send.writer
            if (
                queue.connection.peer_handle == peer_handle
                and writer is not None
                and isinstance(queue, SealedSendQueue)
                and not queue.broken
            ):
                queue.put_behind(writer.note(note))
                self._busy[queue] = None
                self._send(queue, now)
                return

    def _converse(self, queue: SealedSendQueue, now: int) -> None:
        """Ask the other end whether its program is there, or answer that."""
        connection = queue.connection
        send, receive = connection.send, connection.receive
        if send.writer is None or receive.scanner is None:
            return
        excuses = receive.is_held_up and connection.answers and now - send.last_ns >= EXCUSE_NS
        if connection.answers and send.asked_ns < self._list.question_ns:
            send.asked_ns = now
            self._send_at_once(queue, send.writer.question(), now)
        elif receive.scanner.asked or excuses:
            receive.scanner.asked = False
            self._send_at_once(queue, send.writer.keepalive(), now)

    def _send_at_once(self, queue: SealedSendQueue, record: bytes, now: int) -> None:
        """Send the record of a frame without a body whatever waits, and whatever the rate of the peer is."""
        connection = queue.connection
        queue.put_behind(record)
        connection.send.keepalive_bytes += len(record)
        self._counters[_KEEPALIVES_SENT] += 1
        try:
            sent = queue.send_tail()
        except OSError:  # the next burst finds it full or broken
            sent = 0
        if sent:
            peer = self._peers.by_handle[connection.peer_handle]
            self._peers.count_sent(connection, peer, sent, 0, now)
        if not queue.idle:
            self._busy[queue] = None

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
