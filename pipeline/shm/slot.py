"""A slot's own bytes in front of its packets: header, marks, run table. This module alone writes and reads them.

    write_header, seal_block         stage 0, before it hands the slot on
    write_run, write_run_count,      the stage before the tcp workers; a slot without runs is one unit of sending
    clear_run_table
    read_*                           every later stage
    next_block_number                stage 0 of a coded, light or transit ring

The two marks of a slot are its traffic class and its block number. All fields of a slot stand in `layout`, by offset.

No other process sees a slot before its owner advances, so struct.pack_into, which zeroes before it packs, is safe here.
Readers, and the writer of a run, are bound methods of their structs. A function around them would add a third to the
cost of a call.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from pipeline.packet.vnet import PACKET_BYTES_MAX
from pipeline.shm import layout
from pipeline.wire import framing
from pipeline.wire.block import PREFIXES

SLOT_BYTES_MIN = layout.SLOT_BODY_AT + framing.BLOCK_PAYLOAD_MAX
FILL_LIMIT = framing.BLOCK_PAYLOAD_MAX - PACKET_BYTES_MAX
"""A block takes another packet while it holds at most this: a shorter read buffer truncates silently."""

VOICE = 2
"""In the light ring, the traffic class of a block that goes ahead of the others; they have 0."""

NO_NUMBER = 0xFFFFFFFF
"""The number of a block that is not to be coded."""

NUMBERS = 1 << 32
"""A block number is a u32."""

_HEADER = struct.Struct("<QQQQQ16xII")  # start, length, consumer, peer handle, connection or no runs, class, number
_RUN = struct.Struct("<HHHHII")  # consumer, ordinal, shards, head, start, length
_RUN_COUNT = struct.Struct("<QQQ")  # runs, skippable, skip owner

assert _HEADER.size == layout.SLOT_HEADER_BYTES
assert _RUN.size == layout.RUN_ROW_BYTES
assert layout.SLOT_RUNS_AT + _RUN_COUNT.size == layout.SLOT_TRAFFIC_CLASS_AT

_STARTS = [layout.SLOT_BODY_AT - prefix.size for prefix in PREFIXES]

assert _STARTS[-1] >= layout.SLOT_RUN_HEADERS_END + layout.RUN_HEADER_STRIDE  # a light block has a run header in front

_pack_header = _HEADER.pack_into
_pack_run_count = _RUN_COUNT.pack_into
_unpack_runs = _RUN.iter_unpack


# -- stage 0


def write_header(
    slot: memoryview,
    start: int,
    length: int,
    consumer: int,
    peer_handle: int,
    traffic_class: int = 0,
    number: int = 0,
    connection: int = 0,
) -> None:
    """Write the header and the marks of a slot whose wire bytes are slot[start:start + length]; it has no runs yet.

    `connection`: the serial number of the one that an inbound slot comes from.
    """
    _pack_header(slot, 0, start, length, consumer, peer_handle, connection, traffic_class, number)


def seal_block(
    slot: memoryview,
    lengths: list[int],
    end: int,
    consumer: int,
    peer_handle: int,
    traffic_class: int = 0,
    number: int = 0,
) -> None:
    """Make a block of the packets in slot[SLOT_BODY_AT:end]: frame header and length table in front, slot header."""
    count = len(lengths)
    start = _STARTS[count]
    length = end - start
    PREFIXES[count].pack_into(slot, start, length - 4, framing.BLOCK, count, *lengths)
    _pack_header(slot, 0, start, length, consumer, peer_handle, 0, traffic_class, number)


def next_block_number(words: memoryview, at: int) -> int:
    """Use up a number of the stream whose next one is words[at].

    The word moves on first: a number that no block has costs less than a number that two blocks have.
    """
    number: int = words[at] % NUMBERS  # a predecessor that ran amok may have left any value
    words[at] = (number + 1) % NUMBERS
    return number


# -- the run table

write_run = _RUN.pack_into
"""write_run(slot, at, consumer, ordinal, shards, head, start, length): row i, at SLOT_RUN_TABLE_AT + i * RUN_ROW_BYTES.

`ordinal`: of the connection, among the consumer's to this peer; `head`: offset of the run's frame header, 0 for none.
"""


def write_run_count(slot: memoryview, runs: int, skippable: int, skip_owner: int) -> None:
    """Declare the first rows of the table valid, after they are written.

    So many shards are `skippable`, by the consumer `skip_owner` alone.
    """
    _pack_run_count(slot, layout.SLOT_RUNS_AT, runs, skippable, skip_owner)


def clear_run_table(slot: memoryview) -> None:
    """Make the slot one unit again, whatever an earlier owner of it has written."""
    _pack_run_count(slot, layout.SLOT_RUNS_AT, 0, 0, 0)


# -- later stages

read_header = struct.Struct("<QQQQ").unpack_from
"""read_header(slot) -> (start, length, consumer, peer_handle)"""

read_header_and_runs = struct.Struct("<QQQQQ").unpack_from
"""read_header_and_runs(slot) -> (start, length, consumer, peer_handle, number of runs)"""

read_marks = struct.Struct(f"<{layout.SLOT_TRAFFIC_CLASS_AT}xII").unpack_from
"""read_marks(slot) -> (traffic_class, number)"""

read_skippable = struct.Struct(f"<{layout.SLOT_SKIPPABLE_AT}xQQ").unpack_from
"""read_skippable(slot) -> (skippable, skip_owner)"""


def read_runs(slot: memoryview, runs: int) -> Iterator[tuple[Any, ...]]:
    """The first rows of the run table, each as write_run() takes it."""
    return _unpack_runs(slot[layout.SLOT_RUN_TABLE_AT : layout.SLOT_RUN_TABLE_AT + runs * layout.RUN_ROW_BYTES])
