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
from pipeline.datagram.places import places_of
from pipeline.datagram.segment import (
    FIELD_BYTES,
    FIELD_WORDS,
    FIELDS,
    HEADER_BYTES,
    SAMPLE_WORDS,
    SENDERS,
    SEQUENCES,
    TOKEN,
    TOKEN_BYTES,
    WORD_BYTES,
    Mask,
)
from pipeline.fec.codec import Codec

_SEQUENCE = np.dtype(">u4")
_FIELDS_AT, _ROW_AT = TOKEN_BYTES // WORD_BYTES, HEADER_BYTES // WORD_BYTES

NOISE_BYTES = 1 << 16
"""The kernel makes random bytes many at a time: a call for each block costs 5 us."""


class Train:
    """The segments of a block: `count` of them, each of `segment_bytes`, in `memory`.

    `plain`: the fields of each without sequence and mask. All that stands in words is of WORD_BYTES.
    """

    __slots__ = ("count", "cut", "fields", "mask", "memory", "plain", "rows", "samples", "segment_bytes", "size")

    def __init__(self, memory: memoryview, cut: Cut, size: int, plain: np.ndarray, mask: Mask) -> None:
        self.cut = cut
        self.size = size
        self.plain = plain
        self.mask = mask
        self.count = cut.segments
        self.segment_bytes = HEADER_BYTES + cut.row_bytes
        self.memory = memory[: self.count * self.segment_bytes]
        self.rows = np.frombuffer(self.memory, np.uint8).reshape(self.count, self.segment_bytes)
        words = self.rows.view(np.uint32)
        self.fields = words[:, _FIELDS_AT:_ROW_AT]
        self.samples = words[:, _ROW_AT : _ROW_AT + SAMPLE_WORDS]

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
        self._sequences = np.arange(most, dtype=np.uint32)
        self._scratch = np.zeros(0, np.uint8)  # a part, with parity
        self._random, self._noise_at = b"", 0

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
        places = places_of(cut.parts, cut.n, cut.m).words
        train = Train(memory, cut, size, places ^ np.frombuffer(fields, np.uint32), mask)
        train.rows[:, :TOKEN_BYTES] = np.frombuffer(TOKEN.pack(token), np.uint8)
        self._lay_rows(train, sealed)
        return train

    def write_heads(self, train: Train, first: int, end: int, sequence: int, step: int = 1) -> None:
        """Write the headers of the segments from `first` up to `end`. `sequence`: of the first; `step`: to the next."""
        sequences = self._sequences[: end - first]
        if step != 1:
            sequences = sequences * np.uint32(step)
        masks = train.mask.of_samples(train.samples[first:end])
        masks[:, 0] ^= (sequences + np.uint32(sequence % SEQUENCES)).astype(_SEQUENCE).view(np.uint32)
        np.bitwise_xor(train.plain[first:end], masks[:, :FIELD_WORDS], out=train.fields[first:end])

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
        source = np.frombuffer(sealed, np.uint8)
        rows = train.rows.reshape(n + m, parts, train.segment_bytes)[:, :, HEADER_BYTES:]
        if m:
            for part in range(parts):
                data = source[part * n * row_bytes : (part + 1) * n * row_bytes]
                rows[:, part] = self._code(data, n, m, row_bytes).reshape(n + m, row_bytes)
            return
        whole = len(source) // row_bytes
        for part in range(parts):
            first = part * n
            count = max(0, min(n, whole - first))
            rows[:count, part] = source[first * row_bytes : (first + count) * row_bytes].reshape(count, row_bytes)
        if whole < parts * n:
            rest = n - count
            padding = self._noise((parts * n - whole) * row_bytes - (len(source) - whole * row_bytes))
            tail = np.frombuffer(bytes(sealed[whole * row_bytes :]) + padding, np.uint8)
            rows[count:, parts - 1] = tail.reshape(rest, row_bytes)

    def _noise(self, size: int) -> bytes:
        """Random bytes, each of which is used once."""
        end = self._noise_at + size
        if end > len(self._random):
            self._random, end = urandom(max(NOISE_BYTES, size)), size
        self._noise_at = end
        return self._random[end - size : end]

    def _code(self, data: np.ndarray, n: int, m: int, row_bytes: int) -> np.ndarray:
        """A part with its parity, and random bytes behind its end, since they are seen on the wire."""
        size = n * row_bytes
        total = (n + m) * row_bytes
        if len(self._scratch) < total:
            self._scratch = np.zeros(total, np.uint8)
        area = self._scratch[:total]
        area[: len(data)] = data
        if len(data) < size:
            area[len(data) : size] = np.frombuffer(self._noise(size - len(data)), np.uint8)
        if m:
            self._codec.encode(area, n, m, row_bytes)
        return area
