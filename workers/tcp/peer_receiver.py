"""One peer as the inbound duty of a tcp worker sees it: its connections here, its rate, its turns, its links.

A peer that sends more than its rate is not read for a moment: TCP slows it down, and nothing is lost.
"""

from __future__ import annotations

from pipeline.policy.token_bucket import SharedBucket
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.connection import Connection
from pipeline.wire import charge
from workers.tcp.link_monitor import LinkMonitor
from workers.tcp.link_publisher import LinkPublisher
from workers.tcp.peer_congestion import HandOver, PeerCongestion
from workers.tcp.peer_turns import PeerTurns

IDLE_UPDATES = 50  # five seconds: longer than a retransmission takes that will succeed


class PeerReceiver:
    """`established`: its connections here; `readable`: those that have something to read, in this order.

    `paused`: they are not read, because the peer is beyond its rate.
    """

    def __init__(
        self,
        peer: int,
        publisher: LinkPublisher,
        settings: WorkerSettings,
        counters: memoryview,
        hand_over: HandOver,
    ) -> None:
        self.peer = peer
        self.established: tuple[Connection, ...] = ()
        self.readable: dict[Connection, None] = {}
        self.turns = PeerTurns(peer, publisher)
        self.bucket = SharedBucket()
        self.paused = False
        self._publisher = publisher
        self._monitor = LinkMonitor(settings, peer, publisher, counters) if settings.fec != "off" else None
        self._congestion: PeerCongestion | None = None
        if settings.congestion:
            self._congestion = PeerCongestion(settings.congestion, peer, hand_over, counters)
        self._sent_bytes = 0  # without keepalives, at the last update of the links
        self._idle_updates = 0  # updates since that number has changed

    def add(self, connection: Connection, now: int) -> None:
        self.established += (connection,)
        self.publish()
        if self._congestion is not None:
            self._congestion.begin(connection, now)

    def remove(self, connection: Connection) -> None:
        self.established = tuple(c for c in self.established if c is not connection)
        self.publish()
        if self._monitor is not None and connection.unanswered:
            self._monitor.connections_unanswered += 1
        if self._congestion is not None:
            self._congestion.end(connection)

    def publish(self) -> None:
        """Let the tun workers know the connections of its current session."""
        self._publisher.publish(self.peer, self.established)

    @property
    def worn(self) -> Connection | None:
        """A connection that costs more than a new one would: see PeerCongestion."""
        return self._congestion.worn if self._congestion is not None else None

    def record_received(self, size: int, charged: int, now: int) -> None:
        """Count bytes and their charge against the rate, here and for the other workers of the peer."""
        counted = 0
        if self.bucket.rate:
            counted = charge.against_rate(size, size + charged)
            self.bucket.spend(counted, now)
        self._publisher.add_received(self.peer, size, counted)

    def update_link(self, now: int) -> None:
        """On the clock: do what the kernel's numbers call for, unless nothing can be in flight.

        That is so for a peer to which nothing but keepalives was sent for IDLE_UPDATES. The path to another server of a
        client, in reserve or left, says nothing about this one.
        """
        followers = [each for each in (self._monitor, self._congestion) if each is not None]
        if not followers:
            return
        current = [connection for connection in self.established if self._publisher.is_current(connection)]
        sent = sum(connection.send.byte_count - connection.send.keepalive_bytes for connection in current)
        self._idle_updates = self._idle_updates + 1 if sent == self._sent_bytes else 0
        self._sent_bytes = sent
        if self._idle_updates < IDLE_UPDATES or not all(each.idle_may_be_skipped for each in followers):
            infos = {connection: connection.tcp_info() for connection in current}
            for each in followers:
                each.update(infos, now)
