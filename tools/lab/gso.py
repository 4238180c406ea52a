"""Cut a super-packet into the super-packets that its segments before and after a loss would make.

Pure. A frame is as a TAP device with IFF_VNET_HDR gives it: a 10-byte virtio-net header, then Ethernet, IPv4 or IPv6,
TCP or UDP. The payload of all segments follows. The kernel made the frame, so its fields are trusted. The constants are
those of the pipeline; the cutting is not, so that the lab can prove the pipeline's segmentation wrong.

    offset  virtio-net header field (linux/virtio_net.h)
    0       flags         1: the checksum is partial, its field holds the folded pseudo-header sum
    1       gso_type      0 none, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP; 0x80 is added for ECN
    2       hdr_len       bytes before the payload (a hint)
    4       gso_size      payload bytes of one segment
    6       csum_start    offset of the TCP or UDP header from the Ethernet header
    8       csum_offset   offset of the checksum field in it

A piece gets the fields that the kernel's own segmentation would give it: lengths, the IPv4 id counted up, its checksum,
the TCP sequence number. Its partial checksum fits the new length. FIN and PSH are on the last piece only, CWR is on the
first only. A piece of one segment is an ordinary packet.
"""

from __future__ import annotations

import struct

from pipeline.packet.gso import TCP_CWR, TCP_FIN, TCP_PSH, UDP_HEADER_BYTES
from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP, V6_HEADER_BYTES
from pipeline.packet.vnet import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET, VNET_HEADER_BYTES

ETHERNET_BYTES = 14  # ETH_HLEN, linux/if_ether.h


def shape(frame: bytes) -> tuple[int, int, int]:
    """(segments, bytes of each but the last, bytes of the last), Ethernet header included in each."""
    kind = frame[1] & ~GSO_ECN
    if kind not in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4):
        size = len(frame) - VNET_HEADER_BYTES
        return 1, size, size
    gso_size = VNET.unpack_from(frame)[3]
    head = _header_bytes(frame)
    payload = len(frame) - VNET_HEADER_BYTES - head
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
    begin = VNET_HEADER_BYTES + head
    piece = bytearray(frame[:begin])
    piece += frame[begin + first * whole_gso_size : begin + (first + count) * whole_gso_size]
    gso_size = whole_gso_size
    if count == 1:
        kind, gso_size = GSO_NONE, 0
    VNET.pack_into(piece, 0, flags, kind, head, gso_size, start, offset)
    packet = memoryview(piece)[VNET_HEADER_BYTES:]
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
        return start + UDP_HEADER_BYTES
    return start + (frame[VNET_HEADER_BYTES + start + 12] >> 4) * 4


def _fix_ip(ip: memoryview, header_bytes: int, first: int) -> int:
    """Set length, id and header checksum; return the unfolded sum of the addresses."""
    if ip[0] >> 4 == 6:
        struct.pack_into("!H", ip, 4, len(ip) - V6_HEADER_BYTES)
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
