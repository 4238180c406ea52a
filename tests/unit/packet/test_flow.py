"""Flows: of which a packet is, whatever its headers are."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.flow import (
    ANSWERS,
    BEGINS,
    ERROR,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    LATER,
    flow_of_packet,
    told_of,
)
from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP

A4, B4 = ip_address("10.0.0.2").packed, ip_address("10.0.0.3").packed
A6, B6 = ip_address("fd00::2").packed, ip_address("fd00::3").packed
UDP_HEADER = struct.pack(">HHHH", 5000, 53, 8, 0)


def v4(
    protocol: int, body: bytes, place: int = 0, ident: int = 7, options: bytes = b"", ends: bytes = A4 + B4
) -> bytes:
    size = 20 + len(options) + len(body)
    head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, 0, size, ident, place, 64, protocol, 0)
    return head + ends + options + body


def v6(following: int, body: bytes, ends: bytes = A6 + B6) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(body), following, 64) + ends + body


@pytest.mark.parametrize("packet", [v4(IPPROTO_UDP, UDP_HEADER), v6(IPPROTO_UDP, UDP_HEADER)], ids=["ipv4", "ipv6"])
def test_ports_are_those_of_udp(packet: bytes) -> None:
    flow = flow_of_packet(packet)
    assert (flow.protocol, flow.source_port, flow.port, flow.part, flow.ident) == (IPPROTO_UDP, 5000, 53, BEGINS, -1)


def test_an_answer_has_the_key_of_what_it_answers() -> None:
    there = flow_of_packet(v4(IPPROTO_UDP, UDP_HEADER))
    back = flow_of_packet(v4(IPPROTO_UDP, struct.pack(">HHHH", 53, 5000, 8, 0), ends=B4 + A4))
    assert back.key_back == there.key and back.key == there.key_back and there.key != there.key_back


def test_flags_are_those_of_tcp() -> None:
    header = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x12, 5, 0, 0)
    assert flow_of_packet(v4(IPPROTO_TCP, header)).flags == 0x12


def test_options_of_ipv4_and_extensions_of_ipv6_are_passed_over() -> None:
    extended = bytes([60, 0]) + bytes(6) + bytes([43, 1]) + bytes(14) + bytes([IPPROTO_UDP, 0]) + bytes(6)
    for packet in (v4(IPPROTO_UDP, UDP_HEADER, options=bytes(8)), v6(0, extended + UDP_HEADER)):
        flow = flow_of_packet(packet)
        assert (flow.protocol, flow.port) == (IPPROTO_UDP, 53)


def test_a_row_of_extensions_without_end_hides_no_port() -> None:
    """Its protocol is an extension's then, which no rule of TCP or UDP names."""
    flow = flow_of_packet(v6(60, (bytes([60, 0]) + bytes(6)) * 20 + UDP_HEADER))
    assert (flow.protocol, flow.port) == (60, 0)


@pytest.mark.parametrize("first", [True, False])
def test_fragments_have_an_identification_and_later_ones_no_ports(first: bool) -> None:
    six = bytes([IPPROTO_UDP, 0]) + struct.pack(">HI", 1 if first else 8 << 3 | 1, 99) + UDP_HEADER
    for packet, ident in ((v4(IPPROTO_UDP, UDP_HEADER, 0x2000 if first else 185, 99), 99), (v6(44, six), 99)):
        flow = flow_of_packet(packet)
        assert flow.ident == ident and flow.protocol == IPPROTO_UDP
        assert (flow.part, flow.port) == ((BEGINS, 53) if first else (LATER, 0))


@pytest.mark.parametrize(("protocol", "request_type", "reply_type"), [(IPPROTO_ICMP, 8, 0), (IPPROTO_ICMPV6, 128, 129)])
def test_an_echo_is_a_flow_with_its_identifier(protocol: int, request_type: int, reply_type: int) -> None:
    build, here, there = (v4, A4, B4) if protocol == IPPROTO_ICMP else (v6, A6, B6)
    asked = flow_of_packet(build(protocol, struct.pack(">BBHHH", request_type, 0, 0, 4242, 1), ends=here + there))
    answer = flow_of_packet(build(protocol, struct.pack(">BBHHH", reply_type, 0, 0, 4242, 1), ends=there + here))
    assert (asked.part, answer.part) == (BEGINS, ANSWERS) and answer.key_back == asked.key
    assert asked.is_first and not answer.is_first, "a request of the other end with this identifier is no answer"


def test_an_error_tells_of_the_packet_that_it_carries() -> None:
    lost = v4(IPPROTO_UDP, UDP_HEADER)
    error = v4(IPPROTO_ICMP, struct.pack(">BBHI", 3, 4, 0, 1300) + lost, ends=B4 + A4)
    flow = flow_of_packet(error)
    assert flow.part == ERROR and told_of(error, flow).key == flow_of_packet(lost).key
    cut = error[:30]
    assert told_of(cut, flow_of_packet(cut)) is None


def test_nothing_behind_the_end_is_read() -> None:
    packet = v4(IPPROTO_UDP, UDP_HEADER)
    assert flow_of_packet(packet, 0, 22).port == 0
    assert flow_of_packet(packet, 0, 19) is None


@given(st.binary(max_size=120))
def test_any_bytes_have_a_flow_or_none(data: bytes) -> None:
    flow = flow_of_packet(data)
    if flow is not None and flow.part == ERROR:
        told_of(data, flow)
