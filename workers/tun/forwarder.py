"""From one peer to another: packets of the inbound rings into blocks of the lane's transit ring, past the kernel.

Stage 0 of that ring, the tun worker's inbound duty. A full ring drops, counted, and never blocks. What comes from a
light flow stays one: the purpose of a block's connection or stream goes with it.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet import gso
from pipeline.packet.vnet import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.tun import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, USO
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.slot import FILL_LIMIT, NO_NUMBER
from pipeline.wire import framing
from workers.tun.bulk_packer import OpenBlock


class Forwarder:
    """The blocks in hand: one for each seat and purpose."""

    def __init__(self, attachment: Attachment) -> None:
        (self._port,) = attachment.ports("inbound", "transit")
        self._ways = LinkView(attachment)
        self._numbers = attachment.peers.transit[attachment.me.lane]
        self._counters = attachment.page.counters
        self._filled: list[OpenBlock] = []
        self._open: dict[tuple[int, int], OpenBlock] = {}  # by seat and purpose

    def take(self, slot: memoryview, at: int, length: int, peer_handle: int, traffic_class: int) -> None:
        """The packet at slot[at], virtio-net header included, is for this seat."""
        if slot[at] or slot[at + 1]:
            accepted = self._ways.offloads(peer_handle & PEER_INDEX_MASK) or 0
            if _NEEDED.get(slot[at + 1], -1) & ~accepted:
                finished = gso.finish(bytes(slot[at : at + length]))
                for packet in finished:
                    self._put(memoryview(packet), peer_handle, traffic_class)
                self._counters[_MALFORMED] += not finished
                return
        self._put(slot[at : at + length], peer_handle, traffic_class)

    def _put(self, packet: memoryview, peer_handle: int, traffic_class: int) -> None:
        filling = self._open.get((peer_handle, traffic_class))
        if filling is None:
            ahead = len(self._filled)
            if ahead >= self._port.ready():
                self._counters[_FULL_RING] += 1
                return
            peer = peer_handle & PEER_INDEX_MASK
            number = NO_NUMBER
            if self._ways.parity(peer):
                at = peer * RECORD_WORDS + traffic_class  # TRANSIT_BULK or TRANSIT_LIGHT
                number = self._numbers[at]
                self._numbers[at] = number + 1 & 0xFFFFFFFF
            member = self._ways.own(peer)
            if traffic_class == framing.LIGHT:
                member = self._ways.own_light(peer, member)
            filling = self._open[peer_handle, traffic_class] = OpenBlock(
                self._port, self._port.slot(ahead), peer_handle, traffic_class, member, number
            )
            self._filled.append(filling)
        end = filling.end + len(packet)
        filling.slot[filling.end : end] = packet
        filling.lengths.append(len(packet))
        filling.end = end
        self._counters[_PACKETS] += 1
        if end > _FULL or len(filling.lengths) == framing.BLOCK_PACKETS_MAX:
            del self._open[peer_handle, traffic_class]

    def leave(self) -> None:
        """Hand on the blocks in hand."""
        filled = self._filled
        if not filled:
            return
        for filling in filled:
            filling.seal()
        self._port.advance(len(filled))
        filled.clear()
        self._open.clear()


_NEEDED = {
    GSO_NONE: TUN_F_CSUM,
    GSO_TCPV4: TUN_F_TSO4,
    GSO_TCPV4 | GSO_ECN: TUN_F_TSO4 | TUN_F_TSO_ECN,
    GSO_TCPV6: TUN_F_TSO6,
    GSO_TCPV6 | GSO_ECN: TUN_F_TSO6 | TUN_F_TSO_ECN,
    GSO_UDP_L4: USO,
}
"""What the receiver's device has to take, by gso_type. That the sender's packet is of a kind that was offered to it,
nobody has checked."""

_FULL = layout.SLOT_BODY_AT + FILL_LIMIT
_MALFORMED = ID["tun.dropped_header_malformed"]
_FULL_RING = ID["tun.dropped_transit_full"]
_PACKETS = ID["tun.packets_forwarded"]
