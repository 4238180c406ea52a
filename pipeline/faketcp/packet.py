"""A TCP packet as a packet socket gives it, behind a virtio-net header and the link header of its device.

read() looks at lengths alone; the numbers are for the flow to judge. The bytes come in two parts: a head that has all
headers as a rule, and the rest, so that a payload can stand at the beginning of its buffer.

A packet may be a super-packet: segments that the kernel has merged (GRO). Then all but the last are `segment_bytes`
long. The kernel stops merging behind a segment with PSH, which is the last of each super-packet that was sent. Padding
behind the IP packet is no part of it. IP options, extension headers and fragments do not occur: the filter of the
socket lets none through.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.packet.ip import V4_HEADER_BYTES, V6_HEADER_BYTES
from pipeline.packet.vnet import NEEDS_CSUM, VNET, VNET_HEADER_BYTES

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20  # RFC 9293, 3.1
TCP_HEADER_BYTES = 20
STAMPED_BYTES = 32
"""Of a TCP header with timestamps, as Linux lays it out: two no-operations in front of them."""

STAMPS = b"\x01\x01\x08\x0a"
DATA_VALID = 2  # VIRTIO_NET_HDR_F_DATA_VALID: the kernel or the device has verified the checksum

_U16 = struct.Struct(">H")
_TCP = struct.Struct(">IIBBH")  # behind the ports
_STAMPS = struct.Struct(">II")
_vnet_at = VNET.unpack_from
_u16_at = _U16.unpack_from


class Arrived(NamedTuple):
    """`key`: source, destination, and their ports, as in the packet. The payload is [begin:end] of head and rest."""

    key: bytes
    sequence: int
    acknowledged: int
    flags: int
    window: int  # not scaled
    stamp: int  # the sender's clock; -1: it has no timestamps
    begin: int
    end: int
    segment_bytes: int
    is_damaged: bool


def read(view: memoryview, rest: memoryview, link_bytes: int) -> Arrived | None:
    """The TCP packet in view and rest; None if its lengths contradict each other, or if `view` ends within headers."""
    ip = VNET_HEADER_BYTES + link_bytes
    head, size = len(view), len(view) + len(rest)
    if head < ip + V4_HEADER_BYTES + TCP_HEADER_BYTES:
        return None
    if view[ip] == 0x45:
        tcp, addresses, end = ip + V4_HEADER_BYTES, ip + 12, ip + _u16_at(view, ip + 2)[0]
    else:
        tcp, addresses = ip + V6_HEADER_BYTES, ip + 8
        end = tcp + _u16_at(view, ip + 4)[0]
    if tcp + TCP_HEADER_BYTES > min(end, head):
        return None
    sequence, acknowledged, offset, flags, window = _TCP.unpack_from(view, tcp + 4)
    header = (offset >> 4) * 4
    begin = tcp + header
    if header < TCP_HEADER_BYTES or begin > min(end, head) or end > size:
        return None
    stamp = -1
    if header == STAMPED_BYTES and view[tcp + TCP_HEADER_BYTES : tcp + TCP_HEADER_BYTES + 4] == STAMPS:
        stamp = _STAMPS.unpack_from(view, tcp + TCP_HEADER_BYTES + 4)[0]
    check, gso_type, _, segment_bytes, _, _ = _vnet_at(view)
    if gso_type == 0 or not 0 < segment_bytes < end - begin:
        segment_bytes = end - begin
    is_damaged = (
        not gso_type and not check & (NEEDS_CSUM | DATA_VALID) and not _sums_up(view, rest, addresses, tcp, end)
    )
    key = bytes(view[addresses : tcp + 4])
    return Arrived(key, sequence, acknowledged, flags, window, stamp, begin, end, segment_bytes, is_damaged)


def _sums_up(view: memoryview, rest: memoryview, addresses: int, tcp: int, end: int) -> bool:
    """Whether the checksum holds that neither the kernel nor the device has verified (RFC 1071)."""
    length = end - tcp
    content = bytes(view[tcp:end]) + bytes(rest[: max(0, end - len(view))]) + bytes(length & 1)
    pseudo = int.from_bytes(view[addresses:tcp], "big") + 6 + length
    return (int.from_bytes(content, "big") + pseudo) % 0xFFFF == 0
