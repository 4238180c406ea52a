"""A slot's own bytes: blocks sealed in place as one contiguous frame, headers, marks, run tables, block numbers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.vnet import PACKET_BYTES_MAX, VNET_HEADER_BYTES
from pipeline.shm import layout, slot
from pipeline.shm.slot import FILL_LIMIT, NO_NUMBER, SLOT_BYTES_MIN
from pipeline.wire import block, framing

BODY = layout.SLOT_BODY_AT
U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
RUNS = st.lists(st.tuples(U16, U16, U16, U16, U32, U32), min_size=1, max_size=layout.RUNS_MAX)


def used_slot() -> memoryview:
    """A slot with remains of an earlier lap in it."""
    return memoryview(bytearray(b"\xee" * SLOT_BYTES_MIN))


def sealed(packets: list[bytes], consumer: int = 3, peer_handle: int = 7) -> memoryview:
    """A slot with these packets in it."""
    view = used_slot()
    end = BODY
    for packet in packets:
        view[end : end + len(packet)] = packet
        end += len(packet)
    slot.seal_block(view, [len(packet) for packet in packets], end, consumer, peer_handle)
    return view


def opened(view: memoryview) -> list[bytes]:
    start, length, _, _ = slot.read_header(view)
    at, lengths = block.lengths(view, start, start + length)
    packets = []
    for size in lengths:
        packets.append(bytes(view[at : at + size]))
        at += size
    return packets


def write_runs(view: memoryview, runs: list[tuple[int, ...]], skippable: int = 0, skip_owner: int = 0) -> None:
    for row, fields in enumerate(runs):
        slot.write_run(view, layout.SLOT_RUN_TABLE_AT + row * layout.RUN_ROW_BYTES, *fields)
    slot.write_run_count(view, len(runs), skippable, skip_owner)


# -- blocks


def test_a_sealed_block_is_one_frame_that_ends_behind_the_last_packet() -> None:
    view = sealed([b"first", b"the second", b"3"])
    start, length, consumer, peer_handle = slot.read_header(view)
    frame = bytes(view[start : start + length])
    body = struct.pack(">BH3I", framing.BLOCK, 3, 5, 10, 1) + b"firstthe second3"
    assert frame == struct.pack(">I", len(body)) + body
    assert (consumer, peer_handle) == (3, 7)
    assert framing.scan(memoryview(frame), 0, len(frame), framing.BLOCK_LENGTH_LIMIT)[:4] == (len(frame), 0, 1, 0)


@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=framing.BLOCK_PACKETS_MAX))
def test_any_packets_come_back_in_order(packets: list[bytes]) -> None:
    assert opened(sealed(packets)) == packets


def test_the_largest_number_of_packets_and_the_largest_payload_fit_slot_and_limit() -> None:
    share = framing.BLOCK_PAYLOAD_MAX // framing.BLOCK_PACKETS_MAX
    packets = [bytes([i % 251]) * share for i in range(framing.BLOCK_PACKETS_MAX)]
    view = sealed(packets)
    start, length, _, _ = slot.read_header(view)
    assert length - framing.LENGTH.size == framing.BLOCK_LENGTH_LIMIT
    assert start >= layout.SLOT_HEADER_BYTES
    assert opened(view) == packets


def test_a_block_that_takes_another_packet_has_room_for_the_largest() -> None:
    assert FILL_LIMIT + PACKET_BYTES_MAX == framing.BLOCK_PAYLOAD_MAX
    assert BODY + framing.BLOCK_PAYLOAD_MAX <= SLOT_BYTES_MIN
    assert PACKET_BYTES_MAX >= 65536 + VNET_HEADER_BYTES  # GSO_LEGACY_MAX_SIZE, linux/netdevice.h


def test_a_received_frame_at_the_limit_fits_a_slot_behind_its_header() -> None:
    assert layout.SLOT_HEADER_BYTES + framing.LENGTH.size + framing.BLOCK_LENGTH_LIMIT <= SLOT_BYTES_MIN


# -- header and marks


def test_the_fields_of_a_header_are_where_the_layout_says() -> None:
    view = used_slot()
    slot.write_header(view, 64, 1000, 5, 1 << 40, framing.LIGHT, NO_NUMBER)
    words = view[: layout.SLOT_HEADER_BYTES].cast("Q")
    assert [
        words[at // 8]
        for at in (layout.SLOT_START_AT, layout.SLOT_LENGTH_AT, layout.SLOT_CONSUMER_AT, layout.SLOT_PEER_HANDLE_AT)
    ] == [64, 1000, 5, 1 << 40]
    assert struct.unpack_from("<I", view, layout.SLOT_TRAFFIC_CLASS_AT) == (framing.LIGHT,)
    assert struct.unpack_from("<I", view, layout.SLOT_NUMBER_AT) == (NO_NUMBER,)


@given(U64, U64, U64, U64, U32, U32)
def test_a_header_and_its_marks_are_read_as_they_were_written(
    start: int, length: int, consumer: int, peer_handle: int, traffic_class: int, number: int
) -> None:
    view = used_slot()
    slot.write_header(view, start, length, consumer, peer_handle, traffic_class, number)
    assert slot.read_header(view) == (start, length, consumer, peer_handle)
    assert slot.read_header_and_runs(view) == (start, length, consumer, peer_handle, 0)
    assert slot.read_marks(view) == (traffic_class, number)


def test_a_header_touches_nothing_behind_itself() -> None:
    view = used_slot()
    slot.write_header(view, 64, 1000, 5, 7)
    assert set(view[layout.SLOT_HEADER_BYTES :]) == {0xEE}


# -- the run table


def test_the_fields_of_a_run_table_are_where_the_layout_says() -> None:
    view = sealed([b"packet"])
    write_runs(view, [(1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12)], 13, 14)
    words = view[: layout.SLOT_HEADER_BYTES].cast("Q")
    assert [words[at // 8] for at in (layout.SLOT_RUNS_AT, layout.SLOT_SKIPPABLE_AT, layout.SLOT_SKIP_OWNER_AT)] == [
        2,
        13,
        14,
    ]
    row = layout.SLOT_RUN_TABLE_AT + layout.RUN_ROW_BYTES
    assert struct.unpack_from("<4H2I", view, row) == (7, 8, 9, 10, 11, 12)


@given(RUNS, U64, U64)
def test_a_run_table_is_read_as_it_was_written_and_changes_neither_header_nor_block(
    runs: list[tuple[int, ...]], skippable: int, skip_owner: int
) -> None:
    view = sealed([b"packet"], 3, 7)
    before = slot.read_header(view), slot.read_marks(view)
    write_runs(view, runs, skippable, skip_owner)
    assert list(slot.read_runs(view, len(runs))) == runs
    assert slot.read_skippable(view) == (skippable, skip_owner)
    assert slot.read_header_and_runs(view)[4] == len(runs)
    assert (slot.read_header(view), slot.read_marks(view)) == before
    assert opened(view) == [b"packet"]


@pytest.mark.parametrize("again", [slot.clear_run_table, lambda view: slot.write_header(view, 64, 1, 2, 3)])
def test_a_slot_that_is_cleared_or_begun_again_has_no_runs(again: object) -> None:
    view = sealed([b"packet"])
    write_runs(view, [(1, 2, 3, 4, 5, 6)], 13, 14)
    assert callable(again)
    again(view)
    assert slot.read_header_and_runs(view)[4] == 0
    assert slot.read_skippable(view) == (0, 0)


# -- block numbers


def test_block_numbers_of_a_stream_count_up_and_wrap_at_2_32() -> None:
    words = memoryview(bytearray(4 * 8)).cast("Q")
    words[2] = (1 << 32) - 2
    assert [slot.next_block_number(words, 2) for _ in range(4)] == [(1 << 32) - 2, (1 << 32) - 1, 0, 1]
    assert words.tolist() == [0, 0, 2, 0]
