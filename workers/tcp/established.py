"""The established connections of a tcp worker: by descriptor, by peer, and in the list that the Sender reads.

Owned by the connection manager; the Receiver reads `by_fd` and `peers`.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.policy.lane_pairs import own_lane
from pipeline.runtime.worker import Attachment
from pipeline.transport.connection import Connection
from pipeline.transport.connection_list import ConnectionList
from pipeline.transport.socket_options import set_dscp
from pipeline.wire import framing
from workers.tcp.link_publisher import LinkPublisher
from workers.tcp.peer_congestion import HandOver
from workers.tcp.peer_receiver import PeerReceiver
from workers.tcp.total_rate import TotalRate

UNOPENED_MAX = 64
"""Blocks in a row that the tun workers could not open: more than a few that are late for their epoch or session."""

REPLACED = "replaced: the client has dialed it again"


class EstablishedConnections:
    """`kick_sender` wakes the Sender: the list has changed. `hand_over`: a socket, to the supervisor."""

    def __init__(
        self,
        attachment: Attachment,
        connection_list: ConnectionList,
        publisher: LinkPublisher,
        kick_sender: Callable[[], None],
        hand_over: HandOver,
    ) -> None:
        self.by_fd: dict[int, Connection] = {}
        self.peers: dict[int, PeerReceiver] = {}  # by peer index; it stays after the peer's last connection
        self.has_several_peers = False  # connected, here or with another worker
        self._list = connection_list
        self._publisher = publisher
        self._kick_sender = kick_sender
        self._hand_over = hand_over
        self._settings = attachment.settings
        self._counters = attachment.page.counters
        self._table = attachment.peer_table
        self._lane = attachment.worker.lane
        self._lanes = attachment.plan.lanes
        self.total_rate = TotalRate(attachment, "inbound")

    def is_current(self, connection: Connection) -> bool:
        """Whether a connection belongs to the current session of its peer."""
        return self._publisher.is_current(connection)

    def sole_peer_handle(self) -> int:
        """The handle of the other end where there is one peer: on a client, and with compat."""
        return self._table.peer_handle(0)

    def is_connected(self, peer: int) -> bool:
        """Whether a peer has a connection, here or with another worker."""
        return bool(self._table.established_count(peer))

    def stamp(self, connection: Connection, told: int) -> None:
        """Set the lane whose tun worker gets the frames of a connection. `told`: in which the other end sends on it."""
        receive = connection.receive
        receive.stamped_lane = own_lane(told, connection.peer, self._lanes)
        if connection.traffic_class == framing.LIGHT and receive.scanner is not None:
            receive.scanner.copies_are_whole = True

    def prepare_receiver(self, connection: Connection, now: int) -> PeerReceiver:
        """Find or make the PeerReceiver of the connection's peer, and set the rate of this moment."""
        peer = self.peers.get(connection.peer)
        if peer is None:
            peer = self.peers[connection.peer] = PeerReceiver(
                connection.peer, self._publisher, self._settings, self._counters, self._hand_over
            )
        self._update_rate(peer, now)
        return peer

    def replaced_by(self, connection: Connection) -> list[tuple[Connection, str]]:
        """The connections of its peer that end when this one is established, each with the reason."""
        replaced = []
        for other in self.peers[connection.peer].established:
            if not self._publisher.is_current(other):
                replaced.append((other, "replaced by a newer session of its peer"))
            elif other.dial_index == connection.dial_index:
                replaced.append((other, REPLACED))
        return replaced

    def add(self, connection: Connection, now: int) -> None:
        self.by_fd[connection.fd] = connection
        connection.receive.unopened_before = self._unopened(connection)
        is_light = connection.traffic_class == framing.LIGHT
        if dscp := self._settings.dscp_light if is_light else self._settings.dscp_bulk:
            set_dscp(connection.socket, dscp)
        self._list.add(connection)
        self.peers[connection.peer].add(connection, now)
        if not self.has_several_peers:
            self._count_peers()
        self._kick_sender()

    def remove(self, connection: Connection, now: int) -> None:
        """Take a connection out of service. Its socket is closed when the Sender does not use it any more."""
        del self.by_fd[connection.fd]
        self._list.remove(connection, now)
        connection.abort()
        self.peers[connection.peer].remove(connection)
        self._kick_sender()

    def is_rubbish(self, connection: Connection) -> bool:
        """Whether the last UNOPENED_MAX blocks of a connection could not be opened."""
        return self._unopened(connection) - connection.receive.unopened_before >= UNOPENED_MAX

    def _unopened(self, connection: Connection) -> int:
        return self._table.unopened(connection.peer, self._lane, connection.serial)

    def close_retired(self) -> None:
        self._list.close_retired()

    def close_all(self) -> None:
        self._list.close_all()

    def update_peers(self, now: int) -> None:
        """On the clock: the rate of all and of each connected peer, and the state of its links."""
        self._count_peers()
        self.total_rate.follow(now)
        for peer in self.peers.values():
            if peer.established:
                self._update_rate(peer, now)
                peer.update_link(now)

    def _count_peers(self) -> None:
        self.has_several_peers = self._table.capacity > 1 and self._publisher.several_connected()

    def _update_rate(self, peer: PeerReceiver, now: int) -> None:
        rate, elsewhere = self._table.rate(peer.peer), self._table.received_elsewhere(peer.peer, self._lane)
        peer.bucket.update(rate, elsewhere, now)
        peer.light_bucket.update(-(-rate // len(self._table.links)), 0, now)
