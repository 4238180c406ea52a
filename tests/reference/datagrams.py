"""Datagrams as bytes, written from docs/wire.md alone. The program's code is not used.

segments_of(header, sealed, n, m)            the segments of a sealed block
pack_segment(keys, segment)                  a datagram; read_segment() reads it
Segments().add(segment)                      the blocks that segments complete
ControlSeal(suite, keys)                     control datagrams of one direction, sealed or opened
pack(body), parse(body)                      Probe, Answer and Report
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from tests.reference import erasure_code, key_schedule
from tests.reference.blocks import RUN, Violation
from tests.reference.key_schedule import TAG_BYTES, DatagramKeys
from tests.reference.records import M_MAX, N_MAX, Header

TOKEN_BYTES = 4
FIELDS = struct.Struct(">IHIIHIBBBB")
HEADER_BYTES = TOKEN_BYTES + FIELDS.size
SAMPLE_BYTES = 32
CODEWORDS_MAX = 16
SENDERS, COUNTS = 1 << 16, 1 << 32

COUNT = struct.Struct(">Q")
SEALED_BYTES = TOKEN_BYTES + COUNT.size + TAG_BYTES  # that a body grows by
NUMBER_BITS, LANE_BITS, STRETCH_BITS = 35, 5, 28
WINDOW = 1024

PROBE, ANSWER, REPORT = 1, 2, 3
PROBE_FIELDS, ANSWER_FIELDS = struct.Struct(">BQIB"), struct.Struct(">BQIH")
REPORT_HEAD, COUNTS_FIELDS = struct.Struct(">BBB"), struct.Struct(">HIIIIIIII")
STREAM_FIELDS, CODEWORD_FIELDS = struct.Struct(">IIB"), struct.Struct(">BIBQ")
STREAMS_MOST, BITS_MOST, INCOMPLETE_MOST = 8, 64, 16


# -- segments


class Segment(NamedTuple):
    sequence: int
    sender: int
    stream: int
    number: int
    epoch: int
    size: int
    codeword: int
    n: int
    m: int
    row_index: int
    row: bytes = b""


def mask_of(mask_key: bytes, sample: bytes) -> bytes:
    return Cipher(AES(mask_key), ECB()).encryptor().update(sample)


def masked(data: bytes, mask: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, mask, strict=False))


def pack_segment(keys: DatagramKeys, segment: Segment) -> bytes:
    fields, row = FIELDS.pack(*segment[:-1]), segment.row
    return keys.data_token + masked(fields, _segment_mask(keys, row)) + row


def read_segment(keys: DatagramKeys, datagram: bytes) -> Segment:
    """A segment of the server's, whose token is known. Violation if its fields are out of range."""
    if len(datagram) <= HEADER_BYTES:
        raise Violation(f"a segment of {len(datagram)} bytes")
    row = datagram[HEADER_BYTES:]
    fields = FIELDS.unpack(masked(datagram[TOKEN_BYTES:HEADER_BYTES], _segment_mask(keys, row)))
    segment = Segment._make([*fields, row])
    if not (1 <= segment.n <= N_MAX and segment.m <= M_MAX and segment.row_index < segment.n + segment.m):
        raise Violation(f"a segment out of range: {segment}")
    if segment.n == 1:
        if segment.size != len(row) or segment.codeword:
            raise Violation(f"a row that is not its block: {segment}")
    elif len(row) % row_unit(segment.n, segment.m) or segment.codeword >= codewords(segment.size, segment.n, len(row)):
        raise Violation(f"a row of {len(row)} bytes: {segment}")
    return segment


def _segment_mask(keys: DatagramKeys, row: bytes) -> bytes:
    return mask_of(keys.mask_key, row[:SAMPLE_BYTES].ljust(SAMPLE_BYTES, b"\0"))


def row_unit(n: int, m: int) -> int:
    """Bytes of which a row is a multiple."""
    return 8 * (erasure_code.prime(n, m) - 1) if m else 8


