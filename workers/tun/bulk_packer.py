"""The packer of an instance that is not compat: stage 0 of the outbound rings of its lane.

1. begin_burst   follow the routes; with one peer, choose the ring in which its next block begins
2. next_buffers  read a packet directly behind the previous one, or into a block that is prepared for it
3. commit        find the receiver by the routes; a packet for no peer is dropped and counted
4. _finish       finish the packet, if it is for one of several peers and that peer does not accept it as it is
5. offer         a light packet is copied into the light ring (`light_packer`)
6. _append       any other packet stays where it was read, or is copied once: into the open block of its receiver
7. flush         hand on the open light block, then the blocks of the burst

Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque

from pipeline.counters import ID
from pipeline.packet import ip
from pipeline.packet.route_table import NO_PEER, RouteTable
from pipeline.packet.vnet import PACKET_BYTES_MAX
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.peer_table import RouteReader
from pipeline.wire import framing
from workers.tun.burst import Burst
from workers.tun.class_packer import light_packer
from workers.tun.finisher import OffloadFinisher
from workers.tun.open_block import FULL_AT, OpenBlock, outbound_blocks
from workers.tun.packer import BULK_FULL, LIGHT_FULL
from workers.tun.sealing import BlockSealing

_BODY_AT = layout.SLOT_BODY_AT
_LONE_END = _BODY_AT + PACKET_BYTES_MAX
_NO_PEER = ID["tun.dropped_no_peer"]
_RING_FULL = ID["tun.dropped_ring_full"]


class BulkPacker:
    """A Packer. The next packet is read to `_slot`, from `_at` on."""

    due_ns = 0

    def __init__(
        self, attachment: Attachment, sealing: BlockSealing | None = None, owed: deque[int] | None = None
    ) -> None:
        self._owed = owed  # peers that are owed a block, even an empty one: see BlockOpening
        self._links = LinkView(attachment)
        maker = outbound_blocks(attachment.peer_table.numbers[attachment.worker.lane], sealing)
        self._burst = Burst(attachment, self._links, maker)
        self._open = self._burst.open
        self._light = light_packer(attachment, self._links, sealing)
        self._finisher = OffloadFinisher(attachment, self._links)
        self._route_reader = RouteReader(attachment.peer_table)
        self._routes = RouteTable()
        self._counters = attachment.page.counters
        self._next_ring = self._burst.rings[0]  # in which the next block will most likely begin
        self._prepared: OpenBlock | None = None  # in that ring
        self._scratch = memoryview(bytearray(_BODY_AT + PACKET_BYTES_MAX))
        self._slot = self._scratch
        self._at = _BODY_AT
        self._last: OpenBlock | None = None  # the block that the last packet went into, unless it is full

    # -- a burst of one packet

    def lone_buffers(self, offloads: int) -> list[memoryview] | None:
        peer_handle, burst = self._routes.only, self._burst
        if (
            peer_handle < 0
            or self._owed
            or self._route_reader.has_changed()
            or (link := self._links.state(peer_handle & PEER_INDEX_MASK)).offloads != offloads
            or (link.is_coded and burst.rings[0] is not burst.rings[-1])
            or not self._light.has_room()
        ):
            return None
        buffer = burst.lone_buffer()
        if buffer is None:
            return None
        self._slot, self._at = buffer, _BODY_AT
        return [buffer[_BODY_AT:_LONE_END]]

    def commit_alone(self, length: int, now: int) -> int:
        peer_handle = self._routes.only
        if self._light.offer(self._slot, _BODY_AT, length, now, peer_handle):
            self._light.flush()
            return 0
        self._prepared = None  # its slot is handed on now
        self._burst.hand_on_alone(peer_handle, length)
        return 1

    # -- before a burst

    def acknowledge(self) -> int:
        owed = self._owed
        if not owed:
            return 0
        self._burst.look()
        while owed and self._begin_block(owed[0]) is not None:
            owed.popleft()
        return self._burst.hand_on()

    def begin_burst(self) -> int:
        if self._route_reader.has_changed():
            self._route_reader.read_into(self._routes)
        self._prepared = None
        has_slots = self._burst.look()
        only = self._routes.only
        if only != NO_PEER:
            ring = self._next_ring = self._burst.ring_for(only & PEER_INDEX_MASK)
            has_slots = ring.free > 0
        return (0 if has_slots else BULK_FULL) | (0 if self._light.has_room() else LIGHT_FULL)

    def accepted_offloads(self) -> int | None:
        only = self._routes.only
        return None if only == NO_PEER else self._links.state(only & PEER_INDEX_MASK).offloads

    def has_room(self) -> bool:
        return self._next_ring.port.ready() > 0 and self._light.has_room()

    def wake_ahead(self) -> None:
        self._next_ring.port.wake_ahead()

    # -- each packet

    def next_buffers(self) -> list[memoryview] | None:
        last = self._last
        if last is not None:
            slot = self._slot = last.buffer
            at = self._at = last.end
            return [slot[at : at + PACKET_BYTES_MAX]]
        block = self._prepared
        if block is None:
            block = self._prepared = self._burst.prepare(self._next_ring)
            if block is None:
                return None
        slot = self._slot = block.buffer
        self._at = _BODY_AT
        return [slot[_BODY_AT : _BODY_AT + PACKET_BYTES_MAX]]

    def scratch_buffers(self) -> list[memoryview]:
        self._slot, self._at = self._scratch, _BODY_AT
        return [self._scratch[_BODY_AT:]]

    def commit(self, length: int, now: int) -> bytes | None:
        slot, at = self._slot, self._at
        peer_handle = self._routes.only
        if peer_handle < 0:
            peer_handle = self._receiver(slot, at)
            if peer_handle < 0:
                return None
            if (slot[at] or slot[at + 1]) and self._finisher.missing(peer_handle):
                self._finish(bytes(slot[at : at + length]), peer_handle, now)
                return None
        if self._light.offer(slot, at, length, now, peer_handle) or self._append(slot, at, length, peer_handle):
            return None
        return bytes(slot[at : at + length])

    def retry(self, packet: bytes) -> bool:
        self._scratch[_BODY_AT : _BODY_AT + len(packet)] = packet
        peer_handle = self._routes.only
        if peer_handle < 0:
            peer_handle = self._receiver(self._scratch, _BODY_AT)
            if peer_handle < 0:
                return True
        return self._append(self._scratch, _BODY_AT, len(packet), peer_handle)

    def _receiver(self, slot: memoryview, at: int) -> int:
        """The handle of the peer that the packet at slot[at] is for; less than 0, counted, if it is for none."""
        address = ip.destination(slot, at)
        peer_handle = self._routes.cache.get(address)
        if peer_handle is None:
            peer_handle = self._routes.longest_match(address)
        if peer_handle < 0:
            self._counters[_NO_PEER] += 1
        return peer_handle

    def _finish(self, packet: bytes, peer_handle: int, now: int) -> None:
        """Put the finished packets that a packet stands for; one without a slot is dropped and counted."""
        scratch = self._scratch
        for each in self._finisher.finish(packet):
            length = len(each)
            scratch[_BODY_AT : _BODY_AT + length] = each
            if not (
                self._light.offer(scratch, _BODY_AT, length, now, peer_handle)
                or self._append(scratch, _BODY_AT, length, peer_handle)
            ):
                self._counters[_RING_FULL] += 1

    def _append(self, slot: memoryview, at: int, length: int, peer_handle: int) -> bool:
        """Put the packet at slot[at] into the open block of a peer. False if that needs a new slot and none is free."""
        block = self._last
        if block is None or block.peer_handle != peer_handle:
            block = self._open.get(peer_handle)
            if block is None:
                block = self._begin_block(peer_handle)
                if block is None:
                    return False
            self._last = block
        end = block.end
        if block.buffer is not slot or end != at:
            block.buffer[end : end + length] = slot[at : at + length]
        block.lengths.append(length)
        block.end = end = end + length
        if end > FULL_AT or len(block.lengths) == framing.BLOCK_PACKETS_MAX:
            del self._open[peer_handle]
            self._last = None
        return True

    def _begin_block(self, peer_handle: int) -> OpenBlock | None:
        """A new open block for a peer; None if no slot is free."""
        burst = self._burst
        ring = burst.ring_for(peer_handle & PEER_INDEX_MASK)
        block = self._prepared
        if block is None or ring is not self._next_ring:
            self._next_ring = ring
            block = burst.prepare(ring)
        self._prepared = None
        if block is not None:
            burst.begin(ring, block, peer_handle)
        return block

    # -- after a burst

    def flush(self) -> int:
        self._light.flush()
        count = self._burst.hand_on()
        if count:
            self._last = None
            if self._routes.only < 0:
                self._finisher.forget()
        return count
