"""Floor 1, pure. A block's place in a slot and its shape on the wire.

The packets stand one behind the other from SLOT_BODY_AT on. The frame header, their number and their
lengths are written *in front of* them once their number is known, so that the whole frame is one
contiguous stretch of the slot, sent without a copy:

    ... | length u32 | 0x20 | count u16 | count x length u32 | packets ...
        ^ SLOT_START_AT                                      ^ SLOT_BODY_AT

A packet is a 10-byte virtio-net header (little-endian, TUNSETVNETLE) and the IP packet; its length counts both.
In compat mode the slot holds the original's frames instead, one bare packet each, just as contiguous.
"""

from __future__ import annotations

import struct

from pipeline import layout, wire
from pipeline.errors import PeerError

SLOT = struct.Struct("<QQQQ")  # start, length, member, seat: see layout.SLOT_*_AT
MARKS = struct.Struct("<II")  # purpose, number
NO_NUMBER = 0xFFFFFFFF  # of a block that is not to be coded

VNET_HEADER_BYTES = 10  # struct virtio_net_hdr, linux/virtio_net.h
PACKET_BYTES_MAX = 65535 + VNET_HEADER_BYTES + 4  # one super-packet as TUN gives it, rounded up

SLOT_BYTES_MIN = layout.SLOT_BODY_AT + wire.BLOCK_PAYLOAD_MAX
FILL_LIMIT = wire.BLOCK_PAYLOAD_MAX - PACKET_BYTES_MAX
"""A block takes another packet while it holds at most this: a shorter read buffer truncates silently."""

_PREFIXES = [struct.Struct(f">IBH{count}I") for count in range(wire.BLOCK_PACKETS_MAX + 1)]
_TABLES = [struct.Struct(f">{count}I") for count in range(wire.BLOCK_PACKETS_MAX + 1)]

_STARTS = [layout.SLOT_BODY_AT - prefix.size for prefix in _PREFIXES]
_pack_slot = SLOT.pack_into

assert _STARTS[-1] >= layout.SLOT_HEADS_END + layout.RUN_HEAD_BYTES  # a light block has a run header in front


def seal(slot: memoryview, lengths: list[int], end: int, member: int, seat: int) -> None:
    """Write frame header, length table and slot header around the packets in slot[SLOT_BODY_AT:end].

    The slot is not published yet, so pack_into (which zeroes first) is safe here.
    """
    count = len(lengths)
    start = _STARTS[count]
    length = end - start
    _PREFIXES[count].pack_into(slot, start, length - 4, wire.BLOCK, count, *lengths)
    _pack_slot(slot, 0, start, length, member, seat)


def lengths(view: memoryview, at: int, end: int) -> tuple[int, tuple[int, ...]]:
    """Offset of the first packet and the packets' lengths of the block frame in view[at:end].

    PeerError if the table does not fit the frame or the lengths do not add up.
    """
    if end - at < _PREFIX_BYTES:
        raise PeerError(f"block frame of {end - at} bytes, at least {_PREFIX_BYTES} expected")
    _, _, count = _prefix_at(view, at)
    if count > wire.BLOCK_PACKETS_MAX:
        raise PeerError(f"block of {count} packets, at most {wire.BLOCK_PACKETS_MAX} allowed")
    table = at + _PREFIX_BYTES
    first = table + 4 * count
    if first > end:
        raise PeerError(f"block frame of {end - at} bytes is too short for {count} lengths")
    found = _TABLES[count].unpack_from(view, table)
    if sum(found) != end - first:
        raise PeerError(f"block lengths add up to {sum(found)} bytes, the frame holds {end - first}")
    return first, found


_PREFIX_BYTES = wire.BLOCK_PREFIX.size
_prefix_at = wire.BLOCK_PREFIX.unpack_from
