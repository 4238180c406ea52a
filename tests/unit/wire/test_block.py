"""Blocks: sealed in place as one contiguous frame, and taken apart without trusting a byte of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.packet.vnet import PACKET_BYTES_MAX, VNET_HEADER_BYTES
from pipeline.shm import layout, slot
from pipeline.shm.slot import FILL_LIMIT, MARKS, SLOT, SLOT_BYTES_MIN, seal
from pipeline.wire import block, framing

BODY = layout.SLOT_BODY_AT


def sealed(packets: list[bytes], member: int = 3, peer_handle: int = 7) -> memoryview:
    """A slot with these packets in it."""
    slot = memoryview(bytearray(b"\xee" * SLOT_BYTES_MIN))
    end = BODY
    for packet in packets:
        slot[end : end + len(packet)] = packet
        end += len(packet)
    seal(slot, [len(packet) for packet in packets], end, member, peer_handle)
    return slot


def opened(slot: memoryview) -> list[bytes]:
    start, length, _, _ = SLOT.unpack_from(slot)
    at, lengths = block.lengths(slot, start, start + length)
    packets = []
    for size in lengths:
        packets.append(bytes(slot[at : at + size]))
        at += size
    return packets


def block_frame(count: int, lengths: list[int], payload: bytes) -> bytes:
    body = struct.pack(f">BH{len(lengths)}I", framing.BLOCK, count, *lengths) + payload
    return struct.pack(">I", len(body)) + body


def test_a_sealed_block_is_one_frame_that_ends_behind_the_last_packet() -> None:
    slot = sealed([b"first", b"the second", b"3"])
    start, length, member, peer_handle = SLOT.unpack_from(slot)
    frame = bytes(slot[start : start + length])
    assert frame == block_frame(3, [5, 10, 1], b"firstthe second3")
    assert (member, peer_handle) == (3, 7)
    assert framing.scan(memoryview(frame), 0, len(frame), framing.BLOCK_LENGTH_LIMIT) == (len(frame), 0, 1, 0)


def test_the_fields_of_a_slot_are_where_the_layout_says() -> None:
    slot = sealed([b"packet"], member=5, peer_handle=1 << 40)
    words = slot[: layout.SLOT_HEADER_BYTES].cast("Q")
    start = BODY - 7 - 4
    assert [
        words[at // 8]
        for at in (layout.SLOT_START_AT, layout.SLOT_LENGTH_AT, layout.SLOT_CONSUMER_AT, layout.SLOT_PEER_HANDLE_AT)
    ] == [start, BODY + 6 - start, 5, 1 << 40]


def test_the_marks_of_a_slot_are_where_the_layout_says_and_a_number_counts_to_2_32() -> None:
    slot = memoryview(bytearray(layout.SLOT_HEADER_BYTES))
    MARKS.pack_into(slot, layout.SLOT_TRAFFIC_CLASS_AT, framing.LIGHT, (1 << 32) - 1)
    assert struct.unpack_from("<I", slot, layout.SLOT_TRAFFIC_CLASS_AT) == (framing.LIGHT,)
    assert struct.unpack_from("<I", slot, layout.SLOT_NUMBER_AT) == ((1 << 32) - 1,)
    assert not any(slot[: layout.SLOT_TRAFFIC_CLASS_AT])


@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=framing.BLOCK_PACKETS_MAX))
def test_any_packets_come_back_in_order(packets: list[bytes]) -> None:
    assert opened(sealed(packets)) == packets


def test_the_largest_number_of_packets_and_the_largest_payload_fit_slot_and_limit() -> None:
    share = framing.BLOCK_PAYLOAD_MAX // framing.BLOCK_PACKETS_MAX
    packets = [bytes([i % 251]) * share for i in range(framing.BLOCK_PACKETS_MAX)]
    slot = sealed(packets)
    start, length, _, _ = SLOT.unpack_from(slot)
    assert length - framing.LENGTH.size == framing.BLOCK_LENGTH_LIMIT
    assert start >= layout.SLOT_HEADER_BYTES
    assert opened(slot) == packets


def test_a_block_that_takes_another_packet_has_room_for_the_largest() -> None:
    assert FILL_LIMIT + PACKET_BYTES_MAX == framing.BLOCK_PAYLOAD_MAX
    assert BODY + framing.BLOCK_PAYLOAD_MAX <= SLOT_BYTES_MIN
    assert PACKET_BYTES_MAX >= 65536 + VNET_HEADER_BYTES  # GSO_LEGACY_MAX_SIZE, linux/netdevice.h


def test_a_received_frame_at_the_limit_fits_a_slot_behind_its_header() -> None:
    assert layout.SLOT_HEADER_BYTES + framing.LENGTH.size + framing.BLOCK_LENGTH_LIMIT <= SLOT_BYTES_MIN


def test_a_block_of_no_packets_is_allowed_and_empty() -> None:
    frame = block_frame(0, [], b"")
    assert block.lengths(memoryview(frame), 0, len(frame)) == (7, ())


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (b"\x00\x00\x00\x01\x20", "block frame of 5 bytes, at least 7 expected"),
        (b"\x00\x00\x00\x02\x20\x00", "block frame of 6 bytes"),
        (block_frame(framing.BLOCK_PACKETS_MAX + 1, [], b""), "block of 513 packets, at most 512 allowed"),
        (block_frame(65535, [], b"x" * 100), "block of 65535 packets"),
        (block_frame(2, [3], b""), "too short for 2 lengths"),
        (block_frame(2, [3, 3], b"12345"), "add up to 6 bytes, the frame holds 5"),
        (block_frame(2, [3, 3], b"1234567"), "add up to 6 bytes, the frame holds 7"),
        (block_frame(1, [(1 << 32) - 1], b"1"), "add up to 4294967295 bytes"),
        (block_frame(2, [(1 << 32) - 1, 2], b"1"), "add up to 4294967297 bytes"),
    ],
)
def test_a_block_whose_lengths_contradict_each_other_is_the_peers_fault(frame: bytes, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        block.lengths(memoryview(frame), 0, len(frame))


@given(st.binary(max_size=300), st.integers(0, 50))
def test_any_frame_gives_lengths_inside_it_or_a_peer_error(data: bytes, at: int) -> None:
    view = memoryview(bytes(at) + data)
    try:
        first, lengths = block.lengths(view, at, len(view))
    except PeerError:
        return
    assert at + 7 <= first <= len(view)
    assert first + sum(lengths) == len(view)
