"""What a kernel has left to do on a packet, done here: for a peer whose device takes only finished ones.

    finish(packet)    the plain packets, each with an empty virtio-net header, that the given one stands for

Checksums are completed, super-packets are cut into their segments as the kernel's own segmentation would
(net/ipv4/tcp_offload.c, udp_offload.c): lengths, IPv4 id counted up, TCP sequence number, FIN and PSH on the last
segment alone, CWR on the first. `ippacket.check` has found the packet sound; who made it is not trusted beyond that, so
one that cannot be cut, or into more than SEGMENTS_MAX, gives none.
"""

from __future__ import annotations

import struct

from pipeline.packet.ip import V6_HEADER_BYTES
from pipeline.packet.vnet import GSO_ECN, GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, NO_VNET, VNET, VNET_HEADER_BYTES

SEGMENTS_MAX = 128  # 64 KiB in segments of 512 bytes; the least that IPv4 must carry is 576
IPPROTO_TCP, IPPROTO_UDP = 6, 17
TCP_FIN, TCP_PSH, TCP_CWR = 0x01, 0x08, 0x80
TCP_HEADER_BYTES, UDP_HEADER_BYTES = 20, 8

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


def finish(packet: bytes) -> list[bytes]:
    """`packet` begins with its virtio-net header; empty if nothing can be made of it."""
    flags, gso_type, _, size, start, offset = VNET.unpack_from(packet)
    kind = gso_type & ~GSO_ECN
    ip = packet[VNET_HEADER_BYTES:]
    if kind == GSO_NONE:
        if not flags & NEEDS_CSUM:
            return [NO_VNET + ip]
        done = bytearray(ip)
        _U16.pack_into(done, start + offset, _checksum(done[start:]))  # the field holds the pseudo-header's sum
        return [NO_VNET + done]
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
    """The ones' complement sum (RFC 1071) as a number modulo 65535: 2^16 is 1 there, so a long number is its words'
    sum."""
    return int.from_bytes(data + b"\0" if len(data) & 1 else data, "big") % 0xFFFF


def _checksum(data: bytes | bytearray) -> int:
    """Of data that are not all zero. A UDP checksum of 0 would mean none, and stands as its other form, 0xffff."""
    return 0xFFFF - _sum(data) or 0xFFFF
