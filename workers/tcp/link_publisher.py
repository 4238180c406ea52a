"""The publisher of a tcp worker's connections: what the other processes read of them in the peer table.

    link records    for the tun and fec workers: how many connections to each peer there are, of which lanes, which
                    offloads they accept, whether they accept shards, and what they call for: parity, copies, spacing
    path records    for the tun and fec workers, of a client with several uplinks: on which each connection is, and how
                    much each uplink carries (pipeline.runtime.link_paths)
    status rows     for `status`: one connection each

Written by the inbound duty of the tcp worker alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping

from pipeline.policy import path_rates
from pipeline.runtime import link_paths
from pipeline.runtime.link_paths import Paths
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
    MASK64,
    PATH_BULK,
    PATH_RATES,
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
        self._paths = attachment.peer_table.paths[self._lane]
        self._rates: dict[int, Mapping[int, float]] = {}  # by peer: what each of its uplinks carries
        self._paths_version = 0
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
        accepts = bool(established) and all(connection.accepts_shards for connection in established)
        version = self._publish_paths(peer, established)
        words[at + LINK_ACCEPTS_SHARDS] = (version << 1 | 1) & MASK64 if accepts else 0
        fence()
        words[at + LINK_ESTABLISHED] = len(established)

    def _publish_paths(self, peer: int, established: Collection[Connection]) -> int:
        """Publish the paths of these connections. A number that tells them from others; 0: they have no uplinks."""
        if not any(connection.uplink for connection in established):
            self._rates.pop(peer, None)
            return 0
        listed = list(established)
        ordered = [listed[at] for at in link_paths.in_order(connection.uplink for connection in listed)]
        numbers: tuple[list[int], list[int]] = ([], [])  # by traffic class
        mains = set()
        for connection in ordered:
            uplink = connection.uplink
            numbers[connection.traffic_class].append(uplink.number if uplink else 0)
            if uplink is None or not uplink.is_backup:
                mains.add(uplink.number if uplink else 0)
        rates = self._rates.get(peer, {})
        present = {number: rates.get(number, path_rates.UNKNOWN) for number in {*numbers[0], *numbers[1]}}
        found = Paths(tuple(numbers[framing.BULK]), tuple(numbers[framing.LIGHT]), present, frozenset(mains))
        at = peer * RECORD_WORDS
        self._paths[at + PATH_BULK : at + PATH_RATES + 1] = array("Q", found.pack())
        fence()
        self._paths_version += 1
        return self._paths_version

    def set_rates(self, peer: int, rates: Mapping[int, float], established: Collection[Connection]) -> None:
        """Publish what each uplink of a peer carries, in bytes a second."""
        before = self._rates.get(peer, {})
        if link_paths.differ(before, rates):
            self._rates[peer] = dict(rates)
            self.publish(peer, established)

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
