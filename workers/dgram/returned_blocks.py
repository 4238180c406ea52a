"""The returned ring of a lane: blocks that no datagram brings to their peer, for the tcp workers.

A slot has one block, as a tun worker would have put it into a ring for them. The number of its packets is not known
here. The other end may have the block already, and opens it once.

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.fec import shard
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import PEER_INDEX_MASK, SLOT_SEALED_AT
from pipeline.shm.slot import write_header
from pipeline.wire import framing

_START = SLOT_SEALED_AT - shard.RUN_BYTES
_REST_BYTES = shard.RUN_BYTES - framing.LENGTH.size


class ReturnedBlocks:
    """Stage 0 of the lane's returned ring."""

    def __init__(self, attachment: Attachment) -> None:
        (self._port,) = attachment.ports("outbound", "returned")
        self._links = LinkView(attachment, datagrams=False)
        self._filled = 0

    def put(self, peer_handle: int, stream: int, number: int, epoch: int, sealed: bytes) -> bool:
        """Put a block into the next slot. False if none is free, or no slot has room for it."""
        port = self._port
        size = len(sealed)
        if port.ready() <= self._filled or SLOT_SEALED_AT + size > port.ring.slot_bytes:
            return False
        slot = port.slot(self._filled)
        shard.SEALED_RUN.pack_into(
            slot, _START, _REST_BYTES + size, framing.RUN, stream, number, 1, 0, 0, 1, size, epoch, 0
        )
        slot[SLOT_SEALED_AT : SLOT_SEALED_AT + size] = sealed
        link = self._links.state(peer_handle & PEER_INDEX_MASK)
        light = stream & 1
        consumer = link.light_consumer if light else link.bulk_consumer
        write_header(slot, _START, shard.RUN_BYTES + size, consumer, peer_handle, light)
        self._filled += 1
        return True

    def flush(self) -> None:
        """Hand on what was put."""
        if self._filled:
            self._port.advance(self._filled)
            self._filled = 0
