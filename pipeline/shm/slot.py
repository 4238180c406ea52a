"""What stands in a slot in front of its packets: the slot header, the marks, the table of runs."""

from __future__ import annotations

import struct

from pipeline.packet.vnet import PACKET_BYTES_MAX
from pipeline.shm import layout
from pipeline.wire import framing
from pipeline.wire.block import PREFIXES

SLOT = struct.Struct("<QQQQ")  # start, length, member, seat: see layout.SLOT_*_AT
MARKS = struct.Struct("<II")  # purpose, number
NO_NUMBER = 0xFFFFFFFF  # of a block that is not to be coded

RUN_ROW = struct.Struct("<HHHHII")  # member, connection, shards, head, start, length
RUN_TABLE_HEADER = struct.Struct("<QQQ")  # runs, spare, sparer
SLOT_AND_RUNS = struct.Struct("<QQQQQ")  # SLOT and the number of runs

assert RUN_ROW.size == layout.RUN_ROW_BYTES
assert layout.SLOT_SKIPPABLE_AT == layout.SLOT_RUNS_AT + 8 and layout.SLOT_SKIP_OWNER_AT == layout.SLOT_SKIPPABLE_AT + 8

SLOT_BYTES_MIN = layout.SLOT_BODY_AT + framing.BLOCK_PAYLOAD_MAX
FILL_LIMIT = framing.BLOCK_PAYLOAD_MAX - PACKET_BYTES_MAX
"""A block takes another packet while it holds at most this: a shorter read buffer truncates silently."""

_STARTS = [layout.SLOT_BODY_AT - prefix.size for prefix in PREFIXES]
_pack_slot = SLOT.pack_into

assert _STARTS[-1] >= layout.SLOT_HEADS_END + layout.RUN_HEAD_BYTES  # a light block has a run header in front


def seal(slot: memoryview, lengths: list[int], end: int, member: int, peer_handle: int) -> None:
    """Write frame header, length table and slot header around the packets in slot[SLOT_BODY_AT:end].

    The slot is not published yet, so pack_into (which zeroes first) is safe here.
    """
    count = len(lengths)
    start = _STARTS[count]
    length = end - start
    PREFIXES[count].pack_into(slot, start, length - 4, framing.BLOCK, count, *lengths)
    _pack_slot(slot, 0, start, length, member, peer_handle)
