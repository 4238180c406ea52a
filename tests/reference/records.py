"""Sealed records, written from docs/wire.md alone. The program's code is not used.

HeaderSeal(suite, keys)          the headers of one direction of one connection, sealed or opened
records(seal, header, body)      a frame as it is on the wire
Reader(seal)                     frames from the bytes of the wire
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from typing import NamedTuple

from cryptography.exceptions import InvalidTag

from tests.reference import erasure_code, key_schedule
from tests.reference.blocks import GOAWAY, KEEPALIVE, RUN, Violation

RECORD = struct.Struct(">3sH")
RECORD_BEGINS = bytes.fromhex("170303")
FIELDS = struct.Struct(">BIIBBBBIHH")
HEAD_BYTES = RECORD.size + FIELDS.size + key_schedule.TAG_BYTES  # 42, up to the displaced bytes
UNIT, SHORT_UNIT = 16406, 16390
LEAST_LAST = 22
RATCHET_EVERY = 1 << 20
END_PLAIN = bytes.fromhex("010015")
END_BYTES = len(END_PLAIN) + key_schedule.TAG_BYTES
BODY_MAX = 133155
SEALED_BYTES = 20, 133140
N_MAX, M_MAX = 37, 6
PADDED_MOST = 1500
SIZE_BITS = 18  # of the size field; the others are the padding


class Header(NamedTuple):
    kind: int
    stream: int = 0
    number: int = 0
    n: int = 0
    m: int = 0
    first: int = 0
    shards: int = 0
    size: int = 0
    epoch: int = 0
    packets: int = 0
    padding: int = 0  # in the upper bits of the size

    @classmethod
    def unpack(cls, plain: bytes) -> Header:
        header = cls._make([*FIELDS.unpack(plain), 0])
        return header._replace(size=header.size % (1 << SIZE_BITS), padding=header.size >> SIZE_BITS)

    def pack(self) -> bytes:
        return FIELDS.pack(*self._replace(size=(self.padding << SIZE_BITS) + self.size)[:-1])

    @property
    def shard_bytes(self) -> int:
        return erasure_code.shard_size(self.size, self.n, self.m)

    @property
    def body_bytes(self) -> int:
        return self.shards * self.shard_bytes if self.kind == RUN else 0


class HeaderSeal:
    """The headers of one direction, in their order. An end of the connection has one to seal and another to open."""

    def __init__(self, suite: int, keys: Iterator[bytes]) -> None:
        self._suite, self._keys = suite, keys
        self.index = 0
        self._ratchet = -1

    def seal(self, plain: bytes) -> bytes:
        return self._next().encrypt(self._nonce(), plain, None)

    def open(self, sealed: bytes) -> bytes:
        try:
            return self._next().decrypt(self._nonce(), sealed, None)
        except InvalidTag:
            raise Violation(f"header {self.index - 1} is not proved by its tag") from None

    def _next(self):
        while self._ratchet < self.index // RATCHET_EVERY:
            self._aead = key_schedule.aead(self._suite, next(self._keys))
            self._ratchet += 1
        self.index += 1
        return self._aead

    def _nonce(self) -> bytes:
        return (self.index - 1).to_bytes(12, "big")


def cut(body_bytes: int) -> tuple[int, int, int]:
    """U, k and W of a body of so many bytes."""
    unit = UNIT
    further, whole = _fitting(body_bytes, unit)
    if further and whole - further * unit < LEAST_LAST:
        unit = SHORT_UNIT
        further, whole = _fitting(body_bytes, unit)
    return unit, further, whole


def _fitting(body_bytes: int, unit: int) -> tuple[int, int]:
    further = 0
    while (whole := HEAD_BYTES + 5 * further + body_bytes) > (further + 1) * unit:
        further += 1
    return further, whole


def records(seal: HeaderSeal, header: Header, body: bytes = b"") -> bytes:
    """A frame. `body`: the shards, one behind the other."""
    if header.padding:
        frame = seal.seal(header.pack()) + secrets.token_bytes(header.padding) + body
        return RECORD.pack(RECORD_BEGINS, len(frame)) + frame
    return records_of(seal.seal(header.pack()), body)


def records_of(sealed_header: bytes, body: bytes) -> bytes:
    unit, further, whole = cut(len(body))
    frame = bytearray(bytes(RECORD.size) + sealed_header + bytes(5 * further) + body)
    assert len(frame) == whole
    for number in range(further + 1):
        at = number * unit
        if number:
            displaced = HEAD_BYTES + 5 * (number - 1)
            frame[displaced : displaced + 5] = frame[at : at + 5]
        frame[at : at + 5] = RECORD.pack(RECORD_BEGINS, min(unit, whole - at) - RECORD.size)
    return bytes(frame)


def end_record(seal: HeaderSeal) -> bytes:
    return RECORD.pack(RECORD_BEGINS, END_BYTES) + seal.seal(END_PLAIN)


class Reader:
    """Frames from a stream of bytes. A Violation is what ends the connection."""

    def __init__(self, seal: HeaderSeal) -> None:
        self._seal = seal
        self._buffer = bytearray()
        self._header: Header | None = None
        self.ended = False  # by an end record

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[Header, bytes] | None:
        """The next frame, as soon as it is whole."""
        buffer = self._buffer
        if self._header is None:
            if len(buffer) < RECORD.size or self.ended:
                return None
            length = self._record_length(0)
            if length == END_BYTES:
                self._take_end()
                return None
            if length < HEAD_BYTES - RECORD.size:
                raise Violation(f"the first record of a frame has {length} bytes")
            if len(buffer) < HEAD_BYTES:
                return None
            self._header = self._checked(Header.unpack(self._seal.open(buffer[5:HEAD_BYTES])))
        header = self._header
        unit, further, whole = cut(header.body_bytes)
        if header.padding:
            whole += header.padding
            if further or whole > PADDED_MOST:
                raise Violation(f"padding of {header.padding} bytes in a frame of {whole}")
        for number in range(further + 1):
            at = number * unit
            if len(buffer) >= at + 5 and self._record_length(at) != min(unit, whole - at) - RECORD.size:
                raise Violation(f"record {number} of a frame of {whole} bytes has {self._record_length(at)} bytes")
        if len(buffer) < whole:
            return None
        for number in range(1, further + 1):
            displaced = HEAD_BYTES + 5 * (number - 1)
            buffer[number * unit : number * unit + 5] = buffer[displaced : displaced + 5]
        body = bytes(buffer[HEAD_BYTES + 5 * further + header.padding : whole])
        del buffer[:whole]
        self._header = None
        return header, body

    def _record_length(self, at: int) -> int:
        begins, length = RECORD.unpack_from(self._buffer, at)
        if begins != RECORD_BEGINS:
            raise Violation(f"a record that begins with {begins.hex()}")
        return length

    def _take_end(self) -> None:
        whole = RECORD.size + END_BYTES
        if len(self._buffer) >= whole:
            if self._seal.open(self._buffer[RECORD.size : whole]) != END_PLAIN:
                raise Violation("a record of 19 bytes that is no end")
            if len(self._buffer) > whole:
                raise Violation("bytes behind the end")
            self.ended = True

    @staticmethod
    def _checked(header: Header) -> Header:
        if header.kind != RUN:
            if header.kind in (KEEPALIVE, GOAWAY) and any(header[1:-1]):
                raise Violation(f"a keepalive or goaway with {header}")
            return header
        n, m = header.n, header.m
        if (
            not (1 <= n <= N_MAX and m <= M_MAX and header.shards >= 1 and header.first + header.shards <= n + m)
            or not SEALED_BYTES[0] <= header.size <= SEALED_BYTES[1]
            or header.body_bytes > BODY_MAX
            or (n == 1 and header.shards != 1)
        ):
            raise Violation(f"a run out of range: {header}")
        return header
