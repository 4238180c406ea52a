"""Which flow a packet belongs to, and its part in it. Pure, and total: any bytes behind a sound IP header.

A flow is addresses, protocol and ports. ICMP echo has its identifier in the place of both ports. An ICMP error tells of
a packet of another flow, whose headers it carries. A later fragment has no ports; it goes with the first one, by the
identification. Extension headers of IPv6 are passed over.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP, V4_HEADER_BYTES, V6_HEADER_BYTES

IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP = 1, 58, 132  # linux/in.h, in6.h
WITH_PORTS = (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP)
MORE_FRAGMENTS = 0x2000  # RFC 791, 3.1
OFFSET_MASK = 0x1FFF
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION, MOBILITY = 0, 43, 44, 51, 60, 135  # IANA
EXTENSIONS = (HOP_BY_HOP, ROUTING, DESTINATION, MOBILITY)
EXTENSIONS_MAX = 8

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
ECHO_REQUESTS = {IPPROTO_ICMP: (8, 13, 15, 17), IPPROTO_ICMPV6: (128,)}
ECHO_REPLIES = {IPPROTO_ICMP: (0, 14, 16, 18), IPPROTO_ICMPV6: (129,)}
ERRORS = {IPPROTO_ICMP: (3, 4, 11, 12), IPPROTO_ICMPV6: (1, 2, 3, 4)}
"""Types of ICMP: RFC 792, RFC 950, RFC 4443."""

BEGINS, ANSWERS, ERROR, LATER = range(4)
"""Parts: a packet that may begin its flow; one that only answers; an error; a later fragment."""


class Flow(NamedTuple):
    """`port`: of the destination, 0 where there is none; `ident`: of a fragment, -1 for a whole packet."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    port: int = 0
    part: int = BEGINS
    flags: int = 0  # of TCP
    ident: int = -1
    payload_at: int = 0  # where the header behind IP begins

    @property
    def key(self) -> bytes:
        return key_of(self.source, self.destination, self.protocol, self.source_port, self.port)

    @property
    def is_first(self) -> bool:
        """Whether it begins a flow for certain, and answers none: a SYN, an ICMP request."""
        if self.protocol == IPPROTO_TCP:
            return self.flags & (SYN | ACK) == SYN
        return self.protocol in ECHO_REQUESTS and self.part == BEGINS

    @property
    def key_back(self) -> bytes:
        """The key of the flow that this packet would answer."""
        return key_of(self.destination, self.source, self.protocol, self.port, self.source_port)


def key_of(source: bytes, destination: bytes, protocol: int, source_port: int, port: int) -> bytes:
    return b"%b%b%b" % (source, destination, (protocol << 32 | source_port << 16 | port).to_bytes(5, "big"))


def flow_of_packet(packet: bytes | memoryview, at: int = 0, end: int = -1) -> Flow | None:
    """The flow of the packet in packet[at : end], which may be cut off behind its headers; None for garbage."""
    end = len(packet) if end < 0 else end
    if end - at < V4_HEADER_BYTES:
        return None
    if packet[at] >> 4 == 4:
        return _flow_v4(packet, at, end)
    return _flow_v6(packet, at, end) if packet[at] >> 4 == 6 and end - at >= V6_HEADER_BYTES else None


def _flow_v4(packet: bytes | memoryview, at: int, end: int) -> Flow:
    place = packet[at + 6] << 8 | packet[at + 7]
    ident = packet[at + 4] << 8 | packet[at + 5] if place & (MORE_FRAGMENTS | OFFSET_MASK) else -1
    source, destination = bytes(packet[at + 12 : at + 16]), bytes(packet[at + 16 : at + 20])
    protocol = packet[at + 9]
    if place & OFFSET_MASK:
        return Flow(source, destination, protocol, part=LATER, ident=ident)
    return _behind_ip(packet, at + (packet[at] & 15) * 4, end, Flow(source, destination, protocol, ident=ident))


def _flow_v6(packet: bytes | memoryview, at: int, end: int) -> Flow:
    source, destination = bytes(packet[at + 8 : at + 24]), bytes(packet[at + 24 : at + 40])
    protocol, ident = packet[at + 6], -1
    at += V6_HEADER_BYTES
    for _ in range(EXTENSIONS_MAX):
        if at + 8 > end:
            break
        if protocol in EXTENSIONS:
            protocol, at = packet[at], at + 8 * (packet[at + 1] + 1)
        elif protocol == AUTHENTICATION:
            protocol, at = packet[at], at + 4 * (packet[at + 1] + 2)
        elif protocol == FRAGMENT:
            place = packet[at + 2] << 8 | packet[at + 3]
            ident = int.from_bytes(packet[at + 4 : at + 8], "big")
            protocol, at = packet[at], at + 8
            if place >> 3:
                return Flow(source, destination, protocol, part=LATER, ident=ident)
        else:
            break
    return _behind_ip(packet, at, end, Flow(source, destination, protocol, ident=ident))


def _behind_ip(packet: bytes | memoryview, at: int, end: int, flow: Flow) -> Flow:
    """The flow, with what the header at packet[at] says."""
    source, destination, protocol, *_, ident, _ = flow
    room = end - at
    if protocol in WITH_PORTS and room >= 4:
        source_port, port = packet[at] << 8 | packet[at + 1], packet[at + 2] << 8 | packet[at + 3]
        flags = packet[at + 13] if protocol == IPPROTO_TCP and room >= 14 else 0
        return Flow(source, destination, protocol, source_port, port, BEGINS, flags, ident, at)
    if protocol in ECHO_REQUESTS and room >= 8:
        kind = packet[at]
        if kind in ERRORS[protocol]:
            return Flow(source, destination, protocol, part=ERROR, ident=ident, payload_at=at)
        if kind in ECHO_REQUESTS[protocol] or kind in ECHO_REPLIES[protocol]:
            number = packet[at + 4] << 8 | packet[at + 5]
            part = BEGINS if kind in ECHO_REQUESTS[protocol] else ANSWERS
            return Flow(source, destination, protocol, number, number, part, 0, ident, at)
    return flow._replace(payload_at=at)


def told_of(packet: bytes | memoryview, error: Flow, end: int = -1) -> Flow | None:
    """The flow of the packet that an ICMP error tells of: one that went to where the error comes from."""
    return flow_of_packet(packet, error.payload_at + 8, end)
