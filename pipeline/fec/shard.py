"""A run: consecutive shards of one block in one frame, and how a block is cut.

    length u32 | 0x21 | stream u32 | block u32 | n u8 | m u8 | first u8 | count u8 | size u32 | checksum u32 | shards

A stream is a sequence of numbered blocks: of one start of the sender, one lane and one traffic class (framing.BULK or
LIGHT). A block is a whole block frame (`pipeline.wire.block`) of `size` bytes. It is cut into n data shards, with zeros
behind its end, and m parity shards follow (`pipeline.fec.codec`). A block of one data shard is not coded: each of its
frames is a copy. Each frame holds all that a receiver needs, so a receiver does not know the sender's settings.
"""

from __future__ import annotations

import struct

from pipeline.wire import framing

RUN = struct.Struct(">IBIIBBBBII")
RUN_BYTES = RUN.size

SEALED_RUN = struct.Struct(">IBIIBBBBIHH")
"""A run of a sealed block: in place of the checksum the epoch, and the packets of a block that is whole, else 0."""

assert SEALED_RUN.size == RUN_BYTES

_LANE_BYTE_AT = 8  # of a run frame: the last byte of the stream has the lane; sealed: pipeline.sealing.kinds
_N_AT, _M_AT = 13, 14

SHARD_MOST_BYTES = 1320
"""Most bytes of a block in one shard, unless the block is full: with header and padding it fits one TCP segment."""

DATA_SHARDS_MAX = 37
PARITY_SHARDS_MAX = 6

PRIMES = (11, 13, 19, 29, 37)
"""Row counts p for which the code was checked to recover every loss of at most m shards: m <= 5 with any n <= p."""

PRIMES_OF_SIX = (11, 19, 29, 37)
"""Row counts p for which this was checked with m = 6."""

BLOCK_BYTES_MAX = max(
    framing.LENGTH.size + framing.BLOCK_LENGTH_LIMIT,
    framing.BLOCK_LENGTH_LIMIT - 1 + 2 + 16,  # sealed: without a frame header, with an epoch and a tag
)


def prime(n: int, m: int) -> int:
    """The p of the code for n data and m parity shards; 0 outside its domain."""
    if n < 1 or not 0 <= m <= PARITY_SHARDS_MAX:
        return 0
    return next((p for p in (PRIMES_OF_SIX if m == 6 else PRIMES) if p >= n), 0)


_UNITS = {
    (n, m): 1 if n == 1 else 8 * (prime(n, m) - 1)
    for n in range(1, DATA_SHARDS_MAX + 1)
    for m in range(PARITY_SHARDS_MAX + 1)
}


def data_shards(size: int, most: int) -> int:
    """How many data shards a block of `size` bytes is cut into: `most` if it is large."""
    return min(most, -(-size // SHARD_MOST_BYTES))


def parity_shards(n: int, most: int, connections: int) -> int:
    """The fewest parity shards with which a block of n data shards survives the loss of any one connection; at most
    `most`."""
    for m in range(1, most):
        if -(-(n + m) // max(1, connections)) <= m:
            return m
    return most


def shard_bytes(size: int, n: int, m: int) -> int:
    """Bytes of each shard of a block of `size` bytes: p - 1 rows of whole 8-byte words, or the block itself for n = 1.

    0 if there is no such block or code.
    """
    unit = _UNITS.get((n, m))
    if unit is None or not 0 < size <= BLOCK_BYTES_MAX:
        return 0
    return -(-size // (n * unit)) * unit


COPIES = 0x80
"""Bit of a stream without encryption: each of its blocks travels whole, in copies, and waits for none before it."""


def stream(run: int, lane: int, traffic_class: int) -> int:
    """The number of a stream: it differs for each start of the sender (`run`), lane and traffic class."""
    return (run & 0xFFFFFF) << 8 | (lane & 0x3F) << 1 | traffic_class


def lane_of(view: memoryview, at: int, length: int, sealed: bool) -> int:
    """The lane that the stream of the run frame at view[at] names. `length`: as the frame says; a short one counts as
    lane 0."""
    if length < _M_AT:
        return 0
    return view[at + _LANE_BYTE_AT] >> 3 if sealed else (view[at + _LANE_BYTE_AT] & COPIES - 1) >> 1


def is_whole(view: memoryview, at: int, length: int, sealed: bool, light: bool) -> bool:
    """Whether the run frame at view[at] is a block that has travelled whole, or a copy of one: the tun worker's.

    `light`: it has come on a connection for light flows. All others are shards, the fec worker's.
    """
    if length < _M_AT:
        return False
    if sealed:
        return view[at + _N_AT] == 1 and (light or not view[at + _M_AT])
    return view[at + _LANE_BYTE_AT] >= COPIES
