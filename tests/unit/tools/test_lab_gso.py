"""Pieces of a super-packet, byte by byte, against a segmentation written here from the RFCs."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.lab.gso import cut, shape

ETHERNET4 = bytes.fromhex("027700000002027700000001") + b"\x08\x00"
ETHERNET6 = bytes.fromhex("027700000002027700000001") + b"\x86\xdd"
SOURCE4, TARGET4 = socket.inet_aton("10.77.0.1"), socket.inet_aton("10.77.0.2")
SOURCE6 = socket.inet_pton(socket.AF_INET6, "fd77::1")
TARGET6 = socket.inet_pton(socket.AF_INET6, "fd77::2")
TCP_OPTIONS = bytes.fromhex("0101080a0102030405060708")
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
TCP, UDP = 6, 17


def ones_complement_sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(six: bool, protocol: int, length: int) -> bytes:
    if six:
        return SOURCE6 + TARGET6 + struct.pack("!IHBB", length, 0, 0, protocol)
    return SOURCE4 + TARGET4 + struct.pack("!BBH", 0, protocol, length)


def ip_header(six: bool, protocol: int, length: int, identity: int) -> bytes:
    """`length` of what follows."""
    if six:
        return struct.pack("!IHBB", 0x60012345, length, protocol, 64) + SOURCE6 + TARGET6
    header = struct.pack("!BBHHHBBH", 0x45, 2, 20 + length, identity, 0x4000, 64, protocol, 0)
    header += SOURCE4 + TARGET4
    return header[:10] + struct.pack("!H", ~ones_complement_sum(header) & 0xFFFF) + header[12:]


def transport_header(protocol: int, payload: int, sequence: int, flags: int, check: int) -> bytes:
    if protocol == UDP:
        return struct.pack("!HHHH", 5001, 5002, 8 + payload, check)
    return struct.pack("!HHIIBBHHH", 5001, 5002, sequence, 77, 0x80, flags, 501, check, 0) + TCP_OPTIONS


def packet(
    six: bool,
    protocol: int,
    payload: bytes,
    *,
    identity: int = 0,
    sequence: int = 0,
    flags: int = ACK,
    gso: tuple[int, int] = (0, 0),
) -> bytes:
    """A frame as the kernel hands it out: gso is (type, size), the checksum partial."""
    head = 8 if protocol == UDP else 32
    partial = ones_complement_sum(pseudo_header(six, protocol, head + len(payload)))
    start = 14 + (40 if six else 20)
    vnet = struct.pack("=BBHHHH", 1, gso[0], start + head, gso[1], start, 6 if protocol == UDP else 16)
    return (
        vnet
        + (ETHERNET6 if six else ETHERNET4)
        + ip_header(six, protocol, head + len(payload), identity)
        + transport_header(protocol, len(payload), sequence, flags, partial)
        + payload
    )


def gso_type(six: bool, protocol: int) -> int:
    return 5 if protocol == UDP else 4 if six else 1


every_kind = pytest.mark.parametrize(
    ("six", "protocol"), [(False, TCP), (True, TCP), (False, UDP), (True, UDP)], ids=["tcp4", "tcp6", "udp4", "udp6"]
)


@every_kind
def test_the_shape_counts_segments_and_their_wire_bytes(six: bool, protocol: int) -> None:
    head = 14 + (40 if six else 20) + (8 if protocol == UDP else 32)
    frame = packet(six, protocol, bytes(2500), gso=(gso_type(six, protocol), 1000))
    assert shape(frame) == (3, head + 1000, head + 500)
    exact = packet(six, protocol, bytes(2000), gso=(gso_type(six, protocol), 1000))
    assert shape(exact) == (2, head + 1000, head + 1000)


def test_an_ordinary_packet_is_one_segment() -> None:
    frame = packet(False, TCP, bytes(100))
    assert shape(frame) == (1, 14 + 20 + 32 + 100, 14 + 20 + 32 + 100)
    assert cut(frame, 0, 1) is frame


@every_kind
@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (3, 1)])
def test_a_piece_is_what_the_kernel_would_have_made_of_it(six: bool, protocol: int, first: int, count: int) -> None:
    payload = (bytes(range(256)) * 14)[:3456]
    kind = gso_type(six, protocol)
    whole = packet(
        six, protocol, payload, identity=0xFFFE, sequence=0xFFFFFF00, flags=ACK | PSH | FIN | CWR, gso=(kind, 1000)
    )
    flags = ACK
    if first == 0:
        flags |= CWR
    if first + count == 4:
        flags |= PSH | FIN
    wanted = packet(
        six,
        protocol,
        payload[first * 1000 : (first + count) * 1000],
        identity=(0xFFFE + first) & 0xFFFF,
        sequence=(0xFFFFFF00 + first * 1000) & 0xFFFFFFFF,
        flags=flags,
        gso=(kind, 1000) if count > 1 else (0, 0),
    )
    assert cut(whole, first, count) == wanted


@every_kind
def test_the_partial_checksum_completes_to_the_full_one(six: bool, protocol: int) -> None:
    payload = bytes(range(251)) * 9
    piece = cut(packet(six, protocol, payload, gso=(gso_type(six, protocol), 700)), 1, 2)
    start, offset = struct.unpack_from("=HH", piece, 6)
    transport = piece[10 + start :]
    completed = ~ones_complement_sum(transport) & 0xFFFF
    transport = transport[:offset] + struct.pack("!H", completed) + transport[offset + 2 :]
    assert ones_complement_sum(pseudo_header(six, protocol, len(transport)) + transport) == 0xFFFF


def test_the_ecn_mark_of_the_super_packet_stays_with_pieces_of_more_than_one_segment() -> None:
    frame = packet(False, TCP, bytes(3000), gso=(1 | 0x80, 1000))
    assert cut(frame, 0, 2)[1] == 1 | 0x80
    assert cut(frame, 0, 1)[1] == 0


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0), (0, 4), (3, 1)])
def test_segments_that_are_not_there_are_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError, match="super-packet of 3"):
        cut(packet(False, TCP, bytes(3000), gso=(1, 1000)), first, count)


@given(
    payload=st.binary(min_size=1, max_size=4000),
    size=st.integers(1, 1448),
    protocol=st.sampled_from([TCP, UDP]),
    six=st.booleans(),
    data=st.data(),
)
def test_pieces_put_together_are_the_payload(
    payload: bytes, size: int, protocol: int, six: bool, data: st.DataObject
) -> None:
    frame = packet(six, protocol, payload, gso=(gso_type(six, protocol), size))
    segments, _, _ = shape(frame)
    split = data.draw(st.integers(0, segments))
    head = 10 + 14 + (40 if six else 20) + (8 if protocol == UDP else 32)
    halves = (0, split), (split, segments - split)
    assert b"".join(cut(frame, first, count)[head:] for first, count in halves if count) == payload
