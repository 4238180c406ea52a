"""A block while its segments arrive, and until it is delivered."""

from __future__ import annotations

import numpy as np

from pipeline.datagram.cut import parts_of
from pipeline.fec.reorder import ReorderBuffer


class Block:
    """A block of several rows. Its segments agree on size, epoch, `code` (n << 8 | m) and row size."""

    __slots__ = (
        "area", "code", "epoch", "key", "missing", "number", "opened_ns", "parts", "present", "received_ns",
        "row_bytes", "rows", "size", "stream",
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
        self.parts = parts_of(size, code >> 8, row_bytes)
        self.area = area
        total = self.parts * ((code >> 8) + (code & 0xFF))
        self.rows = np.frombuffer(area, np.uint8, total * row_bytes).reshape(total, row_bytes)
        self.opened_ns = self.received_ns = opened_ns
        self.present = [0] * self.parts  # bit i of a part: row i is present
        self.missing = self.parts  # parts that are not complete


class Single:
    """A block of one row. `copy`: its number among the copies of the block."""

    __slots__ = ("content", "copies", "copy", "epoch", "key")

    def __init__(self, key: int, epoch: int, copies: int, copy: int, content: bytes) -> None:
        self.key = key
        self.epoch = epoch
        self.copies = copies
        self.copy = copy
        self.content = content