def codewords(size: int, n: int, row_bytes: int) -> int:
    found = -(-size // (n * row_bytes))
    if found > CODEWORDS_MAX:
        raise Violation(f"{found} codewords of {n} rows of {row_bytes} bytes")
    return found


def segments_of(
    header: Header, sealed: bytes, n: int, m: int, row_bytes: int = 0, padding: bytes = b""
) -> list[Segment]:
    """The segments of a sealed block, in the order of their codewords, without sequence and sender. The rows have
    `row_bytes`; 0: as few as one codeword needs. `padding`: bytes behind the end; else they are random.

    With n = 1 it is one segment: the copy that the header says.
    """
    block = Segment(0, 0, header.stream, header.number, header.epoch, len(sealed), 0, n, m, 0)
    if n == 1:
        return [block._replace(m=header.m, row_index=header.first, row=sealed)]
    unit = row_unit(n, m)
    row_bytes = row_bytes or -(-len(sealed) // (n * unit)) * unit
    count = codewords(len(sealed), n, row_bytes)
    behind = count * n * row_bytes - len(sealed)
    whole = sealed + (padding or secrets.token_bytes(behind))
    found = []
    for codeword in range(count):
        first = codeword * n * row_bytes
        rows = [whole[at : at + row_bytes] for at in range(first, first + n * row_bytes, row_bytes)]
        every = rows + erasure_code.parity(rows, m)
        found += [block._replace(codeword=codeword, row_index=index, row=row) for index, row in enumerate(every)]
    return found


class Segments:
    """Sealed blocks from their segments, with the header that they would have as a run that is whole."""

    def __init__(self) -> None:
        self.complete: set[tuple[int, int]] = set()  # stream and number
        self.recovered = 0  # codewords that lacked a row of data
        self.shapes: set[tuple[int, int, int]] = set()  # codewords, n and m of blocks that have come
        self._agreed: dict[tuple[int, int], tuple] = {}
        self._rows: dict[tuple[int, int], dict[int, dict[int, bytes]]] = {}  # by codeword and index

    def add(self, segment: Segment) -> tuple[Header, bytes] | None:
        """The block that this segment completes, if it completes one."""
        which = segment.stream, segment.number
        n, m, size, row_bytes = segment.n, segment.m, segment.size, len(segment.row)
        agreed = n, m, size, segment.epoch, row_bytes
        if self._agreed.setdefault(which, agreed) != agreed:
            raise Violation(f"segments of one block do not agree: {agreed} and {self._agreed[which]}")
        count = codewords(size, n, row_bytes)
        self.shapes.add((count, n, m))
        if which in self.complete:
            return None
        there = self._rows.setdefault(which, {})
        there.setdefault(segment.codeword, {})[segment.row_index] = segment.row
        if len(there) < count or any(len(rows) < n for rows in there.values()):
            return None
        self.complete.add(which)
        block = b"".join(self._data(self._rows[which][codeword], n, m) for codeword in range(count))[:size]
        del self._rows[which]
        copies = (m, segment.row_index) if n == 1 else (0, 0)
        return Header(RUN, segment.stream, segment.number, 1, copies[0], copies[1], 1, size, segment.epoch), block

    def lacking(self, stream: int) -> list[tuple[int, int, int]]:
        """Block, codeword, and the rows that are missing, of the blocks of a stream that have begun."""
        found = []
        for (of_stream, number), there in self._rows.items():
            if of_stream == stream:
                n, m, size, _, row_bytes = self._agreed[stream, number]
                for codeword in range(codewords(size, n, row_bytes)):
                    rows = there.get(codeword, {})
                    if len(rows) < n:
                        found.append((number, codeword, sum(1 << each for each in range(n + m) if each not in rows)))
        return found

    def _data(self, rows: Mapping[int, bytes], n: int, m: int) -> bytes:
        if n == 1:
            return next(iter(rows.values()))
        if all(index in rows for index in range(n)):
            return b"".join(rows[index] for index in range(n))
        self.recovered += 1
        return erasure_code.recover(rows, n, m)


# -- control datagrams


class Probe(NamedTuple):
    challenge: int
    clock: int
    wait: int = 0
    size: int = 0  # of the body; 0: the fewest bytes


class Answer(NamedTuple):
    challenge: int
    clock: int
    size: int


class Counts(NamedTuple):
    sender: int
    highest: int
    age: int
    received: int
    marked: int
    refused: int
    lost: int
    pairs: int
    far_pairs: int


class Arrivals(NamedTuple):
    """Of one stream."""

    stream: int
    turn: int
    bits: bytes = b""


class Incomplete(NamedTuple):
    position: int
    block: int
    codeword: int
    missing: int


class Report(NamedTuple):
    counts: Counts
    streams: Sequence[Arrivals] = ()
    incomplete: Sequence[Incomplete] = ()


def pack(body: Probe | Answer | Report) -> bytes:
    match body:
        case Probe():
            return PROBE_FIELDS.pack(PROBE, *body[:3]).ljust(body.size, b"\0")
        case Answer():
            return ANSWER_FIELDS.pack(ANSWER, *body)
    parts = [REPORT_HEAD.pack(REPORT, len(body.streams), len(body.incomplete)), COUNTS_FIELDS.pack(*body.counts)]
    parts += [STREAM_FIELDS.pack(each.stream, each.turn, len(each.bits)) + each.bits for each in body.streams]
    return b"".join((*parts, *(CODEWORD_FIELDS.pack(*each) for each in body.incomplete)))


def parse(body: bytes) -> Probe | Answer | Report:
    """Violation for a body that breaks the rules: the server is to send none."""
    try:
        match body[0]:
            case 1:
                if any(body[PROBE_FIELDS.size :]):
                    raise Violation("a probe with other bytes than zeros behind it")
                return Probe._make([*PROBE_FIELDS.unpack_from(body)[1:], len(body)])
            case 2:
                return Answer(*ANSWER_FIELDS.unpack(body)[1:])
            case 3:
                return _parse_report(body)
    except (struct.error, IndexError):
        pass
    raise Violation(f"a control datagram with {body.hex()}")


def _parse_report(body: bytes) -> Report:
    _, streams, incomplete = REPORT_HEAD.unpack_from(body)
    at = REPORT_HEAD.size
    counts = Counts(*COUNTS_FIELDS.unpack_from(body, at))
    at += COUNTS_FIELDS.size
    arrivals = []
    for _ in range(streams):
        stream, turn, size = STREAM_FIELDS.unpack_from(body, at)
        at += STREAM_FIELDS.size
        arrivals.append(Arrivals(stream, turn, body[at : at + size]))
        at += size
    lacking = [Incomplete(*each) for each in CODEWORD_FIELDS.iter_unpack(body[at:])]
    if len(lacking) != incomplete or streams > STREAMS_MOST or incomplete > INCOMPLETE_MOST:
        raise Violation(f"a report of {streams} streams and {incomplete} codewords in {len(body)} bytes")
    if any(len(each.bits) > BITS_MOST or each.bits.endswith(b"\0") for each in arrivals):
        raise Violation(f"a report with {arrivals}")
    if any(each.position >= streams or not each.missing for each in lacking):
        raise Violation(f"a report with {lacking} of {streams} streams")
    return Report(counts, tuple(arrivals), tuple(lacking))


class ControlSeal:
    """The control datagrams of one direction. An end of the session has one to seal and another to open."""

    def __init__(self, suite: int, keys: DatagramKeys) -> None:
        self._suite, self._keys = suite, keys
        self._opened: dict[int, tuple[int, set[int]]] = {}  # of each lane: the latest process, and its numbers

    def seal(self, process: int, lane: int, number: int, body: bytes) -> bytes:
        return self.seal_count((process << LANE_BITS | lane) << NUMBER_BITS | number, body)

    def seal_count(self, count: int, body: bytes) -> bytes:
        sealed = self._aead(count).encrypt(self._nonce(count), body, None)
        return self._keys.control_token + masked(COUNT.pack(count), self._mask(sealed)) + sealed

    def open(self, datagram: bytes) -> tuple[int, bytes]:
        """Count and body. Violation for what is not proved, and for what came before."""
        sealed = datagram[TOKEN_BYTES + COUNT.size :]
        (count,) = COUNT.unpack(masked(datagram[TOKEN_BYTES : TOKEN_BYTES + COUNT.size], self._mask(sealed)))
        try:
            body = self._aead(count).decrypt(self._nonce(count), sealed, None)
        except InvalidTag:
            raise Violation("a control datagram that is not proved by its tag") from None
        self._take(count)
        return count, body

    def _take(self, count: int) -> None:
        process, number = count >> NUMBER_BITS + LANE_BITS, count % (1 << NUMBER_BITS)
        lane = (count >> NUMBER_BITS) % (1 << LANE_BITS)
        latest, opened = self._opened.get(lane, (process, set()))
        if process > latest:
            latest, opened = process, set()
        if number in opened:
            raise Violation(f"count {count} twice")
        opened.add(number)
        self._opened[lane] = latest, {each for each in opened if max(opened) - each < WINDOW}

    def _aead(self, count: int) -> AESGCM | ChaCha20Poly1305:
        return key_schedule.aead(self._suite, self._keys.control_key(count >> STRETCH_BITS))

    def _mask(self, sealed: bytes) -> bytes:
        return mask_of(self._keys.mask_key, sealed[:16])

    @staticmethod
    def _nonce(count: int) -> bytes:
        return bytes(4) + COUNT.pack(count)
