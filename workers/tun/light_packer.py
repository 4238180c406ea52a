"""The light ring of a lane: packets of flows that send little, past those that fill the path.

The tun worker's outbound duty offers every packet that it has read; what is light is copied into the slot in hand,
which leaves with the burst, or when a packet is for another peer. While the connections call for parity, a block of
this ring is the single shard of a run, and the same run goes out on several connections; else it is a plain block on
one.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.packet.flow_classifier import FlowClassifier
from pipeline.runtime.link_view import ConnectionRef, LinkView
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout
from pipeline.shm.layout import NUMBER_LIGHT, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.slot import RUN_ROW, RUN_TABLE_HEADER, SLOT, seal
from pipeline.wire import framing

COPIES_MOST = 2
"""Copies beyond the first: with three connections, 2 % of losses and 50 packets a second, one of 10 000 is late."""


class LightPacker:
    """Stage 0 of the lane's light ring."""

    def __init__(self, attachment: Attachment, ways: LinkView) -> None:
        (self._port,) = attachment.ports("outbound", "light")
        self._counters = attachment.page.counters
        self._flows = FlowClassifier(self._is_empty)
        self._ways = ways
        self._protected = attachment.settings["fec"] != "off"
        self._stream = shard.stream(int(attachment.plan.run_id, 16), attachment.me.lane, framing.LIGHT)
        self._numbers = attachment.peers.numbers[attachment.me.lane]
        self._room = self._port.ring.slot_bytes
        self._lengths: list[int] = []
        self._end = layout.SLOT_BODY_AT
        self._peer_handle = 0

    def has_room(self) -> bool:
        """Whether the ring takes a burst of one flow."""
        return self._port.ready() > self._port.ring.capacity // 4

    def _is_empty(self) -> bool:
        return not self._lengths and self._port.ready() == self._port.ring.capacity

    def take(self, slot: memoryview, at: int, length: int, now: int, peer_handle: int) -> bool:
        """Copy the packet at slot[at] into the slot in hand if it is light and there is a free one."""
        if not self._flows.light(slot, at, length, now):
            return False
        if self._end + length > self._room or peer_handle != self._peer_handle:
            self.leave()
            self._peer_handle = peer_handle
        if not self._lengths and not self._port.ready():
            self._flows.spill()  # all of it, or it would overtake itself
            return False
        end = self._end + length
        self._port.slot()[self._end : end] = slot[at : at + length]
        self._end = end
        self._lengths.append(length)
        return True

    def leave(self) -> None:
        """Hand the slot in hand on, if there is anything in it."""
        lengths = self._lengths
        if not lengths:
            return
        port, ways, counters = self._port, self._ways, self._counters
        peer = self._peer_handle & PEER_INDEX_MASK
        slot = port.slot()
        seal(slot, lengths, self._end, ways.own_light(peer, ways.own(peer)), self._peer_handle)
        copies = 0
        if self._protected:
            over = ways.for_light(peer)
            copies = min(ways.parity(peer), COPIES_MOST, len(over) - 1)
        if copies > 0:
            self._copy(slot, 1 + copies, over)
            counters[_COPIES] += copies
        else:
            RUN_TABLE_HEADER.pack_into(slot, layout.SLOT_RUNS_AT, 0, 0, 0)
        counters[_BLOCKS] += 1
        counters[_PACKETS] += len(lengths)
        lengths.clear()
        self._end = layout.SLOT_BODY_AT
        port.advance(1)

    def _copy(self, slot: memoryview, times: int, over: tuple[ConnectionRef, ...]) -> None:
        """Put the block into a run, and that run on so many connections."""
        start, size = SLOT.unpack_from(slot)[:2]
        start -= shard.RUN_BYTES
        length = shard.RUN_BYTES + size
        at = (self._peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + NUMBER_LIGHT
        turn = self._numbers[at]
        self._numbers[at] = turn + 1 & 0xFFFFFFFF
        shard.RUN.pack_into(slot, start, length - 4, framing.RUN, self._stream, turn, 1, times - 1, 0, 1, size, 0)
        for row in range(times):
            member, ordinal = over[(turn + row) % len(over)]
            RUN_ROW.pack_into(
                slot, layout.SLOT_TABLE_AT + layout.RUN_ROW_BYTES * row, member, ordinal, 1, 0, start, length
            )
        RUN_TABLE_HEADER.pack_into(slot, layout.SLOT_RUNS_AT, times, times - 1, over[turn % len(over)][0])


_BLOCKS = ID["tun.blocks_light_filled"]
_PACKETS = ID["tun.packets_light_read"]
_COPIES = ID["tun.copies_added"]
