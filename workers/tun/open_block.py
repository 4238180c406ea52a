"""An open block: packets for one peer, gathered until the block is full, or until its burst is handed on.

Each belongs to the duty that fills it: outbound in a `Burst`, inbound in the `Forwarder`. A shape has one way to make
blocks, a BlockMaker. It says where the packets of a block are gathered, and puts the block into its slot.

    PlainBlocks     gathered in the slot itself; headers are written in front of them
    SealedBlocks    gathered in private memory, and sealed into the slot
"""

from __future__ import annotations

from typing import Protocol

from pipeline.fec import shard
from pipeline.sealing import kinds
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.slot import FILL_LIMIT, NO_NUMBER, SLOT_BYTES_MIN, next_block_number, seal_block, write_header
from pipeline.wire import framing
from pipeline.wire.block import SEALED_PREFIXES
from workers.tun.sealing import BlockSealing

FULL_AT = layout.SLOT_BODY_AT + FILL_LIMIT
"""A block whose packets end behind this offset is full."""

NOBODY = 0xFFFF
"""The consumer of a slot whose block could not be sealed: every tcp worker passes it over."""

SEALED_START = layout.SLOT_SEALED_AT - shard.RUN_BYTES
_PREFIX_STARTS = [layout.SLOT_BODY_AT - prefix.size for prefix in SEALED_PREFIXES]


class OpenBlock:
    """A block for one peer and traffic class: packets in `buffer` up to `end`, for `slot`.

    `is_coded`: the peer's connections called for parity when the block was begun.
    """

    __slots__ = ("buffer", "consumer", "end", "is_coded", "lengths", "peer_handle", "slot", "traffic_class")

    def __init__(
        self,
        slot: memoryview,
        buffer: memoryview,
        is_coded: bool,
        traffic_class: int = framing.BULK,
        consumer: int = NOBODY,
        peer_handle: int = 0,
    ) -> None:
        self.slot = slot
        self.buffer = buffer
        self.is_coded = is_coded
        self.traffic_class = traffic_class
        self.consumer = consumer
        self.peer_handle = peer_handle
        self.lengths: list[int] = []
        self.end = layout.SLOT_BODY_AT


class BlockMaker(Protocol):
    """The way of a duty to make blocks."""

    def buffer(self, slot: memoryview, begun: int) -> memoryview:
        """Where the packets of a block for this slot are gathered, from SLOT_BODY_AT on. `begun`: blocks that are being
        gathered already."""
        ...

    def finish(self, block: OpenBlock) -> None:
        """Put the block into its slot, which can be handed on then."""
        ...


class PlainBlocks:
    """`numbers`: the words of the next block numbers, by peer; those of bulk and of light blocks are at `words`."""

    def __init__(self, numbers: memoryview, words: tuple[int, int]) -> None:
        self._numbers = numbers
        self._words = words

    def buffer(self, slot: memoryview, begun: int) -> memoryview:
        return slot

    def finish(self, block: OpenBlock) -> None:
        number = NO_NUMBER
        if block.is_coded:
            at = (block.peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + self._words[block.traffic_class]
            number = next_block_number(self._numbers, at)
        seal_block(block.slot, block.lengths, block.end, block.consumer, block.peer_handle, block.traffic_class, number)


class SealedBlocks:
    """`sealing`: of the duty. `plain`, `coded`: its kinds of blocks, by traffic class."""

    def __init__(self, sealing: BlockSealing, plain: tuple[int, int], coded: tuple[int, int]) -> None:
        self._sealing = sealing
        self._kinds = {False: plain, True: coded}
        self._buffers: list[memoryview] = []

    def buffer(self, slot: memoryview, begun: int) -> memoryview:
        if begun == len(self._buffers):
            self._buffers.append(memoryview(bytearray(SLOT_BYTES_MIN)))
        return self._buffers[begun]

    def finish(self, block: OpenBlock) -> None:
        lengths, buffer, slot = block.lengths, block.buffer, block.slot
        count = len(lengths)
        start = _PREFIX_STARTS[count]
        sealing = self._sealing
        SEALED_PREFIXES[count].pack_into(buffer, start, sealing.acknowledged(block.peer_handle), count, *lengths)
        kind = self._kinds[block.is_coded][block.traffic_class]
        number, length = sealing.seal(slot, SEALED_START, block.peer_handle, kind, buffer[start : block.end], count)
        consumer = block.consumer if length else NOBODY
        write_header(
            slot, SEALED_START, length, consumer, block.peer_handle, block.traffic_class,
            number if block.is_coded else NO_NUMBER,
        )  # fmt: skip


def outbound_blocks(numbers: memoryview, sealing: BlockSealing | None) -> BlockMaker:
    """The maker of the outbound duty."""
    if sealing is None:
        return PlainBlocks(numbers, (layout.NUMBER_CODED, layout.NUMBER_CODED))
    return SealedBlocks(sealing, (kinds.PLAIN, kinds.LIGHT), (kinds.CODED, kinds.COPIED))


def transit_blocks(numbers: memoryview, sealing: BlockSealing | None) -> BlockMaker:
    """The maker of the inbound duty, for blocks from peer to peer."""
    if sealing is None:
        return PlainBlocks(numbers, (layout.TRANSIT_NUMBER_BULK, layout.TRANSIT_NUMBER_LIGHT))
    both = kinds.TRANSIT_BULK, kinds.TRANSIT_LIGHT
    return SealedBlocks(sealing, both, both)
