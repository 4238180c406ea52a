"""UDP packets as TUN hands them out, their checksums left to the device."""

from __future__ import annotations

import struct

from pipeline.packet.vnet import NEEDS_CSUM, VNET

V4_ENDS = bytes([10, 0, 0, 2, 10, 0, 0, 1])
V6_ENDS = b"\xfd" + bytes(14) + b"\2" + b"\xfd" + bytes(14) + b"\1"
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000


def words_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp(
    payload: bytes,
    version: int = 4,
    port: int = 5000,
    identity: int = 0,
    fragment: int = DONT_FRAGMENT,
    traffic_class: int = 0,
    hops: int = 64,
    protocol: int = 17,
    udp_bytes: int | None = None,
    first: int = 0x45,
    flags: int = NEEDS_CSUM,
    gso_type: int = 0,
    label: int = 0,
    ends: bytes = b"",
) -> bytes:
    """A packet whose field of the checksum has the sum of the pseudo-header. `ends`: its addresses."""
    size = 8 + len(payload)
    ends = ends or (V4_ENDS if version == 4 else V6_ENDS)
    pseudo = words_sum(ends + struct.pack(">IxxxB", size, 17))
    transport = struct.pack(">HHHH", 4000, port, size if udp_bytes is None else udp_bytes, pseudo) + payload
    if version == 4:
        head = struct.pack(">BBHHHBBH", first, traffic_class, 20 + size, identity, fragment, hops, protocol, 0) + ends
        head = head[:10] + struct.pack(">H", 0xFFFF - words_sum(head)) + head[12:]
    else:
        head = struct.pack(">IHBB", 6 << 28 | traffic_class << 20 | label, size, protocol, hops) + ends
    return VNET.pack(flags, gso_type, 0, 0, len(head) if flags else 0, 6 if flags else 0) + head + transport
