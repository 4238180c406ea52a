"""The light packer: copies packets of light flows into the light ring of a lane, past the flows that fill the path.

The bulk packer offers it each packet. A light packet goes into the open slot. The slot leaves with the burst, when it
is full, or when a light packet is for another peer. Then the block goes out on one connection, or is the single shard
of a run, and copies of that run go to others as well:

    copies that the connections call for    while the path loses packets, and for some time after that
    one copy                                else, with fec "auto", as far as a budget pays for it: the first loss of a
                                            path, or the first in a long time, then delays nothing

The connections are the same ones for all blocks of a lane, as long as the set of connections stays, and each brings its
blocks in order. So the first copies that arrive are in order, too, as long as all blocks are copied.

At the other end a run is for the lane that its stream names, on whatever connection it comes. A plain block is for the
lane of its connection. So where no connection is of this lane, a block without copies is a run as well: a flow keeps
its lane, whether its blocks have copies or not.

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.packet.flow_classifier import FlowClassifier
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


class LightPacker:
    """Stage 0 of the lane's light ring. The open slot is for the peer `_peer_handle`; its packets end at `_end`."""

    def __init__(self, attachment: Attachment, links: LinkView, sealing: BlockSealing | None = None) -> None:
        (self._port,) = attachment.ports("outbound", "light")
        self._counters = attachment.page.counters
        self._flows = FlowClassifier(self._is_empty, self._count_flow)
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
        self._sealing = sealing
        self._sealed_room = self._slot_bytes - SEALED_START
        self._private = None if sealing is None else memoryview(bytearray(self._slot_bytes))
        self._lengths: list[int] = []
        self._end = layout.SLOT_BODY_AT
        self._peer_handle = 0

    def has_room(self) -> bool:
        """Whether the ring takes a burst of one flow."""
        return self._port.ready() > self._port.ring.capacity // 4

    def _is_empty(self) -> bool:
        return not self._lengths and self._port.ready() == self._port.ring.capacity

    def _count_flow(self) -> None:
        self._counters[_FLOWS] += 1

    def offer(self, slot: memoryview, at: int, length: int, now: int, peer_handle: int) -> bool:
        """Copy the packet at slot[at] into the open slot, if the packet is light and a slot is free."""
        if not self._flows.classify_light(slot, at, length, now):
            return False
        if self._end + length > self._slot_bytes or peer_handle != self._peer_handle:
            self.flush()
            self._peer_handle = peer_handle
        if not self._lengths and not self._port.ready():
            self._flows.demote_last()  # the whole flow: else its packets would overtake each other
            return False
        end = self._end + length
        buffer = self._port.slot() if self._private is None else self._private
        buffer[self._end : end] = slot[at : at + length]
        self._end = end
        self._lengths.append(length)
        self._now = now
        return True

    def flush(self) -> None:
        """Hand on the open slot, if there are packets in it."""
        lengths = self._lengths
        if not lengths:
            return
        port, counters = self._port, self._counters
        link = self._links.state(self._peer_handle & PEER_INDEX_MASK)
        connections = link.copy_connections
        copies = 0
        is_run = False
        if self._may_copy and link.copies >= 0 and len(connections) > 1:
            copies = min(self._copies(link.copies), len(connections) - 1)
            is_run = copies > 0 or link.is_foreign
        if self._private is None:
            seal_block(port.slot(), lengths, self._end, link.light_consumer, self._peer_handle)
            if is_run:
                self._write_copies(port.slot(), 1 + copies, link)
        else:
            copies = self._seal(port.slot(), self._private, link.light_consumer, copies, connections)
        counters[_COPIES] += copies
        counters[_BLOCKS] += 1
        counters[_PACKETS] += len(lengths)
        lengths.clear()
        self._end = layout.SLOT_BODY_AT
        port.advance(1)

    def _copies(self, called: int) -> int:
        """Copies of the open block beyond the first. `called`: those that the connections call for."""
        if called:
            return min(called, COPIES_MOST)
        peer = self._peer_handle & PEER_INDEX_MASK
        budget = self._budgets.get(self._peer_handle) or self._add_budget(peer)
        if budget.is_due(self._now):
            table = self._table
            budget.refill(table.sent_bytes(peer), table.copied_elsewhere(peer, self._lane), self._now)
        size = shard.RUN_BYTES + self._end - layout.SLOT_BODY_AT + TAG_BYTES
        if self._private is not None and 2 * (size + SEALED_PREFIXES[len(self._lengths)].size) > self._sealed_room:
            budget.pass_over(self._now)  # no room in the slot
            return 0
        cost = budget.pay(size, self._now)
        self._numbers[peer * RECORD_WORDS + NUMBER_COPIED] += cost
        return int(cost > 0)

    def _add_budget(self, peer: int) -> CopyBudget:
        budgets, table = self._budgets, self._table
        for other in [handle for handle in budgets if handle & PEER_INDEX_MASK == peer]:
            del budgets[other]  # its session has ended
        budget = budgets[self._peer_handle] = CopyBudget(
            table.sent_bytes(peer), table.copied_elsewhere(peer, self._lane), self._now
        )
        return budget

    def _write_copies(self, slot: memoryview, times: int, link: LinkState) -> None:
        """Make the block the single shard of a run, and give the run to so many connections."""
        start, size, _, _ = read_header(slot)
        start -= shard.RUN_BYTES
        length = shard.RUN_BYTES + size
        peer = self._peer_handle & PEER_INDEX_MASK
        number = next_block_number(self._numbers, peer * RECORD_WORDS + NUMBER_LIGHT)
        stream = self._streams[told_lane(self._lane, peer, len(self._streams))]
        if link.has_light:  # what comes on these is for the lane of its stream, so copies meet
            stream |= shard.COPIES
        shard.RUN.pack_into(slot, start, length - 4, framing.RUN, stream, number, 1, times - 1, 0, 1, size, 0)
        _write_rows(slot, times, link.copy_connections, start, 0, length)

    def _seal(
        self,
        slot: memoryview,
        buffer: memoryview,
        consumer: int,
        copies: int,
        connections: tuple[ConnectionRef, ...],
    ) -> int:
        """Seal the block into its slot, once for each copy. The copies beyond the first for which there was room."""
        lengths, sealing = self._lengths, self._sealing
        assert sealing is not None
        prefix = SEALED_PREFIXES[len(lengths)]
        start = layout.SLOT_BODY_AT - prefix.size
        prefix.pack_into(buffer, start, sealing.acknowledged(self._peer_handle), len(lengths), *lengths)
        plaintext = buffer[start : self._end]
        room = self._sealed_room // (shard.RUN_BYTES + len(plaintext) + TAG_BYTES)
        times = min(1 + copies, room)
        kind = kinds.COPIED if times > 1 else kinds.LIGHT
        _, length = sealing.seal(slot, SEALED_START, self._peer_handle, kind, plaintext, len(lengths), times)
        write_header(slot, SEALED_START, length, consumer if length else NOBODY, self._peer_handle)
        if times > 1 and length:
            _write_rows(slot, times, connections, SEALED_START, length, length)
        return times - 1


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
