"""The answer to a packet that is refused: ICMP "administratively prohibited", or a reset within a connection. Pure.

    refusal(packet, at, end, own)    an answer without a virtio-net header; b"" where there must be none

`own` is the address that it comes from. A SYN and all that is not TCP gets ICMP: a program that connects sees at once
that it may not. Other TCP is of a connection that was allowed before: its reset ends it. No ICMP error is answered, nor
a later fragment, nor a packet to a multicast address (RFC 1122, 3.2.2; RFC 4443, 2.4).
"""

from __future__ import annotations

import struct

from pipeline.packet.flow import (
    ACK,
    ERROR,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    LATER,
    RST,
    SYN,
    Flow,
)
from pipeline.packet.ip import IPPROTO_TCP, V4_HEADER_BYTES, is_multicast

V4_QUOTED, V6_QUOTED = 548, 1232  # bytes of the packet: RFC 1812, 4.3.2.3; RFC 4443, 2.4
HOPS = 64
TCP_HEADER_BYTES = 20
_UNREACHABLE = struct.Struct(">BBHI")
_V4_PROHIBITED = 3, 13  # type and code: RFC 1812, 5.2.7.1
_V6_PROHIBITED = 1, 1  # RFC 4443, 3.1
_TCP = struct.Struct(">HHIIBBHHH")


def refusal(packet: bytes | memoryview, at: int, end: int, flow: Flow, own: bytes) -> bytes:
    """`flow`: of the packet in packet[at : end]; `own`: an address of the same version, b"" for none."""
    if flow.part in (ERROR, LATER) or is_multicast(flow.destination):
        return b""
    if flow.protocol == IPPROTO_TCP and not flow.flags & SYN:
        return _reset(packet, flow, end)
    if not own:
        return b""
    if len(own) == 4:
        return _v4(own, flow.source, IPPROTO_ICMP, _icmp(_V4_PROHIBITED, bytes(packet[at : min(end, at + V4_QUOTED)])))
    quoted = bytes(packet[at : min(end, at + V6_QUOTED)])
    body = _icmp(_V6_PROHIBITED, quoted, _pseudo(own, flow.source, IPPROTO_ICMPV6, _UNREACHABLE.size + len(quoted)))
    return _v6(own, flow.source, IPPROTO_ICMPV6, body)


def _reset(packet: bytes | memoryview, flow: Flow, end: int) -> bytes:
    """A reset from the other end of the connection, with the number that this end waits for."""
    at = flow.payload_at
    if flow.flags & RST or not flow.flags & ACK or end - at < TCP_HEADER_BYTES:
        return b""
    number = int.from_bytes(packet[at + 8 : at + 12], "big")
    fields = (flow.port, flow.source_port, number, 0, TCP_HEADER_BYTES // 4 << 4, RST, 0)
    pseudo = _pseudo(flow.destination, flow.source, IPPROTO_TCP, TCP_HEADER_BYTES)
    header = _TCP.pack(*fields, checksum(pseudo + _TCP.pack(*fields, 0, 0)), 0)
    build = _v4 if len(flow.source) == 4 else _v6
    return build(flow.destination, flow.source, IPPROTO_TCP, header)


def _icmp(kind: tuple[int, int], quoted: bytes, pseudo: bytes = b"") -> bytes:
    return _UNREACHABLE.pack(*kind, checksum(pseudo + _UNREACHABLE.pack(*kind, 0, 0) + quoted), 0) + quoted


def _pseudo(source: bytes, destination: bytes, protocol: int, size: int) -> bytes:
    """RFC 9293, 3.1; RFC 8200, 8.1."""
    return source + destination + struct.pack(">II", size, protocol)


def _v4(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    def header(check: int) -> bytes:
        size = V4_HEADER_BYTES + len(body)
        return struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0, HOPS, protocol, check) + source + destination

    return header(checksum(header(0))) + body


def _v6(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(body), protocol, HOPS) + source + destination + body


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) & 1)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
