"""Cut a super-packet into the super-packets that its segments before and after a loss would make.

Pure. A frame is what a TAP device with IFF_VNET_HDR gives: a 10-byte virtio-net header, then Ethernet,
IPv4 or IPv6, TCP or UDP, and the payload of all segments. The kernel made it, so it is believed.

    offset  virtio-net header field (linux/virtio_net.h, native byte order)
    0       flags         1: the checksum is partial, its field holds the folded pseudo-header sum
    1       gso_type      0 none, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP; 0x80 is added for ECN
    2       hdr_len       bytes before the payload (a hint)
    4       gso_size      payload bytes of one segment
    6       csum_start    offset of the TCP or UDP header from the Ethernet header
    8       csum_offset   offset of the checksum field in it

A piece gets what the kernel's own segmentation would give it: lengths, the IPv4 id counted up and its
checksum, the TCP sequence number, FIN and PSH on the last piece only, CWR on the first only, and a partial
checksum that fits the new length. A piece of one segment is an ordinary packet.
"""

from __future__ import annotations

import struct

VNET_BYTES = 10
VNET = struct.Struct("=BBHHHH")  # struct virtio_net_hdr, linux/virtio_net.h
NEEDS_CSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80  # VIRTIO_NET_HDR_GSO_*

ETHERNET_BYTES = 14
IPV6_BYTES = 40
UDP_BYTES = 8
IPPROTO_TCP, IPPROTO_UDP = 6, 17
TCP_FIN, TCP_PSH, TCP_CWR = 0x01, 0x08, 0x80


def shape(frame: bytes) -> tuple[int, int, int]:
    """(segments, bytes of each but the last, bytes of the last), Ethernet header included in each."""
    kind = frame[1] & ~GSO_ECN
    if kind not in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4):
        size = len(frame) - VNET_BYTES
        return 1, size, size
    gso_size = VNET.unpack_from(frame)[3]
    head = _header_bytes(frame)
    payload = len(frame) - VNET_BYTES - head
    segments = max(1, -(-payload // gso_size))
    last = payload - (segments - 1) * gso_size
    return segments, head + min(gso_size, payload), head + last


def cut(frame: bytes, first: int, count: int) -> bytes:
    """The frame that carries segments first .. first + count - 1 of `frame`."""
    segments, _, _ = shape(frame)
    if first == 0 and count == segments:
        return frame
    if not (first >= 0 and count > 0 and first + count <= segments):
        raise ValueError(f"segments {first}..{first + count - 1} asked of a super-packet of {segments}")
    flags, kind, _, whole_gso_size, start, offset = VNET.unpack_from(frame)
    head = _header_bytes(frame)
    begin = VNET_BYTES + head
    piece = bytearray(frame[:begin])
    piece += frame[begin + first * whole_gso_size : begin + (first + count) * whole_gso_size]
    gso_size = whole_gso_size
    if count == 1:
        kind, gso_size = GSO_NONE, 0
    VNET.pack_into(piece, 0, flags, kind, head, gso_size, start, offset)
    packet = memoryview(piece)[VNET_BYTES:]
    addresses = _fix_ip(packet[ETHERNET_BYTES:], start - ETHERNET_BYTES, first)
    if frame[1] & ~GSO_ECN == GSO_UDP_L4:
        protocol = IPPROTO_UDP
        struct.pack_into("!H", packet, start + 4, len(packet) - start)
    else:
        protocol = IPPROTO_TCP
        _fix_tcp(packet[start:], first * whole_gso_size, first == 0, first + count == segments)
    struct.pack_into("!H", packet, start + offset, _fold(addresses + protocol + len(packet) - start))
    return bytes(piece)


def _header_bytes(frame: bytes) -> int:
    """Bytes of Ethernet, IP and TCP or UDP header."""
    start = VNET.unpack_from(frame)[4]
    if frame[1] & ~GSO_ECN == GSO_UDP_L4:
        return start + UDP_BYTES
    return start + (frame[VNET_BYTES + start + 12] >> 4) * 4


def _fix_ip(ip: memoryview, header_bytes: int, first: int) -> int:
    """Set length, id and header checksum; return the unfolded sum of the addresses."""
    if ip[0] >> 4 == 6:
        struct.pack_into("!H", ip, 4, len(ip) - IPV6_BYTES)
        return _sum(ip[8:40])
    identity = struct.unpack_from("!H", ip, 4)[0]
    struct.pack_into("!HH", ip, 2, len(ip), (identity + first) & 0xFFFF)
    struct.pack_into("!H", ip, 10, 0)
    struct.pack_into("!H", ip, 10, ~_fold(_sum(ip[:header_bytes])) & 0xFFFF)
    return _sum(ip[12:20])


def _fix_tcp(tcp: memoryview, payload_before: int, is_first: bool, is_last: bool) -> None:
    sequence = struct.unpack_from("!I", tcp, 4)[0]
    struct.pack_into("!I", tcp, 4, (sequence + payload_before) & 0xFFFFFFFF)
    if not is_last:
        tcp[13] &= ~(TCP_FIN | TCP_PSH) & 0xFF
    if not is_first:
        tcp[13] &= ~TCP_CWR & 0xFF


def _sum(data: memoryview) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
