"""The light ring of a lane: packets of flows that send little, past those that fill the path.

The tun worker's outbound duty offers every packet that it has read; what is light is copied into the slot in hand,
which leaves with the burst. While the connections call for parity, a block of this ring is the single shard of a
run, and the same run goes out on several connections; else it is a plain block on one.
"""

from __future__ import annotations

from pipeline import block, layout, shard, stripe, wire
from pipeline.counters import ID
from pipeline.flowtable import FlowTable
from pipeline.ways import Way
from pipeline.worker import Attachment

COPIES_MOST = 2
"""Copies beyond the first: with three connections, 2 % of losses and 50 packets a second, one of 10 000 is late."""


class Light:
    """Stage 0 of the lane's light ring."""

    def __init__(self, attachment: Attachment) -> None:
        (self._port,) = attachment.ports("outbound", "light")
        self._counters = attachment.page.counters
        self._flows = FlowTable(self._is_empty)
        self._lane = attachment.me.lane
        self._stream = shard.stream(int(attachment.plan.run, 16), self._lane, wire.LIGHT)
        self._room = self._port.ring.slot_bytes
        self._lengths: list[int] = []
        self._end = layout.SLOT_BODY_AT
        self._member = self._lane
        self._over: tuple[Way, ...] = ()
        self._parity = 0

    def spread(self, member: int, over: tuple[Way, ...], parity: int) -> None:
        """From now on: the tcp worker for blocks that go out once, the connections for copies, and the parity called for."""
        self._member = member
        self._over = over
        self._parity = parity

    def has_room(self) -> bool:
        """Whether the ring takes a burst of one flow."""
        return self._port.ready() > self._port.ring.capacity // 4

    def _is_empty(self) -> bool:
        return not self._lengths and self._port.ready() == self._port.ring.capacity

    def take(self, slot: memoryview, at: int, length: int, now: int) -> bool:
        """Copy the packet at slot[at] into the slot in hand if it is light and there is a free one."""
        if not self._flows.light(slot, at, length, now):
            return False
        if self._end + length > self._room:
            self.leave()
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
        port, over, counters = self._port, self._over, self._counters
        slot = port.slot()
        block.seal(slot, lengths, self._end, self._member)
        copies = min(self._parity, COPIES_MOST, len(over) - 1)
        if copies > 0:
            self._copy(slot, 1 + copies)
            counters[_COPIES] += copies
        else:
            stripe.HEADER.pack_into(slot, layout.SLOT_RUNS_AT, 0, 0, 0)
        counters[_BLOCKS] += 1
        counters[_PACKETS] += len(lengths)
        lengths.clear()
        self._end = layout.SLOT_BODY_AT
        port.advance(1)

    def _copy(self, slot: memoryview, times: int) -> None:
        """Put the block into a run, and that run on so many connections."""
        start, size = block.SLOT.unpack_from(slot)[:2]
        start -= shard.RUN_BYTES
        length = shard.RUN_BYTES + size
        turn = self._port.cursor
        shard.RUN.pack_into(slot, start, length - 4, wire.RUN, self._stream, turn & 0xFFFFFFFF, 1, times - 1, 0, 1,
                            size, 0)
        over = self._over
        for row in range(times):
            member, ordinal = over[(turn + row) % len(over)]
            stripe.ROW.pack_into(slot, layout.SLOT_TABLE_AT + layout.RUN_ROW_BYTES * row, member, ordinal, 1, 0,
                                 start, length)
        stripe.HEADER.pack_into(slot, layout.SLOT_RUNS_AT, times, times - 1, over[turn % len(over)][0])


_BLOCKS = ID["tun.blocks_light_filled"]
_PACKETS = ID["tun.packets_light_read"]
_COPIES = ID["tun.copies_added"]
