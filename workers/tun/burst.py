"""The bulk blocks of a burst: slots of the plain and the coded ring of a lane, handed on together.

A peer has at most one open block. A block begins in the coded ring while the peer's connections call for parity, else
in the plain one. The blocks leave in the order in which they were begun. Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import Port
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import NUMBER_PACKETS, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.wire import framing
from workers.tun.open_block import BlockMaker, OpenBlock
from workers.tun.packer import BURST_SLOTS


class Burst:
    """The blocks begun since the last hand_on(). `open`: by peer handle, those that take more packets."""

    def __init__(self, attachment: Attachment, links: LinkView, maker: BlockMaker) -> None:
        self._maker = maker
        (self.plain,) = attachment.ports("outbound", "plain")
        self._coded = next(iter(attachment.ports("outbound", "coded")), None)
        self.ports = [port for port in (self.plain, self._coded) if port is not None]
        self._counts_packets = attachment.peer_table.capacity > 1  # the answers that a peer causes are charged to it
        self.slots_max = BURST_SLOTS if attachment.peer_table.capacity == 1 else self.plain.ring.capacity
        self.used = dict.fromkeys(self.ports, 0)  # slots of this burst
        self.open: dict[int, OpenBlock] = {}
        self._blocks: list[OpenBlock] = []
        self._links = links
        self._numbers = attachment.peer_table.numbers[attachment.worker.lane]

    def port_for(self, peer: int) -> Port:
        """The port in which a block for this peer begins."""
        return self._coded if self._coded is not None and self._links.parity(peer) else self.plain

    def next_buffer(self, port: Port) -> memoryview | None:
        """Where the packets of the next block would be gathered, if it begins in this port; None if no slot is free."""
        used = self.used[port]
        if used >= self.slots_max or used >= port.ready():
            return None
        return self._maker.buffer(port.slot(used), len(self._blocks))

    def begin_block(self, peer_handle: int) -> OpenBlock | None:
        """A new open block for a peer; None if no slot is free."""
        peer = peer_handle & PEER_INDEX_MASK
        port = self.port_for(peer)
        used = self.used[port]
        if used >= self.slots_max or used >= port.ready():
            return None
        self.used[port] = used + 1
        slot = port.slot(used)
        block = self.open[peer_handle] = OpenBlock(
            port,
            slot,
            self._maker.buffer(slot, len(self._blocks)),
            self._links.bulk_consumer(peer),
            peer_handle,
            framing.BULK,
            port is self._coded,
        )
        self._blocks.append(block)
        return block

    def hand_on(self) -> int:
        """Hand on all blocks of the burst; their number."""
        blocks = self._blocks
        if not blocks:
            return 0
        for block in blocks:
            self._maker.finish(block)
            if self._counts_packets:
                peer = block.peer_handle & PEER_INDEX_MASK
                self._numbers[peer * RECORD_WORDS + NUMBER_PACKETS] += len(block.lengths)
        count = len(blocks)
        blocks.clear()
        self.open.clear()
        for port, used in self.used.items():
            if used:
                self.used[port] = 0
                port.advance(used)
        return count
