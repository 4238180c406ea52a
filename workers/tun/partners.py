"""A client with partners (docs/direct.md): which of two ways a packet takes, and what is taken from a partner.

    packet from TUN         for a partner's network, while its path is open: to the partner; else to the server
    packet of a partner     from its own network, for one of ours: for the kernel; else dropped and counted
    packet of the server    as ever

The routes of the peer table have the networks of partners and, as OWN, ours. A route stays while the path is dark.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet.ip import destination, source
from pipeline.packet.route_table import OWN
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import PEER_INDEX_MASK, SERVER
from pipeline.shm.peer_table import PeerTable
from workers.tun.bulk_packer import BulkPacker
from workers.tun.classed_packer import ClassedPacker
from workers.tun.writer import TunWriter

_SOURCE_REFUSED = ID["tun.dropped_source_refused"]
_NOT_OURS = ID["tun.dropped_destination_refused"]


def has_partners(attachment: Attachment) -> bool:
    return attachment.plan.mode == "client" and attachment.peer_table.capacity > 1


class PartnerPacker(BulkPacker):
    """A BulkPacker of a client that may have partners."""

    _table: PeerTable

    def __init__(self, attachment: Attachment, *rest: object) -> None:
        super().__init__(attachment, *rest)  # type: ignore[arg-type]
        self._table = attachment.peer_table

    def _receiver(self, slot: memoryview, at: int) -> int:
        address = destination(slot, at)
        peer_handle = self._routes.cache.get(address)
        if peer_handle is None:
            peer_handle = self._routes.longest_match(address)
        if peer_handle > 0:
            peer = peer_handle & PEER_INDEX_MASK
            if peer != SERVER and self._links.state(peer).by_datagrams:
                return peer_handle
        return self._table.peer_handle(SERVER)


class ClassedPartnerPacker(PartnerPacker, ClassedPacker):
    """That with rules for classes."""


class PartnerWriter(TunWriter):
    """A TunWriter of a client that may have partners."""

    def _is_for_kernel(self, slot: memoryview, at: int, peer_handle: int) -> bool:
        if peer_handle & PEER_INDEX_MASK == SERVER:
            return super()._is_for_kernel(slot, at, peer_handle)
        lookup = self._routes.lookup
        return lookup(source(slot, at)) == peer_handle and lookup(destination(slot, at)) == OWN

    def _route(self, slot: memoryview, at: int, length: int, peer_handle: int, traffic_class: int) -> bool:
        lookup = self._routes.lookup
        if lookup(source(slot, at)) != peer_handle:
            self._counters[_SOURCE_REFUSED] += 1
            return False
        if lookup(destination(slot, at)) != OWN:
            self._counters[_NOT_OURS] += 1
            return False
        return True
