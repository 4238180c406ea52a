"""What a tcp worker has for one peer on the way in. Owned by the inbound duty.

Whoever sends more than its rate is not read for a moment: TCP slows it down, and nothing is lost.
"""

from __future__ import annotations

from pipeline.policy.token_bucket import TokenBucket
from pipeline.transport.connection import Connection
from workers.tcp.link_monitor import LinkMonitor
from workers.tcp.link_publisher import LinkPublisher

IDLE_LOOKS = 50  # five seconds: longer than a retransmission takes that will succeed


class PeerReceiver:
    """`established`: its connections here."""

    def __init__(self, peer: int, carrier: LinkPublisher, settings: dict, counters: memoryview) -> None:
        self.peer = peer
        self._carrier = carrier
        self.established: tuple[Connection, ...] = ()
        self.bucket = TokenBucket(0)
        self._elsewhere = 0
        self.paused = False
        self._sent = 0
        self._idle_looks = 0
        self.watch = LinkMonitor(settings, peer, carrier, counters) if settings["fec"] != "off" else None

    def add(self, connection: Connection) -> None:
        self.established += (connection,)
        self._carrier.write(self.peer, self.established)

    def remove(self, connection: Connection) -> None:
        self.established = tuple(c for c in self.established if c is not connection)
        self._carrier.write(self.peer, self.established)
        if self.watch is not None:
            self.watch.ended += 1

    def limit(self, rate: int, elsewhere: int, now: int) -> None:
        """So many bytes a second from now on; 0: no limit. `elsewhere`: what has passed other workers counts too."""
        if rate != self.bucket.rate:
            self.bucket = TokenBucket(rate)
        elif rate:
            self.bucket.take(elsewhere - self._elsewhere, now)
        self._elsewhere = elsewhere

    def look(self, now: int) -> None:
        """On the clock: how its connections fare. Who has sent but keepalives for long has nothing in flight."""
        if self.watch is None:
            return
        sent = sum(connection.sent_bytes - connection.keepalive_bytes for connection in self.established)
        self._idle_looks = self._idle_looks + 1 if sent == self._sent else 0
        self._sent = sent
        if self._idle_looks < IDLE_LOOKS or not self.watch.quiet:
            self.watch.look(self.established, now)
