"""The publisher of a tcp worker's connections: what the other processes read of them in the peer table.

    link records    for the tun and fec workers: how many connections to each peer there are, of which lanes, which
                    offloads they accept, whether they accept shards, and what they call for: parity, copies, spacing
    status rows     for `status`: one connection each

Written by the inbound duty of the tcp worker alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import (
    LIGHT_LANES_SHIFT,
    LINK_ACCEPTS_SHARDS,
    LINK_COUNTED_BYTES,
    LINK_ESTABLISHED,
    LINK_LANES,
    LINK_LIGHT,
    LINK_OFFLOADS,
    LINK_RECEIVED_BYTES,
    LINK_REQUESTS,
    RECORD_WORDS,
)
from pipeline.shm.link_requests import NONE, LinkRequests
from pipeline.shm.memory_order import fence
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.wire import framing

STANDBY = "standby"
"""State of an established connection of another session than the present one: it carries nothing."""


class LinkPublisher:
    """The link records and status rows of this tcp worker; it clears what its predecessor wrote there."""

    def __init__(self, attachment: Attachment) -> None:
        self._peers = attachment.peer_table
        self._lane = attachment.worker.lane
        self._is_client = attachment.plan.mode == "client"
        self._words = attachment.peer_table.links[self._lane]
        self._offloads = attachment.settings.offloads
        self._free_rows = list(range(self._peers.status_rows))[::-1]
        for row in self._free_rows:
            self._peers.write_status_row(self._lane, row, None)
        for peer in range(self._peers.capacity):
            self.publish(peer, ())
            self.request(peer, NONE)

    def publish(self, peer: int, established: Collection[Connection]) -> None:
        """Publish the connections to one peer. The count is written last: its readers find the rest in place.

        Of a client's, those in reserve are left out, and those to the server before: they have other sessions.
        """
        if self._is_client:
            established = [connection for connection in established if self.is_current(connection)]
        words, at = self._words, peer * RECORD_WORDS
        offloads = self._offloads
        for connection in established:
            offloads &= connection.offloads
        lanes = 0
        for connection in established:
            shift = LIGHT_LANES_SHIFT if connection.traffic_class == framing.LIGHT else 0
            lanes |= 1 << shift + connection.receive.stamped_lane
        words[at + LINK_LANES] = lanes
        words[at + LINK_OFFLOADS] = offloads
        words[at + LINK_LIGHT] = sum(connection.traffic_class == framing.LIGHT for connection in established)
        words[at + LINK_ACCEPTS_SHARDS] = bool(established) and all(
            connection.accepts_shards for connection in established
        )
        fence()
        words[at + LINK_ESTABLISHED] = len(established)

    def request(self, peer: int, requests: LinkRequests) -> None:
        """Publish what the state of a peer's connections calls for."""
        self._words[peer * RECORD_WORDS + LINK_REQUESTS] = requests.pack()

    def add_received(self, peer: int, size: int, counted: int) -> None:
        """Add to the bytes received from a peer, and to those that count against its rate."""
        self._words[peer * RECORD_WORDS + LINK_RECEIVED_BYTES] += size
        if counted:
            self._words[peer * RECORD_WORDS + LINK_COUNTED_BYTES] += counted

    def charged(self, peer: int) -> int:
        """The late charges of the tun workers to this peer."""
        return self._peers.charged(peer)

    def packets_for(self, peer: int) -> int:
        """Packets of bulk that TUN had for this peer."""
        return self._peers.packets_for(peer)

    def several_connected(self) -> bool:
        """Whether more than one peer is connected, here or with another worker."""
        connected = {
            peer
            for words in self._peers.links
            for peer, count in enumerate(words[LINK_ESTABLISHED::RECORD_WORDS])
            if count
        }
        return len(connected) > 1

    def is_current(self, connection: Connection) -> bool:
        """Whether a connection belongs to the session that has its peer's index now."""
        return self._peers.peer_handle(connection.peer) == connection.peer_handle

    # -- status rows

    def acquire_row(self) -> int:
        """A free row, or -1 if there is none."""
        return self._free_rows.pop() if self._free_rows else -1

    def write_rows(self, connections: Iterable[Connection]) -> None:
        """Publish the status of connections in their rows."""
        for connection in connections:
            status = connection.status()
            if self._is_client and connection.state is ESTABLISHED and not self.is_current(connection):
                status = status._replace(state=STANDBY)
            self._peers.write_status_row(self._lane, connection.receive.status_row, status)

    def release_row(self, row: int) -> None:
        """Clear a row, and make it free."""
        self._peers.write_status_row(self._lane, row, None)
        self._free_rows.append(row)
