"""The requests of a link: parity, copies and spacing, as the state of the connections to a peer calls for them.

They are one word of its link record, `layout.LINK_REQUESTS`. The inbound duties of the tcp workers write it. The tun
and fec workers, the outbound duties of the tcp workers, and the supervisor read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeline.shm.layout import REQUESTS_BITS

MASK = (1 << REQUESTS_BITS) - 1
COPIES_SHIFT, SPACING_SHIFT = REQUESTS_BITS, 2 * REQUESTS_BITS


class LinkRequests(NamedTuple):
    """`spacing_us`: the time between two copies of a light packet, or two runs of a block."""

    parity: int  # shards of a full block
    copies: int  # of a light packet, beside the first
    spacing_us: int

    def pack(self) -> int:
        return self.spacing_us << SPACING_SHIFT | self.copies << COPIES_SHIFT | self.parity


NONE = LinkRequests(0, 0, 0)


def read(word: int) -> LinkRequests:
    return LinkRequests(word & MASK, word >> COPIES_SHIFT & MASK, word >> SPACING_SHIFT)


def most(words: Iterable[int]) -> LinkRequests:
    """The most of each that any of these calls for."""
    found = [read(word) for word in words]
    return LinkRequests._make(map(max, zip(NONE, *found, strict=True)))
