"""Packets of a peer are checked before the kernel gets them: sound packets pass, each other one has a counter.

And the addresses of sound packets are found.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.counters import ID
from pipeline.packet import ip
from pipeline.packet.ip import check, check_bare
from pipeline.packet.vnet import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NO_VNET, VNET

SOUND = None
PACKET = ID["tun.dropped_packet_malformed"]
HEADER = ID["tun.dropped_header_malformed"]


def v4(size: int = 40, total: int | None = None, words: int = 5, version: int = 4) -> bytes:
    return struct.pack(">BBH", version << 4 | words, 0, size if total is None else total) + bytes(size - 4)


def v6(size: int = 60, payload: int | None = None, version: int = 6) -> bytes:
    return struct.pack(">IH", version << 28, size - 40 if payload is None else payload) + bytes(size - 6)


def header(flags: int = 0, gso: int = 0, length: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return VNET.pack(flags, gso, length, size, start, offset)


def verdict(packet: bytes, at: int = 0) -> ip.Drop:
    """The result for a packet with its header, placed at an offset among other bytes."""
    return check(memoryview(b"\xff" * at + packet + b"\xff" * 9), at, len(packet))


def bare(packet: bytes, at: int = 0) -> ip.Drop:
    return check_bare(memoryview(b"\xff" * at + packet + b"\xff" * 9), at, len(packet))


@pytest.mark.parametrize(
    "packet",
    [v4(20), v4(40), v4(1400), v4(65535), v4(60, words=15), v6(40), v6(60), v6(1400), v6(65535 + 40)],
    ids=lambda packet: f"{packet[0] >> 4}-{len(packet)}",
)
@pytest.mark.parametrize("at", [0, 1, 4096])
def test_a_sound_packet_passes_bare_and_with_a_header(packet: bytes, at: int) -> None:
    assert bare(packet, at) == SOUND
    assert verdict(header() + packet, at) == SOUND


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"E",
        v4(20)[:19],
        v4(40, total=39),
        v4(40, total=41),
        v4(40, total=0),
        v4(40, words=4),
        v4(40, words=0),
        v4(40, version=0),
        v4(40, version=5),
        v4(40, version=15),
        v6(60, version=7),
        v6(60, payload=19),
        v6(60, payload=21),
        v6(60, payload=65535),
        v6(60)[:39],
    ],
    ids=repr,
)
def test_a_packet_of_wrong_version_or_length_is_malformed(packet: bytes) -> None:
    assert bare(packet) == PACKET
    assert verdict(header() + packet) == PACKET


def test_a_packet_shorter_than_its_own_ip_header_is_malformed() -> None:
    assert bare(v4(20, words=6)) == PACKET
    assert bare(v4(40, words=15)) == PACKET


def test_a_header_without_a_packet_is_malformed() -> None:
    for size in range(10 + 20):
        assert verdict(bytes(size)) == PACKET


@pytest.mark.parametrize(
    ("vnet", "packet"),
    [
        (header(NEEDS_CSUM, GSO_TCPV4, 40, 1360, 20, 16), v4(60000)),
        (header(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 40, 1360, 20, 16), v4(60000)),
        (header(NEEDS_CSUM, GSO_TCPV6, 60, 1340, 40, 16), v6(60000)),
        (header(NEEDS_CSUM, GSO_UDP_L4, 28, 1372, 20, 6), v4(60000)),
        (header(NEEDS_CSUM, GSO_UDP_L4, 48, 1372, 40, 6), v6(60000)),
        (header(NEEDS_CSUM, GSO_NONE, 0, 0, 20, 6), v4(28)),
        (header(2, GSO_NONE), v4(28)),
    ],
)
def test_the_headers_that_a_kernel_makes_pass(vnet: bytes, packet: bytes) -> None:
    assert verdict(vnet + packet) == SOUND


@pytest.mark.parametrize(
    ("vnet", "packet"),
    [
        (header(gso=GSO_TCPV4, size=1000), v6(2000)),
        (header(gso=GSO_TCPV6, size=1000), v4(2000)),
        (header(gso=GSO_UDP_L4, size=0), v4(2000)),
        (header(gso=GSO_TCPV4, size=0), v4(2000)),
        (header(gso=GSO_TCPV4, size=1000, length=2001), v4(2000)),
        (header(gso=2, size=1000), v4(2000)),
        (header(gso=3, size=1000), v4(2000)),
        (header(gso=127, size=1000), v4(2000)),
        (header(gso=GSO_ECN | 127, size=1000), v4(2000)),
        (header(NEEDS_CSUM, start=27, offset=0), v4(28)),
        (header(NEEDS_CSUM, start=20, offset=7), v4(28)),
        (header(NEEDS_CSUM, start=65535, offset=65535), v4(28)),
        (header(NEEDS_CSUM, GSO_TCPV4, 40, 1360, 1999, 16), v4(2000)),
    ],
)
def test_a_header_that_points_outside_its_packet_or_names_another_kind_is_malformed(vnet: bytes, packet: bytes) -> None:
    assert verdict(vnet + packet) == HEADER


def test_a_checksum_may_be_the_last_two_bytes() -> None:
    assert verdict(header(NEEDS_CSUM, start=20, offset=6) + v4(28)) == SOUND
    assert verdict(header(NEEDS_CSUM, start=21, offset=5) + v4(28)) == SOUND


@pytest.mark.parametrize(("packet", "first"), [(v4(60), 20), (v4(60, words=6), 24), (v6(80), 40)])
def test_a_checksum_that_would_be_written_into_the_ip_header_is_malformed(packet: bytes, first: int) -> None:
    """Its completion would change the addresses that were checked before."""
    assert verdict(header(NEEDS_CSUM, start=first, offset=0) + packet) == SOUND
    for start, offset in ((first - 1, 1), (0, 12), (0, first), (12, 0)):
        assert verdict(header(NEEDS_CSUM, start=start, offset=offset) + packet) == HEADER


def test_a_sound_header_does_not_excuse_the_packet_behind_it() -> None:
    assert verdict(header(NEEDS_CSUM, GSO_TCPV4, 40, 1360, 20, 16) + v4(2000, total=1999)) == PACKET


def test_the_empty_header_is_all_zeros() -> None:
    assert header() == NO_VNET


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(0, 30), st.integers(5, 15))
def test_the_addresses_of_an_ipv4_packet_are_where_they_are(
    source: IPv4Address, destination: IPv4Address, at: int, words: int
) -> None:
    packet = v4(100, words=words)
    packet = packet[:12] + source.packed + destination.packed + packet[20:]
    view = memoryview(b"\xff" * at + header() + packet)
    assert verdict(header() + packet) == SOUND
    assert (ip.source(view, at), ip.destination(view, at)) == (source.packed, destination.packed)


@given(st.ip_addresses(v=6), st.ip_addresses(v=6), st.integers(0, 30))
def test_the_addresses_of_an_ipv6_packet_are_where_they_are(
    source: IPv6Address, destination: IPv6Address, at: int
) -> None:
    packet = v6(60)[:8] + source.packed + destination.packed + bytes(20)
    view = memoryview(b"\xff" * at + header() + packet)
    assert verdict(header() + packet) == SOUND
    assert (ip.source(view, at), ip.destination(view, at)) == (source.packed, destination.packed)


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("10.0.0.1", False),
        ("223.255.255.255", False),
        ("224.0.0.0", True),
        ("239.1.2.3", True),
        ("240.0.0.1", True),
        ("255.255.255.255", True),
        ("0.0.0.0", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("fe00::", False),
        ("ff02::1", True),
        ("ffff::", True),
        ("::", False),
    ],
)
def test_an_address_of_many_is_told_from_one_of_a_host(address: str, answer: bool) -> None:
    assert ip.is_multicast(ip_address(address).packed) is answer


@given(st.binary(max_size=100), st.integers(0, 30))
def test_any_bytes_get_a_verdict(data: bytes, at: int) -> None:
    assert verdict(data, at) in (SOUND, PACKET, HEADER)
    assert bare(data, at) in (SOUND, PACKET)


NEAR = st.integers(0, 70) | st.integers(0, 65535)  # to the ends of these packets


@given(
    st.sampled_from([0, NEEDS_CSUM]) | st.integers(0, 255),
    st.sampled_from([GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN | GSO_TCPV4]) | st.integers(0, 255),
    *(NEAR, NEAR, NEAR, NEAR),
    st.sampled_from([v4(40), v6(60)]),
)
def test_a_header_that_passes_stays_inside_its_packet(
    flags: int, gso: int, length: int, size: int, start: int, offset: int, packet: bytes
) -> None:
    if verdict(header(flags, gso, length, size, start, offset) + packet) == SOUND:
        if flags & NEEDS_CSUM:
            assert start + offset + 2 <= len(packet)
        if gso & ~GSO_ECN:
            assert size > 0 and length <= len(packet)
            assert packet[0] >> 4 in {GSO_TCPV4: (4,), GSO_TCPV6: (6,), GSO_UDP_L4: (4, 6)}[gso & ~GSO_ECN]
