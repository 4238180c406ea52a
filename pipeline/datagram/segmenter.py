"""Blocks become segments: the rows, their parity, their headers.

    train = segmenter.lay_block(...)     the segments of one block, with their rows, and without headers
    segmenter.write_heads(train, ...)    the headers of those that go out now
    segmenter.cut_block(...)             both
    segmenter.head_of_row(...)           the header of a segment whose row is a whole block

A train is one piece of memory with segments of one size, one behind the other. So the kernel cuts it (UDP_SEGMENT). Its
owner keeps it until the block has arrived or is given up, and may send single segments of it again. A header has the
sequence of its segment, so it is written when the segment goes out, each time anew.

One Segmenter belongs to one duty of one process.
"""

from __future__ import annotations

from os import urandom

import numpy as np

from pipeline.datagram.cut import Cut
from pipeline.datagram.segment import (
    FIELD_BYTES,
    FIELDS,
    HEADER_BYTES,
    SENDERS,
    SEQUENCES,
    TOKEN,
    TOKEN_BYTES,
    Mask,
)
from pipeline.fec.codec import Codec

_SEQUENCE = np.dtype(">u4")
_PART_AT, _INDEX_AT = TOKEN_BYTES + 20, TOKEN_BYTES + 23
CUTS_KEPT = 256


class Train:
    """The segments of a block: `count` of them, each of `segment_bytes`, in `memory`.

    `header`: what the headers of all have in common. `places`: the parts of headers in which they differ.
    """

    __slots__ = ("count", "cut", "header", "mask", "memory", "places", "rows", "segment_bytes", "size")

    def __init__(
        self, memory: memoryview, cut: Cut, size: int, header: np.ndarray, places: np.ndarray, mask: Mask
    ) -> None:
        self.cut = cut
        self.size = size
        self.header = header
        self.places = places
        self.mask = mask
        self.count = cut.segments
        self.segment_bytes = HEADER_BYTES + cut.row_bytes
        self.memory = memory[: self.count * self.segment_bytes]
        self.rows = np.frombuffer(self.memory, np.uint8).reshape(self.count, self.segment_bytes)

    def block(self) -> bytes:
        """The sealed block."""
        parts, n, m, row_bytes = self.cut
        rows = self.rows.reshape(n + m, parts, self.segment_bytes)[:n, :, HEADER_BYTES:]
        return rows.transpose(1, 0, 2).reshape(parts * n * row_bytes)[: self.size].tobytes()


class Segmenter:
    """`most`: segments of one block."""

    def __init__(self, codec: Codec, sender: int, most: int) -> None:
        self._codec = codec
        self._sender = sender % SENDERS
        self._places: dict[Cut, np.ndarray] = {}  # headers with nothing but part and index
        self._sequences = np.arange(most, dtype=np.uint32)
        self._scratch = np.zeros(0, np.uint8)  # a part, with parity

    def cut_block(
        self,
        memory: memoryview,
        sealed: memoryview,
        cut: Cut,
        token: int,
        mask: Mask,
        sequence: int,
        stream: int,
        number: int,
        epoch: int,
    ) -> Train:
        """Lay out the segments of a block of several rows in `memory`, ready to be given to the kernel."""
        train = self.lay_block(memory, sealed, cut, token, mask, stream, number, epoch)
        self.write_heads(train, 0, train.count, sequence)
        return train

    def lay_block(
        self,
        memory: memoryview,
        sealed: memoryview,
        cut: Cut,
        token: int,
        mask: Mask,
        stream: int,
        number: int,
        epoch: int,
    ) -> Train:
        """Lay out the rows of a block in `memory`, without their headers."""
        size = len(sealed)
        fields = FIELDS.pack(0, self._sender, stream, number, epoch, size, 0, cut.n, cut.m, 0)
        header = np.frombuffer(TOKEN.pack(token) + fields, np.uint8)
        places = self._places.get(cut)
        if places is None:
            places = self._add_places(cut)
        train = Train(memory, cut, size, header, places, mask)
        self._lay_rows(train, sealed)
        return train

    def write_heads(self, train: Train, first: int, end: int, sequence: int, step: int = 1) -> None:
        """Write the headers of the segments from `first` up to `end`. `sequence`: of the first; `step`: to the next."""
        count = end - first
        rows = train.rows[first:end]
        heads = rows[:, :HEADER_BYTES]
        np.bitwise_xor(train.places[first:end], train.header, out=heads)
        sequences = self._sequences[:count] if step == 1 else self._sequences[:count] * np.uint32(step)
        sequences = (sequences + np.uint32(sequence % SEQUENCES)).astype(_SEQUENCE)
        heads[:, TOKEN_BYTES : TOKEN_BYTES + 4] = sequences.view(np.uint8).reshape(count, 4)
        heads[:, TOKEN_BYTES:] ^= train.mask.of_rows(rows[:, HEADER_BYTES:])

    def head_of_row(
        self,
        row: memoryview,
        token: int,
        mask: Mask,
        sequence: int,
        stream: int,
        number: int,
        epoch: int,
        m: int = 0,
        copy: int = 0,
    ) -> bytes:
        """The header in front of a block that is one row, or of its copy."""
        fields = FIELDS.pack(sequence, self._sender, stream, number, epoch, len(row), 0, 1, m, copy)
        masked = int.from_bytes(fields, "big") ^ mask.of_row(row)
        return TOKEN.pack(token) + masked.to_bytes(FIELD_BYTES, "big")

    def _lay_rows(self, train: Train, sealed: memoryview) -> None:
        parts, n, m, row_bytes = train.cut
        size = n * row_bytes
        source = np.frombuffer(sealed, np.uint8)
        rows = train.rows.reshape(n + m, parts, train.segment_bytes)[:, :, HEADER_BYTES:]
        for part in range(parts):
            data = source[part * size : (part + 1) * size]
            if m or len(data) < size:
                data = self._code(data, n, m, row_bytes)
            rows[:, part] = data.reshape(n + m, row_bytes)

    def _code(self, data: np.ndarray, n: int, m: int, row_bytes: int) -> np.ndarray:
        """A part with random bytes behind its end, as they are seen on the wire, and its parity."""
        size = n * row_bytes
        total = (n + m) * row_bytes
        if len(self._scratch) < total:
            self._scratch = np.zeros(total, np.uint8)
        area = self._scratch[:total]
        area[: len(data)] = data
        if len(data) < size:
            area[len(data) : size] = np.frombuffer(urandom(size - len(data)), np.uint8)
        if m:
            self._codec.encode(area, n, m, row_bytes)
        return area

    def _add_places(self, cut: Cut) -> np.ndarray:
        if len(self._places) >= CUTS_KEPT:
            self._places.clear()
        index, part = np.divmod(np.arange(cut.segments), cut.parts)
        places = self._places[cut] = np.zeros((cut.segments, HEADER_BYTES), np.uint8)
        places[:, _PART_AT], places[:, _INDEX_AT] = part, index
        return places
