"""IP packets: are they sound, and which addresses do they have?

The kernel does not check packets that are written to TUN (it takes a one-byte packet), so packets of a peer are checked
here: IP version, lengths, and a virtio-net header that stays inside the packet. The result of a check is a Drop: the id
of the counter for the drop, or None for a sound packet.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from pipeline.counters import ID
from pipeline.packet.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET, VNET_HEADER_BYTES

Drop: TypeAlias = int | None

V4_HEADER_BYTES, V6_HEADER_BYTES = 20, 40
IPPROTO_TCP, IPPROTO_UDP = 6, 17  # linux/in.h

PACKET_MALFORMED = ID["tun.dropped_packet_malformed"]
HEADER_MALFORMED = ID["tun.dropped_header_malformed"]

_GSO_VERSIONS: dict[int, tuple[int, ...]] = {GSO_TCPV4: (4,), GSO_TCPV6: (6,), GSO_UDP_L4: (4, 6)}

_IP = VNET_HEADER_BYTES
_V4 = struct.Struct(">BBH")
_V6_PAYLOAD = struct.Struct(">4xH")
_vnet_at = VNET.unpack_from


def check_bare(view: memoryview, at: int, length: int) -> Drop:
    """Check the IP packet in view[at : at + length]."""
    if length < V4_HEADER_BYTES:
        return PACKET_MALFORMED
    first, _, total = _V4.unpack_from(view, at)
    version = first >> 4
    if version == 4:
        sound = total == length and V4_HEADER_BYTES <= (first & 15) * 4 <= length
    elif version == 6 and length >= V6_HEADER_BYTES:
        sound = _V6_PAYLOAD.unpack_from(view, at)[0] + V6_HEADER_BYTES == length
    else:
        sound = False
    return None if sound else PACKET_MALFORMED


def check(view: memoryview, at: int, length: int) -> Drop:
    """Check the virtio-net header and the IP packet in view[at : at + length]."""
    size = length - VNET_HEADER_BYTES
    if size < V4_HEADER_BYTES:
        return PACKET_MALFORMED
    flags, gso_type, header, segment, start, offset = _vnet_at(view, at)
    at += VNET_HEADER_BYTES
    if gso_type:
        kind = gso_type & ~GSO_ECN
        if kind and (view[at] >> 4 not in _GSO_VERSIONS.get(kind, ()) or not segment or header > size):
            return HEADER_MALFORMED
    if flags & NEEDS_CSUM:
        first = V6_HEADER_BYTES if view[at] >> 4 == 6 else (view[at] & 15) * 4
        if start < first or start + offset + 2 > size:  # a checksum in the IP header would change checked fields
            return HEADER_MALFORMED
    return check_bare(view, at, size)


def source(view: memoryview, at: int) -> bytes:
    """Source address of a sound packet at view[at], virtio-net header included."""
    if view[at + _IP] < 0x50:
        return bytes(view[at + _IP + 12 : at + _IP + 16])
    return bytes(view[at + _IP + 8 : at + _IP + 24])


def destination(view: memoryview, at: int) -> bytes:
    """Destination address of a packet that is sound, or that the kernel has made."""
    if view[at + _IP] < 0x50:
        return bytes(view[at + _IP + 16 : at + _IP + 20])
    return bytes(view[at + _IP + 24 : at + _IP + 40])


def is_multicast(address: bytes) -> bool:
    """Multicast, limited broadcast and reserved addresses: 224.0.0.0/3 (RFC 1112), ff00::/8 (RFC 4291)."""
    return address[0] >= 224 if len(address) == 4 else address[0] == 0xFF


def is_of_the_link(address: bytes) -> bool:
    """Multicast, or link-local: 169.254.0.0/16 (RFC 3927), fe80::/10 (RFC 4291)."""
    if len(address) == 4:
        return address[0] >= 224 or address[:2] == b"\xa9\xfe"
    return address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
