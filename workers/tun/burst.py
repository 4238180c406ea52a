"""The bulk blocks of a burst: slots of the plain and the coded ring of a lane, handed on together.

    look         before a burst: how many slots are free
    prepare      a block in the next free slot, so that a packet can be read into it; it is nobody's yet
    begin        the block is for a peer now, and open
    hand_on      all blocks of the burst are finished, and their slots handed on

    lone_buffer, hand_on_alone    the same for a burst of one packet in the plain ring

A peer has at most one open block. A block begins in the coded ring while the peer's connections call for parity, else
in the plain one. The blocks leave in the order in which they were begun. Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import Port
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import NUMBER_BULK_BYTES, NUMBER_PACKETS, PEER_INDEX_MASK, RECORD_WORDS, SLOT_BODY_AT
from workers.tun.open_block import BlockMaker, OpenBlock
from workers.tun.packer import BURST_SLOTS


class RingSlots:
    """The slots of one ring in a burst: `used` of `free`, as many as there were at the last look."""

    __slots__ = ("free", "is_coded", "port", "used")

    def __init__(self, port: Port, is_coded: bool) -> None:
        self.port = port
        self.is_coded = is_coded
        self.free = 0
        self.used = 0


class Burst:
    """The blocks begun since the last hand_on(). `open`: by peer handle, those that take more packets.

    `rings`: the plain one first.
    """

    def __init__(self, attachment: Attachment, links: LinkView, maker: BlockMaker) -> None:
        self._maker = maker
        self.rings = [
            RingSlots(port, kind == "coded")
            for kind in ("plain", "coded")
            for port in attachment.ports("outbound", kind)
        ]
        self._counts_packets = attachment.peer_table.capacity > 1  # the answers that a peer causes are charged to it
        self._slots_max = BURST_SLOTS if attachment.peer_table.capacity == 1 else self.rings[0].port.ring.capacity
        self.open: dict[int, OpenBlock] = {}
        self._blocks: list[OpenBlock] = []
        self._links = links
        self._numbers = attachment.peer_table.numbers[attachment.worker.lane]

    def lone_buffer(self) -> memoryview | None:
        """Where the first packet of a burst would be gathered; None if no slot is free."""
        port = self.rings[0].port
        return self._maker.buffer(port.slot(), 0) if port.ready() else None

    def hand_on_alone(self, peer_handle: int, length: int) -> None:
        """Hand on a block of the one packet that is in the lone_buffer()."""
        port = self.rings[0].port
        slot = port.slot()
        block = OpenBlock(slot, self._maker.buffer(slot, 0), False)
        block.peer_handle = peer_handle
        block.consumer = self._links.state(peer_handle & PEER_INDEX_MASK).bulk_consumer
        block.lengths.append(length)
        block.end += length
        self._blocks.append(block)
        self.rings[0].used = 1
        self.hand_on()

    def ring_for(self, peer: int) -> RingSlots:
        """The ring in which a block for this peer begins."""
        rings = self.rings
        return rings[-1] if len(rings) > 1 and self._links.state(peer).is_coded else rings[0]

    def look(self) -> bool:
        """Find out how many slots are free. Whether each ring has one."""
        most, each_has = self._slots_max, True
        for ring in self.rings:
            free = ring.free = ring.port.ready()
            if free > most:
                ring.free = most
            elif not free:
                each_has = False
        return each_has

    def prepare(self, ring: RingSlots) -> OpenBlock | None:
        """A block in the next slot of a ring; None if no slot is free."""
        used = ring.used
        if used >= ring.free:
            return None
        slot = ring.port.slot(used)
        return OpenBlock(slot, self._maker.buffer(slot, len(self._blocks)), ring.is_coded)

    def begin(self, ring: RingSlots, block: OpenBlock, peer_handle: int) -> None:
        """Open the block, which was prepared in this ring, for a peer."""
        ring.used += 1
        block.peer_handle = peer_handle
        block.consumer = self._links.state(peer_handle & PEER_INDEX_MASK).bulk_consumer
        self.open[peer_handle] = block
        self._blocks.append(block)

    def hand_on(self) -> int:
        """Hand on all blocks of the burst; their number."""
        blocks = self._blocks
        if not blocks:
            return 0
        numbers = self._numbers
        for block in blocks:
            self._maker.finish(block)
            packets = len(block.lengths)
            record_at = (block.peer_handle & PEER_INDEX_MASK) * RECORD_WORDS
            numbers[record_at + NUMBER_BULK_BYTES] += block.end - SLOT_BODY_AT - packets * VNET_HEADER_BYTES
            if self._counts_packets:
                numbers[record_at + NUMBER_PACKETS] += packets
        count = len(blocks)
        blocks.clear()
        self.open.clear()
        for ring in self.rings:
            used = ring.used
            if used:
                ring.used = 0
                ring.free -= used
                ring.port.advance(used)
        return count
