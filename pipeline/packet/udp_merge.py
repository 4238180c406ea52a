"""UDP packets of one flow and one size, one behind the other, as one super-packet (`UDP_SEGMENT`, udp(7)).

    stretches       a block in stretches: packets that become one super-packet, and packets that stay as they are
    super_packet    the pieces of a super-packet: headers that stand for all, and the payload of each packet

The kernel cuts a super-packet into the same packets again, for each socket that has not asked for super-packets and at
each device that cannot cut it. It makes their checksums, and counts up the ids of IPv4. So packets are merged only if

    their checksum is left to us    (NEEDS_CSUM): a payload that was damaged on its way gets no good one here
    they are never fragmented       ids mean nothing then (RFC 6864)
    their headers are equal         but for the id: also the traffic class with its ECN bits, and the time to live
    they are as long as the first   a shorter last one would do, but kernels have refused it (Linux 6.6.44)

If the first of them is sound (`ip.check`), so are the others.
"""

from __future__ import annotations

import struct

from pipeline.packet.gso import UDP_HEADER_BYTES
from pipeline.packet.ip import IPPROTO_UDP, V4_HEADER_BYTES, V6_HEADER_BYTES
from pipeline.packet.vnet import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, VNET, VNET_HEADER_BYTES

MERGED_LEAST = 4
"""Fewer packets cost less if each is written for itself."""

MERGED_MOST = 64
"""UDP_MAX_SEGMENTS, linux/udp.h; later kernels take 128."""

MISSES_MOST = 4
"""After so many packets that are looked at in vain, the rest of a block stays as it is. A look may cost half as much as
a write."""

IP_BYTES_MAX = 65535

_CHECKSUM_AT = 6  # in struct udphdr
_DONT_FRAGMENT = 0x4000  # IP_DF, net/ip.h
_IP = VNET_HEADER_BYTES
_V4_PROTOCOL, _V4_CHECKSUM, _V6_PROTOCOL = _IP + 9, _IP + 10, _IP + 6
_V4_HEAD = _IP + V4_HEADER_BYTES + UDP_HEADER_BYTES
_V6_HEAD = _IP + V6_HEADER_BYTES + UDP_HEADER_BYTES
_V4_VNET = VNET.pack(NEEDS_CSUM, GSO_NONE, 0, 0, V4_HEADER_BYTES, _CHECKSUM_AT)
_V6_VNET = VNET.pack(NEEDS_CSUM, GSO_NONE, 0, 0, V6_HEADER_BYTES, _CHECKSUM_AT)

_V4_EQUAL = int.from_bytes(
    b"\xff" * (_IP + 4) + bytes(2) + b"\xff" * 4 + bytes(2) + b"\xff" * (V4_HEADER_BYTES - 12 + UDP_HEADER_BYTES), "big"
)
"""The bits of the headers that are equal: not those of the id and of the header checksum."""

_U16 = struct.Struct(">H")
_u16_at = _U16.unpack_from
_number = int.from_bytes


def stretches(view: memoryview, at: int, lengths: tuple[int, ...]) -> list[tuple[int, int, bool]]:
    """The packets from view[at] on, of these lengths: (index of the first, number of packets, whether they are merged).

    Each packet is in one stretch. Nothing behind the last packet is read, be it sound or not.
    """
    found: list[tuple[int, int, bool]] = []
    count = len(lengths)
    index = begin = misses = 0
    while index <= count - MERGED_LEAST and misses < MISSES_MOST:
        length = lengths[index]
        if length == lengths[index + 1] == lengths[index + MERGED_LEAST - 1]:
            merged = _mergeable(view, at, lengths, index)
            if merged >= MERGED_LEAST:
                if index > begin:
                    found.append((begin, index - begin, False))
                found.append((index, merged, True))
                index += merged
                begin = index
                at += merged * length
                misses = 0
                continue
            misses += 1
        index += 1
        at += length
    if count > begin:
        found.append((begin, count - begin, False))
    return found


def _mergeable(view: memoryview, at: int, lengths: tuple[int, ...], index: int) -> int:
    """How many packets, from that with this index at view[at] on, may become one; 0 if not even the first one may."""
    length = lengths[index]
    if length <= _V4_HEAD:
        return 0
    if view[at + _IP] == 0x45:  # IPv4 without options
        head, equal = _V4_HEAD, _V4_EQUAL
        if (
            view[at + _V4_PROTOCOL] != IPPROTO_UDP
            or view[at : at + _IP] != _V4_VNET
            or _u16_at(view, at + _IP + 6)[0] != _DONT_FRAGMENT
        ):
            return 0
    else:
        head, equal = _V6_HEAD, -1
        if (
            length <= _V6_HEAD
            or view[at + _IP] >> 4 != 6
            or view[at + _V6_PROTOCOL] != IPPROTO_UDP
            or view[at : at + _IP] != _V6_VNET
        ):
            return 0
    payload = length - head
    if _u16_at(view, at + head - 4)[0] != payload + UDP_HEADER_BYTES:
        return 0
    most = min(MERGED_MOST, len(lengths) - index, (IP_BYTES_MAX - head + _IP) // payload)
    key = _number(view[at : at + head], "big") & equal
    for count in range(1, most):
        at += length
        if lengths[index + count] != length or _number(view[at : at + head], "big") & equal != key:
            return count
    return most


def super_packet(view: memoryview, at: int, length: int, count: int) -> list[memoryview | bytearray]:
    """The super-packet of `count` merged packets from view[at] on, each of `length` bytes, in pieces for writev(2)."""
    start = V4_HEADER_BYTES if view[at + _IP] == 0x45 else V6_HEADER_BYTES
    head = _IP + start + UDP_HEADER_BYTES
    payload = length - head
    more = payload * (count - 1)
    headers = bytearray(view[at : at + head])
    VNET.pack_into(headers, 0, NEEDS_CSUM, GSO_UDP_L4, head - _IP, payload, start, _CHECKSUM_AT)
    if start == V4_HEADER_BYTES:
        _add(headers, _IP + 2, more)
        words = _sum(0xFFFF - _u16_at(headers, _V4_CHECKSUM)[0], more)  # RFC 1624
        _U16.pack_into(headers, _V4_CHECKSUM, 0xFFFF - words)
    else:
        _add(headers, _IP + 4, more)
    _add(headers, head - 4, more)
    partial = _u16_at(headers, head - 2)[0]  # the sum of the pseudo-header, which has the length
    _U16.pack_into(headers, head - 2, _sum(partial, more))
    first = at + head
    pieces: list[memoryview | bytearray] = [headers]
    pieces += [view[begin : begin + payload] for begin in range(first, first + count * length, length)]
    return pieces


def _add(headers: bytearray, at: int, more: int) -> None:
    _U16.pack_into(headers, at, _u16_at(headers, at)[0] + more)


def _sum(number: int, more: int) -> int:
    """The ones' complement sum of two numbers (RFC 1071)."""
    return (number + more) % 0xFFFF or 0xFFFF
