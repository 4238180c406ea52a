"""UDP packets of one flow merged into super-packets: the kernel makes of them what the packets were."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet import gso
from pipeline.packet.ip import check
from pipeline.packet.udp_merge import MERGED_LEAST, MISSES_MOST, stretches, super_packet
from pipeline.packet.vnet import GSO_UDP_L4, NEEDS_CSUM, VNET, VNET_HEADER_BYTES
from tests.harness.udp import DONT_FRAGMENT, MORE_FRAGMENTS, V4_ENDS, V6_ENDS, udp, words_sum


def merged(packets: Iterable[bytes]) -> list[tuple[int, int, bool]]:
    packets = list(packets)
    return stretches(memoryview(b"".join(packets)), 0, tuple(map(len, packets)))


def written(packets: list[bytes]) -> list[bytes]:
    """What is written to TUN for these packets."""
    view, lengths = memoryview(b"".join(packets)), tuple(map(len, packets))
    found, at, next_index = [], 0, 0
    for first, count, is_merged in stretches(view, 0, lengths):
        assert first == next_index and count > 0
        next_index += count
        these = lengths[first : first + count]
        if is_merged:
            assert set(these) == {these[0]}
            found.append(b"".join(super_packet(view, at, these[0], count)))
        else:
            found += packets[first:next_index]
        at += sum(these)
    assert next_index == len(packets)
    return found


def on_the_wire(packet: bytes) -> list[bytes]:
    """What a kernel makes of it, without the ids of packets that are never fragmented, and the checksum over them."""
    made = []
    for each in gso.finish(packet):
        inner = each[VNET_HEADER_BYTES:]
        if inner[0] >> 4 == 4:
            assert words_sum(inner[: (inner[0] & 15) * 4]) == 0xFFFF
            if inner[6] & 0x40:
                inner = inner[:4] + bytes(2) + inner[6:10] + bytes(2) + inner[12:]
        made.append(inner)
    return made


PACKETS = st.lists(
    st.builds(
        lambda payload, times, options: [udp(payload, **options)] * times,
        st.binary(min_size=0, max_size=60),
        st.integers(1, 90),
        st.fixed_dictionaries(
            {"version": st.sampled_from([4, 6]), "port": st.sampled_from([1, 2])},
            optional={
                "fragment": st.sampled_from([0, DONT_FRAGMENT]),
                "traffic_class": st.sampled_from([0, 1, 3]),
                "hops": st.sampled_from([63, 64]),
                "flags": st.sampled_from([0, NEEDS_CSUM]),
                "identity": st.integers(0, 65535),
            },
        ),
    ),
    max_size=6,
).map(lambda runs: [each for run in runs for each in run])


@given(PACKETS)
def test_the_kernel_makes_the_packets_of_what_is_written_in_their_order(packets: list[bytes]) -> None:
    made = written(packets)
    assert [each for packet in made for each in on_the_wire(packet)] == [
        each for packet in packets for each in on_the_wire(packet)
    ]
    for each in made:
        assert check(memoryview(each), 0, len(each)) is None


@given(st.binary(max_size=400), st.lists(st.integers(0, 60), max_size=20))
def test_whatever_a_peer_has_sent_is_in_one_stretch_each(content: bytes, lengths: list[int]) -> None:
    view = memoryview(content.ljust(sum(lengths), b"\x45"))[: sum(lengths)]
    found = stretches(view, 0, tuple(lengths))
    assert [index for first, count, _ in found for index in range(first, first + count)] == list(range(len(lengths)))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1, 2, 200, 1371])
def test_packets_of_one_flow_and_size_are_merged(version: int, size: int) -> None:
    packets = [udp(bytes([number]) * size, version) for number in range(10)]
    assert merged(packets) == [(0, 10, True)]
    (made,) = written(packets)
    start = 20 if version == 4 else 40
    assert VNET.unpack_from(made) == (NEEDS_CSUM, GSO_UDP_L4, start + 8, size, start, 6)
    inner = made[VNET_HEADER_BYTES:]
    assert len(inner) == start + 8 + 10 * size
    partial = words_sum((V4_ENDS if version == 4 else V6_ENDS) + struct.pack(">IxxxB", 8 + 10 * size, 17))
    assert struct.unpack_from(">HH", inner, start + 4) == (8 + 10 * size, partial)
    if version == 4:
        assert words_sum(inner[:20]) == 0xFFFF


def test_ids_that_count_up_stay_as_they_are() -> None:
    packets = [udp(b"x" * 9, identity=(65533 + number) & 0xFFFF) for number in range(8)]
    (made,) = written(packets)
    assert gso.finish(made) == [finished for packet in packets for finished in gso.finish(packet)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("size", "most"), [(1, 64), (1000, 64), (1371, 47), (9000, 7), (30000, 1)])
def test_a_super_packet_has_as_many_segments_and_bytes_as_a_kernel_takes(version: int, size: int, most: int) -> None:
    packets = [udp(bytes(size), version)] * 300
    assert [count for _, count, is_merged in merged(packets) if is_merged] == [most] * (300 // most) * (most > 1) + (
        [300 % most] if 300 % most >= MERGED_LEAST else []
    )
    assert max(len(each) for each in written(packets)) - VNET_HEADER_BYTES <= 65535


ALONE: dict[str, dict[str, Any]] = {
    "it may be fragmented": {"fragment": 0},
    "it is a fragment": {"fragment": MORE_FRAGMENTS},
    "it is a later fragment": {"fragment": DONT_FRAGMENT | 10},
    "its checksum is complete": {"flags": 0},
    "it is not UDP": {"protocol": 6},
    "it is not UDP, IPv6": {"protocol": 6, "version": 6},
    "its UDP length is another one": {"udp_bytes": 9},
    "its UDP length is another one, IPv6": {"udp_bytes": 9, "version": 6},
    "it has options": {"first": 0x46},
    "it is a super-packet already": {"gso_type": GSO_UDP_L4},
    "it is of no version": {"first": 0x75},
}


@pytest.mark.parametrize("reason", ALONE)
def test_a_packet_stays_as_it_is_if(reason: str) -> None:
    assert merged([udp(b"x" * 40, **ALONE[reason])] * 10) == [(0, 10, False)]


@pytest.mark.parametrize(
    "other",
    [
        {"port": 5001},
        {"traffic_class": 3},  # congestion experienced, RFC 3168
        {"hops": 63},
        {"payload": b"x" * 39},
        {"payload": b"x" * 41},
        {"fragment": 0},
        {"flags": 0},
        {"label": 1, "version": 6},
        {"traffic_class": 1, "version": 6},
    ],
    ids=str,
)
def test_a_packet_that_differs_ends_a_super_packet(other: dict[str, Any]) -> None:
    options = {"payload": b"x" * 40, "version": other.get("version", 4)}
    usual, odd = udp(**options), udp(**(options | other))
    assert merged([usual] * 6 + [odd] + [usual] * 6) == [(0, 6, True), (6, 1, False), (7, 6, True)]


@pytest.mark.parametrize("version", [4, 6])
def test_an_empty_datagram_stays_as_it_is(version: int) -> None:
    assert merged([udp(b"", version)] * 10) == [(0, 10, False)]


@pytest.mark.parametrize("version", [4, 6])
def test_packets_shorter_than_their_headers_stay_as_they_are(version: int) -> None:
    whole = udp(b"x" * 40, version)
    for length in range(len(whole) - 40):
        assert merged([whole[:length]] * 10) == [(0, 10, False)]


def test_a_packet_longer_than_its_headers_say_ends_a_super_packet() -> None:
    usual = udp(b"x" * 40)
    assert merged([usual] * 6 + [usual + b"more"] + [usual] * 6) == [(0, 6, True), (6, 1, False), (7, 6, True)]


def test_few_packets_stay_as_they_are() -> None:
    assert merged([udp(b"x")] * (MERGED_LEAST - 1)) == [(0, MERGED_LEAST - 1, False)]
    assert merged([udp(b"x")] * MERGED_LEAST) == [(0, MERGED_LEAST, True)]
    assert merged([]) == []


def test_flows_in_turn_stay_as_they_are() -> None:
    turns = [udp(b"x", port=1), udp(b"x", port=2)] * 20
    assert merged(turns) == [(0, 40, False)]
    assert merged(turns + [udp(b"x")] * 10) == [(0, 50, False)]  # after some misses nothing more is looked at
    few = turns[: MISSES_MOST - 1]
    assert merged((few + [udp(b"x")] * 4) * 5) == [
        each for at in range(0, 35, 7) for each in ((at, len(few), False), (at + len(few), 4, True))
    ]
