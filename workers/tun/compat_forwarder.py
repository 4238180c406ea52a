"""The forwarder of a hub of the original program: packets from one peer to another, as frames in the transit ring.

Nothing has to be finished: the packets of such peers have no virtio-net header. Stage 0 of the lane's transit ring, in
the inbound duty. A full ring drops packets, counted, and never blocks; so does a sender's share of it.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.ring_shares import RingShares
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from workers.tun.compat_slots import CompatSlots
from workers.tun.forwarder import TRANSIT_GREED

_TRANSIT_FULL = ID["tun.dropped_transit_full"]
_FORWARDED = ID["tun.packets_forwarded"]


class CompatForwarder:
    """A PeerForwarder."""

    def __init__(self, attachment: Attachment) -> None:
        (port,) = attachment.ports("inbound", "transit")
        self._slots = CompatSlots(port, LinkView(attachment))
        self._shares = RingShares(port.ring.capacity, TRANSIT_GREED)
        self._counters = attachment.page.counters

    def forward(
        self, slot: memoryview, at: int, length: int, sender: int, peer_handle: int, traffic_class: int
    ) -> None:
        placed = self._may_place(sender, peer_handle) and self._slots.append(
            slot[at + VNET_HEADER_BYTES : at + length], peer_handle
        )
        self._counters[_FORWARDED if placed else _TRANSIT_FULL] += 1

    def _may_place(self, sender: int, peer_handle: int) -> bool:
        """Whether the packet needs no new slot, or there is one within the sender's share, which has it then."""
        if self._slots.has_open(peer_handle):
            return True
        free = self._slots.free()
        self._shares.follow(free)
        if not free or not self._shares.may_add(sender):
            return False
        self._shares.add(sender, 0)
        return True

    def flush(self) -> None:
        self._slots.hand_on()
