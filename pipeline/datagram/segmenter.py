"""Blocks become segments: the rows, their parity, their headers.

    train = segmenter.cut_block(...)     the segments of one block, ready to be given to the kernel in one piece
    segmenter.head_of_row(...)           the header of a segment whose row is a whole block

A train is one piece of memory with segments of one size, one behind the other. So the kernel cuts it (UDP_SEGMENT). Its
owner keeps it until the block has arrived or is given up, and may send single segments of it again: with new headers.

One Segmenter belongs to one duty of one process. `sequence` is that of the next segment.
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
    """The segments of a block: `count` of them, each of `segment_bytes`, in `memory`."""

    __slots__ = ("count", "cut", "memory", "rows", "segment_bytes")

    def __init__(self, memory: memoryview, cut: Cut) -> None:
        self.cut = cut
        self.count = cut.segments
        self.segment_bytes = HEADER_BYTES + cut.row_bytes
        self.memory = memory[: self.count * self.segment_bytes]
        self.rows = np.frombuffer(self.memory, np.uint8).reshape(self.count, self.segment_bytes)


class Segmenter:
    """`most`: segments of one block."""

    def __init__(self, codec: Codec, sender: int, most: int) -> None:
        self._codec = codec
        self._sender = sender % SENDERS
        self._places: dict[Cut, np.ndarray] = {}  # part and index of each segment, in their order
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
        """Lay out the segments of a block of several rows in `memory`."""
        train = Train(memory, cut)
        self._lay_rows(train, sealed)
        self._write_headers(train, token, mask, sequence, stream, number, epoch, len(sealed))
        return train

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

    def _write_headers(
        self, train: Train, token: int, mask: Mask, sequence: int, stream: int, number: int, epoch: int, size: int
    ) -> None:
        cut = train.cut
        header = TOKEN.pack(token) + FIELDS.pack(0, self._sender, stream, number, epoch, size, 0, cut.n, cut.m, 0)
        heads = train.rows[:, :HEADER_BYTES]
        heads[:] = np.frombuffer(header, np.uint8)
        places = self._places.get(cut)
        if places is None:
            places = self._add_places(cut)
        heads[:, _PART_AT] = places[0]
        heads[:, _INDEX_AT] = places[1]
        sequences = (self._sequences[: train.count] + np.uint32(sequence % SEQUENCES)).astype(_SEQUENCE)
        heads[:, TOKEN_BYTES : TOKEN_BYTES + 4] = sequences.view(np.uint8).reshape(train.count, 4)
        heads[:, TOKEN_BYTES:] ^= mask.of_rows(train.rows[:, HEADER_BYTES:])

    def _add_places(self, cut: Cut) -> np.ndarray:
        if len(self._places) >= CUTS_KEPT:
            self._places.clear()
        index, part = np.divmod(np.arange(cut.segments), cut.parts)
        places = self._places[cut] = np.array([part, index], np.uint8)
        return places
