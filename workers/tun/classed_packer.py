"""The packer of an instance with rules for classes: it knows which packets of bulk are of the class bulk.

ClassedPacker takes the place of BulkPacker where a setting asks for it (`class_packer`), so classes cost nothing where
they are off. It counts the bytes of the class bulk as they get into blocks. Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque

from pipeline.packet.flow_rules import BULK
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import NUMBER_BULK_CLASS, PEER_INDEX_MASK, RECORD_WORDS
from workers.tun.bulk_packer import BulkPacker
from workers.tun.class_packer import ClassPacker
from workers.tun.multicast import MulticastPacker
from workers.tun.sealing import BlockSealing


class ClassedPacker(BulkPacker):
    """A BulkPacker whose light packer is a ClassPacker."""

    _light: ClassPacker

    def __init__(
        self, attachment: Attachment, sealing: BlockSealing | None = None, owed: deque[int] | None = None
    ) -> None:
        super().__init__(attachment, sealing, owed)
        self._numbers = attachment.peer_table.numbers[attachment.worker.lane]

    def commit_alone(self, length: int, now: int) -> int:
        peer_handle = self._routes.only
        count = super().commit_alone(length, now)
        if count and self._light.verdict == BULK:
            self._count(peer_handle, length)
        return count

    def retry(self, packet: bytes) -> bool:
        self._light.judge(memoryview(packet), 0)
        return super().retry(packet)

    def _append(self, slot: memoryview, at: int, length: int, peer_handle: int) -> bool:
        if not super()._append(slot, at, length, peer_handle):
            return False
        if self._light.verdict == BULK:
            self._count(peer_handle, length)
        return True

    def _count(self, peer_handle: int, length: int) -> None:
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + NUMBER_BULK_CLASS
        self._numbers[at] += length - VNET_HEADER_BYTES


class ClassedMulticastPacker(MulticastPacker, ClassedPacker):
    """A ClassedPacker of a hub that passes multicast on."""
