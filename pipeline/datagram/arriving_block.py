"""A block while its segments arrive, and until it is delivered."""

from __future__ import annotations

import numpy as np

from pipeline.datagram.cut import parts_of
from pipeline.datagram.places import places_of
from pipeline.fec.codec import Codec
from pipeline.fec.reorder import ReorderBuffer


class Block:
    """A block of several rows. Its segments agree on size, epoch, `code` (n << 8 | m) and row size.

    `rows`: in the order of their places; bit i of `present` says that row i has come.
    """

    __slots__ = (
        "area", "code", "epoch", "key", "number", "opened_ns", "places", "present", "received_ns", "row_bytes", "rows",
        "size", "stream",
    )  # fmt: skip

    def __init__(
        self,
        key: int,
        stream: ReorderBuffer[Block | Single],
        number: int,
        size: int,
        epoch: int,
        code: int,
        row_bytes: int,
        area: memoryview,
        opened_ns: int,
    ) -> None:
        self.key = key
        self.stream = stream
        self.number = number
        self.size = size
        self.epoch = epoch
        self.code = code
        self.row_bytes = row_bytes
        self.places = places = places_of(parts_of(size, code >> 8, row_bytes), code >> 8, code & 0xFF)
        self.area = area
        self.rows = np.ndarray((places.total, row_bytes), np.uint8, area)
        self.opened_ns = self.received_ns = opened_ns
        self.present = 0

    def lacking(self, part: int) -> int:
        """The rows of a part that have not come, if it is not complete: bit i is row i."""
        places = self.places
        present = places.rows_of(part, self.present)
        return ((1 << places.n + places.m) - 1) & ~present if present.bit_count() < places.n else 0

    def write(self, slot: memoryview, at: int, codec: Codec) -> bool:
        """Put the block into slot[at:]. Whether rows had to be recovered."""
        places, row_bytes, size = self.places, self.row_bytes, self.size
        parts, n = places.parts, places.n
        is_recovered = self.present & places.data != places.data
        if is_recovered:
            self._recover(codec)
        if parts == 1:
            slot[at : at + size] = self.area[:size]
            return is_recovered
        in_parts = self.rows[: parts * n].reshape(n, parts, row_bytes).transpose(1, 0, 2)
        if at + parts * n * row_bytes <= len(slot):
            np.ndarray((parts, n, row_bytes), np.uint8, slot, at)[:] = in_parts
        else:  # what is behind the end of the block has no room
            slot[at : at + size] = in_parts.tobytes()[:size]
        return is_recovered

    def _recover(self, codec: Codec) -> None:
        places, row_bytes = self.places, self.row_bytes
        parts, n, m = places.parts, places.n, places.m
        every = (1 << n) - 1
        by_part = self.rows.reshape(n + m, parts, row_bytes)
        for part in range(parts):
            present = places.rows_of(part, self.present)
            if present & every != every:
                word = np.ascontiguousarray(by_part[:, part])
                codec.recover(word.reshape(-1), n, m, row_bytes, present)
                by_part[:n, part] = word[:n]


class Single:
    """A block of one row. `copy`: its number among the copies of the block."""

    __slots__ = ("content", "copies", "copy", "epoch", "key")

    def __init__(self, key: int, epoch: int, copies: int, copy: int, content: bytes) -> None:
        self.key = key
        self.epoch = epoch
        self.copies = copies
        self.copy = copy
        self.content = content
