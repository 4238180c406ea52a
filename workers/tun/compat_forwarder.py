"""The forwarder of a hub of the original program: packets from one peer to another, as frames in the transit ring.

Nothing has to be finished: the packets of such peers have no virtio-net header. Stage 0 of the lane's transit ring, in
the inbound duty. A full ring drops packets, counted, and never blocks.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from workers.tun.compat_slots import CompatSlots

_TRANSIT_FULL = ID["tun.dropped_transit_full"]
_FORWARDED = ID["tun.packets_forwarded"]


class CompatForwarder:
    """A PeerForwarder."""

    def __init__(self, attachment: Attachment) -> None:
        (port,) = attachment.ports("inbound", "transit")
        self._slots = CompatSlots(port, LinkView(attachment))
        self._counters = attachment.page.counters

    def forward(
        self, slot: memoryview, at: int, length: int, sender: int, peer_handle: int, traffic_class: int
    ) -> None:
        placed = self._slots.append(slot[at + VNET_HEADER_BYTES : at + length], peer_handle)
        self._counters[_FORWARDED if placed else _TRANSIT_FULL] += 1

    def flush(self) -> None:
        self._slots.hand_on()
