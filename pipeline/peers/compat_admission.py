"""Admission to a hub of the original program: nothing in that wire format says who a client is.

    admit    each connection is a peer of its own, until `max_clients` are connected
    claim    the source of a peer's first packet is its address from then on, one in each subnet of the server. The peer
             keeps it as long as it is connected; until then nobody else gets it

A claim to another peer's address, or to one that is no client's, is refused. Nothing is remembered over a restart.
A client that vanished without a word is connected until `timeout`, and keeps itself out. If the claim comes from the
very host or router that the holder is behind, its worker is told to have the kernel ask the holder. A holder that is
there answers, and keeps its address; one that is not has its connection ended, and the next claim succeeds.

Like `Admission`, this class is never told that a connection has ended: it asks the peer table when that matters. A peer
that was admitted a moment ago and has sent nothing yet counts as connected until the peer table shows its connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import NamedTuple

from pipeline.config import Config
from pipeline.packet.address_pool import AddressPool
from pipeline.packet.route_table import NO_PEER
from pipeline.peers.peer_sessions import CONNECTING_NS
from pipeline.peers.peer_status import PeerRow, PeerStatus, PresentSession, describe_peers, unsealed
from pipeline.peers.registry import BYTES_PER_MBIT
from pipeline.runtime.supervisor_channel import (
    AddressClaim,
    AdmissionRequest,
    Admitted,
    ClaimDecision,
    Doubted,
    NotAdmitted,
)
from pipeline.shm.layout import PEER_INDEX_BITS, PEER_INDEX_MASK
from pipeline.shm.peer_table import PeerTable
from pipeline.wire.messages import FULL, REASONS, Address


class CompatPeer(NamedTuple):
    """The peer that has an index. `row`: with the counts of the peer table when it was admitted."""

    peer_handle: int
    row: PeerRow
    addresses: tuple[Address, ...] = ()


class CompatAdmission:
    """The peers of one server, by index, least recently admitted first."""

    def __init__(
        self, config: Config, table: PeerTable, tell_workers: Callable[[Doubted], object] = lambda doubted: None
    ) -> None:
        self._table = table
        self._tell_workers = tell_workers
        self._pools = [AddressPool(interface) for interface in config.tunnel_interfaces]
        self._peers: dict[int, CompatPeer] = {}
        self._handles_made = 0
        self.changes = 0  # of peer_rows()
        self._rate = 0
        self._encryption = unsealed(config.encryption)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over a configuration: the rate of all peers."""
        self.changes += 1
        self._rate = int(config.rate_mbit * BYTES_PER_MBIT)
        for peer in self._peers.values():
            self._table.write_record(peer.peer_handle, self._rate)

    def handle_request(self, request: AdmissionRequest | AddressClaim) -> Admitted | NotAdmitted | ClaimDecision:
        """A tcp worker's request. The bytes in it are a peer's."""
        now = time.monotonic_ns()
        serial = request["serial"]
        if "claim" in request:
            refusal = self._claim(request["peer_handle"], ip_address(request["claim"]), now)
            return ClaimDecision(serial=serial, claim=request["claim"], refusal=refusal)
        peer_handle = self._admit(now)
        if peer_handle == NO_PEER:
            reason = f"{REASONS[FULL]}, max_clients {self._table.capacity}"
            return NotAdmitted(serial=serial, frame="", reason=reason, name="")
        return Admitted(serial=serial, frame="", peer_handle=peer_handle, name="")

    # -- peers

    def _admit(self, now: int) -> int:
        """The peer handle of a new peer; NO_PEER if all indexes are in use."""
        unused = (index for index in range(self._table.capacity) if index not in self._peers)
        index = next(unused, NO_PEER)
        if index == NO_PEER:
            index = next((used for used in self._peers if not self._is_connected(used, now)), NO_PEER)
        if index == NO_PEER:
            return NO_PEER
        had_addresses = self._peers.pop(index).addresses if index in self._peers else ()
        self._handles_made += 1
        peer_handle = self._handles_made << PEER_INDEX_BITS | index
        table = self._table
        row = PeerRow("-", encryption=self._encryption).with_session(index, now, table)
        self._peers[index] = CompatPeer(peer_handle, row)
        self.changes += 1
        if had_addresses:
            self._publish_routes()
        table.write_record(peer_handle, self._rate)
        return peer_handle

    def _is_connected(self, index: int, now: int) -> bool:
        peer = self._peers[index]
        is_new = now - peer.row.since_ns < CONNECTING_NS and self._table.received_bytes(index) == peer.row.received
        return is_new or self._table.established_count(index) > 0

    # -- addresses

    def _claim(self, peer_handle: int, address: Address, now: int) -> str:
        """Give the address to the peer, or say why not."""
        index = peer_handle & PEER_INDEX_MASK
        peer = self._peers.get(index)
        if peer is None or peer.peer_handle != peer_handle:
            return "this peer is no longer connected"
        pool = next((pool for pool in self._pools if pool.contains(address)), None)
        if pool is None:
            return f"{address} is no address of a client: it is the server's, or in none of its subnets"
        if any(pool.contains(own) for own in peer.addresses):
            return f"{address} is a second address in {pool.network}: one connection has one"
        holder = next((other for other, each in self._peers.items() if address in each.addresses), NO_PEER)
        if holder != NO_PEER:
            if self._is_connected(holder, now):
                return self._contested(address, holder, index)
            left = tuple(other for other in self._peers[holder].addresses if other != address)
            self._peers[holder] = self._peers[holder]._replace(addresses=left)
        self._peers[index] = peer._replace(addresses=(*peer.addresses, address))
        self._publish_routes()
        return ""

    def _contested(self, address: Address, holder: int, claimant: int) -> str:
        """Why the claim is refused. If both are behind one host, the holder may be an earlier life of the claimant."""
        hosts = self._endpoints()
        refusal = f"{address} belongs to the client at {hosts.get(holder, 'another address')}"
        if holder not in hosts or hosts[holder] != hosts.get(claimant):
            return refusal
        self._tell_workers(Doubted(doubted=self._peers[holder].peer_handle))
        return f"{refusal}, which loses it now unless it answers"

    def _publish_routes(self) -> None:
        self.changes += 1
        self._table.write_routes(
            [
                (address.packed, address.max_prefixlen, peer.peer_handle)
                for peer in self._peers.values()
                for address in peer.addresses
            ]
        )

    # -- for people

    def name_session(self, peer: int) -> PresentSession | None:
        """The name of a peer is its first address, once that is known; None without a session."""
        return PresentSession(self._row(peer).name) if peer in self._peers else None

    def peer_rows(self) -> list[PeerRow]:
        """Every peer that has an index, by address; those without one come last."""
        rows = [self._row(index) for index in self._peers]
        return sorted(rows, key=self._place)

    def _place(self, row: PeerRow) -> list[tuple[int, int]]:
        """By it rows are sorted."""
        return [(a.version, int(a)) for a in self._peers[row.peer].addresses] or [(7, 0)]

    def list_peers(self, now: int) -> list[PeerStatus]:
        """The peers that are connected, with the traffic of this moment."""
        return [each for each in describe_peers(self.peer_rows(), self._table, now) if each["connections"]]

    def _row(self, index: int) -> PeerRow:
        peer = self._peers[index]
        addresses = tuple(map(str, peer.addresses))
        name = addresses[0] if addresses else "-"
        return peer.row._replace(name=name, addresses=addresses, rate_mbit=self._rate / BYTES_PER_MBIT)

    def _endpoints(self) -> dict[int, str]:
        """By index, the address from which a peer is connected."""
        return {
            connection.peer: connection.address.rpartition(":")[0]
            for lane in range(len(self._table.links))
            for connection in self._table.connections(lane)
            if connection.state == "established"
        }
