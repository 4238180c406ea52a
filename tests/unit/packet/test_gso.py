"""Packets finished in place of the kernel: checksums completed, super-packets cut into segments."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet import gso, ip
from pipeline.packet.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET, VNET_HEADER_BYTES

V4 = bytes([10, 0, 0, 2, 10, 0, 0, 1])
V6 = bytes([0xFD] + 14 * [0] + [2] + [0xFD] + 14 * [0] + [1])


def words_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(version: int, protocol: int, length: int) -> bytes:
    addresses = V4 if version == 4 else V6
    return addresses + struct.pack(">IxxxB", length, protocol)


def made(
    version: int,
    protocol: int,
    payload: bytes,
    gso_size: int,
    flags: int = 0x18,
    identity: int = 7,
    sequence: int = 1000,
) -> bytes:
    """A packet as TUN gives it: a partial checksum, and more than one segment if the payload exceeds gso_size."""
    if protocol == 6:
        transport = struct.pack(">HHIIBBHHH", 1, 2, sequence, 9, 0x50, flags, 500, 0, 0)
        kind, field = (GSO_TCPV4 if version == 4 else GSO_TCPV6), 16
    else:
        transport = struct.pack(">HHHH", 1, 2, 8 + len(payload), 0)
        kind, field = GSO_UDP_L4, 6
    length = len(transport) + len(payload)
    partial = words_sum(pseudo(version, protocol, length))
    transport = transport[:field] + struct.pack(">H", partial) + transport[field + 2 :]
    if version == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, identity, 0, 64, protocol, 0) + V4
        header = header[:10] + struct.pack(">H", 0xFFFF - words_sum(header)) + header[12:]
    else:
        header = struct.pack(">IHBB", 0x60000000, length, protocol, 64) + V6
    many = len(payload) > gso_size
    vnet = VNET.pack(
        NEEDS_CSUM, kind if many else 0, len(header) + len(transport), gso_size if many else 0, len(header), field
    )
    return vnet + header + transport + payload


def is_right(packet: bytes, version: int, protocol: int) -> None:
    """Check a finished packet: lengths and both checksums are right, and its virtio-net header is empty."""
    assert packet[:VNET_HEADER_BYTES] == bytes(VNET_HEADER_BYTES)
    assert ip.check(memoryview(packet), 0, len(packet)) is None
    inner = packet[VNET_HEADER_BYTES:]
    header = 20 if version == 4 else 40
    if version == 4:
        assert words_sum(inner[:20]) == 0xFFFF
    assert words_sum(pseudo(version, protocol, len(inner) - header) + inner[header:]) == 0xFFFF


@given(st.sampled_from([4, 6]), st.sampled_from([6, 17]), st.binary(min_size=1, max_size=3000), st.integers(100, 1400))
def test_every_segment_is_a_whole_packet_and_together_they_are_the_payload(
    version: int, protocol: int, payload: bytes, size: int
) -> None:
    packet = made(version, protocol, payload, size)
    found = gso.finish(packet)
    assert len(found) == -(-len(payload) // size)
    head = (20 if version == 4 else 40) + (20 if protocol == 6 else 8)
    for each in found:
        is_right(bytes(each), version, protocol)
    assert b"".join(bytes(each)[VNET_HEADER_BYTES + head :] for each in found) == payload


def test_sequence_numbers_and_ids_are_counted_up_and_wrap() -> None:
    found = gso.finish(made(4, 6, bytes(2500), 1000, identity=0xFFFF, sequence=0xFFFFFFFF - 999))
    assert [struct.unpack_from(">I", each, 10 + 24)[0] for each in found] == [0xFFFFFFFF - 999, 0, 1000]
    assert [struct.unpack_from(">H", each, 10 + 4)[0] for each in found] == [0xFFFF, 0, 1]


def test_push_and_fin_stay_with_the_last_segment_and_cwr_with_the_first() -> None:
    found = gso.finish(made(4, 6, bytes(2500), 1000, flags=0x80 | 0x10 | 0x08 | 0x01))
    assert [each[10 + 20 + 13] for each in found] == [0x90, 0x10, 0x19]


def test_a_udp_checksum_that_comes_out_as_zero_is_written_as_all_ones() -> None:
    payload = next(
        p
        for p in (struct.pack(">H", n) for n in range(0x10000))
        if words_sum(pseudo(4, 17, 10) + struct.pack(">HHHH", 1, 2, 10, 0) + p) == 0xFFFF
    )
    (packet,) = gso.finish(made(4, 17, payload, 1400))
    assert packet[10 + 26 : 10 + 28] == b"\xff\xff"


def test_a_finished_packet_stays_as_it_is() -> None:
    (packet,) = gso.finish(made(4, 6, b"x", 1400))
    assert gso.finish(bytes(packet)) == [packet]


def test_a_super_packet_of_too_many_segments_gives_none() -> None:
    assert gso.finish(made(4, 6, bytes(1000), 1)) == []


def test_ecn_does_not_matter() -> None:
    packet = bytearray(made(4, 6, bytes(2500), 1000))
    packet[1] |= GSO_ECN
    assert len(gso.finish(bytes(packet))) == 3


@given(
    st.binary(min_size=0, max_size=200),
    st.sampled_from([4, 6]),
    st.tuples(st.integers(0, 255), st.integers(0, 255), *[st.integers(0, 300)] * 4),
)
def test_a_packet_that_passes_the_check_can_be_finished(body: bytes, version: int, vnet: tuple[int, ...]) -> None:
    length = 20 + len(body) if version == 4 else len(body)
    header = (
        struct.pack(">BBHHHBBH", 0x45, 0, length, 0, 0, 64, 6, 0) + V4
        if version == 4
        else struct.pack(">IHBB", 0x60000000, length, 6, 64) + V6
    )
    packet = VNET.pack(*vnet) + header + body
    if ip.check(memoryview(packet), 0, len(packet)) is None:
        for each in gso.finish(packet):
            assert ip.check(memoryview(bytes(each)), 0, len(each)) in (None, ip.PACKET_MALFORMED)
