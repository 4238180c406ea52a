"""The places of a cut: which part and index each of its segments has, in the order in which they go out.

Row 0 of each part comes first, then row 1 of each part, and so on (`pipeline.datagram.cut`). So the data rows have the
first places. A receiver keeps rows in this order, since most of them come in it.

Pure. The places of a shape are made once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pipeline.datagram.segment import FIELD_BYTES

PART_AT, INDEX_AT = 20, 23  # of the fields
KEPT = 128
"""Shapes, of at most 16 KiB each. A peer that makes up others costs time, not memory."""


class Places:
    """`total`: of segments. `words`: the fields of each with nothing but part and index. Bit i of a number is place i:
    `data` has those of data rows, `of_part` those of each part."""

    __slots__ = ("data", "m", "n", "of_part", "parts", "total", "words")

    def __init__(self, parts: int, n: int, m: int) -> None:
        self.parts = parts
        self.n = n
        self.m = m
        self.total = total = parts * (n + m)
        self.data = (1 << parts * n) - 1
        self.of_part = tuple(sum(1 << place for place in range(part, total, parts)) for part in range(parts))
        fields = np.zeros((total, FIELD_BYTES), np.uint8)
        fields[:, INDEX_AT], fields[:, PART_AT] = np.divmod(np.arange(total), parts)
        self.words = fields.view(np.uint32)

    def are_enough(self, present: int) -> bool:
        """Whether these rows make the block: all data rows, or n rows of each part."""
        if present & self.data == self.data:
            return True
        return self.m > 0 and all((present & part).bit_count() >= self.n for part in self.of_part)

    def rows_of(self, part: int, present: int) -> int:
        """The rows of a part that are present: bit i is row i."""
        return sum(1 << row for row in range(self.n + self.m) if present >> row * self.parts + part & 1)


@lru_cache(maxsize=KEPT)
def places_of(parts: int, n: int, m: int) -> Places:
    return Places(parts, n, m)
