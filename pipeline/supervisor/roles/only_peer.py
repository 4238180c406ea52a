"""The peer table of an instance with one peer: all packets go to that peer."""

from __future__ import annotations

from pipeline.packet.route_table import DEFAULT_ROUTES
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.peer_table import PeerTable


def write_only_peer(table: PeerTable, peer_handle: int = FIRST_PEER_HANDLE) -> None:
    """Peer 0 is there, without a rate limit, and every route leads to it."""
    table.write_routes([(*route, peer_handle) for route in DEFAULT_ROUTES])
    table.write_record(peer_handle, 0)
