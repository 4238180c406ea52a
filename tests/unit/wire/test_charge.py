"""What frames are charged, and what of it counts against a rate."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.wire import charge, framing


def block(packets: int) -> bytes:
    return framing.frame(framing.BLOCK, struct.pack(f">H{packets}I", packets, *[30] * packets) + bytes(30 * packets))


RUN = framing.frame(framing.RUN, bytes(28))
BARE_PACKET = framing.frame(framing.DATA, bytes(28))
CHARGES = {
    b"": 0,
    bytes(4): charge.FRAME,
    framing.KEEPALIVE_FRAME: charge.FRAME,
    RUN: charge.FRAME + charge.RUN,
    BARE_PACKET: charge.FRAME + charge.PACKET,
    framing.frame(0x7F, b"unknown"): charge.FRAME + charge.PACKET,
    block(1): charge.FRAME + charge.PACKET,
    block(512): charge.FRAME + 512 * charge.PACKET,
    framing.frame(framing.BLOCK): charge.FRAME,  # too short to say how many
}


def scan(stream: bytes, most: int = framing.UNBOUNDED) -> tuple[int, int, int, int, int, int]:
    return framing.scan(memoryview(stream), 0, len(stream), framing.LENGTH_LIMIT, most)


@pytest.mark.parametrize("frame", CHARGES)
def test_each_kind_of_frame_has_its_charge(frame: bytes) -> None:
    assert scan(frame)[-1] == CHARGES[frame]


def test_the_charges_of_frames_add_up_and_those_without_contents_are_counted() -> None:
    stream = b"".join(CHARGES)
    assert scan(stream)[4:] == (2, sum(CHARGES.values()))


def test_the_search_ends_behind_the_frame_that_brings_the_charge_to_the_most() -> None:
    one = charge.FRAME + charge.RUN
    assert scan(RUN * 10, 3 * one) == (3 * len(RUN), 0, 3, 3, 0, 3 * one)
    assert scan(RUN * 10, 3 * one - 1)[0] == 3 * len(RUN)
    assert scan(RUN * 10, 3 * one + 1)[0] == 4 * len(RUN)
    assert scan(RUN * 3, 3 * one)[:2] == (3 * len(RUN), 0)


@given(st.lists(st.sampled_from(list(CHARGES)), max_size=20), st.integers(1, 10_000))
def test_a_search_in_parts_finds_the_same_as_one_without_a_limit(frames: list[bytes], most: int) -> None:
    stream = b"".join(frames)
    at = 0
    found = [0, 0, 0, 0]
    while at < len(stream):
        after, _, *counts = framing.scan(memoryview(stream), at, len(stream), framing.LENGTH_LIMIT, most)
        assert after > at
        at = after
        found = [a + b for a, b in zip(found, counts, strict=True)]
    assert tuple(found) == scan(stream)[2:]


def test_packets_of_300_bytes_and_more_count_as_they_are_against_a_rate() -> None:
    for packets, size in ((100, 300), (80, 1400)):
        charged = charge.FRAME + packets * charge.PACKET
        assert charge.against_rate(packets * size, packets * size + charged) == packets * size


def test_tiny_frames_count_for_more_than_their_bytes() -> None:
    charged = 1000 * (charge.FRAME + charge.RUN)
    assert charge.against_rate(33_000, 33_000 + charged) > 10 * 33_000
