"""Packets into the original's frames: what `tun_blocks` is to the tun worker, with `compat`.

A slot holds frames of one bare packet each; one connection, one peer, no light flows.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet.route_table import RouteTable
from pipeline.packet.vnet import PACKET_BYTES_MAX, VNET_HEADER_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout
from pipeline.shm.slot import FILL_LIMIT, SLOT
from pipeline.wire import framing
from workers.tun.bulk_packer import BURST_SLOTS


class CompatPacker:
    """Stage 0 of the lane's outbound ring."""

    def __init__(self, attachment: Attachment, ways: LinkView) -> None:
        (self._next,) = attachment.ports("outbound", "outbound")
        self._ways = ways
        self._counters = attachment.page.counters
        self.routes = RouteTable()
        self._aside = memoryview(bytearray(PACKET_BYTES_MAX))
        self._vnet = bytearray(VNET_HEADER_BYTES)
        self._taken = 0
        self._end = layout.SLOT_BODY_AT  # in slot `taken`; SLOT_BODY_AT while it is empty
        self.place = self._aside
        self.at = 0
        self.buffers: list[memoryview | bytearray] = []

    def begin(self) -> bool:
        return bool(self._next.ready())

    def has_room(self) -> bool:
        return bool(self._next.ready())

    def light_has_room(self) -> bool:
        return True

    def aim(self) -> bool:
        if self._taken >= min(BURST_SLOTS, self._next.ready()):
            return False
        self.place = self._next.slot(self._taken)
        self.at = self._end + framing.FRAME.size
        self.buffers = [self._vnet, self.place[self.at : self.at + PACKET_BYTES_MAX]]
        return True

    def aim_aside(self) -> None:
        self.place, self.at = self._aside, 0
        self.buffers = [self._aside]

    def take(self, length: int, now: int) -> bool:
        """The packet at `place`, whose virtio-net header says nothing. False if it is aside."""
        size = length - VNET_HEADER_BYTES
        if 1 + size > framing.COMPAT_LENGTH_LIMIT:
            self._counters[ID["tun.dropped_packet_too_long"]] += 1
            return True
        if self.place is self._aside:
            return False
        framing.FRAME.pack_into(self.place, self._end, 1 + size, framing.DATA)
        self._end = self.at + size
        if self._end > _FULL:
            self._seal()
        return True

    def take_back(self, packet: bytes) -> bool:
        if not self.aim():
            return False
        self.place[self.at : self.at + len(packet) - VNET_HEADER_BYTES] = packet[VNET_HEADER_BYTES:]
        return self.take(len(packet), 0)

    def _seal(self) -> None:
        start = layout.SLOT_BODY_AT
        SLOT.pack_into(
            self._next.slot(self._taken), 0, start, self._end - start, self._ways.own(0), layout.FIRST_PEER_HANDLE
        )
        self._taken += 1
        self._end = start

    def leave(self) -> int:
        if self._end > layout.SLOT_BODY_AT:
            self._seal()
        taken, self._taken = self._taken, 0
        if taken:
            self._next.advance(taken)
        return taken

    def wake_ahead(self) -> None:
        self._next.wake_ahead()


_FULL = layout.SLOT_BODY_AT + FILL_LIMIT
