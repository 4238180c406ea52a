"""A segment: one datagram with one row of a block.

    token u32 | sequence u32 | sender u16 | stream u32 | number u32 | epoch u16 | size u32 | part u8 | n u8 | m u8 |
    index u8 | row

`sequence` counts the segments of the process `sender` (modulo 2^16) to this peer. The others are those of the block and
of its cut (`pipeline.datagram.cut`). All behind the token is masked as the header of a QUIC packet is (RFC 9001,
5.4.3): XOR with AES-ECB of a sample. The sample is the first 32 bytes of the row, with zeros behind a shorter one. So
two segments have nothing in common but the token.
"""

from __future__ import annotations

import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TOKEN = struct.Struct(">I")
FIELDS = struct.Struct(">IHIIHIBBBB")  # sequence, sender, stream, number, epoch, size, part, n, m, index
TOKEN_BYTES = TOKEN.size
FIELD_BYTES = FIELDS.size
HEADER_BYTES = TOKEN_BYTES + FIELD_BYTES
SAMPLE_BYTES = 32
"""Two blocks of AES, whose mask covers the fields."""

WORD_BYTES = 4  # the header and the rows of a train are whole words
FIELD_WORDS = FIELD_BYTES // WORD_BYTES
SAMPLE_WORDS = SAMPLE_BYTES // WORD_BYTES

SEQUENCES = 1 << 32
SENDERS = 1 << 16

ROWS = np.dtype(
    {
        "names": ["sequence", "sender", "block", "epoch", "size", "part", "code", "index"],
        "formats": [">u4", ">u2", ">u8", ">u2", ">u4", "u1", ">u2", "u1"],
        "offsets": [0, 4, 6, 14, 16, 20, 21, 23],
        "itemsize": FIELD_BYTES,
    }
)
"""The fields as columns. `block`: stream and number; `code`: n << 8 | m."""
ROW = struct.Struct(">IHQHIBHB")
"""The fields of one segment, as one row of those columns."""

WORDS = FIELD_BYTES // 8
OF_BLOCK = np.frombuffer(bytes(4) + b"\xff" * 16 + b"\0\xff\xff\0", np.uint64)
"""The bits of the fields, as words, that segments of one process and block have in common: all but sequence, part and
index."""

assert ROW.size == FIELD_BYTES == 24 <= SAMPLE_BYTES


class Mask:
    """The mask of the fields, with one key. `most`: segments of one call."""

    def __init__(self, key: bytes, most: int) -> None:
        self._ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        self._samples = np.zeros((most, SAMPLE_BYTES), np.uint8)
        self._masks = bytearray(most * SAMPLE_BYTES + SAMPLE_BYTES // 2 - 1)  # update_into asks for a block less one
        self._rows = np.frombuffer(self._masks, np.uint8, most * SAMPLE_BYTES).reshape(most, SAMPLE_BYTES)
        self._sample_words, self._words = (
            np.frombuffer(each, np.uint32).reshape(most, SAMPLE_WORDS)
            for each in (self._samples, memoryview(self._masks)[: most * SAMPLE_BYTES])
        )

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The masks of the fields of these rows, each of at least SAMPLE_BYTES; valid until the next call."""
        count = len(rows)
        samples = self._samples[:count]
        samples[:] = rows[:, :SAMPLE_BYTES]
        self._ecb.update_into(samples.data.cast("B"), self._masks)
        return self._rows[:count, :FIELD_BYTES]

    def of_samples(self, samples: np.ndarray) -> np.ndarray:
        """The masks of samples, each of SAMPLE_WORDS, and as many words; valid until the next call."""
        count = len(samples)
        self._sample_words[:count] = samples
        self._ecb.update_into(self._samples[:count].data.cast("B"), self._masks)
        return self._words[:count]

    def of_row(self, row: bytes | memoryview) -> int:
        """The mask of one row, as a number of FIELD_BYTES."""
        sample = bytes(row[:SAMPLE_BYTES]).ljust(SAMPLE_BYTES, b"\0")
        return int.from_bytes(self._ecb.update(sample)[:FIELD_BYTES], "big")
