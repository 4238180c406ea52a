"""Segmentation and checksums that a kernel has left to the device, for a peer whose device does not do them.

    finish(packet)    the finished packets that a packet stands for, each with an empty virtio-net header

Checksums are completed. Super-packets are cut into segments as the kernel does it (net/ipv4/tcp_offload.c,
udp_offload.c). Each segment gets its lengths, an IPv4 id counted up, and its TCP sequence number. FIN and PSH are on
the last segment alone, CWR on the first alone. The kernel has made the packet, or `ip.check` has found it sound;
nothing else about it is trusted. A packet that cannot be cut, or only into more than SEGMENTS_MAX segments, gives none.
"""

from __future__ import annotations

import struct

from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP, V6_HEADER_BYTES
from pipeline.packet.vnet import GSO_ECN, GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, NO_VNET, VNET, VNET_HEADER_BYTES

SEGMENTS_MAX = 128
"""Segments of a super-packet: 64 KiB in segments of 512 bytes; IPv4 must carry 576 at least."""

TCP_FIN, TCP_PSH, TCP_CWR = 0x01, 0x08, 0x80  # RFC 9293, RFC 3168
TCP_HEADER_BYTES, UDP_HEADER_BYTES = 20, 8

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


def finish(packet: bytes) -> list[bytes]:
    """The finished packets; none if `packet` cannot be cut. `packet` begins with its virtio-net header."""
    flags, gso_type, _, size, start, offset = VNET.unpack_from(packet)
    kind = gso_type & ~GSO_ECN
    ip = packet[VNET_HEADER_BYTES:]
    if kind == GSO_NONE:
        if not flags & NEEDS_CSUM:
            return [NO_VNET + ip]
        completed = bytearray(ip)
        _U16.pack_into(
            completed, start + offset, _checksum(completed[start:])
        )  # the field holds the pseudo-header's sum
        return [NO_VNET + completed]
    return _cut(ip, start, size, kind == GSO_UDP_L4)


def _cut(ip: bytes, start: int, size: int, udp: bool) -> list[bytes]:
    least = UDP_HEADER_BYTES if udp else TCP_HEADER_BYTES
    header = V6_HEADER_BYTES if ip[0] >> 4 == 6 else (ip[0] & 15) * 4
    if not header <= start <= len(ip) - least:
        return []
    head = start + (UDP_HEADER_BYTES if udp else (ip[start + 12] >> 4) * 4)
    payload = ip[head:]
    count = -(-len(payload) // size)
    if head < start + least or not 0 < count <= SEGMENTS_MAX:
        return []
    return [
        NO_VNET
        + _segment(ip[:head], payload[i * size : (i + 1) * size], start, header, i, i * size, i == count - 1, udp)
        for i in range(count)
    ]


def _segment(
    head: bytes, payload: bytes, start: int, header: int, index: int, before: int, last: bool, udp: bool
) -> bytearray:
    packet = bytearray(head + payload)
    length = len(packet)
    if packet[0] >> 4 == 6:
        _U16.pack_into(packet, 4, length - V6_HEADER_BYTES)
        addresses = _sum(packet[8:40])
    else:
        _U16.pack_into(packet, 2, length)
        _U16.pack_into(packet, 4, _U16.unpack_from(packet, 4)[0] + index & 0xFFFF)
        _U16.pack_into(packet, 10, 0)
        _U16.pack_into(packet, 10, _checksum(packet[:header]))
        addresses = _sum(packet[12:20])
    if udp:
        _U16.pack_into(packet, start + 4, length - start)
        field, protocol = start + 6, IPPROTO_UDP
    else:
        _U32.pack_into(packet, start + 4, _U32.unpack_from(packet, start + 4)[0] + before & 0xFFFFFFFF)
        if not last:
            packet[start + 13] &= ~(TCP_FIN | TCP_PSH) & 0xFF
        if index:
            packet[start + 13] &= ~TCP_CWR & 0xFF
        field, protocol = start + 16, IPPROTO_TCP
    _U16.pack_into(packet, field, (addresses + protocol + length - start) % 0xFFFF)
    _U16.pack_into(packet, field, _checksum(packet[start:]))
    return packet


def _sum(data: bytes | bytearray) -> int:
    """The ones' complement sum (RFC 1071) as a number modulo 65535, where 2^16 is 1: so a long number is the sum of its
    words."""
    return int.from_bytes(data + b"\0" if len(data) & 1 else data, "big") % 0xFFFF


def _checksum(data: bytes | bytearray) -> int:
    """The checksum of data that are not all zero. A UDP checksum of 0 would mean none, so 0 is written as 0xffff."""
    return 0xFFFF - _sum(data) or 0xFFFF
