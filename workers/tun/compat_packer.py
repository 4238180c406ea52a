"""The packer of a compat instance: packets become the original program's frames, each with one bare packet.

A slot holds such frames one behind the other. There is one peer with one connection, and there are no light flows.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet.vnet import PACKET_BYTES_MAX, VNET_HEADER_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout
from pipeline.shm.slot import FILL_LIMIT, write_header
from pipeline.wire import framing
from workers.tun.packer import BULK_FULL, BURST_SLOTS

_BODY_AT = layout.SLOT_BODY_AT
_FULL_AT = _BODY_AT + FILL_LIMIT
_FRAME_BYTES = framing.FRAME.size
_pack_frame = framing.FRAME.pack_into

_TOO_LONG = ID["tun.dropped_packet_too_long"]


class CompatPacker:
    """A Packer; stage 0 of the lane's plain ring. The frames of the open slot end at `_end`."""

    due_ns = 0

    def __init__(self, attachment: Attachment) -> None:
        (self._next_port,) = attachment.ports("outbound", "plain")
        self._links = LinkView(attachment)
        self._counters = attachment.page.counters
        self._scratch = memoryview(bytearray(PACKET_BYTES_MAX))
        self._vnet = memoryview(bytearray(VNET_HEADER_BYTES))  # its bytes say nothing: no offload is in force
        self._used = 0  # filled slots of the burst; the open slot is the next one
        self._slot: memoryview | None = None  # the slot that the next packet is read to; None: to the scratch buffer
        self._end = _BODY_AT

    # -- before a burst

    def lone_buffers(self, offloads: int) -> None:
        return None

    def commit_alone(self, length: int, now: int) -> int:
        raise NotImplementedError("there are no lone_buffers()")

    def acknowledge(self) -> int:
        return 0

    def begin_burst(self) -> int:
        return 0 if self._next_port.ready() else BULK_FULL

    def accepted_offloads(self) -> int | None:
        return None

    def has_room(self) -> bool:
        return self._next_port.ready() > 0

    def wake_ahead(self) -> None:
        self._next_port.wake_ahead()

    # -- each packet

    def next_buffers(self) -> list[memoryview] | None:
        if self._used >= min(BURST_SLOTS, self._next_port.ready()):
            return None
        slot = self._slot = self._next_port.slot(self._used)
        at = self._end + _FRAME_BYTES
        return [self._vnet, slot[at : at + PACKET_BYTES_MAX]]

    def scratch_buffers(self) -> list[memoryview]:
        self._slot = None
        return [self._scratch]

    def commit(self, length: int, now: int) -> bytes | None:
        size = length - VNET_HEADER_BYTES
        if 1 + size > framing.COMPAT_LENGTH_LIMIT:
            self._counters[_TOO_LONG] += 1
            return None
        if self._slot is None:
            return bytes(self._scratch[:length])
        _pack_frame(self._slot, self._end, 1 + size, framing.DATA)
        self._end = end = self._end + _FRAME_BYTES + size
        if end > _FULL_AT:
            self._close_slot()
        return None

    def retry(self, packet: bytes) -> bool:
        buffers = self.next_buffers()
        if buffers is None:
            return False
        buffers[1][: len(packet) - VNET_HEADER_BYTES] = packet[VNET_HEADER_BYTES:]
        self.commit(len(packet), 0)
        return True

    def _close_slot(self) -> None:
        slot = self._next_port.slot(self._used)
        write_header(slot, _BODY_AT, self._end - _BODY_AT, self._links.state(0).bulk_consumer, layout.FIRST_PEER_HANDLE)
        self._used += 1
        self._end = _BODY_AT

    # -- after a burst

    def flush(self) -> int:
        if self._end > _BODY_AT:
            self._close_slot()
        used, self._used = self._used, 0
        if used:
            self._next_port.advance(used)
        return used
