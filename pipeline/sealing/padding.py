"""Padding: small frames get one of three sizes on the wire, so that these tell less (setting `padding`).

    padding_of(wire_bytes)     bytes of padding for a frame of so many bytes; none for one above the longest of SIZES
    PaddingSource.take(size)   the padding: random bytes, since it is seen on the wire and must look like ciphertext
    marked(header, padding)    the header that tells of it, in the upper bits of its size field
    split(field)               that field again: bytes of padding, bytes of the sealed block

The header is sealed. So nobody between the ends can tell padding from a body, or change where it ends. It is for ends
alone that have said that they take padding (`messages.TAKES_PADDING`).
"""

from __future__ import annotations

import os
from bisect import bisect_left

from pipeline.sealing.frame_cut import HEADER_BYTES

SIZES = (300, 600, 1170)
"""Of frames on the wire. The first holds a packet of voice, a keystroke or a keepalive. The last is one TCP segment
where the path takes 1280 bytes, the least of IPv6, even in a WebSocket with TLS around it."""

PADDED_FRAME_MOST = 1500
"""Bytes of a frame with padding, whatever sizes its sender chooses: padding costs little beside the frame itself."""

_BLOCK_BITS = 18  # of the size field: a sealed block has fewer than 2^18 bytes
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1
_MARK_SHIFT = _BLOCK_BITS + 32  # of the padding in a header: behind the size field come 4 more bytes
_POOL_BYTES = 16384


def padding_of(wire_bytes: int) -> int:
    place = bisect_left(SIZES, wire_bytes)
    return SIZES[place] - wire_bytes if place < len(SIZES) else 0


def marked(header: bytes | memoryview, padding: int) -> bytes:
    return (int.from_bytes(header, "big") | padding << _MARK_SHIFT).to_bytes(HEADER_BYTES, "big")


def split(field: int) -> tuple[int, int]:
    return field >> _BLOCK_BITS, field & _BLOCK_MASK


class PaddingSource:
    """Of one outbound duty. Bytes are fetched for many frames at once; each goes out once."""

    def __init__(self) -> None:
        self._pool = memoryview(b"")
        self._at = 0

    def take(self, size: int) -> memoryview:
        begin = self._at
        if begin + size > len(self._pool):
            self._pool, begin = memoryview(os.urandom(_POOL_BYTES)), 0
        self._at = begin + size
        return self._pool[begin : self._at]
