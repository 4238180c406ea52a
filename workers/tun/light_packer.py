"""The light packer: copies packets of light flows into the light ring of a lane, past the flows that fill the path.

The bulk packer offers it each packet. A light packet goes into the open block of its peer. All open blocks leave with
the burst, or when one of them is full, in the order in which they were begun. Then a block goes out on one connection,
or is the single shard of a run, and copies of that run go to others as well:

    copies that the connections call for    while the path loses packets, and for some time after that
    one copy                                to a peer with two uplinks, on the other one
    one copy                                else, with fec "auto", as far as a budget pays for it: the first loss of a
                                            path, or the first in a long time, then delays nothing

The connections are the same ones for all blocks of a lane, as long as the set of connections stays, and each brings its
blocks in order. So the first copies that arrive are in order, too, as long as all blocks are copied. A block without
copies among others would be overtaken by those behind it. So there is room in a slot for all copies of a sealed block,
and a budget that was used up pays again after a pause alone.

At the other end a run is for the lane that its stream names, on whatever connection it comes. A plain block is for the
lane of its connection. So where no connection is of this lane, a block without copies is a run as well: a flow keeps
its lane, whether its blocks have copies or not.

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.packet.flow_rules import classifier
from pipeline.policy.adaptive_parity import COPIES_MOST
from pipeline.policy.copy_budget import CopyBudget
from pipeline.policy.lane_pairs import told_lane
from pipeline.runtime.link_view import ConnectionRef, LinkState, LinkView
from pipeline.runtime.worker import Attachment
from pipeline.sealing import kinds
from pipeline.sealing.aead import TAG_BYTES
from pipeline.shm import layout
from pipeline.shm.layout import NUMBER_COPIED, NUMBER_LIGHT, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.slot import next_block_number, read_header, seal_block, write_header, write_run, write_run_count
from pipeline.wire import framing
from pipeline.wire.block import SEALED_PREFIXES
from workers.tun.open_block import NOBODY, SEALED_START
from workers.tun.sealing import BlockSealing

_BLOCKS = ID["tun.blocks_light_filled"]
_PACKETS = ID["tun.packets_light_read"]
_COPIES = ID["tun.copies_added"]
_FLOWS = ID["tun.flows_counted"]

_LENGTH_BYTES = SEALED_PREFIXES[1].size - SEALED_PREFIXES[0].size  # of a packet, in front of its block
_SEALED_BYTES_MORE = shard.RUN_BYTES + SEALED_PREFIXES[1].size + TAG_BYTES  # than the packet of a block of one


class _LightBlock:
    """Packets for one peer, in `buffer` up to `end`, for `slot`; empty before its first packet, and after its last.

    One with a `buffer` of its own is sealed into its slot; one without is gathered there.
    """

    __slots__ = ("buffer", "end", "is_private", "lengths", "peer_handle", "slot")

    def __init__(self, buffer: memoryview | None) -> None:
        self.is_private = buffer is not None
        self.buffer = self.slot = memoryview(b"") if buffer is None else buffer
        self.peer_handle = 0
        self.lengths: list[int] = []
        self.end = layout.SLOT_BODY_AT


class LightPacker:
    """Stage 0 of the lane's light ring. The blocks begun since the last flush() are open, one at most for each peer."""

    def __init__(self, attachment: Attachment, links: LinkView, sealing: BlockSealing | None = None) -> None:
        (self._port,) = attachment.ports("outbound", "light")
        self._counters = attachment.page.counters
        self._flows = classifier(
            attachment.settings.always_light.split(),
            attachment.settings.always_bulk.split(),
            self._is_empty,
            self._count_flow,
        )
        self._links = links
        self._may_copy = attachment.settings.fec != "off" and attachment.settings.fec_parity > 0
        self._lane = attachment.worker.lane
        run, lanes = int(attachment.plan.run_id, 16), attachment.plan.lanes
        self._streams = [shard.stream(run, told, framing.LIGHT) for told in range(lanes)]  # by the lane that is told
        self._table = attachment.peer_table
        self._numbers = attachment.peer_table.numbers[self._lane]
        self._budgets: dict[int, CopyBudget] = {}  # by peer handle, one for each peer index
        self._now = 0  # of the last packet
        self._slot_bytes = self._port.ring.slot_bytes
        self._end_most = self._slot_bytes
        if sealing is not None and self._may_copy:  # there is room for each copy: see above
            share = (self._slot_bytes - SEALED_START) // (1 + COPIES_MOST)
            self._end_most = layout.SLOT_BODY_AT + share - _SEALED_BYTES_MORE
        self._sealing = sealing
        self._blocks = [self._new_block()]
        self._open: dict[int, _LightBlock] = {}  # by peer handle, the first of `_blocks`
        self._last = self._blocks[0]  # the block of the last packet

    def has_room(self) -> bool:
        """Whether the ring takes a burst of one flow."""
        return self._port.ready() > self._port.ring.capacity // 4

    def _is_empty(self) -> bool:
        return not self._open and self._port.ready() == self._port.ring.capacity

    def _count_flow(self) -> None:
        self._counters[_FLOWS] += 1

    def offer(self, slot: memoryview, at: int, length: int, now: int, peer_handle: int) -> bool:
        """Copy the packet at slot[at] into the open block of a peer, if the packet is light and a slot is free."""
        if not self._flows.classify_light(slot, at, length, now):
            return False
        block = self._last
        end = block.end + length
        if block.peer_handle != peer_handle or end + _LENGTH_BYTES * len(block.lengths) > self._end_most:
            block = self._last = self._turn_to(peer_handle, length)
            end = block.end + length
        if not block.lengths and not self._begin(block):
            self._flows.demote_last()  # the whole flow: else its packets would overtake each other
            return False
        block.buffer[block.end : end] = slot[at : at + length]
        block.end = end
        block.lengths.append(length)
        self._now = now
        return True

    def _turn_to(self, peer_handle: int, length: int) -> _LightBlock:
        """The block of a peer, with room for so many bytes: the open one, or an empty one."""
        block = self._open.get(peer_handle)
        if block is not None:
            if block.end + length + _LENGTH_BYTES * len(block.lengths) <= self._end_most:
                return block
            self.flush()
        begun = len(self._open)
        if begun == len(self._blocks):
            self._blocks.append(self._new_block())
        block = self._blocks[begun]
        block.peer_handle = peer_handle
        return block

    def _new_block(self) -> _LightBlock:
        return _LightBlock(None if self._sealing is None else memoryview(bytearray(self._slot_bytes)))

    def _begin(self, block: _LightBlock) -> bool:
        """Open a block in the next slot. False if none is free."""
        begun = len(self._open)
        if self._port.ready() <= begun:
            return False
        block.slot = self._port.slot(begun)
        if not block.is_private:
            block.buffer = block.slot
        self._open[block.peer_handle] = block
        return True

    def flush(self) -> None:
        """Hand on the open blocks."""
        blocks = self._open
        if not blocks:
            return
        links, counters = self._links, self._counters
        for block in blocks.values():
            link = links.state(block.peer_handle & PEER_INDEX_MASK)
            copies = 0
            is_run = False
            if self._may_copy and link.copies >= 0 and (len(link.copy_connections) > 1 or link.has_paths):
                most = len(link.copy_connections) - 1
                copies = min(self._copies(block, max(link.copies, link.is_paired)), most) if most else 0
                is_run = copies > 0 or link.is_foreign or link.has_paths
            if block.is_private:
                self._seal(block, 1 + copies, link)
            else:
                seal_block(block.slot, block.lengths, block.end, link.light_consumer, block.peer_handle)
                if is_run:
                    self._write_copies(block, 1 + copies, link)
            counters[_COPIES] += copies
            counters[_PACKETS] += len(block.lengths)
            block.lengths.clear()
            block.end = layout.SLOT_BODY_AT
        count = len(blocks)
        counters[_BLOCKS] += count
        blocks.clear()
        self._last = self._blocks[0]
        self._port.advance(count)

    def _copies(self, block: _LightBlock, called: int) -> int:
        """Copies of the block beyond the first. `called`: those that the connections call for."""
        if called:
            return min(called, COPIES_MOST)
        peer = block.peer_handle & PEER_INDEX_MASK
        budget = self._budgets.get(block.peer_handle) or self._add_budget(block.peer_handle)
        if budget.is_due(self._now):
            table = self._table
            budget.refill(table.sent_bytes(peer), table.copied_elsewhere(peer, self._lane), self._now)
        cost = budget.pay(shard.RUN_BYTES + block.end - layout.SLOT_BODY_AT + TAG_BYTES, self._now)
        self._numbers[peer * RECORD_WORDS + NUMBER_COPIED] += cost
        return int(cost > 0)

    def _add_budget(self, peer_handle: int) -> CopyBudget:
        budgets, table = self._budgets, self._table
        peer = peer_handle & PEER_INDEX_MASK
        for other in [handle for handle in budgets if handle & PEER_INDEX_MASK == peer]:
            del budgets[other]  # its session has ended
        budget = CopyBudget(table.sent_bytes(peer), table.copied_elsewhere(peer, self._lane), self._now)
        budgets[peer_handle] = budget
        return budget

    def _write_copies(self, block: _LightBlock, times: int, link: LinkState) -> None:
        """Make the block the single shard of a run, and give the run to so many connections."""
        slot = block.slot
        start, size, _, _ = read_header(slot)
        start -= shard.RUN_BYTES
        length = shard.RUN_BYTES + size
        peer = block.peer_handle & PEER_INDEX_MASK
        number = next_block_number(self._numbers, peer * RECORD_WORDS + NUMBER_LIGHT)
        stream = self._streams[told_lane(self._lane, peer, len(self._streams))]
        if link.has_light:  # what comes on these is for the lane of its stream, so copies meet
            stream |= shard.COPIES
        shard.RUN.pack_into(slot, start, length - 4, framing.RUN, stream, number, 1, times - 1, 0, 1, size, 0)
        _write_rows(slot, times, link.copy_connections, start, 0, length)

    def _seal(self, block: _LightBlock, times: int, link: LinkState) -> None:
        """Seal the block into its slot so many times."""
        lengths, buffer, slot, sealing = block.lengths, block.buffer, block.slot, self._sealing
        assert sealing is not None
        prefix = SEALED_PREFIXES[len(lengths)]
        start = layout.SLOT_BODY_AT - prefix.size
        prefix.pack_into(buffer, start, sealing.acknowledged(block.peer_handle), len(lengths), *lengths)
        plaintext = buffer[start : block.end]
        kind = kinds.COPIED if times > 1 else kinds.LIGHT
        _, length = sealing.seal(slot, SEALED_START, block.peer_handle, kind, plaintext, len(lengths), times)
        write_header(slot, SEALED_START, length, link.light_consumer if length else NOBODY, block.peer_handle)
        if times > 1 and length:
            _write_rows(slot, times, link.copy_connections, SEALED_START, length, length)


def _write_rows(
    slot: memoryview,
    times: int,
    connections: tuple[ConnectionRef, ...],
    start: int,
    step: int,
    length: int,
) -> None:
    """Give so many copies of a block to as many connections. Copy i begins at start + i * step."""
    for row in range(times):
        consumer, ordinal = connections[row]
        row_at = layout.SLOT_RUN_TABLE_AT + layout.RUN_ROW_BYTES * row
        write_run(slot, row_at, consumer, ordinal, 1, 0, start + row * step, length)
    write_run_count(slot, times, times - 1, connections[0][0])
