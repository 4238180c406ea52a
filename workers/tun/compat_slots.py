"""The open slots of a ring into which a hub of the original program puts packets: that program's frames.

A peer has at most one open slot, and each slot is for one peer. Owned by the duty that fills the ring: outbound for the
plain ring (`CompatHubPacker`), inbound for the transit ring (`CompatForwarder`).
"""

from __future__ import annotations

from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import Port
from pipeline.shm.layout import PEER_INDEX_MASK, SLOT_BODY_AT
from pipeline.shm.slot import write_header
from pipeline.wire import framing
from workers.tun.open_block import FULL_AT

_pack_frame = framing.FRAME.pack_into


class OpenSlot:
    """Frames for one peer in `slot`, up to `end`."""

    __slots__ = ("end", "peer_handle", "slot")

    def __init__(self, slot: memoryview, peer_handle: int) -> None:
        self.slot = slot
        self.peer_handle = peer_handle
        self.end = SLOT_BODY_AT


class CompatSlots:
    """The slots begun since the last hand_on()."""

    def __init__(self, port: Port, links: LinkView) -> None:
        self.port = port
        self._links = links
        self._begun: list[OpenSlot] = []
        self._open: dict[int, OpenSlot] = {}  # by peer handle

    def free(self) -> int:
        """Slots that can be begun."""
        return self.port.ready() - len(self._begun)

    def has_room(self) -> bool:
        """Whether a packet of any peer finds a slot."""
        return self.free() > 0

    def has_open(self, peer_handle: int) -> bool:
        """Whether the next packet of a peer needs no new slot."""
        return peer_handle in self._open

    def append(self, packet: memoryview, peer_handle: int) -> bool:
        """Put a bare packet behind the others of its peer. False if that needs a new slot and none is free."""
        place = self._open.get(peer_handle)
        if place is None:
            if not self.has_room():
                return False
            place = self._open[peer_handle] = OpenSlot(self.port.slot(len(self._begun)), peer_handle)
            self._begun.append(place)
        size = len(packet)
        at = place.end
        _pack_frame(place.slot, at, 1 + size, framing.DATA)
        at += framing.FRAME.size
        place.end = end = at + size
        place.slot[at:end] = packet
        if end > FULL_AT:
            del self._open[peer_handle]
        return True

    def hand_on(self) -> int:
        """Hand on all slots; their number."""
        begun = self._begun
        count = len(begun)
        if count:
            for place in begun:
                consumer = self._links.state(place.peer_handle & PEER_INDEX_MASK).bulk_consumer
                write_header(place.slot, SLOT_BODY_AT, place.end - SLOT_BODY_AT, consumer, place.peer_handle)
            begun.clear()
            self._open.clear()
            self.port.advance(count)
        return count
