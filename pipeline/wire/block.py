"""The form of a block on the wire, and its place in a slot.

The packets stand one behind the other from SLOT_BODY_AT on. The frame header, their number and their lengths are
written in front of them once their number is known. So the whole frame is one contiguous stretch of the slot, and it
is sent without a copy:

    ... | length u32 | 0x20 | count u16 | count x length u32 | packets ...
        ^ SLOT_START_AT                                      ^ SLOT_BODY_AT

A packet is a virtio-net header of 10 bytes (little-endian, TUNSETVNETLE) and the IP packet; its length counts both. In
compat mode the slot holds frames of the original program instead, one bare packet each, just as contiguous.
"""

from __future__ import annotations

import struct

from pipeline.errors import PeerError
from pipeline.wire import framing

PREFIXES = [struct.Struct(f">IBH{count}I") for count in range(framing.BLOCK_PACKETS_MAX + 1)]
SEALED_PREFIXES = [struct.Struct(f">HH{count}I") for count in range(framing.BLOCK_PACKETS_MAX + 1)]
"""In front of the packets of a block that will be sealed: an epoch, and the rest without a frame header."""

EPOCH_BYTES = 2

_TABLES = [struct.Struct(f">{count}I") for count in range(framing.BLOCK_PACKETS_MAX + 1)]

_PREFIX_BYTES = framing.BLOCK_PREFIX.size
_COUNT = struct.Struct(">H")
_COUNT_BYTES = _COUNT.size
_count_at = _COUNT.unpack_from


def lengths(view: memoryview, at: int, end: int) -> tuple[int, tuple[int, ...]]:
    """The offset of the first packet, and the lengths of the packets, of the block frame in view[at:end].

    PeerError if the table of lengths does not fit into the frame, or the lengths do not add up to its end.
    """
    if end - at < _PREFIX_BYTES:
        raise PeerError(f"block frame of {end - at} bytes, at least {_PREFIX_BYTES} expected")
    return table_lengths(view, at + framing.FRAME.size, end)


def table_lengths(view: memoryview, at: int, end: int) -> tuple[int, tuple[int, ...]]:
    """As lengths(), for a block without a frame header, as it was sealed."""
    if end - at < _COUNT_BYTES:
        raise PeerError(f"block of {end - at} bytes, at least {_COUNT_BYTES} expected")
    (count,) = _count_at(view, at)
    if count > framing.BLOCK_PACKETS_MAX:
        raise PeerError(f"block of {count} packets, at most {framing.BLOCK_PACKETS_MAX} allowed")
    table = at + _COUNT_BYTES
    first = table + 4 * count
    if first > end:
        raise PeerError(f"block of {end - at} bytes is too short for {count} lengths")
    found = _TABLES[count].unpack_from(view, table)
    if sum(found) != end - first:
        raise PeerError(f"block lengths add up to {sum(found)} bytes, the block holds {end - first}")
    return first, found
