"""The packer of an instance with rules for classes: it knows which packets of bulk are of the class bulk.

ClassedPacker takes the place of BulkPacker where a setting asks for it (`class_packer`), so classes cost nothing where
they are off. It counts the bytes of the class bulk as they get into blocks. With `bulk_rate_mbit`, of all peers or of
one, packets of that class wait in a BulkLimit until the rate of their peer lets them go, however empty the rings are.
Owned by the outbound duty.
"""

from __future__ import annotations

import time
from collections import deque

from pipeline.counters import ID
from pipeline.packet.flow_rules import BULK
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.bulk_limit import BulkLimit
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import NUMBER_BULK_CLASS, PEER_INDEX_MASK, RECORD_WORDS
from workers.tun.bulk_packer import BulkPacker
from workers.tun.class_packer import ClassPacker
from workers.tun.multicast import MulticastPacker
from workers.tun.sealing import BlockSealing

RETRY_NS = 1_000_000

_DROPPED_BULK_LIMIT = ID["tun.dropped_bulk_limit"]


class ClassedPacker(BulkPacker):
    """A BulkPacker whose light packer is a ClassPacker."""

    _light: ClassPacker

    def __init__(
        self, attachment: Attachment, sealing: BlockSealing | None = None, owed: deque[int] | None = None
    ) -> None:
        super().__init__(attachment, sealing, owed)
        self._numbers = attachment.peer_table.numbers[attachment.worker.lane]
        self._lane = attachment.worker.lane
        self._table = attachment.peer_table
        self._rate = attachment.settings.bulk_rate  # of a peer without its own
        self._limit = BulkLimit(self._rate_of, self._sent_elsewhere)
        self._now = 0

    def lone_buffers(self, offloads: int) -> list[memoryview] | None:
        only = self._routes.only
        return None if only >= 0 and self._rate_of(only) else super().lone_buffers(offloads)

    def acknowledge(self) -> int:
        count = super().acknowledge()
        if self.due_ns:
            now = self._now = time.monotonic_ns()
            if now >= self.due_ns:
                self._burst.look()
                self._send_held(now)
                count += self.flush()
        return count

    def commit(self, length: int, now: int) -> bytes | None:
        self._now = now
        return super().commit(length, now)

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
        if self._light.verdict != BULK:
            return super()._append(slot, at, length, peer_handle)
        limit = self._limit
        if limit.may_pass(peer_handle, self._now):
            if super()._append(slot, at, length, peer_handle):
                self._count(peer_handle, length)
                limit.spend(peer_handle, length, self._now)
                return True
            if not self._rate_of(peer_handle):
                return False
        if not limit.hold(peer_handle, bytes(slot[at : at + length])):
            self._counters[_DROPPED_BULK_LIMIT] += 1
        self.due_ns = limit.due_ns
        return True

    def _send_held(self, now: int) -> None:
        """Put the packets whose time has come, as far as there are slots; without one, look again a moment later."""
        limit = self._limit
        while found := limit.first(now):
            peer_handle, packet = found
            if not super()._append(memoryview(packet), 0, len(packet), peer_handle):
                self.due_ns = now + RETRY_NS
                return
            self._count(peer_handle, len(packet))
            limit.take(now)
        self.due_ns = limit.due_ns

    def _rate_of(self, peer_handle: int) -> int:
        own = self._table.bulk_rate(peer_handle & PEER_INDEX_MASK)
        return self._rate if own is None else own

    def _sent_elsewhere(self, peer_handle: int) -> int:
        return self._table.bulk_class_elsewhere(peer_handle & PEER_INDEX_MASK, self._lane)

    def _count(self, peer_handle: int, length: int) -> None:
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + NUMBER_BULK_CLASS
        self._numbers[at] += length - VNET_HEADER_BYTES


class ClassedMulticastPacker(MulticastPacker, ClassedPacker):
    """A ClassedPacker of a hub that passes multicast on."""
