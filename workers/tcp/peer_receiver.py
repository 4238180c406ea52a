"""One peer as the inbound duty of a tcp worker sees it: its connections here, its rate, its turns, its links.

The bulk of a peer that sends more than its rate is not read for a moment: TCP slows it down, and nothing is lost. Its
light flows go on, and the bulk waits the longer.
"""

from __future__ import annotations

from functools import partial

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

    `paused`: those for bulk are not read, because the peer is beyond its rate. `light_waits`: nor are the others.
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
        self.light_bucket = SharedBucket()  # of light flows, while the peer is paused
        self.paused = self.light_waits = False
        self._publisher = publisher
        self._monitor = LinkMonitor(settings, peer, publisher, counters) if settings.fec != "off" else None
        self._make_congestion = partial(PeerCongestion, settings.congestion, peer, hand_over, counters)
        self._congestions: dict[int, PeerCongestion] | None = {} if settings.congestion else None  # by uplink
        self._sent_bytes = 0  # without keepalives, at the last update of the links
        self._idle_updates = 0  # updates since that number has changed

    def add(self, connection: Connection, now: int) -> None:
        self.established += (connection,)
        self.publish()
        if self._congestions is not None:
            uplink = _uplink_of(connection)
            if uplink not in self._congestions:
                self._congestions[uplink] = self._make_congestion()
            self._congestions[uplink].begin(connection, now)

    def remove(self, connection: Connection) -> None:
        self.established = tuple(c for c in self.established if c is not connection)
        self.publish()
        if self._monitor is not None and connection.unanswered:
            self._monitor.connections_unanswered += 1
        if self._congestions is not None:
            self._congestions[_uplink_of(connection)].end(connection)

    def publish(self) -> None:
        """Let the tun workers know the connections of its current session."""
        self._publisher.publish(self.peer, self.established)

    @property
    def worn(self) -> Connection | None:
        """A connection that costs more than a new one would: see PeerCongestion."""
        worn = (each.worn for each in (self._congestions or {}).values())
        return next((each for each in worn if each is not None), None)

    def record_received(self, size: int, charged: int, now: int) -> None:
        """Count bytes and their charge against the rate, here and for the other workers of the peer."""
        counted = 0
        if self.bucket.rate:
            counted = charge.against_rate(size, size + charged)
            self.bucket.spend(counted, now)
            if self.paused:
                self.light_bucket.spend(counted, now)
        self._publisher.add_received(self.peer, size, counted)

    def update_link(self, now: int) -> None:
        """On the clock: do what the kernel's numbers call for, unless nothing can be in flight.

        That is so for a peer to which nothing but keepalives was sent for IDLE_UPDATES. The path to another server of a
        client, in reserve or left, says nothing about this one.
        """
        congestions = self._congestions or {}
        if self._monitor is None and not congestions:
            return
        current = [connection for connection in self.established if self._publisher.is_current(connection)]
        sent = sum(connection.send.byte_count - connection.send.keepalive_bytes for connection in current)
        self._idle_updates = self._idle_updates + 1 if sent == self._sent_bytes else 0
        self._sent_bytes = sent
        may_be_skipped = all(each.idle_may_be_skipped for each in congestions.values()) and (
            self._monitor is None or self._monitor.idle_may_be_skipped
        )
        if self._idle_updates < IDLE_UPDATES or not may_be_skipped:
            infos = {connection: connection.tcp_info() for connection in current}
            if self._monitor is not None:
                self._monitor.update(infos, now)
            for uplink, congestion in congestions.items():
                congestion.update({each: infos[each] for each in infos if _uplink_of(each) == uplink}, now)


def _uplink_of(connection: Connection) -> int:
    return connection.uplink.number if connection.uplink is not None else 0
