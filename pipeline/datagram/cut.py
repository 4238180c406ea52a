"""How a sealed block is cut into the rows of its segments.

    size <= row_most    one row, which is the block itself; n = 1, and m further copies of the block may travel
    else                K parts of n rows each; m parity rows follow in each part (pipeline.fec.codec)

A part is a codeword. All parts of a block have one n, m and row size; what is behind the end of the block in the last
part means nothing. A receiver knows K from size, n and row size: it is the fewest parts that hold the block.

The parts of a block are interleaved: row 0 of each part, row 1 of each part, and so on. So of a burst of losses each
part has its share only.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.fec import shard
from pipeline.fec.shard import DATA_SHARDS_MAX, PARITY_SHARDS_MAX

PARTS_MAX = 16
"""For the longest block (133140 bytes) in rows of some 230 bytes; a path carries rows of 1172 bytes (RFC 8200, 5)."""

ROW_UNIT = 8  # bytes: a row without parity is a multiple of it, so that rows of parts are aligned


class Cut(NamedTuple):
    """`parts` codewords of n data and m parity rows, each of `row_bytes`."""

    parts: int
    n: int
    m: int
    row_bytes: int

    @property
    def segments(self) -> int:
        return self.parts * (self.n + self.m)


def cut(size: int, row_most: int, m: int, parts_least: int = 1) -> Cut:
    """The cut of a block of `size` bytes with the fewest segments, in at least so many parts, if it has several rows.

    ValueError if PARTS_MAX parts do not hold it.
    """
    if size <= row_most:
        return Cut(1, 1, m, size)
    rows = -(-size // row_most)
    parts = max(min(parts_least, rows // 2), -(-rows // DATA_SHARDS_MAX))
    while parts <= PARTS_MAX:
        n = max(2, -(-rows // parts))
        while n <= DATA_SHARDS_MAX:
            unit = row_unit(n, m)
            row_bytes = -(-size // (parts * n * unit)) * unit
            if row_bytes <= row_most and parts_of(size, n, row_bytes) == parts:
                return Cut(parts, n, m, row_bytes)
            n += 1
        parts += 1
    raise ValueError(f"block of {size} bytes: rows of {row_most} bytes in {PARTS_MAX} parts do not hold it")


def parts_of(size: int, n: int, row_bytes: int) -> int:
    """The parts of a block that is cut into rows of this size."""
    return -(-size // (n * row_bytes))


def row_unit(n: int, m: int) -> int:
    """Bytes of which a row is a multiple."""
    return ROW_UNIT * (shard.prime(n, m) - 1) if m and n > 1 else ROW_UNIT


def is_cut(size: int, n: int, m: int, row_bytes: int) -> bool:
    """Whether a block may have been cut so."""
    if n == 1:
        return size == row_bytes and m <= PARITY_SHARDS_MAX
    if not (1 < n <= DATA_SHARDS_MAX and 0 <= m <= PARITY_SHARDS_MAX and 0 < size <= shard.BLOCK_BYTES_MAX):
        return False
    return row_bytes > 0 and row_bytes % row_unit(n, m) == 0 and parts_of(size, n, row_bytes) <= PARTS_MAX
