"""Answers to refused packets: what the kernel of the sender makes of them is tried in tests/netns/test_reach.py."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from pipeline.packet.flow import RST, flow_of_packet, told_of
from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP
from pipeline.packet.refusal import checksum, refusal
from tests.unit.packet.test_flow import A4, A6, B4, B6, UDP_HEADER, v4, v6

OWN = {4: ip_address("10.0.0.1").packed, 16: ip_address("fd00::1").packed}
SYN, ACK = 0x02, 0x10


def tcp(flags: int, acknowledged: int = 0) -> bytes:
    return struct.pack(">HHIIBBHHH", 40000, 443, 5, acknowledged, 0x50, flags, 500, 0, 0)


def answer(packet: bytes) -> bytes:
    return refusal(packet, 0, len(packet), flow_of_packet(packet), OWN[len(flow_of_packet(packet).source)])


def is_sound(packet: bytes) -> bool:
    """The checksums of IP and of what is in it."""
    if packet[0] >> 4 == 4:
        ends, protocol, body = packet[12:20], packet[9], packet[20:]
        if checksum(packet[:20]):
            return False
        if protocol == 1:
            return checksum(body) == 0
    else:
        ends, protocol, body = packet[8:40], packet[6], packet[40:]
    return checksum(ends + struct.pack(">II", len(body), protocol) + body) == 0


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (v4(IPPROTO_UDP, UDP_HEADER), (3, 13)),
        (v4(IPPROTO_TCP, tcp(SYN)), (3, 13)),
        (v6(IPPROTO_UDP, UDP_HEADER), (1, 1)),
        (v6(IPPROTO_TCP, tcp(SYN)), (1, 1)),
        (v4(IPPROTO_UDP, UDP_HEADER + bytes(2001)), (3, 13)),
        (v6(IPPROTO_UDP, UDP_HEADER + bytes(2001)), (1, 1)),
    ],
)
def test_what_begins_a_flow_is_answered_with_prohibited(packet: bytes, kind: tuple[int, int]) -> None:
    found = answer(packet)
    flow, refused = flow_of_packet(found), flow_of_packet(packet)
    header = 20 if found[0] >> 4 == 4 else 40
    assert tuple(found[header : header + 2]) == kind and is_sound(found)
    assert (flow.source, flow.destination) == (OWN[len(refused.source)], refused.source)
    assert told_of(found, flow).key == refused.key
    assert len(found) <= 1280


@pytest.mark.parametrize(("build", "here", "there"), [(v4, A4, B4), (v6, A6, B6)], ids=["ipv4", "ipv6"])
def test_a_connection_that_is_no_longer_allowed_is_reset(build, here: bytes, there: bytes) -> None:
    found = answer(build(IPPROTO_TCP, tcp(ACK, 0x01020304), ends=here + there))
    flow = flow_of_packet(found)
    assert (flow.source, flow.destination) == (there, here) and is_sound(found)
    assert (flow.source_port, flow.port, flow.flags) == (443, 40000, RST)
    assert found[flow.payload_at + 4 : flow.payload_at + 8] == bytes([1, 2, 3, 4])


@pytest.mark.parametrize(
    "packet",
    [
        v4(IPPROTO_TCP, tcp(RST | ACK)),
        v4(IPPROTO_TCP, tcp(0)),
        v4(IPPROTO_TCP, tcp(ACK)[:14]),
        v4(1, struct.pack(">BBHI", 3, 1, 0, 0) + v4(IPPROTO_UDP, UDP_HEADER)),
        v4(IPPROTO_UDP, UDP_HEADER, place=185),
    ],
    ids=["reset", "no-number", "cut-off", "icmp-error", "later-fragment"],
)
def test_some_packets_are_never_answered(packet: bytes) -> None:
    assert answer(packet) == b""


def test_without_an_address_of_that_version_nothing_is_answered() -> None:
    packet = v6(IPPROTO_UDP, UDP_HEADER)
    assert refusal(packet, 0, len(packet), flow_of_packet(packet), b"") == b""
