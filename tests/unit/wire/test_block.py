"""Blocks of a peer: taken apart without trusting a byte of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.wire import block, framing


def block_frame(count: int, lengths: list[int], payload: bytes) -> bytes:
    body = struct.pack(f">BH{len(lengths)}I", framing.BLOCK, count, *lengths) + payload
    return struct.pack(">I", len(body)) + body


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
        (block_frame(2, [3, 3], b"12345"), "add up to 6 bytes, the block holds 5"),
        (block_frame(2, [3, 3], b"1234567"), "add up to 6 bytes, the block holds 7"),
        (block_frame(1, [(1 << 32) - 1], b"1"), "add up to 4294967295 bytes"),
        (block_frame(2, [(1 << 32) - 1, 2], b"1"), "add up to 4294967297 bytes"),
    ],
)
def test_a_block_whose_lengths_contradict_each_other_is_the_peers_fault(frame: bytes, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        block.lengths(memoryview(frame), 0, len(frame))


NEARLY_BLOCKS = st.builds(
    lambda packets, more, end: block_frame(len(packets) + more, [*map(len, packets)], b"".join(packets) + end),
    st.lists(st.binary(max_size=30), max_size=8),
    st.integers(0, 2),
    st.sampled_from([b"", b"", b"x"]),
)


@given(st.binary(max_size=300) | NEARLY_BLOCKS, st.integers(0, 50))
def test_any_frame_gives_lengths_inside_it_or_a_peer_error(data: bytes, at: int) -> None:
    view = memoryview(bytes(at) + data)
    try:
        first, lengths = block.lengths(view, at, len(view))
    except PeerError:
        return
    assert at + 7 <= first <= len(view)
    assert first + sum(lengths) == len(view)
