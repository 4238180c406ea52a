"""The forwarder: packets from one peer to another, out of the inbound rings into the transit ring, past the kernel.

Stage 0 of the lane's transit ring, in the inbound duty of the tun worker. A full ring drops packets, counted, and never
blocks; so does a sender's share of it, while others need the rest. A packet of a light flow stays light: a block takes
over the traffic class of the slot that the packet came in.

Cutting super-packets is dear, and their sender is charged for it. Of one slot SEGMENTS_MOST segments are made.
"""

from __future__ import annotations

from typing import Protocol

from pipeline.counters import ID
from pipeline.packet import gso
from pipeline.packet.vnet import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_HEADER_BYTES
from pipeline.policy.ring_shares import RingShares
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.tun import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, USO
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import (
    ARRIVED_TRANSIT_BULK_BYTES,
    ARRIVED_TRANSIT_FROM,
    PEER_INDEX_MASK,
    RECORD_WORDS,
    SLOT_BODY_AT,
)
from pipeline.wire import charge, framing
from workers.tun.late_charges import LateCharges
from workers.tun.open_block import FULL_AT, OpenBlock, transit_blocks
from workers.tun.sealing import BlockSealing

NEEDED_OFFLOADS = {
    GSO_NONE: TUN_F_CSUM,
    GSO_TCPV4: TUN_F_TSO4,
    GSO_TCPV4 | GSO_ECN: TUN_F_TSO4 | TUN_F_TSO_ECN,
    GSO_TCPV6: TUN_F_TSO6,
    GSO_TCPV6 | GSO_ECN: TUN_F_TSO6 | TUN_F_TSO_ECN,
    GSO_UDP_L4: USO,
}
"""The TUN_F_* bits that a receiver must accept for a packet with a header that is not empty, by gso_type.

The sender may send a kind of packet that was never offered to it: this is the first check of that."""

TRANSIT_GREED = 7
"""A sender may fill seven eighths of the ring: its packets are dropped beyond that, as nobody tells it to wait."""

SEGMENTS_MOST = framing.BLOCK_PACKETS_MAX
"""Segments made of the super-packets in one slot: as many packets as a block may have. They take 2 ms."""

_ALL_OFFLOADS = -1
_FROM = ARRIVED_TRANSIT_FROM - ARRIVED_TRANSIT_BULK_BYTES
_HEADER_MALFORMED = ID["tun.dropped_header_malformed"]
_TRANSIT_FULL = ID["tun.dropped_transit_full"]
_SEGMENTS_MANY = ID["tun.dropped_segments_many"]
_FORWARDED = ID["tun.packets_forwarded"]


class PeerForwarder(Protocol):
    """The calls of TunWriter to what passes packets from peer to peer."""

    def forward(
        self, slot: memoryview, at: int, length: int, sender: int, peer_handle: int, traffic_class: int
    ) -> None:
        """Forward the packet of `sender` at slot[at], virtio-net header included, to a peer."""
        ...

    def flush(self) -> None:
        """The slot is finished: hand on what was put into open blocks."""
        ...


class Forwarder:
    """The blocks begun since the last flush(): at most one open block for each peer handle and traffic class."""

    def __init__(self, attachment: Attachment, sealing: BlockSealing | None = None) -> None:
        (self._port,) = attachment.ports("inbound", "transit")
        self._shares = RingShares(self._port.ring.capacity, TRANSIT_GREED)
        self._charges = LateCharges(attachment)
        self._segments = 0  # made of
        self._slot: memoryview | None = None
        self._links = LinkView(attachment)
        self._maker = transit_blocks(attachment.peer_table.transit_numbers[attachment.worker.lane], sealing)
        self._counters = attachment.page.counters
        self._arrived = attachment.peer_table.arrived[attachment.worker.lane]
        self._blocks: list[OpenBlock] = []
        self._senders: list[int] = []  # of the first packet of each
        self._open: dict[tuple[int, int], OpenBlock] = {}  # by peer handle and traffic class

    def forward(
        self, slot: memoryview, at: int, length: int, sender: int, peer_handle: int, traffic_class: int
    ) -> None:
        """Forward the packet at slot[at], virtio-net header included, to a peer; finish it first if need be."""
        if slot[at] or slot[at + 1]:
            accepted = self._links.state(peer_handle & PEER_INDEX_MASK).offloads or 0
            if NEEDED_OFFLOADS.get(slot[at + 1], _ALL_OFFLOADS) & ~accepted:
                if slot is not self._slot:
                    self._slot, self._segments = slot, 0
                if self._segments >= SEGMENTS_MOST:
                    self._counters[_SEGMENTS_MANY] += 1
                    return
                packets = gso.finish(bytes(slot[at : at + length]))
                self._segments += len(packets)
                self._charges.add(sender, charge.SEGMENT * len(packets))
                for packet in packets:
                    self._append(memoryview(packet), sender, peer_handle, traffic_class)
                self._counters[_HEADER_MALFORMED] += not packets
                return
        self._append(slot[at : at + length], sender, peer_handle, traffic_class)

    def has_room(self, sender: int) -> bool:
        """Whether one more block of this sender can begin."""
        free = self._port.ready() - len(self._blocks)
        self._shares.follow(free)
        return free > 0 and self._shares.may_add(sender)

    def _append(self, packet: memoryview, sender: int, peer_handle: int, traffic_class: int) -> None:
        """Put a packet into the open block of a peer; drop it if that needs a new slot and the sender gets none."""
        block = self._open.get((peer_handle, traffic_class)) or self._begin_block(sender, peer_handle, traffic_class)
        if block is None:
            self._counters[_TRANSIT_FULL] += 1
            return
        end = block.end + len(packet)
        block.buffer[block.end : end] = packet
        block.lengths.append(len(packet))
        block.end = end
        self._counters[_FORWARDED] += 1
        if end > FULL_AT or len(block.lengths) == framing.BLOCK_PACKETS_MAX:
            del self._open[peer_handle, traffic_class]

    def _begin_block(self, sender: int, peer_handle: int, traffic_class: int) -> OpenBlock | None:
        if not self.has_room(sender):
            return None
        ahead = len(self._blocks)
        self._shares.add(sender, 0)
        link = self._links.state(peer_handle & PEER_INDEX_MASK)
        consumer = link.light_consumer if traffic_class == framing.LIGHT else link.bulk_consumer
        slot = self._port.slot(ahead)
        block = self._open[peer_handle, traffic_class] = OpenBlock(
            slot, self._maker.buffer(slot, ahead), link.is_coded, traffic_class, consumer, peer_handle
        )
        self._blocks.append(block)
        self._senders.append(sender)
        return block

    def flush(self) -> None:
        """Hand on the blocks."""
        blocks = self._blocks
        if not blocks:
            return
        for block, sender in zip(blocks, self._senders, strict=True):
            self._maker.finish(block)
            packets = len(block.lengths)
            self._charges.add(sender, charge.FORWARD * packets)
            word = (block.peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + ARRIVED_TRANSIT_BULK_BYTES
            self._arrived[word + _FROM] = sender
            self._arrived[word + block.traffic_class] += block.end - SLOT_BODY_AT - packets * VNET_HEADER_BYTES
        self._port.advance(len(blocks))
        blocks.clear()
        self._senders.clear()
        self._slot = None
        self._open.clear()
