"""The streams of sealed blocks: which process of a sender, which lane, which kind.

    stream u32 = number of the process (24 bits) | lane (5 bits) | kind (3 bits)

The lowest bit of a kind is its traffic class.
"""

from __future__ import annotations

PLAIN, LIGHT, CODED, COPIED, TRANSIT_BULK, TRANSIT_LIGHT = range(6)
KINDS = 8  # that there is room for
FROM_TUN, FROM_PEERS = (PLAIN, LIGHT, CODED, COPIED), (TRANSIT_BULK, TRANSIT_LIGHT)
"""The kinds that the outbound duty of a tun worker seals, and those of its inbound duty."""

LANES_MAX = 32
PROCESSES_MAX = 1 << 24
_KIND_BITS, _PROCESS_SHIFT = 3, 8


def stream(process: int, lane: int, kind: int) -> int:
    """ValueError if there is no such process number or lane."""
    if not (0 <= process < PROCESSES_MAX and 0 <= lane < LANES_MAX):
        raise ValueError(f"process {process}, lane {lane}: below {PROCESSES_MAX} and {LANES_MAX} expected")
    return process << _PROCESS_SHIFT | lane << _KIND_BITS | kind


def lane_of(stream: int) -> int:
    return stream >> _KIND_BITS & LANES_MAX - 1
